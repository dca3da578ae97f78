"""How the row kernels spread rows over threads, warps and blocks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pykittens as pk
from pykittens.errors import ArgumentError
from pykittens.types import Coalesced, bf16, f16, f32

FLOATS = (bf16, f16, f32)
WIDEST = 65_536


@dataclass(frozen=True)
class Rows:
    """Rows of `n` elements. A team of `team` warps holds `rows` of them at a time, a block has `warps` warps.

    `lanes` threads share a row, with runs of `width` elements. A row wider than a block lies in `cluster` blocks, `cols`
    columns in each. `ahead`: weights are loaded before the rows are reduced. Hints: see `pk.warp.load`.
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
    load_hint: str = ""
    store_hint: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.n <= WIDEST:
            raise ArgumentError(f"rows of {self.n} elements", fix=f"widths from 1 to {WIDEST} are supported")
        if not 1 <= self.team <= self.warps <= 32 or self.warps % self.team or (self.cluster > 1 and self.team < self.warps):
            raise ArgumentError(f"teams of {self.team} warps in blocks of {self.warps}", fix="a block has 1 to 32 warps, whole teams")
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
        return -(-rows // (self.rows * (self.warps // self.team))) * self.cluster


@lru_cache(maxsize=1024)
def plan(n: int, size: int, align: int, *, held: int = 64, most: int = 16, resident: int = 0, clusters: bool = True, **settings: Any) -> Rows:
    """Rows of `n` elements of `size` bytes that begin at multiples of `align` bytes; a thread holds about `held` bytes of a row.

    Blocks have up to `most` warps; wider rows are spread over a cluster, or over up to 32 warps without `clusters`. Registers are
    bounded so that a multiprocessor has room for about `resident` warps (0: as many as spills allow).
    """
    if not 1 <= n <= WIDEST:
        raise ArgumentError(f"rows of {n} elements", fix=f"widths from 1 to {WIDEST} are supported")
    width = max(1, min(16, align) // size)
    runs, turns = -(-n // width), max(1, held // size // width)
    lanes = _power(max(-(-runs // turns), min(8, runs)))
    if lanes <= 32:
        turns = -(-runs // lanes)
        slots, settings = max(1, held // size // (turns * width)), {"warps": 4, **settings}
        settings.setdefault("blocks_per_sm", _blocks(resident or 24, settings["warps"]))
        return Rows(n, width, lanes, turns * lanes * width, rows=32 // lanes * slots, **settings)
    warps = -(-runs // (32 * turns))
    cluster = min(8, _power(-(-warps // most))) if clusters else 1
    warps = min(32, -(-warps // cluster))
    cols = -(-n // (cluster * 32 * warps * width)) * 32 * warps * width
    settings = {"team": warps, "cluster": cluster, "blocks_per_sm": _blocks(resident or 28, warps), **settings, "warps": warps}
    return Rows(n, width, 32 * warps, cols, **settings)


def _blocks(resident: int, warps: int) -> int:
    """Blocks of `warps` warps that make about `resident`."""
    return max(1, (resident + warps // 2) // warps)


def _power(x: int) -> int:
    """The smallest power of two that is at least x."""
    return 1 << (x - 1).bit_length()


class Mine:
    """What the running team works on: which rows of a matrix, and which columns of them."""

    def __init__(self, config: Rows):
        self.config, self.team = config, pk.group(config.team)
        block = pk.block_index.x
        self.part = pk.cluster.rank if config.cluster > 1 else 0
        self.first = (block // config.cluster if config.cluster > 1 else block) * self.team.count + self.team.index  # in tiles
        self.end = config.n - self.part * config.cols  # columns from here on lie past the row's end

    def load(self, x: Any) -> Any:
        """These rows of a matrix, as float32."""
        config, dtype = self.config, x.dtype if self.config.width > 1 else f32
        at = (0, 0, self.first, self.part)
        return self.team.load(x, at, rows=config.rows, cols=config.cols, dtype=dtype, layout=config.layout, hint=config.load_hint).to(f32)

    def load_weight(self, w: Any) -> Any:
        """These columns of a vector."""
        dtype = w.dtype if self.config.width > 1 else f32
        return self.team.load_row(w, (0, 0, 0, self.part), length=self.config.cols, dtype=dtype, layout=self.config.layout)

    def store(self, o: Any, value: Any) -> None:
        """These rows of a matrix, rounded to its dtype."""
        value = value.to(o.dtype) if self.config.width > 1 else value
        self.team.store(o, value, (0, 0, self.first, self.part), hint=self.config.store_hint)

    def cut(self, value: Any, fill: float) -> Any:
        """`value` with `fill` in the columns past the end of the row."""
        return pk.right_fill(value, self.end, fill) if self.config.ragged else value

    def max(self, value: Any) -> Any:
        return value.row_max(cluster=self.config.cluster > 1)

    def sum(self, value: Any) -> Any:
        return value.row_sum(cluster=self.config.cluster > 1)
