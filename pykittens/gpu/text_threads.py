"""The C of the running thread: its place in the scope that works together, who of them is elected, and where they
meet.
"""

from __future__ import annotations

from typing import Any

from ..architectures import Architecture
from ..errors import ResourceError
from ..layouts import Sym
from ..program import Operand, Program, Scope, Value
from ..program.interfaces import Statement
from ..types import i32
from .prelude import ELECT
from .text_base import TextBase


class ThreadText(TextBase):
    """C for numbers of threads, warps and units, counted in the role that is being written."""

    def __init__(self, program: Program, arch: Architecture):
        super().__init__(program, arch)
        self.first_warp, self.role_warps, self.role = 0, program.warps, ""
        self.elected = False  # inside a role that one thread runs alone
        # Named barriers: the first id by (first warp of the role, its warps, those of the scope), or by value.
        self.barriers: dict[Any, int] = {}
        self.next_barrier = 1  # 0 is __syncthreads

    lane = Sym("lane")

    def _relative(self) -> str:
        return f"(warp_id - {self.first_warp})" if self.first_warp else "warp_id"

    def warp(self, scope: Scope) -> Any:
        """Index of this warp in its unit of the scope (0 when the unit is one warp)."""
        if scope.warps == 1:
            return 0
        if scope.warps == self.role_warps:
            return Sym(self._relative())
        return Sym(f"({self._relative()} % {scope.warps})")

    def thread(self, scope: Scope) -> str:
        """Index of this thread in its unit of the scope."""
        if scope.warps == 1:
            return "lane"
        relative = f"(thread - {32 * self.first_warp})" if self.first_warp else "thread"
        return relative if scope.warps == self.role_warps else f"({relative} % {32 * scope.warps})"

    def unit(self, scope: Scope) -> str:
        """Which unit of the scope this thread belongs to, counted in its role."""
        if scope.warps == self.role_warps:
            return "0"
        return self._relative() if scope.warps == 1 else f"{self._relative()} / {scope.warps}"

    def elect(self, scope: Scope) -> str:
        """C that lets one thread of each unit of the scope run the next statement; empty where only one runs anyway."""
        if self.elected:
            return ""
        warp = self.warp(scope)
        return f"if ({self.one()}) " if scope.warps == 1 else f"if ({warp} == 0 && {self.one()}) "

    def one(self) -> str:
        """C that holds in one thread of a warp, always the same."""
        if not self.has("elect"):
            return "lane == 0"
        self.prelude(ELECT)
        return "pk_elect_one()"

    def barrier(self, op: Statement) -> str:
        """The statement in which the threads of the operation's scope meet."""
        warps = op.scope.warps
        if warps == 1:
            return "__syncwarp();"
        if warps == self.program.warps:
            return "__syncthreads();"
        key = (self.first_warp, self.role_warps, warps)
        if key not in self.barriers:
            self.barriers[key] = self._take_barriers(self.role_warps // warps, op)
        which = self.unit(op.scope)
        name = f"{self.barriers[key]}" if which == "0" else f"{self.barriers[key]} + {which}"
        return f'asm volatile("bar.sync %0, {warps * 32};" :: "r"({name}) : "memory");'

    def named(self, barrier: Value, index: Operand) -> str:
        """The number of a named barrier."""
        if barrier not in self.barriers:
            self.barriers[barrier] = self._take_barriers(getattr(barrier, "count", 1), None, barrier.location)
        return f"{self.barriers[barrier]} + {self.scalar(index, i32)}"

    def _take_barriers(self, count: int, op: Statement | None, where: Any = None) -> int:
        first = self.next_barrier
        self.next_barrier += count
        if self.next_barrier > 16:
            raise ResourceError(
                f"a block has 16 hardware barriers; this kernel uses {self.next_barrier}",
                fix="synchronise larger scopes, or use mbarriers",
                location=op.location if op is not None else where,
            )
        return first
