"""Barriers among the threads of a scope, and named barriers between groups of warps."""

from __future__ import annotations

from ..errors import TypeRuleError
from ..loading import dataclass
from ..program import CudaWriter, Effect, NumpyMachine, Op, Operand, Scope, Sync, Value
from ..types import Type


@dataclass(eq=False)
class Barrier(Op):
    """All threads of the scope meet; shared and global accesses before it come before those after it."""

    spelling = "{scope}.sync"

    scope: Scope

    def numpy(self, m: NumpyMachine) -> None:
        pass

    def effects(self) -> tuple[Effect, ...]:
        return (Sync("barrier"),)

    def cuda(self, c: CudaWriter) -> None:
        c.line(c.barrier(self))


@dataclass(frozen=True)
class NamedBarrierType:
    """A hardware barrier (PTX "barrier"): a phase ends when `warps` warps have come, waiting or not."""

    warps: int
    bytes = 0

    def __str__(self) -> str:
        return f"barrier<{self.warps} warps>"


@dataclass(eq=False)
class Named(Op):
    """This scope's warps are counted at named barrier `barrier[index]`."""

    scope: Scope
    barrier: Value
    index: Operand = 0

    def types(self) -> tuple[Type, ...]:
        if not isinstance(self.barrier.type, NamedBarrierType):
            raise TypeRuleError(
                f"{self.barrier.label} is {self.barrier.type}, not a named barrier",
                fix="make one with pk.named_barrier(warps=8)",
            )
        return ()

    def numpy(self, m: NumpyMachine) -> None:
        pass

    def _line(self, c: CudaWriter, instruction: str) -> None:
        threads = self.barrier.type.warps * 32  # type: ignore[union-attr]
        c.line(
            f'asm volatile("{instruction} %0, %1;" :: "r"({c.named(self.barrier, self.index)}), "n"({threads}) : '
            '"memory");'
        )


class NamedArrive(Named):
    """They are counted and go on."""

    spelling = "{scope}.arrive_at"

    def effects(self) -> tuple[Effect, ...]:
        return (Sync("arrive", self.barrier, index=self.index),)

    def cuda(self, c: CudaWriter) -> None:
        self._line(c, "bar.arrive")


@dataclass(eq=False)
class NamedSync(Named):
    """They are counted and wait for the phase to end.

    `aligned` (set by passes/aligned.py): one role waits for a phase, so that "bar.sync", which is
    "barrier.sync.aligned" (PTX "barrier"), is nothing that synccheck reports.
    """

    spelling = "{scope}.sync_at"

    aligned: bool = False

    def effects(self) -> tuple[Effect, ...]:
        return (Sync("wait", self.barrier, index=self.index),)

    def cuda(self, c: CudaWriter) -> None:
        self._line(c, "bar.sync" if self.aligned else "barrier.sync")
