"""Barriers among the threads of a scope, and named barriers between groups of warps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import TypeRuleError
from ..program import Effect, Op, Operand, Scope, Sync, Value
from ..types import Type


@dataclass(eq=False)
class Barrier(Op):
    """All threads of the scope meet; shared and global accesses before it come before those after it."""

    scope: Scope

    def numpy(self, m: Any) -> None:
        pass

    def effects(self) -> tuple[Effect, ...]:
        return (Sync("barrier"),)

    def cuda(self, c: Any) -> None:
        c.line(c.barrier(self))


@dataclass(frozen=True)
class NamedBarrierType:
    """A hardware barrier (PTX "barrier"): a phase ends when `warps` warps have come, waiting or not."""

    warps: int
    bytes = 0

    def __str__(self) -> str:
        return f"barrier<{self.warps} warps>"


@dataclass(eq=False)
class NamedArrive(Op):
    """This scope's warps are counted at named barrier `barrier[index]` and go on."""

    scope: Scope
    barrier: Value
    index: Operand = 0

    def types(self) -> tuple[Type, ...]:
        return _check_named(self.barrier)

    def numpy(self, m: Any) -> None:
        pass

    def effects(self) -> tuple[Effect, ...]:
        return (Sync("arrive", self.barrier, index=self.index),)

    def cuda(self, c: Any) -> None:
        c.line(f'asm volatile("bar.arrive %0, %1;" :: "r"({c.named(self.barrier, self.index)}), "n"({self.barrier.type.warps * 32}) : "memory");')  # type: ignore[union-attr]


@dataclass(eq=False)
class NamedSync(Op):
    """This scope's warps are counted at named barrier `barrier[index]` and wait for its phase to end."""

    scope: Scope
    barrier: Value
    index: Operand = 0

    def types(self) -> tuple[Type, ...]:
        return _check_named(self.barrier)

    def numpy(self, m: Any) -> None:
        pass

    def effects(self) -> tuple[Effect, ...]:
        return (Sync("wait", self.barrier, index=self.index),)

    def cuda(self, c: Any) -> None:
        c.line(f'asm volatile("bar.sync %0, %1;" :: "r"({c.named(self.barrier, self.index)}), "n"({self.barrier.type.warps * 32}) : "memory");')  # type: ignore[union-attr]


def _check_named(barrier: Value) -> tuple[Type, ...]:
    if not isinstance(barrier.type, NamedBarrierType):
        raise TypeRuleError(f"{barrier.label} is {barrier.type}, not a named barrier", fix="make one with pk.named_barrier(warps=8)")
    return ()
