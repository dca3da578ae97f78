"""Every family of `pykittens bench` beside everybody who is installed, recorded.

    python -m benchmarks.families [FAMILY ...] [--quick]          # all families (those of FAMILIES) unless named
    python -m benchmarks.families --compile-only [--arch sm_90a]  # only fills the cache (PYKITTENS_CACHE); needs no GPU
    python -m benchmarks.families --site FOLDER                   # peers are importable from there, too
    python -m benchmarks.families memory --alone --cells "width 4096" --seconds 60   # a part; rows of other cells stay

`python -m benchmarks.tables` then makes tables and charts.
"""

from __future__ import annotations

import argparse
import site
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from pykittens.bench import host, measure
from pykittens.bench.families import FAMILIES, line, run, select, worst
from pykittens.call.kernel import Kernel
from pykittens.kernels import attention, decoding, matmul

from .record import record


def main() -> int:
    """How many cells went wrong."""
    parser = argparse.ArgumentParser()
    parser.add_argument("families", nargs="*", choices=[[], *FAMILIES, "host"], default=[])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument("--arch", default="sm_90a")
    parser.add_argument("--cells", nargs="*", default=[], help='only cells with these facts, such as "n 4096, causal"')
    parser.add_argument("--alone", action="store_true", help="without the peers that have to be installed or compiled")
    parser.add_argument(
        "--seconds",
        type=float,
        default=float("inf"),
        help="begin no cell of a family after so long; what was measured is filed",
    )
    parser.add_argument("--site", type=Path)
    parser.add_argument("--out", type=Path, help="the results file, instead of benchmarks/results/<device>.json")
    o = parser.parse_args()
    if o.site:
        site.addsitedir(str(o.site))
    chosen, wrong = o.families or [*FAMILIES, "host"], 0
    if o.compile_only:
        compile_all([name for name in chosen if name != "host"], o.arch)
        return 0
    for name in chosen:
        start = time.perf_counter()
        if name == "host":
            rows = list(host.run(o.quick))
            for row in rows:
                print(row, flush=True)
            print("->", record("host", rows, host.KEY, o.out))
            continue
        rows, cells = [], select(name, o.cells)
        for cell, row in zip(cells, run(name, cells, not o.alone, o.quick), strict=True):
            rows.append(row)
            print(line(cell.label, row), f"({time.perf_counter() - start:.0f} s)", flush=True)
            if "problem" in row:
                wrong += 1
            else:  # one by one, so that what was measured is kept
                record(f"bench_{name}", [row], FAMILIES[name].KEY, o.out)
            if time.perf_counter() - start > o.seconds:
                break
        for peer, (mean, least, count) in worst(rows):
            print(f"    {name} beside {peer}: geometric mean {mean:.3f}, least {least:.3f}, {count} cells", flush=True)
    return wrong


def compile_all(names: list[str], arch: str) -> None:
    """Compiles what the cells will launch. Operands lie in memory that nobody touches."""
    import torch

    def untouched(*shape: int, dtype: Any = None) -> Any:
        return torch.empty(*shape, dtype=dtype or torch.bfloat16)

    with ExitStack() as patches:
        patches.enter_context(compiling(arch))
        for module in FAMILIES.values():
            if hasattr(module, "normal"):
                patches.enter_context(mock.patch.object(module, "normal", untouched))
            if hasattr(module, "copy_of"):
                patches.enter_context(mock.patch.object(module, "copy_of", lambda size: None))
        patches.enter_context(mock.patch.object(measure, "DEVICE", "cpu"))
        for name in names:
            for cell in select(name):
                print(name, cell.label, flush=True)
                FAMILIES[name].trial(cell, False).runs[measure.OURS]()


@contextmanager
def compiling(arch: str) -> Iterator[None]:
    """Within it, calling a kernel compiles it, as a GPU of 132 multiprocessors would, and does no more."""

    def compiled(kernel: Kernel, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        print(f"    {kernel.name}: {kernel.compile(*args, **named, arch=arch).registers} registers", flush=True)

    counts = {matmul: "SIMULATED", attention: "_SIMULATED_PROCESSORS", decoding: "_SIMULATED_PROCESSORS"}
    with ExitStack() as patches:
        for module, name in counts.items():
            patches.enter_context(mock.patch.object(module, name, 132))
        patches.enter_context(mock.patch.object(Kernel, "_run", compiled))
        yield


if __name__ == "__main__":
    sys.exit(main())
