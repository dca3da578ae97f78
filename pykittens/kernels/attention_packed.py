"""Packed sequences of any lengths: whose each tile of queries is, found once, and tiles that free blocks take.

    owners[tile] = the sequence of a tile
    order[:, i] = the tile that is taken i-th, its sequence        counter = 0

A block asks for a sequence with a load instead of a bisection. Blocks of `attention_hopper.attend` that stay take the
next tile from the counter when they come to need one, since sequences, and so tiles, may have any lengths: the longest
first (Graham 1969, on multiprocessing timing anomalies), so that all blocks end at about the same time. Of sequences
one after another only as many are ordered together as have room in L2 for a head of their keys and values.
"""

from __future__ import annotations

from typing import Annotated, Any

import pykittens as pk
from pykittens import Scalar, Tensor, f32, i32, warp

from ..interop import arrays
from . import attention_hopper
from .blank import HALF, blank_part
from .widths import widths

WARPS = 4
LANES = 32  # sequences that a warp looks at together
MOST = 64  # sequences that are ordered together
ALL = 2**30  # keys
PARTS = 128  # warps that see to rows that are nobody's


@pk.kernel(warps=WARPS, grid=lambda owners, **_: pk.cdiv(owners.cols, WARPS))
def find_owners(offsets: Annotated[Tensor, i32, "S"], owners: Annotated[Tensor, i32, "T"], *, rows: int) -> None:
    """owners, of tiles of `rows` rows as `pk.packed(offsets)` numbers them."""
    tile = pk.block_index.x * WARPS + warp.index
    with pk.when(tile < owners.cols):
        warp.set(owners, (tile,), pk.packed(offsets).find(tile, rows))


@pk.kernel(warps=WARPS, grid=lambda order, **_: pk.cdiv(order.cols, WARPS) + PARTS // WARPS)
def order_tiles(
    q_offsets: Annotated[Tensor, i32, "S"],
    k_offsets: Annotated[Tensor, i32, "S"],
    order: Annotated[Tensor, i32, 2, "T"],
    counter: Annotated[Tensor, i32, 1],
    right: Annotated[Scalar, i32],
    most: Annotated[Scalar, i32],
    together: Annotated[Scalar, i32],
    o: Annotated[Tensor, HALF, "B", "H", "N", pk.static("DV")],
    lse: Annotated[Tensor, f32, "B", "H", "N"] | None = None,
    *,
    rows: int,
    growing: bool,
) -> None:
    """order, of tiles of `rows` rows as `pk.packed(q_offsets)` numbers them, and 0 in counter; in rows that are
    nobody's 0 in o and -inf in lse (`blank`).

    Tiles of `together` sequences come by how many keys they see, the most first, then by their numbers. Where a tile
    comes is how many of their tiles come before it: of a sequence, those that see more than a limit. growing: row i of
    n sees the keys up to i + m - n + right, else all m; a tile sees `most` keys.
    """
    tile, q_rows, k_rows = pk.block_index.x * WARPS + warp.index, pk.packed(q_offsets), pk.packed(k_offsets)
    pk.launch_next()
    with pk.when(tile == 0):
        warp.set(counter, (0,), 0)
    idle = tile - pk.cdiv(order.cols, WARPS) * WARPS  # the number of a warp that orders nothing
    with pk.when(idle >= 0):
        blank_part(idle, PARTS, q_offsets, o, None, lse)
    with pk.when(tile < order.cols):
        own = q_rows.find(tile, rows)
        n, m, place = q_rows[own].rows, k_rows[own].rows, tile - q_rows.first(own, rows)
        block = pk.cdiv(n, rows) - 1 - place  # the longest first, as those who take it know
        end = pk.minimum((block + 1) * rows, n) + m - n + right if growing else m
        seen = pk.maximum(pk.minimum(pk.minimum(end, m), most), 0)
        seen = pk.where(block < 0, -1, seen)  # of a tile that does not exist
        first = own // together * together
        stop, found = pk.minimum(first + together, q_rows.count), pk.var(i32, q_rows.first(first, rows) + place)
        for i in pk.range(pk.cdiv(stop - first, LANES)):
            at = first + i * LANES

            def lengths(offsets: Any, at: Any = at) -> tuple[Any, Any]:
                """Where the sequences begin and end."""
                begins, ends = (warp.load_vec(offsets, pk.at(x), length=LANES) for x in (at, at + 1))
                return pk.maximum(begins, 0), ends

            (begins, ends), (k_begins, k_ends) = lengths(q_offsets), lengths(k_offsets)
            each = pk.iota(begins) + at
            n, m = ends - begins, k_ends - k_begins
            limit = pk.where(each < own, seen - 1, seen)
            tiles, numbers = (n + rows - 1) // rows, ends // rows - begins // rows + 1
            less = pk.maximum(limit - (m - n) - right, 0) if growing else 0  # rows that see no more than the limit
            above = pk.where((limit < m) & (limit < most) & (less < n), tiles - less // rows, 0)
            above = pk.where(limit < 0, tiles, above)
            above = pk.where(limit < -1, numbers, above)  # before a tile that does not exist others like it come, too
            counted = (each < stop) & (each != own)
            found.set(found + pk.where(counted, above, 0).sum())
        at = pk.where(place < 0, tile, found)  # rows before the first sequence are nobody's
        with pk.when((at >= 0) & (at < order.cols)):  # always, where offsets do not decrease
            warp.set(order, (0, at), tile)
            warp.set(order, (1, at), own)


def owners_of(offsets: Any, length: int, rows: int) -> Any:
    """The owners of all tiles of `rows` rows, of `length` rows in all."""
    info = arrays.describe(offsets)
    owners = arrays.empty(info.kind, (length // rows + info.shape[0] - 1,), "i32", info.device)
    find_owners(offsets, owners, rows=rows)
    return owners


class Owned:
    """A kernel whose blocks, of `rows` rows, ask whose their tile of queries is, and the launch before it as one."""

    def __init__(self, kernel: Any, rows: int) -> None:
        self.kernel, self.rows = kernel, rows

    def __call__(self, q: Any, *rest: Any, **static: Any) -> None:
        owners = owners_of(rest[9], arrays.describe(q).shape[2], self.rows)
        self.kernel(q, *rest, owners=owners, **static)


class PackedAttention:
    """Both launches as one, the second of which begins while the first is under way: called as `attend` is."""

    def __call__(self, q: Any, k: Any, v: Any, o: Any, lse: Any, *rest: Any, consumers: int = 2, **static: Any) -> None:
        left, right = rest[1:3]
        q_offsets, k_offsets = rest[5:7]
        info, sequences, rows = arrays.describe(q), arrays.describe(q_offsets).shape[0] - 1, 64 * consumers
        counter = arrays.empty(info.kind, (1,), "i32", info.device)
        order = arrays.empty(info.kind, (2, info.shape[2] // rows + sequences), "i32", info.device)
        length = max(k.shape[2] // sequences, 1)  # on average
        together = attention_hopper.LINES // (length * sum(widths(q.shape[-1], v.shape[-1])))
        groups = -(-sequences // min(max(together, 1), MOST))  # all of about as many
        side = 0 if static["causal"] else right
        most = ALL if left is None or side is None else min(max(left + side + rows, 0), ALL)
        order_tiles(
            q_offsets,
            k_offsets,
            order,
            counter,
            side or 0,
            most,
            -(-sequences // groups),
            o,
            lse,
            rows=rows,
            growing=side is not None,
        )
        attention_hopper.attend(q, k, v, o, lse, *rest, order=order, counter=counter, consumers=consumers, **static)


PACKED = PackedAttention()
