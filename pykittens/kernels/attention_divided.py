"""Attention whose keys are divided among blocks: there are too few tiles of queries for all multiprocessors.

    o = sum(o_p exp(lse_p - lse))        lse = log(sum(exp(lse_p)))        over the parts p of the keys

`attention_hopper.attend` makes o_p and lse_p, and `merge` the sums. Part p of batch b is at p * B + b. A part that no
key of a row is in has a log-sum-exp of -inf, and does not count. FlashDecoding (Dao et al. 2023) divides keys so.
"""

from __future__ import annotations

from typing import Annotated, Any

import pykittens as pk
from pykittens import Tensor, bf16, f16, f32, warp

from ..interop import arrays
from . import attention_hopper

LOG2E = 1.4426950408889634
DV = pk.static("DV")


def grid(o: Any, rows: Any, **_: Any) -> Any:
    """A warp for so many rows."""
    return pk.cdiv(o.rows, 4 * rows) * o.depth * o.batch


def rows_of(splits: int, dim: int) -> int:
    """Rows of a warp, which has all parts of them in registers."""
    return 4 if splits * dim <= 256 else 2 if splits * dim <= 512 or dim <= 64 else 1


@pk.kernel(grid=grid)
def merge(
    parts: Annotated[Tensor, f32, "PB", "H", "N", DV],
    logs: Annotated[Tensor, f32, "PB", "H", "N"],
    o: Annotated[Tensor, (bf16, f16), "B", "H", "N", DV],
    lse: Annotated[Tensor, f32, "B", "H", "N"] | None = None,
    *,
    splits: int,
    rows: int = 4,
) -> None:
    """o, and lse if it is wanted, of `splits` parts; `rows`: of a warp."""
    blocks = pk.cdiv(o.rows, 4 * rows)
    tile, rest = pk.block_index.x % blocks * 4 + warp.index, pk.block_index.x // blocks
    head, batch = rest % o.depth, rest // o.depth
    cols = next(c for c in (32, 64, 128, 256) if c >= o.cols)
    layout = pk.coalesced(min(cols // 4, 32), 4)
    made = [warp.load_col(logs, (p * o.batch + batch, head, tile), length=rows, layout=layout) for p in range(splits)]
    given = [
        warp.load(parts, (p * o.batch + batch, head, tile, 0), rows=rows, cols=cols, layout=layout)
        for p in range(splits)
    ]
    peak = made[0]
    for log in made[1:]:
        peak = pk.maximum(peak, log)
    peak = pk.where(peak > -pk.inf, peak, 0.0)
    shares = [pk.exp2((log - peak) * LOG2E) for log in made]
    total = sum(shares[1:], shares[0])
    out = sum(
        (pk.where(share > 0.0, x * share, 0.0) for x, share in zip(given[1:], shares[1:], strict=True)),
        pk.where(shares[0] > 0.0, given[0] * shares[0], 0.0),
    )
    warp.store(o, (out * pk.where(total > 0.0, 1.0 / total, 0.0)).to(o.dtype), (batch, head, tile, 0))
    if lse is not None:
        warp.store(lse, peak + pk.log2(total) * (1 / LOG2E), (batch, head, tile))


class Divided:
    """Both launches as one: called as a kernel is."""

    def __call__(
        self, q: Any, k: Any, v: Any, o: Any, lse: Any, scale: float, *, splits: int, with_lse: bool, **static: Any
    ) -> None:
        kind, device = (info := arrays.describe(q)).kind, info.device
        batch, heads, n, _ = info.shape
        parts = arrays.empty(kind, (splits * batch, heads, n, v.shape[-1]), "f32", device)
        logs = arrays.empty(kind, (splits * batch, heads, n), "f32", device)
        attention_hopper.attend(q, k, v, parts, logs, scale, splits=splits, with_lse=True, **static)
        merge(parts, logs, o, lse if with_lse else None, splits=splits, rows=rows_of(splits, v.shape[-1]))


DIVIDED = Divided()
