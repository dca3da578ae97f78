"""How fast the simulator is: every shipped kernel once, and once without each of its synchronisations.

    python tests/sim/bench.py [name]

Prints seconds for a run, and for a removal that is found (or, marked, survives).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import pykittens as pk
from pykittens.kernels.catalog import Instance, label
from pykittens.kernels.registry import KERNELS
from pykittens.program import Block, Sync
from pykittens.sim import simulate


def regions(block: Block) -> Iterator[Block]:
    """A region and all inside it."""
    yield block
    for op in block:
        for inner in op.blocks():
            yield from regions(inner)


def bench(name: str, instance: Instance) -> None:
    """Runs an instance, then without each operation that only synchronises."""
    kernel, program, arrays = instance.kernel, instance.program(), instance.arrays()
    given, fixed = kernel.arguments((), {**instance.operands, **instance.statics})
    grid = kernel.dims("grid", kernel.specialise(given, fixed)[1], fixed)
    start = time.perf_counter()
    simulate(program, arrays, grid)
    print(f"{name}: {time.perf_counter() - start:.2f} s")
    for region in list(regions(program.body)):
        for op in list(region):
            effects = op.effects()
            if not effects or not all(isinstance(e, Sync) for e in effects):
                continue
            at, start = region.ops.index(op), time.perf_counter()
            del region.ops[at]
            try:
                simulate(program, arrays, grid)
                found = "SURVIVES"
            except pk.KernelError as error:
                found = type(error).__name__
            region.ops.insert(at, op)
            print(
                f"    {time.perf_counter() - start:5.2f} s  {op.scope}.{op.name} at line {op.location[0].line}: {found}"
            )


if __name__ == "__main__":
    for row in KERNELS.values():
        for choice, instance in row.configurations():
            if all(word in row.name for word in sys.argv[1:]):
                bench(f"{row.name} ({label(choice)})", instance)
