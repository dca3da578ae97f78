"""Products whose last round of tiles is divided along k, so that no multiprocessor is idle in it.

`gemm` does the work, given memory for the parts' sums and for counts of parts that are done, 0 at first (`counters`).
Stream-K (Osama et al. 2023) divides as evenly; here all parts of a tile have the same number of steps, or one more.
"""

from __future__ import annotations

from typing import Any

from ..interop import arrays
from . import counters
from .gemm import Config, gemm


def scratch(
    config: Config, m: int, n: int, size: int, products: int, splits: int, sms: int
) -> tuple[tuple[int, int], tuple[int]]:
    """Shapes of `parts` and `flags` of `gemm`: for so many products, results of elements of `size` bytes (0: none)."""
    rest = -(-m // config.rows) * -(-n // config.cols) % sms
    width = min(config.cols, 128 // size) if size else config.cols
    pieces = config.rows // 64 * (config.cols // width) * products
    return (rest * (splits - 1) * pieces, 64 * width), (rest * config.consumers,)


class Divided:
    """Both launches as one: called as a kernel is."""

    def __call__(self, *operands: Any, config: Config, splits: int, ta: bool, tb: bool, **static: Any) -> None:
        a, b, c, *extras, sms, b2 = operands[:9]
        kind, device = (info := arrays.describe(a)).kind, info.device
        m, n = info.shape[1 if ta else 0], arrays.describe(b).shape[0 if tb else 1]
        size = 0 if c is None else {"f32": 4}.get(arrays.describe(c).dtype, 2)
        shapes = scratch(config, m, n, size, 1 if b2 is None else 2, splits, sms)
        parts = arrays.empty(kind, shapes[0], "f32", device)
        flags = counters.zeros(a, *shapes[1])
        more = {"splits": splits, "parts": parts, "flags": flags, "dependent": True}
        gemm(*operands, **more, config=config, ta=ta, tb=tb, **static)


DIVIDED = Divided()
