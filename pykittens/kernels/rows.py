"""How the row kernels spread rows over threads, warps and blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pykittens as pk
from pykittens.errors import ArgumentError
from pykittens.types import Coalesced, bf16, f16, f32

FLOATS = (bf16, f16, f32)
WIDEST = 65_536
WIDE = 65_536  # bytes of a row: from here on a thread holds twice as much, and weights are loaded before the reduction
SHARED = 228 * 1024  # bytes of shared memory of a multiprocessor with clusters
OTHER = 2048  # of which a block takes as many for terms and for the system


@dataclass(frozen=True)
class Rows:
    """Rows of `n` elements. A team of `team` warps holds `rows` of them at a time, a block has `warps` warps.

    `lanes` threads share a row, with runs of `width` elements. A row wider than a block lies in `cluster` blocks, `cols`
    columns in each. `ahead`: weights are loaded before the rows are reduced. Hints: see `pk.warp.load`.

    With `stages` each block (or cluster) walks through many rows, in a grid as large as `processors` multiprocessors hold at once: that
    many rows are under way to slots of shared memory while one is reduced and written. `ahead` then keeps the weights there too.
    """

    n: int
    width: int
    lanes: int
    cols: int
    rows: int = 1
    team: int = 1
    warps: int = 4
    cluster: int = 1
    blocks_per_sm: int = 1
    ahead: bool = False
    stages: int = 0
    processors: int = 132
    load_hint: str = ""
    store_hint: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.n <= WIDEST:
            raise ArgumentError(f"rows of {self.n} elements", fix=f"widths from 1 to {WIDEST} are supported")
        if not 1 <= self.team <= self.warps <= 32 or self.warps % self.team or (self.cluster > 1 and self.team < self.warps):
            raise ArgumentError(f"teams of {self.team} warps in blocks of {self.warps}", fix="a block has 1 to 32 warps, whole teams")
        if not 0 <= self.stages <= 16 or self.processors < 1 or (self.stages and (self.team, self.rows) != (self.warps, 1)):
            raise ArgumentError(f"{self.rows} rows for {self.team} of {self.warps} warps in {self.stages} stages",
                                fix="up to 16 stages, of one row for a whole block")  # fmt: skip
        if not 1 <= self.cluster <= 8 or self.cols * self.cluster < self.n:
            raise ArgumentError(f"{self.cluster} x {self.cols} columns for rows of {self.n}", fix="a cluster has up to 8 blocks, which cover the row")

    @property
    def layout(self) -> Coalesced:
        return Coalesced(self.lanes, self.width)

    @property
    def ragged(self) -> bool:
        """Whether tiles have columns past the end of a row."""
        return self.cols * self.cluster > self.n

    def blocks(self, rows: int) -> int:
        """Blocks for that many rows."""
        tiles = -(-rows // (self.rows * (self.warps // self.team)))
        return (min(tiles, max(1, self.processors * self.blocks_per_sm // self.cluster)) if self.stages else tiles) * self.cluster


@lru_cache(maxsize=1024)
def plan(n: int, size: int, align: int, *, held: int = 64, most: int = 16, resident: int = 0, clusters: bool = True, inputs: int = 0,
         weights: int = 0, heavy: bool = False, processors: int = 132, **settings: Any) -> Rows:  # fmt: skip
    """Rows of `n` elements of `size` bytes that begin at multiples of `align` bytes; a thread holds about `held` bytes of a row.

    Blocks have up to `most` warps; wider rows are spread over a cluster, or over up to 32 warps without `clusters`. Registers are
    bounded so that a multiprocessor has room for about `resident` warps (0: as many as spills allow). With `stages`
    a persistent grid has as many rows on their way; an element of each of the inputs together has `inputs` bytes, of the weights `weights`.
    Two weights take more registers, and so does what is `heavy`.
    """
    if not 1 <= n <= WIDEST:
        raise ArgumentError(f"rows of {n} elements", fix=f"widths from 1 to {WIDEST} are supported")
    if n * size == WIDE and clusters and weights <= size and not heavy and not settings:
        held, resident, settings = 128, 16, {"ahead": True}
    width = max(1, min(16, align) // size)
    runs, turns = -(-n // width), max(1, held // size // width)
    lanes = _power(max(-(-runs // turns), min(8, runs)))
    if lanes <= 32:
        turns = -(-runs // lanes)
        slots, settings = max(1, held // size // (turns * width)), {"warps": 4, **settings}
        settings.setdefault("blocks_per_sm", _blocks(resident or (20 if heavy else 24), settings["warps"]))
        return Rows(n, width, lanes, turns * lanes * width, rows=32 // lanes * slots, **settings)
    warps = -(-runs // (32 * turns))
    cluster = min(8, _power(-(-warps // most))) if clusters else 1
    warps = min(32, -(-warps // cluster))
    cols = -(-n // (cluster * 32 * warps * width)) * 32 * warps * width
    settings = {
        "team": warps,
        "cluster": cluster,
        "blocks_per_sm": _blocks(resident or (28 if not heavy and weights <= size else 24 if cluster == 1 else 16), warps),
        **settings,
        "warps": warps,
    }
    slot = cols * (inputs or size)
    if settings.setdefault("stages", 0):
        kept = OTHER + (cols * weights if settings.setdefault("ahead", SHARED - OTHER - cols * weights >= 2 * slot) else 0)
        settings["stages"] = max(1, min(settings["stages"], (SHARED - kept) // slot))
        settings["blocks_per_sm"] = max(1, min(settings["blocks_per_sm"], SHARED // (settings["stages"] * slot + kept)))
        settings["processors"] = processors if cluster <= 2 else processors * 85 // 100  # large clusters do not find room everywhere
    return Rows(n, width, 32 * warps, cols, **settings)


def _blocks(resident: int, warps: int) -> int:
    """Blocks of `warps` warps that make about `resident`."""
    return max(1, (resident + warps // 2) // warps)


def _power(x: int) -> int:
    """The smallest power of two that is at least x."""
    return 1 << (x - 1).bit_length()


class Mine:
    """What the running team works on: which rows of a matrix, and which columns of them."""

    def __init__(self, config: Rows, tile: Any, part: Any):
        self.config, self.team, self.first, self.part = config, pk.group(config.team), tile, part
        self.end = config.n - part * config.cols  # columns from here on lie past the row's end
        self.here: dict[Any, Any] = {}  # what lies in shared memory of a matrix or vector
        self.refill: Any = None  # to be called when everybody has read its slots

    def load(self, x: Any) -> Any:
        """These rows of a matrix, as float32."""
        config, dtype = self.config, x.dtype if self.config.width > 1 else f32
        if x in self.here:
            return self.team.load(self.here[x], dtype=dtype, layout=config.layout).to(f32)
        at = (0, 0, self.first, self.part)
        return self.team.load(x, at, rows=config.rows, cols=config.cols, dtype=dtype, layout=config.layout, hint=config.load_hint).to(f32)

    def load_weight(self, w: Any) -> Any:
        """These columns of a vector."""
        dtype = w.dtype if self.config.width > 1 else f32
        if w in self.here:
            return self.team.load_row(self.here[w], dtype=dtype, layout=self.config.layout)
        return self.team.load_row(w, (0, 0, 0, self.part), length=self.config.cols, dtype=dtype, layout=self.config.layout)

    def store(self, o: Any, value: Any) -> None:
        """These rows of a matrix, rounded to its dtype."""
        value = value.to(o.dtype) if self.config.width > 1 else value
        self.team.store(o, value, (0, 0, self.first, self.part), hint=self.config.store_hint)

    def cut(self, value: Any, fill: float) -> Any:
        """`value` with `fill` in the columns past the end of the row."""
        return pk.right_fill(value, self.end, fill) if self.config.ragged else value

    def max(self, value: Any) -> Any:
        return self._met(value.row_max(cluster=self.config.cluster > 1))

    def sum(self, value: Any) -> Any:
        return self._met(value.row_sum(cluster=self.config.cluster > 1))

    def _met(self, terms: Any) -> Any:
        """Every thread had read its part of the row before it gave a term, so that the next row may come into the slot."""
        refill, self.refill = self.refill, None
        if refill:
            refill()
        return terms


def walk(config: Rows, inputs: tuple[Any, ...], weights: tuple[Any, ...] = ()) -> Iterator[Mine]:
    """The tiles of rows that this team works on, one after another; those of a config with stages reduce each row at least once."""
    wide = config.cluster > 1
    team, part, place = pk.group(config.team), pk.cluster.rank if wide else 0, pk.cluster.index
    if not config.stages:
        yield Mine(config, place * team.count + team.index, part)
        return
    kept = {w: pk.shared(pk.sv(w.dtype, config.cols)) for w in weights if config.ahead and w is not None}
    for w, to in kept.items():
        team.load_into(to, w, (0, 0, 0, part))
    rings = {x: pk.shared(pk.sv(x.dtype, config.cols), count=config.stages) for x in inputs if x is not None}
    count, stride = inputs[0].rows, pk.grid_size.x // config.cluster

    def fill(slot: Any, tile: Any) -> None:
        with pk.when(tile < count):
            for x, slots in rings.items():
                team.load_async(slots[slot] if config.stages > 1 else slots, x, (0, 0, tile, part))
        team.commit()

    for slot in range(config.stages):
        fill(slot, place + slot * stride)
    for i in pk.range(pk.cdiv(count - place, stride)):
        slot, tile = i % config.stages, place + i * stride
        team.wait_loads(pending=config.stages - 1)
        (pk.cluster if wide else team).sync()
        mine = Mine(config, tile, part)
        mine.here = kept | {x: slots[slot] if config.stages > 1 else slots for x, slots in rings.items()}
        mine.refill = lambda slot=slot, tile=tile: fill(slot, tile + config.stages * stride)
        yield mine
