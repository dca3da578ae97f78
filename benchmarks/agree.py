"""The GPU beside the operations' NumPy meaning: every elementwise operation over hard and random numbers, random
programs.

    python -m benchmarks.agree [--seconds 300] [--programs 5000] [--pairs 10000000] [--workers 16] [--seed 0] [--record]

Functions of one operand and conversions run over all bit patterns of 8 and 16 bits, and over hard and random ones of
wider dtypes; operations on two over all pairs of 8 bits, hard numbers squared, and random pairs of the others. Exact
and correctly rounded results must have the same bits, approximations lie within the bound that the operation promises.
Operations that move elements between layouts run on their own samples. Random programs of exact operations
(`pykittens.testing.programs`) run beside the simulator. `--seed` draws other programs and other random numbers. Work is
cut into jobs that processes compile, run and compare; what did not start within `--seconds` is counted as left out.
Files a row under `agreement`, which names the card.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
import traceback
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import numpy as np

WIDE, HARD, CHUNK = 1 << 20, 2000, 1 << 20  # numbers of a wide dtype; hard ones that are squared; pairs of a job
MANY, SCALARS = 16, 4096  # times WIDE; pairs of scalars
TOGETHER = 5  # programs of a kernel: of 10 each costs the compiler a fifth more, of 20 twice as much
SAMPLES = 16  # samples of a job
Job = tuple[str, Any]


@dataclass
class Result:
    """What a job found, by operation."""

    job: Job
    checked: int = 0
    wrong: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)
    share: dict[str, float] = field(
        default_factory=dict
    )  # the largest error of approximations, as a share of its bound
    failed: str = ""


def jobs(programs: int, pairs: int, seed: int) -> list[Job]:
    """All the work: the long jobs first. Programs of two seeds are others as long as there are under a million."""
    from pykittens.testing import sweeps

    begin = seed * 1_000_000
    found: list[Job] = [("programs", first) for first in range(begin, begin + programs, TOGETHER)]
    found += [("scalars", i) for i in range(len(sweeps.scalar_sweeps()))]
    for i, sweep in enumerate(sweeps.unary_sweeps()):
        found += [("unary", (i, chunk)) for chunk in range(1 if sweep.inputs["x"].bits == 16 else MANY)]
    found += [("conversion", i) for i in range(len(sweeps.conversion_sweeps()))]
    for i, op in enumerate(_moving()):
        found += [("samples", (i, first)) for first in range(0, sum(1 for _ in op.samples()), SAMPLES)]
    chunks = -(-(HARD * HARD + pairs) // CHUNK)
    for i, sweep in enumerate(sweeps.binary_sweeps()):
        found += [("binary", (i, chunk)) for chunk in range(1 if sweep.inputs["a"].bits == 8 else chunks)]
    return found


def work(job: Job, seed: int) -> Result:
    """Does a job, in a process of its own."""
    result = Result(job)
    try:
        kind, which = job
        if kind in ("programs", "samples"):
            {"programs": _programs, "samples": _samples}[kind](result, which)
        else:
            _sweep(result, kind, which, seed)
    except Exception:
        result.failed = traceback.format_exc()
    return result


def _sweep(result: Result, kind: str, which: Any, seed: int) -> None:
    import pykittens as pk
    from pykittens.gpu.memory import DeviceArray
    from pykittens.testing import sweeps

    number, chunk = which if isinstance(which, tuple) else (which, 0)
    make = {"scalars": sweeps.scalar_sweeps, "unary": sweeps.unary_sweeps, "binary": sweeps.binary_sweeps}
    sweep = make.get(kind, sweeps.conversion_sweeps)()[number]
    operands = _operands(kind, sweep, chunk, seed)
    arrays = sweep.arrays(operands)
    kernel = sweep.kernel(len(next(iter(operands.values()))))
    device = {name: DeviceArray(x) for name, x in arrays.items()}
    kernel(**device)
    parameters = {**sweep.inputs, **sweep.outputs}
    want = sweeps.meaning(kernel.program(**{n: pk.spec(d, arrays[n].shape) for n, d in parameters.items()}), arrays)
    for name in sweep.outputs:
        found = sweeps.disagreements(sweep, name, device[name].numpy(), want[name], operands)
        key = f"{sweep.name}: {name}"
        result.checked += found.checked
        if found.wrong:
            result.wrong[key] = found.wrong
            result.examples += [f"{sweep.name}: {x}" for x in found.examples]
        if name in sweep.close:
            result.share[key] = found.share


def _operands(kind: str, sweep: Any, chunk: int, seed: int) -> dict[str, np.ndarray]:
    """What a sweep works on: as many numbers as whole tiles hold."""
    from pykittens.testing.hard_numbers import numbers

    dtype = next(iter(sweep.inputs.values()))
    rng = np.random.default_rng([chunk, len(sweep.name), seed])
    if kind == "scalars":
        return {n: rng.permutation(np.resize(numbers(d, SCALARS), SCALARS)) for n, d in sweep.inputs.items()}
    if kind != "binary":
        count = {8: 2048, 16: 65536}.get(dtype.bits, WIDE)
        if chunk:
            return {"x": rng.integers(0, 256, count * dtype.size, np.uint8).view(dtype.numpy)}
        return {"x": np.resize(numbers(dtype, count), count)}
    count = 65536 if dtype.bits == 8 else CHUNK
    pair = np.arange(count, dtype=np.int64) + chunk * count
    side = 256 if dtype.bits == 8 else HARD
    first = numbers(dtype, side)
    random = rng.integers(0, 256, 3 * count * dtype.size, np.uint8).view(dtype.numpy).reshape(3, count)
    inside = pair < side * side
    a = np.where(inside, first[pair // side % side].view(f"u{dtype.size}"), random[0].view(f"u{dtype.size}"))
    b = np.where(inside, first[pair % side].view(f"u{dtype.size}"), random[1].view(f"u{dtype.size}"))
    c = np.where(rng.random(count) < 0.5, rng.permutation(a), random[2].view(f"u{dtype.size}"))
    return {name: x.view(dtype.numpy) for name, x in (("a", a), ("b", b), ("c", c))}


def _programs(result: Result, first: int) -> None:
    from pykittens.gpu.driver import architecture
    from pykittens.gpu.memory import DeviceArray
    from pykittens.testing.program_kernel import OUTPUTS, arrays, program_kernel
    from pykittens.testing.sweeps import different

    seeds = tuple(range(first, first + TOGETHER))
    given = arrays(seeds)
    device = {name: DeviceArray(x) for name, x in given.items()}
    kernel = program_kernel(seeds, "fp8 conversions" in architecture(0).features)
    kernel(**device)
    kernel.simulate(**given)
    for dtype in OUTPUTS:
        got, want = device[f"{dtype}_out"].numpy(), given[f"{dtype}_out"]
        bad = different(got, want)
        result.checked += got.size
        for seed in np.flatnonzero(bad.any(axis=(1, 2))):
            i, j = np.argwhere(bad[seed])[0]
            result.wrong[f"program {seeds[seed]}: {dtype}"] = int(bad[seed].sum())
            result.examples.append(
                f"program {seeds[seed]}: {dtype}[{i}, {j}] = {got[seed, i, j]}, not {want[seed, i, j]}"
            )


def _moving() -> list[Any]:
    """The operations that move elements between layouts, threads and parts of tiles, with their own samples."""
    from pykittens.testing.conformance import operations

    modules = "layout_conversion layout_exchange vector_conversion take_rows transposed pairs slice_concat rolls fill "
    modules += "masks reduce random scan top_k indexed global_reduce"
    return [op for op in operations() if op.__module__.rpartition(".")[2] in modules.split()]


def _samples(result: Result, which: tuple[int, int]) -> None:
    from pykittens.testing.conformance import Case

    op, first = _moving()[which[0]], which[1]
    for number, sample in list(enumerate(op.samples()))[first : first + SAMPLES]:
        case = Case(op, sample, number)
        got, want = case.launch(), case.simulate()
        result.checked += sum(x.size for x in got.values())
        for text in case.differences(got, want, bits=True):
            result.wrong[case.name] = result.wrong.get(case.name, 0) + 1
            result.examples.append(f"{case.name}: {text}")


def run(todo: list[Job], workers: int, seconds: float, seed: int) -> tuple[list[Result], int]:
    """The results of the jobs that began in time, and how many did not."""
    end, results, left = time.monotonic() + seconds, list[Result](), list(todo)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        running: set[Future[Result]] = set()
        while running or (left and time.monotonic() < end):
            while left and len(running) < 2 * workers and time.monotonic() < end:
                running.add(pool.submit(work, left.pop(0), seed))
            done, running = wait(running, return_when=FIRST_COMPLETED)
            results += [future.result() for future in done]
    return results, len(left)


def summary(results: list[Result], left: int, seconds: float, seed: int) -> dict[str, Any]:
    """The row to be recorded."""
    wrong: dict[str, int] = {}
    for result in results:
        for name, count in result.wrong.items():
            wrong[name] = wrong.get(name, 0) + count
    kinds = {
        kind: sum(r.checked for r in results if r.job[0] == kind) for kind in dict.fromkeys(r.job[0] for r in results)
    }
    return {
        "what": "the GPU beside the NumPy meaning",
        "disagreements": sum(wrong.values()),
        "where": wrong,
        "numbers": kinds,
        "largest error as a share of its bound": max((x for r in results for x in r.share.values()), default=0.0),
        "programs": TOGETHER * sum(r.job[0] == "programs" and not r.failed for r in results),
        "seed": seed,
        "failed jobs": sum(bool(r.failed) for r in results),
        "jobs left out": left,
        "seconds": round(seconds),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=420)
    parser.add_argument("--programs", type=int, default=5000)
    parser.add_argument("--pairs", type=int, default=10_000_000)
    parser.add_argument("--workers", type=int, default=min(16, os.cpu_count() or 1))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="file the row in benchmarks/results")
    given = parser.parse_args()
    begin = time.monotonic()
    results, left = run(jobs(given.programs, given.pairs, given.seed), given.workers, given.seconds, given.seed)
    row = summary(results, left, time.monotonic() - begin, given.seed)
    worst: dict[str, float] = {}
    for result in results:
        for name, share in result.share.items():
            worst[name] = max(worst.get(name, 0.0), share)
        if result.failed:
            print(result.job, result.failed[-1500:])
    print("\n".join(f"{name}: {share:.0%} of its bound" for name, share in sorted(worst.items())))
    for example in [x for r in results for x in r.examples][:60]:
        print("DISAGREES", example)
    for name, count in sorted(row["where"].items(), key=lambda item: -item[1])[:60]:
        print(f"{count:9} {name}")
    print({key: value for key, value in row.items() if key != "where"})
    if given.record:
        from .record import record

        print("->", record("agreement", [row], ("what",)))
    return int(bool(row["disagreements"] or row["failed jobs"] or left))


if __name__ == "__main__":
    sys.exit(main())
