"""All that `pk.name` may be: the words kernels are written in, errors, and functions on arrays."""

from .errors import (
    ArgumentError,
    BarrierError,
    DeadlockError,
    Diagnosis,
    InFlightError,
    KernelAssertionError,
    KernelError,
    OutOfBoundsError,
    RaceError,
    ResourceError,
    TraceError,
    TypeRuleError,
    UninitializedError,
)
from .functional import attention, matmul
from .kernel import Kernel, kernel, spec
from .trace.dynamic import atomic_add, dynamic
from .trace.elementwise import (
    col_index,
    cos,
    erf,
    exp,
    exp2,
    fma,
    iota,
    join,
    join_pairs,
    left_fill,
    log,
    log2,
    maximum,
    minimum,
    random_bits,
    rcp,
    relu,
    right_fill,
    rolls,
    row_index,
    rsqrt,
    sigmoid,
    sin,
    sqrt,
    tanh,
    where,
)  # fmt: skip
from .trace.flow import break_if, loop, otherwise, range, role, when
from .trace.functions import assert_, cuda, named_barrier, print
from .trace.hopper import arrive, cluster, launch_next, tma, turns, wait, wait_for_previous, warpgroup
from .trace.memory import at, shared
from .trace.rings import barrier, ring
from .trace.scalar import block_index, cast, cdiv, grid_size, var
from .trace.schedule import grouped, persistent, rectangle, triangle
from .trace.scopes import block, group, warp
from .trace.signature import gl, static
from .types import Coalesced as coalesced
from .types import RegisterTile as rt
from .types import RegisterVector as rv
from .types import SharedTile as st
from .types import SharedVector as sv
from .types import bf16, bool_, e4m3, e5m2, f16, f32, f64, i8, i32, i64, u8, u32

inf = float("inf")

__all__ = [
    "ArgumentError", "BarrierError", "DeadlockError", "Diagnosis", "InFlightError", "Kernel", "KernelAssertionError",
    "KernelError", "OutOfBoundsError", "RaceError", "ResourceError", "TraceError", "TypeRuleError",
    "UninitializedError", "arrive", "assert_", "at", "atomic_add", "attention", "barrier", "bf16", "block",
    "block_index", "bool_", "break_if", "cast", "cdiv", "cluster", "coalesced", "col_index", "cos", "cuda", "dynamic",
    "e4m3", "e5m2", "erf", "exp", "exp2", "f16", "f32", "f64", "fma", "gl", "grid_size", "group", "grouped", "i32", "i64", "i8", "inf", "iota",
    "join", "join_pairs", "kernel", "launch_next", "left_fill", "log", "log2", "loop", "matmul", "maximum", "minimum", "named_barrier",
    "otherwise", "persistent", "print", "random_bits", "range", "rcp", "rectangle", "relu", "right_fill", "ring", "role", "rolls", "row_index", "rsqrt",
    "rt", "rv", "shared", "sigmoid", "sin", "spec", "sqrt", "st", "static", "sv", "tanh", "tma", "triangle", "turns", "u32", "u8",
    "var", "wait", "wait_for_previous", "warp", "warpgroup", "when", "where",
]  # fmt: skip
