"""A program belongs to the content of all that its function reaches: each of these changes is seen, on both back ends,
and costs one trace."""

import abc
import array
import builtins
import contextlib
import contextvars
import ctypes
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import importlib
import itertools
import logging
import math
import operator
import os
import random
import re
import sys
import threading
import time
import types
import uuid
import weakref
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace as Space
from typing import Annotated, Any

import numpy as np
import pytest

import pykittens as pk
from pykittens import bf16, f32, warp
from pykittens.call.identity import Identity, identity
from pykittens.call.kernel import Kernel
from pykittens.errors import TraceError
from pykittens.interop import frameworks
from pykittens.program import Op
from tests.expecting import says
from tests.gpu.fake_driver import CONTEXT, FakeDriver

Case = tuple[Callable[[], float], Callable[[], None]]  # what a kernel multiplies by: 2.0, and after the change 3.0
CASES: dict[str, Callable[[], Case]] = {}
number = 2.0


def case(make: Callable[[], Case]) -> Callable[[], Case]:
    CASES[make.__name__] = make
    return make


def module_of(name: str, **holds: Any) -> types.ModuleType:
    made = types.ModuleType(name)
    vars(made).update(holds)
    return made


@case
def a_global() -> Case:
    globals()["number"] = 2.0
    return lambda: number, lambda: globals().update(number=3.0)


@case
def an_attribute_of_a_module() -> Case:
    module = module_of("settings", scale=2.0)
    return lambda: module.scale, lambda: setattr(module, "scale", 3.0)


@case
def a_module_that_is_passed_on() -> Case:
    module = module_of("settings", scale=2.0)

    def read(any_module: Any) -> float:
        return any_module.scale

    return lambda: read(module), lambda: setattr(module, "scale", 3.0)


@case
def a_function_of_a_module_that_is_replaced() -> Case:
    module = module_of("settings", scale=lambda: 2.0)
    return lambda: module.scale(), lambda: setattr(module, "scale", lambda: 3.0)


@case
def a_module_with_its_own_getattr() -> Case:
    held = {"scale": 2.0}
    module = module_of("settings", __getattr__=lambda name: held[name])
    return lambda: module.scale, lambda: held.update(scale=3.0)


@case
def a_module_that_is_imported_by_its_name() -> Case:
    sys.modules["settings_of_this_test"] = module = module_of("settings_of_this_test", scale=2.0)
    return lambda: __import__("settings_of_this_test").scale, lambda: setattr(module, "scale", 3.0)


@case
def an_attribute_by_a_getter() -> Case:
    module, get = module_of("settings", scale=2.0), operator.attrgetter("scale")
    return lambda: get(module), lambda: setattr(module, "scale", 3.0)


@case
def a_method_by_a_caller() -> Case:
    module, call = module_of("settings", scale=lambda by=1.0: 2.0 * by), operator.methodcaller("scale", by=1.0)
    return lambda: call(module), lambda: setattr(module, "scale", lambda by: 3.0 * by)


@case
def an_attribute_of_a_class() -> Case:
    class Config:
        scale = 2.0

    return lambda: Config.scale, lambda: setattr(Config, "scale", 3.0)


@case
def an_attribute_that_a_base_class_has() -> Case:
    class Base:
        scale = 2.0

    class Config(Base):
        pass

    return lambda: Config.scale, lambda: setattr(Config, "scale", 3.0)


@case
def an_attribute_of_a_metaclass() -> Case:
    class Meta(type):
        scale = 2.0

    class Config(metaclass=Meta):
        pass

    return lambda: Config.scale, lambda: setattr(Meta, "scale", 3.0)


@case
def an_attribute_of_an_object() -> Case:
    config = Space(scale=2.0)
    return lambda: config.scale, lambda: setattr(config, "scale", 3.0)


@case
def an_object_in_an_object() -> Case:
    config = Space(inner=Space(scales=[1.0, 2.0]))
    return lambda: config.inner.scales[1], lambda: config.inner.scales.__setitem__(1, 3.0)


@case
def an_object_whose_class_has_the_attribute_before() -> Case:
    class Config:
        scale = 2.0

    config = Config()
    return lambda: config.scale, lambda: setattr(config, "scale", 3.0)


@case
def an_object_of_another_class() -> Case:
    class Two:
        scale = 2.0

    class Three:
        scale = 3.0

    config: Any = Two()
    return lambda: config.scale, lambda: setattr(config, "__class__", Three)


@case
def an_attribute_by_a_computed_name() -> Case:
    config, name = Space(scale=2.0, other=1.0), "sc"
    return lambda: getattr(config, name + "ale"), lambda: setattr(config, "scale", 3.0)


@case
def an_attribute_that_was_not_there() -> Case:
    config = Space()
    return lambda: getattr(config, "scale", 2.0), lambda: setattr(config, "scale", 3.0)


@case
def all_of_an_object() -> Case:
    config = Space(scale=2.0)
    return lambda: sum(vars(config).values()), lambda: setattr(config, "more", 1.0)


@case
def a_slot() -> Case:
    class Config:
        __slots__ = ("scale",)

    config = Config()
    config.scale = 2.0  # type: ignore[attr-defined]
    return lambda: config.scale, lambda: setattr(config, "scale", 3.0)  # type: ignore[attr-defined]


@case
def a_property() -> Case:
    class Config:
        def __init__(self) -> None:
            self.half = 1.0

        @property
        def scale(self) -> float:
            return 2 * self.half

    config = Config()
    return lambda: config.scale, lambda: setattr(config, "half", 1.5)


@case
def a_getattr() -> Case:
    class Config:
        def __init__(self) -> None:
            self.held = {"scale": 2.0}

        def __getattr__(self, name: str) -> float:
            return self.held[name]

    config = Config()
    return lambda: config.scale, lambda: config.held.update(scale=3.0)


@case
def a_dataclass() -> Case:
    @dataclasses.dataclass
    class Config:
        scale: float = 2.0

    config = Config()
    return lambda: dataclasses.asdict(config)["scale"], lambda: setattr(config, "scale", 3.0)


@case
def a_named_tuple() -> Case:
    Config = namedtuple("Config", "scale")
    holder = [Config(2.0)]
    return lambda: holder[0].scale, lambda: holder.__setitem__(0, Config(3.0))


@case
def a_member_of_an_enum() -> Case:
    class Mode(enum.Enum):
        TWO = 2.0
        THREE = 3.0

    held = {"mode": Mode.TWO}
    return lambda: held["mode"].value, lambda: held.update(mode=Mode.THREE)


@case
def a_bound_method() -> Case:
    class Layer:
        scale = 2.0

        def read(self) -> float:
            return self.scale

    layer = Layer()
    read = layer.read
    return lambda: read(), lambda: setattr(layer, "scale", 3.0)


@case
def a_method_that_is_replaced() -> Case:
    class Layer:
        def read(self) -> float:
            return 2.0

    layer = Layer()
    return lambda: layer.read(), lambda: setattr(Layer, "read", lambda self: 3.0)


@case
def a_method_of_one_object() -> Case:
    class Layer:
        def read(self) -> float:
            return 2.0

    layer = Layer()
    return lambda: layer.read(), lambda: setattr(layer, "read", lambda: 3.0)


@case
def class_and_static_methods() -> Case:
    class Layer:
        @classmethod
        def one(cls) -> float:
            return 1.0

        @staticmethod
        def more() -> float:
            return 1.0

    return lambda: Layer.one() + Layer.more(), lambda: setattr(Layer, "one", classmethod(lambda cls: 2.0))


@case
def an_object_that_is_called() -> Case:
    class Layer:
        def __init__(self, scale: float) -> None:
            self.scale = scale

        def __call__(self) -> float:
            return self.scale

    layer = Layer(2.0)
    return lambda: layer(), lambda: setattr(layer, "scale", 3.0)


@case
def an_operator_of_a_class() -> Case:
    class Two:
        def __mul__(self, other: float) -> float:
            return other * 2.0

    two = Two()
    return lambda: two * 1.0, lambda: setattr(Two, "__mul__", lambda self, other: other * 3.0)


@case
def a_partial() -> Case:
    read = functools.partial(lambda scale: scale, scale=2.0)
    return lambda: read(), lambda: read.keywords.update(scale=3.0)


@case
def what_a_decorator_wraps() -> Case:
    held = [2.0]

    def logged(function: Callable[[], float]) -> Callable[[], float]:
        @functools.wraps(function)
        def inner() -> float:
            return function()

        return inner

    @logged
    def read() -> float:
        return held[0]

    return lambda: read(), lambda: held.__setitem__(0, 3.0)


@case
def what_a_librarys_decorator_wraps() -> Case:
    held = [2.0]

    @contextlib.contextmanager
    def scaled() -> Any:
        yield held[0]

    def read() -> float:
        with scaled() as scale:
            return scale

    return lambda: read(), lambda: held.__setitem__(0, 3.0)


@case
def what_a_librarys_object_calls() -> Case:
    held = [2.0]
    read = np.vectorize(lambda x: x * held[0])
    return lambda: float(read([1.0])[0]), lambda: held.__setitem__(0, 3.0)


@case
def what_a_librarys_function_chooses_from() -> Case:
    held = [2.0]

    @functools.singledispatch
    def read(x: object) -> float:
        return 1.0

    read.register(int)(lambda x: held[0])
    return lambda: read(1), lambda: held.__setitem__(0, 3.0)


@case
def code() -> Case:
    def read() -> float:
        return 2.0

    def other() -> float:
        return 3.0

    return lambda: read(), lambda: setattr(read, "__code__", other.__code__)


@case
def defaults() -> Case:
    def read(scale: float = 2.0) -> float:
        return scale

    return lambda: read(), lambda: setattr(read, "__defaults__", (3.0,))


@case
def keyword_defaults() -> Case:
    def read(*, scale: float = 2.0) -> float:
        return scale

    return lambda: read(), lambda: read.__kwdefaults__.update(scale=3.0)


@case
def an_attribute_of_a_function() -> Case:
    def read() -> float:
        return read.scale  # type: ignore[attr-defined]

    read.scale = 2.0  # type: ignore[attr-defined]
    return lambda: read(), lambda: setattr(read, "scale", 3.0)


@case
def a_cell() -> Case:
    scale = 2.0

    def change() -> None:
        nonlocal scale
        scale = 3.0

    return lambda: scale, change


@case
def a_cell_of_a_function_inside() -> Case:
    scale = 2.0

    def change() -> None:
        nonlocal scale
        scale = 3.0

    return lambda: sum([scale for _ in range(1)]), change


@case
def a_list() -> Case:
    held = [1.0, 1.0]
    return lambda: sum(held), lambda: held.append(1.0)


@case
def a_dictionary() -> Case:
    held = {"a": 2.0, "b": 1.0}
    return lambda: next(iter(held.values())) if len(held) == 2 else 3.0, lambda: held.clear()


@case
def the_order_of_a_dictionary() -> Case:
    held = {2.0: None, 3.0: None}
    return lambda: next(iter(held)), lambda: held.update({2.0: held.pop(2.0)})


@case
def a_set() -> Case:
    held = {2.0}
    return lambda: max(held), lambda: held.add(3.0)


@case
def a_deque() -> Case:
    held = deque([2.0])
    return lambda: held[0], lambda: held.appendleft(3.0)


@case
def bytes_that_change() -> Case:
    held = bytearray(b"\x02")
    return lambda: held[0], lambda: held.__setitem__(0, 3)


@case
def an_array_of_no_dimensions() -> Case:
    held = np.array(2.0)
    return lambda: float(held), lambda: held.__setitem__(..., 3.0)


@case
def a_number_of_numpy() -> Case:
    held = [np.float32(2.0)]
    return lambda: float(held[0]), lambda: held.__setitem__(0, np.float32(3.0))


@case
def numbers_that_are_equal() -> Case:
    held: list[Any] = [(1, 2)]
    return lambda: 2.0 if type(held[0][0]) is int else 3.0, lambda: held.__setitem__(0, (True, 2))


@case
def zeros_that_are_equal() -> Case:
    held = {"zero": 0.0}
    return lambda: 2.0 if math.copysign(1, held["zero"]) > 0 else 3.0, lambda: held.update(zero=-0.0)


@case
def a_builtin_that_a_global_hides() -> Case:
    globals().pop("min", None)
    return lambda: min(2.0, 3.0), lambda: globals().update(min=max)


@case
def a_builtin_that_is_replaced() -> Case:
    builtins.scale_of_tests = 2.0  # type: ignore[attr-defined]
    return lambda: scale_of_tests, lambda: setattr(builtins, "scale_of_tests", 3.0)  # type: ignore[name-defined]  # noqa: F821


@case
def a_global_that_was_not_there() -> Case:
    globals().pop("not_yet", None)

    def read() -> float:
        try:
            return not_yet  # type: ignore[name-defined]
        except NameError:
            return 2.0

    return read, lambda: globals().update(not_yet=3.0)


@case
def globals_by_name() -> Case:
    globals()["number"] = 2.0
    return lambda: globals()["number"], lambda: globals().update(number=3.0)


@case
def a_module_imported_inside() -> Case:
    sys.modules["settings_of_tests"] = module_of("settings_of_tests", scale=2.0)

    def read() -> float:
        from settings_of_tests import scale  # type: ignore[import-not-found]

        return scale

    return read, lambda: setattr(sys.modules["settings_of_tests"], "scale", 3.0)


@case
def a_weak_reference() -> Case:
    class Config:
        scale = 2.0

    config = Config()
    reference = weakref.ref(config)
    return lambda: reference().scale, lambda: setattr(config, "scale", 3.0)


@case
def a_context_variable() -> Case:
    scale = contextvars.ContextVar("scale", default=2.0)
    return lambda: scale.get(), lambda: scale.set(3.0) and None


@case
def the_bases_of_a_class() -> Case:
    class Two:
        scale = 2.0

    class Three:
        scale = 3.0

    class Settings(Two):
        pass

    return lambda: Settings.scale, lambda: setattr(Settings, "__bases__", (Three,))


@case
def whether_an_object_is_of_a_class() -> Case:
    class Two:
        pass

    class Three:
        pass

    class Settings(Two):
        pass

    held = Settings()
    return lambda: 2.0 if isinstance(held, Two) else 3.0, lambda: setattr(Settings, "__bases__", (Three,))


@case
def an_attribute_of_a_function_that_is_passed_on() -> Case:
    def helper() -> None: ...

    def read(function: Any) -> float:
        return function.scale  # type: ignore[no-any-return]

    helper.scale = 2.0  # type: ignore[attr-defined]
    return lambda: read(helper), lambda: setattr(helper, "scale", 3.0)


@case
def the_name_of_a_function() -> Case:
    def ab() -> None: ...

    return lambda: float(len(ab.__name__)), lambda: setattr(ab, "__name__", "abc")


@case
def the_text_of_a_class() -> Case:
    class Settings:
        """ab"""

    return lambda: float(len(Settings.__doc__ or "")), lambda: setattr(Settings, "__doc__", "abc")


@case
def a_kernel_that_is_called_by_its_function() -> Case:
    held = Space(scale=2.0)

    @pk.kernel
    def other() -> Any:
        return held.scale

    return lambda: other.function(), lambda: setattr(held, "scale", 3.0)


@case
def an_array_of_python() -> Case:
    held = array.array("d", [2.0])
    return lambda: held[0], lambda: held.__setitem__(0, 3.0)


@case
def a_structure_of_c() -> Case:
    class Settings(ctypes.Structure):
        _fields_ = (("scale", ctypes.c_double),)

    held = Settings(2.0)
    return lambda: held.scale, lambda: setattr(held, "scale", 3.0)


@case
def an_attribute_of_a_module_by_a_computed_name() -> Case:
    settings, name = module_of("settings", scale=2.0), ["scale"]
    return lambda: getattr(settings, name[0]), lambda: setattr(settings, "scale", 3.0)


@case
def a_global_in_a_text() -> Case:
    def change() -> None:
        space["scale"] = 3.0

    space: dict[str, Any] = {"scale": 2.0}
    exec("def read(): return eval('scale * 1.0')", space)
    return space["read"], change


@case
def a_global_by_a_computed_name() -> Case:
    space: dict[str, Any] = {"scale": 2.0, "name": ["sca", "le"]}
    exec("def read(): return globals()[''.join(name)]", space)
    return space["read"], lambda: space.update(scale=3.0)


@case
def a_global_function_by_a_computed_name() -> Case:
    space: dict[str, Any] = {"scale": lambda: 2.0, "name": ["sca", "le"]}
    exec("def read(): return globals()[''.join(name)]()", space)
    return space["read"], lambda: space.update(scale=lambda: 3.0)


@case
def an_attribute_in_a_format() -> Case:
    held = Space(scale=2.0)
    return lambda: float("{a.scale}".format_map({"a": held})), lambda: setattr(held, "scale", 3.0)


@case
def what_an_object_says_of_itself() -> Case:
    held = Space(scale=2.0)

    class Settings:
        def __repr__(self) -> str:
            return str(held.scale)

    settings = Settings()
    return lambda: float(repr(settings)), lambda: setattr(held, "scale", 3.0)


@case
def what_the_compiler_reads_of_an_operation() -> Case:
    """Its methods are called by nobody whose code is looked at."""

    class Own(Op):
        scale = 2.0

        def total(self) -> float:
            return self.scale

    def change() -> None:
        Own.scale = 3.0

    called = operator.methodcaller("".join(("to", "tal")))
    return lambda: called(Own()), change


@case
def an_object_again_at_its_address() -> Case:
    """A set made where another one was, which is gone."""
    space = {"held": {2.0}}

    def change() -> None:
        old = id(space.pop("held"))
        made = []
        while not made or (id(made[-1]) != old and len(made) < 100):
            made.append({3.0})
        space["held"] = made[-1]

    return lambda: max(space["held"]), change


def reading(value: Callable[[], float]) -> Kernel:
    @pk.kernel(warps=1)
    def scale(x: pk.gl(bf16, 16, 64), y: pk.gl(bf16, 16, 64)) -> None:  # type: ignore[valid-type]
        warp.store(y, (warp.load(x, (0, 0), rows=16).to(f32) * float(value())).to(bf16), (0, 0))

    return scale  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", CASES)
def test_simulator(name: str) -> None:
    value, change = CASES[name]()
    run = reading(value)
    x, y = (np.ones((16, 64), bf16_of_numpy) for _ in range(2))
    for factor, count in ((2.0, 1), (2.0, 1), (3.0, 2), (3.0, 2)):
        if (factor, count) == (3.0, 2) and len(run.memory.programs) == 1:
            change()
        run(x, y)
        assert float(y[0, 0]) == factor
        assert len(run.memory.programs) == count


@pytest.mark.parametrize("name", CASES)
def test_gpu(name: str, gpu: FakeDriver) -> None:
    """The same on a GPU, where a call like the last one goes another way: what was launched is the program of now."""
    torch = pytest.importorskip("torch")
    value, change = CASES[name]()
    run = reading(value)
    x, y = (torch.zeros(16, 64, dtype=torch.bfloat16) for _ in range(2))
    run(x, y)
    run(x, y)
    assert len(run.memory.programs) == 1
    change()
    for _ in range(2):
        run(x, y)
        assert len(run.memory.programs) == 2


@pytest.fixture
def gpu(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """Tensors on the CPU pass for tensors on GPU 0; compiling is nobody's subject here."""
    from pykittens.gpu import cache, compiler

    real = frameworks.Torch.describe
    monkeypatch.setattr(frameworks.Torch, "describe", lambda self, x: real(self, x)._replace(device=0))
    monkeypatch.setattr(frameworks.Torch, "streams", lambda self: lambda device: 0x77)
    cubin = compiler.Cubin(b"", "scale", "sm_90a", "", 32, 0, 0, 0, 0, (), "none", 0.0)
    monkeypatch.setattr(cache, "load_or_compile", lambda *_: cubin)
    fake.parameter_sizes = [56, 56]
    fake.current.context = CONTEXT
    return fake


bf16_of_numpy = frameworks.numpy_dtype("bf16")


def test_equal_values_are_different_statics() -> None:
    """Those that `==` cannot tell apart, and lists, which have no hash."""

    @pk.kernel(warps=1)
    def k(x: pk.gl(f32, 16, 16), *, c: Any) -> None:  # type: ignore[valid-type]
        warp.store(x, warp.zeros(f32, 16, 16), (0, 0))

    nan = float("nan")
    values = [0.0, -0.0, 0, False, 1, 1.0, True, (1,), (True,), [1], [1.0], {"a": 0.0}, {"a": -0.0}, nan, np.float32(1)]
    for _ in range(2):
        for value in values:
            k(np.zeros((16, 16), np.float32), c=value)
        assert len(k.memory.programs) == len(values)
    k(np.zeros((16, 16), np.float32), c=float("nan"))
    k(np.zeros((16, 16), np.float32), c=[1])
    assert len(k.memory.programs) == len(values)


def test_a_static_list_that_changes(gpu: FakeDriver) -> None:
    torch = pytest.importorskip("torch")

    @pk.kernel(warps=1)
    def k(x: pk.gl(bf16, 16, 64), y: pk.gl(bf16, 16, 64), *, by: list[float]) -> None:  # type: ignore[valid-type]
        warp.store(y, (warp.load(x, (0, 0), rows=16).to(f32) * by[0]).to(bf16), (0, 0))

    for length in (1, 1000):
        by, (x, y) = [2.0] * length, (torch.zeros(16, 64, dtype=torch.bfloat16) for _ in range(2))
        before = len(k.memory.programs)
        for by[0], count in ((2.0, 1), (2.0, 1), (3.0, 2), (3.0, 2), (2.0, 2)):
            k(x, y, by=by)
            assert len(k.memory.programs) - before == count


class Plain:
    """An object that is equal to itself alone."""

    def __init__(self, scale: float = 2.0) -> None:
        self.scale = scale

    def of(self, other: Any) -> float:
        return float(other.held)


def _function() -> float:
    return 1.0


PASSED: dict[str, tuple[Callable[[], Any], Callable[[Any], float], Callable[[Any], None]]] = {
    "an object": (Plain, lambda o: o.scale, lambda o: setattr(o, "scale", 3.0)),
    "an object in a tuple": (lambda: (Plain(),), lambda o: o[0].scale, lambda o: setattr(o[0], "scale", 3.0)),
    "an object that another holds": (
        lambda: Plain(Plain()),  # type: ignore[arg-type]
        lambda o: o.scale.scale,
        lambda o: setattr(o.scale, "scale", 3.0),
    ),
    "an object by a computed name": (Plain, lambda o: getattr(o, "sca" + "le"), lambda o: setattr(o, "scale", 3.0)),
    "a class": (lambda: type("Own", (), {"scale": 2.0}), lambda o: o.scale, lambda o: setattr(o, "scale", 3.0)),
    "a module": (lambda: module_of("own", scale=2.0), lambda o: o.scale, lambda o: setattr(o, "scale", 3.0)),
    "a function's attribute": (
        lambda: setattr(_function, "scale", 2.0) or _function,
        lambda o: o.scale,
        lambda o: setattr(o, "scale", 3.0),
    ),
    "what a method reads of the kernel's": (
        lambda: setattr(_held, "held", 2.0) or Plain(),
        lambda o: o.of(_held),
        lambda o: setattr(_held, "held", 3.0),
    ),
}
_held = Plain()


@pytest.mark.parametrize("name", PASSED)
def test_a_static_object_that_changes(name: str, gpu: FakeDriver) -> None:
    """What the kernel reads of what it is passed is a part of its content, too, on both back ends."""
    torch = pytest.importorskip("torch")
    make, read, change = PASSED[name]

    @pk.kernel(warps=1)
    def k(x: pk.gl(bf16, 16, 64), y: pk.gl(bf16, 16, 64), *, o: Any) -> None:  # type: ignore[valid-type]
        warp.store(y, (warp.load(x, (0, 0), rows=16).to(f32) * read(o)).to(bf16), (0, 0))

    o, (x, y) = make(), (np.ones((16, 64), bf16_of_numpy) for _ in range(2))
    s, t = (torch.zeros(16, 64, dtype=torch.bfloat16) for _ in range(2))
    for factor in (2.0, 3.0):
        for _ in range(3):
            k.simulate(x, y, o=o)
            assert float(y[0, 0]) == factor
            k(s, t, o=o)
        assert len(k.memory.programs) == factor - 1
        change(o)


def test_a_kernels_own_defaults() -> None:
    @pk.kernel(warps=1)
    def k(x: pk.gl(f32, 16, 16), *, c: float = 2.0) -> None:  # type: ignore[valid-type]
        warp.store(x, warp.zeros(f32, 16, 16) + c, (0, 0))

    x = np.zeros((16, 16), np.float32)
    k(x)
    assert x[0, 0] == 2
    k.function.__kwdefaults__["c"] = 3.0  # type: ignore[attr-defined]
    k(x)
    assert x[0, 0] == 3


def test_functions_of_equal_content_are_one() -> None:
    """A lambda, a method, a partial made anew for every call are traced once."""

    class Layer:
        def __init__(self, scale: float) -> None:
            self.scale = scale

        def read(self) -> float:
            return self.scale

    def made(kind: str, scale: float) -> Callable[[], float]:
        return {
            "lambda": lambda: scale,
            "method": Layer(scale).read,
            "partial": functools.partial(lambda x: x, scale),
        }[kind]

    for kind in ("lambda", "method", "partial"):
        assert identity(made(kind, 2.0)) == identity(made(kind, 2.0))
        assert hash(identity(made(kind, 2.0))) == hash(identity(made(kind, 2.0)))
        assert identity(made(kind, 2.0)) != identity(made(kind, 3.0))
        assert identity(made(kind, 1)) != identity(made(kind, True))


def test_what_cannot_change_is_not_read_again() -> None:
    """Tuples of any length; arrays and long lists are refused, and the fix that is proposed works."""
    long: Any = [2.0] * 1000
    held = {"held": long}
    with pytest.raises(TraceError) as caught:
        reading(lambda: long[int(bool(held))]).program(*[pk.spec(bf16, (16, 64))] * 2)
    says(caught.value, "reads 'long', a list of 1000 elements", "make it a tuple")
    long = tuple(long)
    held["held"] = long
    reading(lambda: long[int(bool(held))]).program(*[pk.spec(bf16, (16, 64))] * 2)


@pytest.mark.parametrize(
    ("captured", "fact", "fix"),
    [
        (np.ones(4), "an array of shape (4,)", "pass it to the kernel as an operand"),
        ({"a": [np.ones((2, 2))]}, "an array of shape (2, 2)", "pass it to the kernel as an operand"),
        (itertools.count(), "a count, which every read changes", "a number or a tuple"),
        (random.Random(0), "a Random, which every read changes", "a number or a tuple"),
        (np.random.default_rng(0), "a Generator, which every read changes", "a number or a tuple"),
        (os.getenv, "the environment may change", "before the kernel is called"),
        (np.frompyfunc(abs, 1, 1), "a ufunc of a Python function", "call the function that it was made of"),
        (os.environ, "the environment may change", "before the kernel is called"),
        ({i: i for i in range(1000)}, "a dict of 1000 elements", "or pass it as an operand or a static value"),
    ],
)
def test_what_is_refused(captured: Any, fact: str, fix: str) -> None:
    with pytest.raises(TraceError) as caught:
        reading(lambda: 2.0 if captured else 3.0).program(*[pk.spec(bf16, (16, 64))] * 2)
    says(caught.value, fact, fix)


def test_functions_of_cython_are_read_as_others_are() -> None:
    """The class of their class names no module: it has a descriptor of that name. NumPy's are such since 1.25."""
    named = type("Named", (type,), {"__module__": property(lambda cls: "somewhere")})
    assert not isinstance(named.__module__, str)
    for function in (np.random.default_rng, named("Function", (), {"__call__": lambda self: None})()):
        reading(lambda found=function: 2.0 if found else 3.0).program(*[pk.spec(bf16, (16, 64))] * 2)


@dataclasses.dataclass(frozen=True)
class Config:
    rows: int = 1
    both: tuple[int, ...] = (1, 2)

    @property
    def more(self) -> int:
        return self.rows + 1

    @functools.cached_property
    def most(self) -> int:
        return self.more + 1

    def other(self) -> "Config":
        return dataclasses.replace(self, rows=2)


class Mode(enum.Flag):
    ONE = 1
    TWO = 2


class Abstract(abc.ABC):
    @abc.abstractmethod
    def read(self) -> str: ...


class Concrete(Abstract):
    def read(self) -> str:
        return super().__repr__()


@functools.lru_cache
def cached(n: int) -> int:
    return 2 * n


log, lock, config, concrete = logging.getLogger(__name__), threading.Lock(), Config(), Concrete()
VALUES = (
    decimal.Decimal("1.5"),
    fractions.Fraction(1, 3),
    datetime.date(2020, 1, 1),
    Path("a"),
    re.compile("(?P<a>b)"),
    uuid.UUID(int=1),
    slice(0, 3),
    range(3),
    3j,
    ...,
    float("nan"),
    np.dtype("f4"),
    pk.rt(f32, 16, 16),
    Mode.ONE | Mode.TWO,
    Config,
    int,
    np.float32(1),
    Counter("abc"),
    OrderedDict(a=1),
    defaultdict(list),
    operator.itemgetter(1),
    len,
    [].append,
    Annotated[int, 3],
    b"a",
    Space(a=1),
)
ORDINARY: list[Callable[[], Any]] = [
    lambda: log.debug("a"),
    lambda: lock.acquire(),
    lambda: math.log2(8) + math.pi + time.perf_counter(),
    lambda: np.prod([1, 2]) + np.float32(1) + np.pi,
    lambda: functools.reduce(operator.mul, itertools.chain([1], [2])),
    lambda: (config.rows, config.more, config.most, config.other(), dataclasses.asdict(config)),
    lambda: (concrete.read(), isinstance(concrete, Abstract), type(concrete).__name__, cached(3)),
    lambda: [print(x) for x in sorted(map(str, range(3)))],
    lambda: ValueError("x"),
]


@pytest.mark.parametrize("i", range(len(VALUES) + len(ORDINARY)))
def test_ordinary_things_are_taken(i: int) -> None:
    """What programs use all the time is neither refused nor ever found changed."""
    captured = VALUES[i % len(VALUES)]
    read: Callable[[], Any] = (lambda: captured) if i < len(VALUES) else ORDINARY[i - len(VALUES)]
    first = Identity((read,))
    assert first.unchanged() and first.steady
    assert Identity((read,)) == first and hash(Identity((read,))) == hash(first)


def test_cycles() -> None:
    loop: list[Any] = [2.0]
    loop.append(loop)

    def even(n: int) -> bool:
        return n == 0 or odd(n - 1)

    def odd(n: int) -> bool:
        return n != 0 and even(n - 1)

    same = Identity((lambda: loop[0] if even(2) else loop[1],))
    assert same.unchanged()
    loop[0] = 3.0
    assert not same.unchanged()


def test_a_module_that_the_kernel_loads_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it is loaded, what is read of it counts."""
    (tmp_path / "loaded_late.py").write_text("scale = 2.0\n")
    monkeypatch.syspath_prepend(tmp_path)

    def value() -> float:
        import loaded_late  # type: ignore[import-not-found]

        return loaded_late.scale  # type: ignore[no-any-return]

    run = reading(value)
    x, y = (np.ones((16, 64), bf16_of_numpy) for _ in range(2))
    for scale in (2.0, 3.0, 4.0):
        if scale > 2.0:
            sys.modules["loaded_late"].scale = scale  # type: ignore[attr-defined]
        run(x, y)
        assert float(y[0, 0]) == scale
    monkeypatch.delitem(sys.modules, "loaded_late")


def test_a_module_that_is_loaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    file = tmp_path / "helpers_of_tests.py"
    file.write_text("def scale():\n    return 2.0\n")
    helpers = importlib.import_module("helpers_of_tests")
    before = identity(reads := lambda: helpers.scale())
    file.write_text("def scale():\n    return 3.000\n")
    importlib.invalidate_caches()
    importlib.reload(helpers)
    assert identity(reads) != before
    del sys.modules["helpers_of_tests"]


def test_the_shipped_kernels_are_read_again_in_a_microsecond() -> None:
    """A term of a guard costs 10 to 60 ns."""
    from pykittens.kernels.registry import KERNELS

    for row in KERNELS.values():
        instance = row.make(**row.default())
        assert instance is not None
        assert len(instance.kernel.identity.guard) <= 120, row.name
