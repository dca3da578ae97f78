"""The removal test: every synchronisation statement of a kernel is needed, and the simulator knows it.

    from pykittens.testing.removal import removals

    for removal in removals(my_kernel, x, y, causal=True):
        assert removal.found, f"nothing misses the {removal}"

Each statement is taken out of the traced program, one at a time, and the kernel is simulated; a release, an acquire or
a fence is also weakened, to a relaxed one and to the next smaller scope. Where nothing is diagnosed, either the
statement is superfluous, or the instance is too small: every ring should go round three times, and there should be more
blocks than run at once. The kernel as it is must run clean.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..call.kernel import Kernel
from ..errors import Diagnosis
from ..ops.memory_order import Signal, WaitFor
from ..program import Block, Op, Program, Sync


@dataclass(frozen=True)
class Removal:
    """A statement that is taken out or weakened, and what the simulator then finds."""

    op: Op
    change: str  # what becomes of it, where it is not taken out: "order=relaxed", "memory_scope=cta"
    simulate: Callable[[], Diagnosis | None] = field(repr=False)  # without it

    @functools.cached_property
    def found(self) -> Diagnosis | None:
        """What the simulator diagnoses without the statement, None if nothing. It is simulated when first asked for."""
        return self.simulate()

    @property
    def what(self) -> str:
        """What the statement does: "wait", "arrive", "barrier", "proxyfence" and so on; and what it was changed to."""
        return f"{self.op.name} {self.change}".strip()

    @property
    def line(self) -> str:
        """The Python line that it comes from."""
        return self.op.location[0].text if self.op.location else ""

    def __str__(self) -> str:
        return f"{self.what} of `{self.line}` ({' from '.join(map(str, self.op.location))})"


def statements(program: Program) -> Iterator[tuple[Block, Op]]:
    """Every operation that does nothing but synchronise, or has a memory order, with its region: barriers, arrivals,
    waits, commits, joins, fences, flags."""
    yield from _statements(program.body)


def _statements(block: Block) -> Iterator[tuple[Block, Op]]:
    for op in list(block.ops):
        inner = list(op.blocks())
        for region in inner:
            yield from _statements(region)
        effects = () if inner else op.effects()
        if effects and (all(isinstance(effect, Sync) for effect in effects) or any(weaker(op, (2, 1, 1)))):
            yield block, op


def weaker(op: Op, cluster: tuple[int, int, int]) -> Iterator[tuple[str, Op]]:
    """The operation with less order, in each way, and what was changed."""
    for order in {"acq_rel": ("acquire", "release"), "acquire": ("relaxed",), "release": ("relaxed",)}.get(
        getattr(op, "order", ""), ()
    ):
        yield _changed(op, "order", order)
    orders = getattr(op, "order", "acq_rel") not in ("weak", "relaxed")
    narrower = {"gpu": "cluster" if cluster != (1, 1, 1) else "cta", "cluster": "cta"}.get(
        getattr(op, "memory_scope", "")
    )
    if narrower and orders:
        yield _changed(op, "memory_scope", narrower)


def _changed(op: Op, name: str, value: str) -> tuple[str, Op]:
    made = copy.copy(op)  # with its results and its line
    setattr(made, name, value)
    return f"{name}={value}", made


def removals(
    kernel: Kernel, *operands: Any, seeds: tuple[int | None, ...] = (None,), **named: Any
) -> Iterator[Removal]:
    """Takes each synchronisation statement out of a kernel and simulates what is left, in each of the orders that
    `seeds` give.

    An atomic, a load or a store stays, and loses its order alone. Arrays are not written: each run has its own copies.
    The kernel as it is runs before the first of them is simulated, and raises what it is diagnosed with.
    """

    def run(seed: int | None) -> None:
        copies = {name: _copy(x) for name, x in named.items()}  # one of which may be the kernel's own `seed`
        kernel.simulate_with(tuple(map(_copy, operands)), copies, seed=seed)

    @functools.cache
    def runs_clean() -> None:
        run(None)

    def without(block: Block, op: Op, instead: list[Op]) -> Diagnosis | None:
        runs_clean()
        whole = block.ops
        block.ops = [x for other in whole for x in (instead if other is op else [other])]
        try:
            for seed in seeds:
                run(seed)
        except Diagnosis as diagnosis:
            return diagnosis
        finally:
            block.ops = whole
        return None

    for block, op, change, instead in _changes(kernel.program(*operands, **named)):
        yield Removal(op, change, functools.partial(without, block, op, instead))


def _changes(program: Program) -> Iterator[tuple[Block, Op, str, list[Op]]]:
    """Each statement with its region, how it is changed, and what then stands for it."""
    for block, op in statements(program):
        if isinstance(op, (Signal, WaitFor)) or all(isinstance(effect, Sync) for effect in op.effects()):
            yield block, op, "", []
        for change, made in weaker(op, program.cluster):
            yield block, op, change, [made]


def _copy(x: Any) -> Any:
    return x.copy() if isinstance(x, np.ndarray) else x


__all__ = ["Removal", "removals", "statements"]
