"""Scans of lines that lie in several warps: each segment by itself, whose total goes to shared memory, then combined
with the totals of all that come before it.

A segment is what a warp holds of neighbours (`scan.segment_of`): 32 runs of a coalesced row, 8 rows of a fragment. All
have the same length and begin at multiples of it, so that place / length is the number of a segment in its line.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..layouts import Sym, fragment, vector_element
from ..loading import dataclass
from ..numerics import Numerics
from ..program import Access, CudaWriter, Effect, NumpyMachine, Op, Scope, Value
from ..thread_map import SegmentEnds
from ..types import Coalesced, RegisterTile, RegisterVector, SharedVector, Type, f32, i32, i64, u32
from .addressing import MEMORY, VECTOR, vector_address
from .arithmetic import calculate
from .broadcast import registers_of
from .global_reduce import holds_once
from .reduce import KINDS, held_c, identity, pair_text, reduction_numerics
from .samples import Sample
from .scan import Along, accumulated, lines, scan_c, segment_of


def room(type: RegisterTile | RegisterVector, along: str) -> SharedVector:
    """Room for the totals of all segments, line by line."""
    count, length = _lines(type, along)
    run, lanes, _ = segment_of(type, along)
    return SharedVector(type.dtype, count * -(-length // (run * lanes)))


def _lines(type: RegisterTile | RegisterVector, along: str) -> tuple[int, int]:
    """How many lines there are, and how long each is."""
    if isinstance(type, RegisterVector):
        return 1, type.length
    return type.shape if along == "row" else (type.cols, type.rows)  # type: ignore[return-value]


class _Segments(Op):
    """What both steps share."""

    scope: Scope
    kind: str
    a: Value
    place: Value
    along: Along
    reverse: bool

    no_vjp = "of a scan over several warps: scan on a warp, or write the sum over the other end (reverse=True)"

    @property
    def numerics(self) -> Numerics:  # type: ignore[override]
        return reduction_numerics(self.kind, registers_of(self.a).dtype)

    def types(self) -> tuple[Type, ...]:
        type = registers_of(self.a)
        assert self.place.type == room(type, self.along) and type.dtype in (f32, i32, u32, i64)
        return (type,)

    def _cut(self, array: np.ndarray, start: Any) -> np.ndarray:
        """Lines last, in segments: (units, lines, segments, length), filled with `start`."""
        lines = array[:, None] if array.ndim == 2 else array if self.along == "row" else array.swapaxes(1, 2)
        run, lanes, _ = segment_of(registers_of(self.a), self.along)
        each = run * lanes
        missing = -lines.shape[2] % each
        padded = np.pad(lines, ((0, 0), (0, 0), (0, missing)), constant_values=start)
        return padded.reshape(*lines.shape[:2], -1, each)

    def _joined(self, segments: np.ndarray) -> np.ndarray:
        type = registers_of(self.a)
        lines = segments.reshape(*segments.shape[:2], -1)[:, :, : _lines(type, self.along)[1]]
        if isinstance(type, RegisterVector):
            return lines[:, 0]
        return lines if self.along == "row" else lines.swapaxes(1, 2)

    def _number(self, c: CudaWriter, register: int) -> tuple[Any, str]:
        """C for the line and the number of the segment that a register belongs to."""
        type, warp, r = registers_of(self.a), c.warp(self.scope), Sym(str(register))
        run, lanes, _ = segment_of(type, self.along)
        if isinstance(type, RegisterVector):
            return 0, f"({vector_element(type, warp, c.lane, r)}) / {run * lanes}"
        row, col = fragment(type, warp, c.lane, r)
        line, place = (row, col) if self.along == "row" else (col, row)
        return line, f"({place}) / {run * lanes}"

    @property
    def _count(self) -> int:
        """Segments of a line."""
        return self.place.type.length // _lines(registers_of(self.a), self.along)[0]  # type: ignore[union-attr]


@dataclass(eq=False)
class ScanSegments(_Segments):
    """A scan of each segment alone; the totals to `place`."""

    scope: Scope
    kind: str
    a: Value
    place: Value
    along: Along = "row"
    reverse: bool = False

    def numpy(self, m: NumpyMachine) -> Any:
        type = registers_of(self.a)
        found = accumulated(self.kind, self._cut(m[self.a], _start(self.kind, type)), 3, self.reverse)
        m.write(self.place, found[..., 0 if self.reverse else -1].reshape(m.units, -1))
        return self._joined(found)

    def effects(self) -> tuple[Effect, ...]:
        type = registers_of(self.a)
        return (Access(self.place, "write", SegmentEnds(type, self.along, segment_of(type, self.along), self.reverse)),)

    def cuda(self, c: CudaWriter) -> None:
        c.prelude(MEMORY)
        type = registers_of(self.a)
        once = holds_once(c, self.scope, type) if isinstance(type, RegisterVector) and type.kind != "naive" else []

        def ended(total: str, register: int, last: str) -> None:
            line, number = self._number(c, register)
            at = vector_address(c, self.place, f"({line}) * {self._count} + {number}")
            inside = f"{number} < {self._count}"
            test = " && ".join(filter(None, (*once, last, inside)))
            c.line(f"if ({test}) pk_st_shared({at}, {c.raw(total, type.dtype)});")

        acc = scan_c(c, self.scope, self.kind, self.a, self.along, self.reverse, ended)
        c.map(self.result, lambda r: f"{acc}[{r}]")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for type, along, kind in _sampled():
            for reverse in (False, True):
                fields = {"kind": kind, "a": type, "place": room(type, along), "along": along, "reverse": reverse}

                def formula(a: Any, t: Any = type, x: str = along, k: str = kind, r: bool = reverse) -> Any:
                    parts = [
                        np.flip(_ufunc(k).accumulate(p[::-1]), 0) if r else _ufunc(k).accumulate(p)
                        for p in _parts(a, t, x)
                    ]
                    ends = np.stack([p[0 if r else -1] for p in parts], -1)
                    return _together(parts, t, x), ends.ravel()

                yield Sample(fields, formula, {"a": "integers"}, exact=True)


@dataclass(eq=False)
class CombineSegments(_Segments):
    """Scanned segments combined with the totals, in `place`, of those that come before them in their line."""

    scope: Scope
    kind: str
    a: Value
    place: Value
    along: Along = "row"
    reverse: bool = False

    def numpy(self, m: NumpyMachine) -> Any:
        type = registers_of(self.a)
        segments = self._cut(m[self.a], _start(self.kind, type))
        totals = np.broadcast_to(m.read(self.place), (m.units, self.place.type.length))  # type: ignore[union-attr]
        whole = accumulated(self.kind, totals.reshape(segments.shape[:3]), 2, self.reverse)
        out = segments.copy()
        if self.reverse:
            out[:, :, :-1] = calculate(KINDS[self.kind], whole[:, :, 1:, None], segments[:, :, :-1])
        else:
            out[:, :, 1:] = calculate(KINDS[self.kind], whole[:, :, :-1, None], segments[:, :, 1:])
        return self._joined(out)

    def effects(self) -> tuple[Effect, ...]:
        return (Access(self.place, "read"),)

    def cuda(self, c: CudaWriter) -> None:
        # int s = 0; float before = 0; for (; s < mine; s++) { x = totals[s]; before = s ? before + x : x; } ...
        c.prelude(MEMORY)
        type = registers_of(self.a)
        dtype, acc = type.dtype, c.fresh("acc")
        pair, kept, run = pair_text(c, self.kind, dtype), held_c(dtype), segment_of(type, self.along)[0]
        c.line(f"{kept} {acc}[{type.registers}];")
        c.line(f"PK_UNROLL for (int i = 0; i < {type.registers}; i++) {acc}[i] = {c.element(self.a, Sym('i'))};")
        for registers in lines(type, self.along):
            runs = [registers[i : i + run] for i in range(0, len(registers), run)]
            s, before, x = c.fresh("s"), c.fresh("before"), c.fresh("x")
            c.line(f"int {s} = 0; {kept} {before} = 0;")
            for own in reversed(runs) if self.reverse else runs:
                line, number = self._number(c, own[0])
                mine = f"{self._count - 1} - {number}" if self.reverse else number
                step = f"({self._count - 1} - {s})" if self.reverse else s
                at = vector_address(c, self.place, f"({line}) * {self._count} + {step}")
                c.line(f"for (; {s} < {mine}; {s}++) {{")
                c.line(f"  const {kept} {x} = {c.bits(f'pk_ld_shared<{VECTOR[dtype.size]}>({at})', dtype)};")
                c.line(f"  {before} = {s} ? {pair(before, x)} : {x}; }}")
                for i in own:
                    c.line(f"if ({s}) {acc}[{i}] = {pair(before, f'{acc}[{i}]')};")
        c.map(self.result, lambda r: f"{acc}[{r}]")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for type, along, kind in _sampled():
            for reverse in (False, True):
                place = room(type, along)
                fields = {"kind": kind, "a": type, "place": place, "along": along, "reverse": reverse}

                def formula(a: Any, place: Any, t: Any = type, x: str = along, k: str = kind, r: bool = reverse) -> Any:
                    parts, f = _parts(a, t, x), _ufunc(k)
                    totals = place.reshape(-1, len(parts)).T
                    for i in range(len(parts)):
                        others = totals[i + 1 :] if r else totals[:i]
                        parts[i] = f(f.reduce(others, 0), parts[i]) if len(others) else parts[i]
                    return _together(parts, t, x)

                yield Sample(fields, formula, {"a": "integers", "place": "integers"}, exact=True)


def _start(kind: str, type: RegisterTile | RegisterVector) -> Any:
    """What changes nothing, behind the end of a line."""
    return identity(kind, type.dtype)


def _sampled() -> Iterable[tuple[RegisterTile | RegisterVector, Along, str]]:
    for dtype in (f32, i32, u32, i64):
        yield RegisterTile(dtype, 3, 256, Coalesced(64, 2), 2), "row", "max"
        yield RegisterTile(dtype, 128, 16, "row", 4), "col", "sum"
    yield RegisterTile(f32, 64, 16, "col", 2), "col", "min"
    yield RegisterTile(f32, 1, 512, Coalesced(64, 4), 2).vector("row"), "row", "sum"
    yield RegisterVector(f32, 200, "naive", "row", 2, width=2), "row", "sum"
    yield RegisterTile(f32, 128, 16, "row", 4).vector("col"), "row", "sum"
    yield RegisterTile(f32, 128, 16, "col", 4).vector("col"), "row", "max"


def _ufunc(kind: str) -> Any:
    return {"sum": np.add, "max": np.maximum, "min": np.minimum, "prod": np.multiply}[kind]


def _parts(a: Any, type: Any, along: str) -> list[Any]:
    """The segments of all lines, place by line, of an array as a sample has it."""
    run, lanes, _ = segment_of(type, along)
    lines = a[:, None] if a.ndim == 1 else a.T if along == "row" else a
    return [lines[i : i + run * lanes] for i in range(0, len(lines), run * lanes)]


def _together(parts: list[Any], type: Any, along: str) -> Any:
    lines = np.concatenate(parts)
    return lines[:, 0] if isinstance(type, RegisterVector) else lines.T if along == "row" else lines
