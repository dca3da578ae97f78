"""Random programs played by NumPy, with `number_reference` for arithmetic: independent of the simulator."""

from __future__ import annotations

from itertools import accumulate

import numpy as np

from ..types import DType, bool_, f32, i32
from . import number_reference as reference
from .programs import Kind, ProgramStep, outputs

Array = np.ndarray


def evaluate(steps: list[ProgramStep], tiles: dict[DType, Array], scalars: dict[DType, Array]) -> dict[DType, Array]:
    """What a program stores, by dtype, from its own inputs: (2, rows, cols) tiles, (4,) scalars."""
    values: list[Array] = []
    for step in steps:
        args = [values[i] for i in step.args]
        kinds = [steps[i].makes for i in step.args]
        values.append(_play(step, args, kinds, tiles, scalars))
    return {dtype: values[i] for dtype, i in outputs(steps).items()}


def _play(
    step: ProgramStep, args: list[Array], kinds: list[Kind], tiles: dict[DType, Array], scalars: dict[DType, Array]
) -> Array:
    name, kind, more = step.name, step.makes, step.more
    if name in ("load", "argument"):
        return np.asarray((tiles if name == "load" else scalars)[kind.dtype][more["which"]])
    if name == "to" or name == "cast":
        return reference.convert(args[0], kind.dtype)
    if name in ("shared", "global"):
        return reference.convert(reference.convert(args[0], more["memory"]), kind.dtype)
    if name == "swap_layout":
        return args[0]
    if name == "transpose":
        return args[0].T
    if name == "reduce":
        return reference.reduce(more["what"], args[0], 1 if more["to"] == "col" else 0, kind.dtype)
    if name == "count":
        axis, what = (1 if more["what"].startswith("row") else 0), more["what"][4:]
        count = args[0].sum(axis)
        found = count if what == "sum" else count > 0 if what == "any" else count == args[0].shape[axis]
        return found.astype(np.int32) if what == "sum" else found
    if name == "best":
        lines = args[0] if more["to"] == "col" else args[0].T
        return np.array([_order(line, more["what"] == "argmax")[0] for line in lines], np.int32)
    if name == "second":
        found = np.array([line[_order(line, True)[1]] for line in args[0]])
        if kind.dtype.kind != "f":
            return found
        with np.errstate(invalid="ignore"):  # a signalling NaN may be among them
            return reference.convert(reference.wide(found) + 0.0, kind.dtype)  # a zero is +0, and a NaN the hardware's
    if name == "scan":
        parts = list(np.moveaxis(args[0], 1 if more["along"] == "row" else 0, 0))[:: -1 if more["reverse"] else 1]
        what = {"sum": "add", "prod": "mul"}.get(more["what"], more["what"])
        scanned = list(accumulate(parts, lambda a, b: _two(what, a, b, kind.dtype)))[:: -1 if more["reverse"] else 1]
        return np.stack(scanned, axis=1 if more["along"] == "row" else 0)
    if name == "form":
        return args[0]
    if name == "rows":
        return args[0][more["rows"]]
    if name == "triangle":
        row, col = np.indices(args[0].shape)
        above = col - row - more["diagonal"]
        one = np.asarray(1).astype(kind.dtype.numpy)
        return np.where(above > 0 if more["what"] == "tril" else above < 0, one, args[0])
    if name == "to_scalar":
        return reference.reduce(more["what"], args[0], 0, kind.dtype)
    if name == "product":
        a, b = (x.astype(np.int64) & 7 for x in args)
        return (a @ b.T).astype(np.float32)
    if name == "scalars":
        a, b = (reference.convert(x, more["dtype"]) for x in args)
        return reference.calculate(more["what"], a, b, more["dtype"])
    if name == "with_number":
        dtype = kinds[0].dtype
        number = np.float32(more["number"]) if dtype.kind == "f" else np.asarray(more["number"]).astype(dtype.numpy)
        return _two(more["what"], args[0], np.asarray(number), dtype)
    if name == "when":
        condition, a, b = args
        return _two(more["what"] if condition else more["other"], a, _spread(b, kinds[2], kind), kind.dtype)
    if name == "repeat":
        count, a, b = args
        for _ in range(int(count) & 3):
            a = _two(more["what"], a, _spread(b, kinds[2], kind), kind.dtype)
        return a
    spread = [_spread(x, k, kind) for x, k in zip(args, kinds, strict=True)]
    if name == "where":
        mask, a, b = spread
        return np.where(
            np.broadcast_to(mask, (kind.rows, kind.cols)), *(reference.convert(x, kind.dtype) for x in (a, b))
        )
    if name == "fma":
        a, b, c = (np.broadcast_to(reference.convert(x, kind.dtype), (kind.rows, kind.cols)) for x in spread)
        return reference.fma(a, b, c, kind.dtype)
    if len(spread) == 1:
        return reference.unary(name, spread[0], kind.dtype)
    return _two(name, spread[0], spread[1], kinds[0].dtype)


def _order(line: Array, largest: bool) -> list[int]:
    """Where the elements of a row stand, the largest (or smallest) first: NaNs before all, of equal ones the first."""
    numbers = [float(x) for x in line]
    return sorted(range(len(line)), key=lambda i: (numbers[i] == numbers[i], -numbers[i] if largest else numbers[i], i))


def _two(kind: str, a: Array, b: Array, dtype: DType) -> Array:
    """Two operands that broadcast; 16-bit floats are computed in float32 and rounded."""
    a, b = np.broadcast_arrays(a, b)
    if dtype.bits == 16:
        out = reference.calculate(kind, reference.convert(a, f32), reference.convert(b, f32), f32)
        return out if out.dtype == bool else reference.convert(out, dtype)
    return reference.calculate(kind, a, b, dtype)


def _spread(x: Array, kind: Kind, target: Kind) -> Array:
    if target.form == "tile" and kind.form in ("col", "row"):
        return x[:, None] if kind.form == "col" else x[None, :]
    return x


def stored(dtype: DType, array: Array) -> tuple[DType, Array]:
    """An output as it is stored: masks as int32."""
    return (i32, array.astype(np.int32)) if dtype is bool_ else (dtype, array)
