"""Arguments that a kernel refuses, and decorations."""

import copy
import os
import pickle
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import pykittens as pk
from pykittens import bf16, f16, f32, i32, warp
from pykittens.types import DTYPES
from tests.expecting import X, says


@pk.kernel
def taking(a: pk.gl((bf16, f16), "N", 64), b: pk.gl((bf16, f16), "N", pk.static("D")), n: i32 = 3, *, m: int = 4):
    s = pk.shared(pk.st(a.dtype, 16, 64))
    warp.load_async(s, a, (0, 0))


def zeros(*shape: int, dtype: Any = np.float16) -> Any:
    return np.zeros(shape, dtype)


BAD_ARGUMENTS: list[tuple[str, Callable[[], Any], str, str]] = [
    (
        "dtype",
        lambda: taking(zeros(32, 64, dtype=np.float32), zeros(32, 8), 1),
        "taking: operand 'a' is f32",
        "it takes bf16 or f16",
    ),
    ("odd dtype", lambda: taking(zeros(32, 64, dtype=np.complex64), zeros(32, 8), 1), "operand 'a'", ""),
    (
        "rank",
        lambda: taking(zeros(1, 32, 64), zeros(32, 8), 1),
        "taking: operand 'a' has shape (1, 32, 64)",
        "it takes 2 dimensions: gl<bf16 or f16, N x 64>",
    ),
    (
        "static",
        lambda: taking(zeros(32, 65), zeros(32, 8), 1),
        "taking: operand 'a' has shape (32, 65)",
        "it takes gl<bf16 or f16, N x 64>",
    ),
    (
        "names",
        lambda: taking(zeros(32, 64), zeros(33, 8), 1),
        "operand 'b' has N = 33, operand 'a' has N = 32",
        "dimension N must agree",
    ),
    (
        "empty",
        lambda: taking(zeros(0, 64), zeros(0, 8), 1),
        "taking: operand 'a' is empty: shape (0, 64)",
        "every dimension is at least 1",
    ),
    ("empty static", lambda: taking(zeros(3, 64), zeros(3, 0), 1), "taking: operand 'b' is empty: shape (3, 0)", ""),
    (
        "last stride",
        lambda: taking(zeros(64, 32).T, zeros(32, 8), 1),
        "operand 'a' has strides (1, 32) for shape (32, 64)",
        "must be contiguous",
    ),
    (
        "every second",
        lambda: taking(zeros(32, 128)[:, ::2], zeros(32, 8), 1),
        "has strides (128, 2) for shape (32, 64)",
        "must be contiguous",
    ),
    (
        "backwards",
        lambda: taking(zeros(32, 64)[::-1], zeros(32, 8), 1),
        "operand 'a' has negative strides (-64, 1)",
        "pass a copy",
    ),
    ("missing", lambda: taking(zeros(32, 64), n=1), "taking misses 'b'", "pass every operand"),
    (
        "too many",
        lambda: taking(zeros(32, 64), zeros(32, 8), 1, 4),
        "taking takes 3 operands (a, b, n), not 4",
        "pass static values by name",
    ),
    ("twice", lambda: taking(zeros(32, 64), zeros(32, 8), 1, a=1), "taking got 'a' twice", ""),
    (
        "unknown",
        lambda: taking(zeros(32, 64), zeros(32, 8), 1, q=1),
        "taking has no parameter 'q'",
        "it takes a, b, n, m",
    ),
    ("unknown array", lambda: taking(zeros(32, 64), b=zeros(32, 8), nn=zeros(1)), "taking has no parameter 'nn'", ""),
    (
        "no array",
        lambda: taking("a", zeros(32, 8), 1),
        "taking: operand 'a' is str",
        "pass a NumPy, torch, CuPy or JAX array",
    ),
    ("list", lambda: taking([[1.0] * 64], zeros(32, 8), 1), "taking: operand 'a' is list", ""),
    (
        "no int",
        lambda: taking(zeros(32, 64), zeros(32, 8), 1.5),
        "taking: 'n' is 1.5, where i32 is needed",
        "pass a Python int",
    ),
    (
        "too large",
        lambda: taking(zeros(32, 64), zeros(32, 8), 2**31),
        "taking: 'n' is 2147483648, which i32 cannot hold",
        "",
    ),
    (
        "spec",
        lambda: taking(pk.spec(f16, (32, 64)), zeros(32, 8), 1),
        "a pk.spec has no elements to run on",
        ".program, .cuda or .compile",
    ),
    (
        "huge",
        lambda: taking.program(pk.spec(f16, (2**31, 64)), pk.spec(f16, (2**31, 8)), 1),
        "dimension of 2147483648",
        "2**31",
    ),
]


@pytest.mark.parametrize(
    ("call", "fact", "fix"), [case[1:] for case in BAD_ARGUMENTS], ids=[case[0] for case in BAD_ARGUMENTS]
)
def test_arguments(call: Callable[[], Any], fact: str, fix: str) -> None:
    with pytest.raises(pk.KernelError) as caught:
        call()
    says(caught.value, fact, fix)
    assert any(frame.file == __file__ for frame in caught.value.location), str(caught.value)


def test_mixed_devices(monkeypatch: pytest.MonkeyPatch) -> None:

    module = sys.modules["pykittens.call.arguments"]

    real, devices = module.describe, iter((0, 1))
    monkeypatch.setattr(module, "describe", lambda a, *rest: real(a, *rest)._replace(device=next(devices)))
    with pytest.raises(pk.ArgumentError) as caught:
        taking(zeros(32, 64), zeros(32, 8), 1)
    says(caught.value, "taking: operands lie on different devices: a on GPU 0, b on GPU 1", "move them to one device")
    devices = iter((None, 1))
    with pytest.raises(pk.ArgumentError, match="a on the CPU, b on GPU 1"):
        taking(zeros(32, 64), zeros(32, 8), 1)


def test_a_grid_of_nothing() -> None:
    @pk.kernel(grid=lambda x, n: (n,))
    def k(x: X, n: i32):
        pass

    with pytest.raises(pk.ArgumentError, match=r"k: grid is \(0, 1, 1\)"):
        k(np.zeros((4, 64), np.float32), 0)


def test_decorations() -> None:
    with pytest.raises(pk.TraceError, match="@pk.kernel has no option wraps"):
        pk.kernel(wraps=3)
    with pytest.raises(pk.TraceError, match="parameter 'a' of kernel 'untyped' has no type") as caught:

        @pk.kernel
        def untyped(a):
            pass

    assert caught.value.location[0].file == __file__
    with pytest.raises(pk.TraceError, match=r"'n' of kernel 'plain' is annotated as int(.|\n)*Scalar, pk\.i32\]"):

        @pk.kernel
        def plain(n: int):
            pass

    with pytest.raises(pk.TraceError, match="pk.gl with 5 dimensions"):
        pk.gl(f32, 1, 2, 3, 4, 5)
    with pytest.raises(pk.KernelError, match="pk.gl of 'f32'"):
        pk.gl("f32", 1, 2)
    with pytest.raises(pk.KernelError, match=r"pk.gl with dimension 1.5"):
        pk.gl(f32, 1.5)


# Kernels as objects -------------------------------------------------------------------------------------------


def test_copies_and_pickles() -> None:
    """A kernel is copied and pickled as a function is: by its name."""
    from pykittens.kernels.softmax import soften

    for found in (taking, soften):
        assert copy.deepcopy([found])[0] is found and copy.copy(found) is found
    assert pickle.loads(pickle.dumps(soften)) is soften

    @pk.kernel
    def local(x: X):
        pass

    assert copy.deepcopy({"k": local})["k"] is local
    with pytest.raises((pickle.PicklingError, AttributeError), match="local"):
        pickle.dumps(local)
    for dtype in DTYPES.values():
        assert copy.deepcopy(dtype) is dtype and pickle.loads(pickle.dumps(dtype)) is dtype


FUTURE = """
from __future__ import annotations
from typing import Annotated
import pykittens as pk
from pykittens import f32, warp
ROWS = 16
def make(D, dtype):
    def again():
        @pk.kernel(warps=1)
        def k(x: pk.gl(dtype, ROWS, D), y: Annotated[pk.Tensor, dtype, ROWS, D]):
            warp.store(y, warp.load(x, (0, 0), rows=16) * 2.0, (0, 0))
        return k
    return again()
def wrong():
    @pk.kernel
    def k(x: pk.gl(f32, nowhere)):
        pass
"""


def test_annotations_that_are_kept_as_text() -> None:
    """They name variables of the functions around a kernel, which its body does not read."""
    space: dict[str, Any] = {}
    exec(compile(FUTURE, "factory.py", "exec"), space)
    x = np.ones((16, 32), np.float32)
    space["make"](32, pk.f32)(x, y := np.zeros_like(x))
    assert (y == 2).all()
    with pytest.raises(pk.TraceError) as caught:
        space["wrong"]()
    says(
        caught.value, "the annotation of parameter 'x' of kernel 'k', pk.gl(f32, nowhere), cannot be read", "name in it"
    )


@pk.kernel(warps=1)
def named_as_settings(x: pk.gl(f32, 16, 16), seed: i32, *, arch: str, progress: int = 1):
    warp.store(x, warp.zeros(f32, 16, 16) + pk.cast(seed, f32) + progress + len(arch), (0, 0))


def test_parameters_called_as_our_own_settings_are() -> None:
    """They are the kernel's, in every way to use it."""
    x = np.zeros((16, 16), np.float32)
    named_as_settings(x, 3, arch="ab", progress=2)
    assert (x == 7).all()
    named_as_settings.simulate(x, seed=4, arch="ab")
    assert (x == 7).all()
    seen: list[float] = []
    named_as_settings.simulate_with((x,), {"seed": 5, "arch": ""}, seed=1, progress=seen.append)
    assert (x == 6).all() and seen == [1.0]
    assert "pk_kernel" in named_as_settings.cuda(pk.spec(f32, (16, 16)), seed=1, arch="no architecture")


def test_a_parameter_called_self() -> None:
    """Python's methods have one, too: a kernel's operand may still be named so in any way to use it."""

    @pk.kernel(warps=1)
    def double(self: pk.gl(f32, 16, 16), by: f32) -> None:
        warp.store(self, warp.load(self, (0, 0), rows=16) * by, (0, 0))

    x = np.ones((16, 16), np.float32)
    double(self=x, by=2.0)
    double.simulate(self=x, by=2.0)
    assert (x == 4).all()
    spec = pk.spec(f32, (16, 16))
    assert double.program(self=spec, by=2.0) is double.program(x, 2.0)
    assert "pk_kernel" in double.cuda(self=spec, by=2.0)


def test_the_widest_integers_have_no_wider_ones() -> None:
    @pk.kernel(warps=1)
    def long(x: pk.gl(f32, 16, 16), n: pk.i64) -> None:
        warp.set(x, (0, 0), pk.cast(n, f32))

    with pytest.raises(pk.ArgumentError) as caught:
        long(np.zeros((16, 16), np.float32), 2**63)
    assert caught.value.fix == f"pass {-(2**63)} to {2**63 - 1}"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_fork_while_a_thread_traces() -> None:
    started, go_on = threading.Event(), threading.Event()

    @pk.kernel(warps=1)
    def k(x: X, *, slow: bool):
        if slow:
            started.set()
            go_on.wait(20)
        warp.store(x, warp.zeros(f32, 16, 64), (0, 0))

    x = np.zeros((16, 64), np.float32)
    thread = threading.Thread(target=lambda: k.program(x, slow=True))
    thread.start()
    assert started.wait(20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that forking with threads is dangerous
        child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(0 if k.program(x, slow=False) else 1)
    _, status = os.waitpid(child, 0)
    go_on.set()
    thread.join()
    assert status == 0


def test_read_only_outputs() -> None:
    """Inputs may be read-only; outputs may not, and the fix works."""

    @pk.kernel(warps=1)
    def double(x: pk.gl(f32, 16, 16), y: pk.gl(f32, 16, 16)):
        warp.store(y, warp.load(x, (0, 0), rows=16) * 2.0, (0, 0))

    x, y = np.ones((16, 16), np.float32), np.zeros((16, 16), np.float32)
    x.flags.writeable = y.flags.writeable = False
    with pytest.raises(pk.ArgumentError) as caught:
        double(x, y)
    says(caught.value, "double writes 'y', which is read-only", "pass a copy")
    double(x, y.copy())


def test_jax_arrays_never_change() -> None:
    jnp = pytest.importorskip("jax.numpy")

    @pk.kernel(warps=1)
    def double(x: pk.gl(f32, 16, 16), y: pk.gl(f32, 16, 16)):
        warp.store(y, warp.load(x, (0, 0), rows=16) * 2.0, (0, 0))

    x = jnp.ones((16, 16), jnp.float32)
    with pytest.raises(pk.ArgumentError) as caught:
        double(x, x)
    says(caught.value, "double writes 'y', a JAX array, which never changes", "pass a NumPy array for the result")
    assert (np.asarray(x) == 1).all()
    double(x, y := np.zeros((16, 16), np.float32))
    assert (y == 2).all()
    assert isinstance(pk.softmax(x), type(x))


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        ((np.float32, (4,)), "pk.spec of <class 'numpy.float32'>"),
        (("f32", (4,)), "pk.spec of 'f32'"),
        ((f32, 4), "pk.spec with shape 4"),
        ((f32, (4.0, 2)), "pk.spec with shape (4.0, 2)"),
        ((f32, (-1,)), "pk.spec with shape (-1,)"),
        ((f32, (4, 4), (4,)), "pk.spec with strides (4,) for shape (4, 4)"),
        ((f32, (4,), None, 2), "pk.spec of f32 with align=2"),
        ((f32, (4,), None, 32), "pk.spec of f32 with align=32"),
    ],
)
def test_specs_that_stand_for_nothing(arguments: tuple[Any, ...], fact: str) -> None:
    with pytest.raises(pk.ArgumentError) as caught:
        pk.spec(*arguments)
    says(caught.value, fact)
    assert caught.value.fix


def test_specs_are_like_the_arrays_that_they_stand_for() -> None:
    """The same program, and the same key, however the shape was written."""
    x = np.zeros((32, 64), np.float16)
    assert pk.spec(f16, [np.int64(32), 64]) == pk.spec(f16, (32, 64))  # type: ignore[arg-type]
    found = taking.program(pk.spec(f16, (32, 64)), pk.spec(f16, (32, 8)), 1)
    assert found is taking.program(pk.spec(f16, [32, 64]), np.zeros((32, 8), np.float16), 1)  # type: ignore[arg-type]
    assert found is taking.program(x, pk.spec(f16, (32, 8), (8, 1)), 1)


def test_a_scalars_default_counts() -> None:
    @pk.kernel(warps=1)
    def k(x: pk.gl(pk.f32, 4), n: pk.i32 = 3, scale: pk.f32 = 0.5) -> None:
        pk.warp.set(x, (0,), pk.cast(n, pk.f32) * scale)

    x = np.zeros(4, np.float32)
    for given, expected in (((), 1.5), ((4,), 2.0), ((), 1.5), ((4, 2.0), 8.0), ((), 1.5)):
        k(x, *given)
        assert x[0] == expected
    k(x, scale=3.0)
    assert x[0] == 9.0
