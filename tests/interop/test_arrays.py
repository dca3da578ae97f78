"""Arrays of every framework that is here, and of a few that only pretend."""

import subprocess
import sys
import types
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import pykittens as pk
from pykittens.gpu import driver
from pykittens.interop import arrays
from pykittens.interop.arrays import (
    ArrayInfo,
    as_numpy,
    common_device,
    current_stream,
    describe,
    empty,
    empty_like,
    waits,
)
from pykittens.interop.base import NUMPY
from pykittens.interop.views import View
from pykittens.types import DTYPES

NAMES = list(NUMPY)


def test_numpy() -> None:
    array = np.zeros((2, 6, 8), np.float32)[:, ::2].transpose(2, 0, 1)
    info = describe(array)
    assert info == ArrayInfo(array.ctypes.data, (8, 2, 3), (1, 48, 16), "f32", None, "numpy")
    assert as_numpy(array) is array
    assert describe(array[::-1]).strides == (-1, 48, 16)
    assert describe(np.array(1.0)).shape == ()


@pytest.mark.parametrize("name", NAMES)
def test_numpy_dtypes(name: str) -> None:
    array = empty("numpy", (3, 4), name)
    assert describe(array)[1:] == ((3, 4), (4, 1), name, None, "numpy", True)
    assert arrays.numpy_dtype(name) == array.dtype
    assert describe(empty_like(array)).dtype == name


def test_tf32_is_stored_as_f32() -> None:
    assert empty("numpy", (4,), "tf32").dtype == np.float32


@pytest.mark.parametrize(
    ("array", "message"),
    [
        ([[1.0]], "`q` is a list, which is no array"),
        (None, "`q` is None, which is no array"),
        (1.5, "`q` is a float, which is no array"),
        (np.zeros(3, np.complex64), "`q` has dtype complex64; kernels know bf16, f16"),
        (np.zeros(3, ">f4"), "`q` has dtype >f4; kernels know"),
        (np.zeros(3, ml_dtypes.float8_e4m3fnuz), "`q` has dtype float8_e4m3fnuz"),
        (np.array(["a"]), "`q` has dtype <U1"),
        (np.zeros(3, "i1,f4")["f1"], "`q` has strides of (5,) bytes, which are no multiples of its 4-byte"),
    ],
)
def test_what_is_no_array(array: Any, message: str) -> None:
    with pytest.raises(TypeError) as caught:
        describe(array, "q")
    assert message in str(caught.value)


def test_read_only_outputs() -> None:
    array = np.zeros(4, np.float32)
    array.flags.writeable = False
    assert as_numpy(array) is array
    with pytest.raises(TypeError, match="`o` is read-only, and the kernel writes it"):
        as_numpy(array, "o", writable=True)


def test_common_device() -> None:
    def on(device: int | None) -> ArrayInfo:
        return ArrayInfo(0, (), (), "f32", device, "torch")

    assert common_device({}) is None
    assert common_device({"q": on(None), "k": on(None)}) is None
    assert common_device({"q": on(1), "k": on(1)}) == 1
    with pytest.raises(TypeError, match="different places: `q` is on GPU 0, `v` is on the CPU"):
        common_device({"q": on(0), "k": on(0), "v": on(None), "o": on(None)})
    with pytest.raises(TypeError, match="`q` is on GPU 0, `k` is on GPU 1"):
        common_device({"q": on(0), "k": on(1)})


def test_no_framework_is_imported() -> None:
    code = """if True:
        import sys, numpy
        from pykittens.interop.arrays import describe
        describe(numpy.zeros(3))
        try: describe([])
        except TypeError: pass
        assert not {"torch", "jax", "cupy"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, check=True)


@pytest.mark.parametrize("name", NAMES)
def test_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    tensor = empty("torch", (2, 3, 4), name)
    assert isinstance(tensor, torch.Tensor)
    turned = tensor.transpose(0, 2)
    info = describe(turned)
    assert info == ArrayInfo(tensor.data_ptr(), (4, 3, 2), (1, 4, 12), name, None, "torch")
    view = as_numpy(turned, writable=True)
    assert (view.shape, view.dtype, view.ctypes.data) == (
        (4, 3, 2),
        arrays.numpy_dtype(name),
        tensor.data_ptr(),
    )
    view[3, 2, 1] = 1
    assert float(tensor[1, 2, 3].float()) == 1
    tensor.untyped_storage().resize_(0)  # as FSDP does with what it gathers again: not so after tensor.numpy()
    tensor = empty("torch", (2, 3, 4), name)
    kept = as_numpy(tensor)
    turned = tensor.transpose(0, 2)
    del tensor
    assert kept.shape == (2, 3, 4) and as_numpy(turned[:0]).shape == (0, 3, 2)
    assert describe(empty_like(turned))[1:] == ((4, 3, 2), (6, 2, 1), name, None, "torch", True)


def test_torch_gradients_and_parameters() -> None:
    torch = pytest.importorskip("torch")
    parameter = torch.nn.Parameter(torch.ones(4))
    assert describe(parameter).dtype == "f32"
    assert as_numpy(parameter).sum() == 4


def test_torch_tensors_without_memory() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="`q` is on meta; kernels take tensors on CUDA devices and the CPU"):
        describe(torch.empty(3, device="meta"), "q")
    with pytest.raises(TypeError, match="`q` is a tensor without ordinary memory"):
        describe(torch.eye(3).to_sparse(), "q")
    with pytest.raises(TypeError, match="`q` is a view of numbers of the other sign"):
        describe(torch.ones(3, dtype=torch.complex64).conj().imag, "q")
    with pytest.raises(TypeError, match=r"`q` has dtype torch.complex64; kernels know"):
        describe(torch.empty(3, dtype=torch.complex64), "q")


def test_torch_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 0x5000 + device, raising=False)
    assert current_stream("torch", 1) == 0x5001
    monkeypatch.delattr(torch._C, "_cuda_getCurrentRawStream")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda d: types.SimpleNamespace(cuda_stream=0x6000 + d))
    assert current_stream("torch", 1) == 0x6001


@pytest.mark.parametrize("name", ["bf16", "f16", "f32", "e4m3", "e5m2", "i32", "bool"])
def test_jax(name: str) -> None:
    jax = pytest.importorskip("jax")
    array = empty("jax", (3, 4), name)
    assert isinstance(array, jax.Array)
    info = describe(array)
    assert info == ArrayInfo(array.unsafe_buffer_pointer(), (3, 4), (4, 1), name, None, "jax")
    view = as_numpy(array)
    assert (view.dtype, view.ctypes.data) == (arrays.numpy_dtype(name), info.pointer)
    assert not view.flags.writeable
    as_numpy(array, writable=True)[1, 2] = 1
    assert float(array[1, 2]) == 1
    assert waits("jax")
    assert not waits("torch")


def test_a_writable_view_keeps_its_jax_array() -> None:
    pytest.importorskip("jax")
    view = as_numpy(empty("jax", (1000, 1000), "f32"), writable=True)
    view[:] = 3
    empty("jax", (1000, 1000), "f32")
    assert (view == 3).all()
    assert as_numpy(empty("jax", (0, 4), "f32"), writable=True).shape == (0, 4)


def test_jax_arrays_without_memory() -> None:
    jax = pytest.importorskip("jax")
    with pytest.raises(TypeError, match="`x` is being traced by JAX"):
        jax.jit(lambda x: describe(x, "x"))(jax.numpy.ones(3))
    gone = jax.numpy.ones(3)
    gone.delete()
    with pytest.raises(TypeError, match="`x` has been deleted or donated"):
        describe(gone, "x")


class OnDevice:
    """An array in CUDA memory, as far as its interface goes."""

    def __init__(self, **changes: Any) -> None:
        face = {"shape": (4, 8), "typestr": "<f2", "data": (0x7F00, False), "version": 3}
        self.__cuda_array_interface__ = {**face, **changes}


def test_what_is_refused_says_what_to_pass() -> None:
    masked = np.ma.masked_array(np.ones((2, 8), np.float32), mask=[[0] * 8, [1] * 8])

    @pk.kernel(warps=1)
    def k(x: pk.gl(pk.f32, "N", 8)) -> None:
        pk.warp.set(x, (0, 0), 1.0)

    for call in (lambda x: k(x), lambda x: pk.softmax(x)):
        with pytest.raises(pk.ArgumentError, match="is a masked array, and kernels know no masks") as caught:
            call(masked)
        assert caught.value.fix == "pass x.filled(...) or x.data"
        call(masked.filled(0))
        call(masked.data)
        with pytest.raises(pk.ArgumentError) as caught:
            call([[1.0]])
        assert caught.value.fix == "pass a NumPy, torch, CuPy or JAX array"
        with pytest.raises(pk.ArgumentError, match="has dtype complex64; kernels know") as caught:
            call(np.ones((2, 8), np.complex64))
        assert caught.value.fix == "convert it to one of them"


def test_cuda_array_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "device_of", lambda pointer: 1)
    assert describe(OnDevice()) == ArrayInfo(0x7F00, (4, 8), (8, 1), "f16", 1, "cuda")
    assert describe(OnDevice(strides=(2, 8))).strides == (1, 4)
    assert describe(OnDevice(strides=None)).strides == (8, 1)
    assert current_stream("cuda", 1) == 0
    with pytest.raises(TypeError, match="`q` is a masked array"):
        describe(OnDevice(mask=OnDevice()), "q")
    with pytest.raises(TypeError, match="`q` has dtype complex64"):
        describe(OnDevice(typestr="<c8"), "q")
    with pytest.raises(TypeError, match="`q` is on a GPU; the simulator reads arrays on the CPU"):
        as_numpy(OnDevice(), "q")


def test_cuda_array_interface_on_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """What its owner has queued is waited for, and so is our kernel. Read-only is read-only."""
    waited: list[int] = []
    monkeypatch.setattr(driver, "device_of", lambda pointer: 1)
    monkeypatch.setattr(driver, "synchronize", lambda stream, device: waited.append(stream))
    assert describe(OnDevice(stream=None)).kind == "cuda" and not waited
    assert describe(OnDevice(stream=0x70)).kind == "cuda stream"
    assert waited == [0x70] and waits("cuda stream") and not waits("cuda")
    with pytest.raises(TypeError, match="names stream 0, which the CUDA Array Interface does not allow"):
        describe(OnDevice(stream=0))
    assert describe(OnDevice()).writable and not describe(OnDevice(data=(0x7F00, True))).writable


def test_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    class ndarray:
        data, device = types.SimpleNamespace(ptr=0x7F00), types.SimpleNamespace(id=2)
        shape, strides, itemsize, dtype = (4, 8), (2, 8), 2, np.dtype(np.float16)

    stream = types.SimpleNamespace(ptr=0x5000)
    module = types.SimpleNamespace(
        ndarray=ndarray, cuda=types.SimpleNamespace(get_current_stream=lambda device: stream)
    )
    monkeypatch.setitem(sys.modules, "cupy", module)
    assert describe(ndarray()) == ArrayInfo(0x7F00, (4, 8), (1, 4), "f16", 2, "cupy")
    assert current_stream("cupy", 2) == 0x5000


@pytest.mark.parametrize("name", [name for name in NAMES if name in DTYPES])
def test_a_view_of_any_dtype_is_an_array(name: str) -> None:
    """NumPy knows no name of some dtypes that it holds."""
    whole = np.arange(30).astype(NUMPY[name]).reshape(5, 6)
    found = as_numpy(View(whole, (3, 2), (6, 1), 8))
    assert found.dtype == whole.dtype
    assert np.array_equal(found.astype(float), whole[1:4, 2:4].astype(float))
    assert np.shares_memory(found, whole)


def test_a_view_of_another_dtype() -> None:
    """The same memory, of which shape, strides and offset count the elements that it is read as."""
    whole = np.zeros(12, ml_dtypes.bfloat16)
    seen = View(whole, (2, 2), (3, 1), 1, "f32")
    as_numpy(seen, writable=True)[:] = [[1, 2], [3, 4]]
    np.testing.assert_array_equal(whole.view(np.float32), [0, 1, 2, 0, 3, 4])
    info = describe(seen)
    assert (info.dtype, info.shape, info.pointer) == ("f32", (2, 2), whole.ctypes.data + 4)
    assert seen.T.dtype == "f32" and not arrays.alike([seen]).same(View(whole, (2, 2), (3, 1), 1))
