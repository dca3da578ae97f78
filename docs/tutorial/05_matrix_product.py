"""# 5. Matrix product with mma.sync

The tensor cores, operands in shared memory, and why a larger tile is faster.
"""

from typing import Annotated

import numpy as np

import pykittens as pk
from pykittens import Tensor, bf16, f32

# A tensor core multiplies small matrices: `mma.m16n8k16` takes 16 x 16 and 16 x 8 elements of 16 bits and adds their
# product to 16 x 8 float32. The words are those of ThunderKittens: `warp.mma_AB(d, a, b)` adds a @ b to d, `mma_ABt`
# takes b as rows of its transpose, `mm_AB` starts from zero. d is in registers; a and b in registers or in shared
# memory, from where `ldmatrix` brings them into the fragments' layout.

A = Annotated[Tensor, bf16, "M", "K"]
B = Annotated[Tensor, bf16, "K", "N"]
C = Annotated[Tensor, f32, "M", "N"]
TILE = 64


@pk.kernel(warps=4, grid=lambda c: (pk.cdiv(c.cols, TILE), pk.cdiv(c.rows, TILE)))
def product(a: A, b: B, c: C) -> None:
    """c = a @ b: a block makes 64 x 64 of it."""
    row, col = pk.block_index.y, pk.block_index.x
    left, right = pk.shared(pk.st(bf16, TILE, TILE)), pk.shared(pk.st(bf16, TILE, TILE))
    total = pk.block.zeros(f32, TILE, TILE)
    for k in pk.range(pk.cdiv(a.cols, TILE)):
        pk.block.load_into(left, a, (row, k))
        pk.block.load_into(right, b, (k, col))
        pk.block.sync()  # all of both tiles is there
        pk.block.mma_AB(total, left, right)
        pk.block.sync()  # nobody reads them any more
    pk.block.store(c, total, (row, col))


# `pk.block` is all warps of the block together: the tile `total` is 64 x 64, of which each warp holds 16 rows. All of
# them copy the operands, and each multiplies its rows of `left` with all of `right`.
#
# Both barriers are needed. Leave one out, and the simulated GPU says who reads what another is writing: see step 7.

rng = np.random.default_rng(0)
a = rng.integers(-4, 5, (100, 96)).astype(bf16.numpy)
b = rng.integers(-4, 5, (96, 72)).astype(bf16.numpy)
c = np.empty((100, 72), np.float32)
report = product.simulate(a, b, c)
assert np.array_equal(c, a.astype(np.float32) @ b.astype(np.float32))
assert report.bank_conflicts == 0

# M, N and K are multiples of nothing. What lies past an operand's end reads as zero, and adds nothing to a sum.
#
# **Arithmetic intensity.** A block reads 2 * 64 * 64 elements for 64 * 64 * 64 multiplications, however long K is:

flops, bytes_read = report.flops, report.read["global"]
assert flops == 2 * 4 * 64 * 64 * 128  # four blocks (2 x 2), each 64 x 64, K padded to 128
assert 25 < flops / bytes_read < 64

# A Hopper GPU multiplies about 150 pairs of numbers in the time in which it reads one byte from memory, and 80 in that
# of one from L2 (what `pykittens probe` measures). A larger tile reads less for each product: 128 x 256 of it, almost
# three times less than 64 x 64. But its sums must fit into registers, and its operands into shared memory. What comes
# next is the way from here to all that a GPU can do.
