"""Scopes: the set of threads an operation is called on does it together, and a tile remembers it.

`warp`, `group(n)` (n warps) and `block` (all warps of the current role, or of the block outside roles).
Operations beyond every scope's common vocabulary (wgmma, TMA) are added by subclasses.
"""

from __future__ import annotations

from typing import NoReturn

from ..ops import sync
from ..program import Operand, Value
from ..suggestions import NoSuchWord
from .handle import number
from .recorder import record
from .scope_copies import ScopeCopies
from .scope_loads import ScopeLoads
from .scope_products import ScopeProducts
from .scope_stores import ScopeStores
from .scope_tiles import ScopeTiles


class ScopeHandle(ScopeTiles, ScopeLoads, ScopeStores, ScopeCopies, ScopeProducts):
    """The vocabulary of a scope. `warps`: how many warps it has; None for all of the current role."""

    def __getattr__(self, name: str) -> NoReturn:
        raise NoSuchWord(f"the scope {self.__dict__.get('_name', '')!r}", name, lambda: dir(self))

    def __repr__(self) -> str:
        return f"pk.{self._name}"

    def sync(self) -> None:
        """All threads of the scope meet; memory accesses before come before those after."""
        record(sync.Barrier(self.scope))

    def arrive_at(self, barrier: Value, index: Operand = 0) -> None:
        """Counts this scope's warps at a named `barrier` (number `index` of an array) and goes on."""
        record(sync.NamedArrive(self.scope, barrier, number(index)))

    def sync_at(self, barrier: Value, index: Operand = 0) -> None:
        """Counts this scope's warps at a named `barrier` (number `index` of an array) and waits for the others."""
        record(sync.NamedSync(self.scope, barrier, number(index)))


def group(warps: int) -> ScopeHandle:
    """The scope of `warps` consecutive warps."""
    return ScopeHandle(f"group({warps})", warps)


warp = ScopeHandle("warp", 1)
block = ScopeHandle("block", None)
