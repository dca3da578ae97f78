"""Reductions whose terms meet in shared memory, of a block or of a cluster: written by each warp, read back by all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field
from functools import partial
from typing import Any

import numpy as np

from ..errors import TypeRuleError
from ..layouts import Sym
from ..loading import dataclass
from ..numerics import MOVES, Numerics
from ..program import Access, CudaWriter, Effect, NumpyMachine, Op, Scope, Value
from ..thread_map import Together, WarpShares
from ..types import Coalesced, RegisterVector, SharedVector, Type, f32, i32, i64, u32
from .addressing import MEMORY, VECTOR, vector_address
from .broadcast import register_type
from .mbarrier import check_barrier
from .reduce import combine_lanes, combined, identity, pair_text, reduction_numerics

REMOTE = """
__device__ __forceinline__ void pk_st_cluster(u32 a, u32 rank, u32 v) {
  asm volatile("{ .reg .b32 p; mapa.shared::cluster.u32 p, %0, %1; st.shared::cluster.b32 [p], %2; }"
    :: "r"(a), "r"(rank), "r"(v) : "memory");
}
"""
SEND = """
__device__ __forceinline__ void pk_st_async(u32 a, u32 bar, u32 rank, u32 v) {
  asm volatile("{ .reg .b32 p, q; mapa.shared::cluster.u32 p, %0, %2; mapa.shared::cluster.u32 q, %1, %2;"
    " st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [p], %3, [q]; }"
    :: "r"(a), "r"(bar), "r"(rank), "r"(v) : "memory");
}
"""


@dataclass(eq=False)
class ShareTerms(Op):
    """The terms of partial coalesced vectors into a shared vector: all those of the first warp, of the second, and so
    on.

    In a cluster of `ranks` blocks they go to the same place in all of them.
    """

    scope: Scope
    target: Value
    sources: tuple[Value, ...]
    ranks: int = 1

    numerics = MOVES

    @property
    def rows(self) -> int:
        """Terms of a warp."""
        return sum(source.type.length for source in self.sources)  # type: ignore[union-attr, misc]

    def types(self) -> tuple[Type, ...]:
        target = self.target.type
        for source in self.sources:
            type = register_type(source, "share")
            if not isinstance(type, RegisterVector) or not isinstance(type.layout, Coalesced) or type.kind != "col":
                raise TypeRuleError(f"{type} has no terms to share", fix="reduce a coalesced tile by rows")
            held = (f32, i32, u32) if self.ranks > 1 else (f32, i32, u32, i64)
            if target != SharedVector(type.dtype, self.rows * type.warps) or type.dtype not in held:
                fix = (
                    "reduce numbers of one dtype, over a cluster of 32 bits, and make room: pk.sv(dtype, rows * warps)"
                )
                raise TypeRuleError(f"the terms of {type} do not fit {target}", fix=fix)
        return ()

    def numpy(self, m: NumpyMachine) -> None:
        arrays = [m[source] for source in self.sources]
        terms = np.concatenate([array.reshape(m.units, array.shape[1], -1) for array in arrays], axis=1)
        m.write(self.target, terms.swapaxes(1, 2).reshape(m.units, -1))

    def effects(self) -> tuple[Effect, ...]:
        everyone = (1 << self.ranks) - 1 if self.ranks > 1 else None
        return (Access(self.target, "write", WarpShares(self.ranks > 1), mask=everyone),)

    def cuda(self, c: CudaWriter) -> None:
        lane = f"{c.lane} == 0" if self.ranks == 1 else f"{c.lane} < {self.ranks}"
        if self.ranks > 1:
            c.require("clusters", self)
            c.prelude(REMOTE)
        for to, value in self._terms(c, lane):
            here = self.ranks == 1
            c.line(f"  pk_st_shared({to}, {value});" if here else f"  pk_st_cluster({to}, {c.lane}, {value});")

    def _terms(self, c: CudaWriter, condition: str) -> Iterator[tuple[str, str]]:
        """For each source a loop over its terms, in the threads where `condition` holds: the address of a term, and
        its bits.
        """
        c.prelude(MEMORY)
        first = 0
        for source in self.sources:
            count = source.type.registers  # type: ignore[union-attr]
            c.line(f"PK_UNROLL for (int i = 0; i < {count}; i++) if ({condition})")
            to = vector_address(c, self.target, Sym(f"({c.warp(self.scope)} * {self.rows} + {first} + i)"))
            yield to, c.raw(f"{c[source]}[i]", source.type.dtype)  # type: ignore[union-attr]
            first += count


@dataclass(eq=False)
class SendTerms(ShareTerms):
    """`ShareTerms` to all blocks of the cluster, each of which learns at its own `barrier` that they have come (PTX
    "st.async").

    So only those wait who need the terms, and not for warps that have nothing to do with them.
    """

    barrier: Value = field(kw_only=True)

    def types(self) -> tuple[Type, ...]:
        check_barrier(self.barrier)
        return super().types()

    def effects(self) -> tuple[Effect, ...]:
        return (
            Access(self.target, "write", WarpShares(remote=True), "generic", self.barrier, mask=(1 << self.ranks) - 1),
        )

    def cuda(self, c: CudaWriter) -> None:
        c.require("clusters", self)
        c.prelude(SEND)
        for to, value in self._terms(c, f"{c.lane} < {self.ranks}"):
            c.line(f"  pk_st_async({to}, {c[self.barrier]}, {c.lane}, {value});")


@dataclass(eq=False)
class Combine(Op):
    """`kind` over the shared terms of every row: complete column vectors of these types. `sources` hold those of one
    block each.
    """

    scope: Scope
    kind: str
    sources: tuple[Value, ...]
    vectors: tuple[RegisterVector, ...]

    @property
    def numerics(self) -> Numerics:  # type: ignore[override]
        return reduction_numerics(self.kind, self.vectors[0].dtype)

    def types(self) -> tuple[Type, ...]:
        return self.vectors

    def numpy(self, m: NumpyMachine) -> Any:
        terms = np.stack(
            [np.broadcast_to(x, (m.units, *x.shape[1:])) for x in (m.read(s) for s in self.sources)], axis=1
        )
        ends = np.cumsum([vector.length for vector in self.vectors])
        whole = combined(self.kind, terms.reshape(m.units, -1, ends[-1]), 1)
        parts = np.split(whole, ends[:-1], axis=1)
        return parts if len(parts) > 1 else parts[0]

    def effects(self) -> tuple[Effect, ...]:
        return tuple(Access(x, "read", Together()) for x in self.sources)

    def cuda(self, c: CudaWriter) -> None:
        """Every lane takes the terms whose number is its own modulo 32; then the lanes combine theirs."""
        c.prelude(MEMORY)
        rows, warps, dtype = sum(x.length for x in self.vectors), self.vectors[0].warps, self.vectors[0].dtype
        terms, start = warps * len(self.sources), c.scalar(identity(self.kind, dtype), dtype)
        pair = pair_text(c, self.kind, dtype)
        acc = c.fresh("acc")
        c.line(f"{dtype.c} {acc}[{rows}];")
        lanes = 1 << max(0, min(32, terms) - 1).bit_length()
        rounds = -(-terms // lanes)
        step = 0 if len(self.sources) == 1 else f"({c[self.sources[1]]} - {c[self.sources[0]]})"
        c.line(f"PK_UNROLL for (int i = 0; i < {rows}; i++) {{ {acc}[i] = {start};")
        c.line(f"PK_UNROLL for (int k = 0; k < {rounds}; k++) {{ const int n = k * {lanes} + {c.lane} % {lanes};")
        place = f"(n % {warps} * {rows} + i)" if step else f"(n * {rows} + i)"
        to = vector_address(c, self.sources[0], place) + (f" + n / {warps} * {step}" if step else "")
        value = pair(f"{acc}[i]", c.bits(f"pk_ld_shared<{VECTOR[dtype.size]}>({to})", dtype))
        c.line(f"{f'if (n < {terms}) ' if terms % lanes else ''}{acc}[i] = {value}; }} }}")
        combine_lanes(c, acc, rows, pair, tuple(x for x in (16, 8, 4, 2, 1) if x < lanes))
        first = 0
        for result, vector in zip(self.results, self.vectors, strict=True):
            c.map(result, partial(f"{acc}[{first} + {{}}]".format))
            first += vector.registers
