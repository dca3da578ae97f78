"""softmax(q @ k.T * scale) @ v, with windows, a cap of scores, sinks; and its gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ArgumentError
from ..kernels import attention as kernels
from .declaration import Backward, Function, Result

SETTINGS = (
    "bool causal=False, float? scale=None, bool deterministic=False, "
    "int? left=None, int? right=None, float? softcap=None"
)
GRADIENTS = ("dq", "dk", "dv", "dsinks")


def _scores(
    dim: Any,
    causal: bool,
    scale: float | None,
    deterministic: bool,
    left: int | None,
    right: int | None,
    softcap: float | None,
) -> kernels.Scores:
    return kernels.scores(dim, causal, scale, left, right, softcap)


def _check(q: Any, k: Any, v: Any, sinks: Any, settings: Any) -> None:
    kernels.check({"q": q, "k": k, "v": v}, settings[2], sinks)
    _scores(64, *settings)


def _results(q: Any, k: Any, v: Any, sinks: Any, *settings: Any) -> tuple[Result, ...]:
    _check(q, k, v, sinks, settings)
    return _like_q(q, v), Result(q.shape[:3], "f32", nothing=_lse_of_no_keys)


def _like_q(q: Any, v: Any) -> Result:
    """The output: rows of q with the columns of v."""
    return Result((*q.shape[:-1], v.shape[-1]), q.dtype, order="q" if q.shape[-1] == v.shape[-1] else "")


def _lse_of_no_keys(operands: Mapping[str, Any]) -> Any:
    sinks = operands["sinks"]
    return float("-inf") if sinks is None else sinks[:, None]


def _forward(q: Any, k: Any, v: Any, sinks: Any, out: Any, lse: Any, *settings: Any) -> Any:
    return kernels.call(q, k, v, sinks, out, lse, _scores(q.shape[-1], *settings))


def _gradient_results(
    do: Any, q: Any, k: Any, v: Any, o: Any, lse: Any, dlse: Any, sinks: Any, *settings: Any
) -> tuple[Result, ...]:
    _check(q, k, v, sinks, settings)
    wanted = {
        "do": (_like_q(q, v).shape, q.dtype),
        "o": (_like_q(q, v).shape, q.dtype),
        "lse": (q.shape[:3], "f32"),
        "dlse": (q.shape[:3], "f32"),
    }
    for (name, (shape, dtype)), x in zip(wanted.items(), (do, o, lse, dlse), strict=True):
        if x is not None and (x.dtype != dtype or tuple(x.shape) != tuple(shape)):
            said = f"{name} is {x.dtype} {tuple(x.shape)}, where {dtype} {tuple(shape)} is needed"
            raise ArgumentError(
                f"attention_backward: {said}", fix="pass what pk.attention(..., return_lse=True) returned"
            )
    dsinks = Result((0,), "f32") if sinks is None else Result(sinks.shape, sinks.dtype, nothing=_dsinks_of_no_keys)
    return (*(Result(x.shape, x.dtype, order=name) for name, x in (("q", q), ("k", k), ("v", v))), dsinks)


def _dsinks_of_no_keys(operands: Mapping[str, Any]) -> Any:
    """Rows that see nothing but the sink have its logit as their log-sum-exp."""
    dlse = operands["dlse"]
    return 0.0 if dlse is None or 0 in dlse.shape else dlse.sum((0, 2))


def _gradient_forward(do: Any, q: Any, *arguments: Any) -> Any:
    from ..kernels import attention_backward

    operands, gradients, settings = arguments[:6], arguments[6:10], arguments[10:]
    return attention_backward.call((do, q, *operands), gradients, _scores(q.shape[-1], *settings), settings[2])


ATTENTION_BACKWARD = Function(
    "attention_backward",
    "Tensor do, Tensor q, Tensor k, Tensor v, Tensor o, Tensor lse, Tensor? dlse=None, Tensor? sinks=None",
    SETTINGS,
    outputs=GRADIENTS,
    results=_gradient_results,
    forward=_gradient_forward,
    autocast="low",
    cast=("do", "q", "k", "v", "o"),
)


def _gradients(saved: Any, grads: Any, settings: Any, needs: Any) -> dict[str, Any]:
    do = saved.out.new_zeros(saved.out.shape) if grads.out is None else grads.out
    operands = (do, saved.q, saved.k, saved.v, saved.out, saved.lse, grads.lse, saved.sinks)
    return dict(zip(("q", "k", "v", "sinks"), ATTENTION_BACKWARD(operands, (*vars(settings).values(),)), strict=True))


ATTENTION = Function(
    "attention",
    "Tensor q, Tensor k, Tensor v, Tensor? sinks=None",
    SETTINGS,
    also="lse",
    results=_results,
    forward=_forward,
    key=lambda causal, scale, deterministic, *rest: kernels.scores(64, causal, scale, *rest).kind,
    numbers=lambda q, k, v, sinks, causal, scale, deterministic, *rest: (
        kernels.scores(q.shape[-1], causal, scale, *rest).numbers
    ),
    autocast="low",
    cast=("q", "k", "v"),
    backward=Backward(("q", "k", "v", "sinks", "out", "lse"), _gradients),
)


def sides(window: Any) -> tuple[int | None, int | None]:
    """The two sides of a window; raises `ArgumentError` for what is none."""
    if window is None:
        return None, None
    pair = window if isinstance(window, (tuple, list)) and len(window) == 2 else ("", "")
    if not all(x is None or isinstance(x, int) or hasattr(x, "__index__") for x in pair):
        raise ArgumentError(
            f"window={window!r}", fix="pass two integers, (left, right), where None is a side without a limit"
        )
    return pair[0], pair[1]  # type: ignore[return-value]


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
    window: tuple[int | None, int | None] | None = None,
    softcap: float | None = None,
    sinks: Any = None,
) -> Any:
    """The gradients (dq, dk, dv) of `attention`, from that of its output, `do`, and of its log-sum-exp, `dlse`.

    o and lse: what `attention(q, k, v, return_lse=True, ...)` returned with the same `causal`, `scale`, `window`,
    `softcap`. The gradients have the shapes and dtypes of q, k and v, with float32 sums: dk and dv of a key head are
    sums over the heads that share it. A row that sees no key has a gradient of 0. With `sinks` there is a fourth,
    theirs. `deterministic`: the parts of dq are added in one order, so that every run gives the same bits; they are
    otherwise added as they come. torch's autograd calls this by itself.

    Raises `ArgumentError` for operands that no kernel takes.
    """
    operands, settings = (do, q, k, v, o, lse, dlse, sinks), (causal, scale, deterministic, *sides(window), softcap)
    found = ATTENTION_BACKWARD(operands, settings)
    return found[:3] if sinks is None else found


def attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    causal: bool = False,
    scale: float | None = None,
    return_lse: bool = False,
    deterministic: bool = False,
    window: tuple[int | None, int | None] | None = None,
    softcap: float | None = None,
    sinks: Any = None,
    dropout_p: float = 0.0,
) -> Any:
    """softmax(q @ k.T * scale) @ v for each batch and head; with `return_lse`, also the log-sum-exp of each row's
    scores.

    q: (batch, heads, n, d), k and v: (batch, key heads, m, d), bf16 or f16, where the heads are a multiple of the key
    heads (grouped-query attention) and d is a multiple of 8 up to 256 (without Hopper's instructions up to 128); that
    of v, and of the result, may be less. Any strides: a transposed (batch, n, heads, d) is read in place. causal: row i
    sees the keys up to i + m - n; a row that sees none is zero. `scale` is 1 / sqrt(d) unless given. The result is a
    new array of the same framework and dtype; log-sum-exp is float32 (batch, heads, n). `deterministic`: torch's
    gradients have the same bits in every run (see `attention_backward`); the result always has.

    window: (left, right), so that row i sees the keys from i + m - n - left to i + m - n + right, and no others; None
    is a side without a limit, and `causal` the same as a right side of 0 at most. Blocks of keys that no row sees are
    not visited. softcap: scores become softcap * tanh(score / softcap). sinks: one logit for each head, (heads,), as
    float32 or the dtype of q: a term of the softmax's sum that has no value. It has a gradient. dropout_p: 0, since the
    kernels drop no scores.

    Raises `ArgumentError` for operands that no kernel takes.
    """
    if dropout_p != 0:
        fix = "train without it, as large models do, or drop elements of the residual stream: pk.rmsnorm(x, p=...)"
        raise ArgumentError(f"attention with dropout_p={dropout_p}: the kernels drop no scores", fix=fix)
    left, right = (None, None) if window is None else sides(window)
    settings = (causal, scale, deterministic, left, right, softcap)
    return ATTENTION((q, k, v, sinks), settings, return_lse)
