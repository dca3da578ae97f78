"""Every operation's samples on a GPU beside the simulator: what `pykittens vocabulary` calls verified.

    python -m benchmarks.operations [NAME ...] [--workers 16]     # files a row an operation under `operations`

Samples that need a feature which this GPU lacks are left out. Bit for bit for what is exact, else within the promise.
Operations without samples are verified by the kernels of `exercises.py` that record them, compared with NumPy.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from .exercises import EXERCISES, Exercise
from .record import record

CHUNK = 16  # samples of a job
Job = tuple[str, int]  # an operation, and its first sample


def jobs(names: list[str]) -> list[Job]:
    """All the work, or that of some operations; those with most samples first."""
    from pykittens.reference.vocabulary import classes

    counts = {name: sum(1 for _ in op.samples()) for name, op in classes().items() if not names or name in names}
    longest = sorted(counts, key=lambda name: -counts[name])
    return [(name, first) for name in longest for first in range(0, counts[name], CHUNK)]


def work(job: Job) -> tuple[str, int, list[str]]:
    """The operation, how many samples ran, and what does not agree."""
    name, first = job
    try:
        return name, *_compared(name, first)
    except Exception:
        return name, 0, [f"{name} from sample {first}: {traceback.format_exc()}"]


def _compared(name: str, first: int) -> tuple[int, list[str]]:
    from pykittens.gpu import driver
    from pykittens.reference.vocabulary import classes
    from pykittens.testing.conformance import Case

    features, count, wrong = driver.architecture(0).features, 0, []
    for number, sample in list(enumerate(classes()[name].samples()))[first : first + CHUNK]:
        if sample.needs and (sample.needs not in features or sample.needs == "clusters"):  # a sample is one block
            continue
        case = Case(classes()[name], sample, number)
        wrong += [f"{case}: {text}" for text in case.differences(case.launch(), case.simulate(), bits=True)]
        count += 1
    return count, wrong


def exercise(number: int) -> tuple[set[str], list[str]]:
    """The operations without samples of a kernel that this GPU can run, and where it differs from NumPy."""
    from pykittens.gpu import driver
    from pykittens.gpu.memory import DeviceArray
    from pykittens.reference.vocabulary import classes

    chosen: Exercise = EXERCISES[number]
    if not chosen.runs_on(driver.architecture(0).features):
        return set(), []
    known = classes()
    recorded = [name for name in chosen.operations() if name in known]
    names = {name for name in recorded if all(sample.needs == "clusters" for sample in known[name].samples())}
    try:
        given = chosen.make(np.random.default_rng())
        device = [DeviceArray(x) for x in given]
        for _ in range(chosen.times):
            chosen.kernel(*device)
        wrong = chosen.differs(given[:-1], device[-1].numpy())
    except Exception:
        wrong = f"{chosen.kernel.name}: {traceback.format_exc()}"
    return names, [wrong] if wrong else []


def main() -> int:
    """How many comparisons failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=min(16, os.cpu_count() or 1))
    samples, failures = Counter[str](), dict[str, list[str]]()
    parser.add_argument("names", nargs="*", help="operations, such as TopK; all unless given")
    given = parser.parse_args()
    with ProcessPoolExecutor(given.workers, multiprocessing.get_context("spawn")) as pool:
        for name, count, wrong in pool.map(work, jobs(given.names)):
            samples[name] += count
            failures.setdefault(name, []).extend(wrong)
        for names, wrong in pool.map(exercise, range(len(EXERCISES)) if not given.names else ()):
            for name in names:
                samples[name] += 1
                failures.setdefault(name, []).extend(wrong)
    for text in (text for found in failures.values() for text in found):
        print(text)
    rows: list[dict[str, Any]] = [
        {"operation": name, "samples": samples[name], "disagreements": len(failures[name])}
        for name in sorted(samples)
        if samples[name]
    ]
    print("->", record("operations", rows, ("operation",)))
    return sum(map(len, failures.values()))


if __name__ == "__main__":
    raise SystemExit(min(main(), 1))
