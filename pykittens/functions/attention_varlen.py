"""Attention of sequences that lie one after another in the rows of q, k and v, and its gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import ArgumentError
from ..interop import arrays
from ..interop.arrays import ArrayInfo
from ..interop.views import View
from ..kernels import attention as kernels
from . import attention_rules as rules
from .attention_scored import asked, operands_of, scored
from .declaration import Backward, Function, Result

PACKED = "Tensor cu_seqlens_q, Tensor cu_seqlens_k"


def _heads_first(x: ArrayInfo | None) -> ArrayInfo | None:
    """What `_view` makes of (rows, heads, d), as far as it is known."""
    if x is None or len(x.shape) != 3:
        return x
    return x._replace(shape=(1, x.shape[1], x.shape[0], x.shape[2]))


def _check(q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, sinks: Any, settings: Any) -> None:
    infos = {"q": q, "k": k, "v": v}
    if any(len(x.shape) != 3 for x in infos.values()):
        said = ", ".join(f"{name} {x.dtype} {tuple(x.shape)}" for name, x in infos.items())
        raise ArgumentError(
            f"attention_varlen of {said}", fix="q, k and v have three dimensions: rows, heads, head dimension"
        )
    kernels.check({name: _heads_first(x) for name, x in infos.items()}, settings[2], sinks)  # type: ignore[misc]
    rules.scores_of(64, *settings)
    for name, x in (("cu_seqlens_q", cu_q), ("cu_seqlens_k", cu_k)):
        if x.dtype != "i32" or len(x.shape) != 1:
            raise ArgumentError(
                f"attention_varlen: {name} is {x.dtype} {tuple(x.shape)}",
                fix="pass where sequences begin, and the end of the last: (sequences + 1,), 32-bit integers",
            )
    if cu_q.shape[0] != cu_k.shape[0] or (cu_q.shape[0] < 2 and (q.shape[0] > 0 or k.shape[0] > 0)):
        raise ArgumentError(
            f"attention_varlen: {cu_q.shape[0]} offsets of queries, {cu_k.shape[0]} of keys",
            fix="pass as many of both, one more than there are sequences",
        )


def _check_offsets(name: str, given: Any, rows: int) -> None:
    """Those on the CPU can be looked at; on a GPU nothing lies outside of the tensors that is read or written."""
    if arrays.describe(given).device is not None:
        return
    values = np.asarray(arrays.as_numpy(given)).astype(np.int64)
    if values[0] != 0 or values[-1] != rows or (np.diff(values) < 0).any():
        raise ArgumentError(
            f"attention_varlen: {name} are {values.tolist() if len(values) < 10 else values} for {rows} rows",
            fix="offsets begin with 0, do not decrease, and end with the number of rows",
        )


def _view(x: Any) -> Any:
    """(rows, heads, d) as (1, heads, rows, d), in place; a row of (heads, rows) as (1, heads, rows)."""
    if x is None:
        return None
    info = arrays.describe(x)
    if len(info.shape) == 2:
        return View(x, (1, *info.shape), (0, *info.strides))
    rows, heads, d = info.shape
    a, b, c = info.strides
    if not kernels.loadable(info):
        x, a, b, c = arrays.dense_copy(x, "operand"), heads * d, d, 1
    return View(x, (1, heads, rows, d), (0, b, a, c))


def _results(q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, sinks: Any, *settings: Any) -> tuple[Result, ...]:
    _check(q, k, v, cu_q, cu_k, sinks, settings)
    lse = Result((q.shape[1], q.shape[0]), "f32", nothing=rules.lse_of_no_keys)
    return rules.like_q(q, v), lse


def _forward(
    q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, sinks: Any, out: Any, lse: Any, *settings: Any, **told: Any
) -> kernels.KernelCall:
    _check_offsets("cu_seqlens_q", cu_q, q.shape[0])
    _check_offsets("cu_seqlens_k", cu_k, k.shape[0])
    scores = rules.scores_of(q.shape[-1], *settings)
    return kernels.call(_view(q), _view(k), _view(v), sinks, _view(out), _view(lse), scores, (cu_q, cu_k), **told)


def _gradient_results(
    do: Any, q: Any, k: Any, v: Any, o: Any, lse: Any, cu_q: Any, cu_k: Any, dlse: Any, sinks: Any, *settings: Any
) -> tuple[Result, ...]:
    _check(q, k, v, cu_q, cu_k, sinks, settings)
    dsinks = Result((0,), "f32") if sinks is None else Result(sinks.shape, sinks.dtype, nothing=_dsinks_of_no_keys)
    return (*(Result(x.shape, x.dtype, order=name) for name, x in (("q", q), ("k", k), ("v", v))), dsinks)


def _dsinks_of_no_keys(operands: Any) -> Any:
    dlse = operands["dlse"]
    return 0.0 if dlse is None or 0 in dlse.shape else dlse.sum(1)


def _gradient_forward(
    do: Any, q: Any, k: Any, v: Any, o: Any, lse: Any, cu_q: Any, cu_k: Any, *rest: Any, **told: Any
) -> Any:
    from ..kernels import attention_backward

    (dlse, sinks), gradients, settings = rest[:2], rest[2:6], rest[6:]
    given = (*map(_view, (do, q, k, v, o, lse, dlse)), sinks)
    scores = rules.scores_of(q.shape[-1], *settings)
    made = (*map(_view, gradients[:3]), gradients[3])
    return attention_backward.call(given, made, scores, settings[2], (cu_q, cu_k), **told)


ATTENTION_VARLEN_BACKWARD = Function(
    "attention_varlen_backward",
    f"Tensor do, Tensor q, Tensor k, Tensor v, Tensor o, Tensor lse, {PACKED}, Tensor? dlse=None, Tensor? sinks=None",
    rules.SETTINGS,
    outputs=rules.GRADIENTS,
    results=_gradient_results,
    forward=_gradient_forward,
    autocast="low",
    cast=("do", "q", "k", "v", "o"),
    summed=rules.COLUMNS,
    zeros=rules.zeros_of_gradient,
)


def _gradients(saved: Any, grads: Any, settings: Any, needs: Any) -> dict[str, Any]:
    given = operands_of(ATTENTION_VARLEN_BACKWARD, saved, grads)
    found = ATTENTION_VARLEN_BACKWARD(given, settings)
    return dict(zip(("q", "k", "v", "sinks"), found, strict=True))


ATTENTION_VARLEN = Function(
    "attention_varlen",
    f"Tensor q, Tensor k, Tensor v, {PACKED}, Tensor? sinks=None",
    rules.SETTINGS,
    also="lse",
    results=_results,
    forward=_forward,
    key=lambda *settings: rules.scores_of(64, *settings).kind,
    numbers=lambda q, k, v, cu_q, cu_k, sinks, *settings: rules.scores_of(q.shape[-1], *settings).numbers,
    autocast="low",
    cast=("q", "k", "v"),
    summed=rules.COLUMNS,
    zeros=rules.zeros,
    backward=Backward(("q", "k", "v", "cu_seqlens_q", "cu_seqlens_k", "sinks", "out", "lse"), _gradients),
)

ATTENTION_VARLEN_SCORED = scored(ATTENTION_VARLEN, ATTENTION_VARLEN_BACKWARD)


def attention_varlen(
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any = None,
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
) -> Any:
    """`attention` of sequences of any lengths that lie one after another: each sees its own keys only.

    q: (rows, heads, d), k and v: (rows of keys, key heads, d). Sequence i has the rows of q from cu_seqlens_q[i] to
    cu_seqlens_q[i + 1] - 1, and those of k and v by cu_seqlens_k, which is cu_seqlens_q unless given: (sequences + 1,)
    32-bit integers that begin with 0, do not decrease and end with the number of rows. Sequences may be empty. The
    offsets stay where they are: nothing waits for a GPU, and a CUDA graph may be replayed with others. The settings
    `causal`, `scale`, `window`, `softcap`, `sinks`, `return_lse` and `deterministic` are those of `attention`, for each
    sequence. The result is like q; log-sum-exp is float32 (heads, rows).

    score(s, batch, head, row, col, *score_operands) and mask(batch, head, row, col, *mask_operands) are those of
    `attention`, where batch is the number of the sequence, and row and col are positions within it, from 0. What
    belongs to packed rows is found by their offsets, which are an operand like others: `x[offsets[batch] + row]`.

    Raises `ArgumentError` for operands that no kernel takes, and for wrong offsets on the CPU. Rows behind the
    last sequence are zero, in the gradients too, and -inf in the log-sum-exp.
    """
    settings = (causal, scale, deterministic, *rules.sides(window), softcap)
    cu_seqlens_k = cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k
    operands = (q, k, v, cu_seqlens_q, cu_seqlens_k, sinks)
    if functions := asked(score, score_operands, mask, mask_operands):
        return ATTENTION_VARLEN_SCORED((*operands, *functions[0]), (*settings, *functions[1]), return_lse)
    return ATTENTION_VARLEN(operands, settings, return_lse)
