"""Runs a kernel function once with symbolic arguments and returns the program it records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import Frame, ResourceError, TraceError
from ..program import Parameter, Program
from ..types import Global, ScalarType
from . import recorder as recording
from . import values  # noqa: F401  (gives values their operators)
from .recorder import tracing


def trace(function: Callable[..., Any], types: dict[str, Global | ScalarType | None], fixed: dict[str, Any],
          notes: Mapping[str, str] | None = None, *, warps: int, **attributes: Any) -> Program:  # fmt: skip
    """The program of `function` for one specialisation: run-time parameter types, and static values.

    `notes` say of tensors why TMA cannot take them, for errors. Attributes (cluster, blocks_per_sm, registers, debug) are set on the program.
    """
    code = function.__code__
    program = Program(function.__name__, warps, where=(Frame(code.co_filename, code.co_firstlineno, code.co_name),), **attributes)
    if not 1 <= warps <= 32:
        raise ResourceError(f"a block of {warps} warps", fix="a block has 1 to 32 warps", where=program.where)
    arguments: dict[str, Any] = {}
    for name, type in types.items():
        if type is None:
            arguments[name] = None
            continue
        value = recording.make_value(type)
        value.name, value.where = name, program.where
        value.note = (notes or {}).get(name, "")  # type: ignore[attr-defined]
        program.parameters.append(Parameter(name, value))
        arguments[name] = value
    with tracing(program) as recorder:
        out = function(**arguments, **fixed)
        recorder.check()
        if recorder.open:
            kind, where = recorder.open[-1]
            raise TraceError(f"a {kind} begun here is still open at the end of the kernel", fix="do not return from inside it", where=where)
        for finish in recorder.finish:
            finish(program)
        if out is not None:
            raise TraceError(f"kernel {function.__name__!r} returns {out!r}", fix="a kernel returns nothing: store results into a tensor", where=program.where)
    return program
