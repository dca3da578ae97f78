"""Runs a kernel function once with symbolic arguments and returns the program it records."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import Frame, TraceError
from ..program import Parameter, Program
from ..types import Global, ScalarType
from . import handle_types  # noqa: F401  (gives values their operators)
from . import recorder as recording
from .recorder import tracing
from .wrong_calls import MISTAKES, explain

_SUSPENDED = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def trace(
    function: Callable[..., Any],
    types: dict[str, Global | ScalarType | None],
    statics: dict[str, Any],
    notes: Mapping[str, str] | None = None,
    *,
    warps: int,
    **attributes: Any,
) -> Program:
    """The program of `function` for one specialisation: run-time parameter types, and static values.

    `notes` say of tensors why TMA cannot take them, for errors. Attributes (cluster, blocks_per_sm, ...)
    are set on the program.
    """
    code = function.__code__
    if code.co_flags & _SUSPENDED:
        raise TraceError(
            f"kernel {function.__name__!r} is a generator or a coroutine",
            fix="write an ordinary function: `def`, without yield, async and await",
            location=(Frame(code.co_filename, code.co_firstlineno, code.co_name),),
        )
    program = Program(
        function.__name__, warps, location=(Frame(code.co_filename, code.co_firstlineno, code.co_name),), **attributes
    )
    arguments: dict[str, Any] = {}
    for name, type in types.items():
        if type is None:
            arguments[name] = None
            continue
        value = recording.make_value(type)
        value.name, value.location = name, program.location
        value.note = (notes or {}).get(name, "")  # type: ignore[attr-defined]
        program.parameters.append(Parameter(name, value))
        arguments[name] = value
    with tracing(program) as recorder:
        recorder.entry = inspect.currentframe()
        try:
            out = function(**arguments, **statics)
        except MISTAKES as error:
            explain(error)
            raise
        recorder.check()
        if recorder.open:
            kind, where = recorder.open[-1]
            raise TraceError(
                f"a {kind} begun here is still open at the end of the kernel",
                fix="do not return from inside it",
                location=where,
            )
        recorder.check_entered()
        for finish in recorder.finish:
            finish(program)
        if out is not None:
            raise TraceError(
                f"kernel {function.__name__!r} returns {out!r}",
                fix="a kernel returns nothing: store results into a tensor",
                location=program.location,
            )
    return program
