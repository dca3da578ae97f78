"""# 2. Layouts: who holds what

A tile in registers is spread over 32 threads. Which thread holds which element is its layout, and there are three.
"""

from typing import Annotated

import numpy as np

import pykittens as pk
from pykittens import Tensor, bf16, f32, warp
from pykittens.reference.picture import owners

# **Fragments.** The tensor cores want the operands of a matrix product in one certain order (PTX ISA, "Matrix Fragments
# for mma.m16n8k16"): thread 0 holds the first two elements of row 0, thread 1 the next two; thread 4 begins row 1. A
# tile of layout "row" is in that order, one of layout "col" is its mirror image, which right operands have.

fragment = pk.rt(bf16, 16, 16)
assert owners(fragment)[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3] * 2
assert owners(pk.rt(bf16, 16, 16, "col"))[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3] * 2

# `pykittens layout "rt(bf16, 16, 16)"` draws it in the terminal, and `--svg FILE` as a picture.
#
# picture: rt(bf16, 16, 16)
#
# **Coalesced.** Memory wants something else. A warp's read is fastest where each thread takes 16 bytes and neighbours
# stand side by side: a line of 128 bytes is fetched as a whole, whoever needs it. `pk.coalesced(lanes, width)` says so:
# `lanes` threads share a row, each with runs of `width` elements.

rows_of_64 = pk.rt(f32, 4, 64, pk.coalesced(8, 4))
assert owners(rows_of_64)[0].tolist() == [lane for lane in range(8) for _ in range(4)] * 2

# picture: rt(f32, 4, 64, coalesced(8, 4))
#
# **When which?** A tile that meets a tensor core is a fragment. A tile that only passes through, with elementwise
# arithmetic and sums along its rows, is coalesced. Both have column vectors (one value a row) and row vectors (one
# value a column), and the code that works on them is the same.


@pk.kernel(warps=1)
def double(x: Annotated[Tensor, f32, 16, 64], y: Annotated[Tensor, f32, 16, 64], *, layout: object = "row") -> None:
    """y = 2 x, whatever the layout."""
    tile = warp.load(x, (0, 0), rows=16, layout=layout)
    warp.store(y, tile + tile, (0, 0))


x = np.random.default_rng(0).standard_normal((16, 64), dtype=np.float32)
for layout in ("row", "col", pk.coalesced(8, 4)):
    y = np.empty_like(x)
    double(x, y, layout=layout)
    assert np.array_equal(y, 2 * x)

# How fast is each? The compiled code says how many bytes one load of a thread takes: a fragment's threads find two
# float32 side by side, those of a coalesced tile four.

matrix = pk.spec(f32, (16, 64))  # stands for an array
texts = {layout: double.cuda(matrix, matrix, layout=layout, arch="sm_90a") for layout in ("row", pk.coalesced(8, 4))}
bodies = {layout: text.partition("__global__")[2] for layout, text in texts.items()}
assert "pk_u32x4" in bodies[pk.coalesced(8, 4)] and "pk_u32x4" not in bodies["row"] and "pk_u32x2" in bodies["row"]

# **Conversions.** `x.swap_layout(...)` moves a tile from one layout to another: with shuffles inside the warp, and
# through shared memory of the compiler's where elements leave it, which costs that memory and a barrier.
# `x.transpose()` of one warp's fragment costs nothing: the transposed tile in the other layout lies exactly as it did.


@pk.kernel(warps=1)
def transposed(x: Annotated[Tensor, bf16, 16, 32], y: Annotated[Tensor, bf16, 32, 16]) -> None:
    """y = x.T"""
    warp.store(y, warp.load(x, (0, 0), rows=16).transpose(), (0, 0))


h = np.arange(512).reshape(16, 32).astype(bf16.numpy)
t = np.empty((32, 16), bf16.numpy)
transposed(h, t)
assert np.array_equal(t, h.T)

# **Shared memory** has layouts, too. It has 32 banks of 4 bytes, and serves one row of each bank at a time; threads
# that want different rows of one bank wait for one another. A shared tile is *swizzled*: each row's 16-byte chunks
# stand in another order, so that a column of chunks meets all the banks.
#
# picture: st(bf16, 16, 64)
#
# The simulated GPU counts what is lost to conflicts. A matrix that passes through a swizzled tile has none:


@pk.kernel(warps=1)
def through(x: Annotated[Tensor, bf16, 16, 64], y: Annotated[Tensor, bf16, 16, 64]) -> None:
    """y = x, through shared memory and in another layout."""
    room = pk.shared(pk.st(bf16, 16, 64))
    warp.store(room, warp.load(x, (0, 0), rows=16))
    warp.sync()
    warp.store(y, warp.load(room, layout="col"), (0, 0))


h = np.arange(1024).reshape(16, 64).astype(bf16.numpy)
out = np.empty_like(h)
assert through.simulate(h, out).bank_conflicts == 0
assert np.array_equal(out, h)
