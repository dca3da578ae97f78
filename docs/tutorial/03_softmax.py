"""# 3. Softmax

A kernel that reads and writes memory once, and how to tell whether it is as fast as memory.
"""

from typing import Annotated

import numpy as np

import pykittens as pk
from pykittens import Tensor, bf16, f32, warp

# Each row of a matrix becomes exp(x - max) / sum(exp(x - max)). Torch's eager operators would read and write the matrix
# four times: once for each of maximum, difference, exponential, quotient. All that is needed fits into registers.

Rows = Annotated[Tensor, (bf16, f32), "N", pk.static("D")]

# `pk.static("D")`: the number of columns is a Python int in the kernel, so that a tile can have that many. Another D is
# another program, compiled once and kept on disk.


@pk.kernel(warps=4, grid=lambda x: pk.cdiv(x.rows, 16))
def softmax(x: Rows, y: Rows) -> None:
    """Softmax of every row; a warp takes four rows at a time."""
    wide = 16 // x.dtype.size  # elements of 16 bytes
    layout = pk.coalesced(8, wide)
    me = pk.block_index.x * warp.count + warp.index
    tile = warp.load(x, (me, 0), rows=4, dtype=f32, layout=layout)
    tile[:] = pk.exp(tile - tile.row_max())
    warp.store(y, tile / tile.row_sum(), (me, 0))


# * `dtype=f32`: bf16 in memory, float32 in registers. Sums of 16-bit floats lose bits, memory is what costs.
# * `tile.row_max()` is a column vector: one value a row. Beside a tile it spreads along the rows.
# * `tile[:] = ...` changes the tile in place; without the brackets Python would only rename it.
# * Four rows at a time of 8 threads each: any N works, since rows past the end read as zero and are not written.
# * `grid=` is a function of the arguments that it names: here of x alone.

rng = np.random.default_rng(0)
x = (4 * rng.standard_normal((37, 128))).astype(bf16.numpy)
y = np.empty_like(x)
report = softmax.simulate(x, y)
e = np.exp(x.astype(np.float64))
assert np.abs(y.astype(np.float64) - e / e.sum(1, keepdims=True)).max() < 4e-3

# **Any width.** A row of threads takes 8 * `wide` columns at a time, and D may be no multiple of that. Then the tile is
# wider than the row (`cols=`); what lies past the row's end reads as zero and is not written. exp(0) is 1, so it must
# not count: `pk.right_fill` puts -infinity there.


@pk.kernel(warps=4, grid=lambda x: pk.cdiv(x.rows, 16))
def softmax_of_any_width(x: Rows, y: Rows) -> None:
    """The same for any D."""
    wide = 16 // x.dtype.size
    cols = pk.cdiv(x.cols, 8 * wide) * 8 * wide
    me = pk.block_index.x * warp.count + warp.index
    tile = warp.load(x, (me, 0), rows=4, cols=cols, dtype=f32, layout=pk.coalesced(8, wide))
    tile = pk.right_fill(tile, x.cols, -pk.inf)
    tile = pk.exp(tile - tile.row_max())
    warp.store(y, tile / tile.row_sum(), (me, 0))


odd = (4 * rng.standard_normal((5, 77))).astype(bf16.numpy)
result = np.empty_like(odd)
softmax_of_any_width(odd, result)
e = np.exp(odd.astype(np.float64))
assert np.abs(result.astype(np.float64) - e / e.sum(1, keepdims=True)).max() < 4e-3

# **Is it fast?** Nothing else can be done with these bytes in less time than reading each once and writing each once:

assert report.read["global"] == report.written["global"] == x.nbytes

# On a GPU a plain copy of the same bytes is the yardstick. The library's `pk.softmax`, which is this kernel with a
# layout chosen for every width, rows over several warps, and rows over a cluster, is within a few percent of it:
#
# table: bench_memory softmax
#
# **What does it become?** A compiled kernel says how many registers a thread has, and what did not fit. A coalesced
# tile of 4 x 128 float32 takes 16 registers of each thread. At 128 x 128 they would be 512, a thread has 255, and the
# rest would be *spilled* to memory.

cubin = softmax.compile(pk.spec(bf16, (4096, 128)), pk.spec(bf16, (4096, 128)), arch="sm_90a")
assert cubin.registers <= 64 and cubin.spill_store_bytes == 0
