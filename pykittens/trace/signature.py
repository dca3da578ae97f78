"""A kernel's signature: which parameters are run-time, which are fixed at trace time, and what they may be."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import Frame, TraceError
from ..types import DType, Global, ScalarType


@dataclass(frozen=True)
class static:
    """A named dimension of a `gl` that is a Python int inside the kernel: `pk.gl(bf16, "N", pk.static("D"))`."""

    name: str


@dataclass(frozen=True)
class GlobalPattern:
    """What an annotation `pk.gl(dtype, ...)` accepts: one dtype or several; dimensions by int, name or `static`."""

    dtypes: tuple[DType, ...]
    dims: tuple[int | str | static, ...]

    def __str__(self) -> str:
        dims = " x ".join(str(d.name if isinstance(d, static) else d) for d in self.dims)
        return f"gl<{' or '.join(d.name for d in self.dtypes)}, {dims}>"


def gl(dtype: DType | tuple[DType, ...], *dims: int | str | static) -> GlobalPattern:
    """The annotation of a tensor of one to four dimensions, each an int, a name, or `pk.static(name)`."""
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
    return GlobalPattern(dtypes, dims)


@dataclass(frozen=True)
class Signature:
    """Run-time parameters in order (pattern or scalar dtype) and the names of static ones with their defaults."""

    name: str
    runtime: tuple[tuple[str, GlobalPattern | DType], ...]
    optional: tuple[str, ...]  # run-time parameters that may be left out: the kernel sees None
    static: tuple[tuple[str, Any], ...]  # inspect.Parameter.empty where there is no default
    location: tuple[Frame, ...]


def read_signature(function: Callable[..., Any]) -> Signature:
    """The signature of a kernel function, from its annotations."""
    code = function.__code__
    where = (Frame(code.co_filename, code.co_firstlineno, code.co_name),)
    runtime: list[tuple[str, GlobalPattern | DType]] = []
    fixed: list[tuple[str, Any]] = []
    optional: list[str] = []
    for p in inspect.signature(function).parameters.values():
        annotation = p.annotation
        if isinstance(annotation, str):  # from __future__ import annotations
            cells = dict(zip(code.co_freevars, (c.cell_contents for c in function.__closure__ or ()), strict=False))
            annotation = eval(annotation, {**function.__globals__, **cells})
        if isinstance(annotation, (GlobalPattern, DType)):
            runtime.append((p.name, annotation))
            if p.default is None:
                optional.append(p.name)
        elif isinstance(annotation, ScalarType):
            runtime.append((p.name, annotation.dtype))
        elif p.kind is p.KEYWORD_ONLY:
            fixed.append((p.name, p.default))
        else:
            raise TraceError(
                f"parameter {p.name!r} of kernel {function.__name__!r} has no type",
                fix="annotate it with pk.gl(...) or a dtype, or make it keyword-only for a value fixed at trace time",
                location=where,
            )
    return Signature(function.__name__, tuple(runtime), tuple(optional), tuple(fixed), where)


def global_type(pattern: GlobalPattern, dtype: DType, shape: tuple[int, ...], align: int) -> Global:
    """The specialised type for an array of that dtype and shape."""
    dims = tuple(n if isinstance(d, (int, static)) else d for d, n in zip(pattern.dims, shape, strict=True))
    return Global(dtype, dims, align)
