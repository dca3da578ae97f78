"""What is known of a call's arguments, and what a program depends on of it: the specialisation."""

from __future__ import annotations

import inspect
import math
import operator
from typing import Any

import numpy as np

from ..errors import ArgumentError
from ..interop.arrays import ArrayInfo, Unsupported, describe
from ..loading import dataclass
from ..trace.operands import misaligned
from ..trace.signature import GlobalPattern, Signature, global_type, static
from ..types import DTYPES, DType, Global, ScalarType


@dataclass(frozen=True)
class spec:
    """Stands for an array when a kernel is traced or compiled without one.

    shape and strides count elements; strides are those of a dense array unless given. align: what the address is a
    multiple of, in bytes (1, 2, 4, 8 or 16). Raises `ArgumentError` for what no array has.
    """

    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    align: int = 16

    def __post_init__(self) -> None:
        if not isinstance(self.dtype, DType):
            raise ArgumentError(
                f"pk.spec of {self.dtype!r}", fix="the first argument is a dtype of PyKittens', such as pk.bf16"
            )
        object.__setattr__(self, "shape", _integers("shape", self.shape, 0))
        if self.strides is not None:
            object.__setattr__(self, "strides", _integers("strides", self.strides, None))
            if len(self.strides) != len(self.shape):
                raise ArgumentError(
                    f"pk.spec with strides {self.strides} for shape {self.shape}", fix="one stride for each dimension"
                )
        if self.align not in (1, 2, 4, 8, 16) or self.align < self.dtype.size:
            raise ArgumentError(
                f"pk.spec of {self.dtype} with align={self.align!r}",
                fix=f"a power of two from {self.dtype.size} (the size of an element) to 16, in bytes",
            )


def _integers(what: str, values: Any, least: int | None) -> tuple[int, ...]:
    try:
        found = tuple(operator.index(x) for x in values)
    except TypeError:
        found = None
    if found is None or (least is not None and any(x < least for x in found)):
        raise ArgumentError(f"pk.spec with {what} {values!r}", fix=f"{what}: a tuple of ints, such as (64, 128)")
    return found


@dataclass(frozen=True)
class Argument:
    """What `grid=` and `cluster=` functions see of a tensor: its four dimensions, missing leading ones 1, and its
    `shape` as it is.
    """

    batch: int
    depth: int
    rows: int
    cols: int
    dtype: DType
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Specialisation:
    """What a program depends on: parameter types and static values."""

    types: tuple[tuple[str, Global | ScalarType | None], ...]  # None: an operand that was not given
    statics: tuple[tuple[str, Any], ...]


def bind_arguments(
    signature: Signature, args: tuple[Any, ...], named: dict[str, Any], defaults: dict[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run-time arguments by name, and static values by name.

    Missing ones are filled in from `defaults`, which are the function's of now (`__kwdefaults__`). Raises
    `ArgumentError` for what the kernel has no parameter for, and for what is missing without a default.
    """
    names = [name for name, _ in signature.runtime]
    if len(args) > len(names):
        raise ArgumentError(
            f"{signature.name} takes {len(names)} operands ({', '.join(names)}), not {len(args)}",
            fix="pass static values by name",
        )
    given = dict(zip(names, args, strict=False))
    statics = {name: (defaults or {}).get(name, default) for name, default in signature.static}
    for name, value in named.items():
        if name in given:
            raise ArgumentError(f"{signature.name} got {name!r} twice", fix="pass it once")
        if name in names:
            given[name] = value
        elif name in statics:
            statics[name] = value
        else:
            raise ArgumentError(
                f"{signature.name} has no parameter {name!r}", fix=f"it takes {', '.join(names + list(statics))}"
            )
    empty = inspect.Parameter.empty
    given = dict.fromkeys(signature.optional) | dict(signature.numbers) | given
    missing = [n for n in names if n not in given] + [n for n, v in statics.items() if v is empty]
    if missing:
        raise ArgumentError(
            f"{signature.name} misses {', '.join(map(repr, missing))}",
            fix="pass every operand and every static value without a default",
        )
    return {n: given[n] for n in names}, statics


def specialise(
    signature: Signature, given: dict[str, Any], statics: dict[str, Any]
) -> tuple[Specialisation, dict[str, ArrayInfo | spec | Any]]:
    """The specialisation for arguments, and what is known of each; raises `ArgumentError` for what the kernel does
    not take.
    """
    types: list[tuple[str, Global | ScalarType | None]] = []
    known: dict[str, Any] = {}
    lengths: dict[str, tuple[int, str]] = {}
    for name, pattern in signature.runtime:
        value = given[name]
        if value is None and (name in signature.optional or not isinstance(pattern, DType)):
            types.append((name, None))  # the kernel sees None
            known[name] = None
            continue
        if isinstance(pattern, DType):
            types.append((name, ScalarType(pattern)))
            known[name] = _scalar(signature.name, name, pattern, value)
            continue
        info = value if isinstance(value, spec) else _describe(signature.name, name, value)
        known[name] = info
        types.append((name, _tensor(signature.name, name, pattern, info, lengths)))
    return Specialisation(tuple(types), tuple(sorted(statics.items()))), known


def _describe(kernel: str, name: str, value: Any) -> ArrayInfo:
    try:
        return describe(value)
    except Unsupported as error:
        raise ArgumentError(f"{kernel}: operand {name!r} is {type(value).__name__}: {error}", fix=error.fix) from None


def _scalar(kernel: str, name: str, dtype: DType, value: Any) -> Any:
    whole = (int, np.integer, np.bool_)
    if dtype.kind != "f" and not isinstance(value, whole):
        fix = "pass True or False" if dtype.kind == "b" else "pass a Python int"
        raise ArgumentError(f"{kernel}: {name!r} is {value!r:.60}, where {dtype} is needed", fix=fix)
    if not isinstance(value, (*whole, float, np.floating)):
        raise ArgumentError(
            f"{kernel}: {name!r} is {type(value).__name__}, where {dtype} is needed", fix="pass a Python number"
        )
    low, high = {"i": (-(2 ** (dtype.bits - 1)), 2 ** (dtype.bits - 1)), "u": (0, 2**dtype.bits)}.get(
        dtype.kind, (0, 0)
    )
    if dtype.kind in "iu" and not low <= value < high:
        raise ArgumentError(
            f"{kernel}: {name!r} is {value}, which {dtype} cannot hold",
            fix=f"pass {low} to {high - 1}{', or make the parameter pk.i64' if dtype.bits < 64 else ''}",
        )
    if dtype.kind != "f":
        return bool(value) if dtype.kind == "b" else int(value)
    if (number := _float(value, dtype)) is None:
        raise ArgumentError(f"{kernel}: {name!r} is larger than any {dtype}", fix="pass math.inf if that is meant")
    return number


def _float(value: Any, dtype: DType) -> float | None:
    """A number for a parameter of floats. None where it is finite, and no number of the dtype is as large."""
    try:
        number = float(value)
    except OverflowError:  # a Python int of any length
        return None
    if math.isfinite(number) and abs(number) > 65504:  # float16's largest: no dtype of parameters has less
        with np.errstate(over="ignore"):
            if np.isinf(np.asarray(number).astype(dtype.numpy)):
                return None
    return number


def _tensor(
    kernel: str, name: str, pattern: GlobalPattern, info: ArrayInfo | spec, lengths: dict[str, tuple[int, str]]
) -> Global:
    where = f"{kernel}: operand {name!r}"
    shape = tuple(info.shape)
    dtype = info.dtype if isinstance(info.dtype, DType) else DTYPES.get(info.dtype)
    if dtype is None or dtype not in pattern.dtypes:
        raise ArgumentError(f"{where} is {info.dtype}", fix=f"it takes {' or '.join(d.name for d in pattern.dtypes)}")
    if len(shape) != len(pattern.dims):
        raise ArgumentError(f"{where} has shape {shape}", fix=f"it takes {len(pattern.dims)} dimensions: {pattern}")
    if 0 in shape:
        raise ArgumentError(f"{where} is empty: shape {shape}", fix="every dimension is at least 1")
    if max(shape) >= 2**31:
        raise ArgumentError(
            f"{where} has a dimension of {max(shape)}: shape {shape}",
            fix="a dimension is less than 2**31 long: split it in two",
        )
    for dim, length in zip(pattern.dims, shape, strict=True):
        if isinstance(dim, int):
            if dim != length:
                raise ArgumentError(f"{where} has shape {shape}", fix=f"it takes {pattern}")
            continue
        key = dim.name if isinstance(dim, static) else dim
        first = lengths.setdefault(key, (length, name))
        if first[0] != length:
            raise ArgumentError(
                f"{where} has {key} = {length}, operand {first[1]!r} has {key} = {first[0]}",
                fix=f"dimension {key} must agree: {pattern}",
            )
    strides = info.strides
    if strides is not None and shape[-1] > 1 and strides[-1] != 1:
        raise ArgumentError(
            f"{where} has strides {tuple(strides)} for shape {shape}",
            fix=f"the last dimension must be contiguous: pass {_copied(info, name)}",
        )
    if strides is not None and any(s < 0 and length > 1 for s, length in zip(strides, shape, strict=True)):
        raise ArgumentError(f"{where} has negative strides {tuple(strides)}", fix=f"pass a copy: {_copied(info, name)}")
    return global_type(pattern, dtype, shape, strides, _alignment(info, dtype))


def _copied(info: ArrayInfo | spec, name: str) -> str:
    """How an array is copied to contiguous memory, in its own library's words."""
    words = {"numpy": "np.ascontiguousarray({0})", "cupy": "cp.ascontiguousarray({0})", "torch": "{0}.contiguous()"}
    said = words.get(getattr(info, "kind", ""), "a contiguous copy of {0}").format(name)
    return f"{said} (of an output, copy it back after the call)"


def seen_by_options(x: Any) -> Any:
    """What a function of the arguments, such as `grid=`, is given for one of them."""
    if isinstance(x, (ArrayInfo, spec)):
        dtype = x.dtype if isinstance(x.dtype, DType) else DTYPES[x.dtype]
        batch, depth, rows, cols = (1,) * (4 - len(x.shape)) + tuple(x.shape)
        return Argument(batch, depth, rows, cols, dtype, tuple(x.shape))
    return x


def _alignment(info: ArrayInfo | spec, dtype: DType) -> int:
    """What the pointer and all strides but the last are multiples of, in bytes, at most 16."""
    if isinstance(info, spec):
        bits = info.align
        shape, strides = info.shape, info.strides
        if strides is None:
            strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    else:
        bits, shape, strides = info.pointer | 16, info.shape, info.strides
    for length, stride in zip(shape[:-1], strides[:-1], strict=True):
        if length > 1:
            bits |= stride * dtype.size
    return min(16, bits & -bits)


def why_misaligned(x: ArrayInfo | spec) -> str:
    """Why TMA could not take a tensor; nothing where it could."""
    dtype = x.dtype if isinstance(x.dtype, DType) else DTYPES.get(x.dtype)
    return misaligned(x.shape, x.strides, dtype.size if dtype else 1, None if isinstance(x, spec) else x.pointer)
