"""The CUDA driver's C library: opened on first use, its calls typed, its errors in words.

Called through ctypes: a launch from a prepared call then costs Python 0.3 us, a third of what converting the
arguments of `cuLaunchKernel` one by one does, and there is no binding package whose version torch constrains.
"""

import ctypes
import functools
import sys
from typing import Any


class CudaError(RuntimeError):
    """The CUDA driver refused a call, or there is no driver. `status` is its error number, 0 without one."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


# What to do about an error, where the driver's own sentence does not say it.
_ADVICE = {
    100: "CUDA_VISIBLE_DEVICES may hide the GPU",
    200: "the driver may be older than the compiler: update it, or install an older nvidia-cuda-nvrtc",
    209: "the kernel was compiled for another architecture than this GPU's",
    700: "a kernel used memory outside its arrays; called with NumPy arrays, it says where",
    701: "the kernel wants more registers or shared memory for a block than the GPU has",
    720: "not all blocks of a cooperative launch fit on the GPU at once: launch fewer blocks, or smaller ones",
    719: "a kernel trapped or faulted; a debug build (PYKITTENS_DEBUG=1) prints what it waited for or which assertion "
    "failed; "
    "called with NumPy arrays, it says where",
}

_INT, _UINT, _POINTER, _TEXT = ctypes.c_int, ctypes.c_uint, ctypes.c_void_p, ctypes.c_char_p
_SIGNATURES: dict[str, list[Any]] = {
    "cuInit": [_UINT],
    "cuDriverGetVersion": [_POINTER],
    "cuDeviceGetCount": [_POINTER],
    "cuDeviceGet": [_POINTER, _INT],
    "cuDeviceGetName": [_TEXT, _INT, _INT],
    "cuDeviceGetAttribute": [_POINTER, _INT, _INT],
    "cuDevicePrimaryCtxRetain": [_POINTER, _INT],
    "cuCtxGetCurrent": [_POINTER],
    "cuCtxSetCurrent": [_POINTER],
    "cuPointerGetAttribute": [_POINTER, _INT, _POINTER],
    "cuStreamSynchronize": [_POINTER],
    "cuMemAlloc_v2": [_POINTER, ctypes.c_size_t],
    "cuMemFree_v2": [_POINTER],
    "cuMemcpyHtoD_v2": [_POINTER, _POINTER, ctypes.c_size_t],
    "cuMemcpyDtoH_v2": [_POINTER, _POINTER, ctypes.c_size_t],
    "cuEventCreate": [_POINTER, _UINT],
    "cuEventRecord": [_POINTER] * 2,
    "cuEventSynchronize": [_POINTER],
    "cuEventElapsedTime": [_POINTER] * 3,
    "cuEventDestroy_v2": [_POINTER],
    "cuModuleLoadData": [_POINTER, _TEXT],
    "cuModuleGetFunction": [_POINTER, _POINTER, _TEXT],
    "cuFuncSetAttribute": [_POINTER, _INT, _INT],
    "cuLaunchKernelEx": [_POINTER] * 4,
    "cuTensorMapEncodeTiled": [_POINTER, _INT, _UINT, *[_POINTER] * 5, *[_INT] * 4],
    "cuTensorMapReplaceAddress": [_POINTER] * 2,
    "cuGetErrorName": [_INT, _POINTER],
    "cuGetErrorString": [_INT, _POINTER],
}


@functools.cache
def library() -> Any:
    """The driver's library, initialised. Raises `CudaError` where there is none."""
    try:
        opened = _open()
    except OSError as error:
        raise CudaError(f"there is no CUDA driver here ({error})") from None
    missing = [name for name in _SIGNATURES if not hasattr(opened, name)]
    if missing:
        raise CudaError(
            f"the CUDA driver is too old: it has no {', '.join(missing)}; update it to version 525 or newer"
        )
    for name, arguments in _SIGNATURES.items():
        getattr(opened, name).argtypes = arguments
    check(opened.cuInit(0), "initialising the CUDA driver", opened)
    return opened


def check(status: int, doing: str, opened: Any = None) -> None:
    """Raises `CudaError`, in words, unless `status` is success. `doing` says what was tried."""
    if status == 0:
        return
    opened = opened or library()
    name, text = ctypes.c_char_p(), ctypes.c_char_p()
    opened.cuGetErrorName(status, ctypes.byref(name))
    opened.cuGetErrorString(status, ctypes.byref(text))
    words = f"{(text.value or b'unknown error').decode()} ({(name.value or b'?').decode()}, {status})"
    advice = f"; {_ADVICE[status]}" if status in _ADVICE else ""
    raise CudaError(f"{doing}: {words}{advice}", status)


def ask(call: str, doing: str, *arguments: Any, of: Any = ctypes.c_int) -> int:
    """The number, or with `of=ctypes.c_size_t` the handle, that a call writes through its first argument."""
    result = of()
    check(getattr(library(), call)(ctypes.byref(result), *arguments), doing)
    return int(result.value)


def aligned(size: int, alignment: int) -> Any:
    """`size` zero bytes, as a ctypes array, at an address that is a multiple of `alignment`."""
    room = (ctypes.c_char * (size + alignment))()
    return (ctypes.c_char * size).from_buffer(room, -ctypes.addressof(room) % alignment)


def _open() -> Any:
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
