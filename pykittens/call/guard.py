"""A test whether paths still lead to the objects that they led to, as one Python function made for them.

    def unchanged():
        return FACTOR is c0 and c1.scale is c2 and same(c3, c4) and ...

It runs in the globals of the module that most of the paths begin in: reading one of those costs 2 ns, since the
interpreter remembers where it found it. Reading them through dictionaries would take ten times as long.
"""

from __future__ import annotations

import builtins
from collections import Counter
from collections.abc import Callable
from typing import Any

from .made import MadeFunction


class GuardTerms:
    """Terms of a test, in the order in which they are asked."""

    def __init__(self) -> None:
        self._globals: dict[tuple[int, str], tuple[dict[str, Any], Any, bool]] = {}
        self._terms: dict[tuple[Any, ...], tuple[str, tuple[Any, ...]]] = {}

    def __len__(self) -> int:
        return len(self._globals) + len(self._terms)

    def add(self, term: str, *values: Any) -> None:
        """A term in Python, with {} for each of `values`."""
        self._terms.setdefault((term, *map(id, values)), (term, values))

    def add_global(self, space: dict[str, Any], name: str, value: Any) -> None:
        """A global's name leads to `value`, or does so as a builtin's."""
        self._globals[id(space), name] = (space, value, name in space)

    def function(self) -> Callable[[], bool]:
        """The test. False too where a path leads nowhere any more."""
        made = MadeFunction("unchanged")
        constant = made.constant
        counts = Counter(space for space, _ in self._globals)
        home = counts.most_common(1)[0][0] if counts else 0
        globals_of_test: dict[str, Any] = {}  # of the module that most paths begin in
        terms = []
        for (owner, name), (space, value, bound) in self._globals.items():
            if owner == home:
                globals_of_test = space
            if owner == home and name.isidentifier() and not (name.startswith("_") and name.endswith("_")):
                terms.append(f"{name} is {constant(value)}")
            elif bound:
                terms.append(f"{constant(space)}[{name!r}] is {constant(value)}")
            else:
                terms.append(
                    f"{name!r} not in {constant(space)} and {constant(vars(builtins))}[{name!r}] is {constant(value)}"
                )
        terms += [term.format(*map(constant, values)) for term, values in self._terms.values()]
        made.line(f"try: return {' and '.join(terms) or 'True'}")
        made.line(f"except {constant(Exception)}: return False")
        unchanged: Callable[[], bool] = made.function_in(globals_of_test) if globals_of_test else made.function()
        return unchanged
