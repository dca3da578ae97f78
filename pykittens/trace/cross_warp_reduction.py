"""Reductions that cross warps or blocks: each warp's term into shared memory, a barrier, and all terms read back.

They are ordinary operations of the program, so that the simulator checks the barrier as it checks anybody's. Two places
in shared memory take turns, so that straight-line code needs one barrier a reduction: when a place is written again,
everybody has passed the barrier of the reduction between. Where that is not so (a loop's body with one reduction) a
pass adds a barrier before the place is written again, see `passes/scratch.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..errors import TraceError, TypeRuleError
from ..ops import cluster as cluster_ops
from ..ops import element, load, mbarrier, reduce, scalars, sync, thread_indices
from ..ops.column_terms import CombineColumns, ShareColumns
from ..ops.cross_warp import Combine, SendTerms, ShareTerms
from ..program import Scope, Value
from ..types import RegisterTile, RegisterVector, SharedVector, f32
from .memory import shared
from .recorder import current, record, result, scope_of
from .rings import Cursor, barrier
from .scratch import scratch


def row_reduce(tiles: Sequence[Any], kind: str, across_cluster: bool, times: Any = None) -> Sequence[Any]:
    """Column vectors with `kind` over each row of coalesced tiles of several warps, or spread over the cluster. Terms
    of all meet at once.

    times: a tile that the elements of the tiles are multiplied by first.
    """
    type: RegisterTile = tiles[0].type
    scope = scope_of(type.warps)
    blocks = _cluster_size() if across_cluster else 1
    role = current().role is not None
    if any(x.type.layout != type.layout or x.type.warps != type.warps for x in tiles):
        fix = "reduce them one by one"
        raise TypeRuleError(f"sums together of {', '.join(str(x.type) for x in tiles)}, spread differently", fix=fix)
    if blocks > 1 and not role:
        _meet_before_loops(scope)
    alone = type.warps == 1 and blocks == 1
    held = f32 if type.dtype.kind == "f" else type.dtype  # of the terms: 16-bit floats are combined as float32
    if not alone:
        if any((f32 if x.type.dtype.kind == "f" else x.type.dtype) != held for x in tiles):
            listed, fix = ", ".join(str(x.type) for x in tiles), "reduce them one by one"
            raise TypeRuleError(f"sums together of {listed}, of several dtypes", fix=fix)
        times = times.to(held) if times is not None else None
    wide = tiles if alone else [x.to(held) for x in tiles]
    terms = [result(reduce.Reduce(scope, kind, x, "col", type.warps > 1, times=times)) for x in wide]
    if alone:
        return terms
    if blocks > 1 and type.warps != current().warps:
        raise TraceError(
            f"a row over the cluster of a tile over {type.warps} warps",
            fix="make the tile on the whole block, or the whole role",
        )
    whole = tuple(RegisterVector(held, x.type.rows, "col", type.layout, type.warps) for x in tiles)
    meet = _exchange if blocks > 1 and role else _meet
    found = meet(scope, kind, tuple(terms), whole, blocks)
    return [x.to(tile.type.dtype) for x, tile in zip(found, tiles, strict=True)]


def row_terms(tile: Any, kind: str, times: Any = None) -> Any:
    """The partial column vector of a coalesced tile: what each warp has of each row; 16-bit floats as float32."""
    held = f32 if tile.type.dtype.kind == "f" else tile.type.dtype
    times = times.to(held) if times is not None else None
    return result(reduce.Reduce(scope_of(tile.type.warps), kind, tile.to(held), "col", True, times=times))


def row_total(vector: Any, kind: str) -> Any:
    """The complete column vector of a partial one of a coalesced tile."""
    type, held = vector.type, f32 if vector.type.dtype.kind == "f" else vector.type.dtype
    whole = (RegisterVector(held, type.length, "col", type.layout, type.warps),)
    return _meet(scope_of(type.warps), kind, (vector.to(held),), whole, 1)[0].to(type.dtype)


def _exchange(
    scope: Scope, kind: str, terms: tuple[Value, ...], whole: tuple[RegisterVector, ...], blocks: int
) -> Sequence[Any]:
    """Inside a role: blocks send one another their terms, and each waits at an mbarrier of its own for all of them.

    Two places take turns, at run time: who sends the terms of a reduction has got all terms of the one before, each
    from a warp that had read those of the one before that, so the place is free.
    """
    r, type = current(), _room(whole)
    key: Any = ("exchange", id(r.role_block()), type, blocks)
    if key not in r.cache:
        name = f"{r.role}_terms"
        places, landed = shared(type, count=2 * blocks, name=name), barrier(1, 2, f"{name}_landed")
        r.cache[key] = places, landed, Cursor(name, 2, 0)  # type: ignore[assignment]
    kept: Any = r.cache[key]
    places, landed, cursor = kept
    index = cursor.index
    mine, here = places[index * blocks + _rank()], landed[index]
    record(mbarrier.Arrive(scope, here, type.bytes * blocks))
    record(SendTerms(scope, mine, terms, blocks, barrier=here))
    record(mbarrier.Wait(scope, here, cursor.phase))
    combined = record(Combine(scope, kind, tuple(places[index * blocks + i] for i in range(blocks)), whole))
    cursor.advance()
    return combined.results


def _meet(
    scope: Scope, kind: str, terms: tuple[Value, ...], whole: tuple[RegisterVector, ...], blocks: int
) -> Sequence[Any]:
    meet: Any = cluster_ops.ClusterBarrier if blocks > 1 else sync.Barrier
    place = scratch(scope, _room(whole), blocks)
    mine = place if blocks == 1 else place[_rank()]
    record(ShareTerms(scope, mine, terms, blocks))
    record(meet(scope))
    sources = (place,) if blocks == 1 else tuple(place[i] for i in range(blocks))
    return record(Combine(scope, kind, sources, whole)).results


def _room(vectors: tuple[RegisterVector, ...]) -> SharedVector:
    """Room for the terms of all warps of a block."""
    return SharedVector(vectors[0].dtype, sum(x.length for x in vectors) * vectors[0].warps)


def column_total(vector: Any, kind: str) -> Any:
    """The complete row vector of a partial one, whose terms lie in several warps."""
    dtype, type = vector.type.dtype, vector.type
    held = f32 if dtype.kind == "f" else dtype  # 16-bit floats are combined as float32
    terms, scope = vector.to(held), scope_of(type.warps)
    place = scratch(scope, SharedVector(held, type.length * type.warps))
    record(ShareColumns(scope, place, terms))
    record(sync.Barrier(scope))
    return result(CombineColumns(scope, kind, place, replace(type, dtype=held, partial=False))).to(dtype)


def vector_reduce(vector: Any, kind: str) -> Any:
    """A scalar with `kind` over a vector whose elements are spread over several warps."""
    type: RegisterVector = vector.type
    term = result(reduce.VectorReduce(scope_of(type.warps), kind, vector))
    place = scratch(scope_of(type.warps), SharedVector(term.dtype, type.warps))
    warp, index = scope_of(1), result(thread_indices.Index(scalars.THREAD, "unit"))
    record(element.StoreScalar(warp, place, term, index % type.warps if current().warps > type.warps else index))
    record(sync.Barrier(scope_of(type.warps)))
    terms = result(load.Load(warp, place, load.naive_vector(place, term.dtype, type.warps, 1)))
    return result(reduce.VectorReduce(warp, kind, terms))


def _meet_before_loops(scope: Scope) -> None:
    """Once, before the first reduction over the cluster, or the loop it is in: nobody's shared memory may be written
    before its block runs. Where this does not come first on every way, the pass adds what is missing."""
    r = current()
    if "cluster runs" in r.cache:
        return
    loops = [kind in ("pk.range", "pk.loop") for kind, _ in r.open]
    inner = block = r.block
    for _ in loops[loops.index(True) :] if any(loops) else ():  # to the region around the outermost loop
        assert block.parent is not None
        block = block.parent
    r.block = block
    r.cache["cluster runs"] = record(cluster_ops.ClusterBarrier(scope))  # type: ignore[assignment]
    r.block = inner


def _cluster_size() -> int:
    x, y, z = current().program.cluster
    return x * y * z


def _rank() -> Any:
    return result(thread_indices.Index(scalars.THREAD, "cluster_rank"))
