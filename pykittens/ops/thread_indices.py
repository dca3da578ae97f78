"""Numbers that a kernel finds rather than computes: where the running threads are, and how long a tensor is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..loading import dataclass
from ..numerics import EXACT
from ..program import BLOCK, CLUSTER, CudaWriter, NumpyMachine, Op, Scope, Value
from ..types import Global, ScalarType, Type, i32
from .samples import Sample

CLUSTER_RANK = """
__device__ __forceinline__ int pk_cluster_rank() { int r; asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r)); return r; }
__device__ __forceinline__ int pk_cluster_x() { int r; asm("mov.u32 %0, %%clusterid.x;" : "=r"(r)); return r; }
"""


@dataclass(eq=False)
class Index(Op):
    """Where the running threads are: kind is block_x/y/z, grid_x/y/z, cluster_rank, cluster_x, or unit (which warp,
    warpgroup or group of the current role this is)."""

    scope: Scope
    kind: str

    collective = False

    numerics = EXACT

    @property
    def uniform_over(self) -> int:  # type: ignore[override]
        return (
            self.scope.warps
            if self.kind == "unit"
            else CLUSTER
            if self.kind.startswith("grid") or self.kind == "cluster_x"
            else BLOCK
        )

    @property
    def expression(self) -> str:
        where, axis = self.kind[:-2], self.kind[-1]
        return {
            "unit": f"{self.scope if self.scope.warps > 1 else 'warp'}.index",
            "cluster_rank": "cluster.rank",
            "cluster_x": "cluster.index",
        }.get(self.kind, f"{'block_index' if where == 'block' else 'grid_size'}.{axis}")

    def types(self) -> tuple[Type, ...]:
        return (ScalarType(i32),)

    def numpy(self, m: NumpyMachine) -> Any:
        return m.index(self.kind, self.scope)

    def cuda(self, c: CudaWriter) -> None:
        if self.kind == "unit":
            c.define(self.result, c.unit(self.scope))
        elif self.kind.startswith("cluster"):
            c.prelude(CLUSTER_RANK)
            c.define(self.result, f"pk_{self.kind}()")
        else:
            c.define(self.result, f"(int){'blockIdx' if self.kind.startswith('block') else 'gridDim'}.{self.kind[-1]}")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        yield Sample({"kind": "unit"}, lambda unit: unit)
        yield Sample({"kind": "unit"}, lambda unit: unit, warps=4)
        for kind in ("block_x", "block_z", "grid_x", "grid_y"):
            yield Sample({"kind": kind}, lambda kind: kind.startswith("grid"))


@dataclass(eq=False)
class Dimension(Op):
    """The run-time length of dimension `axis` (0 to 3: batch, depth, rows, cols) of a tensor."""

    scope: Scope
    tensor: Value
    axis: int

    collective = False

    numerics = EXACT

    def types(self) -> tuple[Type, ...]:
        assert isinstance(self.tensor.type, Global)
        return (ScalarType(i32),)

    def numpy(self, m: NumpyMachine) -> Any:
        return m.shape(self.tensor)[self.axis]

    def cuda(self, c: CudaWriter) -> None:
        c.define(self.result, f"{c[self.tensor]}.shape[{self.axis}]")
