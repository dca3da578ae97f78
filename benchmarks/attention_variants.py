"""Ways to divide attention's work on Hopper, ranked beside cuDNN and FlashAttention-4 in one run; nothing is filed.

    python -m benchmarks.attention_variants                                # the cells in CELLS, in that order
    python -m benchmarks.attention_variants --cells "n 4096, dim 128"      # cells with these facts
    # only fills the cache of kernels (PYKITTENS_CACHE); needs no GPU
    python -m benchmarks.attention_variants --compile-only

A variant is what its static options change of the shipped configuration. Each is checked against float64, on outputs
that begin as NaN, before everybody takes turns. A line has a cell: the peers, then the variants, best first, with how
many times as fast they are as the best peer.
"""

from __future__ import annotations

import argparse
import site
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pykittens as pk
from pykittens.bench import attention
from pykittens.bench.families import select
from pykittens.bench.measure import Cell, poisoned
from pykittens.bench.timing import in_turn
from pykittens.gpu import driver
from pykittens.kernels import attention_hopper
from pykittens.kernels.attention import configuration

CELLS = (
    "n 4096, dim 64",
    "heads 16, n 4096, dim 128",
    "n 16384, dim 64",
    "n 16384, dim 128",
    "n 1024, dim 64",
    "n 1024, dim 128",
    "n 4096, dim 256",
    "n 16384, dim 256",
    "n 1024, dim 256",
)
Options = dict[str, Any]


def variants(dim: int, causal: bool, n: int) -> dict[str, Options]:
    """What is worth a try for a cell, by what it changes."""
    shipped = configuration(dim, causal, n)
    pingpong = shipped.get("pingpong", True)
    stay = shipped.get("stay", True)
    changes: list[Options] = [
        {},
        {"stay": not stay},
        {"pingpong": not pingpong},
        {"stay": not stay, "pingpong": not pingpong},
    ]
    if dim == 64:
        changes += [{"stages": 4}, {"consumers": 5 - shipped.get("consumers", 2)}]
    elif dim == 128:
        changes += [
            {"keys": 288 - shipped.get("keys", 128), "queries": 3 - shipped.get("queries", 2), "pingpong": not pingpong}
        ]
    found: dict[str, Options] = {}
    defaults = dict(attention_hopper.attend.signature.static)
    for change in changes:
        options = {k: v for k, v in (shipped | change).items() if v != defaults[k]}
        if options not in found.values():
            changed = [f"{k}={int(v)}" for k, v in (defaults | options).items() if (defaults | shipped)[k] != v]
            found[" ".join(changed) or "shipped"] = options
    return found


def chosen(words: list[str]) -> list[Cell]:
    """Cells in the order of `words`, the full mask before the causal one, each once."""
    cells = [cell for word in words or CELLS for cell in select("attention", [word])]
    return [cell for i, cell in enumerate(cells) if cell not in cells[:i]]


def compile_all(cells: list[Cell], arch: str) -> None:
    """Compiles every variant, as many at a time as there are threads, and names those that spill."""

    def work(job: tuple[Cell, Options]) -> None:
        b, h, n, d, causal = (job[0].facts[name] for name in attention.KEY)
        x = pk.spec(pk.bf16, (b, h, n, d))
        cubin = attention_hopper.attend.compile(x, x, x, x, None, d**-0.5, causal=causal, arch=arch, **job[1])
        if cubin.spills or cubin.serialized:
            print(f"\n{job[0].label} {job[1]}: {cubin.spill_store_bytes} bytes spilled {' '.join(cubin.serialized)}")

    jobs = [
        (cell, options)
        for cell in cells
        for options in variants(cell.facts["dim"], cell.facts["causal"], cell.facts["n"]).values()
    ]
    with ThreadPoolExecutor(2) as pool:
        for i, _ in enumerate(pool.map(work, jobs)):
            print(f"\r{i + 1} of {len(jobs)} kernels", end="", flush=True)
    print()


def call(options: Options, q: Any, k: Any, v: Any, causal: bool) -> Callable[[], Any]:
    """A run of the kernel with these options: everything but the launch is done the first time."""

    @cache
    def bound() -> tuple[Any, Callable[[], None]]:
        out = q.new_empty(q.shape)
        sms = driver.multiprocessors(q.device.index)
        return out, attention_hopper.attend.bind(
            q, k, v, out, None, q.shape[-1] ** -0.5, causal=causal, sms=sms, **options
        )

    def run() -> Any:
        out, launch = bound()
        launch()
        return out

    return run


def rank(cell: Cell, budget: float) -> str:
    """The line of a cell."""
    found = variants(cell.facts["dim"], cell.facts["causal"], cell.facts["n"])
    trial = attention.trial(
        cell, True, {name: lambda *operands, o=options: call(o, *operands) for name, options in found.items()}
    )
    runs = {name: run for name, run in trial.runs.items() if name != "FA2"}
    errors, wrong = {}, {}
    for name in list(runs):
        try:
            with poisoned():
                errors[name] = trial.error(runs[name]())
        except Exception as error:
            wrong[name] = f"{type(error).__name__} {(str(error).splitlines() or [''])[0]}"
            del runs[name]
    for name in set(runs) & set(found):
        if not errors[name] <= trial.limit(errors):
            wrong[name] = f"an error of {errors[name]:.2g}"
            del runs[name]
    times = {name: t.median for name, t in in_turn(runs, budget).items()}
    peers = {name: times.pop(name) for name in list(times) if name not in found}
    least = min(peers.values(), default=float("nan"))
    return " | ".join(
        [cell.label]
        + [f"{name} {cell.rate(ms):.0f}" for name, ms in peers.items()]
        + [
            f"{cell.rate(ms):.0f} {least / ms:.3f} {name}"
            for name, ms in sorted(times.items(), key=lambda item: item[1])
        ]
        + [f"WRONG {name}: {why}" for name, why in wrong.items()]
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cells", nargs="*", default=[], help='cells with these facts, such as "n 4096, causal"')
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no cell after so long")
    parser.add_argument("--budget", type=float, default=40.0, help="milliseconds of work of each contender in a cell")
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument("--arch", default="sm_90a")
    parser.add_argument("--site", type=Path, help="peers are importable from there, too")
    o = parser.parse_args()
    if o.site:
        site.addsitedir(str(o.site))
    cells, start = chosen(o.cells), time.perf_counter()
    if o.compile_only:
        compile_all(cells, o.arch)
        return
    for cell in cells:
        if time.perf_counter() - start > o.seconds:
            sys.exit(f"not begun after {o.seconds:.0f} s: {cell.label} and what follows it")
        print(rank(cell, o.budget), flush=True)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
