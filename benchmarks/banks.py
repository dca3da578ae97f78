"""Bank conflicts as the simulator counts them, beside those that Nsight Compute measures, pattern by pattern.

    python -m benchmarks.banks            # needs a GPU and ncu; files rows in benchmarks/results

Each kernel has one access to shared memory of a kind to count (and others that conflict or not): what was loaded is
stored, so that nothing is optimised away. Loads and stores are compared separately.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

import pykittens as pk
from pykittens import bf16, f32, warp

from . import ncu
from .record import record

METRICS = {
    "loads": "l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_ld.sum",
    "stores": "l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_st.sum",
}
WAVEFRONTS = {
    "load passes": "l1tex__data_pipe_lsu_wavefronts_mem_shared_op_ld.sum",
    "store passes": "l1tex__data_pipe_lsu_wavefronts_mem_shared_op_st.sum",
}
READS = ("load", "copyout", "loadscalar")


def _tile(dtype: Any, rows: int, cols: int, store: Any, load: Any, swizzle: int = 0) -> Any:
    """A tile goes from global memory through a shared tile and back: by a register layout, or (None) by a copy."""

    @pk.kernel(warps=1)
    def pattern(x: pk.gl(dtype, rows, "N"), y: pk.gl(dtype, rows, "N")) -> None:
        t = pk.shared(pk.st(dtype, rows, cols, swizzle) if swizzle else pk.st(dtype, rows, cols))
        if store is None:
            warp.load_into(t, x, (0, 0))
        else:
            warp.store(t, warp.load(x, (0, 0), rows=rows, cols=cols, layout=store))
        warp.sync()
        if load is None:
            warp.store(y, t, (0, 0))
        else:
            warp.store(y, warp.load(t, layout=load), (0, 0))

    return pattern


def _vector(length: int, width: int) -> Any:
    @pk.kernel(warps=1)
    def pattern(x: pk.gl(f32, 1, "N"), y: pk.gl(f32, 1, "N")) -> None:
        v = pk.shared(pk.sv(f32, length))
        warp.store(v, warp.full_vec(f32, length, 1.0, width=width))
        warp.sync()
        warp.store(y, warp.load_vec(v), (0, 0))

    return pattern


def _fragments(kind: str) -> Any:
    """A column or row vector of a fragment."""

    @pk.kernel(warps=1)
    def pattern(x: pk.gl(f32, 64, "N"), y: pk.gl(f32, 64, "N")) -> None:
        v = pk.shared(pk.sv(f32, 64))
        tile = warp.load(x, (0, 0), rows=64, cols=64)
        warp.store(v, tile.row_sum() if kind == "col" else tile.col_sum())
        warp.sync()
        held = warp.load_col(v) if kind == "col" else warp.load_row(v)
        warp.store(y, tile + held, (0, 0))

    return pattern


def _element() -> Any:
    @pk.kernel(warps=1)
    def pattern(x: pk.gl(f32, 1, "N"), y: pk.gl(f32, 1, "N")) -> None:
        v = pk.shared(pk.sv(f32, 32))
        for i in range(4):
            warp.set(v, i, 1.0)
        warp.set(y, (0, 0), v[0] + v[1] + v[2] + v[3])

    return pattern


def patterns() -> Iterator[tuple[str, Any, np.dtype, tuple[int, int]]]:
    """Name, kernel, dtype and shape of its two tensors."""
    single, half = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)
    run = pk.coalesced
    yield "fragments of f32", _tile(f32, 16, 32, "row", "row"), single, (16, 32)
    yield "fragments of f32, 64 columns", _tile(f32, 32, 64, "row", "row"), single, (32, 64)
    yield "columns of f32", _tile(f32, 16, 32, "row", "col"), single, (16, 32)
    yield "transposed store of f32", _tile(f32, 32, 32, "col", "row"), single, (32, 32)
    yield "stmatrix, ldmatrix", _tile(bf16, 16, 64, "row", "row"), half, (16, 64)
    yield "stmatrix, ldmatrix transposed", _tile(bf16, 32, 64, "row", "col"), half, (32, 64)
    yield "stmatrix transposed, ldmatrix", _tile(bf16, 32, 64, "col", "row"), half, (32, 64)
    for swizzle in (32, 64):
        yield f"ldmatrix, swizzle {swizzle}", _tile(bf16, 32, 64, "row", "row", swizzle), half, (32, 64)
    yield "copy by 16 bytes", _tile(f32, 32, 64, None, None), single, (32, 64)
    yield "copy by 4 bytes", _tile(f32, 32, 64, None, None), single, (32, 65)
    yield "copy by 2 bytes", _tile(bf16, 32, 64, None, None), half, (32, 65)
    yield "copy of f32, fragments", _tile(f32, 32, 64, None, "row"), single, (32, 64)
    yield "runs of 4 f32 on 4 lanes", _tile(f32, 32, 64, None, run(4, 4)), single, (32, 64)
    yield "runs of 4 f32 on 16 lanes", _tile(f32, 32, 64, run(16, 4), run(16, 4)), single, (32, 64)
    yield "runs of 1 f32", _tile(f32, 16, 64, run(32, 1), run(32, 1)), single, (16, 64)
    yield "runs of 2 f32 on 8 lanes", _tile(f32, 32, 64, run(8, 2), run(8, 2)), single, (32, 64)
    yield "runs of 8 bf16 on 8 lanes", _tile(bf16, 32, 64, run(8, 8), run(8, 8)), half, (32, 64)
    yield "runs of 8 bf16 on 1 lane", _tile(bf16, 32, 64, run(1, 8), None), half, (32, 64)
    yield "vector of runs of 1", _vector(256, 1), single, (1, 256)
    yield "vector of runs of 4", _vector(256, 4), single, (1, 256)
    yield "column vector of a fragment", _fragments("col"), single, (64, 64)
    yield "row vector of a fragment", _fragments("row"), single, (64, 64)
    yield "single elements", _element(), single, (1, 32)


def simulated(kernel: Any, dtype: np.dtype, shape: tuple[int, int]) -> dict[str, int]:
    """Extra passes of loads and stores, as the simulator reports them."""
    report = kernel.simulate(np.zeros(shape, dtype), np.zeros(shape, dtype))
    loads = sum(c.passes for c in report.conflicts if c.operation in READS)
    return {"loads": loads, "stores": report.bank_conflicts - loads}


def launch() -> None:
    """Every pattern once, on the GPU."""
    import torch

    for _, kernel, dtype, shape in patterns():
        kind = torch.float32 if dtype == np.float32 else torch.bfloat16
        kernel(*(torch.zeros(shape, dtype=kind, device="cuda") for _ in range(2)))
    torch.cuda.synchronize()


def measured() -> list[dict[str, int]]:
    """The metrics of each launch, in order."""
    metrics = {**METRICS, **WAVEFRONTS}
    names = {metric: name for name, metric in metrics.items()}
    found = ncu.launches("benchmarks.banks", "pattern", [*names])
    return [{names[metric]: int(value) for metric, value in launch.items()} for launch in found]


def main() -> int:
    """How many patterns differ."""
    if sys.argv[1:] == ["launch"]:
        launch()
        return 0
    rows, wrong = [], 0
    for (name, kernel, dtype, shape), seen in zip(patterns(), measured(), strict=True):
        said = simulated(kernel, dtype, shape)
        same = all(said[k] == seen[k] for k in METRICS)
        wrong += not same
        rows.append({"pattern": name, "simulated": said, "measured": seen, "equal": same})
        print(f"{'' if same else 'DIFFERS  '}{name}: simulated {said}, measured {seen}", flush=True)
    print("->", record("banks", rows, ("pattern",)))
    return wrong


if __name__ == "__main__":
    sys.exit(main())
