"""What all values that kernel code holds have in common, and what may stand beside them as an operand."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any, NoReturn

from ..errors import TraceError, TypeRuleError, user_frame_objects, user_frames
from ..program import Operand, Value
from ..suggestions import NoSuchWord
from ..types import ScalarType
from . import recorder

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {  # by the name of NumPy's function
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.truediv,
    "true_divide": operator.truediv,
    "floor_divide": operator.floordiv,
    "remainder": operator.mod,
    "power": operator.pow,
    "bitwise_and": operator.and_,
    "bitwise_or": operator.or_,
    "bitwise_xor": operator.xor,
    "left_shift": operator.lshift,
    "right_shift": operator.rshift,
    "less": operator.lt,
    "less_equal": operator.le,
    "greater": operator.gt,
    "greater_equal": operator.ge,
    "equal": operator.eq,
    "not_equal": operator.ne,
}


def _refuse_bool(value: Value) -> NoReturn:
    said = next((_instead(frame.text.strip()) for frame in user_frames(1)), "")
    always = "`with pk.when(condition):` for statements, pk.where(condition, a, b) for values"
    raise TraceError(
        f"a Python condition on {value.label}, which is known only when the kernel runs",
        fix=f"write {said}; or {always}" if said else f"write {always}",
    )


def _instead(line: str) -> str:
    """What is written instead of what asks a value for its truth in a line of source; nothing where nobody knows."""
    try:
        nodes = [*ast.walk(ast.parse(line.removeprefix("el") + " pass" * line.endswith(":")))]
    except SyntaxError:  # a part of a statement
        return ""
    if any(isinstance(x, ast.While) for x in nodes):
        return "`for _ in pk.loop():` with pk.break_if(~(condition)) as its first line"
    if any(isinstance(x, ast.Assert) for x in nodes):
        return "pk.assert_(condition)"
    if any(isinstance(x, (ast.BoolOp, ast.Not)) for x in nodes):
        return "(a < b) & (c < d), a | b, ~a for `and`, `or`, `not`"
    if any(isinstance(x, ast.Compare) and len(x.ops) > 1 for x in nodes):
        return "(a < b) & (b < c) for a < b < c"
    called = {x.func.id for x in nodes if isinstance(x, ast.Call) and isinstance(x.func, ast.Name)}
    return "pk.maximum(a, b), pk.minimum(a, b)" if called & {"max", "min", "sorted"} else ""


AUGMENTED = "add sub mul truediv floordiv mod pow and or xor lshift rshift".split()


def changes_in_place(cls: type) -> None:
    """`x += y` and all its like change values of a class in place, as `x[:] = x + y` does: no name means another."""
    for name in AUGMENTED:
        setattr(cls, f"__i{name}__", _changing(getattr(operator, f"{name}_" if name in ("and", "or") else name)))


def _changing(operation: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def apply(self: Any, other: Any) -> Any:
        self[:] = operation(self, other)
        return self

    return apply


_HELD = frozenset(  # what the trace and the passes note of a value
    "type name location block producer multiple most changes note count stride landing".split()
)


class Handle(Value):
    """Common to all values: they have no truth value, and compare by operators, not by identity."""

    __hash__ = Value.__hash__

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """NumPy's numbers are numbers on the left of an operator, too. Its functions know nothing of a trace, and its
        arrays have no place in it.
        """
        for x in inputs:
            refuse_array(x)
        if method == "__call__" and len(inputs) == 2 and not options and (operation := _OPERATORS.get(ufunc.__name__)):
            return operation(*map(number, inputs))
        raise TraceError(
            f"np.{ufunc.__name__} of {self._described}",
            fix="NumPy runs while the kernel is traced: use pk.exp(x), pk.maximum(x, y), x + y and the like",
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _HELD:
            raise TraceError(
                f"{name} of {self._described} is set, which changes nothing in the kernel",
                fix="x[:] = value gives a tile or variable a new value; keep what is yours in names of your own",
            )
        self.__dict__[name] = value

    def __array_function__(self, function: Any, types: Any, args: Any, named: Any) -> NoReturn:
        raise TraceError(
            f"np.{function.__name__} of {self._described}",
            fix="NumPy runs while the kernel is traced: use x.row_sum(), pk.where(mask, x, y) and the like",
        )

    def __array__(self, *options: Any, **named: Any) -> NoReturn:
        raise TraceError(
            f"{self._described} as an array of NumPy: it is known only when the kernel runs",
            fix="leave it a value of the kernel: x * 2, pk.exp(x); warp.store brings it to a tensor",
        )

    def __getattr__(self, name: str) -> NoReturn:
        raise NoSuchWord(self._described if not name.startswith("_") else "it", name, lambda: dir(self))

    @property
    def label(self) -> str:
        """What an error calls it: the user's name for it, where there is one by now."""
        if not self.name and recorder.recording():
            recorder.name_locals(user_frame_objects())
        return super().label

    def __bool__(self) -> bool:
        _refuse_bool(self)

    def __index__(self) -> int:
        raise TraceError(
            f"{self.label} is known only when the kernel runs, so it cannot index a Python sequence or count a Python "
            "loop",
            fix="loop with pk.range, keep tiles in shared memory to index them, or use a Python int",
        )

    def __int__(self) -> int:
        return self._as_number("int")

    def __float__(self) -> float:
        return self._as_number("float")

    __complex__ = __float__

    def _as_number(self, name: str) -> NoReturn:
        dtype = "pk.i32" if name == "int" else "pk.f32"
        convert = f"pk.cast(x, {dtype})" if isinstance(self.type, ScalarType) else f"x.to({dtype})"
        raise TraceError(
            f"{self.label} is known only when the kernel runs: it is no Python {name}",
            fix=f"{convert} converts it there; for functions of Python's math use pk's, pk.exp(x), pk.sqrt(x)",
        )

    def __enter__(self) -> NoReturn:
        no_context(self._described)

    def __exit__(self, *error: object) -> None:
        """Never reached: Python asks for it first."""

    def __pos__(self) -> Any:
        return self

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self

    def __format__(self, spec: str) -> str:
        if spec:
            fix = "pk.print prints it from the running kernel"
            raise TraceError(f"{self.label} as text, {spec!r}: it is known only when the kernel runs", fix=fix)
        return repr(self)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TraceError(
            f"a copy of {self._described}: what an operation makes is one value, and would be known to none",
            fix="make another from it: y = x + 0, or of a variable pk.var(x.dtype, x)",
        )

    def __len__(self) -> int:
        raise TraceError(f"{self._described} has no Python length", fix="use .rows and .cols")

    def __iter__(self) -> Any:
        raise TraceError(f"{self._described} cannot be iterated", fix="operate on the whole tile")

    def __repr__(self) -> str:
        return f"<{self._described}>"

    @property
    def _described(self) -> str:
        """What it is called, where it has a name, and what it is."""
        label = self.label  # which finds a name
        return f"{label}: {self.type}" if self.name else str(self.type)


def no_context(what: str) -> NoReturn:
    """Refuses `with` of what is no region."""
    raise TraceError(
        f"`with` of {what}, which is no context",
        fix="branch with pk.when(x > 0); of a ring, `with ring.fill() as slot:` and `with ring.reading() as slot:`",
    )


class Rounded:
    """Python's words for rounding, of values that `pk.round` and its like take: `round(x)`, `math.floor(x)`."""

    def __round__(self, digits: int | None = None) -> Any:
        """round(x), as pk.round(x); math.floor, math.ceil and math.trunc are pk's, too."""
        if digits is not None:
            raise TypeRuleError(f"round(x, {digits}) of {self!r}", fix="pk.round(x * 100) / 100 rounds to two digits")
        return self._whole("round")

    def __floor__(self) -> Any:
        return self._whole("floor")

    def __ceil__(self) -> Any:
        return self._whole("ceil")

    def __trunc__(self) -> Any:
        return self._whole("trunc")

    def _whole(self, kind: str) -> Any:
        x: Any = self
        return x if x.dtype.kind in "iu" else x._unary(kind)


def number(x: Any) -> Operand:
    """NumPy numbers as Python ones; everything else as it is."""
    return x.item() if not isinstance(x, Value) and hasattr(x, "item") and getattr(x, "ndim", 1) == 0 else x


def refuse_array(x: Any) -> None:
    """Refuses an array of NumPy or another framework where an operand is meant."""
    if not isinstance(x, Value) and hasattr(x, "shape") and hasattr(x, "dtype") and getattr(x, "ndim", 1) != 0:
        raise TraceError(
            f"an array of shape {tuple(x.shape)} is captured by the kernel", fix="pass it to the kernel as an operand"
        )


def extent(key: slice, length: int) -> tuple[int, int]:
    """Where a slice of `length` elements begins, and how many it has."""
    for bound in (key.start, key.stop, key.step):
        if isinstance(bound, Value):
            raise TraceError(
                "a slice with bounds known only when the kernel runs has no size",
                fix="use tile.part(row, col, rows, cols)",
            )
    start, stop, step = key.indices(length)
    if step != 1:
        raise TraceError(f"a slice with step {step}", fix="parts of tiles are contiguous")
    return start, stop - start
