"""The simulator against the independent judge, on random programs that synchronise.

    python -m benchmarks.judge [PROGRAMS [KIND]]   # 20,000 by default; files a row for each kind in benchmarks/results

A program counts as misjudged when one order of the simulator finds something and another does not, or when the judge,
who explores every interleaving, says otherwise than the simulator.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from multiprocessing import Pool
from typing import Any

from pykittens.testing import block_programs, sync_programs

from .record import record

CHUNK = 200
KINDS = (*sync_programs.KINDS, "atomics")


def judged(seeds: Iterable[int]) -> Counter[tuple[str, str]]:
    """How many programs of each kind are right, wrong, and misjudged."""
    found: Counter[tuple[str, str]] = Counter()
    for seed in seeds:
        program: Any = block_programs.random_program(seed)
        if seed % len(KINDS) < len(sync_programs.KINDS):  # which go round in turn
            program = sync_programs.random_program(seed // len(KINDS) * len(sync_programs.KINDS) + seed % len(KINDS))
        wrong, simulated = program.judged(), program.simulated()
        found[program.kind, "wrong" if wrong else "right"] += 1
        if {bool(x) for x in simulated} != {bool(wrong)}:
            found[program.kind, "misjudged"] += 1
            print(f"seed {seed}: the judge says {wrong or 'right'!r}, the simulator {simulated}\n{program}", flush=True)
    return found


def main() -> int:
    """How many programs are misjudged."""
    count = int(sys.argv[1]) if sys.argv[1:] else 20_000
    kinds = sys.argv[2:] or KINDS
    total: Counter[tuple[str, str]] = Counter()
    with Pool() as pool:
        seeds = [seed for seed in range(count) if KINDS[seed % len(KINDS)] in kinds]
        chunks = [seeds[first : first + CHUNK] for first in range(0, len(seeds), CHUNK)]
        for found in pool.imap_unordered(judged, chunks):
            total.update(found)
    counts = ("right", "wrong", "misjudged")
    rows = [{"kind": kind, **{word: total[kind, word] for word in counts}} for kind in kinds]
    for row in rows:
        print(row)
    print("->", record("judge", rows, ("kind",)))
    return sum(row["misjudged"] for row in rows)  # type: ignore[misc]


if __name__ == "__main__":
    sys.exit(main())
