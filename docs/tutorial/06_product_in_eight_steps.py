"""# 6. The product again, in eight steps

From a kernel that anybody would write to one beside cuBLAS. Each step changes one thing, and says why.
"""

from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np

import pykittens as pk
from pykittens import Scalar, Tensor, bf16, f32, i32, warp, warpgroup

A = Annotated[Tensor, bf16, "M", "K"]
B = Annotated[Tensor, bf16, "K", "N"]
C = Annotated[Tensor, bf16, "M", "N"]

# The speeds, of 4096 x 4096 x 4096 in bfloat16, as recorded:
#
# table: ladder
#
# ## Step 1: registers
#
# A warp makes 16 x 16 elements, and loads the fragments of both operands where it needs them. Each element of a is read
# by N / 16 warps, and nothing is shared.


@pk.kernel(warps=4, grid=lambda c: (pk.cdiv(c.cols, 32), pk.cdiv(c.rows, 32)))
def registers(a: A, b: B, c: C) -> None:
    """c = a @ b: a warp 16 x 16."""
    row, col = pk.block_index.y * 2 + warp.index // 2, pk.block_index.x * 2 + warp.index % 2
    total = warp.zeros(f32, 16, 16)
    for k in pk.range(pk.cdiv(a.cols, 16)):
        left = warp.load(a, (row, k), rows=16, cols=16)
        right = warp.load(b, (k, col), rows=16, cols=16, layout="col")
        warp.mma_AB(total, left, right)
    warp.store(c, total.to(bf16), (row, col))


# ## Step 2: shared memory
#
# Four warps share 64 x 64 elements: each operand tile is read once for all of them, in lines that memory likes.


@pk.kernel(warps=4, grid=lambda c: (pk.cdiv(c.cols, 64), pk.cdiv(c.rows, 64)))
def shared(a: A, b: B, c: C) -> None:
    """c = a @ b: a block 64 x 64."""
    row, col = pk.block_index.y, pk.block_index.x
    left, right = pk.shared(pk.st(bf16, 64, 64)), pk.shared(pk.st(bf16, 64, 64))
    total = pk.block.zeros(f32, 64, 64)
    for k in pk.range(pk.cdiv(a.cols, 64)):
        pk.block.load_into(left, a, (row, k))
        pk.block.load_into(right, b, (k, col))
        pk.block.sync()
        pk.block.mma_AB(total, left, right)
        pk.block.sync()
    pk.block.store(c, total.to(bf16), (row, col))


# ## Step 3: copies that do not wait, and a larger tile
#
# In step 2 the tensor cores wait while memory answers, and memory waits while they multiply. `load_async` (cp.async)
# starts a copy and goes on. Three slots take turns: two are on their way while one is multiplied. 128 x 128 elements
# halve what is read for each product.


@pk.kernel(warps=8, grid=lambda c: (pk.cdiv(c.cols, 128), pk.cdiv(c.rows, 128)))
def asynchronous(a: A, b: B, c: C) -> None:
    """c = a @ b: a block 128 x 128, two copies under way."""
    row, col = pk.block_index.y, pk.block_index.x
    left, right = pk.shared(pk.st(bf16, 128, 64), count=3), pk.shared(pk.st(bf16, 64, 128), count=3)
    total = pk.block.zeros(f32, 128, 128)

    def load(k: Any) -> None:
        """Starts both copies of slot k; past the end they are zeros."""
        pk.block.load_async(left[k % 3], a, (row, k))
        pk.block.load_async(right[k % 3], b, (k, col))
        pk.block.commit()

    load(0)
    load(1)
    for k in pk.range(pk.cdiv(a.cols, 64)):
        pk.block.wait_loads(1)  # of the copies that were started, only the last may be unfinished
        pk.block.sync()
        load(k + 2)
        pk.block.mma_AB(total, left[k % 3], right[k % 3])
    pk.block.wait_loads()  # of the zeros past the end
    pk.block.store(c, total.to(bf16), (row, col))


# ## Step 4: wgmma
#
# Hopper's tensor cores are twice as fast as mma.sync can feed them. `wgmma` is one instruction of four warps, a
# *warpgroup*: it reads both operands from shared memory by itself, so no registers are spent on them and no ldmatrix is
# issued. It runs on its own until `warpgroup.wait`; the fences that the memory model wants are the compiler's work.
# The operands lie in shared memory as TMA and ldmatrix have them, 16 bytes in four banks, the columns of a row in
# another order in each of eight rows; the sums are in registers, 16 rows a warp:
#
# picture: st(bf16, 16, 64)
#
# picture: rt(f32, 64, 16, row, 4)


@pk.kernel(warps=8, grid=lambda c: (pk.cdiv(c.cols, 128), pk.cdiv(c.rows, 128)))
def wgmma(a: A, b: B, c: C) -> None:
    """c = a @ b: as before, multiplied by two warpgroups."""
    row, col, me = pk.block_index.y, pk.block_index.x, warpgroup.index
    left, right = pk.shared(pk.st(bf16, 128, 64), count=3), pk.shared(pk.st(bf16, 64, 128), count=3)
    total = warpgroup.zeros(f32, 64, 128)

    def load(k: Any) -> None:
        """Starts both copies of slot k."""
        pk.block.load_async(left[k % 3], a, (row, k))
        pk.block.load_async(right[k % 3], b, (k, col))
        pk.block.commit()

    load(0)
    load(1)
    for k in pk.range(pk.cdiv(a.cols, 64)):
        pk.block.wait_loads(1)
        pk.block.sync()
        warpgroup.mma_AB(total, left[k % 3].part(me * 64, 0, 64, 64), right[k % 3])
        warpgroup.wait(total)
        pk.block.sync()
        load(k + 2)
    pk.block.wait_loads()
    warpgroup.store(c, total.to(bf16), (row * 2 + me, col))


# ## Step 5: TMA
#
# Until here 256 threads compute addresses, 16 bytes at a time. The tensor memory accelerator copies a whole tile for
# one instruction of one thread, swizzles it, and reports to a barrier in shared memory when the bytes have landed. A
# barrier has phases: `expect` promises bytes to the current one, `wait` returns when that has ended.


@pk.kernel(warps=8, grid=lambda c: (pk.cdiv(c.cols, 128), pk.cdiv(c.rows, 128)))
def tma(a: A, b: B, c: C) -> None:
    """c = a @ b: as before, copied by the tensor memory accelerator."""
    row, col, me, steps = pk.block_index.y, pk.block_index.x, warpgroup.index, pk.cdiv(a.cols, 64)
    left, right = pk.shared(pk.st(bf16, 128, 64), count=3), pk.shared(pk.st(bf16, 64, 128), count=3)
    landed = pk.barrier(1, 3)
    total = warpgroup.zeros(f32, 64, 128)

    def load(k: Any) -> None:
        """Starts both copies of slot k."""
        slot = k % 3
        pk.tma.expect(landed[slot], left[slot], right[slot])
        pk.tma.load(left[slot], a, (row, k), landed[slot])
        pk.tma.load(right[slot], b, (k, col), landed[slot])

    load(0)
    with pk.when(steps > 1):
        load(1)
    for k in pk.range(steps):
        pk.wait(landed[k % 3], k // 3 % 2)
        warpgroup.mma_AB(total, left[k % 3].part(me * 64, 0, 64, 64), right[k % 3])
        warpgroup.wait(total)
        pk.block.sync()
        with pk.when(k + 2 < steps):
            load(k + 2)
    warpgroup.store(c, total.to(bf16), (row * 2 + me, col))


# ## Step 6: a ring, and roles
#
# In step 5 everybody meets in every step, so the tensor cores wait for the slowest. Let one warp do nothing but load,
# and two warpgroups nothing but multiply. Between them is a *ring*: slots that are filled, read, and given back. The
# loader waits for an empty slot, the multipliers for a full one, and nobody else for anything; phases, promised bytes
# and arrivals are derived. Three slots, fill after fill; a reader waits for the parity that stands behind the tile:
#
# picture: ring(3, 8)
#
# Where a reader does nothing between two fills, `with ring.reading() as slot:` is `read` and `release` in one.
#
# A loader needs few registers, a multiplier many: 128 x 256 sums are 128 registers a thread of two warpgroups.
# `registers=` moves them from one to the other.


def load_role(ring: Any, a: Any, b: Any, tiles: Any) -> None:
    """One warp fills the ring with the operands of each tile."""
    with pk.role("load", warps=4, registers=24):
        for row, col in tiles():
            for k in pk.range(pk.cdiv(a.cols, 64)):
                with ring.fill() as slot:
                    pk.tma.load(slot.left, a, (row, k))
                    pk.tma.load(slot.right, b, (k, col))


def multiply_role(ring: Any, a: Any, c: Any, tiles: Any) -> None:
    """Two warpgroups multiply 64 rows of each tile."""
    leaving = pk.shared(pk.st(bf16, 64, 256), count=2, name="leaving")
    with pk.role("multiply", warpgroups=2, registers=240) as me:
        total = warpgroup.zeros(f32, 64, 256)
        for row, col in tiles():
            total[:] = 0.0
            for _ in pk.range(pk.cdiv(a.cols, 64)):
                slot = ring.read()
                warpgroup.mma_AB(total, slot.left.part(me * 64, 0, 64, 64), slot.right)
                warpgroup.wait(total)
                ring.release()
            warpgroup.tma.wait(read=True)  # the tile before has left
            warpgroup.sync()
            warpgroup.store(leaving[me], total.to(bf16))
            warpgroup.sync()
            warpgroup.tma.store(c, leaving[me], pk.at(row * 128 + me * 64, col * 256))
            warpgroup.tma.commit()
        warpgroup.tma.wait(read=True)


def ring_of(stages: int) -> Any:
    """Slots of 128 x 64 and 64 x 256."""
    return pk.ring(stages, left=pk.st(bf16, 128, 64), right=pk.st(bf16, 64, 256))


@pk.kernel(warps=12, grid=lambda c: (pk.cdiv(c.cols, 256), pk.cdiv(c.rows, 128)))
def roles(a: A, b: B, c: C) -> None:
    """c = a @ b: a block 128 x 256, by a loader and two multipliers."""

    def tiles() -> Iterator[tuple[Any, Any]]:
        yield pk.block_index.y, pk.block_index.x

    ring = ring_of(3)
    load_role(ring, a, b, tiles)
    multiply_role(ring, a, c, tiles)


# ## Step 7: blocks that stay
#
# A block that ends takes its ring with it: the next one starts cold, and nothing is loaded while the last tile is
# written. Now there is one block for each multiprocessor, which takes one tile after another; the loader runs ahead
# into the next tile while the sums of this one leave. And the order is chosen: `pk.grouped` walks eight rows of tiles
# before it goes on to the next column, so that the blocks at work at one time read each operand from L2 together. Six
# blocks, a matrix of 5 x 6 tiles, four rows at a time:
#
# picture: grouped(5, 6, 4, blocks=6)


@pk.kernel(warps=12, grid=lambda c, sms: min(sms, pk.cdiv(c.cols, 256) * pk.cdiv(c.rows, 128)))
def persistent(a: A, b: B, c: C, sms: Annotated[Scalar, i32]) -> None:
    """c = a @ b: a block for each of `sms` multiprocessors."""

    def tiles() -> Iterator[tuple[Any, Any]]:
        yield from pk.grouped(pk.cdiv(c.rows, 128), pk.cdiv(c.cols, 256), 8)

    ring = ring_of(3)
    load_role(ring, a, b, tiles)
    multiply_role(ring, a, c, tiles)


# ## Step 8: clusters
#
# Two blocks that stand below one another need the same tile of b. As a *cluster* they run on neighbouring
# multiprocessors: each loads half of it, and the hardware delivers it to both (multicast). L2 is asked for less. At
# this size that gains nothing: L2 keeps up, and two blocks that wait for one another lose a little. It pays where tiles
# are smaller, or an operand is read by more blocks; the library asks a model of the GPU which shape wants it.


@pk.kernel(
    warps=12,
    cluster=2,
    grid=lambda c, sms: 2 * min(sms // 2, pk.cdiv(c.cols, 256) * pk.cdiv(c.rows, 256)),
)
def clusters(a: A, b: B, c: C, sms: Annotated[Scalar, i32]) -> None:
    """c = a @ b: two blocks share the tiles of b."""

    def tiles() -> Iterator[tuple[Any, Any]]:
        for row, col in pk.grouped(pk.cdiv(c.rows, 256), pk.cdiv(c.cols, 256), 4):
            yield row * 2 + pk.cluster.rank, col

    ring = ring_of(3)
    with pk.role("load", warps=4, registers=24):
        for row, col in tiles():
            for k in pk.range(pk.cdiv(a.cols, 64)):
                with ring.fill() as slot:
                    pk.tma.load(slot.left, a, (row, k))
                    pk.tma.share(slot.right, b, (k, col))
    multiply_role(ring, a, c, tiles)
    pk.cluster.sync()  # nobody ends while another still sends to it


# ## All of them give the same
#
# Small integers make the sums exact, so that every step must have every bit right, at sizes that are multiples of no
# tile. They are multiples of 8: TMA takes rows that begin at multiples of 16 bytes, and refuses others when the kernel
# is traced. cp.async takes 4, and where rows begin at less `load_async` copies at once, as `load_into` does.

STEPS: dict[str, tuple[pk.Kernel, bool]] = {  # by name: the kernel, and whether it takes the multiprocessors' number
    "1 registers": (registers, False),
    "2 shared memory": (shared, False),
    "3 asynchronous copies": (asynchronous, False),
    "4 wgmma": (wgmma, False),
    "5 TMA": (tma, False),
    "6 ring and roles": (roles, False),
    "7 persistent": (persistent, True),
    "8 clusters": (clusters, True),
}

if __name__ == "__main__":
    rng = np.random.default_rng(0)
    a = rng.integers(-2, 3, (136, 72)).astype(bf16.numpy)
    b = rng.integers(-2, 3, (72, 264)).astype(bf16.numpy)
    expected = a.astype(np.float32) @ b.astype(np.float32)
    for name, (kernel, counts) in STEPS.items():
        c = np.full((136, 264), np.nan).astype(bf16.numpy)
        kernel(a, b, c, *([2] if counts else []))
        assert np.array_equal(c.astype(np.float32), expected.astype(bf16.numpy).astype(np.float32)), name

# What is still between step 8 and the library's `pk.matmul`: a product that is left running while the next is issued
# (`warpgroup.wait(pending=1)`), a ring with more stages, sums that leave in parts, tiles of other sizes for small
# products, operands stored by columns, and a choice among twelve configurations. It is `pykittens/kernels/gemm.py`, two
# hundred lines to read next.
