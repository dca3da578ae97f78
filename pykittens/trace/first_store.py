"""Sums in global memory that nobody clears before: of all that add to a row of them, who comes first stores.

    sums = FirstStores(dq, claims=claims)    # claims: int32, 0 at first, one for each row of dq
    first = sums.wait(at)                    # what comes before is there
    sums.add(vector, at, first)              # stores or adds

Who waits, waits for a warp that runs already. Whether that always gets on is for those who add to say: where a block
has several warps, each for a part of all its rows, all blocks must come to the rows in one order.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from .flow import otherwise, when
from .hopper import tma
from .memory import Shared, Tensor
from .memory_order import atomic_add, signal, wait_for
from .scopes import warp

STORED = 1 << 20  # more than all that add to one row


class FirstStores:
    """Rows of `sums`, to which warps add vectors. turns: flags for an order, zeros at first, or None for any; claims:
    None where the sums are zeros, to which everybody adds; else the turns, or, for any order, zeros.
    """

    def __init__(self, sums: Tensor, turns: Tensor | None = None, claims: Tensor | None = None):
        self.sums, self.turns, self.claims = sums, turns, claims

    def wait(self, at: Any, turn: Callable[[], Any] | None = None) -> Any:
        """Waits until as many as `turn` says have added, if there are turns; else until the first has stored. Whether
        this warp is the first, who stores; None if nobody does.
        """
        if self.turns is not None:
            assert turn is not None
            before = turn()
            wait_for(self.turns, at, before)
        elif self.claims is not None:
            before = atomic_add(self.claims, at, 1, order="acquire", by=warp)
            with when((before > 0) & (before < STORED)):
                wait_for(self.claims, at, STORED)
        return None if self.claims is None else before == 0

    def add(self, vector: Shared, at: tuple[Any, ...], first: Any) -> None:
        """Stores the vector if `first`, else adds it; it has been read when this returns."""
        if first is not None:
            with when(first):
                tma.store(self.sums, vector, (*at, 0))
        with nullcontext() if first is None else otherwise():
            tma.store_add(self.sums, vector, (*at, 0))
        tma.commit()
        tma.wait(read=self.turns is None)
        if self.turns is not None:
            signal(self.turns, at)
        elif self.claims is not None:
            with when(first):
                tma.wait()
                signal(self.claims, at, STORED)
