"""A kernel's signature: which parameters are run-time, which are fixed at trace time, and what they may be."""

from __future__ import annotations

import inspect
import sys
from collections import ChainMap
from collections.abc import Callable, Mapping
from types import FrameType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from ..errors import Frame, TraceError
from ..loading import dataclass
from ..types import DType, Global, ScalarType
from .memory import Tensor
from .scalar import Scalar


@dataclass(frozen=True)
class static:
    """A named dimension of a `gl` that is a Python int inside the kernel: `pk.gl(bf16, "N", pk.static("D"))`."""

    name: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            fix = 'give it a name, pk.static("D"); a length that is known already is an int alone'
            raise TraceError(f"pk.static of {self.name!r:.60}", fix=fix)


@dataclass(frozen=True)
class GlobalPattern:
    """What an annotation `pk.gl(dtype, ...)` accepts: one dtype or several; dimensions by int, name or `static`."""

    dtypes: tuple[DType, ...]
    dims: tuple[int | str | static, ...]
    dense: bool = False

    def __or__(self, other: None) -> GlobalPattern:
        """`pk.gl(...) | None`, of an operand that may be left out: its default says so."""
        return self if other is None else NotImplemented

    def __str__(self) -> str:
        dims = " x ".join(str(d.name if isinstance(d, static) else d) for d in self.dims)
        return f"gl<{' or '.join(d.name for d in self.dtypes)}, {dims}>"


def gl(dtype: DType | tuple[DType, ...], *dims: int | str | static, dense: bool = False) -> GlobalPattern:
    """The annotation of a tensor of one to four dimensions.

    `dtype`: one, or a tuple of those that it may have. `dims`: each an int, a name (equal names, equal lengths), or
    `pk.static(name)`. `dense`: a tensor whose rows follow one another without gaps has a program of its own, in which
    the distance of rows is a constant, that many rows' addresses share; their length is an int or static. Tensors with
    other strides are taken as always.

    Raises `TraceError` for no or more than four dimensions, for what is no dtype or no dimension, and for `dense` where
    no row's length is known.
    """
    dtypes = dtype if isinstance(dtype, tuple) else (dtype,)
    for d in dtypes:
        if not isinstance(d, DType):
            raise TraceError(
                f"pk.gl of {d!r}", fix="the first argument is a dtype or a tuple of them: pk.gl(pk.bf16, ...)"
            )
    for n in dims:
        if not isinstance(n, (str, static)) and (not isinstance(n, int) or isinstance(n, bool) or n < 1):
            raise TraceError(
                f"pk.gl with dimension {n!r}", fix='a dimension is a positive int, a name ("N"), or pk.static(name)'
            )
    if not 1 <= len(dims) <= 4:
        raise TraceError(f"pk.gl with {len(dims)} dimensions", fix="a tensor has one to four")
    if dense and (len(dims) == 1 or isinstance(dims[-1], str)):
        fix = 'give it rows whose length is an int or static: pk.gl(pk.f32, "N", pk.static("D"), dense=True)'
        raise TraceError(f"pk.gl with dense=True and dimensions {dims}", fix=fix)
    return GlobalPattern(dtypes, dims, bool(dense))


@dataclass(frozen=True)
class Signature:
    """Run-time parameters in order (pattern or scalar dtype) and the names of static ones with their defaults."""

    name: str
    runtime: tuple[tuple[str, GlobalPattern | DType], ...]
    optional: tuple[str, ...]  # run-time parameters that may be left out: the kernel sees None
    numbers: tuple[tuple[str, Any], ...]  # scalars that may be left out, and what they are then
    static: tuple[tuple[str, Any], ...]  # inspect.Parameter.empty where there is no default
    location: tuple[Frame, ...]


def read_signature(function: Callable[..., Any]) -> Signature:
    """The signature of a kernel function, from its annotations."""
    code = function.__code__
    where = (Frame(code.co_filename, code.co_firstlineno, code.co_name),)
    runtime: list[tuple[str, GlobalPattern | DType]] = []
    fixed: list[tuple[str, Any]] = []
    optional: list[str] = []
    numbers: list[tuple[str, Any]] = []
    for p in inspect.signature(function).parameters.values():
        if p.kind in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL, p.VAR_KEYWORD):
            fact = f"parameter {p.name!r} of kernel {function.__name__!r} is {p.kind.description}"
            raise TraceError(
                fact, fix="give each parameter a name and a type: operands are known by theirs", location=where
            )
        annotation = p.annotation
        if isinstance(annotation, str):  # from __future__ import annotations
            annotation = _written(annotation, p.name, function)
        if (pattern := run_time(annotation)) is not None:
            if isinstance(pattern, DType) and pattern.kind == "f" and pattern.bits < 32:
                fix = f"make it pk.f32, in which scalars are computed: {p.name}: Annotated[pk.Scalar, pk.f32]"
                said = f"parameter {p.name!r} of kernel {function.__name__!r} is a scalar of {pattern}"
                raise TraceError(said, fix=fix, location=where)
            runtime.append((p.name, pattern))
            if p.default is None:
                optional.append(p.name)
            elif p.default is not p.empty and isinstance(pattern, DType):
                numbers.append((p.name, p.default))
            elif p.default is not p.empty:
                fix = f"leave the default out, or make it None, which the kernel sees then: {p.name}=None"
                said = f"tensor {p.name!r} of kernel {function.__name__!r} has the default {p.default!r:.60}"
                raise TraceError(said, fix=fix, location=where)
        elif p.kind is p.KEYWORD_ONLY:
            fixed.append((p.name, p.default))
        else:
            given = getattr(annotation, "__name__", repr(annotation))
            said = "has no type" if annotation is p.empty else f"is annotated as {given}, which says no type on a GPU"
            number = "pk.i32" if annotation is int or annotation is bool else "pk.f32"
            fix = (
                f'annotate it, as Annotated[pk.Tensor, pk.f32, "N", 128] or Annotated[pk.Scalar, {number}], or make it '
                "keyword-only for a value fixed at trace time"
            )
            if p.name in ("self", "cls"):
                fix = f"leave it out, with @staticmethod above @pk.kernel; the object is an argument `*, {p.name}`"
            raise TraceError(f"parameter {p.name!r} of kernel {function.__name__!r} {said}", fix=fix, location=where)
    return Signature(function.__name__, tuple(runtime), tuple(optional), tuple(numbers), tuple(fixed), where)


def _written(annotation: str, parameter: str, function: Callable[..., Any]) -> Any:
    """What an annotation means that Python has kept as text.

    It may name variables of the functions around the kernel, which are no cells of it unless its body reads them too:
    those that run now, while they decorate it, still have them.
    """
    spaces: list[Mapping[str, Any]] = [_bound_cells(function)]
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals is function.__globals__ and frame.f_code.co_name != "<module>":
            spaces.append(frame.f_locals)
        frame = frame.f_back
    try:
        return eval(annotation, function.__globals__, ChainMap(*map(dict, spaces)))
    except Exception as error:
        code = function.__code__
        raise TraceError(
            f"the annotation of parameter {parameter!r} of kernel {function.__name__!r}, {annotation}, cannot be read: "
            f"{error!r}",
            fix="name in it only globals and variables of the function that decorates the kernel, "
            "or remove `from __future__ import annotations`",
            location=(Frame(code.co_filename, code.co_firstlineno, code.co_name),),
        ) from None


def _bound_cells(function: Callable[..., Any]) -> dict[str, Any]:
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not bound yet
            continue
    return found


def run_time(annotation: Any) -> GlobalPattern | DType | None:
    """What a run-time parameter may be, read from its annotation; None for the annotation of a static value.

    `Annotated[Tensor, f32, "N", 128]` is a tensor: dtype (or a tuple of dtypes), then dimensions, or one `pk.gl(...)`;
    `Annotated[Scalar, f32]` is a scalar. Type checkers see `Tensor` and `Scalar`. `... | None` may be left out where
    its default is None. `pk.gl(...)` or a dtype alone are accepted too, which type checkers are not fond of.
    """
    if get_origin(annotation) in (Union, UnionType):
        kinds = [run_time(part) for part in get_args(annotation) if part is not type(None)]
        return kinds[0] if len(kinds) == 1 else None
    if isinstance(annotation, ScalarType):
        return annotation.dtype
    if isinstance(annotation, (GlobalPattern, DType)):
        return annotation
    if get_origin(annotation) is not Annotated:
        return None
    base, *about = get_args(annotation)
    if isinstance(base, type) and issubclass(base, Scalar):
        if len(about) == 1 and isinstance(about[0], DType):
            return about[0]
        raise TraceError(
            f"Annotated[Scalar, {', '.join(map(str, about))}]", fix="a scalar has one dtype: Annotated[Scalar, pk.f32]"
        )
    if isinstance(base, type) and issubclass(base, Tensor):
        return about[0] if len(about) == 1 and isinstance(about[0], GlobalPattern) else gl(*about)
    return None


def global_type(
    pattern: GlobalPattern, dtype: DType, shape: tuple[int, ...], strides: tuple[int, ...] | None, align: int
) -> Global:
    """The specialised type for an array of that dtype, shape and strides (None: those without gaps)."""
    dims = tuple(n if isinstance(d, (int, static)) else d for d, n in zip(pattern.dims, shape, strict=True))
    return Global(dtype, dims, align, pattern.dense and (strides is None or strides[-2] == shape[-1]))
