"""Group norm of images: four channels of P pixels together have mean 0 and variance 1, then a gain and a bias."""

from typing import Annotated, Any

import numpy as np

import pykittens as pk
from pykittens import Tensor, f32, warp

LAYOUT = pk.coalesced(8, 4)
Images = Annotated[Tensor, f32, "N", "C", pk.static("P")]
Channels = Annotated[Tensor, f32, "C"]


def total(room: Any, rows: Any) -> Any:
    """The sum of a column vector, through shared memory."""
    warp.store(room, rows)
    warp.sync()
    return warp.load_vec(room).sum()


@pk.kernel(warps=1, grid=lambda x: (x.rows // 4, x.depth))
def group_norm(x: Images, gain: Channels, bias: Channels, y: Images) -> None:
    """A warp takes a group of an image; P is at most 128."""
    group, image, count = pk.block_index.x, pk.block_index.y, 4 * x.cols
    first, second = pk.shared(pk.sv(f32, 4)), pk.shared(pk.sv(f32, 4))
    tile = warp.load(x, (image, group, 0), rows=4, cols=128, layout=LAYOUT)
    centred = pk.right_fill(tile - total(first, tile.row_sum()) / count, x.cols, 0.0)
    centred = centred * pk.rsqrt(total(second, centred.row_dot(centred)) / count + 1e-5)
    weight, offset = (warp.load_col(v, group, length=4, layout=LAYOUT) for v in (gain, bias))
    warp.store(y, centred * weight + offset, (image, group, 0))


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 12, 100), dtype=np.float32)
    gain, bias = rng.standard_normal((2, 12), dtype=np.float32)
    y = np.empty_like(x)
    group_norm(x, gain, bias, y)
    groups = x.reshape(3, 3, 400).astype(np.float64)
    normal = (groups - groups.mean(2, keepdims=True)) / np.sqrt(groups.var(2, keepdims=True) + 1e-5)
    assert np.abs(y - (normal.reshape(x.shape) * gain[:, None] + bias[:, None])).max() < 1e-5
