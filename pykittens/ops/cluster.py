"""What the blocks of a cluster, and successive kernels of a stream, do together."""

from __future__ import annotations

from typing import Any

from ..errors import TypeRuleError
from ..layouts import Sym, fragment, shared_offset
from ..loading import dataclass
from ..numerics import MOVES
from ..program import Access, CudaWriter, Effect, NumpyMachine, Op, Operand, Scope, Sync, Value
from ..thread_map import Registers
from ..types import RegisterTile, SharedTile, Type, i32
from .broadcast import register_type, registers_of

REMOTE_TILE = """
__device__ __forceinline__ u32 pk_in_block(u32 a, u32 rank) {
  u32 r;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(rank));
  return r;
}
__device__ __forceinline__ void pk_st_remote(u32 a, u32 x) {
  asm volatile("st.shared::cluster.b32 [%0], %1;" :: "r"(a), "r"(x) : "memory");
}
__device__ __forceinline__ void pk_st_remote(u32 a, float x, float y) {
  asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};" :: "r"(a), "f"(x), "f"(y) : "memory");
}
__device__ __forceinline__ void pk_ld_remote(u32 a, u32& x) {
  asm volatile("ld.shared::cluster.b32 %0, [%1];" : "=r"(x) : "r"(a) : "memory");
}
__device__ __forceinline__ void pk_ld_remote(u32 a, float& x, float& y) {
  asm volatile("ld.shared::cluster.v2.f32 {%0, %1}, [%2];" : "=f"(x), "=f"(y) : "r"(a) : "memory");
}
"""


@dataclass(eq=False)
class ClusterBarrier(Op):
    """All threads of all blocks of the cluster meet (PTX "barrier.cluster")."""

    spelling = "pk.cluster.sync"

    scope: Scope

    hands_over: bool = True  # set by passes/remote.py: False where what was done before is not looked at behind it

    def numpy(self, m: NumpyMachine) -> None:
        pass

    def effects(self) -> tuple[Effect, ...]:
        return (Sync("cluster"),)

    def cuda(self, c: CudaWriter) -> None:
        c.require("clusters", self)
        how = "release" if self.hands_over else "relaxed"  # a release waits for the GPU's memory
        c.line(f'asm volatile("barrier.cluster.arrive.{how}; barrier.cluster.wait.acquire;" ::: "memory");')


@dataclass(eq=False)
class StoreRemote(Op):
    """A register tile into a shared tile of block `rank` of the cluster (distributed shared memory)."""

    spelling = "{scope}.store"

    scope: Scope
    target: Value
    source: Value
    rank: Operand

    numerics = MOVES

    def types(self) -> tuple[Type, ...]:
        source, target = register_type(self.source, "store to another block"), getattr(self.target, "type", None)
        if (
            not isinstance(source, RegisterTile)
            or source.layout != "row"
            or not (source.dtype.packed or source.dtype.name == "f32")
        ):
            raise TypeRuleError(
                f"a store of {source} to another block", fix="store a row-layout tile of f32, bf16 or f16"
            )
        if (
            not isinstance(self.target, Value)
            or not isinstance(target, SharedTile)
            or target.apart
            or target.shape != source.shape
            or target.dtype != source.dtype
        ):
            raise TypeRuleError(
                f"a store of {source} to {target} of another block", fix="the tile there has the same shape and dtype"
            )
        return ()

    def numpy(self, m: NumpyMachine) -> None:
        m.write(self.target, m[self.source])

    def effects(self) -> tuple[Effect, ...]:
        return (Access(self.target, "write", Registers(registers_of(self.source), 2), rank=self.rank),)

    def cuda(self, c: CudaWriter) -> None:
        c.require("clusters", self)
        c.prelude(REMOTE_TILE)
        tile, target = self.source.type, self.target.type
        assert isinstance(tile, RegisterTile) and isinstance(target, SharedTile)
        base, name = c.fresh("remote"), c[self.source]
        row, col = fragment(tile, c.warp(self.scope), c.lane, Sym("(2 * i)"))
        value = f"{name}[i]" if tile.dtype.packed else f"{name}[2 * i], {name}[2 * i + 1]"
        c.line(f"{{ const u32 {base} = pk_in_block({c[self.target]}, {c.scalar(self.rank, i32)});")
        c.line(f"PK_UNROLL for (int i = 0; i < {tile.registers // 2}; i++) {{ const int r = {row}, x = {col};")
        c.line(f"pk_st_remote({base} + {shared_offset(target, Sym('r'), Sym('x'))}, {value}); }} }}")


@dataclass(eq=False)
class LoadRemote(Op):
    """A new register tile with a shared tile of block `rank` of the cluster (distributed shared memory)."""

    spelling = "pk.cluster.load"

    scope: Scope
    source: Value
    rank: Operand

    numerics = MOVES

    def types(self) -> tuple[Type, ...]:
        source = getattr(self.source, "type", None)
        if (
            not isinstance(self.source, Value)
            or not isinstance(source, SharedTile)
            or source.apart
            or not (source.dtype.packed or source.dtype.name == "f32")
        ):
            raise TypeRuleError(f"a load of {source} from another block", fix="load a shared tile of f32, bf16 or f16")
        return (RegisterTile(source.dtype, source.rows, source.cols, "row", self.scope.warps),)

    def numpy(self, m: NumpyMachine) -> Any:
        return m.read(self.source)

    def effects(self) -> tuple[Effect, ...]:
        return (Access(self.source, "read", Registers(registers_of(self.result), 2), rank=self.rank),)

    def cuda(self, c: CudaWriter) -> None:
        c.require("clusters", self)
        c.prelude(REMOTE_TILE)
        tile, source = self.result.type, self.source.type
        assert isinstance(tile, RegisterTile) and isinstance(source, SharedTile)
        base, name = c.fresh("remote"), c.declare(self.result)
        row, col = fragment(tile, c.warp(self.scope), c.lane, Sym("(2 * i)"))
        value = f"{name}[i]" if tile.dtype.packed else f"{name}[2 * i], {name}[2 * i + 1]"
        c.line(f"{{ const u32 {base} = pk_in_block({c[self.source]}, {c.scalar(self.rank, i32)});")
        c.line(f"PK_UNROLL for (int i = 0; i < {tile.registers // 2}; i++) {{ const int r = {row}, x = {col};")
        c.line(f"pk_ld_remote({base} + {shared_offset(source, Sym('r'), Sym('x'))}, {value}); }} }}")


@dataclass(eq=False)
class DependencyWait(Op):
    """Waits until the kernels that this one depends on have ended (PTX "griddepcontrol.wait").

    They may touch all tensors but the `independent` ones.
    """

    spelling = "pk.wait_for_previous"

    scope: Scope
    independent: tuple[Value, ...] = ()

    single_thread = True
    collective = False

    def numpy(self, m: NumpyMachine) -> None:
        pass

    def effects(self) -> tuple[Effect, ...]:
        return (Sync("previous"),)

    def cuda(self, c: CudaWriter) -> None:
        c.require("dependent launch", self)
        c.line('asm volatile("griddepcontrol.wait;" ::: "memory");')


@dataclass(eq=False)
class DependencyLaunch(Op):
    """Lets dependent kernels begin (PTX "griddepcontrol.launch_dependents")."""

    spelling = "pk.launch_next"

    scope: Scope

    single_thread = True
    collective = False

    def numpy(self, m: NumpyMachine) -> None:
        pass

    def cuda(self, c: CudaWriter) -> None:
        c.require("dependent launch", self)
        c.line('asm volatile("griddepcontrol.launch_dependents;" ::: "memory");')
