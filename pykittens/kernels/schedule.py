"""Which way to divide attention or a product among Hopper's multiprocessors takes least time, as a model predicts it.

    time = launch + hypot(busiest multiprocessor, bytes / bandwidth) + merging

The busiest multiprocessor has so many tiles one after another; a tile takes a constant, and a time for each of its
steps: keys or elements of k. `schedule.json` has the constants of each way. `python -m benchmarks.fit` finds them from
times at random shapes (benchmarks/results/schedules, by `python -m benchmarks.schedules`), and says how far the choice
is from the fastest way at shapes that it has not seen. Times are microseconds, of an H100 or H200.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..gpu import driver
from .gemm import Config, own_columns
from .widths import widths as widths_of

Constants = Sequence[float]
SPLITS = (2, 3, 4, 6, 8, 12, 16)  # parts of the keys: there is a merging kernel for each
WIDTHS = (64, 96, 128, 256)  # head dimensions that were measured
MASKED = 0.4  # what a mask adds to a step, of one
THREAD, ODD = 188, 0.85  # registers for tiles of scores, weights and output; what an odd number of 16 keys is worth
ONCE = 128  # so few rows of a product that b is read once, or by two blocks at about the same time
FEW = 32  # so few rows make all blocks ask for the same lines: each column of tiles begins elsewhere
CONFIGS = (
    Config(64, 64, 6, 1, depth=256),
    Config(64, 64, 10, 1, cluster=2, share="k"),
    Config(64, 64, 10, 1, cluster=4, share="k"),
    Config(64, 128, 4, 1, depth=256),
    Config(64, 128, 6, 1, cluster=8, share="k"),
    Config(64, 256, 5, 1),
    Config(128, 64, 8, 2),
    Config(128, 128, 6, 2, group=8),
    Config(128, 128, 6, 2, group=4, cluster=2),
    Config(128, 192, 4, 2, group=8),
    Config(128, 192, 4, 2, group=4, cluster=2),
    Config(128, 256, 4, 2, group=8),
    Config(128, 256, 4, 2, group=4, cluster=2),
    Config(192, 128, 4, 3, group=6),
    Config(192, 192, 3, 3, group=6),
    Config(256, 128, 4, 2, group=4),
    Config(256, 128, 4, 2, group=4, cluster=2, share="a"),
)
DIVIDED = ((128, 64), (128, 128), (128, 256))  # rows and columns of tiles of which the last round may be divided
NARROW, EVEN, PARTS = range(16, 257, 16), range(32, 257, 32), (16, 32, 48, 64, 96, 128)
SWAPPED: tuple[tuple[int, int, str, Sequence[int]], ...] = (  # rows, cluster, what its blocks share, and columns
    (64, 1, "a", NARROW),
    (64, 2, "a", EVEN),
    (64, 4, "k", PARTS),
    (64, 8, "k", PARTS),
    (128, 1, "a", NARROW),
    (128, 2, "a", EVEN),
    (128, 2, "b", EVEN),
    (256, 2, "a", range(16, 193, 16)),
)
ROOM = 227 * 1024  # bytes of shared memory


@lru_cache(maxsize=512)
def swapped(rows: int, cols: int, cluster: int = 1, share: str = "a") -> Config:
    """Tiles of the result's transpose: of so many of its columns and rows, with as many stages as there is room for."""
    consumers, divided = (1 if rows == 64 else 2), share == "k"
    depth = 256 if rows == 64 and cols <= 128 and not divided else 128
    config = Config(rows, cols, 1, consumers, 4, cluster, share, depth, swap=True)
    pieces = rows // (64 * consumers) * -(-config.own // 64)
    leaving = (pieces if pieces % 2 else 2) * consumers * min(config.own, 64) * 128
    sums = rows * (cols + cluster * config.own) * 4 if divided else 0  # that are sent, and received
    return replace(config, stages=min(10, (ROOM - leaving - sums) // ((rows + cols) * depth)))


class DeviceModel(NamedTuple):
    """What the model knows of a GPU: multiprocessors, and TB/s of its memory, as the driver says. An H100's here."""

    sms: int = 132
    bandwidth: float = 3.352


def machine(device: int | None) -> DeviceModel:
    """A device; the simulated GPU is divided as an H100."""
    return (
        DeviceModel()
        if device is None
        else DeviceModel(driver.multiprocessors(device), driver.memory_bandwidth(device))
    )


class Way(NamedTuple):
    """Of attention: settings of `attention_hopper.attend`, into how many parts the keys are divided, and whether
    blocks that stay take tiles from a counter (`attention_dynamic`)."""

    keys: int = 128
    stages: int = 2
    queries: int = 2
    consumers: int = 2
    pingpong: bool = True
    stay: bool = True
    splits: int = 1
    dynamic: bool = False

    @property
    def rows(self) -> int:
        return 64 * self.consumers

    @property
    def settings(self) -> dict[str, Any]:
        """Those that `attention_hopper.attend` has."""
        return {name: value for name, value in self._asdict().items() if name not in ("splits", "dynamic")}

    @property
    def name(self) -> str:
        """What its constants stand under: the parts have the same, and where tiles come from does not matter."""
        tiles = f"keys={self.keys} stages={self.stages} queries={self.queries} consumers={self.consumers}"
        return f"{tiles} pingpong={self.pingpong:d} stay={self.stay:d}"

    @property
    def words(self) -> str:
        """For people."""
        return f"{self.name} splits={self.splits} dynamic={self.dynamic:d}"


class ProductWay(NamedTuple):
    """Of a product: `gemm`'s configuration, and into how many parts of k the tiles of the last round are divided."""

    config: Config
    splits: int = 1

    @property
    def name(self) -> str:
        c, divided = self.config, " divided" if self.splits > 1 else ""
        if c.swap:  # one name for all widths
            return f"swapped {c.rows} cluster={c.cluster}{c.share if c.cluster > 1 else ''}"
        return f"{c.rows}x{c.cols} stages={c.stages} cluster={c.cluster}{c.share if c.cluster > 1 else ''}{divided}"

    @property
    def words(self) -> str:
        """For people."""
        return f"{self.name} cols={self.config.cols}" if self.config.swap else f"{self.name} splits={self.splits}"


class ChosenWay(NamedTuple):
    """The way that is taken, and the microseconds that it is predicted to take."""

    way: Any
    microseconds: float


def roomiest(dim: int, values: int, registers: int = THREAD) -> int:
    """Keys of a tile for two consumers of 64 rows that have their queries once and two tiles of keys and values: as
    many as shared memory and a thread's registers take. Products of an odd number of 16 keys take more than their part.
    """
    cols, wide = widths_of(dim, values)
    fit = (
        k for k in range(16, 129, 16) if 256 * cols + 4 * k * (cols + wide) < ROOM and wide / 2 + 0.75 * k <= registers
    )
    return max(fit, key=lambda k: k * (ODD if k % 32 else 1))


def ways(dim: int, values: int) -> tuple[Way, ...]:
    """How attention with these head dimensions may run, apart from parts of the keys."""
    if dim > 128:
        way = Way(roomiest(dim, values), queries=1)
        return way, way._replace(stay=False)
    if dim > 64:
        small = Way(64, queries=1, consumers=1, stay=False)
        return Way(), Way(stay=False), Way(160, queries=1, pingpong=False, stay=False), small
    two, three = Way(stages=3), Way(stages=3, consumers=3)
    return two, three, two._replace(stay=False), three._replace(stay=False), Way(queries=1, consumers=1, stay=False)


class AttentionShape(NamedTuple):
    """The shape of an attention. left, right: the sides of a window, None without an end; causal is a right side of 0.
    sinks: whether there are; they take registers, as a window does. values: their head dimension, if not that of keys.
    head_rows: rows of each of the heads whose n rows are one after another, as one head's.
    """

    batch: int
    heads: int
    shared: int  # heads of keys
    n: int
    m: int
    dim: int
    causal: bool
    left: int | None = None
    right: int | None = None
    sinks: bool = False
    values: int | None = None
    head_rows: int | None = None

    @property
    def dims(self) -> tuple[int, int]:
        """The head dimensions of keys and of values."""
        return self.dim, self.values or self.dim

    def ways(self, sms: int, divide: bool = True) -> Iterator[Way]:
        """All that may be fastest, and spill no registers."""
        plain = self.left is None and self.right is None and not self.sinks
        for way in ways(*self.dims):
            if not plain and (way.consumers == 3 or way.keys == 160):
                continue
            yield way
            if way.stay and not self.head_rows and (self.causal or self.left is not None or self.right is not None):
                yield way._replace(dynamic=True)
            if divide and plain and not way.stay and way.keys != 160:
                tiles, most = -(-self.n // way.rows) * self.batch * self.heads, self.m // (2 * way.keys)
                slots = sms * _residents(way)
                yield from (way._replace(splits=s) for s in SPLITS if s <= most and (s - 1) * tiles < slots)

    def microseconds(self, way: Way, constants: Constants, common: Constants, machine: DeviceModel) -> float:
        """Predicted for a way. Its own constants: launch, tile, step of keys, and what a causal tile takes more; those
        of all ways: a step where a block is alone that could be one of two, of the shortest tile at the end, the
        share of bandwidth, merging, its bandwidth, and where tiles come from a counter, what setting that to 0 takes
        more, and each tile."""
        sms = machine.sms
        launch, tile, step, masked = constants
        alone, last, bandwidth, merge, parts, counter, taking = common
        count, heads = -(-self.n // way.rows), self.batch * self.heads
        jobs, slots = count * heads * way.splits, sms * _residents(way)
        step = step * alone if _residents(way) == 2 and jobs <= sms else step
        right = 0 if self.causal else self.right
        if right is None and self.left is None:  # all tiles are alike
            busiest = -(-jobs // slots) * (tile + step * -(-self.m // (way.keys * way.splits)))
        else:
            rows, of_head = np.arange(count) * way.rows, self.head_rows or self.n
            rows, behind = rows % of_head + self.m - of_head, rows % of_head + way.rows
            if self.head_rows:  # where two heads meet
                rows, behind = np.where(behind > of_head, self.m - of_head, rows), np.minimum(behind, of_head)
            ends = self.m if right is None else np.minimum(np.maximum(behind + self.m - of_head + right, 1), self.m)
            begins = 0 if self.left is None else np.minimum(np.maximum(rows - self.left, 0), ends - 1)
            steps = np.ceil((-(-ends // way.keys) - begins // way.keys) / way.splits)
            each = tile + step * steps + masked * ((right is not None) + (self.left is not None))
            if self.head_rows and right is not None:  # where two heads meet, more steps than a tile's own rows need one
                full = np.maximum(np.minimum(rows + right + 1, self.m), begins) // way.keys
                more = -(-ends // way.keys) - full - -(-way.rows // way.keys)
                each += MASKED * step * np.maximum(more, 0) / way.splits
            fixed = way.stay and not way.dynamic
            if fixed and (self.left is not None or self.head_rows):  # tiles in the order of their rows
                busiest = (to_and_fro if self.left is not None and right == 0 else in_turn)(each, jobs, slots)
            elif fixed:  # `pk.triangle`: a long tile and a short one; an odd number's is alone
                short = np.arange(-(-count // 2))
                pairs = each[count - 1 - short] + np.where(2 * short + 1 < count, each[short], tile + step)
                busiest = in_turn(pairs, len(pairs) * heads, slots)
            else:  # the longest first, unless heads meet: no block has more tiles than the others but one
                each = each + taking * way.dynamic
                end = each.mean() if self.head_rows else each.min()
                busiest = max(each.max(), each.sum() * heads * way.splits / slots + last * end)
                busiest = min(busiest, -(-jobs // slots) * each.max()) + counter * way.dynamic
        queries, both = self.batch * self.heads * self.n, sum(self.dims)
        moved = 2 * both * (queries + self.batch * self.shared * self.m) / 1e6  # MB
        merging = merge + 8e-6 * way.splits * queries * self.dims[1] / parts if way.splits > 1 else 0.0
        return launch + math.hypot(busiest, moved / (bandwidth * machine.bandwidth)) + merging


def in_turn(times: Any, count: int, blocks: int) -> float:
    """What the busiest of so many blocks has of a count of tiles that they take in turn, whose times repeat."""
    period, block = len(times), np.arange(min(blocks, count))
    rounds = (count - 1) // blocks  # and the last one, which some blocks have
    apart = math.gcd(blocks, period)
    cycles, more = divmod(rounds, period // apart)
    busy = cycles * times.reshape(-1, apart).sum(0)[block % apart]
    busy = busy + times[(block[:, None] + blocks * np.arange(more)) % period].sum(1)
    last = rounds * blocks + block
    return float((busy + np.where(last < count, times[last % period], 0.0)).max())


def to_and_fro(times: Any, count: int, blocks: int) -> float:
    """The same where every other round of tiles is dealt backwards."""
    if count > 64 * blocks:  # the differences are small
        return float(times.mean() * count / blocks + times.max() / 2)
    rounds = np.concatenate([np.resize(times, count), np.zeros(-count % blocks)]).reshape(-1, blocks)
    rounds[1::2] = rounds[1::2, ::-1]
    return float(rounds.sum(0).max())


def straddling(stride: int) -> float:
    """The share of rows, so many bytes apart, of which 128 bytes lie across two lines of L2."""
    return 1 - math.gcd(stride, 128) / 128


def _residents(way: Way) -> int:
    return 2 if way.consumers == 1 else 1


class Multiply(NamedTuple):
    """The shape of a product, of elements of `size` bytes. straddle: the share of each operand's rows that lie across
    lines of L2; ragged: whether rows in memory that lie along m, and along n, end inside a sector of 32 bytes; swap:
    whether tiles may be those of the transpose, which wants rows of a along k, 16 bits and no epilogue."""

    m: int
    n: int
    k: int
    size: int = 2
    straddle: tuple[float, float] = (0.0, 0.0)
    ragged: tuple[bool, bool] = (False, False)
    swap: bool = False

    def ways(self, sms: int, divide: bool = True) -> Iterator[ProductWay]:
        """All that may be fastest."""
        for config in CONFIGS:
            tiles = -(-self.m // config.rows) * -(-self.n // config.cols)
            if (config.rows == 64 and tiles > 16 * sms) or (config.splits and tiles * config.cluster > 2 * sms):
                continue
            yield ProductWay(config)
            rest, steps = tiles % sms, -(-self.k * self.size // config.depth)
            if divide and config.cluster == 1 and (config.rows, config.cols) in DIVIDED and rest:
                most = min(sms // rest, steps // 2, 16)
                yield from (ProductWay(config, s) for s in sorted({2, 3, most // 2, most}) if 2 <= s <= most)
        for rows, cluster, share, widths in SWAPPED if self.swap else ():
            before, down, right = 0, cluster if share == "b" else 1, cluster if share == "a" else 1
            for cols in widths:
                count = -(-self.m // (cols * right))
                blocks = count * -(-self.n // (rows * down)) * cluster
                few = rows > 64 or blocks <= (2 if share == "k" else 16) * sms
                if few and count != before and (share != "k" or cols % own_columns(cols, cluster) == 0):
                    yield ProductWay(swapped(rows, cols, cluster, share))  # of as many tiles the narrowest
                    before = count

    def microseconds(self, way: ProductWay, constants: Constants, common: Constants, machine: DeviceModel) -> float:
        """Predicted for a way. Its own constants: launch, tile, and for 128 bytes of k what tensor cores take and what
        loads take; those of all ways: the share of bandwidth; a part of a divided round; of rows that TMA cannot write,
        what they take of bandwidth and of a tile; of a tile, whose rows lie across lines of L2; of loads, what such
        rows take, what is left of them where a block is alone, what is outside a's and b's ends, which TMA fills with
        zeros more slowly than it loads, and a tile where rows of memory end inside a sector; of swapped tiles, whose
        own constants are those of 128 columns, by how many columns more than they have they multiply, and load.
        """
        launch, tile, multiply, load = constants
        bandwidth, part, writes, unaligned, crossing, across, alone, below, beside, inside, narrow, thin = common
        c, (down, right), sms = way.config, way.config.stack, machine.sms
        m, n, straddle = self.m, self.n, self.straddle
        if c.swap:
            m, n, straddle = n, m, straddle[::-1]
            tile, multiply = tile * c.cols / 128, multiply * (c.cols + narrow) / (128 + narrow)
            load *= (c.rows + c.cols + thin) / (c.rows + 128 + thin)
        high, wide = -(-m // (c.rows * down)) * down, -(-n // (c.cols * right)) * right
        tiles, area, odd = high * wide, c.rows * c.cols / 2**15, self.n % 8 != 0  # results have 16 bits at least
        rows, cols = c.rows / right, c.cols / down  # of the operands, what a block asks for
        asked = rows * (1 + across * straddle[0] + below * (1 - m / (high * c.rows)))
        asked += cols * (1 + across * straddle[1] + beside * (1 - n / (wide * c.cols)))
        load *= asked / (rows + cols)
        own = c.cluster if c.splits else 1  # blocks of a tile
        at_once = max(1, sms // own if own <= 2 else sms * 10 // (11 * own))  # large clusters find less room
        steps = -(-self.k * self.size // (c.depth * own))
        rounds, rest = divmod(tiles, at_once)
        last = -(-steps // way.splits) if rest else 0
        full, end = at_once * own / sms, min(1.0, rest * own * way.splits / sms)  # how busy the GPU is
        loading = rounds * steps * (alone + (1 - alone) * full) + last * (alone + (1 - alone) * end)
        all_rounds = rounds + (rest > 0)
        edge = (
            any(self.ragged)
            * inside
            * (rounds * steps + last)
            / all_rounds
            * (1 + (all_rounds - 1) / (high if c.swap else wide))
        )
        busiest = c.depth / 128 * ((multiply * (rounds * steps + last)) ** 4 + (load * loading + edge) ** 4) ** 0.25
        crosses = 0.0 if odd else straddling(2 * self.n)
        busiest += all_rounds * (tile + (unaligned * odd + crossing * crosses) * area)
        busiest += part * way.splits * area if way.splits > 1 else 0.0
        moved = (self.m * self.k + self.k * self.n + self.m * self.n * (writes if odd else 1)) * self.size / 1e6
        return launch + math.hypot(busiest, moved / (bandwidth * machine.bandwidth))


def contiguous(m: int, n: int, k: int, size: int = 2) -> Multiply:
    """A product whose operands are stored by rows without gaps, or copied to whole lines where TMA needs it."""
    across = [0.0 if x * size % 16 else straddling(x * size) for x in (k, n)]
    return Multiply(m, n, k, size, (across[0], across[1]), (False, n * size % 32 == 16), size == 2)


@cache
def constants() -> dict[str, Any]:
    """What was fitted, with the card and the date of its measurements."""
    return json.loads(Path(__file__).with_suffix(".json").read_text())


def attention_choices(shape: AttentionShape, machine: DeviceModel, divide: bool = True) -> list[ChosenWay]:
    """The ways of an attention, the best first. divide: the keys may be divided."""
    width = next(w for w in WIDTHS if w >= shape.dim)
    known = constants()["attention"][str(width)]
    return _ordered(shape, known if width <= 128 else resized(known, width, shape.dims), machine, divide)


def resized(known: Mapping[str, Constants], width: int, dims: tuple[int, int]) -> dict[str, Constants]:
    """Constants for tiles of as many keys as `dims` have room for, from those of a width: steps take as long as their
    products."""
    theirs, ours = roomiest(width, width), roomiest(*dims)
    size, named = ours * sum(dims) / (2 * theirs * width), (f"keys={theirs} ", f"keys={ours} ")
    return {
        name.replace(*named): own if name == "all" else (*own[:2], own[2] * size, *own[3:])
        for name, own in known.items()
    }


def product_choices(shape: Multiply, machine: DeviceModel, divide: bool = True) -> list[ChosenWay]:
    """The ways of a product, the best first. divide: the last round's tiles may be divided."""
    return _ordered(shape, constants()["product"], machine, divide)


def _ordered(
    shape: AttentionShape | Multiply, known: Mapping[str, Any], machine: DeviceModel, divide: bool
) -> list[ChosenWay]:
    choices, common = [], known["all"]
    for way in shape.ways(machine.sms, divide):
        if (own := known.get(way.name)) is not None:  # else it has not been measured yet
            choices.append(ChosenWay(way, shape.microseconds(way, own, common, machine)))  # type: ignore[arg-type]
    return sorted(choices, key=lambda choice: choice.microseconds)


@lru_cache(maxsize=4096)
def attention(shape: AttentionShape, machine: DeviceModel, divide: bool = True) -> ChosenWay:
    """How an attention runs."""
    return attention_choices(shape, machine, divide)[0]


@lru_cache(maxsize=4096)
def product(shape: Multiply, machine: DeviceModel, divide: bool = True, pair: bool = False) -> ChosenWay:
    """How a product runs. pair: two products, in two halves of the columns, whose tiles nobody divides."""
    choices = product_choices(shape, machine, divide and not pair)
    best = next(c for c in choices if not pair or (c.way.config.cols % 128 == 0 and _halved(c.way.config)))
    return best._replace(way=best.way._replace(config=for_rows(best.way.config, shape.m)))


def _halved(config: Config) -> bool:
    """Whether a pair of products may share its tiles."""
    return config.rows <= 128 and not config.splits


def for_rows(config: Config, m: int) -> Config:
    """The configuration as it runs for m rows."""
    if m <= FEW and config.rows == 64 and config.cluster == 1:
        config = replace(config, rotate=True)
    return replace(config, once="a" if config.swap else "b") if m <= ONCE else config
