"""Copies that a scope makes from tensors into shared memory."""

from __future__ import annotations

from typing import Any

from ..errors import TypeRuleError
from ..ops import copies
from ..ops.addressing import vector_bytes
from ..program import Operand, Value
from ..types import SharedTile, SharedVector
from .memory import Shared, Tensor, place
from .recorder import record
from .scope_loads import check_memory
from .scope_threads import ScopeThreads


class ScopeCopies(ScopeThreads):
    """What a scope copies into shared memory, past registers or through them."""

    def load_into(
        self,
        target: Value,
        source: Value,
        coordinate: Any = None,
        *,
        within: tuple[Operand, Operand] | None = None,
    ) -> None:
        """The rectangle of tensor `source` at `coordinate`, of the target's shape, into a shared tile or vector
        `target`. `within`: see `load`."""
        record(copies.CopyIn(self.scope, target, self._rectangle(target, source, coordinate, within)))

    def load_async(
        self,
        target: Value,
        source: Value,
        coordinate: Any = None,
        *,
        within: tuple[Operand, Operand] | None = None,
    ) -> None:
        """Like `load_into` (`target`, `source`, `coordinate`, `within`), but with cp.async: finished after `commit()`
        and `wait_loads()`.

        cp.async moves 4, 8 or 16 bytes. A tensor whose rows begin at multiples of less (16-bit elements with an odd
        number of columns) is copied as by `load_into` instead, at once: right, but nothing is hidden behind it.
        """
        rectangle = self._rectangle(target, source, coordinate, within)
        known = copies.CopyAsync if vector_bytes(rectangle) >= 4 else copies.CopyIn
        record(known(self.scope, target, rectangle))

    def _rectangle(self, target: Value, source: Value, coordinate: Any, within: Any = None) -> Any:
        check_memory(target, "load")
        if (
            not isinstance(target, Shared)
            or not isinstance(target.type, (SharedTile, SharedVector))
            or not isinstance(source, Tensor)
        ):
            raise TypeRuleError(
                f"a copy from {source.label} to {target.label}",
                fix="load_into and load_async go from a tensor to a shared tile or vector",
            )
        return place(source, coordinate, target.type.shape, within)

    def commit(self) -> None:
        """Closes a group of this scope's `load_async` copies."""
        record(copies.CommitCopies(self.scope))

    def wait_loads(self, pending: int = 0) -> None:
        """Waits until at most `pending` committed groups of this thread's copies are unfinished; others see them
        after a sync.
        """
        record(copies.WaitCopies(self.scope, pending))
