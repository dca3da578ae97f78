"""Hazards in words: what clashed, on which lines, and what to write."""

from __future__ import annotations

from ..errors import Diagnosis, Frame, RaceError, UninitializedError
from ..program import Access, Op
from .access_classes import AccessClass
from .block import ClusterState
from .shadow import Clash
from .steps import Step

WAITS = {
    "cp.async": "wait for the copy (wait_loads), and meet in a barrier where other warps copied a part",
    "mbarrier": "wait on the mbarrier that the load completes on, with its phase's parity (0 for the first), before "
    "touching the bytes it writes",
    "wgmma": "wait for the matrix product (warpgroup.wait) before its operands are overwritten",
    "bulk": "wait for the bulk store to finish before touching what it writes",
    "bulk.read": "wait until the bulk store has read its tile before it is overwritten",
}

BARRIER = "put a barrier between the two lines that both meet: pk.block.sync(), or that of their group"
SAME_LINE = (
    "let one warp do it (with pk.when(warp.index == 0):), give each warp elements of its own, or put a barrier at the "
    "end of the loop they are in"
)
ONE_KIND = "let all of them be of one kind, or order them: what is left depends on which comes last"
OPEN = "close the group (commit) before you wait: an open group is not waited for"


def race(cluster: ClusterState, step: Step, access: Access, clash: Clash, by: int, what: str) -> Diagnosis:
    """The error for a clash; `by` is the agent that made the second access, `what` names the bytes."""
    op, block = step.op, cluster.blocks[min(by // cluster.grid_state.program.warps, len(cluster.blocks) - 1)]
    does = _verb(access, access.reduction)
    who, at = cluster.agent_label(by), f"(block {block.label})"
    if clash.kind == "unwritten":
        return UninitializedError(
            f"{op.spelled}: {who} reads {what}, which nothing wrote {at}",
            fix="store or load it first, and wait for what does",
            location=op.location,
        )
    first = cluster.grid_state.plan.op(clash.operation)
    also: dict[str, tuple[Frame, ...]] = {
        f"the {'read' if clash.kind.startswith('read') else 'write'} at": first.location
    }
    if clash.kind.endswith("apart"):
        return _lane_race(cluster, step, access, clash, by, what, also)
    if clash.first is not None:
        return _global_race(cluster, step, access, clash, by, what, also)
    other = cluster.agent_label(clash.agent)
    combines = next((e.reduction for e in first.effects() if isinstance(e, Access) and e.reduction), "")
    if clash.kind == "proxy":
        return _missing_fence(op, who, access, what, other, at, also)
    queue = cluster.queue_of(clash.agent)
    if clash.kind == "write":
        landing = "may not have landed" if queue in ("cp.async", "mbarrier") else "may not have happened"
        did = "change" if combines else "write"
        fact = f"{who} {does} {what}, and the {did} by {other} {landing}: nothing orders the two"
        if clash.operation == step.number and not queue:
            fact = f"{who} writes {what}, and so does {other}, in the same operation"
    else:
        fact = f"{who} {does} {what} while {other} may still read it: nothing orders the two"
    fix = WAITS.get(queue, BARRIER)
    if queue and cluster.is_open(clash.agent, clash.time):
        fix = OPEN
    if access.reduction and combines and access.reduction != combines:
        fix = ONE_KIND
    same_line = clash.operation == step.number
    if same_line and (not queue or int(cluster.clocks.warp_of[clash.agent]) not in (-1, by)):
        fix = SAME_LINE
    return RaceError(f"race: {op.spelled}: {fact} {at}", fix=fix, location=op.location, also=also)


def _lane_race(
    cluster: ClusterState,
    step: Step,
    access: Access,
    clash: Clash,
    by: int,
    what: str,
    also: dict[str, tuple[Frame, ...]],
) -> Diagnosis:
    """The same, among the lanes of one warp."""
    op, who, queue = step.op, cluster.agent_label(by), cluster.queue_of(clash.agent)
    did = "read" if clash.kind.startswith("read") else "write"
    fix, owner = "let the lanes meet between the two lines: warp.sync()", int(cluster.clocks.warp_of[clash.agent])
    if owner not in (-1, by):
        other = cluster.agent_label(owner)
        fact = f"which lanes of {other} may still {did}: one of them arrived for its warp, which it had not met"
        fix = "let the lanes of the warp meet before one of them arrives for all: warp.sync() before the arrival"
        also["the arrival at"] = cluster.clocks.alone.get(owner, ())
    elif queue == "cp.async":
        fact = f"which copies of other lanes {did}: a lane waits for its own copies only"
    elif queue:
        fact = (
            f"which {cluster.agent_label(clash.agent)} may still {did}: one lane waited for it, the others have not "
            "met it since"
        )
    else:
        fact = f"which other lanes of the warp {did}: the lanes of a warp need not run in step"
    return RaceError(
        f"race between lanes: {op.spelled}: lanes of {who} "
        f"{_verb(access, access.reduction)[:-1] if access.mode != 'reduce' else 'change'} {what}, {fact} (block "
        f"{cluster.blocks[int(cluster.grid_state.block_of[by])].label})",
        fix=fix,
        location=op.location,
        also=also,
    )


def _missing_fence(
    op: Op, who: str, access: Access, what: str, other: str, at: str, also: dict[str, tuple[Frame, ...]]
) -> Diagnosis:
    return RaceError(
        f"missing proxy fence: {op.spelled} of {who} {_verb(access, access.reduction)} {what} through the "
        f"async proxy, and the ordinary write of {other} is not fenced {at}",
        fix="let the writers meet the other side in a barrier after their writes (warp.sync(), pk.block.sync()); the "
        "compiler fences before it",
        location=op.location,
        also=also,
    )


def _global_race(
    cluster: ClusterState,
    step: Step,
    access: Access,
    clash: Clash,
    by: int,
    what: str,
    also: dict[str, tuple[Frame, ...]],
) -> Diagnosis:
    """The same, of global memory."""
    op, grid_state, first = step.op, cluster.grid_state, clash.first
    assert first is not None
    block = cluster.blocks[int(grid_state.block_of[by])]
    who = grid_state.agent_label(by, None if clash.cluster is None else cluster.number)
    other = grid_state.agent_label(clash.agent, clash.cluster)
    at, queue = f"(block {block.label})", cluster.queue_of(clash.agent)
    if clash.kind == "proxy":
        return _missing_fence(op, who, access, what, other, at, also)
    does, did = _verb(access, access.reduction), _verb(first, first.combines)
    fact = f"race: {op.spelled}: {who} {does} {what}, and {other} {did} it: nothing orders the two {at}"
    strong = first.scope and access.order != "weak"
    if strong and first.combines and access.reduction not in ("", first.combines):
        fix = ONE_KIND
    elif strong:
        fix = (
            f'both must be of a scope that holds both blocks (scope="gpu"): they are of {first.scope} and '
            f"{access.scope}"
        )
    elif clash.cluster is None:
        fix = WAITS.get(queue, SAME_LINE if clash.operation == step.number else BARRIER)
        if queue and cluster.is_open(clash.agent, clash.time):
            fix = OPEN
    else:
        fix = (
            "give each block elements of its own, combine with a reduction (atomics), or hand over by a flag "
            '(pk.signal after the one, pk.wait_for before the other; or an atomic with order="acq_rel" between them)'
        )
    return RaceError(fact, fix=fix, location=op.location, also=also)


def _verb(access: Access | AccessClass, reduction: str) -> str:
    """What an access does, in words."""
    if access.mode == "reduce":
        return {"add": "adds to", "": "changes"}.get(reduction, f"reduces ({reduction}) into")
    return {"read": "reads", "write": "writes"}[access.mode]


def flight_label(step: Step) -> str:
    """An asynchronous operation in words."""
    return f"{step.op.spelled}"
