"""Every public function that is declared, by what torch and NumPy expect of any function: a new one is tried by its row
here."""

import inspect
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.autograd import forward_ad  # noqa: E402

import pykittens as pk  # noqa: E402
import pykittens.functions as functions  # noqa: E402
from pykittens.errors import ArgumentError  # noqa: E402
from pykittens.functions import scorings  # noqa: E402
from pykittens.functions.attention import ATTENTION_SCORED  # noqa: E402
from pykittens.functions.attention_varlen import ATTENTION_VARLEN_SCORED  # noqa: E402
from pykittens.functions.convolution import CAUSAL_CONV1D_BACKWARD  # noqa: E402
from pykittens.functions.declaration import ALL  # noqa: E402
from pykittens.functions.delta_rule import GATED_DELTA_RULE_BACKWARD, KIMI_DELTA_ATTENTION_BACKWARD  # noqa: E402
from pykittens.functions.epilogues import EPILOGUE_BACKWARD, number_of  # noqa: E402
from pykittens.functions.gated import GATED_LINEAR_ATTENTION_BACKWARD  # noqa: E402
from pykittens.functions.gates import GATE_BACKWARD  # noqa: E402
from pykittens.functions.linear import ACTIVATION_BACKWARD, LINEAR  # noqa: E402
from pykittens.functions.loss import (  # noqa: E402
    CROSS_ENTROPY,
    CROSS_ENTROPY_BACKWARD,
    CROSS_ENTROPY_BACKWARD_OUT,
    CROSS_ENTROPY_LSE,
    LINEAR_CROSS_ENTROPY_BACKWARD,
    LINEAR_CROSS_ENTROPY_BACKWARD_HELD,
    LINEAR_CROSS_ENTROPY_GRADIENTS,
    LINEAR_CROSS_ENTROPY_GRADIENTS_BACKWARD,
    LINEAR_CROSS_ENTROPY_GRADIENTS_BACKWARD_OVER,
    LINEAR_CROSS_ENTROPY_KEPT,
)
from pykittens.functions.product import ADDMM, MATMUL_EPILOGUE  # noqa: E402
from pykittens.functions.rotary import ROTARY_BACKWARD  # noqa: E402
from pykittens.functions.sequences import BASED_BACKWARD  # noqa: E402
from pykittens.functions.softmax import SOFTMAX_BACKWARD  # noqa: E402

functions.load()
HALF = torch.bfloat16


def tensor(*shape: int, dtype: Any = torch.float32) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def rows() -> list[Any]:
    return [tensor(6, 64)]


def heads(n: int = 40, d: int = 64, e: int = 64) -> list[Any]:
    return [tensor(1, 2, n, width, dtype=HALF) for width in (d, d, e)]


def gated() -> list[Any]:
    return [*heads(), -tensor(1, 2, 40).abs()]


def delta() -> list[Any]:
    return [*gated()[:3], tensor(1, 2, 40).sigmoid(), gated()[3]]


def mamba() -> list[Any]:
    wide, group = (lambda: tensor(1, 40, 2, 64, dtype=HALF)), (lambda: tensor(1, 40, 1, 64, dtype=HALF))
    return [wide(), tensor(1, 40, 2).abs() / 8, -tensor(2).abs(), group(), group()]


def kimi() -> list[Any]:
    return [*delta()[:4], -tensor(1, 2, 40, 64).abs()]


def rows3() -> list[Any]:
    return [tensor(2, 12, 40), tensor(40, 4), tensor(40)]


def packed() -> list[Any]:
    offsets = torch.tensor([0, 10, 10, 40], dtype=torch.int32)
    return [*[tensor(40, 2, 64, dtype=HALF) for _ in range(3)], offsets, offsets.clone()]


def cached() -> list[Any]:
    cache = [tensor(2, 1, 40, 64, dtype=HALF) for _ in range(2)]
    return [tensor(2, 2, 1, 64, dtype=HALF), *cache, torch.tensor([0, 37], dtype=torch.int32)]


def appended() -> list[Any]:
    return [tensor(2, 1, 1, 64, dtype=HALF), tensor(2, 1, 1, 64, dtype=HALF)]


def append(k: Any, v: Any, q: Any = None) -> Any:
    caches = [k.new_ones(2, 1, 24, 64) for _ in range(2)]
    tables = [k.new_ones(24, 32, dtype=torch.float32) for _ in range(2)] if q is not None else [None, None]
    lengths = torch.tensor([3, 24], dtype=torch.int32).to(k.device)
    turned = pk.cache_append(k, v, *caches, lengths, q=q, cos=tables[0], sin=tables[1])
    return caches[0] if q is None else turned


def angles() -> list[Any]:
    return [tensor(1, 2, 8, 64), tensor(9, 32), tensor(9, 32)]


def logits() -> list[Any]:
    return [tensor(6, 64), torch.tensor([0, 31, 9, 5, 6, 7])]


def head() -> list[Any]:
    x, targets = tensor(6, 64, dtype=HALF), torch.tensor([0, 31, 9, 5, 6, 7])
    return [x, tensor(72, 64, dtype=HALF) / 8, targets]


def state_of(rows: Any) -> list[Any]:
    """What is known of rows of logits, a line each, and a number: float32, whatever autocast makes of operands."""
    if not isinstance(rows, torch.Tensor):
        return [np.ascontiguousarray(rows.T), np.asarray(rows.sum())]
    return [rows.float().T.contiguous(), rows.float().sum()]


def zeros_of(x: Any, columns: int) -> Any:
    """As many rows as x."""
    shape = (x.shape[0], columns)
    return x.new_zeros(shape) if isinstance(x, torch.Tensor) else np.zeros(shape, x.dtype)


def scaled_into(x: Any, up: Any, out: Any) -> Any:
    CROSS_ENTROPY_BACKWARD_OUT((x, up, out))
    return out


def doubled(x: Any, row: Any, col: Any) -> Any:
    return x * 2.0


def with_bias(x: Any, row: Any, col: Any, bias: Any) -> Any:
    return pk.tanh(x + pk.warpgroup.load_row(bias, pk.at(0, col), length=x.cols, dtype=pk.f32))


def scaled(s: Any, batch: Any, head: Any, row: Any, col: Any, by: Any) -> Any:
    return s * by[head]


DOUBLED, BIAS, SCORING = number_of(doubled), number_of(with_bias), scorings.number_of(scaled, None)


def backward(name: str) -> Any:
    return next(f for f in ALL if f.name == f"{name}_backward")


# The public call on the operands of the declaration, and such operands.
CASES: dict[str, tuple[Callable[..., Any], Callable[[], list[Any]]]] = {
    "addmm": (
        lambda *x: ADDMM(x),
        lambda: [tensor(24, 32, dtype=HALF), tensor(32, 40, dtype=HALF), tensor(24, 40)],
    ),
    "addmm_": (
        lambda a, b: (total := a.new_ones(24, 40, dtype=torch.float32), pk.addmm_(total, a, b))[0],
        lambda: [tensor(24, 32, dtype=HALF), tensor(32, 40, dtype=HALF)],
    ),
    "attention": (pk.attention, heads),
    "attention_backward": (
        lambda *x: pk.attention_backward(*x, causal=True),
        lambda: [*heads()[:1], *heads(), tensor(1, 2, 40, 64, dtype=HALF), tensor(1, 2, 40)],
    ),
    "attention_cached": (pk.attention_cached, cached),
    "attention_cached_lse": (lambda *x: pk.attention_cached(*x, return_lse=True), cached),
    "attention_lse": (lambda *x: pk.attention(*x, causal=True, return_lse=True), heads),
    "attention_scored": (lambda *x: pk.attention(*x, score=lambda s, batch, head, row, col: s * 2.0), heads),
    "attention_scored_lse": (
        lambda *x: ATTENTION_SCORED(
            (*x[:3], None, *x[3:], None, None, None), (False, None, False, None, None, None, SCORING, 1), True
        ),
        lambda: [*heads(), tensor(2)],
    ),
    "attention_scored_backward": (
        lambda do, q, k, v, o, lse, by: backward("attention_scored")(
            (do, q, k, v, o, lse, None, None, by, None, None, None),
            (False, None, False, None, None, None, SCORING, 1, 1),
        )[:5],
        lambda: [*heads()[:1], *heads(), tensor(1, 2, 40, 64, dtype=HALF), tensor(1, 2, 40), tensor(2)],
    ),
    "attention_varlen": (pk.attention_varlen, packed),
    "attention_varlen_lse": (lambda *x: pk.attention_varlen(*x, causal=True, return_lse=True), packed),
    "attention_varlen_backward": (
        lambda do, q, k, v, o, lse, *cu: backward("attention_varlen")(
            (do, q, k, v, o, lse, *cu, None, None), (True, None, False, None, None, None)
        )[:3],
        lambda: [packed()[0], *packed()[:3], tensor(40, 2, 64, dtype=HALF), tensor(2, 40), *packed()[3:]],
    ),
    "attention_varlen_scored": (
        lambda *x: pk.attention_varlen(*x, score=lambda s, batch, head, row, col: s * 2.0),
        packed,
    ),
    "attention_varlen_scored_lse": (
        lambda *x: ATTENTION_VARLEN_SCORED(
            (*x[:5], None, *x[5:], None, None, None), (False, None, False, None, None, None, SCORING, 1), True
        ),
        lambda: [*packed(), tensor(2)],
    ),
    "attention_varlen_scored_backward": (
        lambda do, q, k, v, o, lse, a, b, by: backward("attention_varlen_scored")(
            (do, q, k, v, o, lse, a, b, None, None, by, None, None, None),
            (False, None, False, None, None, None, SCORING, 1, 1),
        )[:5],
        lambda: [packed()[0], *packed()[:3], tensor(40, 2, 64, dtype=HALF), tensor(2, 40), *packed()[3:], tensor(2)],
    ),
    "based": (pk.based, lambda: heads(d=16)),
    "based_after": (lambda *x: pk.based(*x, return_state=True), lambda: heads(d=16)),
    "based_backward": (
        lambda *x: BASED_BACKWARD((*x, None, None)),
        lambda: [heads(d=16)[2].flip(2), *heads(d=16)],
    ),
    "cache_append": (append, appended),
    "cache_append_turned": (append, lambda: [*appended(), tensor(2, 2, 1, 64, dtype=HALF)]),
    "causal_conv1d": (lambda *x: pk.causal_conv1d(*x, activation="silu"), rows3),
    "causal_conv1d_after": (lambda *x: pk.causal_conv1d(*x, return_state=True), rows3),
    "causal_conv1d_backward": (
        lambda *x: CAUSAL_CONV1D_BACKWARD((*x, None, None, None), ("silu",)),
        lambda: [tensor(2, 12, 40, dtype=torch.float64).float(), *rows3()],
    ),
    "cross_entropy": (pk.cross_entropy, logits),
    "cross_entropy_backward": (lambda *x: CROSS_ENTROPY_BACKWARD(x), lambda: [*rows(), tensor(6)]),
    "cross_entropy_backward_out": (
        lambda x, up: scaled_into(x, up, torch.empty_like(x)),
        lambda: [*rows(), tensor(6)],
    ),
    "cross_entropy_dx": (lambda *x: CROSS_ENTROPY(x, ("sum", -100, 0.1, 1e-3, 5.0), True), logits),
    "cross_entropy_in_place": (lambda x, t: pk.cross_entropy(x.clone(), t, in_place=True), logits),
    "cross_entropy_lse": (lambda *x: pk.cross_entropy(*x, reduction="none", return_lse=True), logits),
    "cross_entropy_lse_dx": (lambda *x: CROSS_ENTROPY_LSE(x, ("mean", 9, 0.0, 0.0, 5.0), True), logits),
    "gated_delta_rule": (lambda *x: pk.gated_delta_rule(*x, normalize=True), delta),
    "gated_delta_rule_after": (lambda *x: pk.gated_delta_rule(*x, normalize=True, return_state=True), delta),
    "gated_delta_rule_backward": (
        lambda *x: GATED_DELTA_RULE_BACKWARD((*x, None, None, None), (0.5, True)),
        lambda: [heads()[0].flip(2), *delta()],
    ),
    "gated_delta_rule_step": (
        lambda *x: pk.gated_delta_rule_step(*x[:5], state=x[5]),
        lambda: [*(y[:, :, 0].contiguous() for y in delta()), tensor(1, 2, 64, 64)],
    ),
    "kimi_delta_attention": (lambda *x: pk.kimi_delta_attention(*x, normalize=True), kimi),
    "kimi_delta_attention_after": (lambda *x: pk.kimi_delta_attention(*x, normalize=True, return_state=True), kimi),
    "kimi_delta_attention_backward": (
        lambda *x: KIMI_DELTA_ATTENTION_BACKWARD((*x, None, None, None), (0.5, True)),
        lambda: [heads()[0].flip(2), *kimi()],
    ),
    "kimi_delta_attention_step": (
        lambda *x: pk.kimi_delta_attention_step(*x[:5], state=x[5]),
        lambda: [*(y[:, :, 0].contiguous() for y in kimi()), tensor(1, 2, 64, 64)],
    ),
    "gated_linear_attention": (pk.gated_linear_attention, gated),
    "gated_linear_attention_after": (lambda *x: pk.gated_linear_attention(*x, scale=0.5, return_state=True), gated),
    "gated_linear_attention_backward": (
        lambda *x: GATED_LINEAR_ATTENTION_BACKWARD((*x, None, None, None), (0.5,)),
        lambda: [heads()[0].flip(2), *gated()],
    ),
    "gate_backward": (lambda *x: GATE_BACKWARD(x, ("gelu_tanh",)), lambda: rows() * 3),
    "geglu": (pk.geglu, lambda: rows() * 2),
    "activation_backward": (
        lambda *x: ACTIVATION_BACKWARD(x, ("swiglu", True)),
        lambda: [tensor(24, 40, dtype=HALF), tensor(24, 80, dtype=HALF)],
    ),
    "epilogue_backward": (
        lambda *x: EPILOGUE_BACKWARD((*x, None, None, None), (BIAS, 3, "bf16")),
        lambda: [tensor(24, 40, dtype=HALF), tensor(24, 40, dtype=HALF), tensor(40)],
    ),
    "layernorm": (pk.layernorm, lambda: [*rows(), tensor(64), tensor(64)]),
    "layernorm_backward": (
        lambda *x: backward("layernorm")((*x, None), (1e-5, 0.5, 7, "f32", "f32", True, True)),
        lambda: [*rows() * 3, tensor(64)],
    ),
    "layernorm_s": (lambda x, r: pk.layernorm(x, residual=r, p=0.5, seed=2**64 - 1), lambda: rows() * 2),
    "linear": (pk.linear, lambda: [tensor(3, 5, 32, dtype=HALF), tensor(24, 32, dtype=HALF), tensor(24)]),
    "linear_product": (
        lambda x, w, b: LINEAR((x, w, None, b, None, None), ("swiglu",), True),
        lambda: [tensor(3, 5, 32, dtype=HALF), tensor(48, 32, dtype=HALF), tensor(48)],
    ),
    "linear_attention": (pk.linear_attention, heads),
    "linear_attention_after": (lambda *x: pk.linear_attention(*x, scale=0.5, return_state=True), heads),
    "linear_attention_backward": (
        lambda *x: pk.linear_attention_backward(*x[:4], log_decay=x[4], scale=0.5),
        lambda: [heads()[0].flip(2), *heads(), torch.tensor([-0.5, 0.0])],
    ),
    "linear_cross_entropy": (pk.linear_cross_entropy, head),
    "linear_cross_entropy_kept": (
        lambda x, w, t: LINEAR_CROSS_ENTROPY_KEPT((x, w, t, None), ("mean", -100, 0.1, 0.0, 0.0, False))[:2],
        head,
    ),
    "linear_cross_entropy_gradients": (
        lambda x, w, t: LINEAR_CROSS_ENTROPY_GRADIENTS(
            (x, w, t, None), ("mean", -100, 0.1, 0.0, 0.0, True, True, False)
        )[0],
        head,
    ),
    "linear_cross_entropy_gradients_backward": (
        lambda x, weight, targets, rows: LINEAR_CROSS_ENTROPY_GRADIENTS_BACKWARD(
            (x, weight, targets, *state_of(rows), None, zeros_of(x, 72), None),
            ("sum", 9, 0.1, 1e-3, 0.0, True, False, True),
        ),
        lambda: [*head(), tensor(6, 4)],
    ),
    "linear_cross_entropy_gradients_backward_over": (
        lambda x, weight, targets, rows: LINEAR_CROSS_ENTROPY_GRADIENTS_BACKWARD_OVER(
            (weight.clone(), zeros_of(x, 72), x, weight, targets, *state_of(rows), None),
            ("sum", 9, 0.1, 1e-3, 0.0, False),
        ),
        lambda: [*head(), tensor(6, 4)],
    ),
    "linear_cross_entropy_lse": (lambda *x: pk.linear_cross_entropy(*x, reduction="none", return_lse=True), head),
    "linear_cross_entropy_backward": (
        lambda x, weight, targets, lse, dloss: LINEAR_CROSS_ENTROPY_BACKWARD(
            (x, weight, targets, lse, None, dloss, lse, *[None] * 3), ("none", 9, 0.1, 1e-3, 5.0, True, True, False)
        ),
        lambda: [*head(), tensor(6), tensor(6)],
    ),
    "linear_cross_entropy_backward_held": (
        lambda x, weight, targets, lse: LINEAR_CROSS_ENTROPY_BACKWARD_HELD(
            (torch.zeros_like(weight), x, weight, targets, lse.float(), None, lse.float().sum(), None, None, None),
            ("sum", 9, 0.1, 1e-3, 5.0, True, False),
        )[:1],
        lambda: [*head(), tensor(6)],
    ),
    "mamba2": (pk.mamba2, mamba),
    "mamba2_after": (lambda *x: pk.mamba2(*x, return_state=True), mamba),
    "mamba2_backward": (
        lambda *x: backward("mamba2")((*x, *[None] * 6), (True,)),
        lambda: [mamba()[0].flip(2), *mamba()],
    ),
    "matmul": (pk.matmul, lambda: [tensor(24, 32, dtype=HALF), tensor(32, 40, dtype=HALF)]),
    "matmul_epilogue": (
        lambda a, b: pk.matmul(a, b, epilogue=lambda x, row, col: x * 2.0, dtype=pk.f32),
        lambda: [tensor(24, 32, dtype=HALF), tensor(32, 40, dtype=HALF)],
    ),
    "matmul_epilogue_product": (
        lambda a, b: MATMUL_EPILOGUE((a, b, *[None] * 6), (DOUBLED, "f32"), True),
        lambda: [tensor(24, 32, dtype=HALF), tensor(32, 40, dtype=HALF)],
    ),
    "rmsnorm": (pk.rmsnorm, lambda: [*rows(), tensor(64)]),
    "rmsnorm_backward": (
        lambda s, dy: backward("rmsnorm")((s, dy, None, None, None), (1e-6, 0.0, 0, None, None, True, True)),
        lambda: rows() * 2,
    ),
    "rmsnorm_s": (lambda x, r: pk.rmsnorm(x, residual=r), lambda: rows() * 2),
    "rotary": (pk.rotary, angles),
    "rotary_out": (lambda x, cos, sin: pk.rotary(x, cos, sin, out=torch.empty_like(x)), angles),
    "rotary_backward": (lambda *x: ROTARY_BACKWARD(x, (False,)), angles),
    "softmax": (pk.softmax, rows),
    "softmax_backward": (lambda *x: SOFTMAX_BACKWARD(x), lambda: [torch.softmax(rows()[0], -1), *rows()]),
    "swiglu": (pk.swiglu, lambda: rows() * 2),
}
# Which operands of those that do not all have as many rows are longer, along their first dimension.
LONGER = {
    "linear_cross_entropy_gradients_backward": (0, 2, 3),
    "activation_backward": (0, 1),
    "addmm": (0, 2),
    "epilogue_backward": (0, 1),
    **dict.fromkeys(("attention_cached", "attention_cached_lse"), (0, 1, 2, 3)),
    **dict.fromkeys(("causal_conv1d", "causal_conv1d_after"), (0,)),
    "causal_conv1d_backward": (0, 1),
    **dict.fromkeys(("mamba2", "mamba2_after"), (0, 1, 3, 4)),
    "mamba2_backward": (0, 1, 2, 4, 5),
} | dict.fromkeys(("linear", "linear_product", "matmul", "matmul_epilogue", "matmul_epilogue_product"), (0,))
WRITING = (
    "addmm_",
    "cache_append",
    "cache_append_turned",
    "cross_entropy_backward_out",
    "cross_entropy_in_place",
    "linear_cross_entropy_backward_held",
    "linear_cross_entropy_gradients_backward_over",
    "rotary_out",
)
TRACING = ("matmul_epilogue", "attention_scored", "attention_varlen_scored")  # functions, which compilers do not
ONE = [name for name in CASES if name not in (*TRACING, *WRITING)]  # which compilers take
GRADED = [name for name in CASES if name not in WRITING]
UNTRACED = (
    "linear_cross_entropy_backward_held",
    "linear_cross_entropy_gradients_backward_over",
)  # by eager passes only
PLAINLY = [name for name in ONE if "_backward" not in name]


# What a declaration promises to torch, all functions keep by the same code: each promise is tried with a part of them,
# another one for each.
def without_gradients(names: Iterable[str]) -> list[Any]:
    """Those that users call; the operators of backward passes, which torch's own checks also try (`test_opcheck`) and
    gradients run, with `--whole`."""
    return [pytest.param(name, marks=pytest.mark.whole) if "_backward" in name else name for name in names]


def flat(result: Any) -> list[Any]:
    return [*result] if isinstance(result, (tuple, list)) else [result]


def same(result: Any, expected: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(flat(result), flat(expected), strict=True))


def other(name: str, given: list[Any]) -> list[Any]:
    """Other operands of the same shapes."""
    kept = "varlen" in name or "cached" in name  # offsets and lengths
    return [x if kept and not x.is_floating_point() else x * 2 for x in given]


def operators() -> set[str]:
    return {name for f in ALL for name in ([f.name, f"{f.name}_{f.also}"] if f.also else [f.name])}


def of(name: str) -> Any:
    """The declaration of an operator."""
    return next(f for f in ALL if name == f.name or (f.also and name == f"{f.name}_{f.also}"))


def test_every_operator_is_tried() -> None:
    assert operators() == set(CASES)


def test_public_signatures_have_the_names_of_the_declarations() -> None:
    known = {name for f in ALL for name in (*f.names, *f.setting_names)}
    for name in {*functions.PUBLIC} - {"gradients"}:
        parameters = {*inspect.signature(getattr(pk, name)).parameters}
        assert parameters <= known | {
            "return_lse",
            "return_state",
            "in_place",
            "epilogue",
            "operands",
            "score",
            "score_operands",
            "mask",
            "mask_operands",
            "lengths_q",
            "lengths_k",
            "padding",
            "dtype",
            "dropout_p",
            "window",
        }, name
        assert "Raises" in inspect.getdoc(getattr(pk, name)) or "as `" in inspect.getdoc(getattr(pk, name)), name


@pytest.mark.parametrize("name", sorted({*functions.PUBLIC} - {"gradients"}))
def test_no_operand_at_all(name: str) -> None:
    """Python's None for each is refused by us, whatever torch would say of a call without tensors."""
    parameters = inspect.signature(getattr(pk, name)).parameters.values()
    needed = {p.name: None for p in parameters if p.default is p.empty}
    with pytest.raises(ArgumentError):
        getattr(pk, name)(**needed)


def arguments(name: str) -> tuple[Any, tuple[Any, ...]]:
    """The operator, and what the public function gives it."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: list[tuple[Any, tuple[Any, ...]]] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.namespace == "pykittens":
                seen.append((func, args))
            return func(*args, **(kwargs or {}))

    call, operands = CASES[name]
    with Watch():
        call(*operands())
    assert [func.name() for func, _ in seen] == [f"pykittens::{name}"]
    return seen[0]


@pytest.mark.thin(8)
@pytest.mark.parametrize("name", CASES)
def test_opcheck(name: str) -> None:
    operator, given = arguments(name)
    torch.library.opcheck(operator, given)


@pytest.mark.thin(3)
@pytest.mark.parametrize("name", CASES)
def test_a_gradient_is_never_lost(name: str) -> None:
    """It flows, or it is refused in one sentence: never a result that looks like a constant."""
    call, operands = CASES[name]
    given = [
        x.requires_grad_() if x.is_floating_point() and (name != "rotary" or i == 0) else x
        for i, x in enumerate(operands())
    ]
    function = of(name)
    if function.written:
        with pytest.raises(ArgumentError, match="requires its gradient"):
            call(*given)
    else:
        results = flat(call(*given))
        assert all(x.requires_grad for x in results if x.is_floating_point())
        if function.backward is None:
            said = (
                "is a derivative, and cannot be differentiated again" if "_backward" in name else "has no backward yet"
            )
            with pytest.raises(NotImplementedError, match=f"pykittens.{name} {said}"):
                results[0].sum().backward()
        else:
            wanted = [x for x in given if x.requires_grad]
            assert all(x is not None for x in torch.autograd.grad(results[0].square().sum(), wanted))
    with torch.no_grad():
        assert not any(x.requires_grad for x in flat(call(*given)))
    with forward_ad.dual_level(), pytest.raises(ArgumentError, match="no derivative in forward mode"):
        call(*[forward_ad.make_dual(x.detach(), x.detach()) if x.requires_grad else x for x in given])
    floats = [x.detach() for x in given if isinstance(x, torch.Tensor) and x.requires_grad]

    def of_floats(*some: torch.Tensor) -> Any:
        left = iter(some)
        return call(*[next(left) if isinstance(x, torch.Tensor) and x.requires_grad else x for x in given])

    with pytest.raises(ArgumentError, match="no derivative in forward mode"):
        torch.func.jvp(of_floats, tuple(floats), tuple(floats))


@pytest.mark.thin(4)
@pytest.mark.parametrize("name", CASES)
def test_tensors_without_memory(name: str) -> None:
    """Meta and fake tensors give results that look as the real ones do; a mixture is refused."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    call, operands = CASES[name]
    real = [(x.shape, x.dtype, x.stride()) for x in flat(call(*operands()))]
    for result in (call(*[x.to("meta") for x in operands()]),):
        assert [(x.shape, x.dtype, x.stride()) for x in flat(result)] == real and flat(result)[0].is_meta
    with FakeTensorMode() as mode:
        result = call(*map(mode.from_tensor, operands()))
        assert [(x.shape, x.dtype, x.stride()) for x in flat(result)] == real
    if len(operands()) > 1:
        with pytest.raises(ArgumentError, match="meta"):
            call(operands()[0], *[x.to("meta") for x in operands()[1:]])


@pytest.mark.thin(8)
@pytest.mark.parametrize("name", without_gradients(name for name in CASES if name not in UNTRACED))
def test_traced_for_other_inputs(name: str) -> None:
    """What functionalisation and make_fx record computes, and holds no results as constants."""
    from torch.fx.experimental.proxy_tensor import make_fx

    call, operands = CASES[name]
    given = operands()
    others = other(name, given)
    expected = call(*others)
    traced = make_fx(lambda *x: call(*x))(*given)
    assert same(traced(*others), expected)
    if not name.startswith("cache_append"):  # which has no form that writes nothing: that would copy the caches
        assert same(torch.func.functionalize(call)(*others), expected)


@pytest.mark.thin(8)
@pytest.mark.parametrize("name", without_gradients(ONE))
def test_compiled_with_other_lengths(name: str) -> None:
    call, operands = CASES[name]
    torch._dynamo.reset()
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True, dynamic=True)
    given = operands()
    assert same(compiled(*given), call(*given))
    axis = given[0].dim() - 2
    if "varlen" in name:  # one more sequence
        longer = [torch.cat([x, x], x.shape.index(40)) if 40 in x.shape else x for x in given]
        longer = [x if x.is_floating_point() else torch.cat([x, x[-1:] * 2]) for x in longer]
    elif name in LONGER:
        longer = [torch.cat([x, x]) if i in LONGER[name] else x for i, x in enumerate(given)]
    elif "rotary" not in name:  # operands of as many rows each
        longer = [
            torch.cat([x, x], axis if x.dim() > 1 else 0) if x.dim() > 1 or len(x) == len(given[0]) else x
            for x in given
        ]
    else:
        longer = [torch.cat([given[0], given[0]], 0), *given[1:]]
    assert same(compiled(*longer), call(*longer))


@pytest.mark.thin(3)
@pytest.mark.parametrize("name", without_gradients(ONE))
def test_exported(name: str) -> None:
    class Module(torch.nn.Module):
        def forward(self, *given: Any) -> Any:
            return call(*given)

    call, operands = CASES[name]
    exported = torch.export.export(Module(), tuple(operands()))
    assert f"pykittens.{name}.default" in str(exported.graph)
    others = other(name, operands())
    assert same(exported.module()(*others), call(*others))


LATE = """
import torch
import pykittens as pk
x = torch.randn(4, 64)
assert torch.equal(torch.compile(lambda x: pk.softmax(x) + 1, backend="eager", fullgraph=True)(x), pk.softmax(x) + 1)
"""
EARLY = """
from pykittens import matmul, attention
import torch
x = torch.randn(64, 64).bfloat16()
for f in (lambda x: matmul(x, x) + 1, lambda x: attention(x[None, None], x[None, None], x[None, None])):
    compiled = torch.compile(f, backend="eager", fullgraph=True, dynamic=True)(x)
    assert torch.equal(compiled, f(x))
"""


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(LATE, id="looked up while tracing", marks=pytest.mark.whole),
        pytest.param(EARLY, id="imported before torch", marks=pytest.mark.whole),
    ],
)
def test_compiled_before_any_eager_call(program: str) -> None:
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(pk.__file__).parents[1])


@pytest.mark.thin(6)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(name: str, low: Any) -> None:
    """Products and attention in autocast's dtype, norms and softmax in float32, the rest as it comes: torch's lists."""
    call, operands = CASES[name]
    function = of(name)
    dtype = torch.float32 if function.autocast == "low" else HALF
    given = [x.to(dtype) if x.is_floating_point() else x for x in operands()]
    with torch.no_grad(), torch.autocast("cpu", dtype=low):
        result = flat(call(*given))[0]
    expected = {"low": low, "f32": torch.float32}.get(function.autocast, HALF)
    single = name.startswith(("addmm", "matmul_epilogue")) or name.endswith("backward_over")
    single = single or ("entropy" in name and "backward" not in name)
    assert result.dtype == (torch.float32 if single else expected)


@pytest.mark.thin(5)
@pytest.mark.parametrize("name", without_gradients(GRADED))
def test_vmap(name: str) -> None:
    call, operands = CASES[name]
    given = operands()
    batch = [torch.stack([x, y]) for x, y in zip(given, other(name, given), strict=True)]
    each = [flat(call(*[x[i] for x in batch])) for i in range(2)]
    for got, *wanted in zip(flat(torch.vmap(call)(*batch)), *each, strict=True):
        assert torch.equal(got, torch.stack(wanted))


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("softmax", lambda x: torch.softmax(x, -1)),
        (
            "rotary",
            lambda x, cos, sin: torch.cat(
                (x[..., :32] * cos[:8] - x[..., 32:] * sin[:8], x[..., 32:] * cos[:8] + x[..., :32] * sin[:8]), -1
            ),
        ),
        ("cross_entropy", torch.nn.functional.cross_entropy),
        (
            "cross_entropy_lse",
            lambda x, t: torch.stack((torch.nn.functional.cross_entropy(x, t, reduction="none"), x.logsumexp(-1))),
        ),
        ("linear_cross_entropy", lambda x, w, t: torch.nn.functional.cross_entropy(x.float() @ w.float().T, t)),
        (
            "linear_cross_entropy_lse",
            lambda x, w, t: torch.stack(
                (torch.nn.functional.cross_entropy(z := x.float() @ w.float().T, t, reduction="none"), z.logsumexp(-1))
            ),
        ),
        ("swiglu", lambda x, y: torch.nn.functional.silu(x) * y),
        ("geglu", lambda x, y: torch.nn.functional.gelu(x) * y),
        ("layernorm", lambda x, w, b: torch.nn.functional.layer_norm(x, (64,), w, b)),
        ("rmsnorm", lambda x, w: torch.nn.functional.rms_norm(x, (64,), w, 1e-6)),
    ],
)
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.whole)])
def test_gradients_are_torchs(name: str, plain: Any, compiled: bool) -> None:
    call, operands = CASES[name]
    found = []
    for run in (torch.compile(call, backend="aot_eager", fullgraph=True) if compiled else call, plain):
        x, *rest = operands()
        x.requires_grad_()
        result = run(x, *rest)
        ((torch.stack(result) if isinstance(result, tuple) else result).square() * 3).sum().backward()
        found.append(x.grad)
    coarse = {"rtol": 2**-7, "atol": 2**-8 * float(found[1].abs().max())} if x.dtype == HALF else {"atol": 1e-5}
    assert torch.allclose(*found, **coarse)


@pytest.mark.thin(6)
@pytest.mark.parametrize("name", GRADED)
def test_numpy_gives_what_torch_gives(name: str) -> None:
    call, operands = CASES[name]
    arrays = [x.float().numpy().astype(pk.bf16.numpy) if x.dtype == HALF else x.numpy() for x in operands()]
    for got, wanted in zip(flat(call(*arrays)), flat(call(*operands())), strict=True):
        assert np.array_equal(got.astype(np.float32), wanted.float().numpy())


def backwards(x: Any) -> Any:
    return np.flip(np.flip(x, 0).copy(), 0) if x.ndim else x


def with_gaps(x: Any) -> Any:
    return np.repeat(x, 2, -1)[..., ::2] if x.ndim == 1 or x.dtype.kind in "iu" else x


def not_aligned(x: Any) -> Any:
    return np.frombuffer(b"-" + x.tobytes(), np.uint8)[1:].view(x.dtype).reshape(x.shape)


LAID_OUT = ("attention_cached", "attention_varlen_scored_lse", "causal_conv1d", "cross_entropy", "layernorm", "rotary")


@pytest.mark.parametrize(
    "name", [name if name in LAID_OUT else pytest.param(name, marks=pytest.mark.whole) for name in PLAINLY]
)
def test_arrays_that_run_backwards_and_lines_with_gaps(name: str) -> None:
    """NumPy's views that a kernel would not take: their values, or one error in the function's words."""
    call, operands = CASES[name]
    given = [x.float().numpy().astype(pk.bf16.numpy) if x.dtype == HALF else x.numpy() for x in operands()]
    wanted = flat(call(*given))
    for view in (backwards, with_gaps):
        for got, expected in zip(flat(call(*map(view, given))), wanted, strict=True):
            assert np.array_equal(got, expected, equal_nan=True)
    with pytest.raises(ArgumentError, match=r"`\w+` begins between two multiples of its \d-byte elements"):
        call(*map(not_aligned, given))


# What torch computes, for the operands of each case with one dimension made empty.
PLAIN: dict[str, Callable[..., Any]] = {
    "attention": torch.nn.functional.scaled_dot_product_attention,
    "geglu": lambda gate, up: torch.nn.functional.gelu(gate) * up,
    "layernorm": lambda x, w, b: torch.nn.functional.layer_norm(x, x.shape[-1:], w, b),
    "matmul": torch.matmul,
    "rmsnorm": lambda x, w: torch.nn.functional.rms_norm(x, x.shape[-1:], w),
    "softmax": lambda x: torch.softmax(x, -1),
    "swiglu": lambda gate, up: torch.nn.functional.silu(gate) * up,
}


@pytest.mark.parametrize("name", PLAIN)
def test_nothing_is_what_torch_gives_for_nothing(name: str) -> None:
    """Every way to make dimensions empty that torch's function takes."""
    call, operands = CASES[name]
    given, tried = operands(), 0
    places = [[(i, axis)] for i, x in enumerate(given) for axis in range(x.dim())]
    if name == "attention":  # batch, heads, rows, keys, columns of queries and keys, of values
        places = [[(0, 0), (1, 0), (2, 0)], [(0, 1), (1, 1), (2, 1)], [(0, 2)], [(1, 2), (2, 2)], [(0, 3), (1, 3)]]
        places.append([(2, 3)])
    for mask in range(1, 2 ** len(places)):
        cut = [x.clone() for x in given]
        for bit, together in enumerate(places):
            for i, axis in together if mask >> bit & 1 else ():
                cut[i] = cut[i].narrow(axis, 0, 0)
        try:
            expected = PLAIN[name](*cut)
        except RuntimeError:
            continue
        if (
            expected.shape != (cut[0] @ cut[1]).shape
            if name == "matmul"
            else name != "attention" and expected.shape != cut[0].shape
        ):
            continue  # broadcast, which is not ours
        result = call(*cut)
        assert result.shape == expected.shape, [x.shape for x in cut]
        assert torch.allclose(result, expected.to(result.dtype), rtol=2**-7, atol=2**-8), [x.shape for x in cut]
        tried += 1
    least = {"attention": 63, "matmul": 4}
    assert tried >= least.get(name, 2)


@pytest.mark.parametrize(("d", "e"), [(0, 24), (24, 0)])
def test_attention_without_columns(d: int, e: int) -> None:
    """Of queries and keys: all keys weigh alike. Of values: the log-sum-exp is what is left. Gradients are torch's, and
    packed sequences, caches, scores and NumPy agree."""
    q, k, v = tensor(1, 4, 5, d, dtype=HALF), tensor(1, 2, 7, d, dtype=HALF), tensor(1, 2, 7, e, dtype=HALF)
    found = []
    for run in (
        pk.attention,
        lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True),
    ):
        given = [x.clone().float() if run is not pk.attention else x.clone() for x in (q, k, v)]
        for x in given:
            x.requires_grad_()
        run(*given).float().square().sum().backward()
        found.append([x.grad for x in given])
    for got, wanted in zip(*found, strict=True):
        assert torch.allclose(got, wanted.to(HALF), rtol=2**-6, atol=2**-7)
    causal = pk.attention(q, k, v, causal=True, return_lse=True)
    offsets = [torch.tensor([0, n], dtype=torch.int32) for n in (5, 7)]
    packed = [x[0].transpose(0, 1) for x in (q, k, v)]
    others = [
        pk.attention_cached(q, k, v, torch.tensor([7], dtype=torch.int32), return_lse=True),
        pk.attention(q, k, v, return_lse=True, mask=lambda b, h, row, col: col <= row + 2),
        [x[None] for x in pk.attention_varlen(*packed, *offsets, causal=True, return_lse=True)],
    ]
    others[2][0] = others[2][0].transpose(1, 2)
    for other in others:
        for got, wanted in zip(other, causal, strict=True):
            assert got.shape == wanted.shape and torch.allclose(got, wanted, rtol=2**-7, atol=2**-8)


def test_sequences_without_features() -> None:
    """Nothing is looked up: what is left is nothing, of Based's constant feature the sum of values, of Mamba-2 D x."""
    v, none, gate = tensor(1, 2, 5, 64, dtype=HALF), tensor(1, 2, 5, 0, dtype=HALF), -torch.rand(1, 2, 5)
    for got, state in (
        pk.linear_attention(none, none, v, return_state=True),
        pk.gated_linear_attention(none, none, v, gate, return_state=True),
        pk.gated_delta_rule(none, none, v, -gate, gate, return_state=True),
        pk.kimi_delta_attention(none, none, v, -gate, none.float(), return_state=True),
    ):
        assert got.shape == v.shape and not got.any() and state.shape == (1, 2, 64, 0)
    assert pk.linear_attention(v, v, none).shape == none.shape
    assert torch.allclose(pk.based(none[..., :0], none, v).float(), v.float().cumsum(2), rtol=2**-7, atol=2**-7)
    x, states = tensor(1, 5, 2, 64, dtype=HALF), tensor(1, 5, 1, 0, dtype=HALF)
    y = pk.mamba2(x, torch.rand(1, 5, 2), -torch.ones(2), states, states, D=torch.full((2,), 3.0))
    assert torch.allclose(y, 3 * x, rtol=2**-7)


@pytest.mark.parametrize(
    "name", [name for name in CASES if of(name).summed and "backward" not in name and "attention" not in name]
)
def test_nothing_to_sum_over_is_a_sum_of_zeros(name: str) -> None:
    """Biases, activations, epilogues and residuals are of 0 then; and what torch computes is the same."""
    call, operands = CASES[name]
    given = operands()
    declared = [x for x in of(name).names if x not in ("weight2", "scale_a", "scale_b")]
    cut, zeros = list(given), list(given)
    for i, operand in enumerate(declared[: len(given)]):
        if operand in of(name).summed:
            cut[i] = given[i].narrow(of(name).summed[operand], 0, 0)
            zeros[i] = torch.zeros_like(given[i])
    for got, wanted in zip(flat(call(*cut)), flat(call(*zeros)), strict=True):
        assert got.numel() == 0 or (got.shape == wanted.shape and torch.equal(got, wanted))
    plain = {"linear": torch.nn.functional.linear}.get(name)
    assert plain is None or torch.equal(call(*cut), plain(*(x.float() for x in cut)).to(cut[0].dtype))


def test_a_bias_learns_where_there_is_nothing_to_sum_over() -> None:
    x, weight, bias = tensor(6, 0, dtype=HALF), tensor(24, 0, dtype=HALF), tensor(24)
    found = []
    for run in (pk.linear, lambda x, w, b, gelu: torch.nn.functional.gelu(torch.nn.functional.linear(x.float(), w, b))):
        b = bias.clone().requires_grad_()
        run(x, weight if run is pk.linear else weight.float(), b, "gelu").square().sum().backward()
        found.append(b.grad)
    assert torch.allclose(*found, rtol=2**-6, atol=2**-6)


def test_a_state_without_rows_is_the_state_before() -> None:
    q, k, v = heads(n=0)
    before = tensor(1, 2, 64, 64)
    o, state = pk.linear_attention(q, k, v, state=before, return_state=True)
    assert o.shape == v.shape and torch.equal(state, before) and state is not before
    assert not pk.linear_attention(q, k, v, return_state=True)[1].any()
    _, lse = pk.attention(heads()[0], *heads(n=0)[1:], return_lse=True)
    assert (lse == -torch.inf).all()


def test_what_is_overwritten_says_so_to_autograd() -> None:
    x, cos, sin = angles()
    weight = torch.ones(64, requires_grad=True)
    kept = (x * weight).sum()
    with torch.no_grad():
        pk.rotary(x, cos, sin, out=x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.backward()


WRITING = [name for name in CASES if of(name).written]


@pytest.mark.parametrize("name", WRITING)
def test_what_is_written_shares_memory_with_no_other_operand(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each operand in turn begins 16 bytes into what is written."""
    call, operands = CASES[name]
    function, given = of(name), []
    with monkeypatch.context() as patch:
        run = type(function).__call__
        patch.setattr(
            type(function), "__call__", lambda self, *told: (given.append((self, *told)), run(self, *told))[1]
        )
        call(*operands())
    (arrays, *rest) = next(told for made, *told in given if made is function)
    for i, j in itertools.product(function.written, range(len(arrays))):
        out, x = arrays[i], arrays[j]
        if i == j or x is None:
            continue
        memory = torch.zeros(out.nbytes + x.nbytes + 16, dtype=torch.uint8)
        changed = list(arrays)
        changed[i] = memory[: out.nbytes].view(out.dtype).view(out.shape).copy_(out)
        changed[j] = memory[16 : 16 + x.nbytes].view(x.dtype).view(x.shape)
        with pytest.raises(ArgumentError, match="which is written, shares memory with"):
            function(changed, *rest)


def test_what_is_written_can_be() -> None:
    """Said in the function's words, before anything is launched."""
    x, (a, b) = np.ones((4, 8), np.float32), (np.ones((4, 16), pk.bf16.numpy), np.ones((16, 8), pk.bf16.numpy))
    t, calls = np.zeros((4, 4), np.float32), dict[str, Callable[[Any], Any]]()
    calls["addmm_ writes 'total'"] = lambda out: pk.addmm_(out, a, b)
    calls["rotary_out writes 'out'"] = lambda out: pk.rotary(x, t, t, out=out)
    calls["cross_entropy_in_place writes 'x'"] = lambda out: pk.cross_entropy(out, np.arange(4), in_place=True)
    overlapping = np.lib.stride_tricks.as_strided(np.zeros(64, np.float32), (4, 8), (16, 4))
    for said, call in calls.items():
        for out, why in (
            (np.broadcast_to(x, x.shape), "read-only"),
            (overlapping, "elements overlap"),
            (backwards(x), "negative"),
        ):
            with pytest.raises(ArgumentError, match=f"{said}, .*{why}") as error:
                call(out)
            assert error.value.location[0].file == __file__


def test_columns_of_one_matrix_share_nothing() -> None:
    whole = torch.zeros(24, 120)
    a = whole.view(HALF)[:, 80:112].copy_(tensor(24, 32, dtype=HALF))
    b = tensor(32, 40, dtype=HALF)
    pk.addmm_(whole[:, :40], a, b)
    assert torch.allclose(whole[:, :40], a.float() @ b.float(), atol=1e-4)
    assert torch.equal(a, whole.view(HALF)[:, 80:112])


def test_no_angles_turn_nothing() -> None:
    """Of no pairs of features, the result is the operand, into an array of the caller's too; and so is the gradient."""
    x, none = np.arange(2 * 5 * 8, dtype=np.float32).reshape(2, 5, 8), np.zeros((5, 0), np.float32)
    assert (pk.rotary(x, none, none) == x).all() and pk.rotary(x[..., :0], none, none).shape == (2, 5, 0)
    out = np.full_like(x, np.nan)
    assert (pk.rotary(x, none, none, out=out) == x).all()
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(x).requires_grad_()
    pk.rotary(tensor, *(torch.from_numpy(none) for _ in range(2))).mul(3.0).sum().backward()
    assert (tensor.grad == 3.0).all()


@pytest.mark.parametrize("array", [np.asarray, torch.as_tensor])
def test_settings_are_numbers_of_any_kind_or_refused(array: Any) -> None:
    """NumPy's too, of 16 bits as of 64; what is none, or larger than any float, is refused before it is compared."""
    x, q = array(torch.randn(4, 64).numpy()), array(torch.randn(1, 1, 16, 64).numpy())
    for half in (np.float16(0.5), np.float64(0.5)):
        for got, wanted in zip(pk.layernorm(x, p=half, seed=3), pk.layernorm(x, p=0.5, seed=3), strict=True):
            assert (got == wanted).all()
    refused: list[tuple[Callable[[], Any], str]] = [
        (lambda: pk.layernorm(x, p="1"), "layernorm: p is '1', a str"),
        (lambda: pk.layernorm(x, p=None), "layernorm: p is None"),
        (lambda: pk.rmsnorm(x, eps=10**400), "rmsnorm: eps is 1000"),
        (lambda: pk.attention(q, q, q, scale=10**400), "attention: scale is 1000"),
        (lambda: pk.attention(q, q, q, return_lse=2), "attention: 2, a int, says whether `lse` is returned"),
        (lambda: pk.linear_attention(q, q, q, return_state=None), "None, a NoneType, says whether `after`"),
    ]
    for call, fact in refused:
        with pytest.raises(ArgumentError, match=fact):
            call()


def test_views_of_the_other_sign() -> None:
    """torch makes numbers of them before kernels see them; what is written is refused."""
    x = torch.randn(4, 64, dtype=torch.complex64).conj().imag
    assert x.is_neg() and torch.allclose(pk.softmax(x), torch.softmax(x, -1), atol=1e-6)
    heads, cos, sin = angles()
    with pytest.raises(ArgumentError, match="rotary_out: out is a view of numbers of the other sign"):
        pk.rotary(heads, cos, sin, out=torch._neg_view(heads.clone()))


@pytest.mark.parametrize("call", [pk.cross_entropy, lambda x, t, **of: pk.linear_cross_entropy(x, head()[1], t, **of)])
def test_a_target_that_is_no_column_is_named(call: Callable[..., Any]) -> None:
    x, (_, columns) = head()[0], (64, 64) if call is pk.cross_entropy else (64, 72)
    for wrong in (columns, -1, 2**32):
        targets = torch.tensor([0, 1, wrong, 3, 4, -100])
        for leaf in (x, x.clone().requires_grad_()):
            with pytest.raises(ArgumentError, match=f"target 2 is {wrong}, of {columns} columns"):
                call(leaf, targets)
    assert call(x, torch.tensor([0, 1, 7, 3, 4, 999]), ignore_index=999).isfinite()


def test_what_torch_asks_is_answered_or_refused() -> None:
    """Tangents of torch.func.jvp, which are not seen below the dispatcher; gradients of torch.func, which do not go
    through autocast; tensors without rows."""
    x = torch.randn(4, 64)
    with pytest.raises(ArgumentError, match="no derivative in forward mode"):
        torch.func.jvp(pk.softmax, (x,), (x,))
    for transform in (torch.func.grad(lambda x: pk.softmax(x).sum()), torch.func.jacrev(pk.softmax)):
        with pytest.raises(ArgumentError, match=r"inside torch.func.grad or vjp"), torch.autocast("cpu"):
            transform(x)
    assert torch.equal(torch.func.grad(lambda y: (pk.softmax(x) * y).sum())(x), pk.softmax(x)), "a constant there"
    torch.testing.assert_close(torch.vmap(pk.softmax)(x[None]), torch.softmax(x[None], -1))
    masked = torch.masked.masked_tensor(x, x > 0)
    for odd, kind in (
        (x.to_sparse(), "sparse"),
        (torch.nested.nested_tensor([x, x]), "nested"),
        (masked, "masked"),
    ):
        with pytest.raises(ArgumentError, match=f"x is a {kind} tensor"):
            pk.softmax(odd)
    with pytest.raises(ArgumentError, match=r"x` is a torch.fx.proxy.Proxy, which is no array"):
        torch.fx.symbolic_trace(pk.softmax)
