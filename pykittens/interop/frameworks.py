"""What each array framework calls the things we need: pointer, strides, dtype, device, stream, allocation."""

import ctypes
import sys
from collections.abc import Callable, Hashable, Sequence
from functools import cache, partial
from operator import is_
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import numpy as np

from .base import (
    CONVERT,
    NUMPY,
    Alike,
    Array,
    ArrayInfo,
    Framework,
    Unsupported,
    dtype_name,
    in_elements,
    numpy_dtype,
    packed,
)

_TORCH = {
    "bf16": "bfloat16",
    "f16": "float16",
    "f32": "float32",
    "f64": "float64",
    "e4m3": "float8_e4m3fn",
    "e5m2": "float8_e5m2",
    "i8": "int8",
    "u8": "uint8",
    "i16": "int16",
    "u16": "uint16",
    "i32": "int32",
    "u32": "uint32",
    "i64": "int64",
    "u64": "uint64",
    "bool": "bool",
}


class Numpy(Framework):
    kind = "numpy"

    def owns(self, array: Any) -> bool:
        return isinstance(array, np.ndarray)

    def describe(self, array: Any) -> ArrayInfo:
        if isinstance(array, np.ma.MaskedArray):
            raise Unsupported("is a masked array, and kernels know no masks", "pass x.filled(...) or x.data")
        name = dtype_name(array.dtype)
        # Without elements, NumPy's strides are 0 where those of others are of the shape.
        strides = in_elements(array.strides, array.itemsize) if array.size else packed(array.shape)
        if array.size and array.ctypes.data % array.itemsize:
            raise Unsupported(f"begins between two multiples of its {array.itemsize}-byte elements", "pass x.copy()")
        return ArrayInfo(array.ctypes.data, array.shape, strides, name, None, "numpy", array.flags.writeable)

    def view(self, array: Any, writable: bool) -> Array:
        if writable and not array.flags.writeable:
            raise Unsupported("is read-only, and the kernel writes it", "pass a copy")
        return np.asarray(array)

    def empty(self, shape: tuple[int, ...], dtype: str, device: int | None) -> Any:
        if device is not None:
            raise Unsupported("would be a NumPy array on a GPU")
        return np.empty(shape, numpy_dtype(dtype))

    def copy(self, array: Any) -> Any:
        return np.array(array, order="C")


class _Lent:
    """A tensor's memory for NumPy, by NumPy's own interface: after `tensor.numpy()` torch would not let anybody resize
    the storage any more, as FSDP does."""

    def __init__(self, tensor: Any, dtype: str, strides: tuple[int, ...]) -> None:
        self._tensor = tensor  # which lives as long as the array does
        about = {"shape": tuple(tensor.shape), "typestr": dtype, "strides": strides, "version": 3}
        self.__array_interface__ = {**about, "data": (tensor.data_ptr(), False)}


class Torch(Framework):
    kind = "torch"

    def owns(self, array: Any) -> bool:
        torch = sys.modules.get("torch")
        return torch is not None and isinstance(array, torch.Tensor)

    def describe(self, array: Any) -> ArrayInfo:
        device: int | None = None
        if array.is_cuda:
            device = array.get_device()
        elif not array.is_cpu:
            raise Unsupported(
                f"is on {array.device}; kernels take tensors on CUDA devices and the CPU", "move it to one"
            )
        name = torch_names().get(array.dtype)
        if name is None:
            raise Unsupported(f"has dtype {array.dtype}; kernels know {', '.join(NUMPY)}", CONVERT)
        try:
            pointer, strides = array.data_ptr(), array.stride()
        except RuntimeError as error:  # sparse, fake, functional: tensors without memory of their own
            raise Unsupported(f"is a tensor without ordinary memory ({error})") from None
        if array.is_neg():  # the imaginary part of a conjugate, for one
            raise Unsupported("is a view of numbers of the other sign", "pass x.resolve_neg()")
        return ArrayInfo(pointer, array.shape, strides, name, device, "torch")

    def view(self, array: Any, writable: bool) -> Array:
        dtype = numpy_dtype(torch_names()[array.dtype])
        if not array.numel():
            return np.empty(array.shape, dtype)
        strides = tuple(stride * dtype.itemsize for stride in array.stride())
        plain = dtype if dtype.isbuiltin == 1 else np.dtype(f"u{dtype.itemsize}")  # of others NumPy has no names
        return np.asarray(_Lent(array.detach(), plain.str, strides)).view(dtype)

    def empty(self, shape: tuple[int, ...], dtype: str, device: int | None) -> Any:
        return self.maker(shape, dtype, device)()

    def maker(self, shape: tuple[int, ...], dtype: str, device: int | None) -> Callable[[], Any]:
        torch = sys.modules["torch"]  # whose empty_strided takes half of empty's time
        place = torch.device("cpu") if device is None else torch.device("cuda", device)
        return partial(torch.empty_strided, tuple(shape), packed(shape), dtype=torch_dtype(dtype), device=place)

    def copy(self, array: Any) -> Any:
        return array.clone(memory_format=sys.modules["torch"].contiguous_format)

    def probe(self, array: Any) -> tuple[int, Hashable]:
        about = array.shape, array.stride(), array.dtype, array.get_device(), array.requires_grad  # device -1: none
        return array.data_ptr(), about

    def alike(self, arrays: Sequence[Any]) -> Alike | None:
        """By the guard that torch's own compiler puts before compiled code: it compares type, shape, strides, dtype,
        device, `requires_grad` and dispatch keys, those of modes that are on included. It takes no tensor twice: one
        that comes again is compared by identity."""
        torch = sys.modules["torch"]
        guards = getattr(getattr(getattr(torch._C, "_dynamo", None), "guards", None), "TensorGuards", None)
        if guards is None or not arrays or any(type(x) not in (torch.Tensor, torch.nn.Parameter) for x in arrays):
            return None
        firsts = {id(x): i for i, x in reversed([*enumerate(arrays)])}
        places = sorted(firsts.values())
        again = [i for i, x in enumerate(arrays) if firsts[id(x)] != i]
        before = [firsts[id(arrays[i])] for i in again]
        once = [arrays[i] for i in places]
        try:
            same = guards(
                *once, dynamic_dims_sizes=[[*x.shape] for x in once], dynamic_dims_strides=[[*x.stride()] for x in once]
            ).check
        except (TypeError, RuntimeError):  # another torch's guard, tensors without strides
            return None

        def same_with_repeats(*arrays: Any) -> bool:  # `map` makes no frames
            at = arrays.__getitem__
            return all(map(is_, map(at, again), map(at, before))) and same(*map(at, places))

        return Alike(same_with_repeats if again else same, torch.Tensor.data_ptr)

    @property
    def address(self) -> Callable[[Any], int]:  # called as often as any function here: without a frame of ours
        return sys.modules["torch"].Tensor.data_ptr

    def streams(self) -> Callable[[int], int]:
        """torch's way from a device to its stream's handle, by the short cut that its own compiler uses."""
        torch = sys.modules["torch"]
        raw = getattr(torch._C, "_cuda_getCurrentRawStream", None)
        return raw or (lambda device: int(torch.cuda.current_stream(device).cuda_stream))


class Cupy(Framework):
    kind = "cupy"

    def owns(self, array: Any) -> bool:
        cupy = sys.modules.get("cupy")
        return cupy is not None and isinstance(array, cupy.ndarray)

    def describe(self, array: Any) -> ArrayInfo:
        name, strides = dtype_name(array.dtype), in_elements(array.strides, array.itemsize)
        return ArrayInfo(array.data.ptr, array.shape, strides, name, array.device.id, "cupy")

    def empty(self, shape: tuple[int, ...], dtype: str, device: int | None) -> Any:
        cupy = sys.modules["cupy"]
        with cupy.cuda.Device(device):
            return cupy.empty(shape, numpy_dtype(dtype))

    def copy(self, array: Any) -> Any:
        return array.copy(order="C")

    def streams(self) -> Callable[[int], int]:
        return lambda device: int(sys.modules["cupy"].cuda.get_current_stream(device).ptr)


class Jax(Framework):
    """JAX runs on streams of its own and its arrays never change.

    So a kernel reads its arrays once their contents are there (`describe` waits for them), writes only
    arrays fresh from `empty`, and must be waited for before JAX sees them. Inside `jax.jit` there is no
    memory to read.
    """

    kind = "jax"
    waits = True
    _fresh: ClassVar[WeakValueDictionary[int, Any]] = WeakValueDictionary()  # what `empty` has made, by id

    def owns(self, array: Any) -> bool:
        jax = sys.modules.get("jax")
        return jax is not None and isinstance(array, jax.Array)

    def describe(self, array: Any) -> ArrayInfo:
        if isinstance(array, sys.modules["jax"].core.Tracer):
            raise Unsupported("is being traced by JAX (jit, grad, vmap), and has no memory", "call kernels outside")
        if array.is_deleted():
            raise Unsupported("has been deleted or donated")
        devices = list(array.devices())
        if len(devices) > 1:
            raise Unsupported(f"is spread over {len(devices)} devices; kernels take arrays on one", "gather it on one")
        name, strides = dtype_name(array.dtype), packed(array.shape)
        pointer = array.block_until_ready().unsafe_buffer_pointer()
        device = None if devices[0].platform == "cpu" else int(devices[0].local_hardware_id)
        return ArrayInfo(pointer, array.shape, strides, name, device, "jax", id(array) in self._fresh)

    def view(self, array: Any, writable: bool) -> Array:
        if not writable or array.size == 0:
            return np.asarray(array)
        memory = (ctypes.c_char * array.nbytes).from_address(array.unsafe_buffer_pointer())
        memory.owner = array  # keeps it alive as long as the view
        return np.frombuffer(memory, array.dtype).reshape(array.shape)

    def fill(self, array: Any, value: Any) -> None:
        if next(iter(array.devices())).platform != "cpu":
            raise Unsupported("is empty in part, and JAX's arrays on a GPU cannot be filled in place")
        self.view(array, True)[...] = value

    def empty(self, shape: tuple[int, ...], dtype: str, device: int | None) -> Any:
        jax = sys.modules["jax"]
        found = [
            place
            for place in (jax.local_devices(backend="cpu") if device is None else jax.local_devices())
            if device is None or place.local_hardware_id == device
        ]
        made = jax.numpy.empty(shape, numpy_dtype(dtype), device=found[0]).block_until_ready()
        self._fresh[id(made)] = made
        return made


class Generic(Framework):
    """Any other array in CUDA memory: Numba's, PyCUDA's, a `DeviceArray`, a user's own."""

    kind = "cuda"

    def owns(self, array: Any) -> bool:
        return isinstance(getattr(array, "__cuda_array_interface__", None), dict)  # some objects have every name

    def describe(self, array: Any) -> ArrayInfo:
        from ..gpu import driver

        face = array.__cuda_array_interface__
        if face.get("mask") is not None:
            raise Unsupported(
                "is a masked array, and kernels know no masks", "pass its data, with what masks it filled in"
            )
        own = getattr(array, "dtype", None)  # NumPy's, if it is one: a typestr cannot say bf16
        dtype = own if isinstance(own, np.dtype) else np.dtype(face["typestr"])
        shape, pointer = tuple(face["shape"]), face["data"][0]
        strides = face.get("strides")
        steps = packed(shape) if strides is None else in_elements(strides, dtype.itemsize)
        device = driver.device_of(pointer) if pointer else 0
        # Of version 3: what is queued on a stream that the owner names must be done before anybody else uses the array.
        # Our launches are on the default stream, so we wait here, and after the kernel (`OnStream.waits`).
        stream = face.get("stream")
        if stream == 0:
            raise Unsupported("names stream 0, which the CUDA Array Interface does not allow: 1 is the default stream")
        if stream is not None and pointer:
            driver.synchronize(stream, device)
        writable = not face["data"][1]
        return ArrayInfo(
            pointer, shape, steps, dtype_name(dtype), device, OnStream.kind if stream else self.kind, writable
        )

    def empty(self, shape: tuple[int, ...], dtype: str, device: int | None) -> Any:
        for framework in (Torch(), Cupy()):
            if framework.kind in sys.modules:
                return framework.empty(shape, dtype, device)
        raise Unsupported("has nothing to be allocated with; pass the output, too")


class OnStream(Generic):
    """One whose owner works on a stream of its own: who launches on it has to wait, as JAX's have to."""

    kind = "cuda stream"
    waits = True

    def owns(self, array: Any) -> bool:
        return False  # `Generic` finds out


ALL: tuple[Framework, ...] = (Numpy(), Torch(), Cupy(), Jax(), Generic(), OnStream())


@cache
def torch_names() -> dict[Any, str]:
    torch = sys.modules["torch"]
    return {getattr(torch, dtype): name for name, dtype in _TORCH.items() if hasattr(torch, dtype)}


def torch_dtype(name: str) -> Any:
    """torch's dtype for one of our names."""
    return getattr(sys.modules["torch"], _TORCH[name])
