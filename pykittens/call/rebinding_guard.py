"""Whether anything that functions depend on has been bound to something else: cheap enough to ask at every call.

`fingerprint` says the same more thoroughly, and takes a hundred times as long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter, itemgetter
from types import CellType, CodeType, FunctionType
from typing import Any

from .fingerprint import depends, global_names

_code = attrgetter("__code__")


class RebindingGuard:
    """What functions refer to now: their code, globals, closure cells and defaults, and those of their helpers.

    `steady` is False where one of these is a list, a dictionary or a set, whose contents can change unseen.
    """

    def __init__(self, functions: Iterable[FunctionType]) -> None:
        self.steady = True
        self._functions: list[FunctionType] = []
        self._cells: list[CellType] = []
        names: dict[int, tuple[dict[str, Any], dict[str, None]]] = {}
        todo: list[Any] = list(functions)
        while todo:
            value = todo.pop()
            if isinstance(value, tuple):
                todo += value
            if isinstance(value, (list, dict, set)):
                self.steady = False
            if not isinstance(value, FunctionType) or value in self._functions or not depends(value):
                continue
            space = value.__globals__
            read = [name for name in global_names(value.__code__) if name in space]
            names.setdefault(id(space), (space, {}))[1].update(dict.fromkeys(read))
            self._functions.append(value)
            self._cells += value.__closure__ or ()
            todo += [space[name] for name in read]
            todo += [cell.cell_contents for cell in value.__closure__ or () if _bound(cell)]
            todo += [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        reads: list[tuple[Callable[[Any], Any], Any]] = [
            (itemgetter(*read), space) for space, read in names.values() if read
        ]
        reads += [(_codes, self._functions)]
        reads += [(attrgetter("cell_contents"), cell) for cell in self._cells if _bound(cell)]
        self._seen = [(read, of, read(of)) for read, of in reads]

    def unchanged(self) -> bool:
        """Whether all of it is as it was."""
        try:
            for read, of, seen in self._seen:
                if read(of) != seen:
                    return False
        except (KeyError, ValueError):  # a name or a cell that is gone, an array in the place of a number
            return False
        return True


def _codes(functions: list[FunctionType]) -> list[CodeType]:
    return [*map(_code, functions)]


def _bound(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
