"""The matrix product."""

from __future__ import annotations

from typing import Any

from ...call.arguments import spec
from ...types import DTYPES
from .. import gemm
from ..catalog import Array, Instance, Shipped


def _gemm(dtype: str, ta: bool, tb: bool, cluster: int) -> Instance | None:
    if dtype == "e4m3" and (ta or not tb):  # 8-bit operands have k along their rows
        return None
    m, n, k = 200, 520, 5 * 64 + 16  # ragged everywhere, more steps than slots, and four tiles for two blocks
    a, b = spec(DTYPES[dtype], (k, m) if ta else (m, k)), spec(DTYPES[dtype], (n, k) if tb else (k, n))
    c = spec(DTYPES["bf16" if dtype == "e4m3" else dtype], (m, n))
    operands = {"a": a, "b": b, "c": c, "x0": None, "x1": None, "x2": None, "x3": None, "sms": 2}

    def expected(a: Array, b: Array, **_: Any) -> dict[str, Array]:
        a, b = a.astype(float), b.astype(float)
        return {"c": (a.T if ta else a) @ (b.T if tb else b)}

    return Instance(gemm.gemm, operands, {"config": gemm.Config(cluster=cluster), "ta": ta, "tb": tb}, ("c",), expected)


ROWS = (
    Shipped(
        name="gemm",
        about="matrix product with TMA, asynchronous tensor cores and persistent blocks; fp8 too",
        make=_gemm,
        needs=("wgmma",),
        options={"dtype": ("bf16", "f16", "e4m3"), "ta": (False, True), "tb": (False, True), "cluster": (1, 2)},
        opcodes=("HGMMA|QGMMA", "UTMALDG", "UTMASTG", "USETMAXREG"),
    ),
)
