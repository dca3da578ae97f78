"""A kernel ready to go: every argument already in place, so that a launch is one prepared driver call.

A kernel's C parameters are tensors (`struct pk_global`, below), scalars and tensor maps, in that order or any
other. A `Launcher` owns their storage and the driver's array of pointers to it; the driver copies the
arguments when it is called, so launching allocates nothing, waits for nothing, and can be captured in a
CUDA graph.
"""

import ctypes
import functools
import itertools
import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

from . import driver
from .driver import LoadedKernel
from .libcuda import aligned, check, library
from .tensormap import TensorMap, replace_address

# struct pk_global { void* data; int shape[4]; long long stride[4]; }: 56 bytes. Strides count elements; a tensor
# of fewer dimensions has leading ones of shape 1 and stride 0.
GLOBAL = struct.Struct("<Q4i4q")
_POINTER = struct.Struct("<Q")
_SCALARS = {
    "bool": "?",
    "i8": "b",
    "u8": "B",
    "i16": "h",
    "u16": "H",
    "i32": "i",
    "u32": "I",
    "i64": "q",
    "u64": "Q",
    "f32": "f",
    "f64": "d",
}
_STREAMS = 64  # for how many of them calls are kept ready
_COOPERATIVE, _CLUSTER_DIMENSION, _PROGRAMMATIC_SERIALIZATION = 2, 4, 6  # CUlaunchAttributeID

Dim3 = tuple[int, int, int]
Prepared = Callable[[], int]  # a call of the driver; returns its status


class _Attribute(ctypes.Structure):  # CUlaunchAttribute: 72 bytes, of which we use these
    _fields_ = (("id", ctypes.c_uint), ("pad", ctypes.c_uint), ("value", ctypes.c_uint * 16))


class _Config(ctypes.Structure):  # CUlaunchConfig
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("attribute_count", ctypes.c_uint),
    )


class Launcher:
    """Launches one function with one set of arguments, each of which can be changed between launches.

    `parameters` names the C parameters in order: "tensor", "tensormap", or a scalar's dtype ("i32", "f32"). `grid` and
    `block` count blocks and threads along x, y, z; `cluster` the blocks of a cluster; `pdl` lets the kernel start
    before the one ahead of it in the stream has ended (it must then wait for it itself); `cooperative` makes sure that
    all blocks run at once. One thread at a time may change arguments; the arrays behind its pointers are the caller's
    to keep alive. `launch` makes the call that is prepared for the stream, whose status but 0 is for `failed`: so may
    others. Raises ValueError for dimensions that no GPU has.
    """

    def __init__(
        self,
        function: LoadedKernel,
        parameters: Sequence[str],
        grid: Dim3,
        block: Dim3,
        cluster: Dim3 = (1, 1, 1),
        shared_bytes: int = 0,
        *,
        pdl: bool = False,
        cooperative: bool = False,
    ) -> None:
        self.function = function
        self.cluster = cluster
        self._formats = [_format(kind) for kind in parameters]
        sizes = [128 if form is None else form.size for form in self._formats]
        ends = list(itertools.accumulate(-(-size // 64) * 64 for size in sizes))  # 64 aligns tensor maps too
        self._offsets = [0, *ends][: len(sizes)]
        self._buffer = aligned(sum(ends[-1:], 64), 64)
        base = ctypes.addressof(self._buffer)
        self._arguments = (ctypes.c_void_p * max(1, len(sizes)))(*[base + offset for offset in self._offsets])
        if not (0 < math.prod(block) <= 1024 and 0 < math.prod(cluster) <= 16):
            raise ValueError(f"a block of {block} threads in a cluster of {cluster}; at most 1024 and 16 fit")
        self._attributes = _attributes(cluster, pdl, cooperative)
        self._block, self._shared_bytes = block, shared_bytes
        self.calls: dict[int, Prepared] = {}  # by stream; what is missing is for `prepare`
        self.set_grid(grid)
        if math.prod(cluster) > 8:
            driver.allow_large_clusters(function)

    def prepare(self, stream: int) -> Prepared:
        """The driver's call on a stream, kept in `calls`. Each has a configuration of its own: several threads may
        launch at once, each on its stream.
        """
        if len(self.calls) >= _STREAMS:
            self.calls.clear()
        count, attributes = len(self._attributes), ctypes.addressof(self._attributes)
        config = ctypes.pointer(_Config(self.grid, self._block, self._shared_bytes, stream, attributes, count))
        # Bound once: converting arguments is most of what a call through ctypes costs.
        call = self.calls[stream] = functools.partial(
            library().cuLaunchKernelEx,
            ctypes.cast(config, ctypes.c_void_p),  # which keeps the configuration alive
            ctypes.c_void_p(self.function.handle),
            ctypes.cast(self._arguments, ctypes.c_void_p),
            ctypes.c_void_p(),
        )
        return call

    def set_grid(self, grid: Dim3) -> None:
        """How many blocks there are along x, y, z. None along one of them: `launch` does nothing."""
        for size, most, group, axis in zip(grid, (2**31 - 1, 65535, 65535), self.cluster, "xyz", strict=True):
            if not 0 <= size <= most:
                raise ValueError(f"a grid of {size} blocks along {axis}; 0 to {most} are possible")
            if size % group:
                raise ValueError(f"a grid of {size} blocks along {axis}, in clusters of {group}: not a multiple")
        self.grid = grid
        self.calls.clear()

    def set_tensor(self, index: int, pointer: int, shape: Sequence[int], strides: Sequence[int]) -> None:
        """Parameter `index` becomes a tensor of up to 4 dimensions, outermost first; strides in elements."""
        missing = 4 - len(shape)
        try:
            GLOBAL.pack_into(
                self._buffer,
                self._offset(index, GLOBAL),
                pointer,
                *(1,) * missing,
                *shape,
                *(0,) * missing,
                *strides,
            )
        except struct.error as error:
            raise ValueError(
                f"a tensor of shape {tuple(shape)} and strides {tuple(strides)} does not fit: {error}"
            ) from None

    def set_pointer(self, index: int, pointer: int) -> None:
        """The tensor at parameter `index` moves to another address."""
        _POINTER.pack_into(self._buffer, self._offset(index, GLOBAL), pointer)

    @property
    def words(self) -> memoryview:
        """The storage of all parameters, as 8-byte words to write."""
        return memoryview(self._buffer).cast("B").cast("Q")

    def word(self, index: int) -> int:
        """Which of `words` parameter `index` begins at. Of a tensor, that one is its pointer."""
        return self._offsets[index] // 8

    def set_scalar(self, index: int, value: int | float | bool) -> None:
        """Parameter `index` becomes a number. ValueError if its type does not hold it."""
        form = self._formats[index]
        if form is None or form is GLOBAL:
            raise TypeError(f"parameter {index} is not a scalar")
        try:
            form.pack_into(self._buffer, self._offsets[index], value)
        except (struct.error, OverflowError) as error:
            raise ValueError(f"parameter {index} cannot be {value!r}: {error}") from None

    def slot(self, index: int) -> Callable[[int | float | bool], None]:
        """`set_scalar` of one parameter, for who sets it often: struct.error or OverflowError if its type does not
        hold a value.
        """
        form = self._formats[index]
        assert form is not None
        return functools.partial(form.pack_into, self._buffer, self._offsets[index])

    def set_tensormap(self, index: int, descriptor: TensorMap) -> None:
        """Parameter `index` becomes a copy of an encoded tensor map."""
        ctypes.memmove(self._address(index), descriptor.address, 128)

    def move_tensormap(self, index: int, pointer: int) -> None:
        """The tensor map at parameter `index` describes the same tensor at another address."""
        replace_address(self._address(index), pointer)

    def launch(self, stream: int = 0) -> None:
        """Queues the kernel on a stream (a CUstream; 0 is the default). `CudaError` if the driver refuses."""
        if 0 in self.grid:
            return
        call = self.calls.get(stream) or self.prepare(stream)
        if status := call():
            self.failed(status, call)

    def failed(self, status: int, call: Prepared) -> None:
        """A fresh thread has no context, or the current device is not the arrays': that is mended here."""
        if status < 700:  # from there on the GPU is at fault, and stays so
            with driver.using(self.function.context):
                status = call()
        check(status, f"launching `{self.function.name}`")

    def _offset(self, index: int, form: struct.Struct | None) -> int:
        if self._formats[index] is not form:
            raise TypeError(f"parameter {index} is not a {'tensor' if form is GLOBAL else 'tensor map'}")
        return self._offsets[index]

    def _address(self, index: int) -> int:
        """Where the tensor map of parameter `index` lies."""
        return ctypes.addressof(self._buffer) + self._offset(index, None)


def _format(kind: str) -> struct.Struct | None:
    """How a parameter is packed; None for a tensor map, which is copied."""
    if kind == "tensor":
        return GLOBAL
    if kind == "tensormap":
        return None
    if kind not in _SCALARS:
        raise ValueError(f"a parameter of kind {kind!r}; there are tensor, tensormap, {', '.join(_SCALARS)}")
    return struct.Struct("<" + _SCALARS[kind])


def _attributes(cluster: Dim3, pdl: bool, cooperative: bool) -> Any:
    chosen = []
    if cooperative:
        chosen.append(_Attribute(_COOPERATIVE, 0, (ctypes.c_uint * 16)(1)))
    if cluster != (1, 1, 1):
        chosen.append(_Attribute(_CLUSTER_DIMENSION, 0, (ctypes.c_uint * 16)(*cluster)))
    if pdl:
        chosen.append(_Attribute(_PROGRAMMATIC_SERIALIZATION, 0, (ctypes.c_uint * 16)(1)))
    return (_Attribute * len(chosen))(*chosen)
