"""softmax(q @ k.T * scale) @ v, and its gradients."""

from __future__ import annotations

from typing import Any

from ..errors import ArgumentError
from ..kernels import attention as kernels
from .declaration import Backward, Function, Result


def _results(q: Any, k: Any, v: Any, causal: bool, scale: float | None, deterministic: bool) -> tuple[Result, ...]:
    kernels.check({"q": q, "k": k, "v": v}, deterministic)
    return Result(q.shape, q.dtype, order="q"), Result(q.shape[:3], "f32", nothing=float("-inf"))


def _numbers(q: Any, k: Any, v: Any, causal: bool, scale: float | None, deterministic: bool) -> tuple[float]:
    return (q.shape[-1] ** -0.5 if scale is None else float(scale),)


def _forward(q: Any, k: Any, v: Any, out: Any, lse: Any, causal: bool, scale: float | None, deterministic: bool) -> Any:
    return kernels.call(q, k, v, out, lse, causal, *_numbers(q, k, v, causal, scale, deterministic))


def _gradient_results(
    do: Any,
    q: Any,
    k: Any,
    v: Any,
    o: Any,
    lse: Any,
    dlse: Any,
    causal: bool,
    scale: float | None,
    deterministic: bool,
) -> tuple[Result, ...]:
    kernels.check({"q": q, "k": k, "v": v}, deterministic)
    wanted = {
        "do": (q.shape, q.dtype),
        "o": (q.shape, q.dtype),
        "lse": (q.shape[:3], "f32"),
        "dlse": (q.shape[:3], "f32"),
    }
    for (name, (shape, dtype)), x in zip(wanted.items(), (do, o, lse, dlse), strict=True):
        if x is not None and (x.dtype != dtype or tuple(x.shape) != tuple(shape)):
            said = f"{name} is {x.dtype} {tuple(x.shape)}, where {dtype} {tuple(shape)} is needed"
            raise ArgumentError(
                f"attention_backward: {said}", fix="pass what pk.attention(..., return_lse=True) returned"
            )
    return tuple(Result(x.shape, x.dtype, order=name) for name, x in (("q", q), ("k", k), ("v", v)))


def _gradient_forward(do: Any, q: Any, *arguments: Any) -> Any:
    from ..kernels import attention_backward

    *operands, causal, scale, deterministic = arguments
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    return attention_backward.call((do, q, *operands[:5]), operands[5:], causal, scale, deterministic)


ATTENTION_BACKWARD = Function(
    "attention_backward",
    "Tensor do, Tensor q, Tensor k, Tensor v, Tensor o, Tensor lse, Tensor? dlse=None",
    "bool causal=False, float? scale=None, bool deterministic=False",
    outputs=("dq", "dk", "dv"),
    results=_gradient_results,
    forward=_gradient_forward,
    autocast="low",
    cast=("do", "q", "k", "v", "o"),
)


def _gradients(saved: Any, grads: Any, settings: Any, needs: Any) -> dict[str, Any]:
    do = saved.out.new_zeros(saved.out.shape) if grads.out is None else grads.out
    operands = (do, saved.q, saved.k, saved.v, saved.out, saved.lse, grads.lse)
    chosen = settings.causal, settings.scale, settings.deterministic
    return dict(zip("qkv", ATTENTION_BACKWARD(operands, chosen), strict=True))


ATTENTION = Function(
    "attention",
    "Tensor q, Tensor k, Tensor v",
    "bool causal=False, float? scale=None, bool deterministic=False",
    also="lse",
    results=_results,
    forward=_forward,
    key=lambda causal, scale, deterministic: (bool(causal), scale is None or scale > 0),
    numbers=_numbers,
    autocast="low",
    backward=Backward(("q", "k", "v", "out", "lse"), _gradients),
)


def attention_backward(
    do: Any,
    q: Any,
    k: Any,
    v: Any,
    o: Any,
    lse: Any,
    *,
    dlse: Any = None,
    causal: bool = False,
    scale: float | None = None,
    deterministic: bool = False,
) -> Any:
    """The gradients (dq, dk, dv) of `attention`, from that of its output, `do`, and of its log-sum-exp, `dlse`.

    o and lse: what `attention(q, k, v, causal=causal, scale=scale, return_lse=True)` returned. The gradients have the
    shapes and dtypes of q, k and v, with float32 sums: dk and dv of a key head are sums over the heads that share it. A
    row that sees no key has a gradient of 0. `deterministic`: the parts of dq are added in one order, so that every run
    gives the same bits; they are otherwise added as they come. torch's autograd calls this by itself.

    Raises `ArgumentError` for operands that no kernel takes.
    """
    return ATTENTION_BACKWARD((do, q, k, v, o, lse, dlse), (causal, scale, deterministic))


def attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    causal: bool = False,
    scale: float | None = None,
    return_lse: bool = False,
    deterministic: bool = False,
) -> Any:
    """softmax(q @ k.T * scale) @ v for each batch and head; with `return_lse`, also the log-sum-exp of each row's
    scores.

    q: (batch, heads, n, d), k and v: (batch, key heads, m, d), bf16 or f16, where the heads are a multiple of the key
    heads (grouped-query attention) and d is 64, 128 or, on Hopper, 256. Any strides: a transposed (batch, n, heads, d)
    is read in place. causal: row i sees the keys up to i + m - n; a row that sees none is zero. `scale` is 1 / sqrt(d)
    unless given. The result is a new array of the same framework and dtype; log-sum-exp is float32 (batch, heads, n).
    `deterministic`: torch's gradients have the same bits in every run (see `attention_backward`); the result always
    has.

    Raises `ArgumentError` for operands that no kernel takes.
    """
    return ATTENTION((q, k, v), (causal, scale, deterministic), return_lse)
