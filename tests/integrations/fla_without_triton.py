"""flash-linear-attention where there is no Triton: its Python as it is, its kernels a name each.

fla's layers, functions and registry are the package's own; only what Triton would compile is missing. Whoever launches
one of its kernels gets `Launched`: so a test sees which calls were left to fla.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
import warnings
from importlib import import_module
from importlib.util import find_spec
from typing import Any


class Launched(RuntimeError):
    """A kernel of Triton's would have run."""


class AnyName(type):
    """A class with every attribute: each is another such class."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return AnyName(name, (Something,), {})


class Something(metaclass=AnyName):
    """What a module of Triton's has: a type, a constant, a base class of fla's, a kernel."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __class_getitem__(cls, index: Any) -> Any:
        return cls

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

    def __getitem__(self, grid: Any) -> Any:
        raise Launched("a kernel of Triton's")


class Kernel(Something):
    """A function that `triton.jit` was given."""

    def __init__(self, function: Any) -> None:
        self.fn, self.arg_names, self.__name__ = function, [], getattr(function, "__name__", "")

    def __getitem__(self, grid: Any) -> Any:
        raise Launched(self.__name__)


def decorator(*args: Any, **kwargs: Any) -> Any:
    return Kernel(args[0]) if args and callable(args[0]) else Kernel


class Module(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("driver", "experimental"):
            raise AttributeError(name)
        return AnyName(name, (Something,), {})


class Triton(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds triton and any module of it, but for the experimental ones."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.split(".")[0] == "triton" and "experimental" not in name:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> Module:
        return Module(spec.name)

    def exec_module(self, module: Any) -> None:
        if module.__name__ == "triton":
            module.__version__ = "3.5.0"
            module.jit = module.autotune = module.heuristics = decorator
            module.cdiv = lambda a, b: -(-a // b)
            module.next_power_of_2 = lambda n: 1 << (n - 1).bit_length()
            module.set_allocator = lambda allocator: None
            module.runtime = types.SimpleNamespace()  # has no driver: fla then knows that there is no GPU


def load(*modules: str) -> list[Any]:
    """Modules of fla. Triton is away again when this returns, so that torch does not believe in it."""
    if find_spec("triton"):
        return [import_module(name) for name in modules]
    import_module("torch._inductor.runtime.triton_compat")  # sees that there is none
    finder = Triton()
    sys.meta_path.insert(0, finder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [import_module(name) for name in modules]
    finally:
        sys.meta_path.remove(finder)
        for name in [x for x in sys.modules if x.split(".")[0] == "triton"]:
            del sys.modules[name]
