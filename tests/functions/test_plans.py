"""Public functions called again on tensors of a GPU that is not there: what goes past torch's dispatcher, and what does
not."""

import importlib
import struct
import sys
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest import mock

import pytest

import pykittens as pk
import pykittens.functions.softmax
from pykittens import based, layernorm, linear_attention, rmsnorm, rotary, softmax, swiglu
from pykittens.call.kernel import Kernel, _kernels
from pykittens.errors import ArgumentError
from pykittens.gpu import launch, libcuda
from pykittens.gpu.compiler import Cubin
from pykittens.interop import frameworks
from pykittens.kernels import vocabulary_slices
from tests.functions.test_declarations import CASES
from tests.gpu.conftest import forget
from tests.gpu.fake_driver import CONTEXT, FakeDriver

torch = pytest.importorskip("torch")
plans = importlib.import_module("pykittens.functions.plans")
softmaxes = importlib.import_module("pykittens.kernels.softmax")
COMPILED = Cubin(b"", "kernel", "sm_90a", "", 32, 0, 0, 0, 0, (), "none", 0.0)


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    fake = FakeDriver()
    monkeypatch.setattr(libcuda, "_open", lambda: fake.library)
    monkeypatch.setattr(Kernel, "compile_program", lambda self, program, arch: COMPILED)  # which takes seconds
    describe, maker = frameworks.Torch.describe, frameworks.Torch.maker
    monkeypatch.setattr(frameworks.Torch, "describe", lambda self, x: describe(self, x)._replace(device=0))
    monkeypatch.setattr(frameworks.Torch, "maker", lambda self, shape, dtype, device: maker(self, shape, dtype, None))
    monkeypatch.setattr(frameworks.Torch, "streams", lambda self: lambda device: 0x77)
    forget_all()
    fake.current.context = CONTEXT
    yield fake
    forget_all()


def forget_all() -> None:
    """Nothing of a driver, real or not, outlives a test: neither kernels nor plans."""
    forget()
    for kernel in [*_kernels]:
        kernel.forget()
    plans.known.clear()


def heads(n: int = 64, d: int = 64, dtype: Any = None) -> list[Any]:
    return [torch.randn(1, 2, n, d).to(dtype or torch.bfloat16) for _ in range(3)]


def pointers(gpu: FakeDriver, tensors: int) -> list[int]:
    """Those that the first parameters of the last launch began with."""
    return [struct.unpack("<Q", x[:8])[0] for x in gpu.launches[-1].arguments[:tensors]]


def addresses(*tensors: Any) -> list[int]:
    return [x.data_ptr() for x in tensors]


def called(function: Any, last: bool = False) -> list[str]:
    """The Python functions that a call runs through before the driver's first call, or its `last`."""
    names: list[str] = []
    sys.setprofile(lambda frame, event, _: names.append(frame.f_code.co_name) if event == "call" else None)
    try:
        function()
    finally:
        sys.setprofile(None)
    launched = [i for i, name in enumerate(names) if name == "cuLaunchKernelEx"]
    return names[: launched[-1 if last else 0]]


def test_attention(gpu: FakeDriver) -> None:
    """Shapes, strides, dtypes and settings in turn: each launches with its own operands, and all but the first go past
    the dispatcher."""
    q, k, v = heads()
    moved = [x.clone() for x in (q, k, v)]
    transposed = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    calls: list[tuple[list[Any], dict[str, Any]]] = [
        ([q, k, v], {}),
        (moved, {}),
        (transposed, {}),
        (heads(128), {}),
        (heads(dtype=torch.float16), {}),
        ([q, k, v], {"causal": True}),
        ([q, k, v], {"return_lse": True}),
        ([q, k, k], {}),
        ([q, k, v], {"scale": 0.5}),
    ]
    for round in range(3):
        for operands, named in calls:
            gpu.parameter_sizes = [8] * (4 + ("return_lse" in named)) + [4]
            result = pk.attention(*operands, **named)
            out = result[0] if "return_lse" in named else result
            assert pointers(gpu, 5 if "return_lse" in named else 4) == addresses(
                *operands, *(result if "return_lse" in named else [out])
            )
            assert (out.shape, out.dtype, out.stride()) == (operands[0].shape, operands[0].dtype, operands[0].stride())
            assert struct.unpack("<f", gpu.launches[-1].arguments[-1])[0] == named.get("scale", 0.125)
            if round:
                assert len(called(partial(pk.attention, *operands, **named))) <= 23
                names = called(partial(pk.attention, *operands, **named))
                assert len(names) <= 23 and not {"_attention", "describe", "specialise"} & set(names), " ".join(names)
    assert {launch.stream for launch in gpu.launches} == {0x77}


# The functions of a call like the last one, in order. What is added here is paid at every call.
REPEATED = ["attention", "asked", "__call__", "is_dynamo_compiling", "quick", "run", "unchanged", "cuLaunchKernelEx"]


def test_what_repeats_is_seen_to_differ(gpu: FakeDriver) -> None:
    """A call like the last one is one Python function; each of these follows one that it resembles, and is another."""
    q, k, v = heads()
    gpu.parameter_sizes = [8] * 4 + [4]
    usual: dict[str, Any] = {"scale": 0.25}
    for _ in range(2):
        pk.attention(q, k, v, **usual)
    names = called(partial(pk.attention, *heads(), **usual))
    assert [name for name in names if name != "<lambda>"] == REPEATED[:-1]
    wide = [torch.randn(1, 2, 64, 128).bfloat16()[..., :64] for _ in range(3)]
    for operands, named, scale in (
        ((q, k, v), {"scale": 0.5}, 0.5),
        ((q, k, v), {"scale": 1}, 1.0),
        ((q, k, v), {}, 0.125),
        ((q, k, v), {"scale": 0.25, "causal": True}, 0.25),
        ((q, k, v), {"scale": 0.25, "deterministic": True}, 0.25),
        (wide, usual, 0.25),
        (heads(128), usual, 0.25),
        ((q, k, k), usual, 0.25),
        (heads(dtype=torch.float16), usual, 0.25),
    ):
        for given, options, number in ((operands, named, scale), ((q, k, v), usual, 0.25)):
            out = pk.attention(*given, **options)
            assert pointers(gpu, 4) == addresses(*given, out) and out.dtype == given[0].dtype
            assert struct.unpack("<f", gpu.launches[-1].arguments[-1])[0] == number
    for named in ({"scale": "a"}, {"causal": 1}, {"scale": True}):
        launched = len(gpu.launches)
        with pytest.raises(ArgumentError):
            pk.attention(q, k, v, **named)
        assert len(gpu.launches) == launched


def test_numbers_are_those_of_the_call(gpu: FakeDriver) -> None:
    """What an operator did for one scale is not taken for what it did for another, whoever called it first."""
    attention = pk.attention  # which declares its operator
    importlib.import_module("pykittens.functions.operators")
    q, k, v = heads()
    gpu.parameter_sizes = [8] * 4 + [4]
    torch.ops.pykittens.attention(q, k, v, None, False, None, False, None, None, None)
    for scale in (0.5, 0.5, 0.25, 0.5):
        attention(q, k, v, scale=scale)
        assert struct.unpack("<f", gpu.launches[-1].arguments[-1])[0] == scale


def test_refusals_stay(gpu: FakeDriver) -> None:
    gpu.parameter_sizes = [8] * 4
    q, k, v = heads()
    for _ in range(2):
        pk.attention(q, k, v)
        for operands, message in (
            ((q.half(), k, v), "dtypes"),
            ((q, k[:, :, :8], v), "shapes"),
            ((q, k, None), "v` is None"),
        ):
            with pytest.raises(ArgumentError, match=message):
                pk.attention(*operands)


def test_not_aligned(gpu: FakeDriver) -> None:
    """Operands that have to be copied are, also where others like them were read in place."""
    gpu.parameter_sizes = [8] * 4
    q, k, v = heads()
    memory = torch.zeros(q.numel() + 8, dtype=q.dtype)
    odd = memory[1 : q.numel() + 1].view(q.shape)
    for _ in range(2):
        pk.attention(q, k, v)
        pk.attention(odd, k, v)
        assert pointers(gpu, 1)[0] != odd.data_ptr()
        assert pointers(gpu, 3)[1:] == addresses(k, v)


def test_who_watches_the_dispatcher_sees_operators(gpu: FakeDriver) -> None:
    """Modes of both kinds, functionalization, gradients, fake tensors, subclasses and compilers, after plain calls and
    before others."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: list[str] = []

    class Dispatch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    class Function(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    class Own(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return super().__torch_function__(func, types, args, kwargs or {})

    gpu.parameter_sizes = [8] * 4
    q, k, v = heads()

    def watched(*operands: Any) -> bool:
        seen.clear()
        pk.attention(*operands)
        return any("pykittens.attention" in name for name in seen)

    for _ in range(3):
        pk.attention(q, k, v)
        for mode in (Dispatch(), Function()):
            with mode:
                assert watched(q, k, v)
        assert watched(q.as_subclass(Own), k, v)
        with FakeTensorMode() as fake:
            launched = len(gpu.launches)
            assert type(pk.attention(*map(fake.from_tensor, (q, k, v)))).__name__ == "FakeTensor"
            assert len(gpu.launches) == launched
        wanted = q.detach().requires_grad_()
        for _ in range(2):
            out = pk.attention(wanted, k, v)
            assert out.grad_fn is not None
            with torch.no_grad():
                for _ in range(2):
                    assert not pk.attention(wanted, k, v).requires_grad
        with torch.inference_mode():
            for _ in range(2):
                assert pk.attention(q, k, v).is_inference()
        assert not pk.attention(q, k, v).is_inference()
        assert torch.func.functionalize(lambda q: pk.attention(q, k, v))(q).shape == q.shape
        compiled = torch.compile(lambda q, k, v: pk.attention(q * 1, k, v) + 1, backend="aot_eager", fullgraph=True)
        assert compiled(q, k, v).shape == q.shape
        with torch.no_grad(), torch.autocast("cpu"):
            assert pk.attention(q, k, v).dtype == q.dtype
    negative = torch._neg_view(q.float()).bfloat16()
    assert pk.attention(negative, k, v).shape == q.shape


def test_matmul(gpu: FakeDriver) -> None:
    """Square weights, plain and transposed, as parameters; scales of 8-bit floats."""
    x, w, other = (torch.randn(64, 64).bfloat16() for _ in range(3))
    weight = torch.nn.Parameter(w)
    gpu.parameter_sizes = [8] * 3
    for _ in range(3):
        for right in (w, w.T, other):
            out = pk.matmul(x, right)
            assert sorted(pointers(gpu, 3)) == sorted(addresses(x, right, out))
            assert (out.shape, out.dtype) == ((64, 64), torch.bfloat16)
        assert pk.matmul(x, w, dtype=pk.f32).dtype == torch.float32
        assert pk.matmul(x, weight).requires_grad
        with torch.no_grad():
            out = pk.matmul(x, weight)
            assert not out.requires_grad
            assert sorted(pointers(gpu, 3)) == sorted(addresses(x, weight, out))
    assert len(called(partial(pk.matmul, x, w))) <= 16
    a, b = x.to(torch.float8_e4m3fn), w.to(torch.float8_e4m3fn).T
    one, two = torch.ones(1), torch.ones(1)
    gpu.parameter_sizes = [8] * 5
    for scale_a, scale_b in ((one, two), (two, one)) * 2:
        out = pk.matmul(a, b, scale_a=scale_a, scale_b=scale_b)
        assert pointers(gpu, 5) == addresses(a, b, out, scale_a, scale_b)
    gpu.parameter_sizes = [8] * 4
    for named in ({"scale_a": one}, {"scale_b": two}) * 2:
        out = pk.matmul(a, b, **named)
        assert pointers(gpu, 4) == addresses(a, b, out, *named.values())


def test_a_plan_looks_whether_what_is_written_shares_memory(gpu: FakeDriver) -> None:
    """By the plan, and by the function that it becomes; columns of one matrix, and another matrix, are none of it."""
    gpu.parameter_sizes = [8] * 4
    memory, other = torch.zeros(71, 64), torch.zeros(70, 64)
    total, half = memory[:70, :32], torch.bfloat16
    a, b, beside, shared = (
        other.view(half)[:, 64:],
        torch.randn(64, 32).to(half),
        *(memory.view(half)[:70, c:][:, :64] for c in (64, 32)),
    )
    for _ in range(3):
        for _ in range(3):
            pk.addmm_(total, a, b)
            assert {*addresses(total, a, b)} == {*pointers(gpu, 4)}
        assert len(called(partial(pk.addmm_, total, a, b))) <= 20
        with pytest.raises(ArgumentError, match="total, which is written, shares memory with a"):
            pk.addmm_(total, shared, b)
        pk.addmm_(total, beside, b)
        with pytest.raises(ArgumentError, match="shares memory"):
            torch.ops.pykittens.addmm_(shared, b, total)


def test_rows(gpu: FakeDriver) -> None:
    x, other, weight, bias = (
        torch.randn(4, 8, 64).bfloat16(),
        torch.randn(4, 8, 64).bfloat16(),
        torch.randn(64),
        torch.randn(64),
    )
    heads, cos, sin = torch.randn(1, 2, 16, 64), torch.randn(16, 32), torch.randn(16, 32)
    for round in range(3):
        for run, operands in (
            (softmax, (x,)),
            (softmax, (other,)),
            (swiglu, (x, other)),
            (swiglu, (x, x)),
            (rotary, (heads, cos, sin)),
            (rotary, (heads, cos, cos)),
            (rmsnorm, (x,)),
            (rmsnorm, (x, weight)),
            (layernorm, (x, weight)),
            (layernorm, (x, None, weight)),
            (layernorm, (other, weight, bias)),
        ):
            given = [a for a in operands if a is not None]
            gpu.parameter_sizes = [8] * (len(given) + 1)
            out = run(*operands)
            assert pointers(gpu, len(given) + 1) == addresses(*given, out)
            if round:
                assert len(called(partial(run, *operands))) <= 18
        gpu.parameter_sizes = [8] * 5
        y, s = rmsnorm(x, weight, residual=other)
        assert pointers(gpu, 5) == addresses(x, other, weight, y, s)
        gpu.parameter_sizes = [8] * 4
        assert rotary(heads, cos, sin, out=heads) is heads
        assert pointers(gpu, 4) == addresses(heads, cos, sin, heads)


def test_sequences(gpu: FakeDriver) -> None:
    """Nothing is described for the kernel, or traced, at the second call."""
    (q, k, v), (few, _, _) = heads(), heads(d=16)
    gpu.parameter_sizes = [8] * 4
    for run, operands in ((linear_attention, (q, k, v)), (based, (few, few, v))):
        run(*operands)
        assert not {"specialise", "launch_once"} & set(called(partial(run, *operands)))
        out = run(*operands)
        assert pointers(gpu, 4) == addresses(*operands, out)


def test_several_threads(gpu: FakeDriver) -> None:
    gpu.parameter_sizes = [8] * 4
    pk.attention(*heads())
    operands = [heads() for _ in range(6)]
    results: list[tuple[Any, ...]] = []

    def call(these: list[Any]) -> None:
        for _ in range(20):
            results.append((*these, pk.attention(*these)))

    threads = [threading.Thread(target=call, args=(these,)) for these in operands]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    launched = sorted([struct.unpack("<Q", x)[0] for x in launch.arguments] for launch in gpu.launches[1:])
    assert launched == sorted(addresses(*given) for given in results)


def test_halves_of_an_operand_are_found_again() -> None:
    """What is done again for other tensors: each pointer of the kernel is some bytes into one of the given ones."""
    x, w, copy = (torch.zeros(n, 16).bfloat16() for n in (4, 6, 4))
    order = plans.order_of([x, w], (w[:3].T, x, w[3:].T, None, 7))
    assert order == [(1, 0), (0, 0), (1, 96)] and plans._picking(order)([1000, 2000]) == [2000, 1000, 2096]
    assert plans.order_of([x, w], (x, copy)) is None
    assert plans._picking([(1, 0)])([5, 6]) == [6] and [*plans._picking([(1, 0), (0, 0)])([5, 6])] == [6, 5]


# With gradients ----------------------------------------------------------------------------------------------


class AllArguments(FakeDriver):
    """Notes all that kernels are launched with: each argument has a slot of 64 bytes."""

    counts: dict[int, int]

    def cuLaunchKernelEx(self, config: int, function: int, arguments: int, extra: int) -> int:
        self.parameter_sizes = [56] * self.counts[config]
        return super().cuLaunchKernelEx(config, function, arguments, extra)


def floats(*shape: int) -> Any:
    return torch.randn(*shape)


def halves(*shape: int) -> Any:
    return torch.randn(*shape).bfloat16()


def in_slices(x: Any, weight: Any, *bias: Any) -> Any:
    """Slices of a vocabulary, some of which begin within the operands, one in the memory of a gradient."""
    with mock.patch.object(vocabulary_slices, "kept_of", lambda m, v, most=None: min(v, 256)):
        return pk.linear_cross_entropy(x, weight, TARGETS, *bias, reduction="none")


def ahead(x: Any, weight: Any) -> Any:
    return pk.linear_cross_entropy(x, weight, torch.arange(140))


def packed(q: Any, k: Any, v: Any) -> Any:
    return pk.attention_varlen(q, k, v, OFFSETS, causal=True)


def rows(*widths: int) -> list[Any]:
    """Operands with two heads of so many columns, one for 0, that lie in memory row by row, as fla's do."""
    made = [torch.randn(1, 130, 2, width or 1).transpose(1, 2) for width in widths]
    return [x.bfloat16() if width else -abs(x[..., 0]) for x, width in zip(made, widths, strict=True)]


def of_channels() -> list[Any]:
    return [*rows(64, 64, 64, 0), -torch.rand(1, 130, 2, 64).transpose(1, 2)]


def ssd() -> list[Any]:
    x, b = halves(1, 130, 2, 64), halves(1, 130, 1, 128)
    return [x, torch.rand(1, 2, 130).mT, -torch.rand(4)[::2], b, halves(1, 130, 1, 128)]


TARGETS, OFFSETS = torch.arange(8) * 70, torch.tensor([0, 40, 64], dtype=torch.int32)
DIFFERENTIABLE: dict[str, tuple[Any, Any]] = {
    "softmax": (softmax, lambda: (halves(6, 64),)),
    "layernorm": (layernorm, lambda: (halves(6, 64), floats(64), floats(64))),
    "rmsnorm": (lambda x, w, r: rmsnorm(x, w, residual=r), lambda: (halves(6, 64), floats(64), halves(6, 64))),
    "swiglu": (swiglu, lambda: (halves(6, 64), halves(6, 64))),
    "rotary": (rotary, lambda: (halves(1, 2, 16, 64), floats(16, 32), floats(16, 32))),
    "matmul": (pk.matmul, lambda: (halves(64, 64), halves(64, 64))),
    "linear": (lambda x, w, b: pk.linear(x, w, b, "gelu"), lambda: (halves(2, 8, 64), halves(64, 64), halves(64))),
    "attention": (lambda q, k, v: pk.attention(q, k, v, causal=True, scale=0.5), heads),
    "deterministic": (lambda q, k, v: pk.attention(q, k, v, deterministic=True), heads),
    "linear attention": (linear_attention, heads),
    "linear cross entropy": (in_slices, lambda: (halves(8, 64), halves(600, 64))),
    "linear cross entropy, ahead": (ahead, lambda: (halves(140, 128), halves(900, 128))),
    "packed": (packed, lambda: [halves(64, 2, 128) for _ in range(3)]),
    "gated delta rule": (pk.gated_delta_rule, partial(rows, 64, 64, 64, 0, 0)),
    "kimi delta attention": (pk.kimi_delta_attention, of_channels),
    "gated linear attention": (pk.gated_linear_attention, partial(rows, 64, 64, 64, 0)),
    "mamba2": (pk.mamba2, ssd),
    "cross entropy": (lambda x: pk.cross_entropy(x, torch.arange(6)), lambda: (halves(6, 64),)),
}


# Whose backward pass does something else, too: a sum, or to ask who will ask again.
MORE_THAN_KERNELS = {"linear", "linear cross entropy", "linear cross entropy, ahead", "cross entropy"}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_with_gradients(name: str, gpu: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Called again, a function and its derivative launch what they did, with these tensors in the others' places, and
    neither the dispatcher nor a kernel's long way is asked."""
    launches = watched(gpu, monkeypatch)
    monkeypatch.setattr(vocabulary_slices, "AT_ONCE", 128)
    monkeypatch.setattr(vocabulary_slices, "ROOM", 176_000)  # some of the gradient made ahead is made again
    function, make = DIFFERENTIABLE[name]
    found = []
    for round in range(3):
        tensors = [x.requires_grad_(x.is_floating_point()) for x in make()]
        if name == "rotary":
            tensors = [tensors[0], *(x.detach() for x in tensors[1:])]
        launches.clear()
        results: list[Any] = []
        parts: list[int] = []

        def forward_and_backward(tensors: Any = tensors, results: Any = results, parts: list[int] = parts) -> None:
            out = function(*tensors)
            outs = out if isinstance(out, tuple) else (out,)
            results += [*outs, *(torch.ones_like(x) for x in outs)]
            parts.append(len(launches))
            torch.autograd.backward(outs, results[len(outs) :])

        names = called(forward_and_backward, last=True)
        assert all(x.grad is not None and x.grad.shape == x.shape for x in tensors if x.requires_grad)
        assert round < 2 or not {"_run", "operate", "specialise", "describe"} & set(names), names
        assert round < 2 or ("_gradients" in names) == (name in MORE_THAN_KERNELS), names
        forward, (first,) = [*tensors, *results[: len(results) // 2]], parts  # whose scratch memory others may get
        found.append(roles(launches[:first], forward) + roles(launches[first:], [*tensors, *results]))
    assert len(found[0]) >= 2
    assert found[0] == found[1] == found[2]


# One of its launches cannot be made again without being looked at.
NOT_BY_PLAN = {"linear_cross_entropy_gradients"}


@pytest.mark.parametrize("name", [name for name in CASES if "_backward" not in name])
def test_without_gradients(name: str, gpu: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever infers calls each function by a plan, the first time included."""
    watched(gpu, monkeypatch)
    function, make = CASES[name]
    for round in range(3):
        names = called(partial(function, *make()), last=True)
        assert round < 2 or name in NOT_BY_PLAN or not {"_run", "operate", "specialise", "describe"} & set(names), names


def test_backward_passes_are_told_apart(gpu: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which gradients are wanted, which come and how they lie, settings: each has its plan, and launches what the
    gradient's code does."""
    launches = watched(gpu, monkeypatch)
    cases: list[tuple[Any, Any, int, tuple[int, ...]]] = [  # of a function: its operands, which want, which come
        (lambda x, w: layernorm(x, w), lambda: (halves(6, 64), floats(64)), wanted, (0,))
        for wanted in (0b01, 0b10, 0b11)
    ]
    for causal in (False, True):
        both = partial(pk.attention, causal=causal, return_lse=True)
        cases += [(both, heads, 0b111, come) for come in ((0,), (1,), (0, 1))]
    cases += [(lambda x, w: pk.linear(x.transpose(0, 1), w), lambda: (halves(4, 2, 64), halves(64, 64)), 0b11, (0,))]
    cases += [(lambda x, r: rmsnorm(x, residual=r), lambda: (halves(6, 64), halves(6, 64)), 0b11, (0, 1))]

    def launched(function: Any, make: Any, wanted: int, come: tuple[int, ...], sparse: bool) -> list[Any]:
        operands = [x.requires_grad_(bool(wanted >> i & 1)) for i, x in enumerate(make())]
        outs = function(*operands)
        outs = outs if isinstance(outs, tuple) else (outs,)
        grads = [torch.ones_like(x).mT.contiguous().mT if sparse and x.dim() > 3 else torch.ones_like(x) for x in outs]
        launches.clear()
        torch.autograd.backward([outs[i] for i in come], [grads[i] for i in come])
        given = [x.grad for x in operands if x.grad is not None]
        assert len({*addresses(*given)}) == bin(wanted).count("1")
        return roles([*launches], [*operands, *outs, *grads])

    rounds = [[launched(*case, sparse) for case in cases for sparse in (False, True)] for _ in range(3)]
    assert rounds[0] == rounds[1] == rounds[2]


def watched(gpu: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is launched from now on, with all arguments."""
    fake, prepare = AllArguments(), launch.Launcher.prepare
    fake.counts, fake.current.context = {}, CONTEXT

    def prepared(self: Any, stream: int) -> Any:
        call: Any = prepare(self, stream)
        fake.counts[call.args[0].value] = len(self._formats)
        return call

    monkeypatch.setattr(launch.Launcher, "prepare", prepared)
    monkeypatch.setattr(libcuda, "_open", lambda: fake.library)
    forget_all()
    fake.current.context = CONTEXT
    return fake.launches


def roles(launches: list[Any], tensors: list[Any]) -> list[Any]:
    """Launches with names in the places of pointers: those of known tensors, and others in the order of their first
    use."""
    known = {x.data_ptr(): f"tensor {i}" for i, x in reversed([*enumerate(tensors)])}
    found = []
    for each in launches:
        arguments = []
        for argument in each.arguments:
            first = struct.unpack("<Q", argument[:8])[0]
            if first > 2**32:  # a pointer, or a tensor map, which begins with one here
                arguments.append((known.setdefault(first, f"other {len(known)}"), argument[8:]))
            else:
                arguments.append(("number", argument))
        found.append((each.grid, each.block, each.shared_bytes, arguments))
    return found


def test_what_torch_does_beside_kernels_is_not_forgotten(gpu: FakeDriver) -> None:
    """A copy, a fill: where a function does more than to launch, there is no plan of it."""
    x = halves(8, 64)
    for more in (lambda y: None, lambda y: y.zero_(), lambda y: torch.add(y, 1, out=y)):
        out = torch.empty_like(x)
        recording = plans.Recording(pykittens.functions.softmax.SOFTMAX, [x], [out], ())
        gpu.parameter_sizes = [8] * 2
        with plans.recorded(recording, 0):
            softmaxes.call(x, out).kernel(*softmaxes.call(x, out).operands, **softmaxes.call(x, out).statics)
            more(out)
        assert (recording.plan() is None) == (more(torch.ones(2)) is not None)


def test_gradients_are_told_of(gpu: FakeDriver) -> None:
    """Saved tensors that are changed, graphs that are freed, derivatives of derivatives: as through the dispatcher."""
    gpu.parameter_sizes = [8] * 2
    for _ in range(3):
        x, w = halves(8, 64).requires_grad_(), floats(64).requires_grad_()
        y = rmsnorm(x, w)
        y.sum().backward()
        with pytest.raises(RuntimeError, match="a second time"):
            y.sum().backward()
        with torch.no_grad():
            assert not rmsnorm(x, w).requires_grad
        y = rmsnorm(x, w)
        with torch.no_grad():
            x.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
        first = torch.autograd.grad(rmsnorm(x, w).sum(), x, create_graph=True)[0]
        with pytest.raises(NotImplementedError, match="cannot be differentiated again"):
            first.sum().backward()
        assert torch.autograd.grad(rmsnorm(x, w.detach()).sum(), x)[0].shape == x.shape
        assert torch.autograd.grad(rmsnorm(x.detach(), w).sum(), w)[0].shape == w.shape
