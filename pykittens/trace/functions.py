"""The vocabulary that belongs to no scope: maps on tiles and scalars, positions, memory, variables, debugging."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..errors import TraceError, TypeRuleError
from ..ops import binary, debug, fill, inline, masks, pairs, random, scalars, unary, views
from ..ops.parts import TileJoin
from ..ops.rolls import Rolls
from ..ops.sync import NamedBarrierType
from ..program import Operand, Value, is_scalar
from ..types import DType, RegisterTile, RegisterVector, SharedTile, SharedVector, bf16, bool_, f16, f32, i32, i64, u32
from . import recorder
from .recorder import current, record, result, scope_of
from .scopes import ScopeHandle, warp
from .values import THREAD, Barrier, Scalar, Shared, Tile, Variable, _captured, _number

inf = float("inf")


def _map(kind: str) -> Callable[[Any], Any]:
    def apply(x: Any) -> Any:
        _captured(x)
        if isinstance(x, Tile):
            return result(unary.Unary(scope_of(x.type.warps), kind, x))
        x = _number(x)
        if kind in scalars.SCALAR_FUNCTIONS and is_scalar(x):
            return result(scalars.ScalarUnary(THREAD, kind, x))
        raise TypeRuleError(f"pk.{kind} does not take {x!r}", fix="pass a register tile or vector, or for exp, log and sqrt a scalar")

    apply.__name__ = kind
    apply.__doc__ = f"{kind} of every element of a register tile or vector" + (" or of a scalar." if kind in scalars.SCALAR_FUNCTIONS else ".")
    return apply


exp, exp2, log, log2 = _map("exp"), _map("exp2"), _map("log"), _map("log2")
sqrt, rsqrt, rcp, relu = _map("sqrt"), _map("rsqrt"), _map("rcp"), _map("relu")
tanh, sigmoid, erf, sin, cos = _map("tanh"), _map("sigmoid"), _map("erf"), _map("sin"), _map("cos")


def _two(kind: str, a: Any, b: Any) -> Any:
    _captured(a)
    _captured(b)
    for x in (a, b):
        if isinstance(x, Tile):
            return result(binary.Binary(scope_of(x.type.warps), kind, _number(a), _number(b)))
    a, b = _number(a), _number(b)
    if not isinstance(a, Value) and not isinstance(b, Value):
        return scalars.PYTHON[kind](a, b)
    return result(scalars.ScalarBinary(THREAD, kind, a, b))


def maximum(a: Any, b: Any) -> Any:
    """The larger of two tiles, vectors or scalars, elementwise; a NaN operand loses (PTX max)."""
    return _two("max", a, b)


def minimum(a: Any, b: Any) -> Any:
    """The smaller of two tiles, vectors or scalars, elementwise; a NaN operand loses (PTX min)."""
    return _two("min", a, b)


def fma(a: Any, b: Any, c: Any) -> Tile:
    """a * b + c, elementwise, rounded once."""
    tile = next((x for x in (a, b, c) if isinstance(x, Tile)), None)
    if tile is None:
        raise TypeRuleError("pk.fma without a register tile", fix="write a * b + c for scalars")
    return result(binary.Fma(scope_of(tile.type.warps), _number(a), _number(b), _number(c)))  # type: ignore[no-any-return]


def where(condition: Any, a: Any, b: Any) -> Any:
    """`a` where the mask (or scalar bool) holds, else `b`."""
    _captured(a)
    _captured(b)
    if isinstance(condition, bool):
        return a if condition else b
    if isinstance(condition, Tile):
        return result(masks.Select(scope_of(condition.type.warps), condition, _number(a), _number(b)))
    if not is_scalar(condition):
        raise TypeRuleError(f"pk.where chooses by {condition!r}", fix="compare first: pk.where(x > 0, a, b)")
    if isinstance(a, Tile) or isinstance(b, Tile):
        raise TypeRuleError("pk.where with a scalar condition and tiles", fix="compare tiles for an elementwise choice, or use pk.when")
    return result(scalars.ScalarSelect(THREAD, condition, _number(a), _number(b)))


def right_fill(x: Tile, col: Operand, value: Operand) -> Tile:
    """A tile with `value` in every column from `col` on: what lies past a row's end."""
    return result(masks.SideFill(scope_of(x.type.warps), "right", x, _number(col), _number(value)))  # type: ignore[no-any-return]


def left_fill(x: Tile, col: Operand, value: Operand) -> Tile:
    """A tile with `value` in every column before `col`."""
    return result(masks.SideFill(scope_of(x.type.warps), "left", x, _number(col), _number(value)))  # type: ignore[no-any-return]


def random_bits(like: Tile, seed: tuple[Operand, Operand], row: Operand = 0, col: Operand = 0) -> Tile:
    """32 random bits (u32) for each element of a tile that begins at (row, col) of something larger: Philox 4x32-10.

    They depend on the seed and on the element's row and column only; `pykittens.ops.random.random_bits` gives the same.
    """
    key = (_number(seed[0]), _number(seed[1]))
    return result(random.RandomBits(scope_of(like.type.warps), like.type, key, _number(row), _number(col)))  # type: ignore[no-any-return, arg-type]


def join_pairs(a: Tile, b: Tile) -> Tile:
    """A coalesced tile whose even columns are those of `a` and odd columns those of `b`; the inverse of `x.split_pairs()`."""
    return result(pairs.JoinPairs(scope_of(a.type.warps), a, b))  # type: ignore[no-any-return]


def row_index(tile: Tile) -> Tile:
    """Column vector: the number of each row of a tile, int32."""
    return _positions(tile, "col")


def col_index(tile: Tile) -> Tile:
    """Row vector: the number of each column of a tile, int32."""
    return _positions(tile, "row")


def _positions(tile: Tile, kind: Any) -> Tile:
    if not isinstance(tile, Tile) or not isinstance(tile.type, RegisterTile):
        raise TypeRuleError(f"row and column numbers of {tile!r}", fix="pass a register tile")
    return result(fill.Positions(scope_of(tile.type.warps), tile.type.vector(kind, i32)))  # type: ignore[no-any-return]


def iota(vector: Tile) -> Tile:
    """The index of each element of a vector, int32."""
    if not isinstance(vector, Tile) or not isinstance(vector.type, RegisterVector):
        raise TypeRuleError(f"pk.iota of {vector!r}", fix="pass a register vector; row_index and col_index number a tile")
    return result(fill.Positions(scope_of(vector.type.warps), vector.type))  # type: ignore[no-any-return]


def rolls(tile: Tile, distances: Iterable[int]) -> tuple[Tile, ...]:
    """A tile for each distance m: its column c is column (c + m) modulo the width of a 16-bit tile."""
    if not isinstance(tile, Tile):
        raise TypeRuleError(f"pk.rolls of {tile!r}", fix="pass a register tile")
    return record(Rolls(scope_of(tile.type.warps), tile, tuple(distances))).results  # type: ignore[return-value]


def join(*tiles: Tile) -> Tile:
    """Tiles of the same rows side by side, as one."""
    if not tiles or not all(isinstance(x, Tile) for x in tiles):
        raise TypeRuleError(f"pk.join of {tiles!r}", fix="pass register tiles")
    return result(TileJoin(scope_of(tiles[0].type.warps), tiles))  # type: ignore[no-any-return]


def cast(x: Operand, dtype: DType) -> Scalar:
    """A scalar as another dtype."""
    return result(scalars.ScalarCast(THREAD, _number(x), dtype))  # type: ignore[no-any-return]


def var(dtype: DType, initial: Operand = 0) -> Variable:
    """A mutable scalar, for state that changes in run-time loops and branches."""
    if dtype not in (i32, i64, u32, f32, bool_):
        raise TypeRuleError(f"a variable of {dtype}", fix="use i32, i64, u32, f32 or bool")
    return result(scalars.Variable(THREAD, dtype, _number(initial)))  # type: ignore[no-any-return]


def shared(type: SharedTile | SharedVector, count: int = 1, name: str = "") -> Shared:
    """Allocates `count` tiles or vectors of shared memory for the whole kernel; index the array when `count` > 1."""
    r = current()
    if not isinstance(type, (SharedTile, SharedVector)):
        raise TypeRuleError(f"pk.shared of {type!r}", fix="pass pk.st(dtype, rows, cols) or pk.sv(dtype, length)")
    if not isinstance(count, int) or count < 1:
        raise TypeRuleError(f"pk.shared with count={count!r}", fix="the count is a positive Python int")
    align = 8 * type.swizzle if isinstance(type, SharedTile) else 128  # the swizzle pattern repeats every 8 spans
    handle = r.buffer(type, count, align, name)
    assert isinstance(handle, Shared)
    handle.count, handle.stride = count, r.program.buffers[-1].item_bytes
    return handle


def named_barrier(warps: int, count: int = 1) -> Barrier:
    """`count` hardware barriers (of the block's 16), each ended by `warps` warps."""
    r = current()
    handle = recorder.make_value(NamedBarrierType(warps))
    assert isinstance(handle, Barrier)
    handle.count, handle.where = count, recorder.here()
    r.program.facts.setdefault("named barriers", []).append(handle)
    return handle


class _Axes:
    """`.x`, `.y`, `.z` of the block's index or of the grid's size."""

    def __init__(self, kind: str):
        self.kind = kind

    def _axis(self, axis: str) -> Scalar:
        return result(scalars.Index(THREAD, f"{self.kind}_{axis}"))  # type: ignore[no-any-return]

    @property
    def x(self) -> Scalar:
        return self._axis("x")

    @property
    def y(self) -> Scalar:
        return self._axis("y")

    @property
    def z(self) -> Scalar:
        return self._axis("z")


block_index, grid_size = _Axes("block"), _Axes("grid")


def cdiv(a: Any, b: Any) -> Any:
    """a / b rounded up, for integers: Python's or traced."""
    return (a + b - 1) // b


def print(*parts: Any, scope: ScopeHandle = warp) -> None:
    """Prints texts, scalars and register tiles from inside the kernel, on both back ends."""
    text = ""
    values: list[Any] = []
    for part in parts:
        if isinstance(part, str) and not values:
            text += part + " "
        else:
            values.append(_number(part))
    tiles = [x for x in values if isinstance(x, Tile)]
    record(debug.Print(scope_of(tiles[0].type.warps) if tiles else scope.scope, text, tuple(values)))


def assert_(condition: Operand, text: str = "") -> None:
    """Stops the simulated kernel, or a debug build on a GPU, where a traced bool does not hold."""
    if isinstance(condition, bool) and not condition:
        raise TraceError(f"pk.assert_ failed while tracing: {text}", fix="the condition is a Python bool that is False")
    record(debug.Assert(warp.scope, condition, text))


def cuda(text: str, *, reads: dict[str, Any] | None = None, writes: dict[str, Any] | None = None, numpy: Callable[..., Any] | None = None,
         scope: ScopeHandle = warp, support: str = "") -> None:  # fmt: skip
    """Inlines CUDA C or PTX, with `{name}` for operands; see `ops/inline.py`.

    `reads` and `writes` name the operands; `numpy(**arrays)` returns the new value of each written operand (a tuple
    if several), for the simulator. `support` is CUDA C put once before the kernel (device functions).
    """
    inputs, outputs = reads or {}, writes or {}
    both = {**{k: _number(v) for k, v in inputs.items()}, **outputs}
    record(inline.Inline(scope.scope, text, tuple(both), tuple(both.values()), tuple(outputs), numpy, support))


__all__ = ["bf16", "f16", "views"]
