"""Which ways there are to divide attention and products among the multiprocessors of Hopper."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from .gemm import Config

SPLITS = (2, 3, 4, 6, 8, 12, 16)  # parts of the keys: a kernel that merges for each


def attention_settings(dim: int) -> tuple[Mapping[str, Any], ...]:
    """What may differ from `attention_hopper.attend`'s defaults."""
    if dim <= 64:
        several = ({"stages": 3}, {"stages": 3, "consumers": 3})
        small: Mapping[str, Any] = {"consumers": 1, "queries": 1, "stay": False}
    elif dim <= 128:
        several = ({},)
        small = {"consumers": 1, "queries": 1, "keys": 64, "stay": False}
    else:
        return {"keys": 80, "queries": 1}, {"keys": 80, "queries": 1, "stay": False}
    wide = ({"keys": 160, "queries": 1, "pingpong": False, "stay": False},) if dim > 64 else ()
    return (*several, *({**x, "stay": False} for x in several), *wide, small)


def attention_splits(tiles: int, slots: int, most: int) -> tuple[int, ...]:
    """Into how many parts the keys of `tiles` tiles may be divided, where so many run at a time."""
    return tuple(s for s in SPLITS if s <= most and (s - 1) * tiles < slots)


CONFIGS = (
    Config(128, 256, 4, 2, group=8),
    Config(128, 256, 4, 2, group=4, cluster=2),
    Config(256, 128, 4, 2, group=4),
    Config(192, 192, 3, 3, group=6),
    Config(192, 128, 4, 3, group=6),
    Config(128, 192, 4, 2, group=8),
    Config(128, 192, 4, 2, group=4, cluster=2),
    Config(128, 128, 6, 2, group=8),
    Config(128, 128, 6, 2, group=4, cluster=2),
    Config(64, 128, 4, 1, depth=256),
    Config(64, 256, 5, 1),
    Config(64, 64, 6, 1, depth=256),
    Config(64, 64, 10, 1, cluster=2, share="k"),
    Config(64, 128, 6, 1, cluster=4, share="k"),
    Config(64, 128, 6, 1, cluster=8, share="k"),
)


def product_splits(config: Config, tiles: int, slots: int, steps: int) -> tuple[int, ...]:
    """Into how many parts of k the tiles of the last round may be divided."""
    rest = tiles % slots
    if config.cluster > 1 or not rest:
        return ()
    most = min(slots // rest, steps // 2, 16)
    return tuple(sorted({s for s in (2, 3, most // 2, most) if 2 <= s <= most}))


ONCE = 128  # so few rows that b is read once, or by two blocks at about the same time
FEW = 32  # so few rows make all blocks ask for the same lines: a cycle for each time


def for_rows(config: Config, m: int) -> Config:
    """The configuration as it runs for m rows."""
    if m <= FEW and config.rows == 64 and not config.splits:
        config = replace(config, rotate=True)
    return replace(config, once="b") if m <= ONCE else config


def product_scratch(config: Config, m: int, n: int, size: int, splits: int, slots: int) -> tuple[Any, Any]:
    """dtype and shape of `parts` and `flags` of `gemm`, for a result of elements of `size` bytes."""
    tiles, width = -(-m // config.rows) * -(-n // config.cols), min(config.cols, 128 // size)
    rest = tiles % slots
    pieces = config.rows // 64 * config.cols // width
    return ("f32", rest * (splits - 1) * pieces, 64 * width), ("i32", rest * config.consumers)

