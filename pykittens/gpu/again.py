"""Calling a kernel again: what a call costs when one like it has gone before.

A call is looked up by what its arguments look like: type, shape, strides, dtype and device of arrays, values of static
parameters. Then pointers and numbers are put in place, and it is launched. Nothing is described, checked or traced again,
but that pointers are as well aligned as kernels expect, and that no global the kernel refers to has been rebound.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

from ..interop import arrays
from ..trace.watch import Watch
from .run import Call

_ALIGNED = 16
_MOST, _MOST_FUNCTIONS = 1024, 64  # calls that one kernel keeps, functions among their static values
_PLAIN = (bool, int, float, str)  # values that say by themselves whether they are the same
_probes: dict[type, Callable[[Any], tuple[int, Any]]] = {}  # by the types of arrays that have been seen


class Again:
    """The calls of one kernel that can be made again."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._operands = {name for name, _ in kernel.signature.runtime}
        self._calls: dict[Any, tuple[Callable[[Sequence[int], Sequence[Any]], None], Any]] = {}
        self._watch: Watch | None = None
        self._functions = self._own = [x for x in (kernel.function, *kernel.options.values()) if isinstance(x, FunctionType)]

    def __call__(self, args: tuple[Any, ...], named: dict[str, Any]) -> bool:
        """Launches as a call with such arguments did before. False if there was none: then nothing has been done."""
        try:
            key, pointers, numbers = self._look(args, named)
            found = self._calls.get(key)
        except (TypeError, RuntimeError):  # tensors without memory, values without a hash: the long way says what is wrong
            return False
        if found is None:
            return False
        if not self._watch.unchanged():  # type: ignore[union-attr]  # there is one since there is a call
            self._calls.clear()
            return False
        try:
            found[0](pointers, numbers)
        except (struct.error, OverflowError):  # a number that its parameter does not hold: the long way says so
            return False
        return True

    def remember(self, args: tuple[Any, ...], named: dict[str, Any], call: Call) -> None:
        """Lets calls with such arguments be made again."""
        for x in (*args, *named.values()):
            if type(x) not in _probes and x is not None and not isinstance(x, _PLAIN):
                try:
                    _probes[type(x)] = arrays.probe(x)
                except arrays.Unsupported:
                    continue
        fixed = [value for name, value in named.items() if name not in self._operands]
        try:
            key, pointers, _ = self._look(args, named)
            hash((key, tuple(fixed)))
        except TypeError:
            return
        if any(pointer % _ALIGNED for pointer in pointers) or not self._watches(fixed):
            return
        names = [name for name, _ in self._kernel.signature.runtime][: len(args)] + [name for name in named if name in self._operands]
        values = [*args, *(value for name, value in named.items() if name in self._operands)]
        tensors = [name for name, x in zip(names, values, strict=True) if type(x) in _probes]
        scalars = [name for name, x in zip(names, values, strict=True) if type(x) in _PLAIN]
        if len(self._calls) >= _MOST:
            self._calls.clear()
        self._calls[key] = call.order(tensors, scalars), fixed  # kept, so that nothing else gets their identity

    def _look(self, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, list[int], list[Any]]:
        """What the arguments look like, the pointers and the numbers among them. TypeError for what must go the long way."""
        about: list[Any] = []
        pointers: list[int] = []
        numbers: list[Any] = []
        bits, probes = 0, _probes
        for x in args:
            kind = type(x)
            if kind in probes:
                pointer, seen = probes[kind](x)
                bits |= pointer
                pointers.append(pointer)
                about.append(seen)
            elif kind is float or kind is int or kind is bool:
                numbers.append(x)
                about.append(kind)
            elif x is None:
                about.append(None)
            else:
                raise TypeError(kind)
        for name, x in named.items():
            about.append(name)
            kind = type(x)
            if name not in self._operands:
                about.append(x if kind in _PLAIN else id(x))
                about.append(kind)
            elif kind in probes:
                pointer, seen = probes[kind](x)
                bits |= pointer
                pointers.append(pointer)
                about.append(seen)
            elif kind is float or kind is int or kind is bool:
                numbers.append(x)
                about.append(kind)
            elif x is None:
                about.append(None)
            else:
                raise TypeError(kind)
        if bits % _ALIGNED:
            about.append(_ALIGNED)  # such calls are not remembered, and so not found
        if self._kernel.by_value:
            about += numbers
        return tuple(about), pointers, numbers

    def _watches(self, fixed: Sequence[Any]) -> bool:
        """Whether a change of what the kernel and its static values refer to would be seen."""
        functions = [x for x in fixed if isinstance(x, FunctionType) and x not in self._functions]
        if self._watch is None or functions:
            if len(self._functions) > _MOST_FUNCTIONS:  # one made anew for every call
                self._calls.clear()
                self._functions = self._own
            self._functions = [*self._functions, *functions]
            self._watch = Watch(self._functions)
        return self._watch.steady
