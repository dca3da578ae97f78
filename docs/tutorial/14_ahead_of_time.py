"""# 14. Ahead of time

Compiling where there is no GPU, for machines that have no compiler.
"""

import os
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np

import pykittens as pk
from pykittens import Tensor, bf16, f32, warp
from pykittens.gpu.cache import Cache, key

Rows = Annotated[Tensor, (bf16, f32), "N", pk.static("D")]


@pk.kernel(warps=4, grid=lambda x: pk.cdiv(x.rows, 16))
def double(x: Rows, y: Rows) -> None:
    """y = 2 x"""
    me = pk.block_index.x * warp.count + warp.index
    warp.store(y, warp.load(x, (me, 0), rows=4, layout=pk.coalesced(8, 16 // x.dtype.size)) * 2.0, (me, 0))


# A kernel is compiled for a *specialisation*: dtypes, static dimensions, alignment. `pk.spec` stands for an array that
# does not exist here. Which N comes is known at launch.

shape = pk.spec(bf16, (1, 64))
program = double.program(shape, shape)
text = double.cuda(shape, shape, arch="sm_90a")

# The compiler is NVIDIA's NVRTC, a Python package; no GPU, no CUDA toolkit and no C++ compiler is needed. What it makes
# is kept by content: the text of the kernel (without comments and line numbers) and the architecture are its name.

cubin = double.compile(shape, shape, arch="sm_90a")
assert cubin.registers > 0 and len(key(text, "sm_90a")) == 64

# **A directory to ship.** `pykittens compile --arch sm_90a --arch sm_89 --out kernels/` fills one with the library's
# kernels. Your own go in with a few lines:

with tempfile.TemporaryDirectory() as directory:
    store = Cache(Path(directory))
    for arch in ("sm_80", "sm_90a"):
        source = double.cuda(shape, shape, arch=arch)
        store.put(key(source, arch), double.compile(shape, shape, arch=arch))
    assert len(list(Path(directory).glob("**/*"))) >= 2

# On the other machine `PYKITTENS_AOT=kernels/` names it. A call finds its cubin there before it asks for a compiler;
# `pykittens doctor` says what it sees. A directory that others may write to is not used: who can write there could run
# anything on your GPU.

assert "PYKITTENS_AOT" not in os.environ or Path(os.environ["PYKITTENS_AOT"].split(os.pathsep)[0]).exists()

# **The first call.** Tracing, a look-up and loading the module take some milliseconds; after that a call costs a few
# microseconds, and a bound call (`double.bind(x, y)`) a fraction of one:
#
# table: host

x = np.arange(256, dtype=np.float32).reshape(4, 64)
y = np.empty_like(x)
double(x, y)
assert np.array_equal(y, 2 * x)
