"""What a GPU does in a clock, measured by kernels written in PyKittens: tensor cores, shared memory, L2, memory, exp2.

A kernel reads the multiprocessor's clock before and after a loop of the instruction in question; what a multiprocessor
did is divided by how long it took (the median of all). Bandwidths of L2 and memory are timed by events. Beside each
stands what the data sheet promises, where it says.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import pykittens as pk
from pykittens import DType, Scalar, Tensor, bf16, e4m3, f32, i8, i32, i64, warp, warpgroup

Ticks = Annotated[Tensor, i32, "N"]  # of each multiprocessor
Steps = Annotated[Scalar, i32]
Value = Annotated[Scalar, f32]  # 0, which the compiler must not know: it leaves out products of zeros
Sink = Annotated[Tensor, f32, "S"]  # what is computed goes somewhere, or it would not be

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


def clock(after: Any) -> Any:
    """The multiprocessor's clock, once the tile `after` has been computed."""
    now = pk.var(i64)
    pk.cuda(
        'asm volatile("mov.u64 %0, %%clock64;" : "=l"({now}) : "f"((float){x}[0]) : "memory");',
        reads={"x": after},
        writes={"now": now},
        numpy=lambda x, now: 0,
    )
    return now


def tell(ticks: Any, begin: Any, end: Any, sink: Any = None, made: Any = None) -> None:
    """The first warp of the block tells how long it took, and what it has made."""
    with pk.when(warp.index == 0):
        warp.set(ticks, pk.block_index.x, pk.cast(end - begin, i32))
        if made is not None:
            warp.set(sink, pk.block_index.x, pk.cast(made, f32))


@pk.kernel(warps=8, grid=lambda ticks, **_: ticks.cols)
def wgmma_rate(
    ticks: Ticks, steps: Steps, sink: Sink, value: Value, *, dtype: DType, n: int, registers: bool = False
) -> None:
    """Products of 64 x n x 128 bytes by two warpgroups, two under way in each."""
    depth = 128 // dtype.size
    left, right = pk.shared(pk.st(dtype, 64, depth)), pk.shared(pk.st(dtype, n, depth))
    with pk.when(warp.index == 0):
        for room in (left, right):
            for i in pk.range(room.rows // 16):
                warp.store(room.part(i * 16, 0, 16, depth), warp.full(f32, 16, depth, value))
    pk.block.sync()
    total = warpgroup.zeros(f32, 64, n)
    mine = warpgroup.full(dtype, 64, depth, value) if registers else left
    begin = clock(total)
    warpgroup.mma_ABt(total, mine, right)
    for _ in pk.range(steps):
        warpgroup.mma_ABt(total, mine, right)
        warpgroup.wait(pending=1)
    warpgroup.wait(total)
    end, made = clock(total), total.row_max()
    room = pk.shared(pk.sv(f32, 64), count=2)[warpgroup.index]
    warpgroup.store(room, made)
    warpgroup.sync()
    tell(ticks, begin, end, sink, room[0])


@pk.kernel(warps=8, grid=lambda ticks, **_: ticks.cols)
def mma_rate(ticks: Ticks, steps: Steps, sink: Sink, value: Value, *, dtype: DType, registers: bool = False) -> None:
    """Products of 16 x 64 x 128 bytes by eight warps, with operands from shared memory or from registers."""
    depth = 128 // dtype.size
    held, stored = (f32, f32) if dtype.kind == "f" else (i32, i32)
    total = warp.zeros(held, 16, 64)
    left: Any
    right: Any
    if registers:
        left, right = warp.full(dtype, 16, depth, value), warp.full(dtype, 64, depth, value)
    else:
        left, right = pk.shared(pk.st(dtype, 16, depth)), pk.shared(pk.st(dtype, 64, depth))
        with pk.when(warp.index == 0):
            zero = value if dtype.kind == "f" else pk.cast(value, i32)
            warp.store(left, warp.full(stored, 16, depth, zero))
            warp.store(right, warp.full(stored, 64, depth, zero))
        pk.block.sync()
    begin = clock(total)
    for _ in pk.range(steps):
        warp.mma_ABt(total, left, right)
    tell(ticks, begin, clock(total), sink, total.row_max().max())


LOADS = """
u32 sum = 0;
for (int i = 0; i < {steps}; i++) {
  #pragma unroll
  for (int j = 0; j < 8; j++) {
    u32 x, at = {room} + (threadIdx.x % 32 * {stride} + j * 32) % 1024 * 4;
    asm volatile("ld.volatile.shared.u32 %0, [%1];" : "=r"(x) : "r"(at));
    sum += x;
  }
}
{out}[0] += sum == 12345u ? 1.0f : 0.0f;
"""


@pk.kernel(warps=16, grid=lambda ticks, **_: ticks.cols)
def shared_rate(ticks: Ticks, steps: Steps, sink: Sink, value: Value, *, stride: int) -> None:
    """Loads of 4 bytes a thread, `stride` words apart: of 32 neighbours gcd(stride, 32) share a bank."""
    room, out = pk.shared(pk.sv(f32, 1024)), warp.full_vec(f32, 32, value)
    with pk.when(warp.index == 0):
        warp.store(room, warp.full_vec(f32, 1024, value))
    pk.block.sync()
    begin = clock(out)
    pk.cuda(
        LOADS,
        reads={"steps": steps, "room": room, "stride": stride},
        writes={"out": out},
        numpy=lambda steps, room, stride, out: out,
        touches={"room": lambda i: -1 + 0 * i},
    )
    tell(ticks, begin, clock(out), sink, out.max())


@pk.kernel(warps=1, grid=1)
def shared_latency(ticks: Ticks, steps: Steps, sink: Sink, value: Value) -> None:
    """One load after another, each of the address that the last gave."""
    room, out = pk.shared(pk.sv(f32, 32)), warp.full_vec(f32, 32, value)
    begin = clock(out)
    pk.cuda(
        'asm volatile("st.shared.u32 [%0], %0;" :: "r"({room}) : "memory");\n'
        "u32 p = {room};\n"
        'for (int i = 0; i < {steps}; i++) asm volatile("ld.shared.u32 %0, [%0];" : "+r"(p) :: "memory");\n'
        "{out}[0] += p == 12345u ? 1.0f : 0.0f;",
        reads={"steps": steps},
        writes={"out": out, "room": room},
        numpy=lambda steps, room, out: (out, room),
    )
    tell(ticks, begin, clock(out), sink, out.max())


@pk.kernel(warps=1, grid=1)
def memory_latency(chain: Annotated[Tensor, i32, "M"], ticks: Ticks, steps: Steps, sink: Sink, value: Value) -> None:
    """One load after another: each element says which comes next."""
    at, out = pk.var(i32, 0), warp.full_vec(f32, 32, value)
    begin = clock(out)
    for _ in pk.range(steps):
        at.set(chain[at])
    tell(ticks, begin, clock(out + pk.cast(at, f32)), sink, at)


@pk.kernel(warps=16, grid=lambda ticks, **_: ticks.cols)
def exp2_rate(ticks: Ticks, steps: Steps, sink: Sink, value: Value) -> None:
    """Exponentials of 16 warps, 16 in a row in each thread."""
    x = warp.full(f32, 16, 32, value)
    begin = clock(x)
    for _ in pk.range(steps):
        x[:] = pk.exp2(x)
    tell(ticks, begin, clock(x), sink, x.row_max().max())


@pk.kernel(warps=lambda warps, **_: warps, grid=1)
def barrier_cost(ticks: Ticks, steps: Steps, *, warps: int) -> None:
    """Barriers of a block, one after another."""
    x = warp.full(f32, 16, 16, 0.5)
    begin = clock(x)
    for _ in pk.range(steps):
        pk.block.sync()
    tell(ticks, begin, clock(x))


@pk.kernel(warps=8, grid=lambda sms, **_: sms * 4)
def read_rate(
    x: Annotated[Tensor, f32, "N", 256], y: Annotated[Tensor, f32, "B", 256], sms: Steps, passes: Steps
) -> None:
    """Sums all rows, `passes` times: a warp reads eight at a time, in each pass others, which its L1 does not have."""
    layout = pk.coalesced(32, 4)
    total = warp.zeros(f32, 8, 256, layout=layout)
    for turn in pk.range(passes):
        for i in pk.range(pk.cdiv(x.rows, sms * 256)):  # 8 rows of 32 warps of each multiprocessor
            tile = (i * sms * 32 + pk.block_index.x * 8 + warp.index + turn * 776) % (x.rows // 8)
            total += warp.load(x, (tile, 0), rows=8, layout=layout)
    with pk.when(warp.index == 0):
        warp.store(y, total.col_sum(), (pk.block_index.x, 0))


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

    if "wgmma" in features:
        for dtype in (bf16, e4m3):
            for n in (64, 128, 256):
                for registers in (False, True) if dtype is bf16 and n == 256 else (False,):
                    step = cycles(wgmma_rate, 400, sms, dtype=dtype, n=n, registers=registers)
                    flops = 2 * (2 * 64 * n * 128 // dtype.size)
                    where = "registers" if registers else "shared memory"
                    what = f"wgmma {dtype}, 64 x {n}, A from {where}"
                    yield Found(what, flops / step, "FLOP a clock and SM", sheet.get(dtype.name))
    for dtype, registers in ((bf16, True), (bf16, False), (e4m3, False), (i8, False), (f32, False)):
        if dtype is e4m3 and "fp8 mma" not in features:
            continue
        step = cycles(mma_rate, 400, sms, dtype=dtype, registers=registers)
        name = "tf32" if dtype is f32 else dtype.name
        what = f"mma.sync {name}, operands from {'registers' if registers else 'shared memory'}"
        yield Found(what, 8 * 2 * 16 * 64 * 128 // dtype.size / step, "FLOP a clock and SM", sheet.get(dtype.name))
    for stride in (1, 2, 4, 8, 16, 32):
        step = cycles(shared_rate, 200, sms, stride=stride)
        what = "shared memory, no conflicts" if stride == 1 else f"shared memory, {stride}-way conflicts"
        yield Found(what, 16 * 8 * 128 / step, "bytes a clock and SM", sheet.get("shared") if stride == 1 else None)
    yield Found("shared memory, latency", cycles(shared_latency, 1000, 1), "clocks")
    for name, megabytes in (("L2", 4), ("memory", 1024)):
        count, stride = megabytes << 18, 4099  # words; a stride that visits other lines and pages
        chain = (torch.arange(count, device="cuda", dtype=torch.int64) + stride * 32) % count
        yield Found(f"{name}, latency", cycles(memory_latency, 2000, 1, chain.int(), cold=name == "memory"), "clocks")
    yield Found("exp2", 16 * 16 * 32 / cycles(exp2_rate, 400, sms), "a clock and SM", sheet.get("exp2"))
    for warps in (4, 8, 16):
        yield Found(f"a barrier of {warps} warps", cycles(barrier_cost, 1000, 1, warps=warps), "clocks")
    yield from _bandwidths(sms)


def _bandwidths(sms: int) -> Iterator[Found]:
    import torch

    from ..gpu import driver
    from .timing import in_turn

    promised = next((rate for name, rate in MEMORY.items() if name in driver.device_name()), None)
    y = torch.empty(sms * 4, 256, device="cuda")
    for name, megabytes, passes in (("L2, read", 24, 32), ("memory, read", 4096, 1)):
        x = torch.zeros(megabytes << 10, 256, device="cuda")
        found = in_turn({"": read_rate.bind(x, y, sms, passes)})[""]
        rate = x.numel() * 4 * passes / found.median / 1e6
        yield Found(name, rate, "GB/s", promised if name.startswith("memory") else None)
    a = torch.zeros(1 << 29, device="cuda", dtype=torch.bfloat16)
    b = torch.empty_like(a)
    found = in_turn({"": lambda: b.copy_(a)})[""]
    yield Found("memory, torch's copy (read and written)", 4 * a.numel() / found.median / 1e6, "GB/s", promised)


def rows() -> list[dict[str, Any]]:
    """All measurements as rows of results."""
    return [asdict(found) for found in run()]
