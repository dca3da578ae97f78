"""Copies between global and shared memory by all threads of a scope: at once, or with cp.async."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from ..errors import TypeRuleError
from ..loading import dataclass
from ..numerics import MOVES
from ..program import Access, CudaWriter, Effect, NumpyMachine, Op, Place, Scope, Sync, Value
from ..thread_map import InTurn
from ..types import SharedTile, SharedVector, Type, bf16, f32, i64, u8
from .addressing import MEMORY, VECTOR, GlobalText, shared_address, vector_address, vector_bytes
from .samples import Rectangle, Sample, cut, pasted, rectangles

CP_ASYNC = """
template<int N> __device__ __forceinline__ void pk_cp_async(u32 to, const void* from, u32 bytes) {
  if (N == 16) asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
    :: "r"(to), "l"(from), "r"(bytes) : "memory");
  else asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
    :: "r"(to), "l"(from), "n"(N), "r"(bytes) : "memory");
}
"""


def check_copy(shared: Value, place: Place, what: str) -> None:
    """Shared tile (or vector) and rectangle have the same shape and dtype."""
    if not isinstance(shared.type, (SharedTile, SharedVector)):
        raise TypeRuleError(
            f"{what} takes a shared tile or vector, not {shared.type}", fix="allocate one with pk.shared(pk.st(...))"
        )
    if place.within is not None and len(place.shape) == 1:
        raise TypeRuleError(
            f"{what}: a run of {place.tensor.label} kept to some elements", fix="load it as a vector in registers"
        )
    if shared.type.dtype != place.type.dtype:
        raise TypeRuleError(
            f"{what}: {shared.type} and {place.tensor.label}: {place.type} differ in dtype",
            fix="copies do not convert; go through registers",
        )


class Vectors:
    """The vectors of a rectangle, as wide as its alignment allows, which the threads of a scope take in turn: a loop
    over those of one.

    `bytes` is what a vector has, `width` its elements, `type` its type in C. Inside the loop C names the vector's `row`
    and `column` in the rectangle, the address `at` which it lies in global memory, and the condition `row_inside` that
    its row exists (empty where all do). Where the threads cover whole rows, a thread stays in its columns, and what
    differs from one of its vectors to the next is the same for all threads.
    """

    row, column = "r", "x"

    def __init__(self, c: CudaWriter, scope: Scope, place: Place, const: bool = True):
        c.prelude(MEMORY)
        self.c, self.g = c, GlobalText(c, place, const)
        self.bytes = vector_bytes(place)
        self.type = VECTOR[self.bytes]
        self.width = self.bytes // place.type.dtype.size
        g, width, rows, cols = self.g, self.width, place.rows, place.cols
        a_row, total, threads = cols // width, rows * (cols // width), scope.warps * 32
        thread = c.thread(scope)
        self.guarded = total % threads != 0
        c.line("{")
        if threads % a_row == 0:
            step = threads // a_row
            c.line(f"const int r0 = {thread} / {a_row}, x = {thread} % {a_row} * {width};")
            c.line(f"{g.qualifier}{g.element}* at = {g.at('r0', 'x')};")
            c.line(f"PK_UNROLL for (int i = 0; i < {-(-total // threads)}; i++) {{")
            c.line(f"const int r = i * {step} + r0;")
            self.at = f"(at + (i64)(i * {step}) * {g.stride})" if total > threads else "at"
            self.row_inside = f"r0 < {g.rows_left} - i * {step}" if g.rows_left else ""
            if g.rows_before:
                self.row_inside = f"r0 >= {g.rows_before} - i * {step} && {self.row_inside}"
        else:
            c.line(f"PK_UNROLL for (int i = 0; i < {-(-total // threads)}; i++) {{")
            c.line(f"const int n = i * {threads} + {thread}, r = n / {a_row}, x = n % {a_row} * {width};")
            self.at = f"({g.at('r', 'x')})"
            self.row_inside = " && ".join(g.row_tests("r"))
        if self.guarded:
            c.line(f"if (r < {rows}) {{")

    @property
    def inside(self) -> str:
        """C condition that the whole vector exists; empty where all do."""
        columns = f"x + {self.width} <= {self.g.cols_left}" if self.g.cols_left else ""
        return " && ".join(test for test in (self.row_inside, columns) if test)

    def end(self) -> None:
        """Closes the loop."""
        self.c.line("} } }" if self.guarded else "} }")


def address(c: CudaWriter, shared: Value, row: str, col: str) -> str:
    return (
        shared_address(c, shared, row, col) if isinstance(shared.type, SharedTile) else vector_address(c, shared, col)
    )


class Copy(Op):
    """Elements between a rectangle in global memory and a shared tile or vector, as they are: each thread moves
    some.
    """

    target: Value | Place
    source: Value | Place

    done: ClassVar[str] = "now"  # when it is finished: see `Access`

    def numpy(self, m: NumpyMachine) -> None:
        m.write(self.target, m.read(self.source))

    def effects(self) -> tuple[Effect, ...]:
        place = self.source if isinstance(self.source, Place) else self.target
        assert isinstance(place, Place)
        threads = InTurn(vector_bytes(place) // place.type.dtype.size)
        return (
            Access(self.source, "read", threads, done=self.done),
            Access(self.target, "write", threads, done=self.done),
        )


@dataclass(eq=False)
class CopyIn(Copy):
    """Global to shared, finished when it returns to each thread; what lies past the end becomes zero."""

    spelling = "{scope}.load_into"

    scope: Scope
    target: Value
    source: Place

    numerics = MOVES

    def types(self) -> tuple[Type, ...]:
        check_copy(self.target, self.source, "load")
        return ()

    def cuda(self, c: CudaWriter) -> None:
        each = Vectors(c, self.scope, self.source)
        vector, inside = each.type, each.inside
        load = f"*(const {vector}*){each.at}"
        if each.g.cols_left and each.width > 1:
            rows = f"{each.row_inside} ? " if each.row_inside else ""
            tail = (
                f"pk_load_tail<{vector}>({each.at}, {rows}{each.g.cols_left} - {each.column}{' : 0' if rows else ''})"
            )
            load = f"{inside} ? {load} : {tail}"
        elif inside:
            load = f"{inside} ? {load} : {vector}{{}}"
        c.line(f"const {vector} v = {load};")
        c.line(f"pk_st_shared({address(c, self.target, each.row, each.column)}, v);")
        each.end()

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for place in rectangles(bf16) + rectangles(f32) + rectangles(u8) + rectangles(i64)[-2:]:
            shared, warps = SharedTile(place.dtype, 16, 32), 2 if place.static else 1
            yield Sample(
                {"target": shared, "source": place}, lambda source, p=place: cut(source, p), exact=True, warps=warps
            )
        for cols, at in ((64, 0), (61, 0), (128, 32)):
            run = Rectangle(f32, (64,), (3, cols), (1, at), static=False)
            yield Sample(
                {"target": SharedVector(f32, 64), "source": run}, lambda source, p=run: cut(source, p), exact=True
            )


@dataclass(eq=False)
class CopyOut(Copy):
    """Shared to global; what lies past the end is not written."""

    spelling = "{scope}.store"

    scope: Scope
    target: Place
    source: Value

    numerics = MOVES

    def types(self) -> tuple[Type, ...]:
        check_copy(self.source, self.target, "store")
        return ()

    def cuda(self, c: CudaWriter) -> None:
        each = Vectors(c, self.scope, self.target, const=False)
        vector, inside = each.type, each.inside
        c.line(f"const {vector} v = pk_ld_shared<{vector}>({address(c, self.source, each.row, each.column)});")
        store = f"*({vector}*){each.at} = v;"
        if each.g.cols_left and each.width > 1:
            rows = f"if ({each.row_inside}) " if each.row_inside else ""
            c.line(f"if ({inside}) {store} else {rows}pk_store_tail({each.at}, v, {each.g.cols_left} - {each.column});")
        else:
            c.line(f"if ({inside}) {store}" if inside else store)
        each.end()

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for place in rectangles(bf16) + rectangles(f32) + rectangles(u8) + rectangles(i64)[-2:]:
            fields = {"target": place, "source": SharedTile(place.dtype, 16, 32)}
            yield Sample(
                fields,
                lambda target, source, p=place: pasted(target, source, p),
                exact=True,
                warps=2 if place.static else 1,
            )
        run = Rectangle(bf16, (64,), (3, 61), (1, 0), static=False)
        yield Sample(
            {"target": run, "source": SharedVector(bf16, 64)},
            lambda target, source: pasted(target, source, run),
            exact=True,
        )


@dataclass(eq=False)
class CopyAsync(Copy):
    """Global to shared with cp.async (PTX "cp.async"): finished after `CommitCopies` and `WaitCopies`."""

    spelling = "{scope}.load_async"

    scope: Scope
    target: Value
    source: Place

    done = "cp.async"

    numerics = MOVES

    def types(self) -> tuple[Type, ...]:
        check_copy(self.target, self.source, "load_async")
        assert vector_bytes(self.source) >= 4  # else `CopyIn`
        return ()

    def cuda(self, c: CudaWriter) -> None:
        each = Vectors(c, self.scope, self.source)
        c.prelude(CP_ASYNC)
        count = str(each.bytes)
        if each.g.cols_left:
            count = (
                f"(u32)min({each.bytes}, max(0, ({each.g.cols_left} - {each.column}) * {self.source.type.dtype.size}))"
            )
        if each.row_inside:
            count = f"{each.row_inside} ? {count} : 0"
        c.line(
            f"pk_cp_async<{each.bytes}>({address(c, self.target, each.row, each.column)}, {each.at}, {count});"
        )  # of 0 bytes touches no memory
        each.end()

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        finish = lambda scope, operands: (CommitCopies(scope), WaitCopies(scope, 0))  # noqa: E731
        for place in rectangles(bf16) + rectangles(f32) + rectangles(i64)[:1]:
            if (
                place.known
                and (place.pitch or place.size[1]) * place.dtype.size % 4 == 0
                and place.at[1] * place.dtype.size % 4 == 0
            ):
                fields = {"target": SharedTile(place.dtype, 16, 32), "source": place}
                yield Sample(
                    fields,
                    lambda source, p=place: cut(source, p),
                    exact=True,
                    warps=2 if place.static else 1,
                    after=finish,
                )
        for cols, at in ((64, 0), (61, 0), (128, 32)):
            run = Rectangle(f32, (64,), (3, cols), (1, at), static=False, pitch=128)
            yield Sample(
                {"target": SharedVector(f32, 64), "source": run},
                lambda source, p=run: cut(source, p),
                exact=True,
                after=finish,
            )


@dataclass(eq=False)
class CommitCopies(Op):
    """Closes a group of this thread's cp.async copies."""

    spelling = "{scope}.commit"

    scope: Scope

    def numpy(self, m: NumpyMachine) -> None:
        pass

    def effects(self) -> tuple[Effect, ...]:
        return (Sync("commit", queue="cp.async"),)

    def cuda(self, c: CudaWriter) -> None:
        c.line('asm volatile("cp.async.commit_group;" ::: "memory");')


@dataclass(eq=False)
class WaitCopies(Op):
    """Waits until at most `pending` of this thread's groups of copies are unfinished."""

    spelling = "{scope}.wait_loads"

    scope: Scope
    pending: int

    @property
    def lanes_ordered(self) -> bool:  # type: ignore[override]
        return self.scope.warps == 1  # of all lanes' copies

    def types(self) -> tuple[Type, ...]:
        if not isinstance(self.pending, int) or self.pending < 0:
            raise TypeRuleError(f"cannot wait for {self.pending} pending groups", fix="pass a Python int, 0 or more")
        return ()

    def numpy(self, m: NumpyMachine) -> None:
        pass

    def effects(self) -> tuple[Effect, ...]:
        return (Sync("join", queue="cp.async", pending=self.pending),)

    def cuda(self, c: CudaWriter) -> None:
        c.line(f'asm volatile("cp.async.wait_group {self.pending};" ::: "memory");')
