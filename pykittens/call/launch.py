"""From a kernel and its arguments to a launch on the caller's stream.

The first call with new types traces and compiles, or finds in the cache, and loads; the `Call` it makes is kept by the
shapes, strides and dtypes of the arrays, so that the next call only puts pointers in place and launches (`again.py`).
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import ArgumentError
from ..gpu import driver, tensormap
from ..gpu.launch import Dim3, Launcher
from ..interop import arrays
from ..interop.base import ArrayInfo
from ..ops.tma import LONGEST
from ..program import TensorMapSpec
from ..trace.operands import check_outputs
from ..types import DTYPES
from .entry_points import Built
from .gradients import check_gradients, overwritten
from .identity import leaf_of
from .made import MadeFunction

# Launches a kernel that has been launched before, given pointers of arrays like those and numbers. False, and nothing
# is done, where a number does not fit its parameter, or the kernel is no longer what it was.
Launch = Callable[[Sequence[int], Sequence[Any]], bool]


class Call:
    """A kernel's launcher for one set of types, shapes and strides."""

    def __init__(self, kernel: Any, specialisation: Any, known: dict[str, Any], statics: dict[str, Any]):
        arrays_known = {name: x for name, x in known.items() if isinstance(x, ArrayInfo)}
        kind, device = next((x.kind, x.device) for x in arrays_known.values())
        assert device is not None
        built: Built = kernel.built_for(specialisation, known, driver.architecture(device).name)
        self.entry = entry = built.entry
        check_outputs(entry.name, entry.outputs, arrays_known, entry.location)
        self.device, self.stream, self.waits = (
            device,
            arrays.streams(kind),
            any(arrays.waits(x.kind) for x in arrays_known.values()) or entry.debug,
        )
        self.lock = threading.Lock()
        self.launcher = _launcher(built, kernel.dims("grid", known, statics), known, device)
        self.words = self.launcher.words
        parameters = [name for name, _ in entry.parameters]
        self.tensors = [name for name in parameters if name in arrays_known]
        self.scalars = {name: i for i, name in enumerate(parameters) if name not in arrays_known}
        # Where each tensor's address goes: words of the launcher's storage, and tensor maps that the driver must move,
        # each with how many bytes before the tensor it begins.
        self.addresses = {name: [(self.launcher.word(parameters.index(name)), 0)] for name in self.tensors}
        self.maps: dict[str, list[tuple[int, int]]] = {name: [] for name in self.tensors}
        for i, m in enumerate(entry.maps, start=len(parameters)):
            info = arrays_known[m.tensor]
            encoded, before = _encode(info, m), before_tensor(info, m)
            self.launcher.set_tensormap(i, encoded)
            if tensormap.address_first(encoded, info.pointer - before):
                self.addresses[m.tensor].append((self.launcher.word(i), before))
            else:
                self.maps[m.tensor].append((i, before))

    def order(
        self,
        tensors: Sequence[str],
        scalars: Sequence[str],
        defaults: Mapping[str, Any] = {},
        unchanged: Callable[[], bool] = lambda: True,
    ) -> Launch:
        """A function that launches, given the tensors' pointers and the scalars' values in these orders, with
        `defaults` for other scalars, since another call may have put something else there: see `Launch`.
        """
        made = MadeFunction("run", "pointers, numbers")
        pointers = {name: f"p{i}" for i, name in enumerate(tensors)}
        numbers = {name: f"n{i}" for i, name in enumerate(scalars)}
        for names, given in ((pointers, "pointers"), (numbers, "numbers")):
            made.line(f"{''.join(f'{x}, ' for x in names.values())} = {given}" if names else "")
        made.line(f"if not {made.constant(unchanged)}(): return False")
        self.launching(made, pointers, numbers, defaults)
        made.line("return True")
        run = made.function()
        run.unchanged = unchanged  # asked before the first of several launches
        return run

    def launching(
        self, made: MadeFunction, pointers: dict[str, str], numbers: dict[str, str], defaults: Mapping[str, Any]
    ) -> None:
        """Lines that launch with pointers and numbers that the function has under these names, and `defaults`. They
        return False, and nothing is done, where a number does not fit its parameter.

            with lock:
                words[0] = words[40] = p0               # a tensor, and its map
                words[56] = p1 - 128
                try: put(n0)
                except (struct.error, OverflowError): return False
                try: call = calls[queue := stream(0)]
                except KeyError: call = prepare(queue)
                if status := call(): failed(status, call)
        """
        launcher, constant = self.launcher, made.constant
        words = constant(self.words)
        made.line(f"with {constant(self.lock)}:")  # the storage is this call's, the caller's thread is not
        for name, pointer in pointers.items():
            places: dict[int, str] = {}  # one assignment for all words that are given the same
            for word, before in self.addresses[name]:
                places[before] = f"{places.get(before, '')}{words}[{word}] = "
            for before, targets in places.items():
                made.line(f" {targets}{pointer}{f' - {before}' if before else ''}")
            for index, before in self.maps[name]:
                made.line(f" {constant(launcher.move_tensormap)}({index}, {pointer} - {before})")
        numbers = numbers | {name: constant(number) for name, number in defaults.items()}
        if numbers:
            puts = [f"{constant(launcher.slot(self.scalars[name]))}({number})" for name, number in numbers.items()]
            made.line(f" try: {'; '.join(puts)}")
            made.line(f" except {constant((struct.error, OverflowError))}: return False")
        self.queueing(made, " ")
        if self.waits:
            made.line(f"{constant(driver.synchronize)}(queue, {self.device})")

    def queueing(self, made: MadeFunction, indent: str = "") -> None:
        """Lines that do what `launcher.launch` does, without its call."""
        launcher, constant = self.launcher, made.constant
        made.line(f"{indent}try: call = {constant(launcher.calls)}[queue := {constant(self.stream)}({self.device})]")
        made.line(f"{indent}except KeyError: call = {constant(launcher.prepare)}(queue)")
        made.line(f"{indent}if status := call(): {constant(launcher.failed)}(status, call)")


def call_for(kernel: Any, specialisation: Any, known: dict[str, Any], statics: dict[str, Any]) -> Call:
    """The `Call` for these shapes, strides and static values, which is kept."""
    layout = tuple((x.shape, x.strides, x.kind, x.device) if isinstance(x, ArrayInfo) else None for x in known.values())
    numbers = tuple(leaf_of(x) for name, x in known.items() if name in kernel.by_value)
    key = (kernel.key(specialisation), layout, numbers)
    call: Call | None = kernel.memory.launchers.get(key)
    if call is None:
        call = kernel.memory.launchers.keep(key, Call(kernel, specialisation, known, statics))
    return call


def launch_once(call: Call, known: dict[str, Any]) -> None:
    """Launches with what is known of arguments, a long way."""
    scalars = {name: known[name] for name in call.scalars}
    launched = call.order(call.tensors, list(scalars))(
        [known[name].pointer for name in call.tensors], list(scalars.values())
    )
    assert launched, "numbers that their parameters cannot hold are refused before"


def bind(
    kernel: Any, specialisation: Any, known: dict[str, Any], given: dict[str, Any], statics: dict[str, Any]
) -> Callable[[], None]:
    """A function of no arguments that launches the kernel on the current stream with everything in place."""
    if not any(isinstance(x, ArrayInfo) and x.device is not None for x in known.values()):
        raise ArgumentError(
            f"{kernel.name}.bind launches on a GPU", fix="pass CUDA arrays; call the kernel itself to simulate it"
        )
    call = Call(kernel, specialisation, known, statics)
    check_gradients(call.entry, given)
    made = MadeFunction("launch_bound")
    call.queueing(made)
    outputs = tuple(given[name] for name in call.entry.outputs)
    if tell := overwritten(outputs):
        made.line(f"{made.constant(tell)}({made.constant(outputs)})")
    if call.waits:
        made.line(f"{made.constant(driver.synchronize)}(queue, {call.device})")
    launch_bound = made.function()
    launch_bound.arguments = given  # the arrays live as long as the launcher
    return launch_bound


def _launcher(built: Built, grid: Dim3, known: dict[str, Any], device: int) -> Launcher:
    """A launcher with every argument in place but tensor maps."""
    entry = built.entry
    x, y, z = (-(-g // c) * c for g, c in zip(grid, entry.cluster, strict=True))
    launcher = Launcher(
        driver.load(built.cubin, device, entry.shared_bytes),
        [kind for _, kind in entry.parameters] + ["tensormap"] * len(entry.maps),
        (x, y, z),
        (entry.threads, 1, 1),
        entry.cluster,
        entry.shared_bytes,
        pdl=entry.pdl,
        cooperative=entry.cooperative,
    )
    for i, (name, _) in enumerate(entry.parameters):
        argument = known[name]
        if isinstance(argument, ArrayInfo):
            launcher.set_tensor(i, argument.pointer, argument.shape, argument.strides)
        else:
            launcher.set_scalar(i, argument)
    return launcher


def _encode(info: ArrayInfo, spec: TensorMapSpec) -> tensormap.TensorMap:
    """The tensor map for a tensor's box: (columns in a panel, rows, panels, depth, batch), see `ops/tma.py`."""
    shape, strides, box = map_geometry(info, spec)
    promotion = 128 if spec.swizzle else 256  # long vectors come from memory whole: 1 to 3 % faster
    pointer = info.pointer - before_tensor(info, spec)
    return tensormap.encode(pointer, info.dtype, shape, strides, box, spec.swizzle, l2_promotion=promotion)


def before_tensor(info: ArrayInfo, spec: TensorMapSpec) -> int:
    """How many bytes before the tensor its map begins: as many rows as it has, where copies name their last."""
    if not spec.ended:
        return 0
    shape, strides, _ = map_geometry(info, spec)
    return shape[1] * strides[0]


def map_geometry(info: ArrayInfo, spec: TensorMapSpec) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Shape, byte strides and box of a tensor map, innermost dimension first."""
    size = DTYPES[info.dtype].size
    missing = 4 - len(info.shape)
    batch, depth, rows, cols = (1,) * missing + tuple(info.shape)
    s = (0,) * missing + tuple(x * size for x in info.strides)
    dense = max(16, -(-cols * size // 16) * 16)
    sb, sd, sr = (x if n > 1 else dense for x, n in zip(s[:3], (batch, depth, rows), strict=True))
    ends, se = ((rows + 1,), (sr,)) if spec.ended else ((), ())
    if not spec.panels:
        return (cols, rows, depth, batch, *ends), (sr, sd, sb, *se), (spec.box[1], spec.box[0], 1, 1, *[1] * len(ends))
    panel = spec.swizzle // size if spec.swizzle else LONGEST
    return (
        (panel, rows, cols // panel, depth, batch),
        (sr, panel * size, sd, sb),
        (panel, spec.box[0], spec.box[1] // panel, 1, 1),
    )
