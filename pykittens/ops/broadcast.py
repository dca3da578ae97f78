"""How the operands of an elementwise operation go together: one shape, one dtype, and which element of each goes with
which.

A column vector broadcasts along rows and a row vector along columns; a column vector with a row vector makes a tile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import TypeRuleError
from ..layouts import Sym, vector_register
from ..program import CudaWriter, NumpyMachine, Operand, Value, is_scalar
from ..types import DType, RegisterTile, RegisterVector, f32, i64
from .conversion import convert
from .layout_route import spelled
from .scalars import as_dtype, as_number, check_fits, scalar_dtype

Register = RegisterTile | RegisterVector


def registers_of(x: Value) -> Register:
    """The type of a value that a type rule has found in registers."""
    assert isinstance(x.type, (RegisterTile, RegisterVector))
    return x.type


def register_type(x: Operand, what: str) -> Register:
    """The type of a register operand, or the user's error."""
    if isinstance(x, Value) and isinstance(x.type, (RegisterTile, RegisterVector)):
        return x.type
    if not isinstance(x, Value):
        fix = "pass a tile or vector in registers, a traced scalar or a number"
        raise TypeRuleError(f"{what} takes a register tile or vector, not {x!r}", fix=fix)
    raise TypeRuleError(
        f"{what} takes a register tile or vector, not {x.type}", fix="load it into registers first, e.g. warp.load(x)"
    )


def common_type(what: str, *operands: Operand) -> Register:
    """The shape that operands broadcast to, with the dtype of the first register operand."""
    types = [x.type for x in operands if isinstance(x, Value) and isinstance(x.type, (RegisterTile, RegisterVector))]
    if not types:
        raise TypeRuleError(
            f"{what} needs a register tile or vector among its operands", fix="use plain scalars, or pk.full for a tile"
        )
    for x in operands:
        if not is_scalar(x):
            register_type(x, what)
    if len({t.warps for t in types}) > 1:
        listed = " and ".join(str(t) for t in types)
        raise TypeRuleError(
            f"{what} mixes scopes: {listed}", fix="make both on the same scope (warp, warpgroup, block or group)"
        )
    tiles = [t for t in types if isinstance(t, RegisterTile)]
    vectors = [t for t in types if isinstance(t, RegisterVector)]
    if tiles:
        shape: Register = tiles[0]
    elif {v.kind for v in vectors} == {"col", "row"}:
        col, row = (next(v for v in vectors if v.kind == kind) for kind in ("col", "row"))
        shape = RegisterTile(col.dtype, col.length, row.length, col.layout, col.warps)
    else:
        shape = next((v for v in vectors if v.partial), vectors[0])
    for t in types:
        if not _fits(t, shape):
            raise TypeRuleError(f"{what}: {t} does not fit {shape}", fix=_fitting_advice(t, shape))
    return shape


def _fits(t: Register, shape: Register) -> bool:
    if isinstance(t, RegisterTile):
        return isinstance(shape, RegisterTile) and (t.rows, t.cols, t.layout) == (shape.rows, shape.cols, shape.layout)
    if isinstance(shape, RegisterTile):
        return (
            not t.partial and t.kind != "naive" and t.layout == shape.layout and t.length == shape.vector(t.kind).length
        )
    same = (t.length, t.kind, t.layout, t.width) == (shape.length, shape.kind, shape.layout, shape.width)
    return same and (not t.partial or shape.partial)


def _fitting_advice(t: Register, shape: Register) -> str:
    if isinstance(t, RegisterVector) and t.partial:
        return "sum the partial vector over its threads first: x.total()"
    if isinstance(t, RegisterVector) and t.kind == "naive" and isinstance(shape, RegisterTile):
        way = "" if shape.layout == "row" else f"layout={spelled(shape.layout)}"
        return f"say which way it broadcasts: x.as_col({way}), one value a row, or x.as_row({way}), one a column"
    if isinstance(t, (RegisterTile, RegisterVector)) and t.layout != shape.layout:
        return f"convert the first of the two: x.swap_layout({spelled(shape.layout)})"
    if isinstance(t, RegisterVector) and isinstance(shape, RegisterVector) and t.width != shape.width:
        return f"bring it into the other's runs: x.as_vec(width={shape.width})"
    return "shapes must agree; a column vector has one value per row, a row vector one per column"


def same_dtype(what: str, *operands: Operand) -> DType:
    """The one dtype of all register operands; scalars adapt to it."""
    dtypes = {
        x.type.dtype for x in operands if isinstance(x, Value) and isinstance(x.type, (RegisterTile, RegisterVector))
    }
    if len(dtypes) != 1:
        listed = " and ".join(sorted(d.name for d in dtypes))
        to = "f32" if not dtypes or any(d.kind == "f" for d in dtypes) else "i64" if i64 in dtypes else "i32"
        raise TypeRuleError(f"{what} mixes {listed}", fix=f"convert them: x.to(pk.{to})")
    (dtype,) = dtypes
    for x in operands:
        if is_scalar(x):
            scalar = scalar_dtype(x)
            if scalar is not None and scalar.kind == "f" and dtype.kind != "f":
                raise TypeRuleError(
                    f"{what} mixes a {dtype} tile with the float {x}", fix="convert the tile with x.to(pk.f32)"
                )
            check_fits(x, dtype, what)
    return dtype


Fetch = Callable[[NumpyMachine], np.ndarray]  # what gives an operand, looked at once for all runs of an operation


def operand(x: Operand, shape: Register, dtype: DType) -> Fetch:
    """What gives operand `x` as an array that broadcasts against one of type `shape` (first axis: units), to be
    computed with.

    A scalar becomes `dtype`, and 16-bit floats float32: what elementwise operations compute in.
    """
    if is_scalar(x):
        return _scalars(x, shape, f32 if dtype.kind == "f" else dtype)
    get = moved(x, shape, dtype)
    return (lambda m: get(m).astype(np.float32)) if x.type.dtype.packed else get


def moved(x: Operand, shape: Register, dtype: DType) -> Fetch:
    """What gives operand `x` as an array that broadcasts against one of type `shape`, with the elements as they are."""
    if is_scalar(x):
        get = _scalars(x, shape, f32 if dtype.kind == "f" else dtype)
        return (lambda m: convert(get(m), dtype)) if dtype.packed else get
    if isinstance(shape, RegisterTile) and isinstance(x.type, RegisterVector):
        return (lambda m: m[x][:, :, None]) if x.type.kind == "col" else (lambda m: m[x][:, None, :])
    if isinstance(shape, RegisterVector) and shape.partial and not x.type.partial:
        return lambda m: m[x][:, :, None]
    return lambda m: m[x]


def _scalars(x: Operand, shape: Register, dtype: DType) -> Fetch:
    if not isinstance(x, Value):
        number: np.ndarray = as_number(x, dtype)
        return lambda m: number
    axes = (1,) * len(shape.shape)

    def get(m: NumpyMachine) -> np.ndarray:
        value: np.ndarray = as_number(m.unit_scalar(x), dtype)
        return value.reshape(value.shape + axes) if value.ndim else value

    return get


def spread(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """What an operation made, in all elements of its result: `np.broadcast_to` where there are more, because it takes
    longer than most operations on a tile."""
    return array if array.shape == shape else np.broadcast_to(array, shape)


def compute(array: Any, dtype: DType) -> Any:
    """16-bit floats as float32; everything else as it is."""
    return array.astype(np.float32) if isinstance(array, np.ndarray) and dtype.packed else array


def read(c: CudaWriter, x: Operand, shape: Register, register: Sym, dtype: DType) -> str:
    """C for the element of operand `x` that goes with `register` of a value of type `shape`."""
    if is_scalar(x):
        return as_dtype(c, x, dtype)
    if isinstance(shape, RegisterTile) and isinstance(x.type, RegisterVector):
        register = vector_register(shape, x.type, register)
    return str(c.element(x, register))


def move(c: CudaWriter, x: Operand, shape: Register, register: Sym, dtype: DType) -> str:
    """What `read` gives, to be moved rather than computed with: 16-bit floats as u16, a NaN's bits too."""
    if is_scalar(x):
        text = as_dtype(c, x, dtype)
        return f"pk_float_{dtype}({text})" if dtype.packed else text
    if isinstance(shape, RegisterTile) and isinstance(x.type, RegisterVector):
        register = vector_register(shape, x.type, register)
    return c.moved(x, register)
