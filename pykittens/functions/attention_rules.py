"""What all functions of attention share: settings, shapes of results, refusals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ArgumentError
from ..kernels import attention as kernels
from .declaration import Result

SETTINGS = (
    "bool causal=False, float? scale=None, bool deterministic=False, "
    "int? left=None, int? right=None, float? softcap=None"
)
GRADIENTS = ("dq", "dk", "dv", "dsinks")
COLUMNS = dict.fromkeys(("q", "k", "v", "k_cache", "v_cache", "do", "o"), -1)  # of which there may be none


def scores_of(
    dim: Any,
    causal: bool,
    scale: float | None,
    deterministic: bool,
    left: int | None,
    right: int | None,
    softcap: float | None,
) -> kernels.Scores:
    return kernels.scores(dim, causal, scale, left, right, softcap)


def check(q: Any, k: Any, v: Any, sinks: Any, settings: Any) -> None:
    kernels.check({"q": q, "k": k, "v": v}, settings[2], sinks)
    scores_of(64, *settings)


def results(q: Any, k: Any, v: Any, sinks: Any, *settings: Any) -> tuple[Result, ...]:
    check(q, k, v, sinks, settings)
    return like_q(q, v), Result(q.shape[:3], "f32", nothing=lse_of_no_keys)


def like_q(q: Any, v: Any) -> Result:
    """The output: rows of q with the columns of v."""
    return Result((*q.shape[:-1], v.shape[-1]), q.dtype, order="q" if q.shape[-1] == v.shape[-1] else "")


def lse_of_no_keys(operands: Mapping[str, Any]) -> Any:
    sinks = operands["sinks"]
    return float("-inf") if sinks is None else sinks[:, None]


def gradient_results(
    do: Any, q: Any, k: Any, v: Any, o: Any, lse: Any, dlse: Any, sinks: Any, *settings: Any
) -> tuple[Result, ...]:
    check(q, k, v, sinks, settings)
    wanted = {
        "do": (like_q(q, v).shape, q.dtype),
        "o": (like_q(q, v).shape, q.dtype),
        "lse": (q.shape[:3], "f32"),
        "dlse": (q.shape[:3], "f32"),
    }
    for (name, (shape, dtype)), x in zip(wanted.items(), (do, o, lse, dlse), strict=True):
        if x is not None and (x.dtype != dtype or tuple(x.shape) != tuple(shape)):
            said = f"{name} is {x.dtype} {tuple(x.shape)}, where {dtype} {tuple(shape)} is needed"
            raise ArgumentError(
                f"attention_backward: {said}", fix="pass what pk.attention(..., return_lse=True) returned"
            )
    dsinks = Result((0,), "f32") if sinks is None else Result(sinks.shape, sinks.dtype, nothing=dsinks_of_no_keys)
    return (*(Result(x.shape, x.dtype, order=name) for name, x in (("q", q), ("k", k), ("v", v))), dsinks)


def dsinks_of_no_keys(operands: Mapping[str, Any]) -> Any:
    """Rows that see nothing but the sink have its logit as their log-sum-exp."""
    dlse = operands["dlse"]
    return 0.0 if dlse is None or 0 in dlse.shape else dlse.sum((0, 2))


def zeros(q: Any, k: Any, v: Any, *_: Any) -> int:
    """Columns of zeros that stand for none of queries and keys, or of values: as many as kernels take."""
    return max(16 if v.dtype == "e4m3" else 8, v.shape[-1])


def zeros_of_gradient(do: Any, *rest: Any) -> int:
    return zeros(*rest)


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
