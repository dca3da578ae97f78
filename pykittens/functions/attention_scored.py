"""Attention with functions of scores: an operator of attention, dense or packed, that is told of them as well.

Its operands are those of the plain one and then the functions' own, `MOST` of them; its settings those of the plain one
and then the number that stands for the functions (see `scorings.py`) and how many operands are the score's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import ArgumentError
from ..interop import arrays
from ..interop.arrays import ArrayInfo
from . import scorings
from .compiled import tracing
from .declaration import Backward, Function, Result
from .scorings import MOST
from .settings import NOTHING, check_operands

NEAR = 2**20  # positions up to this are converted without a conversion
NAMES = tuple(f"operand{i}" for i in range(MOST))
TABLES = ", ".join(f"Tensor? {name}=None" for name in NAMES)
NONE = Result((0,), "f32")  # that nobody wants
_DETERMINISTIC = 2  # its place among the settings


def scored(plain: Function, backward: Function) -> Function:
    """`plain` with a score function and a mask; `backward`: its gradients without them."""
    pullback, count = _backward(backward), len(plain.names)

    def results(*given: Any) -> tuple[Result, ...]:
        own, tables, (*settings, number, split) = _parts(given, count)
        found = plain.results(*own, *settings)
        batch, heads, _ = _extent(plain, own)
        scorings.check_lengths(scorings.known_of(number, split, tables), tables, {"batch": batch, "head": (heads,)})
        return found

    def forward(*given: Any) -> Any:
        own, tables, (out, lse, *settings, number, split) = _parts(given, count)
        return plain.forward(*own, out, lse, *settings, **_told(plain, own, tables, number, split))

    def gradients(saved: Any, grads: Any, settings: Any, needs: Any) -> dict[str, Any]:
        tables = [getattr(saved, x) for x in NAMES]
        wanted = sum(1 << i for i, x in enumerate(NAMES) if getattr(needs, x))
        found = pullback((*operands_of(backward, saved, grads), *tables), (*settings, wanted))
        theirs = [
            d.to(x.dtype) if wanted >> i & 1 else None for i, (x, d) in enumerate(zip(tables, found[4:], strict=True))
        ]
        return dict(zip(("q", "k", "v", "sinks", *NAMES), (*found[:4], *theirs), strict=True))

    return Function(
        f"{plain.name}_scored",
        f"{plain.operands}, {TABLES}",
        f"{plain.settings}, int scoring=0, int split=0",
        also="lse",
        results=results,
        forward=forward,
        autocast="low",
        cast=plain.cast,
        summed=plain.summed,
        zeros=plain.zeros,
        backward=Backward((*plain.names, *NAMES, "out", "lse"), gradients),
    )


def _backward(plain: Function) -> Function:
    """The gradients, and those of the functions' operands whose bits are set in `wanted`, in float32."""
    count, outputs = len(plain.names), len(plain.outputs)

    def results(*given: Any) -> tuple[Result, ...]:
        own, tables, (*settings, _, _, wanted) = _parts(given, count)
        if settings[_DETERMINISTIC] and wanted:
            fix = "leave out deterministic=True, or detach the operands"
            raise ArgumentError("attention: gradients of a score's operands are added in any order", fix=fix)
        made = [Result(x.shape, "f32") if x is not None and wanted >> i & 1 else NONE for i, x in enumerate(tables)]
        return (*plain.results(*own, *settings), *made)

    def forward(*given: Any) -> Any:
        own, tables, rest = _parts(given, count)
        found, dtables = rest[:outputs], rest[outputs : outputs + MOST]
        *settings, number, split, _ = rest[outputs + MOST :]
        told = _told(plain, own, tables, number, split)
        return plain.forward(*own, *found, *settings, **told, dtables=dtables[: len(told["tables"])])

    return Function(
        plain.name.replace("_backward", "_scored_backward"),
        f"{plain.operands}, {TABLES}",
        f"{plain.settings}, int scoring=0, int split=0, int wanted=0",
        outputs=(*plain.outputs, *(f"d{i}" for i in range(MOST))),
        results=results,
        forward=forward,
        autocast="low",
        cast=plain.cast,
        summed=plain.summed,
        zeros=plain.zeros,
    )


def operands_of(backward: Function, saved: Any, grads: Any) -> list[Any]:
    """What a backward operator is called with, from what the forward pass saved and the results' gradients."""
    do = saved.out.new_zeros(saved.out.shape) if grads.out is None else grads.out
    own = {"do": do, "o": saved.out, "dlse": grads.lse}
    return [own[x] if x in own else getattr(saved, x) for x in backward.names]


def asked(
    score: Callable[..., Any] | None,
    score_operands: Sequence[Any],
    mask: Callable[..., Any] | None,
    mask_operands: Sequence[Any],
) -> tuple[tuple[Any, ...], tuple[int, int]] | None:
    """What an operator is given of a call's functions: operands and settings; None without functions.

    Raises `ArgumentError` for operands that no function reads, and too many.
    """
    if score is None and mask is None and score_operands is mask_operands is NOTHING:  # no call more for most
        return None
    check_operands("attention", score_operands=score_operands, mask_operands=mask_operands)
    if score is None and mask is None:
        for name, operands in (("score", score_operands), ("mask", mask_operands)):
            if operands:
                fix = f"pass {name}=, which reads them, or leave {name}_operands= out"
                raise ArgumentError(f"attention: {len(operands)} operands of no {name} function", fix=fix)
        return None
    tables = (*score_operands, *mask_operands)
    if len(tables) > MOST:
        raise ArgumentError(f"attention: {len(tables)} operands of score and mask", fix=f"at most {MOST}")
    return (*tables, *[None] * (MOST - len(tables))), (scorings.number_of(score, mask, tracing()), len(score_operands))


def _parts(given: Sequence[Any], count: int) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
    """The plain operands, the functions', and what follows."""
    return given[:count], given[count : count + MOST], given[count + MOST :]


def _extent(plain: Function, operands: Sequence[Any]) -> tuple[tuple[Any, ...], Any, Any]:
    """Entries of the batch (packed: sequences, or their offsets), heads, and rows or keys, whichever are more."""
    given: Mapping[str, Any] = dict(zip(plain.names, operands, strict=True))
    q, k, offsets = given["q"], given["k"], given.get("cu_seqlens_q")
    if offsets is None:
        return (q.shape[0],), q.shape[1], max(q.shape[2], k.shape[2])
    return (offsets.shape[0] - 1, offsets.shape[0]), q.shape[1], max(q.shape[0], k.shape[0])


def _told(plain: Function, operands: Sequence[Any], tables: Sequence[Any], number: int, split: int) -> dict[str, Any]:
    """What the kernels are told of functions."""
    given = [x for x in tables if x is not None]
    infos: list[ArrayInfo | None] = [arrays.describe(x) for x in given]
    known = scorings.known_of(number, split, infos, bool(_extent(plain, operands)[2] <= NEAR))
    return {"scoring": known.scoring, "tables": given, "alike": known.alike}
