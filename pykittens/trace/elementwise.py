"""Functions of tiles and scalars: maps, choices, positions, random bits, and tiles made of several."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..errors import TypeRuleError
from ..ops import binary, fill, masks, pairs, random, scalar_arithmetic, scalar_functions, scalars, unary
from ..ops.rolls import Rolls
from ..ops.scalars import THREAD
from ..ops.slice_concat import TileJoin, TileStack
from ..program import Operand, Value, is_scalar
from ..types import Coalesced, DType, RegisterTile, RegisterVector, bool_, f32, i32, i64, with_dtype
from .cross_warp_reduction import row_reduce
from .handle import number, refuse_array
from .recorder import record, result, scope_of
from .shared_operands import in_registers, together
from .tile import Tile

MEANING = {
    "exp": "e ** x",
    "exp2": "2 ** x",
    "log": "The natural logarithm",
    "log2": "The logarithm to base 2",
    "sqrt": "The square root",
    "rsqrt": "1 / sqrt(x)",
    "rcp": "1 / x",
    "relu": "max(x, 0)",
    "tanh": "The hyperbolic tangent",
    "sigmoid": "1 / (1 + exp(-x))",
    "erf": "The error function",
    "sin": "The sine",
    "cos": "The cosine",
    "round": "The nearest whole number, halves to even,",
    "floor": "The largest whole number that is no larger",
    "ceil": "The smallest whole number that is no smaller",
    "trunc": "The whole number next towards 0",
}


def _map(kind: str) -> Callable[[Any], Any]:
    scalar = ", or a scalar" if kind in scalar_functions.SCALAR_FUNCTIONS else ""

    def apply(x: Any) -> Any:
        refuse_array(x)
        (x,) = in_registers(x)
        if isinstance(x, Tile) and x.dtype.kind in "iu" and kind in ("round", "floor", "ceil", "trunc"):
            return x
        if isinstance(x, Tile) and x.dtype.kind in "iu" and kind == "relu":
            return _two("max", x, 0)
        if isinstance(x, Tile):
            return result(unary.Unary(scope_of(x.type.warps), kind, x))
        x = number(x)
        if kind in scalar_functions.SCALAR_FUNCTIONS and is_scalar(x):
            return result(scalar_functions.ScalarUnary(THREAD, kind, x))
        raise TypeRuleError(f"pk.{kind} does not take {x!r}", fix=f"pass a register tile or vector{scalar}")

    apply.__name__ = kind
    apply.__doc__ = (
        f"{MEANING[kind]} of every element of a tile or vector `x`{scalar}.\n\n"
        "Raises `TypeRuleError` for anything else."
    )
    return apply


exp, exp2, log, log2 = _map("exp"), _map("exp2"), _map("log"), _map("log2")


sqrt, rsqrt, rcp, relu = _map("sqrt"), _map("rsqrt"), _map("rcp"), _map("relu")


round, floor, ceil, trunc = _map("round"), _map("floor"), _map("ceil"), _map("trunc")


tanh, sigmoid, erf, sin, cos = _map("tanh"), _map("sigmoid"), _map("erf"), _map("sin"), _map("cos")


def _two(kind: str, a: Any, b: Any) -> Any:
    refuse_array(a)
    refuse_array(b)
    a, b = in_registers(a, b)
    for x in (a, b):
        if isinstance(x, Tile):
            return result(binary.Binary(scope_of(x.type.warps), kind, *together(number(a), number(b))))
    a, b = number(a), number(b)
    if not isinstance(a, Value) and not isinstance(b, Value):
        return min(a, b) if kind == "min" else max(a, b)
    return result(scalar_arithmetic.ScalarBinary(THREAD, kind, a, b))


def maximum(a: Any, b: Any) -> Any:
    """The larger of `a` and `b`, tiles, vectors or scalars, elementwise: NaN where one is, and +0 rather than -0."""
    return _two("max", a, b)


def minimum(a: Any, b: Any) -> Any:
    """The smaller of `a` and `b`, tiles, vectors or scalars, elementwise: NaN where one is, and -0 rather than +0."""
    return _two("min", a, b)


def fma(a: Any, b: Any, c: Any) -> Any:
    """a * b + c of tiles, vectors or scalars, elementwise, rounded once. Nothing else is: a * b + c rounds twice.

    Of 16-bit tiles the result is rounded once to 16 bits, and scalars beside them are rounded to the tile's dtype
    first.
    """
    for x in (a, b, c):
        refuse_array(x)
    a, b, c = in_registers(a, b, c)
    tile = next((x for x in (a, b, c) if isinstance(x, Tile)), None)
    if tile is None:
        return result(scalar_functions.ScalarFma(THREAD, number(a), number(b), number(c)))
    return result(binary.Fma(scope_of(tile.type.warps), *together(number(a), number(b), number(c))))


def where(condition: Any, a: Any, b: Any) -> Any:
    """`a` where the `condition` (a mask, or a scalar bool) holds, else `b`.

    Where tiles of two dtypes meet, the result has the one that NumPy promotes them to, with float32 where NumPy has
    float64: a float and an integer, and bf16 with f16, give float32; integers of two dtypes give int64.

    Raises `TypeRuleError` for a condition that is neither, and where the dtypes of `a` and `b` do not meet.
    """
    refuse_array(a)
    refuse_array(b)
    condition = number(condition)
    if isinstance(condition, bool):
        return a if condition else b
    condition, a, b = in_registers(condition, a, b)
    given = next((x for x in (condition, a, b) if isinstance(x, Tile)), None)
    if given is not None and (isinstance(condition, Tile) or is_scalar(condition)):
        condition, a, b = together(condition, number(a), number(b))
        a, b = promoted_tiles(a, b)
        return result(masks.Select(scope_of(given.type.warps), condition, a, b))
    if not is_scalar(condition):
        raise TypeRuleError(f"pk.where chooses by {condition!r}", fix="compare first: pk.where(x > 0, a, b)")
    return result(scalar_functions.ScalarSelect(THREAD, condition, number(a), number(b)))


def promoted_tiles(a: Any, b: Any) -> tuple[Any, Any]:
    """Two operands with one dtype, where one is a tile: `where` says which."""
    tiles = {x.dtype for x in (a, b) if isinstance(x, Tile)} - {bool_}
    numbers = {scalars.scalar_dtype(x) or i32 for x in (a, b) if not isinstance(x, Tile) and is_scalar(x)} - {bool_}
    if len(tiles) == 1 and not (f32 in numbers and next(iter(tiles)).kind != "f"):
        (dtype,) = tiles
    elif tiles or f32 in numbers:
        dtype = i64 if f32 not in numbers and all(x.kind in "iu" for x in tiles) else f32
    elif numbers:  # beside a mask
        dtype = next(iter(numbers))
    else:
        return a, b
    return tuple(x.to(dtype) if isinstance(x, Tile) else x for x in (a, b))  # type: ignore[return-value]


def tril(x: Tile, diagonal: Operand = 0, value: Operand = 0) -> Tile:
    """The tile `x` with `value` above a `diagonal`: 0 the main one, 1 the next above, -1 the next below."""
    return where(col_index(x) > row_index(x) + diagonal, value, x)


def triu(x: Tile, diagonal: Operand = 0, value: Operand = 0) -> Tile:
    """The tile `x` with `value` below a `diagonal`: 0 the main one, 1 the next above, -1 the next below."""
    return where(col_index(x) < row_index(x) + diagonal, value, x)


def upper_fill(x: Tile, row: Operand, value: Operand) -> Tile:
    """The tile `x` with `value` in every row before `row`."""
    return where(row_index(x) < row, value, x)


def lower_fill(x: Tile, row: Operand, value: Operand) -> Tile:
    """The tile `x` with `value` in every row from `row` on: what lies past the last row."""
    return where(row_index(x) >= row, value, x)


def upper_right_fill(x: Tile, row: Operand, col: Operand, value: Operand) -> Tile:
    """The tile `x` with `value` in the rows before `row`, from column `col` on."""
    return where((row_index(x) < row) & (col_index(x) >= col), value, x)


def right_fill(x: Tile, col: Operand, value: Operand) -> Tile:
    """The tile `x` with `value` in every column from `col` on: what lies past a row's end."""
    return result(masks.SideFill(scope_of(x.type.warps), "right", x, number(col), number(value)))


def left_fill(x: Tile, col: Operand, value: Operand) -> Tile:
    """The tile `x` with `value` in every column before `col`."""
    return result(masks.SideFill(scope_of(x.type.warps), "left", x, number(col), number(value)))


def random_bits(like: Tile, seed: tuple[Operand, Operand], row: Operand = 0, col: Operand = 0) -> Tile:
    """32 random bits (u32) for each element of a tile like `like` that begins at (row, col) of something larger: Philox
    4x32-10.

    They depend on the seed and on the element's row and column only; `pykittens.ops.random.random_bits(rows, cols,
    seed)` gives the same in NumPy.

    Raises `TypeRuleError` for a seed that is no pair.
    """
    if not isinstance(seed, tuple) or len(seed) != 2:
        raise TypeRuleError(f"random bits with seed {seed!r}", fix="a seed is a pair of 32-bit numbers: (3, 0)")
    key = (number(seed[0]), number(seed[1]))
    type: Any = like.type  # the type rule refuses vectors
    return result(random.RandomBits(scope_of(type.warps), type, key, number(row), number(col)))


def join_pairs(a: Tile, b: Tile) -> Tile:
    """A coalesced tile whose even columns are those of `a` and odd columns those of `b`; the inverse of
    `x.split_pairs()`.
    """
    return result(pairs.JoinPairs(scope_of(a.type.warps), a, b))


def full_like(x: Tile, value: Operand, dtype: DType | None = None) -> Tile:
    """A new tile or vector of the shape, layout and scope of `x`, every element `value`; of the dtype of `x` unless
    `dtype` is given.

    Raises `TypeRuleError` for an `x` that is neither.
    """
    if not isinstance(x, Tile):
        fix = "pass a register tile or vector; warp.full(dtype, rows, cols, value) takes a shape"
        raise TypeRuleError(f"a tile like {x!r}", fix=fix)
    type = x.type if dtype is None else with_dtype(x.type, dtype)
    if getattr(type, "partial", False) and not (isinstance(value, (int, float)) and value == 0):
        raise TypeRuleError(f"{value} like {type}, whose terms are summed later", fix="sum it first: x.total()")
    return result(fill.Fill(scope_of(type.warps), type, number(value)))


def zeros_like(x: Tile, dtype: DType | None = None) -> Tile:
    """A new tile or vector of zeros of the shape, layout and scope of `x`; `dtype` as `full_like`."""
    return full_like(x, 0, dtype)


def ones_like(x: Tile, dtype: DType | None = None) -> Tile:
    """A new tile or vector of ones of the shape, layout and scope of `x`; `dtype` as `full_like`."""
    return full_like(x, 1, dtype)


def row_index(tile: Tile) -> Tile:
    """Column vector: the number of each row of a tile, int32."""
    return _positions(tile, "col")


def col_index(tile: Tile) -> Tile:
    """Row vector: the number of each column of a tile, int32."""
    return _positions(tile, "row")


def _positions(tile: Tile, kind: Any) -> Tile:
    if not isinstance(tile, Tile) or not isinstance(tile.type, RegisterTile):
        raise TypeRuleError(
            f"row and column numbers of {tile!r}",
            fix="pass a register tile; pk.iota(x) numbers a vector, warp.iota_col(16) rows",
        )
    return result(fill.Positions(scope_of(tile.type.warps), tile.type.vector(kind, i32)))


def iota(vector: Tile) -> Tile:
    """The index of each element of a vector, int32.

    Raises `TypeRuleError` for anything but a register vector.
    """
    if not isinstance(vector, Tile) or not isinstance(vector.type, RegisterVector):
        raise TypeRuleError(
            f"pk.iota of {vector!r}",
            fix="pass a register vector, or make one: warp.iota(64); row_index and col_index number a tile",
        )
    return result(fill.Positions(scope_of(vector.type.warps), vector.type))


def rolls(tile: Tile, distances: Iterable[int]) -> tuple[Tile, ...]:
    """A tile for each m of the `distances`: its column c is column (c + m) modulo the width of a row-layout `tile` of
    numbers.

    Raises `TypeRuleError` for anything but a register tile.
    """
    if not isinstance(tile, Tile):
        raise TypeRuleError(f"pk.rolls of {tile!r}", fix="pass a register tile")
    return record(Rolls(scope_of(tile.type.warps), tile, tuple(distances))).results  # type: ignore[return-value]


def row_sums(*tiles: Tile, times: Tile | None = None, cluster: bool = False) -> list[Tile]:
    """`x.row_sum(cluster=...)` of several coalesced tiles of the same layout: what their warps have to exchange goes at
    once.

    `times`: sums of products with this tile, as `x.row_dot(times)`.

    Raises `TypeRuleError` for anything but coalesced tiles.
    """
    if not tiles or not all(
        isinstance(x, Tile) and isinstance(x.type, RegisterTile) and isinstance(x.type.layout, Coalesced) for x in tiles
    ):
        raise TypeRuleError(f"pk.row_sums of {tiles!r}", fix="pass coalesced tiles; others have x.row_sum()")
    return list(row_reduce(tiles, "sum", cluster, times))


def join(*tiles: Tile) -> Tile:
    """`tiles` of the same rows side by side, as one.

    Raises `TypeRuleError` for anything but register tiles of the same rows, dtype and layout.
    """
    if not tiles or not all(isinstance(x, Tile) for x in tiles):
        raise TypeRuleError(f"pk.join of {tiles!r}", fix="pass register tiles")
    return result(TileJoin(scope_of(tiles[0].type.warps), tiles))


def stack(*tiles: Tile) -> Tile:
    """`tiles` of the same columns one below the other, as one. Raises `TypeRuleError` for anything but tiles."""
    if not tiles or not all(isinstance(x, Tile) for x in tiles):
        raise TypeRuleError(f"pk.stack of {tiles!r}", fix="pass register tiles")
    return result(TileStack(scope_of(tiles[0].type.warps), tiles))
