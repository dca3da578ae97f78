"""From a kernel and its arguments to a launch on the caller's stream.

The first call with new types traces, compiles (or finds in the cache) and loads; the launcher it makes is kept by the
shapes, strides and dtypes of the arrays, so that the next call only puts pointers in place and launches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import ArgumentError, ResourceError
from ..interop import arrays
from ..interop.base import ArrayInfo
from ..program import Program, TensorMapSpec
from ..types import DTYPES, Global
from . import cache, driver, tensormap
from .launch import Launcher

_encoded: dict[tuple[Any, ...], Any] = {}  # tensor maps by all they depend on


def prepare(kernel: Any, specialisation: Any, known: dict[str, Any], fixed: dict[str, Any]) -> tuple[Program, Launcher, int]:
    """The program, a launcher with every argument in place, and the device."""
    infos = {name: x for name, x in known.items() if isinstance(x, ArrayInfo)}
    device = next(iter(infos.values())).device
    assert device is not None
    program = kernel._program(specialisation, known)
    arch = driver.architecture(device)
    cubin = cache.load_or_compile(kernel._text(program, arch), arch, ())
    if cubin.registers * program.threads > 65536:
        raise ResourceError(f"{kernel.name} wants {cubin.registers} registers for each of {program.threads} threads", fix="use fewer warps", where=program.where)
    function = driver.load(cubin, device, program.shared_bytes)
    kinds = ["tensor" if isinstance(p.value.type, Global) else p.value.type.dtype.name for p in program.parameters]
    kinds += ["tensormap"] * len(program.maps)
    grid = kernel._dims("grid", known, fixed)
    grid = tuple(-(-g // c) * c for g, c in zip(grid, program.cluster, strict=True))
    launcher = Launcher(function, kinds, grid, (program.threads, 1, 1), program.cluster, program.shared_bytes, pdl=bool(kernel.options.get("pdl")))
    for i, p in enumerate(program.parameters):
        x = known[p.name]
        if isinstance(x, ArrayInfo):
            launcher.set_tensor(i, x.pointer, x.shape, x.strides)
        else:
            launcher.set_scalar(i, x)
    for i, m in enumerate(program.maps, start=len(kinds) - len(program.maps)):
        launcher.set_tensormap(i, tensor_map(known[m.tensor], m))
    return program, launcher, device


def tensor_map(info: ArrayInfo, spec: TensorMapSpec) -> Any:
    """The tensor map for a tensor's box: (columns in a panel, rows, panels, depth, batch), see `ops/tma.py`."""
    key = (info.pointer, info.shape, info.strides, info.dtype, spec)
    if key not in _encoded:
        if len(_encoded) > 4096:
            _encoded.clear()
        shape, strides, box = map_geometry(info, spec)
        _encoded[key] = tensormap.encode(info.pointer, info.dtype, shape, strides, box, spec.swizzle)
    return _encoded[key]


def map_geometry(info: ArrayInfo, spec: TensorMapSpec) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Shape, byte strides and box of a tensor map, innermost dimension first."""
    size = DTYPES[info.dtype].size
    missing = 4 - len(info.shape)
    batch, depth, rows, cols = (1,) * missing + tuple(info.shape)
    s = (0,) * missing + tuple(x * size for x in info.strides)
    dense = max(16, -(-cols * size // 16) * 16)
    sb, sd, sr = (x if n > 1 else dense for x, n in zip(s[:3], (batch, depth, rows), strict=True))
    if not spec.swizzle:  # a vector: one row
        return (cols, rows, depth, batch), (sr, sd, sb), (spec.box[1], 1, 1, 1)
    if not spec.panels:
        return (cols, rows, depth, batch), (sr, sd, sb), (spec.box[1], spec.box[0], 1, 1)
    panel = spec.swizzle // size
    return (panel, rows, cols // panel, depth, batch), (sr, spec.swizzle, sd, sb), (panel, spec.box[0], spec.box[1] // panel, 1, 1)


class Call:
    """A kernel's launcher for one set of types, shapes and strides: `run(infos)` moves pointers and launches."""

    def __init__(self, kernel: Any, specialisation: Any, known: dict[str, Any], fixed: dict[str, Any]):
        self.program, self.launcher, self.device = prepare(kernel, specialisation, known, fixed)
        self.kind = next(x.kind for x in known.values() if isinstance(x, ArrayInfo))
        self.waits = arrays.waits(self.kind)
        names = [p.name for p in self.program.parameters]
        self.tensors = [(i, n) for i, n in enumerate(names) if isinstance(known[n], ArrayInfo)]
        self.scalars = [(i, n) for i, n in enumerate(names) if not isinstance(known[n], ArrayInfo)]
        first = len(names)
        self.maps = [(first + i, m.tensor, m) for i, m in enumerate(self.program.maps)]
        self.pointers = {n: known[n].pointer for _, n in self.tensors}

    def run(self, known: dict[str, Any]) -> None:
        """Launches with the arrays of `known`, which differ from the first ones in address only."""
        launcher = self.launcher
        for i, name in self.tensors:
            pointer = known[name].pointer
            if pointer != self.pointers[name]:
                launcher.set_pointer(i, pointer)
                self.pointers[name] = pointer
                for j, tensor, m in self.maps:
                    if tensor == name:
                        launcher.set_tensormap(j, tensor_map(known[name], m))
        for i, name in self.scalars:
            launcher.set_scalar(i, known[name])
        launcher.launch(arrays.current_stream(self.kind, self.device))
        if self.waits:
            driver.synchronize(0, self.device)


def launch_once(kernel: Any, specialisation: Any, known: dict[str, Any], given: dict[str, Any], fixed: dict[str, Any]) -> None:
    """Launches, through a `Call` kept for these shapes, strides and static values."""
    layout = tuple((x.shape, x.strides, x.kind, x.device) for x in known.values() if isinstance(x, ArrayInfo))
    scalars = tuple(x for x in known.values() if not isinstance(x, ArrayInfo))
    key = (specialisation, layout, scalars, kernel.version())
    call = kernel._loaded.get(key)
    if call is None:
        if len(kernel._loaded) > 1024:
            kernel._loaded.clear()
        call = kernel._loaded[key] = Call(kernel, specialisation, known, fixed)
    with kernel._lock:
        call.run(known)


def bind(kernel: Any, specialisation: Any, known: dict[str, Any], given: dict[str, Any], fixed: dict[str, Any]) -> Callable[[], None]:
    """A function of no arguments that launches the kernel on the current stream with everything in place."""
    if any(isinstance(x, ArrayInfo) and x.device is None for x in known.values()):
        raise ArgumentError(f"{kernel.name}.bind launches on a GPU", fix="pass CUDA arrays; call the kernel itself to simulate it")
    call = Call(kernel, specialisation, known, fixed)
    launch, stream_of, kind, device, keep = call.launcher.launch, arrays.current_stream, call.kind, call.device, given

    def launch_bound() -> None:
        launch(stream_of(kind, device))

    launch_bound.arguments = keep  # type: ignore[attr-defined]  # the arrays live as long as the launcher
    return launch_bound

