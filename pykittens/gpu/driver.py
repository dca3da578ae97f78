"""Devices, their contexts, and kernels loaded on them."""

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Iterator

from ..architectures import ARCHITECTURES, Architecture, best_for
from ..loading import dataclass
from .compiler import Cubin
from .libcuda import CudaError, ask, check, library

_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _SHARED_OPTIN, _PROCESSORS = 75, 76, 97, 16  # CUdevice_attribute
_MEMORY_KILOHERTZ, _MEMORY_BITS = 36, 37
_DEVICE_ORDINAL = 9  # CUpointer_attribute
_MAX_DYNAMIC_SHARED, _NON_PORTABLE_CLUSTER = 8, 14  # CUfunction_attribute
_lock = threading.Lock()
_granted: dict[int, int] = {}  # function handle -> bytes of dynamic shared memory it may use


@dataclass(frozen=True)
class LoadedKernel:
    """A kernel loaded on a device. It stays loaded until the process ends."""

    handle: int
    context: int  # the device's primary context, which frameworks use too
    device: int
    name: str


def available() -> bool:
    """Whether there is a driver and a device."""
    try:
        return device_count() > 0
    except CudaError:
        return False


def driver_version() -> tuple[int, int]:
    """The newest CUDA (major, minor) that the driver knows, such as (13, 0)."""
    version = ask("cuDriverGetVersion", "asking for the driver's version")
    return version // 1000, version % 1000 // 10


def device_count() -> int:
    """How many GPUs this process sees."""
    return ask("cuDeviceGetCount", "counting devices")


def device_name(device: int = 0) -> str:
    """What NVIDIA calls a device."""
    name = ctypes.create_string_buffer(256)
    check(library().cuDeviceGetName(name, len(name), _handle(device)), f"naming device {device}")
    return name.value.decode()


@functools.cache
def capability(device: int = 0) -> tuple[int, int]:
    """A device's compute capability, such as (9, 0)."""
    return _attribute(_CAPABILITY_MAJOR, device), _attribute(_CAPABILITY_MINOR, device)


@functools.cache
def multiprocessors(device: int = 0) -> int:
    """How many streaming multiprocessors a device has."""
    return _attribute(_PROCESSORS, device)


@functools.cache
def memory_bandwidth(device: int = 0) -> float:
    """TB/s between a device and its memory: two transfers a clock over the width of the bus."""
    return 2 * _attribute(_MEMORY_KILOHERTZ, device) * _attribute(_MEMORY_BITS, device) / 8e9


@functools.cache
def shared_limit(device: int = 0) -> int:
    """Bytes of shared memory that one block may ask for."""
    return _attribute(_SHARED_OPTIN, device)


@functools.cache
def architecture(device: int = 0) -> Architecture:
    """What to compile for a device. `CudaError` if there is none.

    `PYKITTENS_ARCH` names another, to see what a GPU does without its newest instructions.
    """
    if (chosen := os.environ.get("PYKITTENS_ARCH")) in ARCHITECTURES:
        return ARCHITECTURES[chosen]
    major, minor = capability(device)
    if (found := best_for((major, minor))) is None:
        raise CudaError(
            f"device {device} ({device_name(device)}) has compute capability {major}.{minor}, and runs none of "
            f"{', '.join(ARCHITECTURES)}"
        )
    return found


@functools.cache
def primary_context(device: int = 0) -> int:
    """The context of a device that frameworks share. It is kept until the process ends."""
    return ask("cuDevicePrimaryCtxRetain", f"opening device {device}", _handle(device), of=ctypes.c_size_t)


def current_context() -> int:
    """The calling thread's context, 0 when it has none."""
    return ask("cuCtxGetCurrent", "asking for the current context", of=ctypes.c_size_t)


def device_of(pointer: int) -> int:
    """The device that an address lies on."""
    with using(current_context() or primary_context()):
        return ask("cuPointerGetAttribute", f"looking for {pointer:#x}", _DEVICE_ORDINAL, pointer)


@contextlib.contextmanager
def using(context: int) -> Iterator[None]:
    """Makes a context the calling thread's for a while; for good, if the thread had none."""
    before = current_context()
    if before != context:
        check(library().cuCtxSetCurrent(context), "changing the context")
    try:
        yield
    finally:
        if before not in (0, context):
            check(library().cuCtxSetCurrent(before), "restoring the context")


def synchronize(stream: int = 0, device: int = 0) -> None:
    """Waits for a stream's work. `CudaError` if a kernel failed since the last time anybody waited."""
    with using(primary_context(device)):
        check(library().cuStreamSynchronize(stream), "waiting for the GPU")


def load(cubin: Cubin, device: int = 0, shared_bytes: int = 0) -> LoadedKernel:
    """Puts a kernel on a device, where its blocks may use `shared_bytes` of dynamic shared memory.

    The same cubin is loaded once for each device, whoever asks. Raises `CudaError` where it does not fit.
    """
    total, limit = shared_bytes + cubin.shared_bytes, shared_limit(device)
    if total > limit:
        raise CudaError(
            f"`{cubin.entry}` wants {total:,} bytes of shared memory for a block; device {device} "
            f"({device_name(device)}) has {limit:,}"
        )
    with _lock:
        function = _load(cubin.image, cubin.entry, device)
        if shared_bytes > _granted.get(function.handle, 0):  # never less: another launcher may need it
            allow(function, _MAX_DYNAMIC_SHARED, shared_bytes)
            _granted[function.handle] = shared_bytes
    return function


def allow_large_clusters(function: LoadedKernel) -> None:
    """Lets a kernel have clusters of more than 8 blocks (16 on Hopper)."""
    allow(function, _NON_PORTABLE_CLUSTER, 1)


def allow(function: LoadedKernel, attribute: int, value: int) -> None:
    """Sets a CUfunction_attribute."""
    with using(function.context):
        doing = f"setting attribute {attribute} of `{function.name}` to {value}"
        check(library().cuFuncSetAttribute(function.handle, attribute, value), doing)


@functools.cache
def _load(image: bytes, entry: str, device: int) -> LoadedKernel:
    context = primary_context(device)
    with using(context):
        module = ask("cuModuleLoadData", f"loading `{entry}`", image, of=ctypes.c_size_t)
        handle = ask("cuModuleGetFunction", f"loading `{entry}`", module, entry.encode(), of=ctypes.c_size_t)
    return LoadedKernel(handle, context, device, entry)


def _handle(device: int) -> int:
    return ask("cuDeviceGet", f"looking for device {device}", device)


def _attribute(attribute: int, device: int) -> int:
    return ask("cuDeviceGetAttribute", f"asking about device {device}", attribute, _handle(device))
