"""Matrix multiply-accumulate on a warp or group of warps with mma.sync.m16n8k16 (PTX "mma" for f16 and bf16)."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import TypeRuleError
from ..loading import dataclass
from ..program import Access, CudaWriter, Effect
from ..thread_map import MatrixOperand
from ..types import RegisterTile, SharedTile, Type, bf16, f16, f32
from .broadcast import register_type
from .ldmatrix import LDMATRIX, load_matrices
from .matmul_base import Product, check_shapes, formula
from .samples import Sample


@dataclass(eq=False)
class Mma(Product):
    """A product that is finished when it returns.

    A is in registers or shared memory, B in shared memory, or in a warp's registers. Register operands: A of AB
    and ABt is row layout, A of AtB column layout; B of ABt is row layout, B of AB column layout (the fragment).
    """

    def types(self) -> tuple[Type, ...]:
        what = self.name
        d = register_type(self.d, what)
        half = {self.a.type.dtype, self.b.type.dtype} == {f16}  # type: ignore[union-attr]
        if not isinstance(d, RegisterTile) or d.dtype not in ((f32, f16) if half else (f32,)) or d.layout != "row":
            raise TypeRuleError(
                f"{what} accumulates into a row-layout float32 register tile{' (or f16)' * half}, not {self.d.type}",
                fix="make it with warp.zeros(pk.f32, m, n)",
            )
        m, _, k = check_shapes(what, self.d, self.a, self.b, self.ta, self.tb)
        dtypes = {self.a.type.dtype, self.b.type.dtype}  # type: ignore[union-attr]
        if dtypes not in ({bf16}, {f16}):
            raise TypeRuleError(
                f"{what} multiplies bf16 by bf16 or f16 by f16, not {self.a.type} by {self.b.type}",
                fix="convert with x.to(pk.bf16)",
            )
        if k % 16:
            raise TypeRuleError(f"{what}: k = {k} is not a multiple of 16", fix="use wider tiles")
        for x, layout in ((self.a, "col" if self.ta else "row"), (self.b, "row" if self.tb else "col")):
            if isinstance(x.type, RegisterTile) and x.type.layout != layout:
                raise TypeRuleError(
                    f"{what}: {x.label} is {x.type} in {x.type.layout} layout, where the fragment is {layout} layout",
                    fix=f"load it with layout='{layout}', or swap it with x.swap_layout('{layout}')",
                )
        held = [x for x, refused in ((self.a, self.ta), (self.b, True)) if refused and isinstance(x.type, RegisterTile)]
        if d.warps > 1 and held:
            raise TypeRuleError(
                f"{what} on {d.warps} warps shares B among them, and each warp owns rows of A",
                fix=f"put B (and a transposed A) into shared memory, or multiply on a warp: warp.{what}",
            )
        if isinstance(self.a.type, RegisterTile) and self.a.type.warps != d.warps:
            raise TypeRuleError(f"{what} mixes scopes: {self.a.type} and {d}", fix="make A on the same scope")
        return ()

    def effects(self) -> tuple[Effect, ...]:
        reads = []
        if isinstance(self.a.type, SharedTile):
            reads.append(Access(self.a, "read", MatrixOperand(shared=self.ta)))
        if isinstance(self.b.type, SharedTile):
            reads.append(Access(self.b, "read", MatrixOperand(shared=True)))
        return tuple(reads)

    def cuda(self, c: CudaWriter) -> None:
        c.prelude(LDMATRIX)
        d = self.d.type
        assert isinstance(d, RegisterTile)
        dtype = self.b.type.dtype.name  # type: ignore[union-attr]
        name, each = (f"pk_mma_{dtype}", 8) if d.dtype is f32 else ("pk_mma_f16_f16", 4)  # each: words of 16 x 16 sums
        c.prelude(mma_text(dtype) if d.dtype is f32 else HALVES)
        blocks, columns = d.warp_rows // 16, d.cols // 16
        steps = check_shapes(self.name, self.d, self.a, self.b, self.ta, self.tb)[2] // 16
        acc = c[self.d]
        c.line("{")
        if self.overwrite:
            c.line(f"PK_UNROLL for (int i = 0; i < {d.registers * each // 8}; i++) {acc}[i] = 0;")
        a, b, low, high = f"{c[self.a]} + (m * {steps} + k) * 4", "b", (0, 1), (2, 3)
        if isinstance(self.a.type, SharedTile):
            a, load_a = "a[m]", self._load_a(c, d)
        if isinstance(self.b.type, SharedTile):
            load_b = self._load_b(c)
        c.line(f"PK_UNROLL for (int k = 0; k < {steps}; k++) {{")
        if isinstance(self.a.type, SharedTile):
            c.line(f"u32 a[{blocks}][4];")
            c.line(f"PK_UNROLL for (int m = 0; m < {blocks}; m++) {load_a};")
        c.line(f"PK_UNROLL for (int n = 0; n < {columns}; n++) {{")
        if isinstance(self.b.type, SharedTile):
            c.line(f"u32 b[4]; {load_b};")
        else:
            b, low, high = c.fresh("b"), (0, 2), (1, 3)
            c.line(f"const u32* {b} = {c[self.b]} + (n * {steps} + k) * 4;")
        c.line(f"PK_UNROLL for (int m = 0; m < {blocks}; m++) {{")
        at = f"{acc} + (m * {columns} + n) * {each}"
        c.line(f"{name}({at}, {a}, {b}[{low[0]}], {b}[{low[1]}]);")
        c.line(f"{name}({at} + {each // 2}, {a}, {b}[{high[0]}], {b}[{high[1]}]);")
        c.line("} } } }")

    def _load_a(self, c: CudaWriter, d: RegisterTile) -> str:
        """C that loads 16 x 16 of A at step k: rows `m`."""
        if self.ta:  # stored k x m: the matrices come transposed, k in the low rows of the address
            return load_matrices(
                c,
                "a[m]",
                self.a,
                ("lane % 8 + lane / 16 * 8", "k * 16"),
                (f"{c.warp(self.scope)} * 16 + lane / 8 % 2 * 8", f"m * {16 * d.warps}"),
                transposed=True,
            )
        row = f"{c.warp(self.scope)} * 16 + lane % 16"
        return load_matrices(c, "a[m]", self.a, (row, f"m * {16 * d.warps}"), ("lane / 16 * 8", "k * 16"))

    def _load_b(self, c: CudaWriter) -> str:
        """C that loads 16 x 16 of B at step k, columns `n`: the two registers that an mma takes come next to each
        other, as it wants them.
        """
        if self.tb:  # stored n x k
            return load_matrices(c, "b", self.b, ("lane % 8 + lane / 16 * 8", "n * 16"), ("lane / 8 % 2 * 8", "k * 16"))
        return load_matrices(c, "b", self.b, ("lane % 16", "k * 16"), ("lane / 16 * 8", "n * 16"), transposed=True)

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        m, n, k, inputs = 32, 48, 64, {"a": "integers", "b": "integers", "d": "integers"}

        for ta in (False, True):
            for tb in (False, True):
                a_shape, b_shape = (k, m) if ta else (m, k), (n, k) if tb else (k, n)
                for a in (RegisterTile(bf16, *a_shape, "col" if ta else "row"), SharedTile(bf16, *a_shape)):
                    for b in (RegisterTile(bf16, *b_shape, "row" if tb else "col"), SharedTile(bf16, *b_shape)):
                        fields = {"d": RegisterTile(f32, m, n), "a": a, "b": b, "ta": ta, "tb": tb, "overwrite": ta}
                        yield Sample(fields, formula, inputs, exact=True)
        for rows in (64, 128):  # each warp owns columns of a transposed A
            fields = {
                "d": RegisterTile(f32, rows, 32, "row", 4),
                "a": SharedTile(bf16, 48, rows),
                "ta": True,
                "tb": False,
            }
            yield Sample({**fields, "b": SharedTile(bf16, 48, 32), "overwrite": False}, formula, inputs, exact=True)
        for a4 in (RegisterTile(f16, 64, 32, "row", 4), SharedTile(f16, 64, 32)):
            for overwrite in (False, True):
                fields = {
                    "d": RegisterTile(f32, 64, 16, "row", 4),
                    "a": a4,
                    "b": SharedTile(f16, 16, 32),
                    "ta": False,
                    "tb": True,
                    "overwrite": overwrite,
                }
                yield Sample(fields, formula, inputs, exact=True)
        for b in (RegisterTile(f16, 48, 32), SharedTile(f16, 48, 32)):
            fields = {"d": RegisterTile(f16, 32, 48), "a": SharedTile(f16, 32, 32), "b": b, "ta": False, "tb": True}
            yield Sample({**fields, "overwrite": isinstance(b, SharedTile)}, formula, inputs, exact=True)
        fields = {
            "d": RegisterTile(f32, 16, 16),
            "a": RegisterTile(f16, 16, 128),
            "b": SharedTile(f16, 16, 128),
            "ta": False,
            "tb": True,
            "overwrite": False,
        }
        yield Sample(fields, formula, tolerance=1e-5)


HALVES = """
__device__ __forceinline__ void pk_mma_f16_f16(u32* d, const u32* a, u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0, %1}, {%2, %3, %4, %5}, {%6, %7}, {%0, %1};"
    : "+r"(d[0]), "+r"(d[1]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
"""


def mma_text(dtype: str) -> str:
    return f"""
__device__ __forceinline__ void pk_mma_{dtype}(float* d, const u32* a, u32 b0, u32 b1) {{
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.{dtype}.{dtype}.f32 "
    "{{%0, %1, %2, %3}}, {{%4, %5, %6, %7}}, {{%8, %9}}, {{%0, %1, %2, %3}};"
    : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}}
"""
