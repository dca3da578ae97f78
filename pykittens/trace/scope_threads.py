"""Which threads a scope has."""

from __future__ import annotations

from ..errors import TraceError
from ..ops import scalars, thread_indices
from ..program import Scope
from . import recorder
from .recorder import result
from .scalar import Scalar


class ScopeThreads:
    """A set of threads: units of `warps` warps each; None for all of the current role."""

    def __init__(self, name: str, warps: int | None):
        self._name, self._warps = name, warps

    @property
    def warps(self) -> int:
        """Warps of one unit of this scope."""
        present = recorder.current().warps
        if self._warps is None:
            return present
        if present % self._warps:
            raise TraceError(
                f"a {self._name} has {self._warps} warps, the current role {present}",
                fix=f"give the role a multiple of {self._warps} warps",
            )
        return self._warps

    @property
    def scope(self) -> Scope:
        """The scope as operations know it."""
        return Scope(self._name, self.warps)

    @property
    def index(self) -> Scalar | int:
        """Which unit of this scope the running threads belong to, counted within the role (or block)."""
        if self.warps == recorder.current().warps:
            return 0
        return result(
            thread_indices.Index(scalars.THREAD, "unit")
            if self.warps == 1
            else thread_indices.Index(self.scope, "unit")
        )

    @property
    def count(self) -> int:
        """How many units of this scope the role (or block) has."""
        return recorder.current().warps // self.warps
