"""The tensor memory accelerator: one thread asks for a whole tile (PTX "cp.async.bulk.tensor").

A tensor map describes a tensor to the hardware. Where the columns are static and fill whole panels, it has five
dimensions, (column in panel, row, panel, depth, batch), and one instruction moves a tile of any width; else four,
(column, row, depth, batch), and a tile takes one instruction a panel. What lies outside reads as zero and is not
written. A vector is a row of panels of 256 elements, the most that a box has along a dimension.

A copy that names its last row (`within`) takes one dimension more, whose stride is that of rows: with rows counted from
the back of a tensor of R rows, R - (end - row) + end - R = row, so that the R-th row of the map is `end` of the tensor.
The map begins R rows before the tensor. (The trick is known from quack's and Triton's ragged descriptors.) A box of no
element, of a sequence that is empty or behind the last column, is not asked of that map: Hopper touches memory although
it leaves out the whole box, and the beginning of the map, before the tensor, may not be mapped. A load goes by the
tensor's own map instead, to the row behind its last; nothing is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from ..errors import OutOfBoundsError, TypeRuleError
from ..loading import dataclass
from ..numerics import EXACT, MOVES, Numerics
from ..program import Access, CudaWriter, Effect, NumpyMachine, Op, Operand, Place, Scope, Sync, TensorMapSpec, Value
from ..thread_map import ONE_THREAD
from ..types import BarrierType, SharedTile, SharedVector, Type, bf16, e4m3, f16, f32, i32, i64
from .addressing import known_multiple
from .copies import check_copy
from .mbarrier import Arrive, Wait, check_barrier
from .samples import Rectangle, Sample, cut, pasted

# Cache policies as createpolicy makes them (PTX "createpolicy"; the encodings CUTLASS lists in TMA::CacheHintSm90).
HINTS = {
    "evict_first": "0x12F0000000000000ull",
    "evict_last": "0x14F0000000000000ull",
    "evict_normal": "0x1000000000000000ull",
}

LONGEST = 256  # elements of a box along one dimension
TENSOR_MAP = "struct __align__(64) pk_tensor_map { u64 opaque[16]; };\n"


def map_specs(shared: Value, place: Place, outside: bool) -> tuple[TensorMapSpec, ...]:
    """The tensor maps that a copy between a shared tile (or vector) and a tensor needs; `outside`: that of copies of no
    row, too.
    """
    spec = map_spec(shared, place)
    return (spec, replace(spec, ended=False)) if spec.ended and outside else (spec,)


def map_spec(shared: Value, place: Place) -> TensorMapSpec:
    """The first of them."""
    type, tensor = shared.type, place.type
    name, cols = place.tensor.name, tensor.padded[3]
    if isinstance(type, SharedVector):
        whole = isinstance(cols, int) and cols % LONGEST == 0 and known_multiple(place.first[3]) % LONGEST == 0
        panels = whole and LONGEST < type.length <= LONGEST * LONGEST
        return TensorMapSpec(name, (1, type.length if panels else min(type.length, LONGEST)), 0, panels)
    assert isinstance(type, SharedTile)
    panels = isinstance(cols, int) and cols % type.panel == 0 and type.cols > type.panel and type.pitch == type.rows
    ended = place.within is not None
    panels = panels and not ended  # the hardware has five dimensions
    box = (type.rows, type.cols if panels else min(type.cols, type.panel))
    return TensorMapSpec(name, box, type.swizzle, panels, ended)


def check_tma(shared: Value, place: Place, what: str) -> None:
    """What the hardware demands of a copy, in words."""
    check_copy(shared, place, what)
    type = shared.type
    if place.type.align < 16:
        note = getattr(place.tensor, "note", "")
        raise TypeRuleError(
            f"{what}: {place.tensor.label} begins or strides at multiples of {place.type.align} bytes only; TMA takes "
            f"multiples of 16" + (f" ({note})" if note else ""),
            fix="pass a tensor whose pointer and strides are multiples of 16 bytes, or load it without TMA",
        )
    if isinstance(type, SharedTile):
        if type.apart:
            raise TypeRuleError(
                f"{what}: {shared.label} begins {type.apart} of its tile",
                fix=f"begin parts at multiples of 8 rows and {type.panel} columns",
            )
        if type.rows > 256:
            raise TypeRuleError(
                f"{what}: a TMA box has at most 256 rows, not {type.rows}", fix="copy the tile in parts"
            )
        if known_multiple(place.first[3]) % type.panel and type.cols > type.panel:
            raise TypeRuleError(
                f"{what}: the first column may lie inside a panel of {type.panel} columns",
                fix=f"begin at multiples of {type.panel} columns",
            )
    else:
        assert isinstance(type, SharedVector)
        if type.bytes % 16 or (type.length > LONGEST and type.length % LONGEST):
            raise TypeRuleError(
                f"{what}: a TMA vector has a multiple of 16 bytes, and of {LONGEST} elements if it has more than "
                f"those; not {type.length} {type.dtype}",
                fix="make the vector longer, or copy it in parts",
            )


def check_first(m: NumpyMachine, place: Place) -> None:
    """A rectangle kept to rows may not begin before them: the hardware cuts off behind the last only."""
    if place.within is None:
        return
    rows, firsts = (np.broadcast_to(m.unit_scalar(x), m.units) for x in (place.first[2], place.within[0]))
    for row, first in zip(rows.tolist(), firsts.tolist(), strict=True):
        if row < first:
            raise OutOfBoundsError(
                f"TMA: a rectangle of {place.tensor.label} begins at row {row}, before row {first} that it is kept to",
                fix="begin at the first row of within, or load it without TMA",
            )


def unknown_outside(m: NumpyMachine, place: Place, values: np.ndarray) -> np.ndarray:
    """NaN, or the largest integer, in the columns that a load is not kept to: hardware brings whatever lies there."""
    assert place.columns is not None
    first, begin, end = (
        np.reshape(m.unit_scalar(x), (-1, *[1] * len(place.shape))) for x in (place.first[3], *place.columns)
    )
    col, dtype = first + np.arange(place.cols), place.type.dtype
    unknown = {"f": np.nan, "b": True}.get(dtype.kind) or np.iinfo(dtype.numpy).max
    return np.where((col < begin) | (col >= end), np.asarray(unknown, dtype.numpy), values)


def write_copies(
    c: CudaWriter, shared: Value, place: Place, outside: bool, write: Callable[[TensorMapSpec, str, str, int], None]
) -> None:
    """Has `write` write the instructions of a copy, each by its map, shared address, coordinates (innermost first) and
    their number. A box of no element is one of zeros if `outside`, else nothing:

        if (row < end) { ..by the map that begins before the tensor.. } else { ..by the tensor's own.. }
    """
    batch, depth, row, col = (c.scalar(x, i32) for x in place.first)
    spec, *plain = map_specs(shared, place, outside)
    if not spec.ended:
        for box in boxes(shared.type, c[shared], spec, (col, row, depth, batch), c):
            write(spec, *box)
        return
    length, width = (
        x if isinstance(x, int) else f"{c[place.tensor]}.shape[{i}]" for i, x in enumerate(place.type.padded[2:], 2)
    )
    assert place.within is not None
    end = c.fresh("end")
    c.line(f"const int {end} = min({c.scalar(place.within[1], i32)}, {length});")

    def copy(by: TensorMapSpec, first: int, count: int) -> None:
        rows = f"{length} - ({end} - {row})" if by.ended else f"{length}"
        where = col, rows, depth, f"{batch}, {end}" if by.ended else batch
        for box in boxes(shared.type, c[shared], by, where, c)[first : first + count]:
            write(by, *box)

    for some, first, count in _box_conditions(shared.type, place.first[3], width, row, end, col):
        if some:
            c.line(f"if ({some}) {{")
            copy(spec, first, count)
            c.line("}")
        if some and plain:
            c.line("else {")
            copy(plain[0], first, count)
            c.line("}")
        elif plain:
            copy(plain[0], first, count)


def _box_conditions(
    type: Type, known: Operand, width: int | str, row: str, end: str, col: str
) -> list[tuple[str, int, int]]:
    """When boxes of a tile have an element: (what holds then, "" for never; the first box; how many), in order."""
    assert isinstance(type, SharedTile)  # a run is not kept to rows
    count = -(-type.cols // type.panel)
    if isinstance(known, int) and isinstance(width, int):
        inside = min(count, max(-(-(width - known) // type.panel), 0))
        found = [(f"{row} < {end}", 0, inside), ("", inside, count - inside)]
        return [x for x in found if x[2]]
    return [(f"{row} < {end} && {col} + {i * type.panel} < {width}", i, 1) for i in range(count)]


def boxes(
    type: Type, base: str, spec: TensorMapSpec, first: tuple[str, str, str, str], c: CudaWriter
) -> list[tuple[str, str, int]]:
    """The boxes of a copy: shared address, coordinates, and their number. May open a loop over the one that follows."""
    col, row, depth, last = first
    dims = 5 if spec.panels or spec.ended else 4
    if isinstance(type, SharedVector):
        if spec.panels:
            return [(base, f"0, {row}, {col} / {LONGEST}, {depth}, {last}", dims)]
        if type.length == spec.box[1]:
            return [(base, f"{col}, {row}, {depth}, {last}", dims)]
        c.line(
            f'_Pragma("unroll 1") for (int i = 0; i < {type.length}; i += {LONGEST})'
        )  # unrolled, its addresses would fill registers
        return [(f"{base} + i * {type.dtype.size}", f"{col} + i, {row}, {depth}, {last}", dims)]
    assert isinstance(type, SharedTile)
    if spec.panels:
        return [(base, f"0, {row}, {col} / {type.panel}, {depth}, {last}", dims)]
    return [
        (f"{base} + {p * type.pitch * type.swizzle}", f"{col} + {p * type.panel}, {row}, {depth}, {last}", dims)
        for p in range(-(-type.cols // type.panel))
    ]


def load_text(dims: int, hint: bool, multicast: bool, own: bool) -> tuple[str, str]:
    """Name and definition of a device function for one load instruction.

    own: the target is named as this block's (PTX ISA 8.6, which all that know sm_100 have). Else it may be any block's
    of the cluster, and for sm_120 ptxas makes that a call where it cannot see whose.
    """
    space = "shared::cta" if own else "shared::cluster"
    name = f"pk_tma_load_{dims}d{'_hint' if hint else ''}{'_multicast' if multicast else ''}"
    coordinates = ", ".join(f"int c{i}" for i in range(dims))
    first = 3 + hint + multicast
    operands = ", ".join(f"%{first + i}" for i in range(dims))
    mask, policy = ", %3" if multicast else "", f", %{3 + multicast}" if hint else ""
    parameters = ", u32 mask" * multicast + ", u64 policy" * hint
    kinds = ".multicast::cluster" * multicast + ".L2::cache_hint" * hint
    inputs = ', "h"((u16)mask)' * multicast + ', "l"(policy)' * hint + "".join(f', "r"(c{i})' for i in range(dims))
    return (
        name,
        f"""
__device__ __forceinline__ void {name}(u32 to, const pk_tensor_map* map, u32 bar{parameters}, {coordinates}) {{
  asm volatile("cp.async.bulk.tensor.{dims}d.{space}.global.tile.mbarrier::complete_tx::bytes{kinds}"
    " [%0], [%1, {{{operands}}}], [%2]{mask}{policy};"
    :: "r"(to), "l"(map), "r"(bar){inputs} : "memory"); }}
""",
    )


def store_text(dims: int, kind: str) -> tuple[str, str]:
    """Name and definition of a device function for one store (or reducing store) instruction."""
    name = f"pk_tma_{kind}_{dims}d"
    coordinates = ", ".join(f"int c{i}" for i in range(dims))
    operands = ", ".join(f"%{2 + i}" for i in range(dims))
    inputs = "".join(f', "r"(c{i})' for i in range(dims))
    if kind == "store":
        instruction = f"cp.async.bulk.tensor.{dims}d.global.shared::cta.tile.bulk_group"
    else:
        instruction = f"cp.reduce.async.bulk.tensor.{dims}d.global.shared::cta.{kind}.tile.bulk_group"
    return (
        name,
        f"""
__device__ __forceinline__ void {name}(const pk_tensor_map* map, u32 from, {coordinates}) {{
  asm volatile("{instruction} [%0, {{{operands}}}], [%1];" :: "l"(map), "r"(from){inputs} : "memory"); }}
""",
    )


@dataclass(eq=False)
class TmaLoad(Op):
    """Tensor to shared memory; pays its bytes to `barrier` when it has landed. `mask`: to these blocks of the
    cluster.
    """

    spelling = "pk.tma.load"

    scope: Scope
    target: Value
    source: Place
    barrier: Value
    hint: str | None = None
    mask: Operand | None = None

    single_thread = True

    numerics = MOVES

    def types(self) -> tuple[Type, ...]:
        check_tma(self.target, self.source, "tma.load")
        check_barrier(self.barrier)
        if self.hint is not None and self.hint not in HINTS:
            raise TypeRuleError(f"no cache hint {self.hint!r}", fix=f"use one of {', '.join(HINTS)}")
        return ()

    def tensor_maps(self) -> tuple[TensorMapSpec, ...]:
        return map_specs(self.target, self.source, outside=True)

    @property
    def bytes(self) -> int:
        """What it pays to the barrier: the whole tile, zero fill included."""
        return self.target.type.bytes  # type: ignore[union-attr]

    def numpy(self, m: NumpyMachine) -> None:
        check_first(m, self.source)
        values = m.read(self.source)
        m.write(self.target, unknown_outside(m, self.source, values) if self.source.columns else values)

    def effects(self) -> tuple[Effect, ...]:
        return (
            Access(self.source, "read", ONE_THREAD, "async", self.barrier),
            Access(self.target, "write", ONE_THREAD, "async", self.barrier, mask=self.mask),
        )

    def cuda(self, c: CudaWriter) -> None:
        c.require("tma", self)
        c.prelude(TENSOR_MAP)
        extra = f"{c.scalar(self.mask, i32)}, " if self.mask is not None else ""
        extra += f"{HINTS[self.hint]}, " if self.hint is not None else ""
        c.line(f"{c.elect(self.scope)}{{")
        own = self.mask is None and c.arch.capability >= (10, 0)

        def write(spec: TensorMapSpec, address: str, coordinates: str, dims: int) -> None:
            name, text = load_text(dims, self.hint is not None, self.mask is not None, own)
            c.prelude(text)
            c.line(f"{name}({address}, &{c.map_name(spec)}, {c[self.barrier]}, {extra}{coordinates});")

        write_copies(c, self.target, self.source, True, write)
        c.line("}")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for tile, at in (
            (SharedTile(bf16, 64, 64), (32, 64)),
            (SharedTile(f32, 16, 64), (0, 0)),
            (SharedTile(e4m3, 32, 128), (96, 0)),
            (SharedTile(i64, 16, 32), (96, 32)),
        ):
            for static in (True, False):
                place = Rectangle(tile.dtype, tile.shape, (112, 128), at, static)  # may reach past the last rows
                yield Sample(
                    {"target": tile, "source": place, "barrier": BarrierType(1)},
                    lambda source, p=place: cut(source, p),
                    exact=True,
                    needs="tma",
                    before=lambda scope, operands: (Arrive(scope, operands["barrier"], operands["target"].type.bytes),),
                    after=lambda scope, operands: (Wait(scope, operands["barrier"], 0),),
                )
        for dtype, length, first, static in (
            (bf16, 64, 8, False),
            (f32, 512, 256, True),
            (bf16, 1024, 24, False),
        ):  # reach past the end of the row
            place = Rectangle(dtype, (length,), (3, 768), (1, first), static)
            yield Sample(
                {"target": SharedVector(dtype, length), "source": place, "barrier": BarrierType(1)},
                lambda source, p=place: cut(source, p),
                exact=True,
                needs="tma",
                before=lambda scope, operands: (Arrive(scope, operands["barrier"], operands["target"].type.bytes),),
                after=lambda scope, operands: (Wait(scope, operands["barrier"], 0),),
            )


@dataclass(eq=False)
class TmaStore(Op):
    """Shared memory to tensor, in the open bulk group of the issuing thread; kind add, min or max reduces into it."""

    scope: Scope
    target: Place
    source: Value
    kind: Literal["store", "add", "min", "max"] = "store"

    @property
    def spelled(self) -> str:
        return "pk.tma.store" if self.kind == "store" else f"pk.tma.store_{self.kind}"

    @property
    def numerics(self) -> Numerics:  # type: ignore[override]
        dtype = self.target.type.dtype
        if self.kind == "store":
            return MOVES
        if self.kind != "add" or dtype.kind != "f":
            return EXACT.with_special("integers wrap")
        promise = Numerics("correctly rounded", flushes=dtype.bits == 32)
        return promise.with_special("additions of several blocks come in any order")

    single_thread = True

    def types(self) -> tuple[Type, ...]:
        check_tma(self.source, self.target, f"tma.{self.kind}")
        allowed = (bf16, f16, i32) if self.kind in ("min", "max") else (bf16, f16, f32, i32)
        if self.kind != "store" and self.target.type.dtype not in allowed:
            raise TypeRuleError(
                f"tma.store_{self.kind} does not take {self.target.type.dtype}",
                fix=f"it takes {', '.join(d.name for d in allowed)} (PTX cp.reduce.async.bulk.tensor)",
            )
        return ()

    def tensor_maps(self) -> tuple[TensorMapSpec, ...]:
        return map_specs(self.source, self.target, outside=False)

    def numpy(self, m: NumpyMachine) -> None:
        check_first(m, self.target)
        if self.kind == "store":
            m.write(self.target, m.read(self.source))
        else:
            m.reduce(self.target, m.read(self.source), self.kind)

    def effects(self) -> tuple[Effect, ...]:
        read = Access(self.source, "read", ONE_THREAD, "async", "bulk.read")
        if self.kind == "store":
            return (read, Access(self.target, "write", ONE_THREAD, "async", "bulk"))
        # Each element's reduction is relaxed at gpu scope (PTX ISA, cp.reduce.async.bulk.tensor).
        return (read, Access(self.target, "reduce", ONE_THREAD, "async", "bulk", order="relaxed", reduction=self.kind))

    def cuda(self, c: CudaWriter) -> None:
        c.require("tma", self)
        c.prelude(TENSOR_MAP)
        c.line(f"{c.elect(self.scope)}{{")

        def write(spec: TensorMapSpec, address: str, coordinates: str, dims: int) -> None:
            name, text = store_text(dims, self.kind)
            c.prelude(text)
            c.line(f"{name}(&{c.map_name(spec)}, {address}, {coordinates});")

        write_copies(c, self.source, self.target, False, write)
        c.line("}")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        combine: dict[str, Any] = {"store": lambda old, new: new, "add": np.add, "min": np.minimum, "max": np.maximum}
        for kind, formula in combine.items():
            for tile in (SharedTile(bf16, 64, 64), SharedTile(f16, 16, 128), SharedTile(f32, 16, 32)):
                if tile.dtype is not f32 or kind in ("store", "add"):
                    place = Rectangle(tile.dtype, tile.shape, (56, 128), (48, 0), tile.dtype is bf16)
                    yield Sample(
                        {"target": place, "source": tile, "kind": kind},
                        lambda target, source, p=place, f=formula: pasted(target, f(cut(target, p), source), p),
                        {"target": "integers", "source": "integers"},
                        exact=True,
                        needs="tma",
                        after=lambda scope, operands: (CommitBulk(scope), WaitBulk(scope, 0, False)),
                    )


@dataclass(eq=False)
class TmaPrefetch(Op):
    """Brings a rectangle of a tensor into L2."""

    spelling = "pk.tma.prefetch"

    scope: Scope
    source: Place
    like: Value  # the shared tile whose box is meant

    single_thread = True

    def types(self) -> tuple[Type, ...]:
        check_tma(self.like, self.source, "tma.prefetch")
        return ()

    def tensor_maps(self) -> tuple[TensorMapSpec, ...]:
        return map_specs(self.like, self.source, outside=False)

    def numpy(self, m: NumpyMachine) -> None:
        pass

    def cuda(self, c: CudaWriter) -> None:
        c.require("tma", self)
        c.prelude(TENSOR_MAP)
        c.line(f"{c.elect(self.scope)}{{")

        def write(spec: TensorMapSpec, address: str, coordinates: str, dims: int) -> None:
            names = ", ".join(f"%{i + 1}" for i in range(dims))
            inputs = "".join(f', "r"({x.strip()})' for x in coordinates.split(","))
            c.line(
                f'asm volatile("cp.async.bulk.prefetch.tensor.{dims}d.L2.global.tile [%0, {{{names}}}];"'
                f' :: "l"(&{c.map_name(spec)}){inputs} : "memory");'
            )

        write_copies(c, self.like, self.source, False, write)
        c.line("}")


@dataclass(eq=False)
class CommitBulk(Op):
    """Closes the bulk group of the issuing thread's TMA stores."""

    spelling = "pk.tma.commit"

    scope: Scope

    single_thread = True

    def numpy(self, m: NumpyMachine) -> None:
        pass

    def effects(self) -> tuple[Effect, ...]:
        return (Sync("commit", queue="bulk"), Sync("commit", queue="bulk.read"))

    def cuda(self, c: CudaWriter) -> None:
        c.line(f'{c.elect(self.scope)}asm volatile("cp.async.bulk.commit_group;" ::: "memory");')


@dataclass(eq=False)
class WaitBulk(Op):
    """The issuing thread waits until at most `pending` groups are unfinished (`read`: have not read their source
    yet).
    """

    spelling = "pk.tma.wait"

    scope: Scope
    pending: int
    read: bool

    single_thread = True

    @property
    def lanes_ordered(self) -> bool:  # type: ignore[override]
        return self.scope.warps == 1

    def numpy(self, m: NumpyMachine) -> None:
        pass

    def effects(self) -> tuple[Effect, ...]:
        joins = (Sync("join", queue="bulk.read", pending=self.pending),)
        return joins if self.read else (*joins, Sync("join", queue="bulk", pending=self.pending))

    def cuda(self, c: CudaWriter) -> None:
        read = ".read" if self.read else ""
        c.line(f'{c.elect(self.scope)}asm volatile("cp.async.bulk.wait_group{read} {self.pending};" ::: "memory");')


@dataclass(eq=False)
class ProxyFence(Op):
    """Generic writes of these threads become visible to TMA and wgmma (PTX "membar, fence": fence.proxy.async).
    Inserted by a pass.

    `memory`: the block's own shared memory, that of the "cluster" (which the own is a part of), or all.
    """

    Memory = Literal["shared", "cluster", "all"]

    scope: Scope
    memory: Memory = "shared"

    def numpy(self, m: NumpyMachine) -> None:
        pass

    def effects(self) -> tuple[Effect, ...]:
        return (Sync("fence"),)

    def cuda(self, c: CudaWriter) -> None:
        if c.has("tma"):
            space = {"shared": ".shared::cta", "cluster": ".shared::cluster", "all": ""}[self.memory]
            c.line(f'asm volatile("fence.proxy.async{space};" ::: "memory");')
