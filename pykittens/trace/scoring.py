"""Functions of a user that an attention kernel makes its scores with, and decides with which of them are seen.

    score(s, batch, head, row, col, *tables) -> tile        mask(batch, head, row, col, *tables) -> bool tile

s: float32 scores, scaled. batch and head are scalars; row (the query) and col (the key) are int32 vectors, across one
another, so that `row - col` is a tile like s: whether queries lie along its rows or, in a backward pass, along its
columns is the kernel's business. `tables` are tensors that are read by element: `slopes[head]`, `ids[batch, row]`,
`bias[head, row - col + 511]`; what lies past the end of their last two dimensions is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from math import inf
from typing import Any, NamedTuple

from ..errors import TraceError, defined
from ..ops import binary, element, fill, thread_indices
from ..ops.indexed import Gather
from ..ops.scatter import ScatterReduce
from ..program import Op, Value, mapped
from ..types import RegisterTile, RegisterVector, ScalarType, bf16, bool_, f16, f32, i8, i32, u8
from .derivatives import Tape
from .elementwise import col_index, fma, iota, row_index
from .elementwise import where as select
from .flow import when
from .memory import Tensor, at, place
from .recorder import current, record, scope_of
from .tile import Tile
from .wrong_calls import check_takes

NEAR = 2**20 + 2**10  # with what tiles go past the last row
_NAMES = ("batch", "head", "row", "col")
TABLES = (f32, bf16, f16, i32, u8, i8)  # dtypes of operands


class Table:
    """An operand of such a function: a tensor of `rank` dimensions, which the kernel has with four."""

    def __init__(self, tensor: Tensor, rank: int):
        self.tensor, self.rank = tensor, rank
        self.shape = tensor.shape[4 - rank :]

    def __getitem__(self, key: Any) -> Any:
        key = key if isinstance(key, tuple) else (key,)
        if len(key) != self.rank:
            fix = f"give {self.rank}: x[{', '.join(('batch', 'head', 'row', 'col')[4 - self.rank :])}]"
            raise TraceError(f"{len(key)} indices of an operand of {self.rank} dimensions", fix=fix)
        current().program.facts.setdefault("tables", []).append((self.tensor, key))
        return self.tensor[(*(0,) * (4 - self.rank), *key)]


class Where(NamedTuple):
    """Where a tile of scores lies. down: its rows are keys."""

    batch: Any
    head: Any
    query: Any
    key: Any
    down: bool = False

    def indices(self, tile: Any, near: bool = False) -> tuple[Any, Any]:
        """The queries and the keys of its elements; near: none is larger than NEAR."""
        along, across = (col_index, row_index) if self.down else (row_index, col_index)
        found = along(tile) + self.query, across(tile) + self.key
        for x in found:
            x.most = NEAR if near else None
        return found


class Scoring(NamedTuple):
    """A score function and a mask, or one of them, with the ranks of their operands: the first are the score's."""

    score: Callable[..., Any] | None = None
    mask: Callable[..., Any] | None = None
    score_ranks: tuple[int, ...] = ()
    mask_ranks: tuple[int, ...] = ()
    near: bool = False  # whether there are at most NEAR queries and keys

    def apply(self, s: Any, unit: Any, where: Where, operands: Sequence[Any], masked: bool = True) -> Any:
        """What becomes of a tile of scores, given in multiples of `unit`; they stay so where there is no function."""
        made = s if self.score is None else self.scores(s * unit, where, operands)
        return self.hidden(made, where, operands) if masked else made

    def apply_in(self, s: Any, unit: Any, where: Where, operands: Sequence[Any], masked: bool, positive: bool) -> Any:
        """The same, and whether the result is in multiples of `unit`, too: so where that is known to be above 0
        (`positive`) and the function adds a product with a scalar to the scores, as ALiBi does. The scalar is divided,
        instead of all scores multiplied.
        """
        if self.score is None or not positive:
            return self.apply(s, unit, where, operands, masked), self.score is None
        scaled = s * unit
        made = self.scores(scaled, where, operands)
        op, kept = made.producer, False
        if isinstance(op, binary.Fma) and op.c is scaled:
            for a, b in ((op.a, op.b), (op.b, op.a)):
                if not kept and isinstance(b, Value) and isinstance(b.type, ScalarType):
                    made, kept = fma(a, b * (1.0 / unit), s), True
        return self.hidden(made, where, operands) if masked else made, kept

    def hidden(self, s: Any, where: Where, operands: Sequence[Any]) -> Any:
        """Scores, and -inf where the mask hides a key."""
        return s if self.mask is None else select(self.seen(s, where, operands), s, -inf)

    def scores(self, s: Any, where: Where, operands: Sequence[Any]) -> Any:
        """What the function makes of a tile of scores."""
        assert self.score is not None
        names = ("s", *_NAMES, *(f"operand{i}" for i in range(len(self.score_ranks))))
        check_takes(self.score, "the score function", names)
        tables = map(Table, operands, self.score_ranks)
        made = elementwise(self.score, "score", s, where.batch, where.head, *where.indices(s, self.near), *tables)
        if not isinstance(made, Tile) or made.type != s.type:
            what = made.type if isinstance(made, Value) else repr(made)
            fix = "return what the first argument became: lambda s, batch, head, row, col: s * 2.0"
            said = f"the score function returns {what}, of a {s.type}"
            raise TraceError(said, fix=fix, location=defined(self.score))
        return made

    def seen(self, s: Any, where: Where, operands: Sequence[Any]) -> Any:
        """Which elements of a tile like s are seen, as the mask says."""
        assert self.mask is not None
        check_takes(self.mask, "the mask", (*_NAMES, *(f"operand{i}" for i in range(len(self.mask_ranks)))))
        tables = map(Table, operands[len(self.score_ranks) :], self.mask_ranks)
        made = elementwise(self.mask, "mask", where.batch, where.head, *where.indices(s, self.near), *tables)
        if made is True or made is False or (isinstance(made, Value) and made.type == ScalarType(bool_)):
            return made
        if (
            not isinstance(made, Tile)
            or made.dtype is not bool_
            or (isinstance(made.type, RegisterTile) and made.shape != s.shape)
        ):
            what = made.type if isinstance(made, Value) else repr(made)
            fix = "compare row, col and the operands: lambda batch, head, row, col: row >= col"
            raise TraceError(f"the mask returns {what}", fix=fix, location=defined(self.mask))
        return made


PLAIN = Scoring()


class Differentiated:
    """Scores whose derivative is wanted, and then the gradients of what they were made of.

    s: scores in multiples of `unit`, as are those in `result` where there is no function. where: needed if there is
    one. gradients: for each table a float32 tensor like it that its gradient is added to, atomically, or None.
    """

    def __init__(
        self,
        scoring: Scoring | None,
        s: Any,
        unit: Any,
        where: Where | None,
        tables: Sequence[Any],
        gradients: Sequence[Any],
    ):
        self.scoring, self.tables, self.where, self.tape = scoring or PLAIN, tables, where, None
        self.gradients = {x: d for x, d in zip(tables, gradients, strict=True) if d is not None}
        if self.scoring.score is not None and where is not None:
            self.tape = Tape(lambda x: self.scoring.scores(x, where, tables), (s * unit,), [*self.gradients])
        self.result = s if self.tape is None else self.tape.result

    def hide(self, weights: Any) -> Any:
        """The weights, and 0 where the mask hides a key."""
        if self.scoring.mask is None or self.where is None:
            return weights
        return select(self.scoring.seen(weights, self.where, self.tables), weights, 0.0)

    def pull(self, cotangent: Any, chosen: Any = None) -> Any:
        """From the cotangent of the scores to that of what they were made of; adds to the tables' gradients, where
        several have the same scores, if `chosen` holds.
        """
        if self.tape is None:
            return cotangent
        loads = self.tape.loads
        first, *found = self.tape.cotangents(cotangent, [*self.tape.inputs, *(made for _, made in loads)])
        with nullcontext() if chosen is None or not loads else when(chosen):
            for (op, made), terms in zip(loads, found, strict=True):
                for term in terms:
                    self._add(op, made, term)
        return self.tape.words.total(first, cotangent.type)

    def _add(self, op: Any, made: Any, term: Any) -> None:
        """A term of the cotangent of what was read; one that was broadcast is summed first, as far as each warp can."""
        batch, depth, row, col = op.source.first
        if isinstance(op, Gather):
            known: dict[Value, Any] = {}
            row, col = anew(op.row, known), anew(op.col, known)
        if isinstance(made.type, RegisterVector) and isinstance(term.type, RegisterTile):
            several = made.type.kind == "row" and term.type.warps > 1
            term = term.row_sum() if made.type.kind == "col" else term.col_sum(partial=several)
        elif isinstance(made.type, ScalarType):
            if isinstance(term.type, RegisterTile):
                term = term.row_sum()
            row = iota(term) * 0 + row
        spot = place(self.gradients[op.source.tensor], at(batch, depth, 0, 0), (1,))
        record(ScatterReduce(scope_of(term.type.warps), spot, row, col, term))


def anew(x: Any, known: dict[Value, Any]) -> Any:
    """The same integers, computed again from positions where that is arithmetic alone: places that are added to long
    after they were read from would take a register for each element meanwhile.
    """
    if not isinstance(x, Value) or not isinstance(x.type, (RegisterTile, RegisterVector)) or x.changes:
        return x
    op = x.producer
    if x not in known:
        known[x] = x
        if isinstance(op, fill.Positions):
            known[x] = record(replace(op, anew=True)).result
        elif op is not None and op.pointwise and len(op.results) == 1 and x.type.dtype.kind in "iub":
            fields = {name: mapped(value, lambda y: anew(y, known)) for name, value in op.fields()}
            known[x] = record(replace(op, **fields)).result  # type: ignore[type-var]
    return known[x]


def elementwise(function: Callable[..., Any], what: str, *given: Any) -> Any:
    """The function of what is given, which may look at no element's neighbours."""

    def look(op: Op) -> None:
        if op.pointwise or isinstance(op, (Gather, element.LoadScalar, thread_indices.Dimension)):
            return
        touched = [x.type for x in (*op.operands(), *op.results)]
        scalar = not any(isinstance(t, (RegisterTile, RegisterVector)) for t in touched)
        if scalar and not (op.effects() or op.blocks() or op.writes):
            return
        fix = "make each element of its own score, row, col and operands: pk.where to choose, x[head, row, col] to read"
        raise TraceError(
            f"{op.name} in a {what} function, which sees one element at a time", fix=fix, location=op.location
        )

    hooks = current().hooks
    hooks.append(look)
    try:
        return function(*given)
    finally:
        hooks.remove(look)
