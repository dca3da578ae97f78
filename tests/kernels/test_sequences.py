"""The contract of every function over sequences with a state: what each must do, on the simulated GPU, beside its plain
recurrence differentiated by torch in float64. A function without a row fails.

Random batches, heads and lengths; sequences of no rows; two parts continued equal one; steps equal rows; gradients of
every operand and state; decays of 0, -1e-3, -30 and -inf; f16 with large keys; operands that lie in memory as (batch,
time, heads, d).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import pykittens as pk  # noqa: E402
import pykittens.functions as functions  # noqa: E402
from pykittens.kernels import delta_parts, gated_delta_rule, gla, linear_attention, mamba2, ssd_passes  # noqa: E402

CUDA = "cuda" if torch.cuda.is_available() else "cpu"
LEVELS = torch.tensor([0.0, -1e-3, -30.0, -torch.inf, -0.1, torch.finfo(torch.float32).min])
FEATURES = 160  # of Based


@dataclass(frozen=True)
class Row:
    """A function f(*operands, state=, return_state=True) along axis 2 of its operands (1 of the convolution's)."""

    call: Callable[..., Any]
    operands: Callable[..., dict[str, Any]]  # of (generator, batch, heads, n, dtype)
    state: Callable[..., Any]
    plain: Callable[..., tuple[Any, Any]]  # (operands by name, state) -> (result, state), row by row
    rows: tuple[str, ...]  # the operands that have rows, all but weights
    step: Callable[..., tuple[Any, Any]] | None = None
    axis: int = 2
    large: tuple[str, str] | None = ("k", "v")  # which operand may be large in f16 where the other is small
    state_error: float = 2e-5  # of the last state; where products take it in 16 bits, theirs
    sums: tuple[str, ...] = ("log_decay",)  # operands whose gradients are sums over rows
    sum_error: float = 1e-3
    packed: bool = False
    gradients: bool = True
    shared: tuple[str, ...] = ()  # operands that several heads may have in common


def _normal(g: Any, *shape: int, dtype: Any = torch.float32) -> Any:
    return torch.randn(*shape, generator=g).to(dtype)


def _qkv(g: Any, batch: int, heads: int, n: int, dtype: Any, d: int = 64) -> dict[str, Any]:
    """As (batch, time, heads, d) in memory."""
    return {x: _normal(g, batch, n, heads, w, dtype=dtype).transpose(1, 2) for x, w in (("q", d), ("k", d), ("v", 64))}


def _recurrence(q: Any, k: Any, v: Any, decay: Any, state: Any) -> tuple[Any, Any]:
    rows = []
    for i in range(q.shape[2]):
        faded = state if decay is None else state * decay[:, :, i].exp()[..., None, None]
        state = faded + v[:, :, i, :, None] * k[:, :, i, None, :]
        rows.append((state @ q[:, :, i, :, None])[..., 0])
    return (torch.stack(rows, 2) if rows else v * 0), state


def _linear(x: dict[str, Any], state: Any) -> tuple[Any, Any]:
    decay = x["log_decay"][None, :, None].expand(*x["q"].shape[:3])
    o, state = _recurrence(x["q"], x["k"], x["v"], decay, state)
    return o * x["q"].shape[-1] ** -0.5, state


def _channels(x: dict[str, Any], state: Any) -> tuple[Any, Any]:
    rows, decay = [], x["log_decay"].exp()
    for i in range(decay.shape[2]):
        state = state * decay[:, :, i, None] + x["v"][:, :, i, :, None] * x["k"][:, :, i, None, :]
        rows.append((state @ x["q"][:, :, i, :, None])[..., 0])
    return (torch.stack(rows, 2) if rows else x["v"] * 0) * x["q"].shape[-1] ** -0.5, state


def _gated(x: dict[str, Any], state: Any) -> tuple[Any, Any]:
    o, state = _recurrence(x["q"], x["k"], x["v"], x["log_decay"], state)
    return o * x["q"].shape[-1] ** -0.5, state


def _features(x: Any) -> Any:
    last = torch.cat([(x * x.roll(-8, -1))[..., :8], torch.ones_like(x[..., :1]), torch.zeros_like(x[..., :7])], -1)
    return torch.cat([*(x * x.roll(-m, -1) for m in range(8)), last, x], -1)


def _based(x: dict[str, Any], state: Any) -> tuple[Any, Any]:
    share = torch.ones(FEATURES, dtype=x["q"].dtype)
    share[:16] = 0.5
    return _recurrence(_features(x["q"] / 4) * share, _features(x["k"]), x["v"], None, state)


def _delta(x: dict[str, Any], state: Any) -> tuple[Any, Any]:
    rows = []
    each = x["v"].shape[1] // x["q"].shape[1]
    q, k = (y / (y * y).sum(-1, keepdim=True).add(1e-6).sqrt() for y in (x["q"], x["k"]))
    q, k = (y.repeat_interleave(each, 1) for y in (q, k))
    for i in range(q.shape[2]):
        decay = x["log_decay"][:, :, i].exp()  # of a head, or of each channel
        faded = state * (decay[..., None, None] if decay.ndim == 2 else decay[..., None, :])
        found = (faded @ k[:, :, i, :, None])[..., 0]
        change = x["beta"][:, :, i, None] * (x["v"][:, :, i] - found)
        state = faded + change[..., None] * k[:, :, i, None, :]
        rows.append((state @ q[:, :, i, :, None])[..., 0])
    return (torch.stack(rows, 2) if rows else x["v"] * 0) * q.shape[-1] ** -0.5, state


def _convolution(x: dict[str, Any], state: Any) -> tuple[Any, Any]:
    n, width = x["x"].shape[1], x["weight"].shape[1]
    whole = torch.cat([state, x["x"]], 1)
    z = x["bias"] + sum(whole[:, j : j + n] * x["weight"][:, j] for j in range(width))
    return z * torch.sigmoid(z), whole[:, n:]


def _with_decay(operands: dict[str, Any], decay: Any) -> dict[str, Any]:
    return {**operands, "log_decay": decay}


def _levels(g: Any, *shape: int) -> Any:
    return LEVELS[torch.randint(len(LEVELS), shape, generator=g)]


def _mamba2(x: dict[str, Any], state: Any) -> tuple[Any, Any]:
    each, rows = x["x"].shape[2] // x["B"].shape[2], []
    dt = torch.nn.functional.softplus(x["dt"] + x["dt_bias"])
    b, c = (x[name].repeat_interleave(each, 2) for name in "BC")
    for i in range(dt.shape[1]):
        added = (dt[:, i, :, None] * x["x"][:, i])[..., None] * b[:, i, :, None, :]
        state = state * (dt[:, i] * x["A"]).exp()[..., None, None] + added
        rows.append((state @ c[:, i, :, :, None])[..., 0])
    y = torch.stack(rows, 1) if rows else x["x"] * 0
    return (y + x["D"][:, None] * x["x"]) * torch.nn.functional.silu(x["z"]), state


def _mamba2_operands(g: Any, batch: int, heads: int, n: int, dtype: Any) -> dict[str, Any]:
    wide = {name: _normal(g, batch, n, heads, 64, dtype=dtype) for name in "xz"}
    groups = {name: _normal(g, batch, n, 1, 64, dtype=dtype) for name in "BC"}
    each = {"dt": _normal(g, batch, n, heads) - 1, "dt_bias": _normal(g, heads), "D": _normal(g, heads)}
    return {**wide, **groups, **each, "A": _levels(g, heads)}


ROWS = {
    "linear_attention": Row(
        pk.linear_attention,
        lambda g, b, h, n, dtype: _with_decay(_qkv(g, b, h, n, dtype), _levels(g, h)),
        lambda g, b, h, dtype: _normal(g, b, h, 64, 64),
        _linear,
        ("q", "k", "v"),
    ),
    "gated_linear_attention": Row(
        pk.gated_linear_attention,
        lambda g, b, h, n, dtype: _with_decay(_qkv(g, b, h, n, dtype), _levels(g, b, h, n)),
        lambda g, b, h, dtype: _normal(g, b, h, 64, 64),
        _gated,
        ("q", "k", "v", "log_decay"),
        step=pk.gated_linear_attention_step,
        state_error=4e-3,
        sum_error=3e-3,
        packed=True,
    ),
    "gated_linear_attention, channels": Row(
        pk.gated_linear_attention,
        lambda g, b, h, n, dtype: _with_decay(_qkv(g, b, h, n, dtype), _levels(g, b, n, h, 64).transpose(1, 2)),
        lambda g, b, h, dtype: _normal(g, b, h, 64, 64),
        _channels,
        ("q", "k", "v", "log_decay"),
        step=pk.gated_linear_attention_step,
        state_error=4e-3,
        sum_error=6e-3,
        packed=True,
    ),
    "gated_delta_rule": Row(
        lambda **o: pk.gated_delta_rule(normalize=True, **o),
        lambda g, b, h, n, dtype: {
            **_with_decay(_qkv(g, b, h, n, dtype), _levels(g, b, h, n)),
            "beta": torch.rand(b, h, n, generator=g),
        },
        lambda g, b, h, dtype: _normal(g, b, h, 64, 64),
        _delta,
        ("q", "k", "v", "log_decay", "beta"),
        step=lambda **o: pk.gated_delta_rule_step(normalize=True, **o),
        state_error=4e-3,
        sum_error=4e-3,
        shared=("q", "k"),
        packed=True,
    ),
    "kimi_delta_attention": Row(
        lambda **o: pk.kimi_delta_attention(normalize=True, **o),
        lambda g, b, h, n, dtype: {
            **_with_decay(_qkv(g, b, h, n, dtype), _levels(g, b, h, n, 64)),
            "beta": torch.rand(b, h, n, generator=g),
        },
        lambda g, b, h, dtype: _normal(g, b, h, 64, 64),
        _delta,
        ("q", "k", "v", "log_decay", "beta"),
        step=lambda **o: pk.kimi_delta_attention_step(normalize=True, **o),
        large=("k", "q"),  # both have their lengths divided out
        state_error=5e-3,
        sum_error=4e-3,
        shared=("q", "k"),
        packed=True,
    ),
    "based": Row(
        pk.based,
        lambda g, b, h, n, dtype: _qkv(g, b, h, n, dtype, 16),
        lambda g, b, h, dtype: _normal(g, b, h, 64, FEATURES),
        _based,
        ("q", "k", "v"),
    ),
    "mamba2": Row(
        lambda **o: pk.mamba2(dt_softplus=True, **o),
        _mamba2_operands,
        lambda g, b, h, dtype: _normal(g, b, h, 64, 64),
        _mamba2,
        ("x", "z", "B", "C", "dt"),
        step=lambda **o: pk.mamba2_step(dt_softplus=True, **o),
        axis=1,
        large=("B", "x"),
        state_error=4e-3,
        sums=("dt", "A", "dt_bias", "D"),
        sum_error=2e-2,
        shared=("B", "C"),
        packed=True,
    ),
    "causal_conv1d": Row(
        lambda x, weight, bias, **o: pk.causal_conv1d(x, weight, bias, activation="silu", **o),
        lambda g, b, h, n, dtype: {
            "x": _normal(g, b, n, 24 * h, dtype=dtype),
            "weight": _normal(g, 24 * h, 4, dtype=dtype),
            "bias": _normal(g, 24 * h, dtype=dtype),
        },
        lambda g, b, h, dtype: _normal(g, b, 3, 24 * h, dtype=dtype),
        _convolution,
        ("x",),
        step=lambda x, weight, bias, **o: pk.causal_conv1d_step(x, weight, bias, activation="silu", **o),
        axis=1,
        large=None,
        packed=True,
    ),
}


def made(name: str, seed: int, n: int, dtype: Any, batch: int = 1, heads: int = 2) -> tuple[dict[str, Any], Any]:
    g = torch.Generator().manual_seed(seed)
    row = ROWS[name]
    operands = row.operands(g, batch, heads, n, dtype)
    state = row.state(g, batch, heads, dtype)
    if name == "based":
        state[..., 137:144] = 0
    return {k: x.to(CUDA) for k, x in operands.items()}, state.to(CUDA)


def distance(x: Any, y: Any) -> float:
    x, y = x.detach().cpu().double(), y.detach().cpu().double()
    assert x.shape == y.shape and torch.isfinite(x).all()
    return float((x - y).norm() / y.norm().clamp_min(1e-30))


def exact(name: str, operands: dict[str, Any], state: Any) -> tuple[Any, Any]:
    return ROWS[name].plain({k: x.cpu().double() for k, x in operands.items()}, state.cpu().double())


def part(name: str, operands: dict[str, Any], rows: slice) -> dict[str, Any]:
    row = ROWS[name]
    index = (slice(None),) * row.axis + (rows,)
    return {k: x[index] if k in row.rows else x for k, x in operands.items()}


def test_every_function_with_a_state_has_a_row() -> None:
    functions.load()
    stateful = {f.name for f in functions.declaration.ALL if "state" in f.names and f.also}  # that give it on
    assert stateful == {name.partition(",")[0] for name in ROWS}
    steps = {name for name in functions.PUBLIC if name.endswith("_step")}
    assert steps == {f"{name.partition(',')[0]}_step" for name, row in ROWS.items() if row.step}


@pytest.mark.thin
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize(
    ("n", "dtype"),
    [
        (1, torch.bfloat16),
        (77, torch.bfloat16),
        *(pytest.param(n, torch.float16, marks=pytest.mark.whole) for n in (64, 300)),
    ],
)
def test_the_recurrence_and_parts_that_continue_it(name: str, n: int, dtype: Any) -> None:
    operands, state = made(name, n, n, dtype, batch=2)
    o, after = ROWS[name].call(**operands, state=state, return_state=True)
    expected, last = exact(name, operands, state)
    assert o.dtype == dtype and distance(o, expected) < (4e-3 if dtype is torch.bfloat16 else 1e-3)
    assert distance(after, last) < ROWS[name].state_error
    cut = n // 3
    first, middle = ROWS[name].call(**part(name, operands, slice(0, cut)), state=state, return_state=True)
    second, end = ROWS[name].call(**part(name, operands, slice(cut, n)), state=middle, return_state=True)
    assert first.shape[ROWS[name].axis] == cut  # without rows the state passes through
    assert (
        distance(torch.cat([first, second], ROWS[name].axis), o) < 4e-3
        and distance(end, after) < ROWS[name].state_error
    )


@pytest.mark.whole
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("seed", range(6))
def test_random_sizes(name: str, seed: int) -> None:
    """Batches, heads, groups of heads that share queries and keys, lengths, dtypes."""
    row, rng = ROWS[name], np.random.default_rng([seed, len(name)])
    most = (3, 6, 300) if CUDA == "cuda" else (2, 2, 100)
    batch, heads, n = (int(rng.integers(1, x, endpoint=True)) for x in most)
    dtype = (torch.bfloat16, torch.float16)[int(rng.integers(2))]
    operands, state = made(name, seed, n, dtype, batch, heads)
    if row.shared:
        groups = int(rng.choice([x for x in range(1, heads + 1) if heads % x == 0]))
        axis = 3 - row.axis  # that of heads
        for what in row.shared:
            alone = [made(name, seed + i, n, dtype, batch, heads)[0][what].narrow(axis, 0, 1) for i in range(groups)]
            operands[what] = torch.cat(alone, axis)
    o, after = row.call(**operands, state=state, return_state=True)
    expected, last = exact(name, operands, state)
    assert distance(o, expected) < (5e-3 if dtype is torch.bfloat16 else 1e-3)
    assert distance(after, last) < row.state_error


def exact_ones() -> list[str]:
    """The rows of functions whose states can be exact."""
    functions.load()
    able = {f.name for f in functions.declaration.ALL if "exact_state" in f.setting_names}
    return [name for name in ROWS if name.partition(",")[0] in able]


@pytest.mark.parametrize("name", exact_ones())
def test_exact_states(name: str) -> None:
    operands, state = made(name, 70, 70, torch.bfloat16)
    _, after = ROWS[name].call(**operands, state=state, return_state=True, exact_state=True)
    assert distance(after, exact(name, operands, state)[1]) < 1e-5


def _reference_of_mamba2(state: Any, **o: Any) -> tuple[Any, Any]:
    more = {"d": o["D"], "z": o["z"], "bias": o["dt_bias"], "soft": True, "state": state}
    return mamba2.reference(o["x"], o["dt"], o["A"], o["B"], o["C"], **more)


REFERENCES: dict[str, Callable[..., tuple[Any, Any]]] = {
    "linear_attention": linear_attention.reference,
    "gated_linear_attention": gla.reference,
    "gated_linear_attention, channels": gla.reference,
    "gated_delta_rule": partial(gated_delta_rule.reference, norm=True),
    "kimi_delta_attention": partial(gated_delta_rule.reference, norm=True),
    "mamba2": _reference_of_mamba2,
}


@pytest.mark.parametrize("name", REFERENCES)
def test_a_reference_is_the_recurrence(name: str) -> None:
    """What kernels are compared with by themselves, beside the recurrence of this file."""
    operands, state = made(name, 4, 9, torch.float32, batch=2)
    found = REFERENCES[name](**{k: x.cpu().numpy() for k, x in operands.items()}, state=state.cpu().numpy())
    for got, wanted in zip(found, exact(name, operands, state), strict=True):
        assert distance(torch.from_numpy(got), wanted) < 1e-12


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.step])
def test_steps_are_rows(name: str) -> None:
    row, dtype = ROWS[name], torch.bfloat16
    operands, state = made(name, 5, 3, dtype, batch=2)
    o, after = row.call(**operands, state=state, return_state=True)
    for i in range(3):
        one = {k: x.select(row.axis, i) if k in row.rows else x for k, x in operands.items()}
        y, state = row.step(**one, state=state)  # type: ignore[misc]
        assert distance(y, o.select(row.axis, i)) < 4e-3
    assert distance(state, after) < row.state_error
    first = (row.step(**one, state=x) for x in (None, state * 0))  # type: ignore[misc]
    assert all(torch.equal(x, y) for x, y in zip(*first, strict=True))


def with_gaps(x: Any) -> Any:
    """A copy with gaps between its elements; of 16 bits without, in the order in memory that it has."""
    return x.detach().repeat_interleave(2, -1)[..., ::2] if x.dtype is torch.float32 else x.detach().clone()


@pytest.mark.thin(3)
@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.gradients])
@pytest.mark.parametrize(
    ("n", "dtype"),
    [
        (67, torch.bfloat16),
        *(pytest.param(n, dtype, marks=pytest.mark.whole) for n, dtype in ((130, torch.bfloat16), (67, torch.float16))),
    ],
)
def test_gradients_of_every_operand_and_state(name: str, n: int, dtype: Any) -> None:
    operands, state = made(name, n + 1, n, dtype)
    leaves = {k: with_gaps(x).requires_grad_() for k, x in operands.items()}
    before = with_gaps(state).requires_grad_()
    results = ROWS[name].call(**leaves, state=before, return_state=True)
    ups = [_normal(torch.Generator().manual_seed(i), *x.shape).to(x) for i, x in enumerate(results)]
    found = torch.autograd.grad(results, [*leaves.values(), before], ups)
    # exp at -inf has no derivative that float64 knows: a decay that is as good
    doubles = {k: x.detach().cpu().double().clamp_min(-1e4).requires_grad_() for k, x in operands.items()}
    first = state.cpu().double().requires_grad_()
    wanted = torch.autograd.grad(
        ROWS[name].plain(doubles, first), [*doubles.values(), first], [x.cpu().double() for x in ups]
    )
    for x, y, what in zip(found, wanted, [*leaves, "state"], strict=True):
        assert distance(x, y) < (ROWS[name].sum_error if what in ROWS[name].sums else 4e-3), what


@pytest.mark.parametrize(
    ("name", "order"),
    [(name, order) for name in ("gated_linear_attention", "mamba2") for order in ((0, 1, 2, 3), (2, 0, 1, 3))],
    ids=str,
)
def test_gradients_that_several_blocks_add_up_in_every_order_in_memory(
    name: str, order: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values wider than a block's, or several heads of a group: their blocks share queries and keys."""
    monkeypatch.setattr(ssd_passes, "machine", lambda info: {"processors": 132})
    g, row = torch.Generator().manual_seed(7), ROWS[name]
    wide, n = {"q": 64, "k": 64, "v": 128, "x": 64, "z": 64, "B": 64, "C": 64}, 20
    heads = {"x": 4, "z": 4}
    operands = row.operands(g, 2, 4 if name == "mamba2" else 2, n, torch.bfloat16)
    for what, cols in wide.items():
        if what in operands:
            shape = (2, n, heads.get(what, 2), cols) if row.axis == 1 else (2, 2, n, cols)
            x = _normal(g, *shape, dtype=torch.bfloat16).permute(order).contiguous()
            operands[what] = x.permute([order.index(i) for i in range(4)])
    leaves = {k: x.to(CUDA).requires_grad_() for k, x in operands.items()}
    o = row.call(**leaves)
    up = _normal(g, *o.shape).to(o)
    wanted = ("q", "k", "v") if row.axis == 2 else ("x", "B", "C")
    found = torch.autograd.grad(o, [leaves[x] for x in wanted], up)
    doubles = {k: x.detach().cpu().double().clamp_min(-1e4).requires_grad_() for k, x in operands.items()}
    state = torch.zeros(2, o.shape[3 - row.axis], o.shape[3], 64).double()
    exactly = torch.autograd.grad(row.plain(doubles, state)[0], [doubles[x] for x in wanted], up.cpu().double())
    for x, y, what in zip(found, exactly, wanted, strict=True):
        assert distance(x, y) < 5e-3, what


def test_steps_of_time_in_any_order_in_memory() -> None:
    operands, _ = made("mamba2", 19, 20, torch.bfloat16, batch=2)
    expected = ROWS["mamba2"].call(**operands)
    turned = operands["dt"].transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(ROWS["mamba2"].call(**{**operands, "dt": turned}), expected)
    nothing = {k: x[:, :, :0] if x.ndim > 2 else x[:0] for k, x in operands.items()}
    assert ROWS["mamba2"].call(**nothing).shape == (2, 20, 0, 64)


def test_gradients_of_states_of_256_columns() -> None:
    g = torch.Generator().manual_seed(3)
    operands = _mamba2_operands(g, 1, 1, 20, torch.bfloat16)
    operands |= {name: _normal(g, 1, 20, 1, 256, dtype=torch.bfloat16) for name in "BC"}
    operands["x"] = operands["x"].abs()  # the gradient of D is a sum that does not cancel
    leaves = {k: x.to(CUDA).requires_grad_() for k, x in operands.items()}
    before = _normal(g, 1, 1, 64, 256).to(CUDA).requires_grad_()
    results = ROWS["mamba2"].call(**leaves, state=before, return_state=True)
    ups = [_normal(g, *x.shape).abs().to(x) for x in results]
    found = torch.autograd.grad(results, [*leaves.values(), before], ups)
    doubles = [x.detach().cpu().double().clamp_min(-1e4).requires_grad_() for x in (*leaves.values(), before)]
    plain = _mamba2(dict(zip(leaves, doubles, strict=False)), doubles[-1])
    wanted = torch.autograd.grad(plain, doubles, [x.cpu().double() for x in ups])
    for x, y, what in zip(found, wanted, [*leaves, "state"], strict=True):
        assert distance(x, y) < (2e-2 if what in ROWS["mamba2"].sums else 5e-3), what


@pytest.mark.thin(3)
@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.large])
def test_f16_with_large_keys(name: str) -> None:
    operands, state = made(name, 9, 70, torch.float16)
    size = 30 if name == "based" else 1000
    large, small = ROWS[name].large  # type: ignore[misc]
    operands[large] = (operands[large].float() * size).clamp(-60000, 60000).half()
    operands[small] = (operands[small].float() / size).half()
    o, _ = ROWS[name].call(**operands, state=state * 0, return_state=True)
    wanted = exact(name, operands, state * 0)[0]
    assert distance(o, wanted) < max(1.5e-3, 1.5 * distance(wanted.half(), wanted))  # of a delta rule it is subnormal


def rows_first(name: str, x: Any) -> Any:
    """(heads, total, d) as (total, heads, d), and back; what has rows first as it is."""
    return x.transpose(0, 1) if ROWS[name].axis == 2 else x


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.packed])
def test_packed_sequences(name: str) -> None:
    lengths = (0, 70, 0, 2, 0)
    operands, _ = made(name, 13, sum(lengths), torch.bfloat16)
    _, states = made(name, 14, 1, torch.bfloat16, batch=len(lengths))
    bounds = [0, *np.cumsum(lengths).tolist()]
    offsets = torch.tensor(bounds, dtype=torch.int32, device=CUDA)
    turned = {k: rows_first(name, x[0]) if k in ROWS[name].rows else x for k, x in operands.items()}
    o, after = ROWS[name].call(**turned, state=states, return_state=True, cu_seqlens=offsets)
    assert o.shape[0] == sum(lengths) and o.ndim == next(iter(turned.values())).ndim
    o = rows_first(name, o)[None]
    for i, (start, end) in enumerate(pairwise(bounds)):
        one = part(name, operands, slice(start, end))
        alone, last = ROWS[name].call(**one, state=states[i : i + 1], return_state=True)
        own = o.narrow(ROWS[name].axis, start, end - start)
        assert torch.equal(own, alone) and torch.equal(after[i], last[0]), i


@pytest.mark.parametrize("name", ["gated_delta_rule", "kimi_delta_attention"])
def test_few_heads_go_in_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences of three chunks, of which each is a part, and their gradients; packed behind an empty one, too."""
    monkeypatch.setattr(delta_parts, "LEAST_CHUNKS", 1)
    monkeypatch.setattr(delta_parts, "machine", lambda info: {"processors": 132})
    operands, state = made(name, 15, 130, torch.bfloat16, heads=1)
    assert delta_parts.parts_of(operands["v"], 1, 3) == (3, 1)
    if name == "gated_delta_rule":
        operands["log_decay"] = operands["log_decay"].clamp_min(-0.1)  # so that the last rows see the first
    leaves = [x.detach().requires_grad_() for x in (*operands.values(), state)]
    results = ROWS[name].call(**dict(zip(operands, leaves, strict=False)), state=leaves[-1], return_state=True)
    doubles = [x.detach().cpu().double().clamp_min(-1e4).requires_grad_() for x in leaves]
    exactly = ROWS[name].plain(dict(zip(operands, doubles, strict=False)), doubles[-1])
    assert distance(results[0], exactly[0]) < 4e-3 and distance(results[1], exactly[1]) < ROWS[name].state_error
    ups = [_normal(torch.Generator().manual_seed(5), *x.shape).to(x) for x in results]
    found = torch.autograd.grad(results, leaves, ups)
    wanted = torch.autograd.grad(exactly, doubles, [x.cpu().double() for x in ups])
    for x, y, what in zip(found, wanted, [*operands, "state"], strict=True):
        assert distance(x, y) < 8e-3, what
    offsets = torch.tensor([0, 0, 130], dtype=torch.int32, device=CUDA)
    states = torch.cat([state + 1, state])
    packed, ends = ROWS[name].call(**operands, state=states, return_state=True, cu_seqlens=offsets)
    assert torch.equal(packed, results[0]) and torch.equal(ends, torch.cat([states[:1], results[1]]))


WRONG: dict[str, Callable[[Any], Any]] = {
    "one dimension more": lambda x: x[None],
    "none": lambda x: x.sum(),
    "a column less": lambda x: x[..., :-1],
    "float64": lambda x: x.double(),
    "int64": lambda x: x.long(),
    "of NumPy": lambda x: x.float().numpy(),
    "without memory": lambda x: x.to("meta"),
    "a word": lambda x: "a word",
    "a number": lambda x: 1.0,
}


@pytest.mark.parametrize("name", ROWS)
def test_an_operand_that_is_wrong_is_one_error(name: str) -> None:
    """Each operand and the state, in each way, of rows and of a step; before anything runs."""
    row, (operands, state) = ROWS[name], made(name, 5, 3, torch.bfloat16, batch=2)
    rows = {**{k: x.cpu() for k, x in operands.items()}, "state": state.cpu()}
    one = {k: x.select(row.axis, 0) if k in row.rows else x for k, x in rows.items()}
    for call, given in ((partial(row.call, return_state=True), rows), (row.step, one)):
        for what, x in given.items() if call else ():
            for how, wrong in WRONG.items():
                try:
                    call(**{**given, what: wrong(x)})  # type: ignore[misc]
                except pk.ArgumentError as error:
                    assert error.fix and name.partition(",")[0] in str(error), (what, how)
                else:
                    pytest.fail(f"{name} takes {what} that is wrong: {how}")


@pytest.mark.parametrize("name", [name for name in ROWS if name not in ("based", "causal_conv1d")])
def test_decays_that_would_let_states_grow(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYKITTENS_DEBUG", "1")  # without it nobody looks at values on a GPU
    row, (operands, state) = ROWS[name], made(name, 5, 2, torch.bfloat16)
    what = "A" if name == "mamba2" else "log_decay"
    wrong = {**operands, what: operands[what].clone()}
    wrong[what][..., -1] = 0.5
    with pytest.raises(pk.ArgumentError, match=rf"{what} is 0.5 at \[.*\], so that states would grow"):
        row.call(**wrong, state=state)
    if row.step:
        one = {k: x.select(row.axis, 1) if k in row.rows else x for k, x in wrong.items()}
        with pytest.raises(pk.ArgumentError, match=f"{what} is 0.5"):
            row.step(**one, state=state)


@pytest.mark.parametrize("name", ROWS)
def test_nothing_that_comes_later_reaches_a_row(name: str) -> None:
    operands, state = made(name, 11, 140, torch.bfloat16, heads=1)
    first = next(iter(ROWS[name].rows))
    operands[first] = operands[first].clone()
    index = (slice(None),) * ROWS[name].axis + (130,)
    operands[first][index] = np.nan
    o = ROWS[name].call(**operands, state=state, return_state=True)[0].float()
    bad = torch.isnan(o).flatten(ROWS[name].axis + 1).any(-1)
    assert bad[..., 130].all() and not bad[..., :128].any()


@pytest.mark.parametrize("gate", [-2.595, -2.605])  # of each row: 16 decay by 2^-59.9, and by 2^-60.1
def test_kimi_delta_attention_where_one_product_is_no_longer_enough(gate: float) -> None:
    operands, state = made("kimi_delta_attention", 17, 18, torch.bfloat16, heads=1)
    operands["log_decay"] = torch.full_like(operands["log_decay"], gate)
    operands["log_decay"][..., ::3] = 0
    leaves = {k: x.detach().clone().requires_grad_() for k, x in operands.items()}
    o, _ = ROWS["kimi_delta_attention"].call(**leaves, state=state, return_state=True)
    doubles = {k: x.detach().cpu().double().requires_grad_() for k, x in operands.items()}
    expected, _ = ROWS["kimi_delta_attention"].plain(doubles, state.cpu().double())
    assert distance(o, expected) < 4e-3
    up = _normal(torch.Generator().manual_seed(1), *o.shape).to(o)
    found = torch.autograd.grad(o, [*leaves.values()], up)
    wanted = torch.autograd.grad(expected, [*doubles.values()], up.cpu().double())
    for x, y, what in zip(found, wanted, leaves, strict=True):
        assert distance(x, y) < 8e-3, what  # 18 products of errors and gradients, of one head
