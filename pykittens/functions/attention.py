"""softmax(q @ k.T * scale) @ v, with windows, a cap of scores, sinks; and its gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..errors import ArgumentError
from ..kernels import attention as kernels
from . import attention_rules as rules
from . import scorings
from .attention_scored import asked, operands_of, scored
from .declaration import Backward, Function
from .settings import check_operands, check_setting


def _forward(q: Any, k: Any, v: Any, sinks: Any, out: Any, lse: Any, *settings: Any, **told: Any) -> Any:
    return kernels.call(q, k, v, sinks, out, lse, rules.scores_of(q.shape[-1], *settings), **told)


def _gradient_forward(do: Any, q: Any, *arguments: Any, **told: Any) -> Any:
    from ..kernels import attention_backward

    operands, gradients, settings = arguments[:6], arguments[6:10], arguments[10:]
    scores = rules.scores_of(q.shape[-1], *settings)
    return attention_backward.call((do, q, *operands), gradients, scores, settings[2], **told)


ATTENTION_BACKWARD = Function(
    "attention_backward",
    "Tensor do, Tensor q, Tensor k, Tensor v, Tensor o, Tensor lse, Tensor? dlse=None, Tensor? sinks=None",
    rules.SETTINGS,
    outputs=rules.GRADIENTS,
    results=rules.gradient_results,
    forward=_gradient_forward,
    autocast="low",
    cast=("do", "q", "k", "v", "o"),
    summed=rules.COLUMNS,
    zeros=rules.zeros_of_gradient,
)


def _gradients(saved: Any, grads: Any, settings: Any, needs: Any) -> dict[str, Any]:
    found = ATTENTION_BACKWARD(operands_of(ATTENTION_BACKWARD, saved, grads), settings)
    return dict(zip(("q", "k", "v", "sinks"), found, strict=True))


ATTENTION = Function(
    "attention",
    "Tensor q, Tensor k, Tensor v, Tensor? sinks=None",
    rules.SETTINGS,
    also="lse",
    results=rules.results,
    forward=_forward,
    key=lambda causal, scale, deterministic, *rest: kernels.scores(64, causal, scale, *rest).kind,
    numbers=lambda q, k, v, sinks, causal, scale, deterministic, *rest: (
        kernels.scores(q.shape[-1], causal, scale, *rest).numbers
    ),
    autocast="low",
    cast=("q", "k", "v"),
    summed=rules.COLUMNS,
    zeros=rules.zeros,
    backward=Backward(("q", "k", "v", "sinks", "out", "lse"), _gradients),
)


ATTENTION_SCORED = scored(ATTENTION, ATTENTION_BACKWARD)


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
    operands, settings = (
        (do, q, k, v, o, lse, dlse, sinks),
        (causal, scale, deterministic, *rules.sides(window), softcap),
    )
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
    score: Callable[..., Any] | None = None,
    score_operands: Sequence[Any] = (),
    mask: Callable[..., Any] | None = None,
    mask_operands: Sequence[Any] = (),
    lengths_q: Any = None,
    lengths_k: Any = None,
    padding: str = "right",
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
    not visited. softcap: scores become softcap * tanh(score / softcap); under one from 32 to 52, in bf16, sums overflow
    where the largest value times the number of keys is 2^69 or more. sinks: one logit for each head, (heads,), as
    float32 or the dtype of q: a term of the softmax's sum that has no value. It has a gradient. dropout_p: 0, since the
    kernels drop no scores.

    score(s, batch, head, row, col, *score_operands) is traced into the kernel: what it returns takes the place of the
    scores s (float32, scaled and capped). row (of q) and col (of k) are int32 vectors across each other. It is
    elementwise, and reads its operands by element: `s - slopes[head] * (row - col).to(pk.f32)` with slopes (heads,),
    `s + bias[head, row, col]` with bias (heads, n, m). mask(batch, head, row, col, *mask_operands) says which keys are
    seen: `documents[batch, row] == documents[batch, col]`. Operands, four in all, have one to four dimensions, and are
    floats of 16 or 32 bits, or integers of 8 or 32; the first of four and of three dimensions are indexed by scalars.
    What lies past their last two dimensions is 0. A row that sees nothing is zero. torch's gradients follow from the
    function's derivative (`pk.vjp`), those of a score's operands too, which are added up in float32 in any order (not
    with `deterministic`). torch.compile takes functions without closures and defaults.

    lengths_q, lengths_k: how many rows of each entry of the batch are its sequence, (batch,) 32-bit integers on the
    device of q: the first ones, or with padding "left" the last. Others are not seen, and not visited in whole tiles;
    their output and gradients are zero. They are a mask, of two operands.

    A NaN or an infinity among values that a row does not see may still reach it, as 0 times that, as in torch: a
    product has no masks. (Packed sequences, `attention_varlen`, never meet each other's.)

    Raises `ArgumentError` for operands that no kernel takes.
    """
    if dropout_p != 0:
        fix = "train without it, as large models do, or drop elements of the residual stream: pk.rmsnorm(x, p=...)"
        raise ArgumentError(f"attention with dropout_p={dropout_p}: the kernels drop no scores", fix=fix)
    left, right = (None, None) if window is None else rules.sides(window)
    if lengths_q is not None or lengths_k is not None:
        check_setting("attention", "bool causal", causal)
        check_operands("attention", score_operands=score_operands, mask_operands=mask_operands)
        if wrong := [x for x in (q, k) if len(getattr(x, "shape", ())) != 4]:
            said = f"attention: lengths of {getattr(wrong[0], 'shape', type(wrong[0]).__name__)}"
            raise ArgumentError(said, fix="pass arrays (batch, heads, rows, head dimension)")
        if (
            padding == "right"
            and (causal or window is not None)
            and (lengths_q is not lengths_k or q.shape[2] != k.shape[2])
        ):
            fix = "pass one array of lengths for both, pad on the left, or pass packed sequences: pk.attention_varlen"
            raise ArgumentError("attention: causal or a window, where queries and keys end at different rows", fix=fix)
        lengths = {"q": (lengths_q, q.shape[2]), "k": (lengths_k, k.shape[2])}
        mask, mask_operands = scorings.within_lengths(lengths, padding, mask, mask_operands)
    elif padding != "right":
        fix = "pass lengths_q or lengths_k, which say how many rows are none"
        raise ArgumentError(f"attention: padding={padding!r} without lengths", fix=fix)
    settings = (causal, scale, deterministic, left, right, softcap)
    if functions := asked(score, score_operands, mask, mask_operands):
        return ATTENTION_SCORED((q, k, v, sinks, *functions[0]), (*settings, *functions[1]), return_lse)
    return ATTENTION((q, k, v, sinks), settings, return_lse)
