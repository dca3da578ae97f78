"""Products of matrices by a scope."""

from __future__ import annotations

from ..errors import TypeRuleError
from ..ops import mma, mma_bytes
from ..program import Value
from .memory import Shared
from .recorder import record
from .scope_threads import ScopeThreads
from .tile import Tile


class ScopeProducts(ScopeThreads):
    """What a scope multiplies."""

    def _mma(self, d: Value, a: Value, b: Value, ta: bool, tb: bool, overwrite: bool) -> None:
        if isinstance(d, Tile) and d.type.warps != self.warps:
            raise TypeRuleError(
                f"the accumulator {d.type} is not of this {self._name} ({self.warps} warps)",
                fix=f"make it with {self._name}.zeros(...)",
            )
        both = isinstance(a, Shared) and isinstance(b, Shared) and a.count == b.count == 1
        wide = both and a.type.dtype.bits != 16  # type: ignore[union-attr]
        record((mma_bytes.MmaBytes if wide else mma.Mma)(self.scope, d, a, b, ta, tb, overwrite))

    def mma_AB(self, d: Value, a: Value, b: Value) -> None:
        """d += a @ b. Of bf16 or f16 into float32; of f16 into f16, too."""
        self._mma(d, a, b, False, False, False)

    def mma_ABt(self, d: Value, a: Value, b: Value) -> None:
        """d += a @ b.T. In shared memory `a` and `b` may be 8-bit floats (from sm_89), 8-bit integers (`d` is then
        int32) or float32 (rounded to tf32), too.
        """
        self._mma(d, a, b, False, True, False)

    def mma_AtB(self, d: Value, a: Value, b: Value) -> None:
        """d += a.T @ b."""
        self._mma(d, a, b, True, False, False)

    def mma_AtBt(self, d: Value, a: Value, b: Value) -> None:
        """d += a.T @ b.T."""
        self._mma(d, a, b, True, True, False)

    def mm_AB(self, d: Value, a: Value, b: Value) -> None:
        """d = a @ b."""
        self._mma(d, a, b, False, False, True)

    def mm_ABt(self, d: Value, a: Value, b: Value) -> None:
        """d = a @ b.T."""
        self._mma(d, a, b, False, True, True)

    def mm_AtB(self, d: Value, a: Value, b: Value) -> None:
        """d = a.T @ b."""
        self._mma(d, a, b, True, False, True)

    def mm_AtBt(self, d: Value, a: Value, b: Value) -> None:
        """d = a.T @ b.T."""
        self._mma(d, a, b, True, True, True)
