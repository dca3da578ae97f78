"""Copies between the shared memories of a cluster's blocks, done by the copy engine (PTX "cp.async.bulk")."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import TypeRuleError
from ..loading import dataclass
from ..numerics import MOVES
from ..program import Access, CudaWriter, Effect, NumpyMachine, Op, Operand, Scope, Value
from ..thread_map import ONE_THREAD
from ..types import BarrierType, SharedTile, Type, bf16, f32, i32
from .mbarrier import Arrive, Wait, check_barrier
from .samples import Sample

SEND = """
__device__ __forceinline__ void pk_send(u32 to, u32 from, u32 bytes, u32 bar, u32 rank) {
  asm volatile("{ .reg .b32 p, q; mapa.shared::cluster.u32 p, %0, %4; mapa.shared::cluster.u32 q, %3, %4;"
    " cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [p], [%1], %2, [q]; }"
    :: "r"(to), "r"(from), "r"(bytes), "r"(bar), "r"(rank) : "memory"); }
"""


@dataclass(eq=False)
class BulkSend(Op):
    """A shared tile to the place of `target` in the blocks of the cluster that `mask` has a bit for; pays its bytes to
    `barrier` in each.
    """

    spelling = "pk.tma.exchange"

    scope: Scope
    target: Value
    source: Value
    barrier: Value
    mask: Operand
    count: int  # blocks of the cluster

    single_thread = True
    numerics = MOVES

    def types(self) -> tuple[Type, ...]:
        check_barrier(self.barrier)
        for tile in (self.target, self.source):
            type = getattr(tile, "type", None)
            if not isinstance(type, SharedTile) or type.apart or (type.cols > type.panel and type.pitch != type.rows):
                raise TypeRuleError(
                    f"a copy of {getattr(tile, 'label', tile)} to another block: its bytes do not lie in one piece",
                    fix="copy whole tiles, or whole rows of tiles of one panel",
                )
        to, source = self.target.type, self.source.type
        assert isinstance(to, SharedTile) and isinstance(source, SharedTile)
        if (to.dtype, to.shape, to.swizzle) != (source.dtype, source.shape, source.swizzle):
            raise TypeRuleError(
                f"a copy of {source} into {to} of another block: bytes are copied as they lie",
                fix="let both have the same dtype, shape and swizzle",
            )
        return ()

    @property
    def bytes(self) -> int:
        """What it pays to each barrier."""
        return self.source.type.bytes  # type: ignore[union-attr]

    def numpy(self, m: NumpyMachine) -> None:
        m.write(self.target, m.read(self.source))

    def effects(self) -> tuple[Effect, ...]:
        return (
            Access(self.source, "read", ONE_THREAD, "async", self.barrier, told=self.mask),
            Access(self.target, "write", ONE_THREAD, "async", self.barrier, mask=self.mask),
        )

    def cuda(self, c: CudaWriter) -> None:
        c.require("clusters", self)
        c.prelude(SEND)
        c.line(f"{c.elect(self.scope)}for (u32 r = 0; r < {self.count}; r++) if ({c.scalar(self.mask, i32)} >> r & 1)")
        c.line(f"  pk_send({c[self.target]}, {c[self.source]}, {self.bytes}, {c[self.barrier]}, r);")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for tile in (SharedTile(bf16, 64, 64), SharedTile(f32, 16, 64)):
            yield Sample(
                {"target": tile, "source": tile, "barrier": BarrierType(1), "mask": 1, "count": 1},
                lambda source: source,
                exact=True,
                needs="clusters",
                before=lambda scope, operands: (Arrive(scope, operands["barrier"], operands["target"].type.bytes),),
                after=lambda scope, operands: (Wait(scope, operands["barrier"], 0),),
            )
