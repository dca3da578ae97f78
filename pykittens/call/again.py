"""Calling a kernel again: what a call costs when one like it has gone before.

A call is looked up by what its arguments look like: type, shape, strides, dtype and device of arrays, values of static
parameters. Then pointers and numbers are put in place, and it is launched. Nothing is described, checked or traced
again, but that pointers are as well aligned as kernels expect, and that no global the kernel refers to has been
rebound.

Most calls look like the one before: `_repeating` asks that first, which takes a third of the look-up's time.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import is_
from typing import Any, NamedTuple

from ..interop import arrays
from ..trace.operands import written
from .bounded import Bounded
from .gradients import overwritten, recording, requires_gradient
from .identity import Identity, leaf_of
from .launch import Call, Launch
from .memory import ALIGNED, picker

_MOST = 1024  # calls that one kernel keeps
_PLAIN = (bool, int, float, str)  # values that say by themselves whether they are the same
_NUMBERS = frozenset((float, int, bool))
_probes: dict[type, Callable[[Any], tuple[int, Any]]] = {}  # by the types of arrays that have been seen

Repeat = Callable[[tuple[Any, ...], dict[str, Any]], bool]


class _Kept(NamedTuple):
    launch: Launch
    repeat: Repeat
    written: Callable[[tuple[Any, ...], dict[str, Any]], None] | None  # to be called afterwards: see `gradients.py`


class Again:
    """The calls of one kernel that can be made again. `repeat(args, named)` makes one, or returns False: then
    nothing has been done.
    """

    def __init__(self, kernel: Any) -> None:
        self.repeat: Repeat = self._look_up
        self._kernel = kernel
        self._operands = {name for name, _ in kernel.signature.runtime}
        self._calls: Bounded[Any, _Kept] = Bounded(_MOST)
        self._identity: Identity | None = None

    def launcher(self, args: tuple[Any, ...], named: dict[str, Any]) -> Launch | None:
        """What launches for the pointers and numbers of such arguments; None if there was no call like it."""
        try:
            found = self._calls.get(self._look(args, named)[0])
        except (TypeError, RuntimeError):
            return None
        return found and found.launch

    def _look_up(self, args: tuple[Any, ...], named: dict[str, Any]) -> bool:
        try:
            key, pointers, numbers = self._look(args, named)
            found = self._calls.get(key)
        except (
            TypeError,
            RuntimeError,
        ):  # tensors without memory, values without a hash: the long way says what is wrong
            return False
        if found is None:
            return False
        if found.launch(pointers, numbers):
            if found.written:
                found.written(args, named)
            self.repeat = found.repeat
            return True
        if self._identity is not self._kernel.identity:
            self._forget()
        return False

    def _forget(self) -> None:
        self._calls.clear()
        self._identity, self.repeat = None, self._look_up

    def remember(self, args: tuple[Any, ...], named: dict[str, Any], call: Call) -> None:
        """Lets calls with such arguments be made again."""
        for x in (*args, *named.values()):
            if type(x) not in _probes and x is not None and not isinstance(x, _PLAIN):
                try:
                    _probes[type(x)] = arrays.probe(x)
                except arrays.Unsupported:
                    continue
        try:
            key, pointers, _ = self._look(args, named)
            hash(key)
        except TypeError:
            return
        if any(pointer % ALIGNED for pointer in pointers):
            return
        if self._identity is not self._kernel.identity:
            self._forget()
            self._identity = self._kernel.identity
        names = [name for name, _ in self._kernel.signature.runtime][: len(args)] + [
            name for name in named if name in self._operands
        ]
        values = [*args, *(value for name, value in named.items() if name in self._operands)]
        tensors = [name for name, x in zip(names, values, strict=True) if type(x) in _probes]
        scalars = [name for name, x in zip(names, values, strict=True) if type(x) in _PLAIN]
        by_name = dict(zip(names, values, strict=True))
        outputs = [name for name in tensors if name in written(call.program)]
        graded = any(requires_gradient(by_name[name]) for name in tensors if name not in outputs)
        launch = call.order(tensors, scalars, _unless_recording(self._identity.unchanged, graded))
        statics = [x for name, x in named.items() if name not in self._operands and leaf_of(x) is None]
        all_of_it = (
            self._kernel.memory.identities.of(*self._identity.values, *statics, static=True)
            if statics
            else self._identity
        )
        self.repeat = self._look_up
        if all_of_it.steady and not self._kernel.by_value and not self._operands & set(named):
            again = call.order(tensors, scalars, _unless_recording(all_of_it.unchanged, graded))
            self.repeat = self._repeating(args, named, again, [tensors.index(name) for name in outputs])
        self._calls.keep(key, _Kept(launch, self.repeat, _written(names, outputs, by_name)))

    def _repeating(self, args: tuple[Any, ...], named: dict[str, Any], launch: Launch, outputs: list[int]) -> Repeat:
        """Launches what looks like these arguments, and looks up what does not."""
        tensors = [i for i, x in enumerate(args) if type(x) in _probes]
        alike = arrays.alike([args[i] for i in tensors])
        if alike is None:
            return self._look_up
        same, address = alike
        nones, count = [i for i, x in enumerate(args) if x is None], len(args)
        arrays_of, numbers_of = picker(tensors), picker([i for i, x in enumerate(args) if type(x) in _NUMBERS])
        names, values, look_up = tuple(named), tuple(named.values()), self._look_up
        tell, outputs_of = overwritten(args[tensors[i]] for i in outputs), picker(outputs)

        def repeat(args: tuple[Any, ...], named: dict[str, Any]) -> bool:
            # Static values by identity: 1, 1.0 and True are equal. What is equal and not identical is found in the
            # look-up.
            if len(args) != count or tuple(named) != names or (names and not all(map(is_, named.values(), values))):
                return look_up(args, named)
            given, numbers = arrays_of(args), numbers_of(args)
            if not same(*given):
                return look_up(args, named)
            for i in nones:
                if args[i] is not None:
                    return look_up(args, named)
            for number in numbers:
                if type(number) not in _NUMBERS:
                    return False
            pointers, bits = [*map(address, given)], 0
            for pointer in pointers:
                bits |= pointer
            if bits % ALIGNED:
                return False
            if not launch(pointers, numbers):
                return look_up(args, named)
            if tell:
                tell(outputs_of(given))
            return True

        return repeat

    def _look(self, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, list[int], list[Any]]:
        """What the arguments look like, the pointers and the numbers among them. TypeError for what must go the long
        way.
        """
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
                about.append(leaf_of(x) or self._kernel.memory.identities.of(x, static=True))
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
        if bits % ALIGNED:
            about.append(ALIGNED)  # such calls are not remembered, and so not found
        if self._kernel.by_value:
            about += numbers
        return tuple(about), pointers, numbers


def _unless_recording(unchanged: Callable[[], bool], graded: bool) -> Callable[[], bool]:
    """For inputs that require their gradients: the call is refused, the long way, while gradients are recorded."""
    return (lambda: not recording() and unchanged()) if graded else unchanged


def _written(
    names: list[str], outputs: list[str], by_name: dict[str, Any]
) -> Callable[[tuple[Any, ...], dict[str, Any]], None] | None:
    tell = overwritten(by_name[name] for name in outputs)
    if tell is None:
        return None
    places = [names.index(name) for name in outputs]
    return lambda args, named: tell([args[i] if i < len(args) else named[names[i]] for i in places])
