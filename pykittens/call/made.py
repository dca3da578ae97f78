"""Python functions that are made for one case: their text, line by line, and the objects that it names.

What is asked at every call is asked by such functions: a test of a few known objects, or a few stores at known places,
costs half as much written out as in loops over lists of them.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any


class MadeFunction:
    """The text of a function `name`(`parameters`), to be written line by line; a line's indentation is kept."""

    def __init__(self, name: str, parameters: str = "") -> None:
        self._name, self._parameters = name, parameters
        self._lines: list[str] = []
        self._constants: list[Any] = []

    def constant(self, value: Any) -> str:
        """A name for an object."""
        self._constants.append(value)
        return f"_{len(self._constants)}_"

    def line(self, text: str) -> None:
        self._lines.append(text)

    def function(self) -> Any:
        """The function. Its lines see no names but those of constants, parameters and the interpreter.

        Constants are its globals: Python finds those faster than a closure's cells.
        """
        space = {f"_{i}_": constant for i, constant in enumerate(self._constants, start=1)}
        exec(compile(self._text(""), "<made>", "exec"), space)
        function = space.pop("_0_")  # else it and its globals would hold one another
        function.__code__ = function.__code__.replace(co_name=self._name)
        return function

    def function_in(self, space: dict[str, Any]) -> Any:
        """The function in the globals of a module, whose names its lines may mean too. Constants are cells."""
        names = ", ".join(f"_{i}_" for i, _ in enumerate(self._constants, start=1))
        made: dict[str, Any] = {}
        exec(compile(f"def make({names}):\n{self._text(' ')}\n return _0_", "<made>", "exec"), made)
        inner = made["make"](*self._constants)
        code = inner.__code__.replace(co_name=self._name)
        return FunctionType(code, space, self._name, None, inner.__closure__)

    def _text(self, indent: str) -> str:
        return "\n".join((f"{indent}def _0_({self._parameters}):", *(f"{indent} {line}" for line in self._lines)))
