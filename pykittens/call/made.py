"""Python functions that are made for one case: their text, line by line, and the objects that it names.

What is asked at every call is asked by such functions: a test of a few known objects, or a few stores at known places,
costs half as much written out as in loops over lists of them.
"""

from __future__ import annotations

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
        """The function, whose constants are cells of its closure. Its lines see no name but these, the parameters and
        those of the interpreter, and mean no other where they are run in the globals of a module.
        """
        names = ", ".join(f"_{i + 1}_" for i in range(len(self._constants)))
        body = "\n".join(f"  {line}" for line in self._lines)
        text = f"def make({names}):\n def _0_({self._parameters}):\n{body}\n return _0_"
        made: dict[str, Any] = {}
        exec(compile(text, "<made>", "exec"), made)
        function = made["make"](*self._constants)
        function.__code__ = function.__code__.replace(co_name=self._name)
        return function
