"""What a program depends on, as a name that is the same in every process: the key of what is kept of it on disk.

In one process an `Identity` compares objects that do not change, such as classes and a library's functions, by
identity. Here each is written as its name, and what it stands for must follow from that name, from the versions of
Python, NumPy and ml_dtypes, and from our own source. So names are only given to what computes from its arguments alone:
PyKittens' vocabulary, most builtins, modules such as `math`. What may read a file, a clock or a device, and what has no
name, raises `Unnamed`: then nothing is kept, and the kernel is traced in each process.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import marshal
import os
import sys
from collections.abc import Hashable
from enum import Enum
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import ml_dtypes
import numpy as np

from .. import loading
from ..errors import installed, module_of
from .identity import Identity
from .reads import reads
from .values import Same, is_vocabulary, leaf_of

# Whose members compute from their arguments alone; of `functools`, what keeps no results.
_PURE = frozenset("math cmath operator itertools collections collections.abc numbers abc typing dataclasses".split())
_PURE_NAMES = {
    "types": frozenset(("SimpleNamespace", "MappingProxyType")),
    "functools": frozenset(("partial", "partialmethod", "reduce", "wraps", "update_wrapper")),
    "contextlib": frozenset(("nullcontext", "AbstractContextManager", "AbstractAsyncContextManager", "ExitStack")),
}
_BASES = frozenset("builtins abc contextlib typing".split())  # whose classes call no method but __special__ ones
_IMPURE_BUILTINS = frozenset("open input print breakpoint id hash eval exec globals locals vars __import__".split())
_TRACED_BY = (
    "",
    "program",
    "ops",
    "trace",
    "passes",
    "gpu",
    "call",
)  # folders whose code makes programs and their text
# Parts of PyKittens, as attributes, that ask files or devices, or whose code is no part of `_source`.
_OTHER_PARTS = frozenset(
    "gpu interop sim kernels functions nn integrations testing bench reference cli do_bench autotune".split()
)
_FIELD = type(vars(collections.namedtuple("_", "x"))["x"])  # of a named tuple
_LEAVES = (bool, int, float, complex, str, bytes, type(None), type(...), type(NotImplemented))
_SETTLED = 2.0  # seconds: clocks of file systems are coarse


class Unnamed(Exception):
    """Something has no name that means the same in every process."""


def name(*key: Hashable) -> str:
    """64 hexadecimal digits that stand for a key in every process: equal names, equal programs. Raises `Unnamed`."""
    writer = _Names()
    for part in (sys.version, np.__version__, ml_dtypes.__version__, *key):
        writer.write(part)
    writer.write(_source())  # last: it takes most of the time, and what has no name needs none of it
    return writer.hash.hexdigest()


@functools.cache
def _source() -> str:
    """Of our own code. `Unnamed` where it may have changed since this process loaded it, or cannot be read."""
    found, package = hashlib.sha256(), os.path.dirname(loading.__file__)
    try:
        for folder in _TRACED_BY:
            for entry in sorted(os.scandir(os.path.join(package, folder)), key=lambda entry: entry.name):
                if entry.name.endswith(".py"):
                    with open(entry.path, "rb") as file:
                        about = os.fstat(file.fileno())
                        if max(about.st_ctime, about.st_mtime) > loading.BEGAN - _SETTLED:
                            raise Unnamed(f"{entry.path} is new")
                        found.update(f"{folder}/{entry.name} {about.st_size} ".encode() + file.read())
    except OSError as error:
        raise Unnamed("no source") from error
    return found.hexdigest()


class _Names:
    """Writes a key into a hash; nothing that is written begins as something else does."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()

    def write(self, x: Any) -> None:
        kind = type(x)
        if kind is tuple:
            self.hash.update(b"(%d" % len(x))
            for part in x:
                self.write(part)
        elif kind is str and x == "unbound":
            raise Unnamed("what is bound, or imported, while the kernel is traced")
        elif x is NotImplemented:
            self.hash.update(b"n")
        elif kind in _LEAVES:
            self._marshalled(b"l", x)
        elif kind is CodeType:
            self._marshalled(b"c", x)
            if _OTHER_PARTS & reads(x).names:
                raise Unnamed("a part of PyKittens that is no vocabulary")
        elif kind is Same:
            self._named(x.of)
        elif kind is Identity:
            self.write(x.content)
        elif kind is frozenset:
            parts = [_Names() for _ in x]
            for part, member in zip(parts, x, strict=True):
                part.write(member)
            self.write(("frozenset", *sorted(part.hash.hexdigest() for part in parts)))
        elif isinstance(x, type) and (x in _LEAVES or issubclass(x, np.generic)):
            self.hash.update(b"t")
            self._marshalled(b"l", (x.__module__, x.__qualname__))
        elif isinstance(x, np.dtype) or kind is range:
            self._marshalled(b"d", repr(x))
        elif is_vocabulary(x) and isinstance(x, Enum):
            self._fields(x, ("name",))
        elif is_vocabulary(x) and dataclasses.is_dataclass(x):
            self._fields(x, [f.name for f in dataclasses.fields(x)])
        else:
            raise Unnamed(f"a value of {kind}")

    def _marshalled(self, sign: bytes, x: Any) -> None:
        """Version 2 writes each object as if it stood alone, whatever else refers to it."""
        try:
            written = marshal.dumps(x, 2)
        except ValueError as error:
            raise Unnamed(f"a constant of {type(x)}") from error
        self.hash.update(b"%s%d " % (sign, len(written)) + written)

    def _fields(self, x: Any, names: Any) -> None:
        self._named(type(x))
        for field in names:
            value = getattr(x, field)
            self.write((field, value if leaf_of(value) is None else leaf_of(value)))

    def _named(self, x: Any) -> None:
        """An object that counts by identity."""
        if isinstance(x, _FIELD):
            self.write(("field", x.__reduce__()[1]))
        elif isinstance(x, FunctionType) and x.__code__.co_filename == collections.__file__:  # of a named tuple
            cells = [cell.cell_contents for cell in x.__closure__ or ()]
            self.write(("made", x.__code__, *(leaf_of(c) or (c if type(c) is tuple else Same(c)) for c in cells)))
        else:
            module, path = _where(x)
            self._marshalled(b"s", (type(x).__name__, module, path))
            if (
                isinstance(x, type) and not issubclass(x, np.generic) and not _pure(module, path)
            ):  # a user's, whose attributes follow
                if type(x) is not type or any(module_of(base) not in _BASES for base in _foreign_bases(x)):
                    raise Unnamed(f"a class of {type(x)}, or of a library that calls what it defines")
                for base in x.__mro__[1:]:
                    self._named(base)


def _where(x: Any) -> tuple[str, str]:
    """The module and the name under which every process finds an object."""
    if isinstance(x, ModuleType):
        if sys.modules.get(x.__name__) is x and (x.__name__ in _PURE or _ours(x.__name__) or _users(x.__name__)):
            return x.__name__, ""
        raise Unnamed(f"module {x.__name__}")
    if isinstance(x, np.dtype) or (isinstance(x, np.ufunc) and getattr(np, x.__name__, None) is x):
        return "numpy", repr(x)
    if isinstance(x, type) and issubclass(x, np.generic):
        return x.__module__, x.__qualname__
    if isinstance(x, BuiltinFunctionType) and isinstance(x.__self__, type):  # such as `tuple.__new__`
        owner = _where(x.__self__)
        return owner[0], f"{owner[1]}.{x.__name__}"
    module, path = getattr(x, "__module__", None), getattr(x, "__qualname__", None)
    if isinstance(module, str) and isinstance(path, str) and isinstance(x, (type, FunctionType, BuiltinFunctionType)):
        if _found(module, path) is x and (_pure(module, path) or (isinstance(x, type) and _users(module))):
            return module, path
    elif is_vocabulary(x):  # such as `pk.warp`
        home = sys.modules[module_of(type(x))]
        for place in (home, sys.modules.get("pykittens.vocabulary", home)):
            for word, value in vars(place).items():
                if value is x:
                    return place.__name__, word
    raise Unnamed(f"an object of {type(x)}")


def _foreign_bases(cls: type) -> list[type]:
    """Those that are not the user's. Of PyKittens' own, such as operations, the walk takes all attributes."""
    return [
        base for base in cls.__mro__ if not _users(module_of(base)) and not module_of(base).startswith("pykittens.")
    ]


def _found(module: str, path: str) -> Any:
    value: Any = sys.modules.get(module)
    for step in path.split("."):
        value = getattr(value, step, None)
    return value


def _pure(module: str, path: str) -> bool:
    module = module.removeprefix("_") if module in ("_operator", "_functools", "_collections") else module
    if module == "builtins":
        return path not in _IMPURE_BUILTINS
    return module in _PURE or _ours(module) or path in _PURE_NAMES.get(module, ())


def _ours(module: str) -> bool:
    """Whether a module is PyKittens' vocabulary."""
    top, _, rest = module.partition(".")
    return top == "pykittens" and rest.partition(".")[0] not in _OTHER_PARTS


def _users(module: str) -> bool:
    """Whether a module is the user's, or one of our kernels: what code reads of it has been written."""
    if module.partition(".")[0] == "pykittens":
        return module.startswith("pykittens.kernels")
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return module == "__main__"
    return str(file).endswith(".py") and not installed(str(file))  # a library of C has no code to be walked
