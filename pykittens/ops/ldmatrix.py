"""ldmatrix and stmatrix: 16 x 16 matrices of 16-bit elements between shared memory and the tensor cores' fragments."""

from __future__ import annotations

from typing import Any

from ..layouts import Sym, matrix_place
from ..program import CudaWriter, Scope, Value
from ..types import RegisterTile, SharedTile
from .addressing import shared_address

LDMATRIX = """
__device__ __forceinline__ void pk_ldmatrix(u32* v, u32 a, u32 flip = 0, u32 offset = 0) {
  asm volatile("{{ .reg .b32 t; xor.b32 t, %4, %5; add.u32 t, t, %6;"
    " ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [t]; }}"
    : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3]) : "r"(a), "r"(flip), "r"(offset) : "memory"); }
__device__ __forceinline__ void pk_ldmatrix_trans(u32* v, u32 a, u32 flip = 0, u32 offset = 0) {
  asm volatile("{{ .reg .b32 t; xor.b32 t, %4, %5; add.u32 t, t, %6;"
    " ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [t]; }}"
    : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3]) : "r"(a), "r"(flip), "r"(offset) : "memory"); }
"""


STMATRIX = """
__device__ __forceinline__ void pk_stmatrix(u32 a, const u32* v) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
    :: "r"(a), "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3]) : "memory"); }
__device__ __forceinline__ void pk_stmatrix_trans(u32 a, const u32* v) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};"
    :: "r"(a), "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3]) : "memory"); }
"""


def matrix_row_col(c: CudaWriter, scope: Scope, tile: RegisterTile, block: Any, step: Any) -> tuple[str, str]:
    """C (row, column) that this lane addresses in the 16 x 16 matrix (`block`, `step`): see `layouts.matrix_place`."""
    row, col = matrix_place(tile, c.warp(scope), Sym(str(c.lane)), Sym(f"({block})"), Sym(f"({step})"))
    return str(row), str(col)


def blocks_and_steps(tile: RegisterTile) -> tuple[int, int]:
    """How many 16 x 16 matrices a warp holds along the slow and the fast axis of its registers."""
    rows, cols = tile.warp_rows // 16, tile.cols // 16
    return (rows, cols) if tile.layout == "row" else (cols, rows)


def load_matrices(
    c: CudaWriter, to: str, tile: Value, row: tuple[str, str], col: tuple[str, str], transposed: bool = False
) -> str:
    """C for one ldmatrix in a loop: this lane's row and column are (constant, what steps by multiples of 16).

    A step of 16 columns flips bits of the swizzled address and a step of rows adds to it. So one register holds the
    address, and the flip is hidden in the assembler: the compiler would keep a register for each of its values.
    """
    type, name = tile.type, "pk_ldmatrix_trans" if transposed else "pk_ldmatrix"
    assert isinstance(type, SharedTile)
    if type.apart:  # the step may cross into the next panel
        return f"{name}({to}, {shared_address(c, tile, ' + '.join(row), ' + '.join(col))})"
    base = c.fresh("at")
    c.line(f"const u32 {base} = {shared_address(c, tile, row[0], col[0])};")
    offset = f"{row[1]} * {type.swizzle} + {col[1]} / {type.panel} * {type.pitch * type.swizzle}"
    return f"{name}({to}, {base}, {col[1]} % {type.panel} * {type.dtype.size}, {offset})"
