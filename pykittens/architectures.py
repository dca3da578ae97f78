"""GPU architectures as data: one row each. A row is all that compiler, planner, kernels and command line know of
one.
"""

from __future__ import annotations

from .errors import ArgumentError
from .loading import dataclass

# What only some architectures have, and how an error calls it. Each is what ptxas accepts:
# `tests/test_architectures.py`
# asks it about one instruction of each for every row. ("Target ISA Notes" of each instruction, PTX ISA 9.)
FEATURES = {
    "fp8 conversions": "conversions of 8-bit floats",  # cvt.e4m3x2
    "fp8 mma": "products of 8-bit floats by mma.sync",
    "stmatrix": "stmatrix",
    "elect": "elect.sync",
    "mbarrier bytes": "mbarriers with byte counts",  # mbarrier.expect_tx and try_wait
    "tma": "TMA",  # cp.async.bulk, cp.async.bulk.tensor, the async proxy and its fences
    "multicast": "TMA into several blocks",  # faster than one load each on 90a, 100a, 103a and 110a only, says PTX
    "clusters": "clusters",
    "dependent launch": "programmatic dependent launch",
    "setmaxnreg": "register budgets (setmaxnreg)",
    "wide additions": "atomic additions of two or four floats",  # red.global.add.v4.f32
    "bf16 additions": "atomic additions of bf16",  # red.global.add.noftz.bf16
    "wgmma": "wgmma",
}
REGISTERS = 65536  # 32-bit registers of a multiprocessor: the same for all here
_KIB = 1024


@dataclass(frozen=True)
class Architecture:
    """One target of the compiler."""

    name: str  # NVRTC's, such as "sm_90a": that of a cubin, too
    capability: tuple[int, int]  # of the GPUs that it is compiled for
    shared_bytes: int  # of dynamic shared memory that a block may ask for
    features: frozenset[str]
    verified: bool = False  # its kernels have run on such a GPU: benchmarks/results

    def __str__(self) -> str:
        return self.name

    def runs_on(self, capability: tuple[int, int]) -> bool:
        """Whether a GPU of some capability runs its cubins: of the same major version and not older; with a suffix,
        only its own.
        """
        if self.name.endswith("a"):
            return capability == self.capability
        return capability[0] == self.capability[0] and capability[1] >= self.capability[1]


_ADA = frozenset(("fp8 conversions", "fp8 mma"))
_HOPPER = _ADA | {
    "stmatrix",
    "wide additions",
    "bf16 additions",
    "elect",
    "mbarrier bytes",
    "tma",
    "multicast",
    "clusters",
    "dependent launch",
}
_ACCELERATED = _HOPPER | {"setmaxnreg"}  # targets with the suffix "a"

# Older first, and of one capability the one with more features last. Shared memory: CUDA Programming Guide, "Technical
# specifications per compute capability".
ARCHITECTURES = {
    row.name: row
    for row in (
        Architecture("sm_80", (8, 0), 163 * _KIB, frozenset()),
        Architecture("sm_86", (8, 6), 99 * _KIB, frozenset()),
        Architecture("sm_87", (8, 7), 163 * _KIB, frozenset()),
        Architecture("sm_89", (8, 9), 99 * _KIB, _ADA),
        Architecture("sm_90", (9, 0), 227 * _KIB, _HOPPER, verified=True),
        Architecture("sm_90a", (9, 0), 227 * _KIB, _ACCELERATED | {"wgmma"}, verified=True),
        Architecture("sm_100", (10, 0), 227 * _KIB, _HOPPER),
        Architecture("sm_100a", (10, 0), 227 * _KIB, _ACCELERATED),
        Architecture("sm_103", (10, 3), 227 * _KIB, _HOPPER),
        Architecture("sm_103a", (10, 3), 227 * _KIB, _ACCELERATED),
        Architecture("sm_110", (11, 0), 227 * _KIB, _HOPPER),
        Architecture("sm_110a", (11, 0), 227 * _KIB, _ACCELERATED),
        Architecture("sm_120", (12, 0), 99 * _KIB, _HOPPER),
        Architecture("sm_120a", (12, 0), 99 * _KIB, _ACCELERATED),
        Architecture("sm_121", (12, 1), 99 * _KIB, _HOPPER),
        Architecture("sm_121a", (12, 1), 99 * _KIB, _ACCELERATED),
    )
}
SIMULATED = ARCHITECTURES["sm_90a"]  # what the simulated GPU has


def architecture(name: str | Architecture) -> Architecture:
    """The row of a name such as "sm_90a". `ArgumentError` for any other."""
    found = ARCHITECTURES.get(name) if isinstance(name, str) else name
    if not isinstance(found, Architecture):
        raise ArgumentError(f"there is no architecture {name!r}", fix=f"choose one of {', '.join(ARCHITECTURES)}")
    return found


def having(*features: str) -> tuple[str, ...]:
    """The names of the architectures that have some features."""
    return tuple(name for name, row in ARCHITECTURES.items() if row.features >= set(features))


def best_for(capability: tuple[int, int]) -> Architecture | None:
    """What to compile for a GPU of some capability: the last row whose cubins run on it; None where there is none."""
    rows = [row for row in ARCHITECTURES.values() if row.runs_on(capability)]
    return max(rows, key=lambda row: (row.capability, len(row.features)), default=None)
