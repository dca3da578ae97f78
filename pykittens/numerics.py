"""What an operation promises about its numbers: exact, correctly rounded, or approximate within a bound.

Exact and correctly rounded results have the same bits on both back ends. An approximation is the GPU's own instruction;
the simulator gives the correctly rounded value, and a GPU is within the bound of the true one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from .loading import dataclass

SMALLEST_NORMAL = 2.0**-126  # of float32


@dataclass(frozen=True)
class Numerics:
    """A promise. An approximate result is within (ulp + per |x|) units in the last place of float32, and `absolute`.

    x is the operand of largest magnitude. flushes: subnormal operands and results count as zero. bound: how far from
    the true value in words, where it follows from more than the result. special: NaN, zeros, subnormals, overflow.
    """

    kind: Literal["exact", "correctly rounded", "approximate"]
    ulp: float = 0.0
    per: float = 0.0
    absolute: float = 0.0
    flushes: bool = False
    bound: str = ""
    special: str = ""

    def with_special(self, text: str) -> Numerics:
        """The same promise, with more said about special values."""
        return replace(self, special="; ".join(filter(None, (self.special, text))))

    def __str__(self) -> str:
        return "; ".join(part for part in (self._promise(), self.special, self._subnormals()) if part)

    def _promise(self) -> str:
        if self.kind != "approximate":
            return self.kind
        if self.bound:
            return f"approximate: {self.bound}"
        ulp = f"({self.ulp:g} + {self.per:g} |x|) ulp" if self.per else f"{self.ulp:g} ulp" if self.ulp else ""
        absolute = f"{self.absolute:.2g}" if self.absolute else ""
        return "approximate: within " + " and ".join(filter(None, (ulp, absolute)))

    def _subnormals(self) -> str:
        return "subnormal operands and results are zero" if self.flushes else ""

    def allowed(self, true: np.ndarray, x: np.ndarray | float = 0.0) -> np.ndarray:
        """How far from the true results (float64) results may be. A rounding to the dtype comes on top."""
        size = np.abs(np.asarray(true, np.float64))
        with np.errstate(all="ignore"):
            unit = np.exp2(np.floor(np.log2(np.maximum(size, SMALLEST_NORMAL))) - 23)
            error: np.ndarray = (self.ulp + self.per * np.abs(x)) * unit + self.absolute
        return error + (SMALLEST_NORMAL if self.flushes else 0.0)


NAN = "a NaN it makes has the bits 0x7fffffff, or 0x7fff in 16 bits"
MOVES = Numerics("exact", special="elements are moved")
EXACT = Numerics("exact")
SIGN = EXACT.with_special("integers wrap; NaN stays NaN, of float32 with any bits")  # neg and abs
WHOLE = EXACT.with_special("NaN stays NaN, of float32 with any bits; -0 and what rounds to it stay -0")  # round, floor
ROUNDED = Numerics("correctly rounded", special=f"subnormals are kept; {NAN}")


def approximate(
    ulp: float = 0.0,
    *,
    per: float = 0.0,
    absolute: float = 0.0,
    flushes: bool = False,
    bound: str = "",
    special: str = "",
) -> Numerics:
    """An approximation, see `Numerics`."""
    return Numerics("approximate", ulp, per, absolute, flushes, bound, special)
