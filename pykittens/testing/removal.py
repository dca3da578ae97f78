"""The removal test: every synchronisation statement of a kernel is needed, and the simulator knows it.

    from pykittens.testing.removal import removals

    for removal in removals(my_kernel, x, y, causal=True):
        assert removal.found, f"nothing misses the {removal}"

Each statement is taken out of the traced program, one at a time, and the kernel is simulated. Where nothing is
diagnosed, either the statement is superfluous, or the instance is too small: every ring should go round three times,
and there should be more blocks than run at once. The kernel as it is must run clean.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..call.kernel import Kernel
from ..errors import Diagnosis
from ..program import Block, Op, Program, Sync


@dataclass(frozen=True)
class Removal:
    """A statement that was taken out, and what the simulator then found (None: nothing)."""

    op: Op
    found: Diagnosis | None

    @property
    def what(self) -> str:
        """What the statement does: "wait", "arrive", "barrier", "proxyfence" and so on."""
        return self.op.name

    @property
    def line(self) -> str:
        """The Python line that it comes from."""
        return self.op.location[0].text if self.op.location else ""

    def __str__(self) -> str:
        return f"{self.what} of `{self.line}` ({' from '.join(map(str, self.op.location))})"


def statements(program: Program) -> Iterator[tuple[Block, Op]]:
    """Every operation that does nothing but synchronise, with its region: barriers, arrivals, waits, commits, joins, fences."""
    yield from _statements(program.body)


def _statements(block: Block) -> Iterator[tuple[Block, Op]]:
    for op in list(block.ops):
        inner = list(op.blocks())
        for region in inner:
            yield from _statements(region)
        effects = () if inner else op.effects()
        if effects and all(isinstance(effect, Sync) for effect in effects):
            yield block, op


def removals(
    kernel: Kernel, *operands: Any, seeds: tuple[int | None, ...] = (None,), **named: Any
) -> Iterator[Removal]:
    """Takes each synchronisation statement out of a kernel and simulates what is left, in each of the orders that `seeds` give.

    Arrays are not written: each run has its own copies.
    """
    kernel.simulate(*map(_copy, operands), **{name: _copy(x) for name, x in named.items()})
    for block, op in statements(kernel.program(*operands, **named)):
        whole = block.ops
        block.ops = [other for other in whole if other is not op]
        found = None
        try:
            for seed in seeds:
                kernel.simulate(*map(_copy, operands), seed=seed, **{name: _copy(x) for name, x in named.items()})
        except Diagnosis as diagnosis:
            found = diagnosis
        finally:
            block.ops = whole
        yield Removal(op, found)


def _copy(x: Any) -> Any:
    return x.copy() if isinstance(x, np.ndarray) else x


__all__ = ["Removal", "removals", "statements"]
