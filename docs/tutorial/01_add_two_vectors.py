"""# 1. Add two vectors

The first kernel: what a kernel is, who runs it, and how it is called.
"""

from typing import Annotated

import numpy as np

import pykittens as pk
from pykittens import Tensor, f32, warp

# A kernel is a Python function with a decorator. Its parameters say what they accept: `Tensor` is what a type checker
# and an editor see, and what follows is the contract: a dtype, and a length for each dimension. A name ("N") is any
# length, and equal names are equal lengths: adding vectors of two lengths is refused before anything runs.

Vector = Annotated[Tensor, f32, "N"]


@pk.kernel(warps=4, grid=lambda x: pk.cdiv(x.cols, 4 * 128))
def add(x: Vector, y: Vector, z: Vector) -> None:
    """z = x + y"""
    me = pk.block_index.x * 4 + warp.index
    a = warp.load_vec(x, me, length=128)
    b = warp.load_vec(y, me, length=128)
    warp.store(z, a + b, me)


# A GPU runs a *grid* of *blocks*, here one for each 512 elements. A block has *warps*, here four, and a warp has 32
# threads that go together. The function runs once for every warp, and `me` says which part is its own: the vectors are
# cut into pieces of 128, and warp `me` takes piece number `me`.
#
# `warp.load_vec` spreads those 128 elements over the registers of the warp's threads, in the order in which memory is
# fastest. `a + b` makes a new vector, as in NumPy. What lies past the end of x reads as zero and is not written, so N
# need not be a multiple of anything. How many neighbours a thread takes at once depends on the array's dtype and on
# where it begins. Where these differ, as of `x` and `y[1:]`, `a + b` first brings both into the longer runs.

x = np.arange(1000, dtype=np.float32)
y = np.ones_like(x)
z = np.empty_like(x)
add(x, y, z)
assert np.array_equal(z, x + 1)

# NumPy arrays ran on a simulated GPU, which checks every access. The same call with CUDA tensors of torch, CuPy or JAX
# compiles the kernel and runs it on their GPU.
#
# What the simulated GPU has seen is a report:

report = add.simulate(x, y, z)
assert report.blocks == 2
assert report.read["global"] == 2 * 4 * 1000 and report.written["global"] == 4 * 1000

# What becomes of it on a GPU can be read without having one: CUDA C, in which every line is commented with the line of
# Python that it comes from.

text = add.cuda(x, y, z, arch="sm_89")
assert "__global__" in text

# **Why tiles?** In CUDA C one writes what a single thread does, and finds out later which 32 neighbours read which
# addresses. Here one writes what a warp does to a piece of data, and its type says which thread holds what. So the
# compiler knows the addresses, the simulator knows who touched what, and an error can name both.
