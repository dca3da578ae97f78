"""What operations do to memory, and how they order one another."""

from __future__ import annotations

from typing import Literal, Union

from ..loading import dataclass
from ..thread_map import EVERY_THREAD, ThreadMap
from .values import Operand, Place, Value

Order = Literal["weak", "relaxed", "acquire", "release", "acq_rel"]
MemoryScope = Literal["cta", "cluster", "gpu"]


@dataclass(frozen=True)
class Access:
    """One effect: an operation reads or writes shared or global memory, or registers after it has returned.

    mode "reduce" changes each element in one step, from what it was before; reductions of one kind (`reduction`: "add",
    ...) may overlap. order: "weak" (ordinary loads and stores), or the semantics of a strong operation at `scope` (PTX
    ISA,
    memory consistency model): what comes before a "release" is known to those that read its value with an "acquire".
    proxy: "generic" (ordinary loads and stores) or "async" (TMA and wgmma). done: when it is finished: "now", the name
    of the group queue it joins
    ("wgmma", "cp.async", "bulk"; "bulk.read" is finished when its source may be overwritten), or the mbarrier it
    completes on (whose pending bytes it pays when it writes shared memory). threads: which threads of the scope touch
    which elements. rank: the block of the cluster whose shared memory is meant (None: the own); mask: multicast, bit r
    set writes the same bytes, and pays the same barrier, of block r. told: the blocks (as `mask`) whose barrier tells
    that it is finished, where these are others than those touched. at: only this element of a shared vector. index: the
    (row, column) of each element in the matrix of the target, tiles, vectors or scalars of int32 that are broadcast to
    the registers which `threads` names; an element outside of it is not touched.
    """

    target: Value | Place
    mode: Literal["read", "write", "reduce"]
    threads: ThreadMap = EVERY_THREAD
    proxy: Literal["generic", "async"] = "generic"
    done: str | Value = "now"
    rank: Operand | None = None
    mask: Operand | None = None
    told: Operand | None = None
    at: Operand | None = None
    order: Order = "weak"
    scope: MemoryScope = "gpu"
    reduction: str = ""
    index: tuple[Operand, Operand] | None = None


@dataclass(frozen=True)
class Sync:
    """One effect that orders others.

    kind: "barrier" (the scope's warps meet), "cluster" (all warps of all blocks of the cluster meet), "arrive" (`count`
    arrivals at an mbarrier, one from the scope, which first adds `bytes` to what its phase waits for; or the scope's
    warps are counted at a named barrier), "wait" (until the phase with parity `phase` of an mbarrier has ended; or for
    a named barrier, counting the scope's warps too), "commit" and "join" (a group queue named `queue`; `pending` groups
    may stay unfinished), "fence" (generic writes known to this thread become visible to the async proxy), "previous"
    (until the kernels before this one in the stream have ended), "memory fence" (strong accesses after it release,
    those before it acquire, at `scope`), "until" (an element is at least `phase`). target: the barrier, its item
    `index` for named ones, or the element; rank: the block of the cluster whose barrier is meant (None: the own).
    """

    kind: Literal[
        "barrier", "cluster", "arrive", "wait", "commit", "join", "fence", "previous", "memory fence", "until"
    ]
    target: Value | Place | None = None
    queue: str = ""
    pending: int = 0
    phase: Operand = 0
    bytes: Operand = 0
    count: int = 1
    index: Operand = 0
    rank: Operand | None = None
    scope: MemoryScope = "gpu"


Effect = Union[Access, Sync]
