"""What loads and stores between registers and memory have in common: operands of one shape, who moves what, and how
wide.
"""

from __future__ import annotations

from ..errors import TypeRuleError
from ..layouts import Sym, vector_element
from ..program import CudaWriter, Place, Scope, Value
from ..types import Coalesced, Layout, RegisterTile, RegisterVector, SharedTile, SharedVector
from .addressing import VECTOR, GlobalText, vector_bytes
from .broadcast import register_type
from .layout_route import spelled


def check_pair(register: Value | RegisterTile | RegisterVector, memory: Value | Place, what: str) -> None:
    """Register and memory operand have the same shape."""
    type = register if isinstance(register, (RegisterTile, RegisterVector)) else register_type(register, what)
    if isinstance(memory, Place):
        shape: tuple[int, ...] = memory.shape
    elif (
        isinstance(memory.type, SharedVector) and isinstance(type, RegisterTile) and isinstance(type.layout, Coalesced)
    ):
        shape = (1, memory.type.length)  # the only row of a tile
    elif isinstance(memory.type, (SharedTile, SharedVector)):
        shape = memory.type.shape
    else:
        raise TypeRuleError(
            f"{what} does not take {memory.type}",
            fix="use a shared tile or vector, or a global tensor with a coordinate",
        )
    wanted = (type.length,) if isinstance(type, RegisterVector) else type.shape
    if shape != wanted:
        raise TypeRuleError(
            f"{what}: a {type} does not fit {' x '.join(map(str, shape))} elements in memory", fix="shapes must agree"
        )
    vector = memory.gathered if isinstance(memory, Place) else None
    if (
        isinstance(type, RegisterTile)
        and vector is not None
        and (
            (vector.type.layout, vector.type.warps) != (type.layout, type.warps)  # type: ignore[union-attr]
        )
    ):
        raise TypeRuleError(
            f"{what}: the rows {vector.label}: {vector.type} do not lie beside those of {type}",
            fix=f"load the vector for that tile: {what_loads(type)}",
        )
    if isinstance(type, RegisterVector) and type.partial:
        raise TypeRuleError(f"{what}: a partial vector has no values yet", fix="sum it first: x.total()")
    if what == "load" and in_runs(type) and type.layout.width == 1 and type.dtype.packed:  # type: ignore[union-attr]
        raise TypeRuleError(
            f"load: a {type} holds pairs of neighbours, which a run of one does not", fix="load it as pk.f32"
        )
    kept = isinstance(memory, Place) and memory.within is not None and isinstance(type, RegisterVector)
    if kept and in_runs(type):
        raise TypeRuleError(
            f"{what} of {type}, kept to some elements", fix="use a vector in the tensor cores' layout, or a naive one"
        )


def what_loads(type: RegisterTile) -> str:
    """How a column vector is loaded that goes with a tile."""
    scope = {1: "warp", 4: "warpgroup"}.get(type.warps, f"pk.group({type.warps})")
    layout = "" if type.layout == "row" else f", layout={spelled(type.layout)}"
    return f"{scope}.load_col(index, (0,), length={type.rows}{layout})"


def in_runs(type: RegisterTile | RegisterVector) -> bool:
    """Whether a thread's elements are runs of neighbours in memory: coalesced tiles and their row vectors."""
    return isinstance(type.layout, Coalesced) and (isinstance(type, RegisterTile) or type.kind == "row")


def neighbours(type: RegisterTile | RegisterVector, memory: Value | Place) -> int:
    """How many neighbouring elements one access of a thread moves, as `Load` and `Store` write it."""
    widest = vector_bytes(memory) if isinstance(memory, Place) else 16
    size = memory.type.dtype.size  # type: ignore[union-attr]
    if in_runs(type):
        assert isinstance(type.layout, Coalesced)
        return min(type.layout.width, widest // size)
    if isinstance(type, RegisterVector):
        return type.width if move_whole_runs(type, memory) else 1
    return 2 if type.layout == "row" and pairable(memory) else 1


def pairable(memory: Value | Place) -> bool:
    """Whether two neighbours of a row can move in one access: they are aligned, and exist both or not at all."""
    if isinstance(memory, Value):
        return True
    dim, aligned = memory.type.padded[3], vector_bytes(memory) % (2 * memory.type.dtype.size) == 0
    even = isinstance(dim, int) and dim % 2 == 0 and memory.columns is None and len(memory.shape) == 2
    return aligned and (memory.inside_columns() or even)


def naive_limit(vector: RegisterVector) -> int:
    """The length that each index of a naive vector must be tested against: 0 where it fills its threads, or is not
    naive.
    """
    return vector.length if vector.kind == "naive" and vector.length % (32 * vector.warps * vector.width) else 0


def move_whole_runs(vector: RegisterVector, memory: Value | Place) -> bool:
    """Whether a thread's runs of a naive vector each move to or from memory in one access."""
    if vector.kind != "naive" or vector.width == 1 or (isinstance(memory, Place) and memory.within is not None):
        return False
    bytes_ = vector.width * memory.type.dtype.size  # type: ignore[union-attr]
    aligned = isinstance(memory, Value) or vector_bytes(memory) % bytes_ == 0
    return bytes_ in VECTOR and aligned and vector.length % vector.width == 0


def open_runs(c: CudaWriter, scope: Scope, vector: RegisterVector, g: GlobalText | None) -> tuple[str, str]:
    """Begins a loop over the runs `i` of a naive vector, `x` the first element of each.

    Returns C conditions: that all of a run exists (empty where all do), and that some of it does, where the end of the
    row may cut it.
    """
    at, limit = vector_element(vector, c.warp(scope), c.lane, Sym(f"(i * {vector.width})")), naive_limit(vector)
    c.line(f"PK_UNROLL for (int i = 0; i < {vector.registers // vector.width}; i++) {{ const int x = {at};")
    if g is None:
        return (f"x < {limit}" if limit else ""), ""
    whole = (f"x < {limit}" if limit else "", g.inside("0", "x", vector.width))
    some = (f"x < {limit}" if limit else "", f"x < {g.cols_left}", g.rows_left and f"0 < {g.rows_left}")
    return " && ".join(filter(None, whole)), " && ".join(filter(None, some))


LAYOUTS: tuple[Layout, ...] = ("row", "col", Coalesced(4, 2))
