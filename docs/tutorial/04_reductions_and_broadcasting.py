"""# 4. Reductions and broadcasting

Vectors of rows and of columns, sums across warps, and sums that are finished later.
"""

from typing import Annotated

import numpy as np

import pykittens as pk
from pykittens import Tensor, f32, i32, warp

# A tile has two kinds of vectors. A *column vector* has one value a row: `row_max`, `row_sum` and the like make it, and
# beside the tile it spreads along the rows. A *row vector* has one value a column: `col_sum` makes it, weights are
# loaded as one. So there is no axis to name, and no shape to insert.


@pk.kernel(warps=1)
def normalise(
    x: Annotated[Tensor, f32, 16, 64], weight: Annotated[Tensor, f32, 64], y: Annotated[Tensor, f32, 16, 64]
) -> None:
    """y = (x - mean) / std * weight: LayerNorm of rows."""
    tile = warp.load(x, (0, 0), rows=16)
    centred = tile - tile.row_sum() * (1 / 64)
    variance = centred.row_dot(centred) * (1 / 64)
    warp.store(y, centred * pk.rsqrt(variance + 1e-5) * warp.load_row(weight, 0), (0, 0))


rng = np.random.default_rng(0)
x, weight = rng.standard_normal((16, 64), dtype=np.float32), rng.standard_normal(64, dtype=np.float32)
y = np.empty_like(x)
normalise(x, weight, y)
expected = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5) * weight
assert np.abs(y - expected).max() < 1e-5

# `row_dot` is the sum of products, each fused into its addition: rounded once, and one instruction. Nothing else is
# fused behind your back: `a * b + c` rounds twice, `pk.fma(a, b, c)` once.
#
# **Masks** are tiles of bools. They count, ask, and choose:


@pk.kernel(warps=1)
def clip(x: Annotated[Tensor, f32, 16, 64], y: Annotated[Tensor, f32, 16, 64], n: Annotated[Tensor, i32, 16]) -> None:
    """y: x with every element above 1 replaced by its row's mean; n: how many there were."""
    tile = warp.load(x, (0, 0), rows=16)
    high = tile > 1.0
    warp.store(y, pk.where(high, tile.row_sum() * (1 / 64), tile), (0, 0))
    warp.store(n, high.row_sum(), 0)


n = np.empty(16, np.int32)
clip(x, y, n)
assert np.array_equal(n, (x > 1).sum(1))
assert np.allclose(y, np.where(x > 1, x.mean(1, keepdims=True), x), atol=1e-6)

# **Where is the largest?** `row_argmax`, `col_argmin`, and the k largest of each row, largest first:


@pk.kernel(warps=1)
def best(x: Annotated[Tensor, f32, 16, 64], places: Annotated[Tensor, i32, 3, 16]) -> None:
    """The columns of the three largest elements of each row."""
    for i, (_, column) in enumerate(warp.load(x, (0, 0), rows=16).row_topk(3)):
        warp.store(places, column, (i, 0))


places = np.empty((3, 16), np.int32)
best(x, places)
assert np.array_equal(places.T, np.argsort(-x, axis=1)[:, :3])

# `x[:, 3]` and `x[i, :]` take one column (a column vector) or one row (a row vector) out of a tile.
#
# **Across warps.** A tile can belong to more threads than a warp: `pk.block.load(...)` makes one of the whole block,
# each warp with 16 rows in turn (a fragment), or all threads along one row (coalesced over all of them). Then a
# reduction has to meet in shared memory. It is the same word, as it is for scans and `row_argmax`; the report shows the
# shared memory that it took.


@pk.kernel(warps=4)
def columns(x: Annotated[Tensor, f32, 64, 64], y: Annotated[Tensor, f32, 64]) -> None:
    """y = x.sum(0)"""
    pk.block.store(y, pk.block.load(x, (0, 0), rows=64).col_sum(), 0)


x, y = rng.standard_normal((64, 64), dtype=np.float32), np.empty(64, np.float32)
report = columns.simulate(x, y)
assert np.abs(y - x.sum(0)).max() < 1e-5
assert report.written["shared"] == 4 * 64 * 4  # 64 float32 terms of each of four warps

# **Later.** Each of those reductions shuffles, or meets. In a loop that is waste: add first, and reduce once. A
# *partial* vector keeps a term for each thread (or, of columns and of coalesced tiles, each warp) until `total()`.


@pk.kernel(warps=1)
def sums(x: Annotated[Tensor, f32, 16, "N"], y: Annotated[Tensor, f32, 16]) -> None:
    """y = x.sum(1) of any number of columns."""
    total = warp.zeros_col(f32, 16, partial=True)
    for i in pk.range(pk.cdiv(x.cols, 64)):
        total += warp.load(x, (0, i), rows=16, cols=64).row_sum(partial=True)
    warp.store(y, total.total(), 0)


x, y = rng.standard_normal((16, 200), dtype=np.float32), np.empty(16, np.float32)
sums(x, y)
assert np.abs(y - x.sum(1)).max() < 1e-4

# `pk.range` is a loop of the GPU: its body is recorded once. Python's own `for` runs while the kernel is traced, and
# unrolls. Whatever Python changes from pass to pass of a `pk.range` would be frozen, and is refused with the line.
