"""What the blocks of a cluster, and successive kernels of a stream, do together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..program import Effect, Op, Scope, Sync


@dataclass(eq=False)
class ClusterBarrier(Op):
    """All threads of all blocks of the cluster meet (PTX "barrier.cluster")."""

    scope: Scope

    def numpy(self, m: Any) -> None:
        pass

    def effects(self) -> tuple[Effect, ...]:
        return (Sync("cluster"),)

    def cuda(self, c: Any) -> None:
        c.require(90, self, "clusters")
        c.line('asm volatile("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;" ::: "memory");')


@dataclass(eq=False)
class DependencyWait(Op):
    """Waits until the kernels that this one depends on have ended (PTX "griddepcontrol.wait")."""

    scope: Scope

    single = True
    collective = False

    def numpy(self, m: Any) -> None:
        pass

    def cuda(self, c: Any) -> None:
        c.require(90, self, "programmatic dependent launch")
        c.line('asm volatile("griddepcontrol.wait;" ::: "memory");')


@dataclass(eq=False)
class DependencyLaunch(Op):
    """Lets dependent kernels begin (PTX "griddepcontrol.launch_dependents")."""

    scope: Scope

    single = True
    collective = False

    def numpy(self, m: Any) -> None:
        pass

    def cuda(self, c: Any) -> None:
        c.require(90, self, "programmatic dependent launch")
        c.line('asm volatile("griddepcontrol.launch_dependents;" ::: "memory");')
