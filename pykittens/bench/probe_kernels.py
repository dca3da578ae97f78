"""The probe's kernels for what is computed and what is read: each reads the multiprocessor's clock before and after a
loop.
"""

from __future__ import annotations

from typing import Annotated, Any

import pykittens as pk
from pykittens import DType, Scalar, Tensor, f32, i32, i64, warp, warpgroup

Ticks = Annotated[Tensor, i32, "N"]  # of each multiprocessor
Steps = Annotated[Scalar, i32]
Value = Annotated[Scalar, f32]  # 0, which the compiler must not know: it leaves out products of zeros
Sink = Annotated[Tensor, f32, "S"]  # what is computed goes somewhere, or it would not be


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


@pk.kernel(warps=lambda warps, **_: warps, grid=lambda sms, blocks, **_: sms * blocks)
def read_rate(
    x: Annotated[Tensor, f32, "N", 256],
    y: Annotated[Tensor, f32, "B", 256],
    sms: Steps,
    passes: Steps,
    *,
    warps: int = 8,
    blocks: int = 4,
) -> None:
    """Sums all rows, `passes` times: a warp reads eight at a time, in each pass others, which its L1 does not have."""
    layout = pk.coalesced(32, 4)
    total = warp.zeros(f32, 8, 256, layout=layout)
    for turn in pk.range(passes):
        for i in pk.range(pk.cdiv(x.rows, sms * blocks * warps * 8)):
            tile = (i * sms * blocks * warps + pk.block_index.x * warps + warp.index + turn * 776) % (x.rows // 8)
            total += warp.load(x, (tile, 0), rows=8, layout=layout)
    with pk.when(warp.index == 0):
        warp.store(y, total.col_sum(), (pk.block_index.x, 0))
