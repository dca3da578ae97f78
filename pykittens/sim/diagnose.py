"""Hazards in words: what clashed, on which lines, and what to write."""

from __future__ import annotations

from ..errors import Diagnosis, Frame, RaceError, UninitializedError
from ..program import Access
from .block import Cluster
from .shadow import Clash
from .steps import Step

WAITS = {
    "cp.async": "wait for the copy (wait_loads), and meet in a barrier where other warps copied a part",
    "mbarrier": "wait on the mbarrier that the load completes on before touching the bytes it writes",
    "wgmma": "wait for the matrix product (warpgroup.wait) before its operands are overwritten",
    "bulk": "wait for the bulk store to finish before touching what it writes",
    "bulk.read": "wait until the bulk store has read its tile before it is overwritten",
}


def race(cluster: Cluster, step: Step, access: Access, clash: Clash, by: int, what: str) -> Diagnosis:
    """The error for a clash; `by` is the agent that made the second access, `what` names the bytes."""
    op, block = step.op, cluster.blocks[min(by // cluster.grid_state.program.warps, len(cluster.blocks) - 1)]
    does = {"read": "reads", "write": "writes", "reduce": "adds to"}[access.mode]
    who, at = cluster.agent_label(by), f"(block {block.label})"
    if clash.kind == "unwritten":
        return UninitializedError(
            f"{op.scope}.{op.name}: {who} reads {what}, which nothing wrote {at}",
            fix="store or load it first, and wait for what does",
            location=op.location,
        )
    first = cluster.grid_state.plan.op(clash.operation)
    also: dict[str, tuple[Frame, ...]] = {f"the {'read' if clash.kind == 'read' else 'write'} at": first.location}
    if clash.foreign:
        return RaceError(
            f"{op.scope}.{op.name}: {who} {does} {what}, which another block of the grid {'reads' if clash.kind == 'read' else 'writes'}; nothing orders blocks {at}",
            fix="give each block elements of its own, or combine with a reduction (atomics)",
            location=op.location,
            also=also,
        )
    other = cluster.agent_label(clash.agent)
    if clash.kind == "proxy":
        return RaceError(
            f"missing proxy fence: {op.scope}.{op.name} of {who} {does} {what} through the async proxy, and the ordinary write of {other} is not fenced {at}",
            fix="let the writers meet the other side in a barrier after their writes (warp.sync(), pk.block.sync()); the compiler fences before it",
            location=op.location,
            also=also,
        )
    queue = cluster.queue_of(clash.agent)
    if clash.kind == "write":
        landing = "may not have landed" if queue in ("cp.async", "mbarrier") else "may not have happened"
        fact = f"{who} {does} {what}, and the write by {other} {landing}: nothing orders the two"
        if clash.operation == step.number and not queue:
            fact = f"{who} writes {what}, and so does {other}, in the same operation"
    else:
        fact = f"{who} {does} {what} while {other} may still read it: nothing orders the two"
    fix = WAITS.get(
        queue, "put a barrier between the two lines that both meet: pk.block.sync(), or that of their group"
    )
    if queue and cluster.is_open(clash.agent, clash.time):
        fix = "close the group (commit) before you wait: an open group is not waited for"
    if clash.operation == step.number and not queue:
        fix = "give each warp bytes of its own, or put a barrier at the end of the loop they are in"
    return RaceError(f"race: {op.scope}.{op.name}: {fact} {at}", fix=fix, location=op.location, also=also)


def flight_label(step: Step) -> str:
    """An asynchronous operation in words."""
    return f"{step.op.scope}.{step.op.name}"
