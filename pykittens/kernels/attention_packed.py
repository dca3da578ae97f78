"""Packed sequences of any lengths: whose each tile of queries is, found once, and tiles that free blocks take.

    owners[tile] = the sequence of a tile        counter = 0

A block of `attention_hopper.attend` that stays asks for a sequence with one load instead of a bisection, and takes the
next tile from the counter when it comes to need one, since sequences, and so tiles, may have any lengths.
"""

from __future__ import annotations

from typing import Annotated, Any

import pykittens as pk
from pykittens import Tensor, i32, warp

from ..interop import arrays
from . import attention_hopper

WARPS = 4


@pk.kernel(warps=WARPS, grid=lambda owners, **_: pk.cdiv(owners.cols, WARPS))
def find_owners(
    offsets: Annotated[Tensor, i32, "S"],
    owners: Annotated[Tensor, i32, "T"],
    counter: Annotated[Tensor, i32, 1],
    *,
    rows: int,
) -> None:
    """owners, of tiles of `rows` rows as `pk.packed(offsets)` numbers them, and 0 in counter."""
    tile = pk.block_index.x * WARPS + warp.index
    with pk.when(tile < owners.cols):
        warp.set(owners, (tile,), pk.packed(offsets).find(tile, rows))
    with pk.when(tile == 0):
        warp.set(counter, (0,), 0)


class Packed:
    """Both launches as one: called as `attend` is."""

    def __call__(self, q: Any, *rest: Any, consumers: int = 2, **static: Any) -> None:
        kind, device = (info := arrays.describe(q)).kind, info.device
        offsets, rows = rest[9], 64 * consumers
        tiles = info.shape[2] // rows + offsets.shape[0] - 1
        owners = arrays.empty(kind, (tiles,), "i32", device)
        counter = arrays.empty(kind, (1,), "i32", device)
        find_owners(offsets, owners, counter, rows=rows)
        attention_hopper.attend(q, *rest, owners=owners, counter=counter, consumers=consumers, **static)


PACKED = Packed()
