"""What a role's gangs take along from the gang they come from, and what they bring back."""

from __future__ import annotations

from typing import Any

import numpy as np

from .machine import Machine
from .memory import Address


def part(held: Any, first: int, warps: int, of: int) -> Any:
    """What a run of warps holds of a value held by `of` warps."""
    if isinstance(held, Address):
        return Address(part(held.base, first, warps, of), part(held.column, first, warps, of))
    if not isinstance(held, np.ndarray):
        return held
    span = of // held.shape[0]
    return held[first // span : -(-(first + warps) // span)]


def join_parts(m: Machine, children: list[Machine]) -> None:
    """What gangs that together are all warps of a machine changed and made."""
    for child in children:
        m.flying.update(child.flying)
    for value in set.intersection(*(set(child.env) for child in children)):
        if value not in m.env or any(child.env[value] is not child.given[value] for child in children):
            m.env[value] = _whole([child.env[value] for child in children], [child.warps for child in children])


def _whole(held: list[Any], warps: list[int]) -> Any:
    """One value from those of gangs."""
    if isinstance(held[0], Address):
        return Address(_whole([x.base for x in held], warps), _whole([x.column for x in held], warps))
    if isinstance(held[0], np.ndarray) and held[0].ndim > 1:
        return np.concatenate(held)
    first = held[0]
    if not isinstance(first, np.ndarray) and not any(isinstance(x, np.ndarray) or x != first for x in held):
        return first
    together = np.concatenate([np.broadcast_to(x, n) for x, n in zip(held, warps, strict=True)])
    return first if not isinstance(first, np.ndarray) and (together == together[0]).all() else together


def merge(m: Machine, child: Machine) -> None:
    """What a role changed of the values from before it."""
    first = child.first - m.first
    for value, before in child.given.items():
        now = child.env[value]
        if now is before or value not in m.env:
            continue
        held = m.env[value]
        if isinstance(now, np.ndarray) and now.ndim > 1:
            held = held.copy()
            span = child.warps // now.shape[0]
            held[first // span : (first + child.warps) // span] = now
        else:
            held = np.array(np.broadcast_to(held, m.warps))
            held[first : first + child.warps] = now
        m.env[value] = held
