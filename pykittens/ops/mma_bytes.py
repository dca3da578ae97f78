"""Products by mma.sync of what is not 16 bits wide: 8-bit floats, 8-bit integers, and float32 as tf32.

Both operands lie in shared memory with k along their rows (A @ B.T). ldmatrix moves 16 bytes of a row whatever they
mean, and each of these instructions takes 32 bytes of k in the same fragments (PTX ISA, "Matrix Fragments for
mma.m16n8k32" and "mma.m16n8k8").
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..errors import TypeRuleError
from ..loading import dataclass
from ..numerics import EXACT, Numerics
from ..program import Access, CudaWriter, Effect, NumpyMachine
from ..thread_map import MatrixBytes
from ..types import DType, RegisterTile, SharedTile, Type, e4m3, e5m2, f32, i8, i32, u8
from .broadcast import register_type
from .conversion import canonical, convert
from .ldmatrix import LDMATRIX, load_matrices
from .matmul_base import Product, check_shapes, formula, multiply
from .samples import Sample

EIGHT_BIT_FLOATS, EIGHT_BIT_INTEGERS = (e4m3, e5m2), (i8, u8)
PTX = {e4m3: "e4m3", e5m2: "e5m2", i8: "s8", u8: "u8", f32: "tf32"}
TF32 = """
__device__ __forceinline__ void pk_tf32(u32* v) {
  PK_UNROLL for (int i = 0; i < 4; i++) asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(v[i]) : "f"(__uint_as_float(v[i])));
}
"""


def to_tf32(x: np.ndarray) -> np.ndarray:
    """float32 numbers with 10 bits of fraction, the nearest, ties away from zero (PTX "cvt.rna.tf32")."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
    return np.where(np.isfinite(x), rounded, canonical(np.asarray(x, np.float32)))


def integer_product(m: NumpyMachine, product: Product) -> None:
    """d (+)= A @ B.T of 8-bit integers in shared memory; sums wrap."""
    a, b = (m.read(x).astype(np.float64) for x in (product.a, product.b))  # exact: sums are far below 2^53
    total = multiply(a, b.swapaxes(1, 2)).astype(np.int64) + (0 if product.overwrite else m[product.d])
    m.assign(product.d, convert(total, i32))


@dataclass(eq=False)
class MmaBytes(Product):
    """A product of 8-bit floats, 8-bit integers or float32 (as tf32) in shared memory, finished when it returns."""

    @property
    def dtypes(self) -> tuple[DType, DType]:
        """Those of A and B."""
        return self.a.type.dtype, self.b.type.dtype  # type: ignore[union-attr]

    @property
    def numerics(self) -> Numerics:  # type: ignore[override]
        if self.dtypes[0].kind != "f":
            return EXACT.with_special("wraps")
        found = super().numerics
        return (
            found.with_special("operands are rounded to tf32, ties away from zero") if self.dtypes[0] is f32 else found
        )

    def types(self) -> tuple[Type, ...]:
        what, (left, right) = self.name, self.dtypes
        kinds = (EIGHT_BIT_FLOATS, EIGHT_BIT_INTEGERS, (f32,))
        if not any({left, right} <= set(kind) for kind in kinds):
            raise TypeRuleError(
                f"{what} of {self.a.type} and {self.b.type}",
                fix="multiply 8-bit floats, 8-bit integers, or float32, by such of the same kind",
            )
        both = isinstance(self.a.type, SharedTile) and isinstance(self.b.type, SharedTile)
        if not both or self.ta or not self.tb:
            raise TypeRuleError(
                f"{what} of {self.a.type} and {self.b.type}: not of 16 bits they lie in shared memory, k along rows",
                fix="store b transposed, n x k, and write mma_ABt; or convert to bf16",
            )
        d, wanted = register_type(self.d, what), i32 if left.kind != "f" else f32
        if not isinstance(d, RegisterTile) or d.dtype is not wanted or d.layout != "row":
            raise TypeRuleError(
                f"{what} of {left} accumulates into a row-layout {wanted} register tile, not {self.d.type}",
                fix=f"make it with warp.zeros(pk.{wanted}, m, n)",
            )
        k = check_shapes(what, self.d, self.a, self.b, self.ta, self.tb)[2]
        if k * left.size % 32:
            raise TypeRuleError(
                f"{what} of {left}: k = {k} is not a multiple of {32 // left.size}", fix="use wider tiles, with zeros"
            )
        return ()

    def numpy(self, m: NumpyMachine) -> None:
        if self.dtypes[0].kind != "f":
            integer_product(m, self)
            return
        a, b = (convert(m.read(x), f32) for x in (self.a, self.b))
        a, b = (to_tf32(a), to_tf32(b)) if self.dtypes[0] is f32 else (a, b)
        product = multiply(a, b.swapaxes(1, 2))
        out = product if self.overwrite else m[self.d] + product
        m.assign(self.d, canonical(out))

    def effects(self) -> tuple[Effect, ...]:
        size = self.dtypes[0].size
        return (
            Access(self.a, "read", MatrixBytes(False, size)),
            Access(self.b, "read", MatrixBytes(True, size)),
        )

    def cuda(self, c: CudaWriter) -> None:
        d, (left, right) = self.d.type, self.dtypes
        assert isinstance(d, RegisterTile)
        if left in EIGHT_BIT_FLOATS:
            c.require("fp8 mma", self)
        c.prelude(LDMATRIX)
        c.prelude(_text(left, right))
        chunk, blocks, columns = 16 // left.size, d.warp_rows // 16, d.cols // 16  # a chunk: elements of 16 bytes
        steps = check_shapes(self.name, self.d, self.a, self.b, self.ta, self.tb)[2] // (2 * chunk)
        acc = c[self.d]
        c.line("{")
        if self.overwrite:
            c.line(f"PK_UNROLL for (int i = 0; i < {d.registers}; i++) {acc}[i] = 0;")
        row = f"{c.warp(self.scope)} * 16 + lane % 16"
        along = f"k * {2 * chunk}"
        load_a = load_matrices(c, "a[m]", self.a, (row, f"m * {16 * d.warps}"), (f"lane / 16 * {chunk}", along))
        half = ("lane % 8 + lane / 16 * 8", "n * 16")
        load_b = load_matrices(c, "b", self.b, half, (f"lane / 8 % 2 * {chunk}", along))
        if left is f32:
            c.prelude(TF32)
            load_a, load_b = f"{{ {load_a}; pk_tf32(a[m]); }}", f"{load_b}; pk_tf32(b)"
        c.line(f"PK_UNROLL for (int k = 0; k < {steps}; k++) {{ u32 a[{blocks}][4];")
        c.line(f"PK_UNROLL for (int m = 0; m < {blocks}; m++) {load_a};")
        c.line(f"PK_UNROLL for (int n = 0; n < {columns}; n++) {{ u32 b[4]; {load_b};")
        c.line(f"PK_UNROLL for (int m = 0; m < {blocks}; m++) {{")
        for part in (0, 1):
            at = f"{acc} + (m * {columns} + n) * 8 + {4 * part}"
            c.line(f"{_name(left, right)}({at}, a[m], b[{2 * part}], b[{2 * part + 1}]);")
        c.line("} } } }")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for left, right in ((e4m3, e4m3), (e4m3, e5m2), (e5m2, e5m2), (i8, i8), (u8, i8), (u8, u8), (f32, f32)):
            held = f32 if left.kind == "f" else i32
            needs = "fp8 mma" if left in EIGHT_BIT_FLOATS else ""
            for m, n, k, warps in ((32, 48, 64, 1), (64, 16, 32, 4)):
                fields = {
                    "d": RegisterTile(held, m, n, "row", warps),
                    "a": SharedTile(left, m, k),
                    "b": SharedTile(right, n, k),
                    **{"ta": False, "tb": True, "overwrite": warps == 4},
                }
                inputs = {"a": "counts" if left is u8 else "integers", "b": "counts" if right is u8 else "integers"}
                yield Sample(fields, formula, inputs | {"d": "integers"}, exact=True, needs=needs)
        fields = {
            "d": RegisterTile(f32, 16, 16),
            "a": SharedTile(f32, 16, 128),
            "b": SharedTile(f32, 16, 128),
            **{"ta": False, "tb": True, "overwrite": False},
        }
        yield Sample(fields, formula, tolerance=2e-3)  # of tf32's operands


def _name(left: DType, right: DType) -> str:
    return f"pk_mma_{PTX[left]}_{PTX[right]}"


def _text(left: DType, right: DType) -> str:
    """The instruction for two dtypes: accumulators are float, of integers int."""
    whole = left.kind != "f"
    shape = "m16n8k8" if left is f32 else "m16n8k32"
    acc, held, constraint = ("s32", "int", "+r") if whole else ("f32", "float", "+f")
    results = ", ".join(f'"{constraint}"(d[{i}])' for i in range(4))
    return f"""
__device__ __forceinline__ void {_name(left, right)}({held}* d, const u32* a, u32 b0, u32 b1) {{
  asm volatile("mma.sync.aligned.{shape}.row.col.{acc}.{PTX[left]}.{PTX[right]}.{acc} "
    "{{%0, %1, %2, %3}}, {{%4, %5, %6, %7}}, {{%8, %9}}, {{%0, %1, %2, %3}};"
    : {results} : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}}
"""
