"""The Python state around a region of a kernel: what the names of the user's frames mean, before and after.

A kernel is traced once, so Python state that changes inside a run-time branch or from one pass of a run-time loop to
the next would be frozen. It is found by comparing snapshots, which look into lists, dicts and the user's own objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import FrameType, FunctionType, ModuleType
from typing import Any

from ..program import Value

_ATOMS = (int, float, complex, str, bytes, type(None))
_WHOLE = (*_ATOMS, Value, FunctionType, type, ModuleType)
_DEPTH, _ITEMS = 4, 64  # how far a snapshot looks into containers and objects


class Snapshot:
    """What the names of some frames mean now: `before = Snapshot(frames)`, and later
    `before.changes(Snapshot(frames))`.
    """

    def __init__(self, frames: list[FrameType]):
        self.values: dict[tuple[FrameType, str], Any] = {}
        self.frozen: dict[tuple[FrameType, str], Any] = {}
        for frame in frames:
            for name, value in frame.f_locals.items():
                self.values[frame, name] = value
                self.frozen[frame, name] = freeze(value)

    def changes(
        self, after: Snapshot, same: Callable[[Any, Any], bool] | None = None
    ) -> Iterator[tuple[str, Any, Any]]:
        """(name, old, new) for every name of this state that means something else in `after`, as deep as snapshots
        look.
        """
        for key, old in self.frozen.items():
            if key in after.frozen and not equal(old, after.frozen[key], same or _identical):
                yield (
                    key[1],
                    self.values[key] if _atomic(old) else old,
                    after.values[key] if _atomic(old) else after.frozen[key],
                )


class Frozen(tuple[Any, ...]):
    """The contents of a container or object, as they were."""

    kind: str

    def __repr__(self) -> str:
        brackets = {"list": "[]", "set": "{}", "dict": "{}"}.get(self.kind, "()")
        if self.kind == "dict":
            parts = [f"{k!r}: {v!r}" for k, v in self]
        elif self.kind not in ("list", "set", "tuple"):
            return f"{self.kind}({', '.join(f'{k}={v!r}' for k, v in self)})"
        else:
            parts = [repr(x) for x in self]
        text = ", ".join(parts)
        return f"{brackets[0]}{text if len(text) < 80 else text[:77] + '...'}{brackets[1]}"


def _frozen(kind: str, items: Any) -> Frozen:
    out = Frozen(items)
    out.kind = kind
    return out


def freeze(value: Any, depth: int = _DEPTH) -> Any:
    """`value` where it cannot change; the contents of lists, dicts and the user's objects as they are now."""
    if isinstance(value, _WHOLE) or depth == 0:
        return value
    if isinstance(value, (list, tuple, set)):
        return _frozen(
            type(value).__name__ if type(value) in (list, set) else "tuple",
            [freeze(x, depth - 1) for x in list(value)[:_ITEMS]],
        )
    if isinstance(value, dict):
        return _frozen("dict", [(k, freeze(v, depth - 1)) for k, v in list(value.items())[:_ITEMS]])
    if _users_object(value):
        return _frozen(type(value).__name__, [(k, freeze(v, depth - 1)) for k, v in list(vars(value).items())[:_ITEMS]])
    return value


def _users_object(value: Any) -> bool:
    """Whether it is an instance of a plain class of the user's: not ours, not a module, function or array."""
    module = type(value).__module__
    return (
        hasattr(value, "__dict__")
        and not isinstance(value, type)
        and not callable(value)
        and module != "builtins"
        and module.partition(".")[0] not in ("pykittens", "numpy", "torch", "cupy", "jax", "jaxlib")
    )


def _atomic(value: Any) -> bool:
    return not isinstance(value, Frozen)


def _identical(a: Any, b: Any) -> bool:
    return a is b


def equal(a: Any, b: Any, same: Callable[[Any, Any], bool]) -> bool:
    """Whether two frozen values are the same; `same` decides for traced values and opaque objects."""
    if a is b and not isinstance(a, (Value, float, complex)):
        return True
    if isinstance(a, Value) or isinstance(b, Value):
        return isinstance(a, Value) and isinstance(b, Value) and same(a, b)
    if isinstance(a, Frozen) and isinstance(b, Frozen):
        return a.kind == b.kind and len(a) == len(b) and all(equal(x, y, same) for x, y in zip(a, b, strict=True))
    if isinstance(a, tuple) and isinstance(b, tuple):  # a name with what it means
        return len(a) == len(b) and all(equal(x, y, same) for x, y in zip(a, b, strict=True))
    if isinstance(a, _ATOMS) and isinstance(b, _ATOMS):
        return type(a) is type(b) and (a == b or (a != a and b != b))
    return a is b or (not isinstance(b, _ATOMS) and not isinstance(a, _ATOMS) and same(a, b))
