"""Calling a kernel again: what a call costs when one like it has gone before.

A call is found in the kernel's memory by what its arguments look like (`memory.Plans`). Then pointers and numbers are
put in place, and it is launched. Nothing is described, checked or traced again, but that pointers are as well aligned
as kernels expect, and that no global the kernel refers to has been rebound.

Most calls look like the one before: `_repeating` asks that first, which takes half of the look-up's time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from ..loading import dataclass
from .gradients import overwritten, recording, requires_gradient
from .identity import Identity, leaf_of
from .launch import Call, Launch
from .made import MadeFunction
from .memory import ALIGNED, Kept, Plans, picker

_NUMBERS = frozenset((float, int, bool))

Repeat = Callable[[tuple[Any, ...], dict[str, Any]], bool]
Told = Callable[[Any], None]  # to be called with the arrays of a call afterwards: see `gradients.py`


@dataclass
class _Known:
    """A call that can be made again, once found, or by a quicker test: `repeat`."""

    launch: Launch
    told: Told | None
    repeat: Repeat


class Again:
    """The calls of one kernel that can be made again. `repeat(args, named)` makes one, or returns False: then
    nothing has been done.
    """

    def __init__(self, kernel: Any) -> None:
        self.repeat: Repeat = self._look_up
        self._kernel = kernel
        self._names = [name for name, _ in kernel.signature.runtime]
        self._operands = set(self._names)
        self._statics = {name for name, _ in kernel.signature.static}
        self._calls: Plans[_Known] = kernel.memory.calls
        self._identity: Identity | None = None

    def launcher(self, args: tuple[Any, ...], named: dict[str, Any]) -> Launch | None:
        """What launches for the pointers and numbers of such arguments; None if there was no call like it."""
        arrays, _, looks = self._sorted(args, named)
        found = self._calls.find(arrays, looks)
        return found and found[0].launch

    def _look_up(self, args: tuple[Any, ...], named: dict[str, Any]) -> bool:
        arrays, numbers, looks = self._sorted(args, named)
        found = self._calls.find(arrays, looks)
        if found is None:
            return False
        call, pointers = found
        if call.launch(pointers, numbers):
            if call.told:
                call.told(arrays)
            self.repeat = call.repeat
            return True
        if self._identity is not self._kernel.identity:
            self._forget()
        return False

    def _forget(self) -> None:
        self._calls.clear()
        self._identity, self.repeat = None, self._look_up

    def remember(self, args: tuple[Any, ...], named: dict[str, Any], call: Call) -> None:
        """Lets calls with such arguments be made again."""
        if self._identity is not self._kernel.identity:
            self._forget()
            self._identity = self._kernel.identity
        self.repeat = self._look_up
        arrays, _, looks = self._sorted(args, named)
        operands = dict(zip(self._names, args))  # noqa: B905  # the first
        operands |= {name: x for name, x in named.items() if name in self._operands}
        if any(type(x) not in _NUMBERS for name, x in operands.items() if name in call.scalars):
            return  # NumPy's numbers, which take time to be told from arrays
        defaults = {name: x for name, x in self._kernel.signature.numbers if name not in operands}
        scalars = [name for name, x in operands.items() if type(x) in _NUMBERS]
        tensors = [name for name, x in operands.items() if x is not None and type(x) not in _NUMBERS]
        outputs = [i for i, name in enumerate(tensors) if name in call.entry.outputs]
        graded = any(requires_gradient(x) for i, x in enumerate(arrays) if i not in outputs)
        tell = _telling([arrays[i] for i in outputs], outputs)
        unchanged = _unless_recording(self._identity.unchanged, graded)
        launch = call.order(tensors, scalars, defaults, unchanged)
        known = _Known(launch, tell, self._look_up)
        kept = self._calls.keep(arrays, looks, known)
        statics = [x for name, x in named.items() if name not in self._operands and leaf_of(x) is None]
        whole = self._identity
        if statics:
            whole = self._kernel.memory.identities.of(*whole.values, *statics, static=True)
        if kept and whole.steady and not self._operands & set(named):
            unchanged = _unless_recording(whole.unchanged, graded)
            self.repeat = known.repeat = self._repeating(args, named, call, tensors, defaults, unchanged, kept, outputs)

    def _repeating(
        self,
        args: tuple[Any, ...],
        named: dict[str, Any],
        call: Call,
        tensors: Sequence[str],
        defaults: Mapping[str, Any],
        unchanged: Callable[[], bool],
        kept: Kept,
        outputs: Sequence[int],
    ) -> Repeat:
        """Launches what looks like these arguments, and looks up what does not. Such a function reads

        if len(args) != 4 or named: return look_up(args, named)
        a0, a1, a2, a3 = args
        if a2 is not None or type(a3) is not float or not same(a0, a1): return look_up(args, named)
        p0 = address(a0); p1 = address(a1)
        if (p0 | p1) % 16: return False
        if not unchanged(): return look_up(args, named)
        ...                                         # `Call.launching`
        told((a1,))
        return True
        """
        made = MadeFunction("repeat", "args, named")
        constant = made.constant
        other = f"return {constant(self._look_up)}(args, named)"
        # Static values by identity: 1, 1.0 and True are equal. What is equal and not identical is found in the look-up.
        terms = [f"len(args) != {len(args)}", f"len(named) != {len(named)}" if named else "named"]
        terms += [f"named.get({name!r}, {constant(made)}) is not {constant(x)}" for name, x in named.items()]
        made.line(f"if {' or '.join(terms)}: {other}")
        if args:
            made.line(f"{''.join(f'a{i}, ' for i in range(len(args)))} = args")
        arrays, numbers, terms = [], [], []
        for i, x in enumerate(args):
            if x is None:
                terms.append(f"a{i} is not None")
            elif type(x) in _NUMBERS:
                numbers.append((self._names[i], f"a{i}"))
                terms.append(f"type(a{i}) is not {constant(type(x))}")
                if self._names[i] in self._kernel.by_value:
                    terms.append(f"a{i} != {constant(x)}" if type(x) is not float else "True")
            else:
                arrays.append(f"a{i}")
        terms.append(f"not {constant(kept.same)}({', '.join(arrays)})")
        made.line(f"if {' or '.join(terms)}: {other}")
        pointers = [f"p{i}" for i in range(len(arrays))]
        made.line("; ".join(f"{p} = {constant(kept.address)}({a})" for p, a in zip(pointers, arrays, strict=True)))
        made.line(f"if ({' | '.join(pointers)}) % {ALIGNED}: return False")
        made.line(f"if not {constant(unchanged)}(): {other}")
        call.launching(made, dict(zip(tensors, pointers, strict=True)), dict(numbers), defaults)
        if tell := overwritten([args[int(arrays[i][1:])] for i in outputs]):
            made.line(f"{constant(tell)}(({''.join(f'{arrays[i]}, ' for i in outputs)}))")
        made.line("return True")
        return made.function()

    def _sorted(self, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[list[Any], list[Any], Hashable]:
        """The arrays among arguments, the numbers, and what else a call is known by: their order, shapes and types, and
        static values.
        """
        arrays: list[Any] = []
        numbers: list[Any] = []
        looks: list[Any] = []

        by_value = self._kernel.by_value

        def operand(name: str, x: Any) -> None:
            kind = type(x)
            if x is None:
                looks.append(None)
            elif kind in _NUMBERS:
                numbers.append(x)
                looks.append(leaf_of(x) if name in by_value else kind)
            else:  # what is no array is not found
                arrays.append(x)
                looks.append(_shape_of(x))

        for name, x in zip(self._names, args):  # noqa: B905  # of too many, those are found that were refused
            operand(name, x)
        objects = dict[str, Any]()
        for name, x in named.items():
            looks.append(name)
            if name in self._operands:
                operand(name, x)
            elif name in self._statics:
                looks.append(leaf := leaf_of(x))
                if leaf is None:
                    objects[name] = x
            else:  # what the kernel has no parameter for is not found, and then refused
                looks.append(type(x))
        if objects:
            own, others = self._kernel.beside(objects)
            looks += [own, *others]
        return arrays, numbers, tuple(looks)


def _shape_of(x: Any) -> Any:
    try:
        return x.shape
    except Exception:  # no array; torch's nested tensors have none, and say so in errors of all kinds
        return type(x)


def _unless_recording(unchanged: Callable[[], bool], graded: bool) -> Callable[[], bool]:
    """For inputs that require their gradients: the call is refused, the long way, while gradients are recorded."""
    return (lambda: not recording() and unchanged()) if graded else unchanged


def _telling(arrays: list[Any], places: list[int]) -> Told | None:
    """What is to be called with all arrays of a call, of which these, at some places, are written."""
    tell, outputs_of = overwritten(arrays), picker(places)
    return None if tell is None else lambda given: tell(outputs_of(given))
