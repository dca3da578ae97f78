"""softmax(q @ k.T * scale) @ v, with windows, a cap of scores, sinks; and its gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..errors import ArgumentError
from ..interop import arrays
from ..kernels import attention as kernels
from . import attention_rules as rules
from . import scorings
from .declaration import Backward, Function, Result
from .scorings import MOST


def _forward(q: Any, k: Any, v: Any, sinks: Any, out: Any, lse: Any, *settings: Any) -> Any:
    return kernels.call(q, k, v, sinks, out, lse, rules.scores_of(q.shape[-1], *settings))


def _gradient_forward(do: Any, q: Any, *arguments: Any) -> Any:
    from ..kernels import attention_backward

    operands, gradients, settings = arguments[:6], arguments[6:10], arguments[10:]
    return attention_backward.call((do, q, *operands), gradients, rules.scores_of(q.shape[-1], *settings), settings[2])


ATTENTION_BACKWARD = Function(
    "attention_backward",
    "Tensor do, Tensor q, Tensor k, Tensor v, Tensor o, Tensor lse, Tensor? dlse=None, Tensor? sinks=None",
    rules.SETTINGS,
    outputs=rules.GRADIENTS,
    results=rules.gradient_results,
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
    backward=Backward(("q", "k", "v", "sinks", "out", "lse"), _gradients),
)


NONE = Result((0,), "f32")  # that nobody wants


def near(q: Any, k: Any) -> bool:
    """Whether positions are small enough to be converted without a conversion."""
    return bool(max(q.shape[2], k.shape[2]) <= 2**20)


def _results_scored(q: Any, k: Any, v: Any, sinks: Any, *rest: Any) -> tuple[Result, ...]:
    tables, (*settings, number, split) = rest[:MOST], rest[MOST:]
    results = rules.results(q, k, v, sinks, *settings)
    scorings.check_lengths(scorings.known_of(number, split, tables), tables, *q.shape[:2])
    return results


def _forward_scored(q: Any, k: Any, v: Any, sinks: Any, *rest: Any) -> Any:
    tables, (out, lse, *settings, number, split) = rest[:MOST], rest[MOST:]
    given = [x for x in tables if x is not None]
    known = scorings.known_of(number, split, [arrays.describe(x) for x in given], near(q, k))
    scores = rules.scores_of(q.shape[-1], *settings)
    return kernels.call(q, k, v, sinks, out, lse, scores, scoring=known.scoring, tables=given, alike=known.alike)


TABLES = ", ".join(f"Tensor? operand{i}=None" for i in range(MOST))


def _gradient_results_scored(*given: Any) -> tuple[Result, ...]:
    rows, tables, (*settings, _, _, wanted) = given[:8], given[8 : 8 + MOST], given[8 + MOST :]
    if settings[2] and wanted:
        fix = "leave out deterministic=True, or detach the operands"
        raise ArgumentError("attention: gradients of a score's operands are added in any order", fix=fix)
    made = [Result(x.shape, "f32") if x is not None and wanted >> i & 1 else NONE for i, x in enumerate(tables)]
    return (*rules.gradient_results(*rows, *settings), *made)


def _gradient_forward_scored(do: Any, q: Any, *given: Any) -> Any:
    from ..kernels import attention_backward

    rows, tables, rest = given[:6], given[6 : 6 + MOST], given[6 + MOST :]
    gradients, dtables, (*settings, number, split, _) = rest[:4], rest[4 : 4 + MOST], rest[4 + MOST :]
    theirs = [x for x in tables if x is not None]
    known = scorings.known_of(number, split, [arrays.describe(x) for x in theirs], near(q, given[0]))
    told: Any = {"scoring": known.scoring, "tables": theirs, "dtables": dtables[: len(theirs)], "alike": known.alike}
    scores = rules.scores_of(q.shape[-1], *settings)
    return attention_backward.call((do, q, *rows), gradients, scores, settings[2], **told)


ATTENTION_SCORED_BACKWARD = Function(
    "attention_scored_backward",
    f"{ATTENTION_BACKWARD.operands}, {TABLES}",
    f"{rules.SETTINGS}, int scoring=0, int split=0, int wanted=0",
    outputs=(*rules.GRADIENTS, *(f"d{i}" for i in range(MOST))),
    results=_gradient_results_scored,
    forward=_gradient_forward_scored,
    autocast="low",
    cast=("do", "q", "k", "v", "o"),
)


def _gradients_scored(saved: Any, grads: Any, settings: Any, needs: Any) -> dict[str, Any]:
    do = saved.out.new_zeros(saved.out.shape) if grads.out is None else grads.out
    names = [f"operand{i}" for i in range(MOST)]
    tables = [getattr(saved, x) for x in names]
    wanted = sum(1 << i for i, x in enumerate(names) if getattr(needs, x))
    operands = (do, saved.q, saved.k, saved.v, saved.out, saved.lse, grads.lse, saved.sinks, *tables)
    found = ATTENTION_SCORED_BACKWARD(operands, (*vars(settings).values(), wanted))
    theirs = [
        d.to(x.dtype) if wanted >> i & 1 else None for i, (x, d) in enumerate(zip(tables, found[4:], strict=True))
    ]
    return dict(zip(("q", "k", "v", "sinks", *names), (*found[:4], *theirs), strict=True))


ATTENTION_SCORED = Function(
    "attention_scored",
    f"{ATTENTION.operands}, {TABLES}",
    f"{rules.SETTINGS}, int scoring=0, int split=0",
    also="lse",
    results=_results_scored,
    forward=_forward_scored,
    autocast="low",
    cast=("q", "k", "v"),
    backward=Backward(("q", "k", "v", "sinks", *(f"operand{i}" for i in range(MOST)), "out", "lse"), _gradients_scored),
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
    not visited. softcap: scores become softcap * tanh(score / softcap). sinks: one logit for each head, (heads,), as
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
    with `deterministic`). torch.compile does not take it.

    lengths_q, lengths_k: how many rows of each entry of the batch are its sequence, (batch,) 32-bit integers on the
    device of q: the first ones, or with padding "left" the last. Others are not seen, and not visited in whole tiles;
    their output and gradients are zero. They are a mask, of two operands.

    Raises `ArgumentError` for operands that no kernel takes.
    """
    if dropout_p != 0:
        fix = "train without it, as large models do, or drop elements of the residual stream: pk.rmsnorm(x, p=...)"
        raise ArgumentError(f"attention with dropout_p={dropout_p}: the kernels drop no scores", fix=fix)
    left, right = (None, None) if window is None else rules.sides(window)
    if lengths_q is not None or lengths_k is not None:
        if (
            padding == "right"
            and (causal or window is not None)
            and (lengths_q is not lengths_k or q.shape[2] != k.shape[2])
        ):
            fix = "pass one array of lengths for both, pad on the left, or pass packed sequences: pk.attention_varlen"
            raise ArgumentError("attention: causal or a window, where queries and keys end at different rows", fix=fix)
        lengths = {"q": (lengths_q, q.shape[2]), "k": (lengths_k, k.shape[2])}
        mask, mask_operands = scorings.within_lengths(lengths, padding, mask, mask_operands)
    settings = (causal, scale, deterministic, left, right, softcap)
    if score is not None or mask is not None:
        tables = (*score_operands, *mask_operands)
        if len(tables) > MOST:
            raise ArgumentError(f"attention: {len(tables)} operands of score and mask", fix=f"at most {MOST}")
        told = (*settings, scorings.number_of(score, mask), len(score_operands))
        return ATTENTION_SCORED((q, k, v, sinks, *tables, *[None] * (MOST - len(tables))), told, return_lse)
    for name, operands in (("score", score_operands), ("mask", mask_operands)):
        if operands:
            fix = f"pass {name}=, which reads them, or leave {name}_operands= out"
            raise ArgumentError(f"attention: {len(operands)} operands of no {name} function", fix=fix)
    return ATTENTION((q, k, v, sinks), settings, return_lse)
