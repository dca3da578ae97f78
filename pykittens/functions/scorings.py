"""Score functions and masks of attention: which number stands for which, and what is known of each before it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from ..call.arguments import spec
from ..call.identity import identity
from ..call.kernel import kernel
from ..errors import ArgumentError
from ..interop.arrays import ArrayInfo, Unsupported, describe
from ..kernels.arguments import values_of
from ..program import Value
from ..trace.hopper import warpgroup
from ..trace.memory import Tensor
from ..trace.recorder import current
from ..trace.scalar import Scalar
from ..trace.scoring import TABLES, Scoring, Where
from ..types import DTYPES, f32, i32
from .compiled import check_constant, told, tracing

MOST = 4  # operands of a score function and a mask together


class KnownScoring(NamedTuple):
    """A score function and a mask with operands of some ranks and dtypes."""

    scoring: Scoring
    alike: tuple[bool, bool]  # whether the mask is the same for all of a batch, and for all heads
    lengths: tuple[
        tuple[str, ...], ...
    ]  # for each dimension of each operand "batch", "head" or nothing: what indexes it


# By number, so that operators can be told of them: the first of the same content, since a lambda is made anew for each
# call.
_numbers: dict[Any, int] = {}
_functions: list[tuple[Callable[..., Any] | None, Callable[..., Any] | None]] = []
_known: dict[Any, KnownScoring] = {}


@told
def number_of(score: Any, mask: Any, compiled: bool = False) -> int:
    """The setting that stands for a score function and a mask; either may be None. compiled: it is kept in a graph of
    torch's compiler."""
    for name, x in (("score", score), ("mask", mask)):
        if x is not None and not callable(x):
            fix = (
                "pass a function of (s, batch, head, row, col)"
                if name == "score"
                else "pass one of (batch, head, row, col)"
            )
            raise ArgumentError(f"attention: {name} is {x!r:.60}", fix=fix)
        if x is not None and compiled:
            check_constant(x, f"the {name}")
    key = tuple(x and identity(x, static=True) for x in (score, mask))
    number = _numbers.setdefault(key, len(_functions))
    if number == len(_functions):
        _functions.append((score, mask))
    return number


def known_of(number: int, split: int, operands: Sequence[ArrayInfo | None], near: bool = False) -> KnownScoring:
    """What a number stands for with operands like these, of which the first `split` are the score's; near: for at most
    2**20 queries and keys.

    Raises what tracing the functions raises, and `ArgumentError` for operands that are no tables.
    """
    given = [x for x in operands if x is not None]
    for i, x in enumerate(given):
        if x.dtype not in (d.name for d in TABLES) or not 1 <= len(x.shape) <= 4:
            names = ", ".join(d.name for d in TABLES)
            said = f"attention: operand {i} of score and mask is {x.dtype} {tuple(x.shape)}"
            raise ArgumentError(said, fix=f"pass one to four dimensions of {names}")
    key = (number, split, near, *((len(x.shape), x.dtype) for x in given))
    if key not in _known:
        _known[key] = _look(Scoring(*_functions[number], *_ranks(given, split), near), given)
    return _known[key]


def _ranks(given: Sequence[ArrayInfo], split: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    ranks = tuple(len(x.shape) for x in given)
    return ranks[:split], ranks[split:]


def check_lengths(
    known: KnownScoring, operands: Sequence[ArrayInfo | None], wanted: Mapping[str, tuple[Any, ...]]
) -> None:
    """Raises `ArgumentError` for an operand that is shorter or longer than what it is indexed by. wanted: how many
    there are of each, or a second number that is as good.
    """
    given = [x for x in operands if x is not None]
    for i, (x, names) in enumerate(zip(given, known.lengths, strict=True)):
        for axis, name in enumerate(names):
            if name and x.shape[axis] not in wanted[name]:
                said = f"attention: operand {i} of score and mask has shape {tuple(x.shape)}, indexed by {name}"
                raise ArgumentError(said, fix=f"pass {wanted[name][0]} in dimension {axis}")


@kernel
def look(
    batch: Annotated[Scalar, i32],
    head: Annotated[Scalar, i32],
    row: Annotated[Scalar, i32],
    col: Annotated[Scalar, i32],
    o0: Annotated[Tensor, TABLES, "A0", "B0", "C0", "D0"] | None = None,
    o1: Annotated[Tensor, TABLES, "A1", "B1", "C1", "D1"] | None = None,
    o2: Annotated[Tensor, TABLES, "A2", "B2", "C2", "D2"] | None = None,
    o3: Annotated[Tensor, TABLES, "A3", "B3", "C3", "D3"] | None = None,
    *,
    scoring: Scoring,
) -> None:
    """The functions of one tile, traced to see what they do; it never runs."""
    s, where, tables = warpgroup.zeros(f32, 64, 64), Where(batch, head, row, col), (o0, o1, o2, o3)
    facts, ops = current().program.facts, current().block.ops
    if scoring.score is not None:
        scoring.scores(s, where, tables)
    begin = len(ops)
    if scoring.mask is not None:
        scoring.seen(s, where, tables)
    named: dict[Value, str] = {batch: "batch", head: "head"}
    facts["mask by"] = {named[x] for op in ops[begin:] for x in op.operands() if x in named}
    numbers = {x: i for i, x in enumerate(tables) if x is not None}
    facts["lengths"] = {
        (numbers[x], axis): named[index]
        for x, key in facts.get("tables", ())
        for axis, index in enumerate(key)
        if isinstance(index, Value) and index in named
    }


def _look(scoring: Scoring, given: Sequence[ArrayInfo]) -> KnownScoring:
    specs = [spec(DTYPES[x.dtype], (2,) * 4) for x in given]
    facts = look.program(0, 0, 0, 0, *specs, scoring=scoring).facts
    lengths = tuple(
        tuple(facts["lengths"].get((i, axis), "") for axis in range(len(x.shape))) for i, x in enumerate(given)
    )
    return KnownScoring(scoring, ("batch" not in facts["mask by"], "head" not in facts["mask by"]), lengths)


def within_lengths(
    lengths: Mapping[str, tuple[Any, Any]], padding: str, mask: Any, operands: Sequence[Any]
) -> tuple[Callable[..., Any], Sequence[Any]]:
    """A mask that shows the rows of sequences only, of those that `mask` shows, and its operands.

    lengths: of "q" and "k" those of each entry, or None, and the padded length.
    """
    if padding not in ("left", "right"):
        raise ArgumentError(f"attention: padding={padding!r}", fix='pass "left" or "right": the side of what is none')
    given = [name for name, (x, _) in lengths.items() if x is not None]
    if not tracing():
        for name in given:
            _check_lengths_within(f"lengths_{name}", *lengths[name])
    ends = [lengths[name][0] if padding == "right" else lengths[name][1] - lengths[name][0] for name in given]
    return _bounded(tuple(given), padding == "right", mask), (*ends, *operands)


def _check_lengths_within(name: str, lengths: Any, rows: int) -> None:
    """Raises `ArgumentError` for lengths of no such many rows, where they may be looked at."""
    try:
        info = describe(lengths, name)
    except Unsupported:  # said with all operands
        return
    if info.dtype != "i32":
        said = f"attention: {name} is {info.dtype} {tuple(info.shape)}"
        raise ArgumentError(said, fix="pass a 32-bit integer for each entry of the batch")
    if (values := values_of(lengths)) is not None and ((values < 0) | (values > rows)).any():
        said = f"attention: {name} is {values.tolist() if values.size < 10 else values} for {rows} rows"
        raise ArgumentError(said, fix=f"pass 0 to {rows} for each entry of the batch")


def _bounded(names: tuple[str, ...], first: bool, mask: Callable[..., Any] | None) -> Callable[..., Any]:
    def bounded(batch: Any, head: Any, row: Any, col: Any, *tables: Any) -> Any:
        seen = None if mask is None else mask(batch, head, row, col, *tables[len(names) :])
        for name, table in zip(names, tables, strict=False):
            position, end = row if name == "q" else col, table[batch]
            inside = position < end if first else position >= end
            seen = inside if seen is None else seen & inside
        return seen

    return bounded
