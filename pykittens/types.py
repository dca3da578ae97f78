"""The types of a kernel's values: dtypes, register and shared tiles and vectors, global tensors, scalars.

A type is a frozen description; where its elements live is `layouts.py`'s business.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, Union

import ml_dtypes
import numpy as np

from .errors import TypeRuleError
from .loading import dataclass
from .versions import check_version

check_version("numpy", np.__version__)
check_version("ml_dtypes", ml_dtypes.__version__)


@dataclass(frozen=True)
class Coalesced:
    """The layout of a tile whose rows are read and written at the speed of memory.

    `lanes` neighbouring threads share a row; each holds runs of `width` neighbouring elements, `lanes * width` apart. A
    warp's tile takes 1 to 32 lanes a row (a power of two), a larger scope's all its threads. `width` is as a rule what
    16 bytes hold.
    """

    lanes: int
    width: int

    def __post_init__(self) -> None:
        for name, x, limit in (("lanes", self.lanes, 1024), ("width", self.width, 16)):
            if not isinstance(x, int) or not 1 <= x <= limit or (name == "width" and x & (x - 1)):
                raise TypeRuleError(
                    f"a coalesced layout with {name}={x!r}", fix=f"{name} is 1 to {limit}, and the width a power of two"
                )

    def __str__(self) -> str:
        return f"{self.lanes} lanes x {self.width}"


Layout = Union[Literal["row", "col"], Coalesced]


@dataclass(frozen=True)
class DType:
    """An element type: its name, size in bits, kind (f, i, u, b), NumPy dtype, and name in CUDA C.

    Registers hold bf16, f16, f32, i32, u32, i64 and bool. The others are dtypes of memory: a load widens 8 bits to
    float32 or int32, and a store narrows them.
    """

    name: str
    bits: int
    kind: str
    numpy: np.dtype
    c: str

    @property
    def size(self) -> int:
        """Bytes of one element in memory."""
        return self.bits // 8

    @property
    def packed(self) -> bool:
        """Whether registers hold two neighbours in one 32-bit word (bf16, f16)."""
        return self.bits == 16 and self.kind == "f"

    def __repr__(self) -> str:
        return self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __or__(self, other: None) -> DType:
        """`pk.f32 | None`, of a scalar that may be left out: its default says so."""
        return self if other is None else NotImplemented

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return _dtype_named, (self.name,)  # copies and pickles are the dtype itself


def _dtype_named(name: str) -> DType:
    return DTYPES[name]


def _dtype(name: str, bits: int, kind: str, numpy: type, c: str) -> DType:
    return DType(name, bits, kind, np.dtype(numpy), c)


bf16 = _dtype("bf16", 16, "f", ml_dtypes.bfloat16, "bf16")
f16 = _dtype("f16", 16, "f", np.float16, "f16")
f32 = _dtype("f32", 32, "f", np.float32, "float")
f64 = _dtype("f64", 64, "f", np.float64, "double")
e4m3 = _dtype("e4m3", 8, "f", ml_dtypes.float8_e4m3fn, "e4m3")
e5m2 = _dtype("e5m2", 8, "f", ml_dtypes.float8_e5m2, "e5m2")
i8 = _dtype("i8", 8, "i", np.int8, "signed char")
u8 = _dtype("u8", 8, "u", np.uint8, "unsigned char")
i32 = _dtype("i32", 32, "i", np.int32, "int")
u32 = _dtype("u32", 32, "u", np.uint32, "u32")
i64 = _dtype("i64", 64, "i", np.int64, "i64")
bool_ = _dtype("bool", 8, "b", np.bool_, "bool")

DTYPES = {d.name: d for d in (bf16, f16, f32, f64, e4m3, e5m2, i8, u8, i32, u32, i64, bool_)}
REGISTER_DTYPES = (bf16, f16, f32, i32, u32, i64, bool_)


def _check_dtype(dtype: object, allowed: tuple[DType, ...], what: str) -> None:
    if not isinstance(dtype, DType) or dtype not in allowed:
        known = ", ".join(f"pk.{'bool_' if d is bool_ else d}" for d in allowed)
        raise TypeRuleError(f"{what} cannot hold {dtype!r}", fix=f"use one of {known}")


def check_sizes(what: str, *sizes: object) -> None:
    """Sizes are known while a kernel is traced: they decide which registers there are."""
    for x in sizes:
        if not hasattr(type(x), "__index__") or hasattr(x, "type") or isinstance(x, bool):
            fix = (
                'sizes are Python ints; a tensor\'s dimension is one where it is static: pk.gl(pk.f32, "N", '
                'pk.static("D"))'
            )
            raise TypeRuleError(
                f"the size of {what} is {getattr(x, 'label', repr(x))}, which is no Python int", fix=fix
            )


def _check_layout(layout: object, what: str) -> None:
    if layout not in ("row", "col") and not isinstance(layout, Coalesced):
        raise TypeRuleError(f"{what} with layout {layout!r}", fix='use "row", "col" or pk.coalesced(...)')


@dataclass(frozen=True)
class ScalarType:
    """One value, the same in all threads of a warp; `mutable` for `pk.var`."""

    dtype: DType
    mutable: bool = False

    def __str__(self) -> str:
        return self.dtype.name


def _check_held(type: RegisterTile | RegisterVector, shape: str) -> None:
    """A thread has 255 registers, and what does not fit lies in 512 KiB of local memory (CUDA C++ Programming Guide,
    "Technical Specifications per Compute Capability").
    """
    held = type.registers * type.dtype.size
    if held > 1 << 19:
        raise TypeRuleError(
            f"{shape} {type.dtype} are {held} bytes for each of {32 * type.warps} threads, which have room for 524288",
            fix="load a part at a time, in a loop: pk.range(pk.cdiv(x.cols, 64))",
        )


@dataclass(frozen=True)
class RegisterTile:
    """`rt`: a rows x cols tile spread over the registers of `warps` warps (16 rows each, in turn)."""

    dtype: DType
    rows: int
    cols: int
    layout: Layout = "row"
    warps: int = 1

    def __post_init__(self) -> None:
        _check_dtype(self.dtype, REGISTER_DTYPES, "a register tile")
        _check_layout(self.layout, "a register tile")
        check_sizes("a register tile", self.rows, self.cols)
        if isinstance(self.layout, Coalesced):
            self._check_coalesced(self.layout)
        elif self.rows <= 0 or self.cols <= 0 or self.rows % (16 * self.warps) or self.cols % 16:
            raise TypeRuleError(
                f"a register tile of {self.rows} x {self.cols} {self.dtype} does not divide over {self.warps} warps",
                fix=f"rows must be a multiple of {16 * self.warps} (16 a warp) and columns of 16",
            )
        _check_held(self, f"{self.rows} x {self.cols}")

    def _check_coalesced(self, layout: Coalesced) -> None:
        threads, lanes = 32 * self.warps, layout.lanes
        if lanes != threads and (self.warps > 1 or 32 % lanes):
            fix = "use 1, 2, 4, 8, 16 or 32 lanes" if self.warps == 1 else f"use all {threads} threads as lanes"
            raise TypeRuleError(f"{lanes} lanes a row for a tile over {self.warps} warps", fix=fix)
        held, step = threads // lanes, lanes * layout.width
        if self.rows <= 0 or self.cols <= 0 or self.rows % held or self.cols % step:
            raise TypeRuleError(
                f"a register tile of {self.rows} x {self.cols} {self.dtype} does not divide over {layout}, {held} rows "
                "at a time",
                fix=f"rows must be a multiple of {held} and columns of {step}; what lies past a tensor's end reads as "
                "zero",
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, cols)."""
        return (self.rows, self.cols)

    @property
    def registers(self) -> int:
        """Elements one thread holds."""
        return self.rows * self.cols // (32 * self.warps)

    @property
    def warp_rows(self) -> int:
        """Rows of one warp."""
        return self.rows // self.warps

    def vector(self, kind: Literal["col", "row"], dtype: DType | None = None, partial: bool = False) -> RegisterVector:
        """The type of this tile's column vector (`kind` "col": one value a row) or row vector ("row": one a column).

        `dtype`: the tile's unless given; `partial`: one term a thread.
        """
        length = self.rows if kind == "col" else self.cols
        return RegisterVector(dtype or self.dtype, length, kind, self.layout, self.warps, partial)

    def __str__(self) -> str:
        scope = "" if self.warps == 1 else f" over {self.warps} warps"
        layout = "" if self.layout == "row" else f", {self.layout}"
        return f"rt<{self.dtype}, {self.rows}x{self.cols}{layout}>{scope}"


@dataclass(frozen=True)
class RegisterVector:
    """`rv`: a vector in registers.

    kind "col" has one value per row of a tile, "row" one per column, "naive" is spread evenly over all
    threads (`width` neighbours a thread), for coalesced input and output. `layout` is that of the tile
    it belongs to. A `partial` column vector holds one term per thread: the four threads that share a row
    have not been summed yet (of a coalesced tile: one term per warp). A partial row vector holds one term per
    warp of a fragment.
    """

    dtype: DType
    length: int
    kind: Literal["col", "row", "naive"]
    layout: Layout = "row"
    warps: int = 1
    partial: bool = False
    width: int = 1

    def __post_init__(self) -> None:
        _check_dtype(self.dtype, REGISTER_DTYPES, "a register vector")
        _check_layout(self.layout, "a register vector")
        check_sizes("a register vector", self.length)
        if self.kind not in ("col", "row", "naive"):
            raise TypeRuleError(
                f"a register vector with kind {self.kind!r}",
                fix='use "col" (one value a row), "row" (one a column) or "naive"',
            )
        unit = 1 if self.kind == "naive" or isinstance(self.layout, Coalesced) else 16 * self.spread
        if self.length <= 0 or self.length % unit:
            raise TypeRuleError(
                f"a register vector cannot have {self.length} elements", fix=f"use a positive multiple of {unit}"
            )
        of_rows = self.kind == "col" and self.layout != "col"
        of_columns = self.kind == "row" and self.warps > 1 and not isinstance(self.layout, Coalesced)
        if self.partial and not of_rows and not of_columns:
            raise TypeRuleError(
                "only the column vector of a row-layout tile, and the row vector of several warps, can be partial",
                fix="reduce it at once",
            )
        _check_held(self, f"{self.length}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in the simulator: a partial vector has one term for each of the four threads of a row, or each warp."""
        terms = self.warps if isinstance(self.layout, Coalesced) or self.kind == "row" else 4
        return (self.length, terms) if self.partial else (self.length,)

    @property
    def ortho(self) -> bool:
        """One value a row of the fragment (2 for each 16), rather than two neighbours (4 for each 16)."""
        return (self.kind == "col") == (self.layout == "row")

    @property
    def spread(self) -> int:
        """Over how many warps the elements are divided; the others hold copies (row vectors)."""
        return self.warps if self.kind == "col" else 1

    @property
    def registers(self) -> int:
        """Elements one thread holds."""
        if self.kind == "naive":
            return -(-self.length // (32 * self.warps * self.width)) * self.width
        if isinstance(self.layout, Coalesced):
            return (
                self.length * self.layout.lanes // (32 * self.warps)
                if self.kind == "col"
                else self.length // self.layout.lanes
            )
        return self.length // self.spread // (8 if self.ortho else 4)

    def __str__(self) -> str:
        name = {"col": "col_vec", "row": "row_vec", "naive": "naive"}[self.kind]
        scope = "" if self.warps == 1 else f" over {self.warps} warps"
        layout = "" if self.layout == "row" else f", {self.layout}"
        if self.kind == "naive" and self.width > 1:
            layout = f", runs of {self.width}"
        return f"rv<{self.dtype}, {self.length}, {name}{layout}{', partial' if self.partial else ''}>{scope}"


def swizzle_bytes(dtype: DType, cols: int) -> int:
    """The widest swizzle (128, 64 or 32 bytes) whose span divides a row of `cols` elements."""
    for span in (128, 64, 32):
        if (cols * dtype.size) % span == 0:
            return span
    raise TypeRuleError(
        f"a shared tile with rows of {cols} {dtype} ({cols * dtype.size} bytes) has no swizzle",
        fix="make a row a multiple of 32 bytes",
    )


@dataclass(frozen=True)
class SharedTile:
    """`st`: a rows x cols tile in shared memory, in panels as wide as its swizzle (ThunderKittens', TMA's).

    `pitch` is the number of rows of the allocation it lies in (a view keeps its parent's). `column` says
    that a view starts inside a panel, so that its value carries a first column too; `row`, that it may start at a row
    that is no multiple of 8, inside of the pattern of its swizzle.
    """

    dtype: DType
    rows: int
    cols: int
    swizzle: int = 0
    pitch: int = 0
    column: bool = False
    row: bool = False

    def __post_init__(self) -> None:
        _check_dtype(self.dtype, (bf16, f16, f32, e4m3, e5m2, i32, u32, i64, i8, u8), "a shared tile")
        check_sizes("a shared tile", self.rows, self.cols)
        if self.rows <= 0 or self.cols <= 0 or self.rows % 8 or self.cols % 16:
            raise TypeRuleError(
                f"a shared tile cannot be {self.rows} x {self.cols}",
                fix="rows must be a positive multiple of 8 and columns of 16",
            )
        if not self.swizzle:
            object.__setattr__(self, "swizzle", swizzle_bytes(self.dtype, self.cols))
        if self.swizzle not in (32, 64, 128):
            raise TypeRuleError(f"a shared tile cannot swizzle over {self.swizzle} bytes", fix="use 32, 64 or 128")
        if self.cols * self.dtype.size % self.swizzle and not self.pitch:
            raise TypeRuleError(
                f"a shared tile with rows of {self.cols * self.dtype.size} bytes cannot swizzle over {self.swizzle}",
                fix="use a swizzle that divides a row",
            )
        if not self.pitch:
            object.__setattr__(self, "pitch", self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, cols)."""
        return (self.rows, self.cols)

    @property
    def bytes(self) -> int:
        """Bytes of shared memory."""
        return self.rows * self.cols * self.dtype.size

    @property
    def apart(self) -> str:
        """Where a view begins that TMA, wgmma and other blocks cannot name; empty where they can."""
        return "at a row that may be no multiple of 8" if self.row else "inside a panel" if self.column else ""

    @property
    def panel(self) -> int:
        """Columns of one panel: as many as the swizzle spans."""
        return self.swizzle // self.dtype.size

    def __str__(self) -> str:
        return f"st<{self.dtype}, {self.rows}x{self.cols}>"


@dataclass(frozen=True)
class SharedVector:
    """`sv`: `length` contiguous elements in shared memory."""

    dtype: DType
    length: int

    def __post_init__(self) -> None:
        _check_dtype(self.dtype, tuple(d for d in DTYPES.values() if d is not bool_), "a shared vector")
        check_sizes("a shared vector", self.length)
        if self.length <= 0:
            raise TypeRuleError(f"a shared vector cannot have {self.length} elements", fix="use a positive length")

    @property
    def shape(self) -> tuple[int, ...]:
        """(length,)."""
        return (self.length,)

    @property
    def bytes(self) -> int:
        """Bytes of shared memory."""
        return self.length * self.dtype.size

    def __str__(self) -> str:
        return f"sv<{self.dtype}, {self.length}>"


@dataclass(frozen=True)
class Global:
    """`gl`: a tensor of up to four dimensions (batch, depth, rows, cols) in global memory.

    A dimension is an int (static), or a name (found at launch; equal names must have equal lengths).
    Strides are known at launch; the last dimension is contiguous. `align` is what pointer and strides are
    multiples of, in bytes (16, 8, 4, 2 or 1). `dense`: rows lie one after another, as many elements apart as a row has.
    """

    dtype: DType
    dims: tuple[Union[int, str], ...]
    align: int = 16
    dense: bool = False

    @property
    def rank(self) -> int:
        return len(self.dims)

    @property
    def padded(self) -> tuple[Union[int, str], ...]:
        """All four dimensions; missing leading ones are 1."""
        return (1,) * (4 - self.rank) + self.dims

    def __str__(self) -> str:
        return f"gl<{self.dtype}, {' x '.join(map(str, self.dims))}>"


@dataclass(frozen=True)
class BarrierType:
    """An mbarrier in shared memory: `count` arrivals and the promised bytes complete a phase."""

    count: int

    bytes = 8

    def __str__(self) -> str:
        return f"mbarrier<{self.count}>"


Type = Union[ScalarType, RegisterTile, RegisterVector, SharedTile, SharedVector, Global, BarrierType]


def with_dtype(type: RegisterTile | RegisterVector, dtype: DType) -> RegisterTile | RegisterVector:
    """The same shape and layout, holding another dtype."""
    return replace(type, dtype=dtype)
