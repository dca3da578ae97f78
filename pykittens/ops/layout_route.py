"""The way of every element from one register layout to another: evaluated from the layouts, whatever they are.

For each register of the result, every lane needs one element: which lane of its warp holds it, and in which register.
Nothing here knows a layout by name; `thread_map.Registers` says who holds what.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ..loading import dataclass
from ..thread_map import Registers
from ..types import Coalesced, Layout, RegisterTile, RegisterVector

Register = RegisterTile | RegisterVector


@dataclass(frozen=True)
class Source:
    """Where the 32 lanes of a warp find what one register of theirs shall hold: a lane and a register for each."""

    lanes: tuple[int, ...]
    registers: tuple[int, ...]


@lru_cache(maxsize=256)
def route(source: Register, target: Register, transposed: bool) -> tuple[Source, ...] | None:
    """The sources of a thread's registers of `target`, in order; None where an element would have to leave its warp.

    Where several lanes hold copies, the nearest to the one that asks gives it (its own, if it has one).
    """
    held, wanted = _elements(source, False), _elements(target, transposed)
    ways = {_within_a_warp(held[warp], wanted[warp]) for warp in range(target.warps)}
    return ways.pop() if len(ways) == 1 else None


@lru_cache(maxsize=256)
def shuffles(source: Register, target: Register, transposed: bool) -> int | None:
    """How many shuffles the route takes, one for each register that some lane gives to the lanes of one pattern."""
    found = route(source, target, transposed)
    return None if found is None else len({(register, x.lanes) for x in found for register in x.registers})


@lru_cache(maxsize=256)
def row_route(tile: RegisterTile, rows: tuple[int, ...]) -> tuple[Source, ...] | None:
    """The same of a tile like `tile`, whose row i is row rows[i] of it."""
    held = _elements(tile, False)
    wanted = np.where(held < 0, -1, np.asarray(rows)[held // tile.cols] * tile.cols + held % tile.cols)
    ways = {_within_a_warp(held[warp], wanted[warp]) for warp in range(tile.warps)}
    return ways.pop() if len(ways) == 1 else None


def _elements(type: Register, transposed: bool) -> np.ndarray:
    """The number of the element that each thread's registers hold: (warps, registers, 32), -1 past the end."""
    found = Registers(type).moves(type.shape, type.warps)[0]
    if not transposed:
        return found
    rows, cols = type.shape
    return np.where(found < 0, -1, found % cols * rows + found // cols)


def _within_a_warp(held: np.ndarray, wanted: np.ndarray) -> tuple[Source, ...] | None:
    """The same for one warp: `held` and `wanted` are (registers, 32)."""
    elements = 1 + max(held.max(), wanted.max())
    place = np.argsort(held.ravel(), kind="stable")  # register * 32 + lane, by element
    place = place[held.ravel()[place] >= 0]
    element = held.ravel()[place]
    count = np.bincount(element, minlength=elements)
    if (count[wanted[wanted >= 0]] == 0).any():
        return None
    holders = np.full((elements, count.max()), -1)  # all copies of each element, the lowest register first
    holders[element, np.arange(len(place)) - (np.cumsum(count) - count)[element]] = place
    lane = np.arange(32)
    choice = holders[np.maximum(wanted, 0)]  # (registers, 32, copies)
    distance = np.where(choice < 0, 32, (choice % 32) ^ lane[:, None])
    found = np.take_along_axis(choice, distance.argmin(2)[..., None], 2)[..., 0]
    found = np.where(wanted < 0, lane, found)
    return tuple(Source(tuple((row % 32).tolist()), tuple((row // 32).tolist())) for row in found)


def lane_expression(values: tuple[int, ...]) -> str:
    """C for a function of `lane` that has these 32 values (0 to 31): `lane >> 1 ^ (lane & 1) << 4`.

    Layouts deal elements out by the bits of the lane's number, so that each bit of a lane's number moves the value by
    an exclusive or; a function that is not like that is written out bit by bit.
    """
    moves = [values[1 << bit] ^ values[0] for bit in range(5)]
    if all(value == _moved(values[0], moves, lane) for lane, value in enumerate(values)):
        shifts: dict[int, int] = {}  # bits of the lane that go the same way
        terms = [str(values[0])] if values[0] else []
        for bit, move in enumerate(moves):
            if move.bit_count() == 1:
                shift = move.bit_length() - 1 - bit
                shifts[shift] = shifts.get(shift, 0) | 1 << bit
            elif move:
                terms.append(f"(lane >> {bit} & 1) * {move}")
        for shift, mask in shifts.items():
            kept = f"(lane & {mask})" if mask != 31 else "lane"
            terms.append(kept if shift == 0 else f"({kept} {'<<' if shift > 0 else '>>'} {abs(shift)})")
        return " ^ ".join(terms) or "0"
    return " | ".join(
        f"(({lane_mask([value >> bit & 1 == 1 for value in values])} >> lane & 1) << {bit})" for bit in range(5)
    )


def _moved(start: int, moves: list[int], lane: int) -> int:
    for bit, move in enumerate(moves):
        start ^= move if lane >> bit & 1 else 0
    return start


def lane_mask(chosen: list[bool]) -> str:
    """C for a word with a bit for each lane."""
    return f"{sum(1 << lane for lane, is_chosen in enumerate(chosen) if is_chosen):#x}u"


def spelled(layout: Layout) -> str:
    """A layout as one writes it."""
    return f"pk.coalesced({layout.lanes}, {layout.width})" if isinstance(layout, Coalesced) else repr(layout)
