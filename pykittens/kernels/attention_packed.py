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
    counter: Annotated[Tensor, i32, 1] | None = None,
    *,
    rows: int,
) -> None:
    """owners, of tiles of `rows` rows as `pk.packed(offsets)` numbers them, and 0 in counter."""
    tile = pk.block_index.x * WARPS + warp.index
    with pk.when(tile < owners.cols):
        warp.set(owners, (tile,), pk.packed(offsets).find(tile, rows))
    if counter is not None:
        with pk.when(tile == 0):
            warp.set(counter, (0,), 0)


def owners_of(offsets: Any, length: int, rows: int, counter: Any = None) -> Any:
    """The owners of all tiles of `rows` rows, of `length` rows in all."""
    info = arrays.describe(offsets)
    owners = arrays.empty(info.kind, (length // rows + info.shape[0] - 1,), "i32", info.device)
    find_owners(offsets, owners, counter, rows=rows)
    return owners


class Owned:
    """A kernel whose blocks, of `rows` rows, ask whose their tile of queries is, and the launch before it as one."""

    def __init__(self, kernel: Any, rows: int) -> None:
        self.kernel, self.rows = kernel, rows

    def __call__(self, q: Any, *rest: Any, **static: Any) -> None:
        owners = owners_of(rest[9], arrays.describe(q).shape[2], self.rows)
        self.kernel(q, *rest, owners=owners, **static)


class PackedAttention:
    """Both launches as one: called as `attend` is."""

    def __call__(self, q: Any, *rest: Any, consumers: int = 2, **static: Any) -> None:
        kind, device = (info := arrays.describe(q)).kind, info.device
        counter = arrays.empty(kind, (1,), "i32", device)
        owners = owners_of(rest[9], info.shape[2], 64 * consumers, counter)
        attention_hopper.attend(q, *rest, owners=owners, counter=counter, consumers=consumers, **static)


PACKED = PackedAttention()
