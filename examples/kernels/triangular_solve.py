"""Many small systems at once: L X = B of lower triangular 16 x 16 matrices, a warp for each."""

from typing import Annotated

import numpy as np

import pykittens as pk
from pykittens import Tensor, f32, warp

Systems = Annotated[Tensor, f32, "N", 16, 16]


@pk.kernel(warps=1, grid=lambda left: left.shape[0])
def triangular_solve(left: Systems, right: Systems, x: Systems) -> None:
    """X = (L / d)^-1 (B / d), d the diagonal; the product is one of tf32."""
    i = pk.block_index.x
    matrix, b = (warp.load(t, (i, 0, 0), rows=16) for t in (left, right))
    d = pk.where(pk.row_index(matrix) == pk.col_index(matrix), matrix, 0.0).row_sum()
    inverse, turned = pk.shared(pk.st(f32, 16, 16)), pk.shared(pk.st(f32, 16, 16))
    warp.store(inverse, (matrix / d).unit_lower_inverse())
    warp.store(turned, (b / d).transpose())
    warp.sync()
    out = warp.zeros(f32, 16, 16)
    warp.mma_ABt(out, inverse, turned)
    warp.store(x, out, (i, 0, 0))


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    left = 0.3 * np.tril(rng.standard_normal((5, 16, 16)), -1) + np.eye(16) * rng.uniform(1, 2, (5, 16, 1))
    right, x = rng.standard_normal((5, 16, 16)), np.zeros((5, 16, 16), np.float32)
    triangular_solve(left.astype(np.float32), right.astype(np.float32), x)
    assert np.abs(x - np.linalg.solve(left, right)).max() < 0.01
