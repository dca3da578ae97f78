"""Matrix products, whichever tensor core computes them: their operands, their shapes, their meaning."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import TypeRuleError
from ..loading import dataclass
from ..numerics import Numerics, approximate
from ..program import NumpyMachine, Op, Scope, Value
from ..types import RegisterTile, SharedTile, f32
from .broadcast import registers_of
from .conversion import convert


def matrix_shape(x: Value, transposed: bool, what: str) -> tuple[int, int]:
    """Rows and columns of an operand after its transposition."""
    if not isinstance(x.type, (RegisterTile, SharedTile)):
        raise TypeRuleError(f"{what} multiplies tiles, not {x.type}", fix="use register or shared tiles")
    rows, cols = x.type.shape
    return (cols, rows) if transposed else (rows, cols)


def check_shapes(what: str, d: Value, a: Value, b: Value, ta: bool, tb: bool) -> tuple[int, int, int]:
    """(m, n, k) of d += a @ b, or the user's error with all three shapes."""
    m, k = matrix_shape(a, ta, what)
    k2, n = matrix_shape(b, tb, what)
    dm, dn = matrix_shape(d, False, what)
    if (m, n, k) != (dm, dn, k2):
        raise TypeRuleError(
            f"{what}: shapes do not multiply: accumulator {dm} x {dn}, "
            f"A {m} x {k}{' (transposed)' if ta else ''}, B {k2} x {n}{' (transposed)' if tb else ''}",
            fix="A is m x k, B is k x n and the accumulator m x n, after the transposes in the operation's name",
        )
    return m, n, k


def multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a @ b for stacks of tiles, a few rows at a time: OpenBLAS keeps products of up to 2**18 terms on one core,
    where they are fastest.
    """
    (units, m, k), n = a.shape, b.shape[2]
    rows = next(r for r in (16, 8, 4, 2, 1) if r * k * n <= 1 << 18 or r == 1)
    return np.matmul(a.reshape(units, m // rows, rows, k), b[:, None]).reshape(-1, m, n)


@dataclass(eq=False)
class Product(Op):
    """d += A @ B, or d = A @ B (`overwrite`). `ta`/`tb`: the operand is stored transposed."""

    scope: Scope
    d: Value
    a: Value
    b: Value
    ta: bool
    tb: bool
    overwrite: bool

    writes = ("d",)
    no_vjp = "the derivative of a product is two products: write them, as the backward kernels do"

    @property
    def numerics(self) -> Numerics:  # type: ignore[override]
        narrow = self.a.type.dtype.bits == 8  # type: ignore[union-attr]
        if self.d.type.dtype.bits == 16:  # type: ignore[union-attr]
            what = "of f16: rounded to it after each 16 elements of k, and in the end"
            return approximate(bound=f"the sums are {what}. What 11 bits hold is exact", special="subnormals are kept")
        return approximate(
            bound="products are exact; they are added in float32, in the tensor core's order and cut, not rounded: "
            f"within k 2^-{13 if narrow else 22} of the sum of their magnitudes. "
            f"What {13 if narrow else 22} bits hold is exact",
            special="subnormals are kept",
        )

    @property
    def name(self) -> str:
        return f"{'mm' if self.overwrite else 'mma'}_A{'t' if self.ta else ''}B{'t' if self.tb else ''}"

    def flops(self) -> int:
        m, n, k = check_shapes(self.name, self.d, self.a, self.b, self.ta, self.tb)
        return 2 * m * n * k

    def numpy(self, m: NumpyMachine) -> None:
        a, b = (m[x] if isinstance(x.type, RegisterTile) else m.read(x) for x in (self.a, self.b))
        a, b = convert(a, f32), convert(b, f32)
        a = a.swapaxes(1, 2) if self.ta else a
        b = b.swapaxes(1, 2) if self.tb else b
        product = multiply(a, b)
        out = product if self.overwrite else m[self.d].astype(np.float32, copy=False) + product
        m.assign(self.d, convert(out, registers_of(self.d).dtype))


def formula(d: Any, a: Any, b: Any, ta: bool, tb: bool, overwrite: bool) -> Any:
    """The product of one unit, for the conformance tests."""
    return (0 if overwrite else d) + (a.T if ta else a) @ (b.T if tb else b)
