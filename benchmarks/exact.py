"""Attention and products whose every sum is exact, on a GPU: with A in registers, ptxas before 13.3 may overwrite it
too early.

python -m benchmarks.exact      # kernels from PYKITTENS_AOT or the cache, else from this machine's compiler: a row
names which

Any difference is a failure. Run it with kernels of an old and of a new compiler.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

import pykittens as pk
from pykittens.gpu import cache
from pykittens.kernels import attention_ampere, attention_hopper
from pykittens.kernels.attention import configuration
from pykittens.testing.exact import SCALE, attention_operands

from .record import record

LENGTHS = ((128, 128), (384, 512), (1000, 2048), (1024, 4096), (256, 16384))  # queries, keys
REPEATS = 20


def attention(name: str, dim: int, dtype: torch.dtype) -> int:
    """How many elements differ, in all."""
    wrong = 0
    for n, m in LENGTHS:
        q, k, v, expected = (
            torch.from_numpy(x).cuda()[None, None].expand(4, 8, -1, -1) for x in attention_operands(n, m, dim, n + dim)
        )
        q, k, v = (x.to(dtype).contiguous() for x in (q, k, v))
        for _ in range(REPEATS):
            out = torch.full_like(q, float("nan"))
            if name == "attention_hopper":
                attention_hopper.attend(q, k, v, out, None, SCALE, **configuration(dim, False, m))
            else:
                attention_ampere.attend(q, k, v, out, SCALE)
            wrong += int((out != expected.to(dtype)).sum())
    return wrong


def product(m: int, n: int, k: int, dtype: torch.dtype) -> int:
    """How many elements differ of a product of small integers, whose sums float32 holds."""
    a, b = (torch.randint(-4, 5, shape, device="cuda").to(dtype) for shape in ((m, k), (n, k)))
    expected = (a.double() @ b.double().T).float()
    return sum(int((pk.matmul(a, b.T, dtype=pk.f32) != expected).sum()) for _ in range(REPEATS))


def main() -> int:
    """How many rows differ anywhere."""
    rows: list[dict[str, Any]] = []
    hopper = torch.cuda.get_device_capability()[0] == 9
    for name, dims in {"attention_hopper": (64, 128, 256) if hopper else (), "attention_ampere": (64, 128)}.items():
        for dim in dims:
            for dtype in (torch.bfloat16, torch.float16):
                rows.append(
                    {
                        "what": f"{name}, dim {dim}, {dtype}".replace("torch.", ""),
                        "different": attention(name, dim, dtype),
                    }
                )
    for m, n, k in ((512, 768, 512), (1000, 1032, 1000), (64, 4096, 4096), (5, 1000, 2048)) if hopper else ():
        for dtype in (torch.bfloat16, torch.float8_e4m3fn):
            if dtype is torch.bfloat16 or k % 16 == 0:
                rows.append(
                    {
                        "what": f"matmul {m} x {n} x {k}, {dtype}".replace("torch.", ""),
                        "different": product(m, n, k, dtype),
                    }
                )
    made_by = ", ".join(sorted(cache.compilers))
    rows = [{**row, "made_by": made_by} for row in rows]
    for row in rows:
        print(row, flush=True)
    print("->", record("exact", rows, ("what", "made_by")))
    return sum(row["different"] > 0 for row in rows)


if __name__ == "__main__":
    sys.exit(main())
