"""A CUDA driver without a GPU: C-callable Python functions that note what they are given.

It has one device of compute capability 9.0. Launches copy the arguments as the real driver does, by the sizes
that `parameter_sizes` gives; a thread without a context cannot launch.
"""

import ctypes
import threading
from ctypes import CFUNCTYPE, POINTER, c_int, c_uint, c_uint64, c_void_p
from types import SimpleNamespace
from typing import Any

from pykittens.gpu import libcuda

CONTEXT = 0x7000_0000_0000_1000
ERRORS = {
    1: b"INVALID_VALUE",
    101: b"INVALID_DEVICE",
    201: b"INVALID_CONTEXT",
    701: b"LAUNCH_OUT_OF_RESOURCES",
    720: b"COOPERATIVE_LAUNCH_TOO_LARGE",
}
ATTRIBUTES = {75: 9, 76: 0, 97: 232448, 16: 132, 36: 2619000, 37: 5120}  # of an H100


class FakeDriver:
    def __init__(self) -> None:
        self.current = threading.local()
        self.calls: list[tuple[Any, ...]] = []
        self.launches: list[SimpleNamespace] = []
        self.parameter_sizes: list[int] = []
        self.launch_status = 0
        self.library = SimpleNamespace()
        for name, types in libcuda._SIGNATURES.items():
            # Pointers arrive in callbacks as integers.
            prototype = CFUNCTYPE(c_int, *types)
            setattr(self.library, name, prototype(getattr(self, name, self._note(name))))

    def _note(self, name: str) -> Any:
        def note(*arguments: Any) -> int:
            self.calls.append((name, *arguments))
            return 0

        return note

    def cuDriverGetVersion(self, out: int) -> int:
        return write(c_int, out, 13010)

    def cuDeviceGetCount(self, out: int) -> int:
        return write(c_int, out, 1)

    def cuDeviceGet(self, out: int, device: int) -> int:
        return write(c_int, out, device) if device == 0 else 101

    def cuDeviceGetName(self, out: Any, size: int, device: int) -> int:
        return 0

    def cuDeviceGetAttribute(self, out: int, attribute: int, device: int) -> int:
        return write(c_int, out, ATTRIBUTES[attribute])

    def cuDevicePrimaryCtxRetain(self, out: int, device: int) -> int:
        return write(c_void_p, out, CONTEXT)

    def cuCtxGetCurrent(self, out: int) -> int:
        return write(c_void_p, out, getattr(self.current, "context", 0))

    def cuCtxSetCurrent(self, context: int) -> int:
        self.current.context = context
        return 0

    def cuMemAlloc_v2(self, out: int, size: int) -> int:
        self.kept = [*getattr(self, "kept", []), ctypes.create_string_buffer(size)]
        return write(c_void_p, out, ctypes.addressof(self.kept[-1]))

    def cuMemcpyHtoD_v2(self, to: int, source: int, size: int) -> int:
        ctypes.memmove(to, source, size)
        return 0

    cuMemcpyDtoH_v2 = cuMemcpyHtoD_v2

    def cuEventElapsedTime(self, out: int, first: int, second: int) -> int:
        return write(ctypes.c_float, out, 2.5)

    def cuModuleLoadData(self, out: int, image: bytes) -> int:
        self.calls.append(("cuModuleLoadData", image))
        return write(c_void_p, out, 0x10)

    def cuModuleGetFunction(self, out: int, module: int, name: bytes) -> int:
        return write(c_void_p, out, 0x7000_0000_0000_2000) if module == 0x10 else 1

    def cuGetErrorName(self, status: int, out: int) -> int:
        return self._text(out, b"CUDA_ERROR_" + ERRORS[status])

    def cuGetErrorString(self, status: int, out: int) -> int:
        return self._text(out, ERRORS[status].lower().replace(b"_", b" "))

    def _text(self, out: int, text: bytes) -> int:
        self.kept = [*getattr(self, "kept", []), ctypes.create_string_buffer(text)]
        return write(c_void_p, out, ctypes.addressof(self.kept[-1]))

    def cuTensorMapEncodeTiled(self, out: int, dtype: int, rank: int, pointer: int, *rest: Any) -> int:
        shape, strides, box, steps, *modes = rest
        self.encoded = SimpleNamespace(
            dtype=dtype,
            pointer=pointer,
            modes=modes,
            shape=(c_uint64 * rank).from_address(shape)[:],
            strides=(c_uint64 * rank).from_address(strides)[:],
            box=(c_uint * rank).from_address(box)[:],
            steps=(c_uint * rank).from_address(steps)[:],
        )
        assert out % 64 == 0
        ctypes.memset(out, 0xAB, 128)
        return write(c_uint64, out, pointer)

    def cuTensorMapReplaceAddress(self, descriptor: int, pointer: int) -> int:
        assert descriptor % 64 == 0
        return write(c_uint64, descriptor, pointer)

    def cuLaunchKernelEx(self, config: int, function: int, arguments: int, extra: int) -> int:
        if not getattr(self.current, "context", 0):
            return 201
        if self.launch_status:
            return self.launch_status
        numbers = (c_uint * 7).from_address(config)[:]
        stream, attributes = (c_void_p * 2).from_address(config + 32)[:]
        count = c_uint.from_address(config + 48).value
        found = [(c_uint * 18).from_address((attributes or 0) + 72 * i)[:] for i in range(count)]
        pointers = (c_void_p * len(self.parameter_sizes)).from_address(arguments)[:]
        copies = [ctypes.string_at(p, n) for p, n in zip(pointers, self.parameter_sizes, strict=True)]
        launch = SimpleNamespace(
            function=function,
            grid=numbers[:3],
            block=numbers[3:6],
            shared_bytes=numbers[6],
            stream=stream or 0,
            attributes={a[0]: a[2:5] for a in found},
            addresses=pointers,
            arguments=copies,
        )
        self.launches.append(launch)
        return 0


def write(kind: Any, where: int, value: Any) -> int:
    ctypes.cast(where, POINTER(kind))[0] = value
    return 0
