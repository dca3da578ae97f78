"""What the author's Python code holds that can change, as it is now, in a form that can be compared with a later one.

Names of frames, globals that code names, closures, defaults, attributes; and in them lists, dicts, arrays, iterators
and objects, by their contents.
"""

from __future__ import annotations

import sys
from collections import ChainMap, UserDict, UserList, deque
from collections.abc import Callable, Iterator
from functools import cache, cached_property, partial
from hashlib import blake2b
from threading import local
from types import (
    BuiltinMethodType,
    CodeType,
    FunctionType,
    GeneratorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
)
from typing import Any
from warnings import catch_warnings, simplefilter

from ..errors import is_authors, module_of
from ..program import Value

ATOMS = (int, float, complex, str, bytes, range, type(None))  # a range is where its iterator stands, since 3.13
_WHOLE = (*ATOMS, Value, ModuleType, CodeType)
_BOUND = (MethodType, BuiltinMethodType, MethodWrapperType)
_DEPTH, _MOST = 32, 4096  # how far it looks into containers and objects, and at how many parts of what a name means
_FEW, _BYTES = 64, 1 << 24  # of an array: elements that are shown, bytes that are compared
_LIBRARIES = ("pykittens", "numpy", "torch", "cupy", "jax", "jaxlib", "ml_dtypes")


class Frozen(tuple[Any, ...]):
    """The contents of a container or object, as they were."""

    kind: str

    def __repr__(self) -> str:
        brackets = {"list": "[]", "set": "{}", "dict": "{}"}.get(self.kind, "()")
        own = "" if self.kind in ("list", "set", "dict", "tuple") else self.kind
        text = ", ".join(
            repr(x) if not own and self.kind != "dict" else f"{x[0]}={x[1]!r}" if own else f"{x[0]!r}: {x[1]!r}"
            for x in self
        )
        return f"{own}{brackets[0]}{text if len(text) < 80 else text[:77] + '...'}{brackets[1]}"


def _frozen(kind: str, items: Any) -> Frozen:
    out = Frozen(items)
    out.kind = kind
    return out


def freeze(value: Any, met: list[Any]) -> Any:
    """`value` where it cannot change; the contents of what can. Functions and classes, which hold names of their own
    (`names_of`), are added to `met`.
    """
    return _freeze(value, met, {}, _DEPTH)


def _freeze(value: Any, met: list[Any], seen: dict[int, int], depth: int) -> Any:
    """`seen`: what has been looked into, by its number; it is looked into once."""
    if isinstance(value, _WHOLE):
        return value
    if isinstance(value, (FunctionType, type)):
        met.append(value)
        return value
    if (before := seen.get(id(value))) is not None:
        return _frozen("again", [("number", before)])
    if depth == 0 or len(seen) > _MOST:
        return value
    kind, parts = type(value).__name__, None
    if isinstance(value, (list, tuple, set, deque)):
        seen[id(value)] = len(seen)
        kind = kind if type(value) in (list, set) else "tuple"
        return _frozen(kind, [_freeze(x, met, seen, depth - 1) for x in value])
    if isinstance(value, dict):
        kind, parts = "dict", [*value.items()]
    elif (parts := _parts(value, met)) is None:
        return value
    seen[id(value)] = len(seen)
    return _frozen(kind, [(k, _freeze(v, met, seen, depth - 1)) for k, v in parts])


def _parts(value: Any, met: list[Any]) -> list[tuple[str, Any]] | None:
    """What an object consists of, by name; None of one that nobody can look into, or that does not change."""
    kind = type(value)
    if (look := _LOOKS.get((module_of(kind), kind.__name__))) is not None:
        return [("holds", look(value))]
    module = module_of(kind).partition(".")[0]
    if module in _LIBRARIES and module != "numpy":
        return None
    if isinstance(value, _BOUND) and not isinstance(value.__self__, ModuleType):
        return [("function", getattr(value, "__func__", None)), ("self", value.__self__)]
    if isinstance(value, partial):
        return [("function", value.func), ("arguments", value.args), ("named", value.keywords)]
    if isinstance(value, GeneratorType):
        frame = value.gi_frame
        if frame is None or not is_authors(value.gi_code.co_filename):
            return None
        return [("at", frame.f_lasti), *frame.f_locals.items()]
    if hasattr(value, "_b_needsfree_"):  # of ctypes
        return [("bytes", memoryview(value).tobytes())]
    if module == "numpy" and getattr(value, "nbytes", _BYTES) < _BYTES:
        few = value.dtype.hasobject or value.size <= _FEW
        return [("values", value.tolist() if few else _digest(value))]
    if module in ("builtins", "itertools") and hasattr(kind, "__next__"):
        return _iterator(value)
    if isinstance(value, (local, *_HOLDERS)):
        return [*vars(value).items()]
    if not (_is_authors(kind) or kind.__name__ in ("SimpleNamespace", "Namespace")):
        return None  # a logger has caches, and a lock a state
    met.append(kind)
    slots = [x for c in kind.__mro__ for x in _slots(c) if hasattr(value, x)]
    held = [*getattr(value, "__dict__", {}).items(), *((x, getattr(value, x)) for x in slots)]
    return [(k, x) for k, x in held if not isinstance(getattr(kind, k, None), cached_property)]


def _digest(bytes_of: Any) -> bytes:
    return blake2b(bytes_of.tobytes()).digest()


def _iterator(value: Any) -> list[tuple[str, Any]]:
    """Of what an iterator is, and where it stands: Python pickles it, and since 3.14 no longer those of itertools."""
    with catch_warnings():
        simplefilter("ignore")
        try:
            return [(str(n), x) for n, x in enumerate(value.__reduce__())]
        except TypeError:
            return [("state", repr(value))]


# Objects of Python's and NumPy's own that authors keep state in, by the module and the name of their class, and what of
# them changes.
_HOLDERS = (UserDict, UserList, ChainMap)
_LOOKS: dict[tuple[str, str], Callable[[Any], Any]] = {
    ("builtins", "bytearray"): bytes,
    ("builtins", "memoryview"): lambda x: x.tobytes(),
    ("array", "array"): lambda x: x.tobytes(),
    ("_contextvars", "ContextVar"): lambda x: x.get(None),
    ("os", "_Environ"): dict,
    ("queue", "Queue"): lambda x: x.queue,
    ("random", "Random"): lambda x: x.getstate(),
    ("weakref", "WeakKeyDictionary"): lambda x: [*x.values()],
    ("weakref", "WeakValueDictionary"): dict,
    ("numpy.random._generator", "Generator"): lambda x: repr(x.bit_generator.state),
    ("numpy.random.mtrand", "RandomState"): lambda x: repr(x.get_state()),
    ("torch", "Tensor"): lambda x: x._version,  # counts what is written into it
}


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return tuple(x for x in ((slots,) if isinstance(slots, str) else slots) if not x.startswith("__"))


def _is_authors(one: FunctionType | type) -> bool:
    """Whether a function or class is of the kernel's author: not a library's, nor ours."""
    if isinstance(one, FunctionType):
        return is_authors(one.__code__.co_filename)
    file = getattr(sys.modules.get(module_of(one)), "__file__", None)
    return is_authors(file) if file else module_of(one) == "__main__"


def names_of(one: FunctionType | type) -> Iterator[tuple[Any, str, Any]]:
    """(owner, name, value) of all that a function or class of the author's holds: cells, defaults, attributes, and the
    globals that the function names. An owner is hashed by its identity.
    """
    if not _is_authors(one):
        return
    if isinstance(one, type):
        for name, value in list(vars(one).items()):
            if not name.startswith("__"):
                yield one, f"{one.__name__}.{name}", value
        for base in one.__bases__:
            yield one, f"{one.__name__}.{base.__name__}", base
        return
    code = one.__code__
    for name, cell in zip(code.co_freevars, one.__closure__ or (), strict=True):
        try:
            yield id(cell), name, cell.cell_contents
        except ValueError:  # nothing yet
            continue
    for n, value in enumerate(one.__defaults__ or ()):
        yield one, f"a default of {one.__name__}, {n}", value
    for name, value in {**(one.__kwdefaults__ or {}), **vars(one)}.items():
        yield one, f"{one.__name__}.{name}", value
    yield from globals_of(code, one.__globals__)


def globals_of(code: CodeType, names: dict[str, Any]) -> Iterator[tuple[Any, str, Any]]:
    """(owner, name, value) of the globals that code names, and of what it names in modules of the author's."""
    said = _names(code)
    for name in said:
        if name in names:
            value = names[name]
            yield id(names), name, value
            if isinstance(value, ModuleType) and is_authors(getattr(value, "__file__", None) or ""):
                yield from ((value, f"{name}.{x}", vars(value)[x]) for x in said if x in vars(value))


@cache
def _names(code: CodeType) -> frozenset[str]:
    inner = (_names(x) for x in code.co_consts if isinstance(x, CodeType))
    return frozenset(code.co_names).union(*inner)
