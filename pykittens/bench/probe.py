"""What a GPU does in a clock, measured by kernels written in PyKittens: tensor cores, shared memory, L2, memory, exp2,
copies, barriers.

A kernel reads the multiprocessor's clock before and after a loop of the instruction in question (`probe_kernels`,
`probe_copies`); what a multiprocessor did is divided by how long it took (the median of all). Bandwidths of L2 and
memory are timed by events. Beside each stands what the data sheet promises, where it says.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from pykittens import bf16, e4m3, f32, i8

from . import probe_copies as copies
from . import probe_kernels as kernels

# Per clock and multiprocessor: NVIDIA, "H100 Tensor Core GPU Architecture" (dense products, 132 multiprocessors at 1.83
# GHz: 989 TFLOP/s in bf16) and the CUDA Programming Guide, "Throughput of Native Arithmetic Instructions", 9.0.
SHEETS: dict[tuple[int, int], dict[str, float]] = {
    (9, 0): {"bf16": 4096, "f16": 4096, "e4m3": 8192, "i8": 8192, "f32": 2048, "shared": 128, "exp2": 16},
}
MEMORY = {"H100 80GB HBM3": 3352, "H200": 4800}  # GB/s of a device, by a part of its name


@dataclass(frozen=True)
class Found:
    """One measurement. `promised`: by the data sheet, in the same unit; None where it does not say."""

    what: str
    value: float
    unit: str
    promised: float | None = None

    def __str__(self) -> str:
        share = f" ({self.value / self.promised:.0%} of {self.promised:g})" if self.promised else ""
        return f"{self.what}: {self.value:.4g} {self.unit}{share}"


class Rate(NamedTuple):
    """A kernel of one block a multiprocessor whose steps do `amount` of something each."""

    what: str
    kernel: Any
    steps: int
    statics: dict[str, Any]
    amount: float
    unit: str
    promised: float | None


def rates(features: Collection[str], sheet: Mapping[str, float]) -> Iterator[Rate]:
    """What a multiprocessor does in a clock, where it has the features."""
    flops, lines = "FLOP a clock and SM", "bytes a clock and SM"
    if "wgmma" in features:
        for dtype in (bf16, e4m3):
            for n in (64, 128, 256):
                for registers in (False, True) if dtype is bf16 and n == 256 else (False,):
                    what = f"wgmma {dtype}, 64 x {n}, A from {'registers' if registers else 'shared memory'}"
                    statics = {"dtype": dtype, "n": n, "registers": registers}
                    amount = 2 * (2 * 64 * n * 128 // dtype.size)
                    yield Rate(what, kernels.wgmma_rate, 400, statics, amount, flops, sheet.get(dtype.name))
    for dtype, registers in ((bf16, True), (bf16, False), (e4m3, False), (i8, False), (f32, False)):
        if dtype is e4m3 and "fp8 mma" not in features:
            continue
        name = "tf32" if dtype is f32 else dtype.name
        what = f"mma.sync {name}, operands from {'registers' if registers else 'shared memory'}"
        statics = {"dtype": dtype, "registers": registers}
        amount = 8 * 2 * 16 * 64 * 128 // dtype.size
        yield Rate(what, kernels.mma_rate, 400, statics, amount, flops, sheet.get(dtype.name))
    for stride in (1, 2, 4, 8, 16, 32):
        what = "shared memory, no conflicts" if stride == 1 else f"shared memory, {stride}-way conflicts"
        promised = sheet.get("shared") if stride == 1 else None
        yield Rate(what, kernels.shared_rate, 200, {"stride": stride}, 16 * 8 * 128, lines, promised)
    if "stmatrix" in features:
        for name, store in (("ldmatrix", False), ("stmatrix", True)):
            what = f"shared memory, {name}"
            yield Rate(what, copies.matrix_rate, 400, {"store": store}, 16 * 2048, lines, sheet.get("shared"))
    yield Rate("exp2", kernels.exp2_rate, 400, {}, 16 * 16 * 32, "a clock and SM", sheet.get("exp2"))


def launched(rate: Rate, counts: Sequence[int]) -> None:
    """Launches a rate's kernel once for each number of steps: for a profiler."""
    import torch

    from ..gpu import driver

    sms = driver.multiprocessors()
    ticks, sink = torch.zeros(sms, dtype=torch.int32, device="cuda"), torch.empty(sms, device="cuda")
    for count in counts:
        rate.kernel(ticks, count, sink, 0.0, **rate.statics)
    torch.cuda.synchronize()


def run() -> Iterator[Found]:
    """All measurements on torch's current GPU, one after another. A feature that it lacks is left out."""
    import torch

    from ..gpu import driver

    sheet = SHEETS.get(driver.capability(), {})
    features = driver.architecture().features
    sms = driver.multiprocessors()

    sink, flushed = torch.empty(sms, device="cuda"), torch.empty(1 << 26, device="cuda")

    def cycles(kernel: Any, steps: int, blocks: int, *before: Any, cold: bool = False, **statics: Any) -> float:
        """Clocks of a step: what twice as many steps take more, so that the rest falls out. `cold`: L2 is empty."""
        found, computes = [], any(name == "sink" for name, _ in kernel.signature.runtime)
        for count in (steps, 2 * steps):
            ticks = torch.zeros(blocks, dtype=torch.int32, device="cuda")
            for _ in range(2):
                if cold:
                    flushed.zero_()
                kernel(*before, ticks, count, *((sink, 0.0) if computes else ()), **statics)
            found.append(statistics.median(ticks.tolist()))
        return (found[1] - found[0]) / steps

    for rate in rates(features, sheet):
        step = cycles(rate.kernel, rate.steps, sms, **rate.statics)
        yield Found(rate.what, rate.amount / step, rate.unit, rate.promised)
    yield Found("shared memory, latency", cycles(kernels.shared_latency, 1000, 1), "clocks")
    for name, megabytes in (("L2", 4), ("memory", 1024)):
        count, stride = megabytes << 18, 4099  # words; a stride that visits other lines and pages
        chain = (torch.arange(count, device="cuda", dtype=torch.int64) + stride * 32) % count
        yield Found(
            f"{name}, latency", cycles(kernels.memory_latency, 2000, 1, chain.int(), cold=name == "memory"), "clocks"
        )
    for warps in (4, 8, 16):
        yield Found(f"a barrier of {warps} warps", cycles(kernels.barrier_cost, 1000, 1, warps=warps), "clocks")
    if "clusters" in features:
        yield Found("mbarrier, there and back", cycles(copies.mbarrier_cost, 1000, 1), "clocks")
        yield Found("a barrier of a cluster of two", cycles(copies.cluster_cost, 1000, 1), "clocks")
        for where, own in (("the other block's", False), ("its own, by the same instructions", True)):
            found = 16 * 4096 / cycles(copies.remote_rate, 200, sms // 2 * 2, own=own)
            yield Found(f"shared memory of a cluster, {where}", found, "bytes a clock and SM")
    yield from _lines()
    yield from _copies(sms, cycles)
    yield from _bandwidths(sms)


def _lines() -> Iterator[Found]:
    """L2 has two halves: to a multiprocessor one is near."""
    import torch

    ticks = [torch.zeros(1024, dtype=torch.int32, device="cuda") for _ in range(2)]
    lines = torch.zeros(1024 * 32, dtype=torch.int32, device="cuda")
    for steps, found in zip((50, 100), ticks, strict=True):
        copies.line_latency(lines, found, steps)
    clocks = sorted(((ticks[1] - ticks[0]) / 50).tolist())
    yield Found("L2, latency of near lines", clocks[len(clocks) // 10], "clocks")
    yield Found("L2, latency of far lines", clocks[-len(clocks) // 10], "clocks")


def _copies(sms: int, cycles: Callable[..., float]) -> Iterator[Found]:
    """Into shared memory in three ways: what they reach, and what they cost the warps that start them."""
    import torch

    from ..gpu import driver
    from .timing import in_turn

    y = torch.empty(sms * 2, device="cuda")
    for way in copies.WAYS if "tma" in driver.architecture().features else copies.WAYS[:2]:
        few = torch.zeros(512, 64, device="cuda", dtype=torch.bfloat16)
        yield Found(
            f"16 KiB into shared memory by {way}, busy", cycles(copies.copy_cost, 200, 1, few, way=way), "clocks"
        )
        for name, megabytes, passes in (("L2", 24, 32), ("memory", 4096, 1)):
            x = torch.zeros(megabytes << 13, 64, device="cuda", dtype=torch.bfloat16)
            found = in_turn({"": copies.copy_rate.bind(x, y, sms, passes, way=way)})[""]
            yield Found(f"{name} into shared memory by {way}", x.numel() * 2 * passes / found.median / 1e6, "GB/s")


def _bandwidths(sms: int) -> Iterator[Found]:
    import torch

    from ..gpu import driver
    from .timing import in_turn

    promised = next((rate for name, rate in MEMORY.items() if name in driver.device_name()), None)
    y = torch.empty(sms * 4, 256, device="cuda")
    for name, megabytes, passes in (("L2, read", 24, 32), ("memory, read", 4096, 1)):
        x = torch.zeros(megabytes << 10, 256, device="cuda")
        found = in_turn({"": kernels.read_rate.bind(x, y, sms, passes)})[""]
        rate = x.numel() * 4 * passes / found.median / 1e6
        yield Found(name, rate, "GB/s", promised if name.startswith("memory") else None)
    x = torch.zeros(2048 << 10, 256, device="cuda")
    for warps in (1, 2, 4, 8, 16):
        found = in_turn({"": kernels.read_rate.bind(x, y[:sms], sms, 1, warps=warps, blocks=1)})[""]
        yield Found(f"memory, read by {warps} warps an SM", x.numel() * 4 / found.median / 1e6, "GB/s", promised)
    few = torch.zeros(1, dtype=torch.int32, device="cuda")
    launch = copies.nothing.bind(few)
    found = in_turn({"": lambda: [launch() for _ in range(500)]})[""]
    yield Found("a launch behind another", found.median / 500 * 1e3, "us")
    a = torch.zeros(1 << 29, device="cuda", dtype=torch.bfloat16)
    b = torch.empty_like(a)
    found = in_turn({"": lambda: b.copy_(a)})[""]
    yield Found("memory, torch's copy (read and written)", 4 * a.numel() / found.median / 1e6, "GB/s", promised)


def rows() -> list[dict[str, Any]]:
    """All measurements as rows of results."""
    return [asdict(found) for found in run()]
