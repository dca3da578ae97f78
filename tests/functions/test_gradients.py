"""Gradients of every public function beside float64, at sizes that fill no tile, under gradients of any layout."""

import gc
import itertools
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

import pykittens as pk  # noqa: E402
import pykittens.functions as functions  # noqa: E402
from pykittens.call.kernel import Kernel  # noqa: E402
from pykittens.errors import ArgumentError, TraceError  # noqa: E402
from pykittens.functions import plans  # noqa: E402
from pykittens.functions.declaration import ALL  # noqa: E402
from pykittens.functions.product import ADDMM  # noqa: E402
from pykittens.interop.arrays import as_numpy  # noqa: E402
from pykittens.kernels import vocabulary_slices  # noqa: E402

functions.load()
F = torch.nn.functional
HALF = torch.bfloat16


def tensor(*shape: int, dtype: Any = torch.float32) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


class Case(NamedTuple):
    """A call, its formula in torch, and operands that all have gradients."""

    call: Callable[..., Any]
    formula: Callable[..., Any]
    operands: list[Any]


def attend(
    q: Any, k: Any, v: Any, sinks: Any = None, causal: bool = False, cap: Any = None, slopes: Any = None
) -> tuple[Any, Any]:
    """Attention and log-sum-exp as their formulas say. A row that sees no key is 0, and has no log-sum-exp here."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    score, (n, m) = q @ k.mT * q.shape[-1] ** -0.5, (q.shape[2], k.shape[2])
    first = max(n - m, 0) if causal else 0  # the first row that sees a key
    score = score if cap is None else cap * (score / cap).tanh()
    if slopes is not None:
        score = score + slopes[:, None, None] * (torch.arange(n)[:, None] - torch.arange(m)) / 64
    if causal:
        score = score.masked_fill(torch.arange(m) > torch.arange(n)[:, None] + m - n, -torch.inf)
    score = score[:, :, first:]
    if sinks is not None:
        score = torch.cat((score, sinks[:, None, None].expand(*score.shape[:3], 1)), -1)
    weights = F.pad(torch.softmax(score, -1), (0, 0, first, 0))
    return weights[..., :m] @ v, torch.logsumexp(score, -1)


def causal(q: Any, k: Any, v: Any) -> tuple[Any, Any]:
    o, lse = pk.attention(q, k, v, causal=True, return_lse=True)
    return o, lse[:, :, max(q.shape[2] - k.shape[2], 0) :]


def sloped(s: Any, batch: Any, head: Any, row: Any, col: Any, slopes: Any) -> Any:
    return s + slopes[head] * (row - col).to(pk.f32) * 0.015625


def turn(x: Any, cos: Any, sin: Any, interleaved: bool = False) -> Any:
    h, n, r = cos.shape[-1], x.shape[-2], 2 * cos.shape[-1]
    a, b = (x[..., :r:2], x[..., 1:r:2]) if interleaved else (x[..., :h], x[..., h:r])
    c, s = cos[:n].double(), sin[:n].double()
    turned = a * c - b * s, b * c + a * s
    both = torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)
    return torch.cat((both, x[..., r:]), -1)


def normed(x: Any, w: Any, b: Any, residual: Any, centred: bool) -> tuple[Any, Any]:
    from pykittens.kernels.norms import kept

    s = torch.where(torch.from_numpy(kept(tuple(x.shape), 0.25, 11)), x / 0.75, 0.0) + residual
    return F.layer_norm(s, s.shape[-1:], w, b, 1e-5) if centred else F.rms_norm(s, s.shape[-1:], w, 1e-6) + b, s


def decayed(q: Any, k: Any, v: Any, log_decay: Any) -> Any:
    apart = torch.arange(q.shape[2])[:, None] - torch.arange(q.shape[2])
    weights = (log_decay[:, None, None] * apart.clamp(0)).exp() * (apart >= 0)
    return (q @ k.mT / 8 * weights) @ v


def gated(q: Any, k: Any, v: Any, log_decay: Any) -> Any:
    """By the recurrence: every row lets the state decay by a factor of its own."""
    state, rows = 0, []
    for i in range(q.shape[2]):
        state = state * log_decay[:, :, i, None, None].exp() + k[:, :, i, :, None] * v[:, :, i, None, :]
        rows.append((q[:, :, i, None, :] @ state)[:, :, 0] / 8)
    return torch.stack(rows, 2)


def ssd(x: Any, dt: Any, rate: Any, keys: Any, queries: Any) -> Any:
    """Mamba-2 by its recurrence, with one group."""
    state, rows = 0, []
    for i in range(x.shape[1]):
        added = (dt[:, i, :, None] * x[:, i])[..., None] * keys[:, i, :, None]
        state = state * (dt[:, i] * rate).exp()[..., None, None] + added
        rows.append((state * queries[:, i, :, None]).sum(-1))
    return torch.stack(rows, 1)


def overwritten(q: Any, k: Any, v: Any, beta: Any, log_decay: Any) -> Any:
    """By the recurrence: a key first takes away what the state has under it."""
    state, rows = torch.zeros(*q.shape[:2], v.shape[3], q.shape[3], dtype=q.dtype), []
    for i in range(q.shape[2]):
        decay = log_decay[:, :, i].exp()  # of a head, or of each channel
        state = state * (decay[..., None, :] if decay.dim() == 3 else decay[..., None, None])
        u = beta[:, :, i, None] * (v[:, :, i] - (state @ k[:, :, i, :, None])[..., 0])
        state = state + u[..., None] * k[:, :, i, None, :]
        rows.append((state @ q[:, :, i, :, None])[..., 0] / 8)
    return torch.stack(rows, 2)


def packed(q: Any, k: Any, v: Any, slopes: Any = None) -> Any:
    """Attention of the sequences that BOUNDS separates, causal or with slopes."""
    found = []
    for first, end in itertools.pairwise(BOUNDS.tolist()):
        found.append(
            attend(*(x[first:end].transpose(0, 1)[None] for x in (q, k, v)), causal=slopes is None, slopes=slopes)[0][
                0
            ].transpose(0, 1)
        )
    return torch.cat(found)


def convolved(x: Any, w: Any, b: Any) -> Any:
    return F.silu(F.conv1d(F.pad(x.mT, (3, 0)), w[:, None], b, groups=len(w)).mT)


def taylor(q: Any, k: Any, v: Any) -> Any:
    s = q @ k.mT / 4
    return (1 + s + s * s / 2).tril() @ v


def biased(x: Any, row: Any, col: Any, bias: Any, scale: Any) -> Any:
    return pk.tanh(x + pk.warpgroup.load_row(bias, pk.at(0, col), length=x.cols)) * scale[0, 0]


def heads(n: int, m: int) -> list[Any]:
    return [tensor(1, 4, n, 64, dtype=HALF), tensor(1, 2, m, 64, dtype=HALF), tensor(1, 2, m, 64, dtype=HALF) * 2]


def rows(*shape: int, also: int = 2, dtype: Any = torch.float32) -> list[Any]:
    """Rows, and a weight and a bias for them."""
    return [tensor(*shape, dtype=dtype), *[tensor(shape[-1]) for _ in range(also)]]


BOUNDS = torch.tensor([0, 5, 5, 37], dtype=torch.int32)
TARGETS = torch.tensor([3, -100, 36, 0, 11])
TABLES = tensor(9, 6), tensor(9, 6)
SMOOTH = {"reduction": "none", "label_smoothing": 0.1}

# By operator and what is awkward.
CASES = {
    "addmm: odd": Case(
        lambda *x: ADDMM(x),
        lambda a, b, total: total + a @ b,
        [tensor(5, 37, dtype=HALF), tensor(37, 3, dtype=HALF), tensor(5, 3)],
    ),
    "attention: odd": Case(pk.attention, lambda *x: attend(*x)[0], heads(37, 53)),
    "attention: softcap and sinks": Case(
        lambda q, k, v, s: pk.attention(q, k, v, causal=True, softcap=2.0, sinks=s),
        lambda *x: attend(*x, causal=True, cap=2.0)[0],
        [*heads(37, 53), tensor(4)],
    ),
    "attention: one row": Case(
        lambda *x: pk.attention(*x, causal=True), lambda *x: attend(*x, causal=True)[0], heads(1, 1)
    ),
    "attention_scored: slopes": Case(
        lambda q, k, v, slopes: pk.attention(q, k, v, score=sloped, score_operands=(slopes,)),
        lambda *x: attend(*x[:3], slopes=x[3])[0],
        [*heads(37, 53), tensor(4)],
    ),
    "attention_lse: more queries than keys": Case(causal, lambda *x: attend(*x, causal=True), heads(37, 21)),
    "based: odd": Case(pk.based, taylor, [tensor(1, 2, 37, d, dtype=HALF) for d in (16, 16, 64)]),
    "attention_varlen: an empty sequence among them": Case(
        lambda q, k, v: pk.attention_varlen(q, k, v, BOUNDS, causal=True),
        packed,
        [tensor(37, 4, 64, dtype=HALF), tensor(37, 2, 64, dtype=HALF), tensor(37, 2, 64, dtype=HALF) * 2],
    ),
    "attention_varlen_scored: slopes": Case(
        lambda q, k, v, slopes: pk.attention_varlen(q, k, v, BOUNDS, score=sloped, score_operands=(slopes,)),
        packed,
        [tensor(37, 4, 64, dtype=HALF), tensor(37, 2, 64, dtype=HALF), tensor(37, 2, 64, dtype=HALF), tensor(4)],
    ),
    "causal_conv1d: odd": Case(
        lambda *x: pk.causal_conv1d(*x, activation="silu"), convolved, [tensor(2, 7, 37), tensor(37, 4), tensor(37)]
    ),
    "gated_linear_attention: odd": Case(
        pk.gated_linear_attention,
        gated,
        [*[tensor(1, 2, 37, 64, dtype=HALF) for _ in range(3)], -tensor(1, 2, 37).abs() / 8],
    ),
    "mamba2: odd": Case(
        pk.mamba2,
        ssd,
        [
            tensor(1, 37, 2, 64, dtype=HALF),
            tensor(1, 37, 2).abs() / 8,
            -tensor(2).abs(),
            tensor(1, 37, 1, 64, dtype=HALF),
            tensor(1, 37, 1, 64, dtype=HALF) / 2,
        ],
    ),
    "gated_delta_rule: odd": Case(
        pk.gated_delta_rule,
        overwritten,
        [
            *[F.normalize(tensor(1, 1, 37, 64), dim=-1).to(HALF) for _ in range(2)],
            tensor(1, 2, 37, 64, dtype=HALF),
            tensor(1, 2, 37).sigmoid(),
            -tensor(1, 2, 37).abs() / 8,
        ],
    ),
    "kimi_delta_attention: odd": Case(
        pk.kimi_delta_attention,
        overwritten,
        [
            *[F.normalize(tensor(1, 1, 37, 64), dim=-1).to(HALF) for _ in range(2)],
            tensor(1, 2, 37, 64, dtype=HALF),
            tensor(1, 2, 37).sigmoid(),
            -tensor(1, 2, 37, 64).abs() / 8,
        ],
    ),
    "cross_entropy: mean": Case(
        lambda x: pk.cross_entropy(x, TARGETS), lambda x: F.cross_entropy(x, TARGETS), [tensor(5, 37)]
    ),
    "cross_entropy: smooth": Case(
        lambda x: pk.cross_entropy(x, TARGETS.int(), softcap=3.0, **SMOOTH),
        lambda x: F.cross_entropy(3 * (x / 3).tanh(), TARGETS, **SMOOTH),
        [tensor(5, 37, dtype=HALF)],
    ),
    "cross_entropy_lse: sum": Case(
        lambda x: pk.cross_entropy(x, TARGETS, reduction="sum", z_loss=0.5, return_lse=True),
        lambda x: (
            F.cross_entropy(x, TARGETS, reduction="sum") + 0.5 * x.logsumexp(-1)[TARGETS >= 0].square().sum(),
            x.logsumexp(-1),
        ),
        [tensor(5, 37)],
    ),
    "geglu: two dtypes": Case(pk.geglu, lambda x, y: F.gelu(x) * y, [tensor(3, 5, 37), tensor(3, 5, 37, dtype=HALF)]),
    "geglu: one column": Case(
        lambda x, y: pk.geglu(x, y, approximate="tanh"),
        lambda x, y: F.gelu(x, approximate="tanh") * y,
        [tensor(5, 1), tensor(5, 1)],
    ),
    "linear_attention: with decay": Case(
        lambda q, k, v, g: pk.linear_attention(q, k, v, log_decay=g),
        decayed,
        [*[tensor(1, 2, 37, 64, dtype=HALF) for _ in range(3)], -torch.tensor([0.1, 0.5])],
    ),
    "layernorm: odd": Case(pk.layernorm, lambda x, w, b: F.layer_norm(x, (37,), w, b), rows(5, 37)),
    "layernorm_s: seed in memory": Case(
        lambda x, w, b, r: pk.layernorm(x, w, b, residual=r, p=0.25, seed=torch.tensor(11)),
        lambda *x: normed(*x, centred=True),
        [*rows(5, 37), tensor(5, 37)],
    ),
    "linear_cross_entropy_gradients: mean": Case(
        lambda x, w: pk.linear_cross_entropy(x, w, TARGETS),
        lambda x, w: F.cross_entropy(x @ w.T, TARGETS),
        [tensor(5, 24, dtype=HALF), tensor(37, 24, dtype=HALF)],
    ),
    "linear_cross_entropy_kept: each row": Case(
        lambda x, w: pk.linear_cross_entropy(x, w, TARGETS, reduction="none"),
        lambda x, w: F.cross_entropy(x @ w.T, TARGETS, reduction="none"),
        [tensor(5, 24, dtype=HALF), tensor(37, 24, dtype=HALF)],
    ),
    "linear_cross_entropy_lse: smooth, with a bias": Case(
        lambda x, w, b: pk.linear_cross_entropy(x, w, TARGETS.int(), b, softcap=3.0, return_lse=True, **SMOOTH),
        lambda x, w, b: (
            F.cross_entropy(z := 3 * ((x @ w.T + b) / 3).tanh(), TARGETS, **SMOOTH),
            z.logsumexp(-1),
        ),
        [tensor(5, 23, dtype=torch.float16), tensor(37, 23, dtype=torch.float16), tensor(37)],
    ),
    "linear: a gate with a bias and a residual": Case(
        lambda x, w, b, r: pk.linear(x, w, b, "swiglu", r),
        lambda x, w, b, r: F.silu((z := x @ w.T + b)[..., :9]) * z[..., 9:] + r,
        [tensor(2, 3, 21, dtype=HALF), tensor(18, 21, dtype=HALF), tensor(18), tensor(2, 3, 9)],
    ),
    "linear: one row": Case(pk.linear, lambda x, w: x @ w.T, [tensor(1, 8, dtype=HALF), tensor(5, 8, dtype=HALF)]),
    "matmul: odd": Case(pk.matmul, lambda a, b: a @ b, [tensor(5, 37, dtype=HALF), tensor(37, 3, dtype=HALF)]),
    "matmul_epilogue: with operands": Case(
        lambda a, b, bias, scale: pk.matmul(a, b, epilogue=biased, operands=(bias, scale)),
        lambda a, b, bias, scale: (a @ b + bias).tanh() * scale,
        [tensor(37, 9, dtype=HALF), tensor(9, 21, dtype=HALF), tensor(21), tensor(1)],
    ),
    "rmsnorm: bf16": Case(pk.rmsnorm, lambda x, w: F.rms_norm(x, (40,), w, 1e-6), rows(2, 3, 40, also=1, dtype=HALF)),
    "rmsnorm_s: one row": Case(
        lambda x, w, b, r: pk.rmsnorm(x, w, b, residual=r, p=0.25, seed=11),
        lambda *x: normed(*x, centred=False),
        [*rows(1, 37), tensor(1, 37)],
    ),
    "rotary: part of the features": Case(
        lambda x: pk.rotary(x, *TABLES), lambda x: turn(x, *TABLES), [tensor(2, 3, 7, 17)]
    ),
    "rotary: interleaved": Case(
        lambda x: pk.rotary(x, *TABLES, interleaved=True),
        lambda x: turn(x, *TABLES, interleaved=True),
        [tensor(1, 3, 1, 16, dtype=HALF)],
    ),
    "softmax: odd": Case(pk.softmax, lambda x: torch.softmax(x, -1), [tensor(3, 5, 37)]),
    "swiglu: odd": Case(pk.swiglu, lambda x, y: F.silu(x) * y, [tensor(5, 37), tensor(5, 37)]),
}
every = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
FIRST = {name.partition(":")[0]: case for name, case in reversed(CASES.items())}
first = pytest.mark.parametrize("case", FIRST.values(), ids=FIRST)  # of each operator


def flat(result: Any) -> tuple[Any, ...]:
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def leaves(operands: list[Any], dtype: Any = None) -> list[Any]:
    return [x.to(dtype or x.dtype, copy=True).requires_grad_() for x in operands]


# Functions that refuse a gradient (`test_declarations.py`), and why.
REFUSING = {
    "attention_cached": "decoding",
    "gated_delta_rule_step": "decoding",
    "kimi_delta_attention_step": "decoding",
}


def test_every_function_has_a_gradient_and_a_row_here() -> None:
    tried = {name.partition(":")[0] for name in CASES}
    for f in ALL:
        operators = {f.name, f"{f.name}_{f.also}"}
        without = f.written or f.name.endswith("_backward") or f.name in REFUSING
        assert f.backward or without, f"{f.name} has no gradient, and is none"
        assert not f.backward or operators & tried, f"{f.name} has a gradient that is compared with nothing"
    for name in {*functions.PUBLIC} - {"gradients"}:
        declared = any(f.name == name or f.name.startswith(f"{name}_") for f in ALL)
        assert declared or name.endswith("_step"), f"pk.{name} is neither declared nor a step of decoding"


@every
def test_gradients_beside_float64(case: Case) -> None:
    given, exact = leaves(case.operands), leaves(case.operands, torch.float64)
    results, formula = flat(case.call(*given)), flat(case.formula(*exact))
    assert [x.shape for x in results] == [x.shape for x in formula]
    up = [tensor(*x.shape, dtype=x.dtype) for x in results]
    found = torch.autograd.grad(results, given, up)
    wanted = torch.autograd.grad(formula, exact, [x.double() for x in up])
    bound = 4 * max(torch.finfo(x.dtype).eps for x in given)
    for x, got, right in zip(given, found, wanted, strict=True):
        assert got.dtype == x.dtype and got.shape == x.shape
        assert (got.double() - right).norm() <= bound * right.norm() + 1e-5


@pytest.mark.thin(6)  # the same code for all functions
@every
def test_the_layout_of_incoming_gradients_does_not_matter(case: Case) -> None:
    """One row for all, columns, a part of something larger: copied or read in place, never misread."""
    given = leaves(case.operands)
    results = flat(case.call(*given))
    up = [tensor(*x.shape[-1:], dtype=x.dtype).expand(x.shape) for x in results]
    wanted, *others = (
        torch.autograd.grad(results, given, [view(x) for x in up], retain_graph=True)
        for view in (
            lambda x: x.contiguous(),
            lambda x: x,
            lambda x: x.mT.contiguous().mT if x.dim() > 1 else torch.stack((x, x), -1)[..., 0],
            lambda x: F.pad(x, (1, 2))[..., 1:-2] if x.dim() else x,
        )
    )
    for found in others:
        assert all(torch.equal(x, y) for x, y in zip(found, wanted, strict=True))


@pytest.mark.thin(3)  # the same code for all functions
@first
def test_a_second_derivative_is_refused(case: Case) -> None:
    """By the derivative itself: to record it is no error, to differentiate it is."""
    given = leaves(case.operands)
    total = sum(x.double().square().sum() for x in flat(case.call(*given)))
    for gradient in torch.autograd.grad(total, given, create_graph=True):
        with pytest.raises(NotImplementedError, match=r"pykittens.\w+_backward is a derivative, and cannot be diff"):
            gradient.sum().backward(retain_graph=True)


@pytest.mark.thin(6)  # the same code for all functions
@first
def test_nothing_that_a_call_made_outlives_it(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results, saved tensors and scratch memory go with their last user, while what is done is written down too: what a
    circle of Python's objects keeps is lost until somebody looks, and refused by graphs that torch captures."""
    monkeypatch.setattr(plans, "recorded", lambda recording, device: recording)
    made: list[tuple[str, Any]] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            made.extend((func.name(), weakref.ref(x)) for x in flat(result) if isinstance(x, torch.Tensor))
            return result

    def step() -> None:
        given = leaves(case.operands)
        results = flat(case.call(*given))
        torch.autograd.grad(sum(x.float().sum() for x in results), given)

    with Watch():  # at its first operator torch keeps a traceback
        torch.ones(1).add(1)
    gc.disable()
    try:
        with Watch():
            step()
        assert len(made) > 3 and not [name for name, x in made if x() is not None]
    finally:
        gc.enable()


@pytest.mark.thin(3)  # the same code for all functions
@first
def test_numpy_has_the_same(case: Case) -> None:
    """The operands by any names, in NumPy's own arrays and dtypes."""
    names = "abcde"[: len(case.operands)]
    call = eval(f"lambda {', '.join(names)}: call({', '.join(names)})", {"call": case.call})
    given = leaves(case.operands)
    results = flat(case.call(*given))
    up = [tensor(*x.shape, dtype=x.dtype) for x in results]
    wanted = torch.autograd.grad(results, given, up)
    found = pk.gradients(call, *map(as_numpy, case.operands), grad=tuple(map(as_numpy, up)))
    assert found._fields == tuple(names)
    assert all(type(x) is np.ndarray and np.array_equal(x, as_numpy(y)) for x, y in zip(found, wanted, strict=True))


def test_numpy_by_name() -> None:
    x, w, r = (tensor(*shape).numpy() for shape in ((5, 37), (37,), (5, 37)))
    g = pk.gradients(pk.rmsnorm, x, w, residual=r, grad=(x, None))
    assert g._fields == ("x", "weight", "residual") and np.array_equal(g.x, g.residual)
    assert pk.gradients(pk.cross_entropy, x, TARGETS.numpy()).x.shape == x.shape  # a loss needs no grad
    cos, sin = (t.numpy() for t in TABLES)
    (dx,) = pk.gradients(pk.rotary, x[None, ::-1, :12], cos, sin, grad=x[None, :, :12], of=["x"])
    assert np.array_equal(dx, pk.rotary(np.ascontiguousarray(x[None, :, :12]), cos, -sin))
    for said, change in (
        ("rotary has no gradient for cos and sin", {}),
        ("gradients of y", {"of": ["y"]}),
        ("results of shape", {"grad": None}),
        ("grad of shape", {"grad": x}),
        ("grad is 1.0", {"grad": 1.0}),
    ):
        with pytest.raises(ArgumentError, match=said):
            pk.gradients(pk.rotary, x[None, :, :12], cos, sin, **{"grad": x[None, :, :12], **change})
    for nothing in (lambda x: None, lambda x: torch.ones(3)):
        with pytest.raises(ArgumentError, match="gradients of a function that returns (NoneType|Tensor), made of none"):
            pk.gradients(nothing, x, grad=x)
    with torch.inference_mode():
        assert pk.gradients(pk.softmax, x, grad=x, of="x")._fields == ("x",)


def by_documents(s: Any, batch: Any, head: Any, row: Any, col: Any, by: Any, documents: Any) -> Any:
    return pk.where(documents[batch, row] == documents[batch, col], s * by[head], s)


def test_numpy_in_tuples() -> None:
    """Operands of functions, two weights, any number of arguments: a tuple of gradients, None for what has none."""
    x, q = as_numpy(tensor(8, 64, dtype=HALF)), as_numpy(tensor(1, 2, 9, 64, dtype=HALF))
    slopes, documents = np.array([0.5, -1], np.float32), np.array([[0] * 4 + [1] * 5], np.int32)
    asked: dict[str, Any] = {"score": by_documents, "score_operands": (slopes, documents)}
    by, none = pk.gradients(pk.attention, q, q, q, grad=q, **asked).score_operands
    asked["score_operands"] = tuple(torch.from_numpy(y) for y in (slopes.copy(), documents))
    given = [torch.tensor(q.astype(np.float32)).to(HALF) for _ in range(3)]
    wanted = pk.gradients(pk.attention, *given, grad=given[0], **asked).score_operands[0]
    assert none is None and np.array_equal(by, wanted.numpy()) and by.any()
    found = pk.gradients(pk.linear, x, (x, x), activation="swiglu", grad=as_numpy(tensor(8, 8, dtype=HALF)))
    assert found._fields == ("x", "weight") and [y.shape for y in found.weight] == [x.shape] * 2
    (many,) = pk.gradients(lambda *gates: pk.swiglu(*gates), x, x, grad=x)
    assert [y.dtype for y in many] == [x.dtype] * 2


def test_other_frameworks_have_the_same() -> None:
    """JAX's arrays, which torch sees in place; arrays of two frameworks are refused."""
    x, w = tensor(5, 37), tensor(37)
    with pytest.raises(ArgumentError, match="gradients of arrays x of numpy, weight of torch"):
        pk.gradients(pk.rmsnorm, x.numpy(), w, grad=x.numpy())
    jax = pytest.importorskip("jax")
    given = [jax.numpy.asarray(t.numpy()) for t in (x, w)]
    found, wanted = pk.gradients(pk.rmsnorm, *given, grad=given[0]), pk.gradients(pk.rmsnorm, x, w, grad=x)
    assert all(isinstance(g, jax.Array) for g in found)
    assert all(np.array_equal(g, h.numpy()) for g, h in zip(found, wanted, strict=True))
    loss = pk.gradients(pk.cross_entropy, given[0], jax.numpy.asarray(TARGETS.numpy()))
    assert isinstance(loss.x, jax.Array) and loss.x.shape == x.shape


def test_attention_has_no_dropout() -> None:
    with pytest.raises(ArgumentError, match="attention with dropout_p=0.1: the kernels drop no scores"):
        pk.attention(*heads(5, 5), dropout_p=0.1)


def test_tables_have_no_gradient() -> None:
    """Where nobody computes the gradient that is asked for, the backward pass says so."""
    x, (cos, sin) = tensor(1, 7, 12), TABLES
    with pytest.raises(NotImplementedError, match=r"pykittens.rotary has no gradient for sin: pass .*detach"):
        pk.rotary(x.requires_grad_(), cos, sin.clone().requires_grad_()).sum().backward()


def test_a_seed_is_one_number() -> None:
    for wrong in (torch.tensor([1, 2]), torch.tensor(1, dtype=torch.int32), torch.tensor(1.0)):
        with pytest.raises(ArgumentError, match=r"rmsnorm: the seed is an array of .*\n(.*\n)*.*one int64"):
            pk.rmsnorm(tensor(5, 40), p=0.5, seed=wrong)


def test_a_seed_in_memory_draws_anew() -> None:
    """In compiled code, too; the backward pass drops what the forward pass dropped."""
    x, seed = tensor(5, 40).requires_grad_(), torch.tensor([1])
    compiled = torch.compile(lambda x, s: pk.rmsnorm(x, p=0.5, seed=s)[1], backend="aot_eager", fullgraph=True)
    found = []
    for number in (1, 2, 2**62 + 1):
        seed.fill_(number)
        found.append(s := compiled(x, seed))
        (gradient,) = torch.autograd.grad(s.sum(), x)
        assert torch.equal(s, pk.rmsnorm(x, p=0.5, seed=number)[1]) and torch.equal(gradient != 0, s != 0)
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_a_setting_that_wants_a_gradient_is_refused() -> None:
    scale = torch.tensor(0.1, requires_grad=True)
    with pytest.raises(ArgumentError, match="attention has no gradient of scale"):
        pk.attention(*heads(5, 5), scale=scale)
    with pytest.raises(ArgumentError, match="rmsnorm has no gradient of eps"):
        pk.rmsnorm(tensor(3, 8), tensor(8), eps=scale)
    pk.attention(*heads(5, 5), scale=scale.detach())


def test_a_constant_that_wants_a_gradient_is_refused() -> None:
    """What a function captures is a constant of its kernel, also where it wants a gradient only later."""
    factor = torch.tensor(0.3)
    x, weight, rows = tensor(4, 8, dtype=HALF).requires_grad_(), tensor(5, 8, dtype=HALF), heads(5, 5)

    def scaled(y: Any, *_: Any) -> Any:
        return y * factor

    calls = (
        lambda: pk.linear(x, weight, None, scaled),
        lambda: pk.matmul(x, weight.T, epilogue=scaled),
        lambda: pk.attention(*rows, score=scaled),
    )
    for call in calls:
        call()
    factor.requires_grad_()
    for call in calls:
        with pytest.raises(TraceError, match="captures a tensor that requires its gradient"):
            call()
        with torch.no_grad():
            call()


def test_transforms_of_torch() -> None:
    """torch.func records gradients by its own rules: each row's alone, whole Jacobians, and no second derivative."""
    x = tensor(3, 40)

    def loss(row: Any) -> Any:
        return pk.softmax(row[None]).square().sum()

    def plain(row: Any) -> Any:
        return torch.softmax(row, -1).square().sum()

    wanted = torch.stack([torch.func.grad(plain)(row) for row in x.double()])
    assert torch.allclose(torch.vmap(torch.func.grad(loss))(x).double(), wanted, atol=1e-6)
    found, wanted = (torch.func.jacrev(f)(x[:1]) for f in (pk.softmax, lambda x: torch.softmax(x, -1)))
    assert torch.allclose(found, wanted, atol=1e-6)
    with pytest.raises(NotImplementedError, match="cannot be differentiated again"):
        torch.func.grad(lambda row: torch.func.grad(loss)(row).sum())(x[0])
    for derivative in (
        lambda f, x: torch.func.jvp(f, (x,), (x,)),
        lambda f, x: torch.func.jvp(torch.vmap(f), (x,), (x,)),
        lambda f, x: torch.func.jacfwd(f)(x),
        lambda f, x: torch.func.hessian(lambda x: f(x).sum())(x),
    ):
        with pytest.raises(ArgumentError, match="softmax has no derivative in forward mode"):
            derivative(pk.softmax, x)


def test_gradients_of_what_vmap_does() -> None:
    """The other way round: torch.vmap wraps what torch.func.grad watches."""
    x, q = tensor(3, 40), tensor(2, 1, 2, 5, 64, dtype=HALF)
    for function, plain, given in (
        (pk.softmax, lambda x: torch.softmax(x, -1), x),
        (lambda q: pk.attention(q, q, q), lambda q: torch.nn.functional.scaled_dot_product_attention(q, q, q), q),
    ):
        found, wanted = (
            torch.func.grad(lambda x, f=f: torch.vmap(f)(x).float().sin().sum())(given) for f in (function, plain)
        )
        assert torch.allclose(found.float(), wanted.float(), atol=1e-6 if given is x else 5e-2)


def test_vmap_of_none_and_of_what_writes() -> None:
    """A batch of nothing has the results of nothing; what all members share cannot be written by each."""
    x, angles = tensor(3, 1, 1, 4, 8), (tensor(4, 4), tensor(4, 4))
    y, s = torch.vmap(lambda x: pk.rmsnorm(x, residual=x))(x[:0])
    assert y.shape == s.shape == x[:0].shape
    out = torch.empty_like(x)
    torch.vmap(lambda x, out: pk.rotary(x, *angles, out=out))(x, out)
    assert torch.equal(out, pk.rotary(x, *angles))
    with pytest.raises(ArgumentError, match="rotary_out under torch.vmap writes out"):
        torch.vmap(lambda x: pk.rotary(x, *angles, out=out[0]))(x)


FROZEN: dict[
    str, tuple[Any, list[Any], dict[tuple[int, ...], int]]
] = {  # launches of a backward pass, by what is frozen
    "layernorm": (pk.layernorm, [tensor(4, 64), tensor(64), tensor(64)], {(): 2, (1,): 2, (0,): 2, (1, 2): 1}),
    "rmsnorm": (
        lambda x, w, r: pk.rmsnorm(x, w, residual=r)[0],
        [tensor(4, 64), tensor(64), tensor(4, 64)],
        {(): 2, (1,): 1, (0, 2): 2, (0,): 2},
    ),
    "linear_attention": (
        lambda q, k, v, g: pk.linear_attention(q, k, v, log_decay=g),
        [*(tensor(1, 2, 9, 64, dtype=HALF) for _ in range(3)), -torch.rand(2)],
        {(): 5, (3,): 3, (1, 2, 3): 1, (0, 3): 2, (0, 1, 2): 4},
    ),
    "matmul": (pk.matmul, [tensor(64, 64, dtype=HALF), tensor(64, 64, dtype=HALF)], {(): 2, (0,): 1, (1,): 1}),
    "linear_cross_entropy": (
        lambda x, w: pk.linear_cross_entropy(x, w, torch.arange(4)),
        [tensor(4, 64, dtype=HALF), tensor(40, 64, dtype=HALF)],
        {(): 3, (0,): 2, (1,): 1},
    ),
}


@pytest.mark.parametrize("name", FROZEN)
def test_what_is_frozen_costs_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other gradients have the same bits, and no kernel runs for nothing."""
    function, operands, launches = FROZEN[name]
    counted: list[str] = []
    run = Kernel._run
    monkeypatch.setattr(Kernel, "_run", lambda self, *rest: (counted.append(self.name), run(self, *rest))[1])
    whole: list[Any] = []
    for frozen, count in launches.items():
        given = [x.detach().requires_grad_(i not in frozen) for i, x in enumerate(operands)]
        out = function(*given)
        counted.clear()
        out.backward(torch.ones_like(out))
        assert len(counted) == count, (frozen, counted)
        found = [x.grad for x in given]
        whole = whole or found
        assert all((x is None) == (i in frozen) for i, x in enumerate(found))
        assert all(x is None or torch.equal(x, y) for x, y in zip(found, whole, strict=True))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_several_gradients_at_once_overwrite_nothing(reduction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the forward pass left in the memory of a gradient is read for each of them."""
    monkeypatch.setattr(vocabulary_slices, "KEPT", 0)
    x, weight = tensor(4, 64, dtype=HALF).requires_grad_(), tensor(600, 64, dtype=HALF).requires_grad_()
    loss = pk.linear_cross_entropy(x, weight, torch.arange(4) * 150, reduction=reduction).sum()
    each = [torch.autograd.grad(loss * i, (x, weight), retain_graph=True) for i in (1, 2)]
    found = torch.autograd.grad(loss, (x, weight), torch.tensor([1.0, 2.0]), is_grads_batched=True)
    for both, one, two in zip(found, *each, strict=True):
        assert torch.equal(both[0], one) and torch.equal(both[1], two)
