"""How the row kernels spread rows over threads, warps and blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import pykittens as pk
from pykittens.errors import ArgumentError
from pykittens.types import Coalesced, bf16, f16, f32

FLOATS = (bf16, f16, f32)
WIDEST = 65_536
PART = 32 * 1024  # bytes of a row that 8 warps hold in registers, 128 a thread
SHARED = 227 * 1024 - 512  # bytes of shared memory of a block on Hopper, but for barriers
TERMS = 6 * 128  # bytes for what a team gets from a block of its cluster: two places, of one or two terms, and of a row


@dataclass(frozen=True)
class Rows:
    """Rows of `n` elements. A team of `team` warps holds `rows` of them at a time, a block has `warps` warps. `lanes`
    threads share a row, with runs of `width` elements. A row wider than a team lies in `cluster` blocks, `cols`
    columns in each. Hints: see `pk.warp.load`.

    With `stages` rows stream: a block stays, for each of `processors` multiprocessors, and keeps the weights in shared
    memory. One more warpgroup loads rows with TMA into slots, `stages` for each team, and the teams reduce and write
    rows of their own: while one waits for the cluster's terms, another works. With `shifted` these begin
    anywhere, in a matrix that is given as one long row: from the 16 bytes that a row begins in. So its first element is
    not the first of the tile, and the edges of tiles are other rows'.
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
    stages: int = 0
    processors: int = 132
    load_hint: str = ""
    store_hint: str = ""
    stays: bool = False
    shifted: bool = False

    def __post_init__(self) -> None:
        whole = self.team >= 1 and self.warps <= 32 and self.team <= self.team * self.teams == self.warps - self.loading
        alone = self.cluster == 1 or self.stages > 0 or self.teams == 1
        slots = 0 <= self.stages <= 16 and (self.stages == 0 or (self.rows == 1 and self.cols % 256 == 0))
        covered = self.n >= 1 and 1 <= self.cluster <= 8 and self.n <= self.cols * self.cluster
        if not (whole and alone and slots and covered and self.processors >= 1):
            fix = "whole teams in 1 to 32 warps, with four to load; up to 8 blocks, which cover a row; up to 16 stages"
            raise ArgumentError(f"rows cannot be divided by {self}", fix=fix)

    @property
    def layout(self) -> Coalesced:
        return Coalesced(self.lanes, self.width)

    @property
    def ragged(self) -> bool:
        """Whether tiles have columns past the end of a row."""
        return self.shifted or self.cols * self.cluster > self.n

    @property
    def loading(self) -> int:
        """How many warps of a block load."""
        return 4 if self.stages else 0

    @property
    def teams(self) -> int:
        """How many teams work in a block."""
        return (self.warps - self.loading) // self.team

    @property
    def budget(self) -> int:
        """Registers of a thread that works, where some of those that load are left over for it (setmaxnreg)."""
        at_launch = 65536 // (32 * self.warps) // 8 * 8
        return min(256, (at_launch * self.warps - 24 * self.loading) // (self.warps - self.loading) // 8 * 8)

    def blocks(self, rows: int) -> int:
        """Blocks for that many rows."""
        tiles = -(-rows // (self.rows * self.teams))
        room = self.processors if self.stages else self.processors * self.blocks_per_sm
        return (min(tiles, max(1, room // self.cluster)) if self.stages or self.stays else tiles) * self.cluster

    def parts(self, rows: int) -> int:
        """Rows of a workspace with the sums of every team over its rows."""
        return self.blocks(rows) // self.cluster * self.teams


@lru_cache(maxsize=1024)
def plan(
    n: int,
    size: int,
    align: int,
    *,
    inputs: int = 0,
    weights: int = 0,
    clusters: bool = True,
    processors: int = 132,
    held: int = 64,
    most: int = 16,
    resident: int = 0,
    heavy: bool = False,
    **settings: Any,
) -> Rows:
    """Rows of `n` elements of `size` bytes that begin, as weights do, at multiples of `align` bytes.

    An element of each of the inputs together has `inputs` bytes, of the weights `weights`. A thread holds about `held`
    bytes of a row. Blocks have up to `most` warps; wider rows stream (see `stream`), or where that is impossible are
    spread over a cluster, or over up to 32 warps without `clusters`. Registers are bounded so that a multiprocessor has
    room for about `resident` warps (0: as many as spills allow): two weights take more, and so does what is `heavy`.
    """
    if not 1 <= n <= WIDEST:
        raise ArgumentError(f"rows of {n} elements", fix=f"widths from 1 to {WIDEST} are supported")
    width = max(1, min(16, align) // size)
    runs, turns = -(-n // width), max(1, held // size // width)
    lanes = _power(max(-(-runs // turns), min(8, runs)))
    if lanes <= 32:
        turns = -(-runs // lanes)
        slots, settings = max(1, held // size // (turns * width)), {"warps": 4, **settings}
        settings.setdefault("blocks_per_sm", _blocks(resident or (20 if heavy else 24), settings["warps"]))
        return Rows(n, width, lanes, turns * lanes * width, rows=32 // lanes * slots, **settings)
    warps = -(-runs // (32 * turns))
    if warps > most and clusters and align == 16:
        return stream(n, size, inputs or size, weights, processors, **settings)
    cluster = min(8, _power(-(-warps // most))) if clusters else 1
    warps = min(32, -(-warps // cluster))
    settings = {
        "team": warps,
        "cluster": cluster,
        "blocks_per_sm": _blocks(
            resident or (28 if not heavy and weights <= size else 24 if cluster == 1 else 16), warps
        ),
        **settings,
        "warps": warps,
    }
    return Rows(n, width, 32 * warps, _columns(n, cluster, 32 * warps * width), **settings)


def stream(
    n: int,
    size: int,
    inputs: int,
    weights: int,
    processors: int = 132,
    *,
    cluster: int = 0,
    team: int = 8,
    teams: int = 2,
    stages: int = 4,
    **settings: Any,
) -> Rows:
    """Rows that stream: in as few blocks as have room for a team's part of a row in registers, and for weights and
    slots in shared memory.

    Where little goes along with a row, one team of 16 warps holds twice as much, and needs no cluster. Blocks of large
    clusters hear from one another later, so that there it takes three teams to keep memory busy, with half as much
    each.
    """
    width, blocks = 16 // size, _power(-(-n * size // PART))
    choices = [(blocks << i, team, teams) for i in range(3)]
    if cluster:
        choices = [(cluster, team, teams)]
    elif blocks <= 2 and inputs == size and weights <= size:
        choices.insert(0, (1, 16, 1))
    elif blocks > 2:
        choices.insert(0, (2 * blocks, team, 3))
    for blocks, team, teams in choices:
        cols = _columns(n, blocks, 32 * team * width)
        room = (SHARED - teams * blocks * TERMS - cols * weights) // (teams * cols * inputs)
        if room and blocks <= 8:
            break
    # Large clusters do not find room on every multiprocessor, and one that waited for room would begin when the others
    # end.
    at_once = processors if blocks <= 2 else processors * 85 // 100
    settings = {
        "store_hint": "stream",
        **settings,
        "team": team,
        "warps": 4 + teams * team,
        "cluster": blocks,
        "stages": max(1, min(stages, room)),
    }
    return Rows(n, width, 32 * team, cols, processors=at_once, **settings)


def drawing(config: Rows, rows: int, processors: int) -> Rows | None:
    """How so many rows are divided where whoever comes to need one draws it: multiprocessors are not equally far from
    memory, and results do not depend on who makes them (sums over rows would). None where they are not.

    To draw costs a launch, which clears a counter. Over a cluster somebody tells the others, behind the loads of a row:
    one where rows are whole panels of 256 elements, else one for every 256. Clusters that find no room at first may
    come late.
    """
    slow = config.cluster > 1 and config.n % 256 > 0
    if not config.stages or slow or rows < 6 * config.parts(rows):
        return None
    return replace(config, store_hint="", processors=processors)


def drawn(config: Rows, counter: Any, rows: Any) -> Any:
    """`rows` for `teams`, which are drawn where there is a counter of 0."""
    if counter is None:
        return rows
    return [pk.dynamic(counter, rows, taker=(t, config.teams)) for t in range(config.teams)]


def _columns(n: int, cluster: int, step: int) -> int:
    """Columns of a block of a cluster that covers rows of n elements, a multiple of `step`."""
    return -(-n // (cluster * step)) * step


def _blocks(resident: int, warps: int) -> int:
    """Blocks of `warps` warps that make about `resident`."""
    return max(1, (resident + warps // 2) // warps)


def _power(x: int) -> int:
    """The smallest power of two that is at least x."""
    return 1 << (x - 1).bit_length()


class Mine:
    """What the running team works on: which rows of a matrix, and which columns of them."""

    def __init__(
        self,
        config: Rows,
        tile: Any,
        part: Any,
        here: dict[Any, Any] | None = None,
        release: Callable[[], None] | None = None,
        place: tuple[Any, Any] = (0, 0),
    ):
        self.config, self.team, self.first, self.part = config, pk.group(config.team), tile, part
        self.start, shift = place  # of shifted rows: where their tile begins, and how far from there the row does
        self.left = part * config.cols - shift  # the row's column that is the tile's first
        self.end = config.n - self.left  # columns from here on lie past the row's end
        self.here = here or {}  # what lies in shared memory of a matrix or vector, or in registers of a matrix
        self.unread, self.release = {x for x in self.here if x.type.rank == 2}, release

    def load(self, x: Any) -> Any:
        """These rows of a matrix, as float32."""
        config, dtype = self.config, self._dtype(x)
        if x not in self.here:
            return self.read(x).to(f32)
        tile = self.team.load(self.here[x], dtype=dtype, layout=config.layout) if config.stages else self.here[x]
        self.unread.discard(x)
        if not self.unread and self.release:  # the slot may be filled again
            self.release()
        return tile.to(f32)

    def read(self, x: Any) -> Any:
        """These rows of a matrix, from global memory."""
        config, at = self.config, (0, 0, self.first, self.part)
        return self.team.load(
            x, at, rows=config.rows, cols=config.cols, dtype=self._dtype(x), layout=config.layout, hint=config.load_hint
        )

    def load_weight(self, w: Any) -> Any:
        """These columns of a vector."""
        config, dtype = self.config, self._dtype(w)
        if w in self.here:
            return self.team.load_row(self.here[w], dtype=dtype, layout=config.layout)
        return self.team.load_row(w, (0, 0, 0, self.part), length=config.cols, dtype=dtype, layout=config.layout)

    def store(self, o: Any, value: Any) -> None:
        """These rows of a matrix, rounded to its dtype."""
        value, config = value.to(o.dtype) if self.config.width > 1 else value, self.config
        at, kept, begin = (0, 0, self.first, self.part), None, self.first * config.n
        if config.shifted:
            at, kept = pk.at(0, self.start + self.part * config.cols), (begin, begin + config.n)
        self.team.store(o, value, at, hint=config.store_hint, columns=kept)

    def store_column(self, o: Any, value: Any) -> None:
        """A value for each of these rows into a vector."""
        self.team.store(o, value, (0, 0, 0, self.first))

    def store_element(self, o: Any, value: Any, col: Any) -> None:
        """A column vector of one element, `col` columns from where this part of these rows' first begins."""
        row, col = self.first, self.left + col
        self.team.store(o, value, pk.at(0, row * self.config.n + col) if self.config.shifted else pk.at(row, col))

    def cut(self, value: Any, fill: float) -> Any:
        """`value` with `fill` in the columns that are not the row's."""
        config = self.config  # the bounds that hold for every block tell which runs need no look
        if config.shifted:
            value = pk.left_fill(value, pk.minimum(-self.left, config.width - 1), fill)
        least = config.n - (config.cluster - 1) * config.cols
        return pk.right_fill(value, pk.maximum(self.end, least), fill) if config.ragged else value

    def exists(self, x: Any, value: Any) -> Any:
        """Which rows of a tile lie in the matrix x: the last tile may reach past its end."""
        return pk.row_index(value) + self.first * self.config.rows < x.rows

    def pick(self, x: Any, col: Any) -> Any:
        """An element of these rows' first, `col` columns from where this part begins: before these rows are loaded."""
        if x in self.here:
            return self.here[x][col]
        found = pk.var(f32)
        with pk.when(self.first < x.rows):
            found.set(x[self.first, self.part * self.config.cols + col])
        return found

    def max(self, value: Any) -> Any:
        return value.row_max(cluster=self.config.cluster > 1)

    def sum(self, value: Any) -> Any:
        return value.row_sum(cluster=self.config.cluster > 1)

    def dot(self, a: Any, b: Any) -> Any:
        return a.row_dot(b, cluster=self.config.cluster > 1)

    def sums(self, *values: Any, times: Any = None) -> list[Any]:
        """`sum` of each, or of each times a tile; several warps meet once for all."""
        return pk.row_sums(*values, times=times, cluster=self.config.cluster > 1)

    def _dtype(self, x: Any) -> Any:
        return x.dtype if self.config.width > 1 else f32


@dataclass
class Team:
    """A team of warps. `tiles()` walks the tiles of rows that it works on; what it makes before, it may sum over all of
    them."""

    config: Rows
    part: Any  # which columns of a row
    index: Any  # of this team among those of all blocks
    tiles: Callable[[], Iterator[Mine]]

    def zeros(self) -> Any:
        """A tile to add tiles of rows to."""
        return pk.group(self.config.team).zeros(f32, self.config.rows, self.config.cols, layout=self.config.layout)

    def finish(self, parts: Any, total: Any) -> None:
        """The sum over a tile's rows into this team's row of a workspace (`Rows.parts`)."""
        if self.config.rows > 1:
            total = total.col_sum()
        pk.group(self.config.team).store(parts, total, (0, 0, self.index, self.part))


def walk(config: Rows, inputs: tuple[Any, ...], weights: tuple[Any, ...] = (), rows: Any = None) -> Iterator[Mine]:
    """The tiles of rows that this team works on, one after another; `rows`: how many, where inputs are long rows."""
    for team in teams(config, inputs, weights, rows):
        yield from team.tiles()


def teams(config: Rows, inputs: tuple[Any, ...], weights: tuple[Any, ...] = (), rows: Any = None) -> Iterator[Team]:
    """The running team, to be traced once for each role that it may be. `rows`: how many, or what goes through them."""
    part, place = pk.cluster.rank if config.cluster > 1 else 0, pk.cluster.index
    inputs, weights = (tuple(x for x in some if x is not None) for some in (inputs, weights))
    if config.stages:
        yield from _stream(config, inputs, weights, part, place, inputs[0].rows if rows is None else rows)
        return
    team = pk.group(config.team)
    index = place * team.count + team.index
    yield Team(
        config,
        part,
        index,
        lambda: _stay(config, inputs, part, place, index) if config.stays else iter([Mine(config, index, part)]),
    )


def _stay(config: Rows, inputs: tuple[Any, ...], part: Any, place: Any, index: Any) -> Iterator[Mine]:
    """Tiles of a block that stays: the next one is on its way while one is worked on."""
    stride = pk.grid_size.x // config.cluster * config.teams
    following = {x: Mine(config, index, part).read(x) for x in inputs}
    for lap in pk.range(pk.cdiv(pk.cdiv(inputs[0].rows, config.rows) - place * config.teams, stride)):
        here = {x: tile + 0 for x, tile in following.items()}
        ahead = Mine(config, index + (lap + 1) * stride, part)
        for x, tile in following.items():
            tile[:] = ahead.read(x)
        yield Mine(config, index + lap * stride, part, here)


def _stream(config: Rows, inputs: Any, weights: Any, part: Any, place: Any, rows: Any) -> Iterator[Team]:
    rings = [
        pk.ring(config.stages, **{f"x{i}": pk.sv(x.dtype, config.cols) for i, x in enumerate(inputs)}, name=f"rows{t}")
        for t in range(config.teams)
    ]
    kept, loaded = {w: pk.shared(pk.sv(w.dtype, config.cols), name="weight") for w in weights}, pk.barrier()
    stride = pk.grid_size.x // config.cluster

    def in_turn(t: int, loads: bool) -> Iterator[Any]:  # past the last row zeros are read, and nothing is written
        for lap in pk.range(pk.cdiv(rows - place, stride * config.teams)):
            yield place + (lap * config.teams + t) * stride

    rows_of = (lambda t, loads: rows[t].take() if loads else iter(rows[t])) if isinstance(rows, list) else in_turn

    def begin(row: Any) -> tuple[Any, Any]:
        """Where the tile of a shifted row begins, at a multiple of 16 bytes, and the row in it."""
        first, run = row * config.n, 16 // inputs[0].dtype.size
        return first // run * run, first % run

    with pk.role("load", warps=4, registers=24):
        for t, ring in enumerate(rings):  # a warp for each team, so that none waits for another's slot
            with pk.role(f"load{t}", warps=1):
                if kept and t == 0:
                    pk.tma.expect(loaded, *kept.values())
                for w, to in kept.items() if t == 0 else ():
                    pk.tma.load(to, w, (0, 0, 0, part), loaded)
                for row in rows_of(t, True):
                    with ring.fill() as slot:
                        at = pk.at(0, begin(row)[0] + part * config.cols) if config.shifted else (0, 0, row, part)
                        own = (row * config.n, (row + 1) * config.n) if config.shifted else None  # others are written
                        for i, x in enumerate(inputs):
                            pk.tma.load(getattr(slot, f"x{i}"), x, at, columns=own)

    def tiles(t: int, ring: Any) -> Iterator[Mine]:
        if kept:
            pk.wait(loaded, 0)
        for row in rows_of(t, False):
            slot = ring.read()
            here = {x: getattr(slot, f"x{i}") for i, x in enumerate(inputs)}
            yield Mine(config, row, part, kept | here, ring.release, begin(row) if config.shifted else (0, 0))

    for t, ring in enumerate(rings):
        with pk.role(f"team{t}", warps=config.team, registers=config.budget):
            yield Team(config, part, place * config.teams + t, partial(tiles, t, ring))
