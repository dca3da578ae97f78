"""Words with which blocks and warps hand over through global memory: atomics, fences, flags.

    pk.signal(flags, i)                  # what the role did before is known
    pk.wait_for(flags, i)                # to whoever has waited

    ticket = pk.atomic_add(counter, 0, 1, order="acq_rel")
    with pk.when(ticket == blocks - 1):  # the last block to come, which knows what the others did
        ...

`order` and `scope` are PTX's ("memory consistency model"): "relaxed", "acquire", "release" or "acq_rel", for the
threads of the block ("cta"), the "cluster" or the whole "gpu". `at` is an element's coordinate. Only a launch that is
declared cooperative (`@pk.kernel(cooperative=True)`) may wait for blocks of a higher index: others may never begin.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..ops import atomics, memory_order, sync
from ..ops.element import LoadScalar
from ..ops.memory_order import RELEASES
from ..ops.scalars import THREAD
from ..program import MemoryScope, Operand, Order, Place, Scope
from ..types import SharedVector
from .flow import when
from .handle import number
from .memory import At, Shared, Tensor, place
from .recorder import current, record, result
from .scalar import Scalar
from .scopes import ScopeHandle, warp
from .scratch import scratch

WARP = Scope("warp", 1)


def element(tensor: Tensor, at: Any) -> Place:
    return place(tensor, At(at if isinstance(at, tuple) else (at,)), (1,))


def _scope(by: ScopeHandle | None) -> Scope:
    """Who does it: the whole role, if nobody is named."""
    if by is not None:
        return by.scope
    warps = current().warps
    return WARP if warps == 1 else Scope("role", warps)


def _atomic(
    kind: str,
    tensor: Tensor | Shared,
    at: Any,
    value: Operand,
    order: Order,
    scope: MemoryScope,
    by: ScopeHandle | None,
    expected: Operand | None = None,
) -> Scalar:
    wanted = None if expected is None else number(expected)
    target, where = (tensor, number(at)) if isinstance(tensor, Shared) else (element(tensor, at), 0)

    def once(by: Scope) -> Scalar:
        return result(atomics.Atomic(by, target, kind, number(value), wanted, where, order, scope))

    whole = _scope(by)
    return _by_first_warp(once, whole, target, order) if by is None and whole.warps > 1 and not role() else once(whole)


def _by_first_warp(once: Callable[[Scope], Scalar], whole: Scope, target: Any, order: Order) -> Scalar:
    """What one warp does for the block, when all have come where it `releases`; its result goes to all."""
    place = scratch(whole, SharedVector(target.type.dtype, 1), name="found")
    if order in RELEASES:
        record(sync.Barrier(whole))
    with when(warp.index == 0):
        record(atomics.StoreOne(WARP, place, once(WARP)))
    record(sync.Barrier(whole))
    return result(LoadScalar(THREAD, place))


def role() -> bool:
    """Whether a role runs this, perhaps in one elected thread."""
    return current().role is not None


def atomic_add(
    tensor: Tensor | Shared,
    at: Any,
    value: Operand,
    *,
    order: Order = "relaxed",
    scope: MemoryScope = "gpu",
    by: ScopeHandle | None = None,
) -> Scalar:
    """Adds `value` to one element of a `tensor` or shared vector, atomically; what it was before.

    `at`: the element's coordinate, or index. Without `by` the block does it once, by its first warp, and all warps get
    the result: they meet for it. With `by=warp` each warp does it (or each unit of another scope of one warp), for
    itself; in a role of several warps `by` must be given.

    `order`: "relaxed", "acquire" (what others had released is known afterwards), "release" (what all these threads did
    before becomes known) or "acq_rel"; `scope`: to whom, "cta" (the block), "cluster" or "gpu" (PTX ISA, "Memory
    Consistency Model"). In shared memory the order is "relaxed", and barriers hand over. The last block to finish:

        ticket = pk.atomic_add(counter, 0, 1, order="acq_rel")  # what each block stored before is known to the last
        with pk.when(ticket == blocks - 1):
            ...
    """
    return _atomic("add", tensor, at, value, order, scope, by)


def atomic_min(
    tensor: Tensor | Shared,
    at: Any,
    value: Operand,
    *,
    order: Order = "relaxed",
    scope: MemoryScope = "gpu",
    by: ScopeHandle | None = None,
) -> Scalar:
    """The lesser of an element and `value`, atomically; what it was before. `tensor`, `at`, `order`, `scope` and `by`
    are those of `atomic_add`.
    """
    return _atomic("min", tensor, at, value, order, scope, by)


def atomic_max(
    tensor: Tensor | Shared,
    at: Any,
    value: Operand,
    *,
    order: Order = "relaxed",
    scope: MemoryScope = "gpu",
    by: ScopeHandle | None = None,
) -> Scalar:
    """The greater of an element and `value`, atomically; what it was before. `tensor`, `at`, `order`, `scope` and `by`
    are those of `atomic_add`.
    """
    return _atomic("max", tensor, at, value, order, scope, by)


def atomic_and(
    tensor: Tensor | Shared,
    at: Any,
    value: Operand,
    *,
    order: Order = "relaxed",
    scope: MemoryScope = "gpu",
    by: ScopeHandle | None = None,
) -> Scalar:
    """Keeps those bits of an element that `value` has, atomically; what it was before. `tensor`, `at`, `order`, `scope`
    and `by` are those of `atomic_add`.
    """
    return _atomic("and", tensor, at, value, order, scope, by)


def atomic_or(
    tensor: Tensor | Shared,
    at: Any,
    value: Operand,
    *,
    order: Order = "relaxed",
    scope: MemoryScope = "gpu",
    by: ScopeHandle | None = None,
) -> Scalar:
    """Sets those bits of an element that `value` has, atomically; what it was before. `tensor`, `at`, `order`, `scope`
    and `by` are those of `atomic_add`.
    """
    return _atomic("or", tensor, at, value, order, scope, by)


def atomic_xor(
    tensor: Tensor | Shared,
    at: Any,
    value: Operand,
    *,
    order: Order = "relaxed",
    scope: MemoryScope = "gpu",
    by: ScopeHandle | None = None,
) -> Scalar:
    """Turns those bits of an element that `value` has, atomically; what it was before. `tensor`, `at`, `order`, `scope`
    and `by` are those of `atomic_add`.
    """
    return _atomic("xor", tensor, at, value, order, scope, by)


def atomic_exch(
    tensor: Tensor | Shared,
    at: Any,
    value: Operand,
    *,
    order: Order = "relaxed",
    scope: MemoryScope = "gpu",
    by: ScopeHandle | None = None,
) -> Scalar:
    """Exchanges one element for `value`, atomically; what it was before. `tensor`, `at`, `order`, `scope` and `by` are
    those of `atomic_add`.
    """
    return _atomic("exch", tensor, at, value, order, scope, by)


def atomic_cas(
    tensor: Tensor | Shared,
    at: Any,
    expected: Operand,
    value: Operand,
    *,
    order: Order = "relaxed",
    scope: MemoryScope = "gpu",
    by: ScopeHandle | None = None,
) -> Scalar:
    """Sets one element to `value` where it is `expected` (bit for bit), atomically; what it was before. `tensor`, `at`,
    `order`, `scope` and `by` are those of `atomic_add`.
    """
    return _atomic("cas", tensor, at, value, order, scope, by, expected)


def fence(scope: MemoryScope = "gpu") -> None:
    """Orders each warp's accesses before it and after it: a relaxed access after it releases, one before it
    acquires.

    `scope`: for whom, "cta", "cluster" or "gpu".
    """
    record(memory_order.MemoryFence(WARP, scope))


def signal(
    flags: Tensor, at: Any, count: Operand = 1, *, scope: MemoryScope = "gpu", by: ScopeHandle | None = None
) -> None:
    """Adds `count` to a flag, once all threads of the role (or of the unit of `by`) have come: what they did is known
    to waiters.

    `flags`: a tensor of int32; `at`: the coordinate of one. `scope`: where the waiters are, "cta", "cluster" or "gpu".
    """
    record(memory_order.Signal(_scope(by), element(flags, at), number(count), scope))


def wait_for(flags: Tensor, at: Any, count: Operand = 1, *, scope: MemoryScope = "gpu") -> None:
    """Each warp waits until a flag has been signalled `count` times in all (is at least `count`).

    `flags`, `at` and `scope` are those of `signal`.
    """
    record(memory_order.WaitFor(WARP, element(flags, at), number(count), scope))


__all__ = [
    "atomic_add",
    "atomic_and",
    "atomic_cas",
    "atomic_exch",
    "atomic_max",
    "atomic_min",
    "atomic_or",
    "atomic_xor",
    "fence",
    "signal",
    "wait_for",
]
