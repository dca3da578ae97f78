"""The table of shipped kernels: what `list`, `inspect`, `compile` and the tests go through.

A row says how to make an instance of its kernel for each configuration. An instance is small enough to simulate (a few laps
of every loop), and compiles to the very code that larger operands use: lengths are known at launch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..interop.base import numpy_dtype
from ..kernel import Kernel, spec
from ..program import Program
from ..types import DTYPES, f32
from . import attention_ada, attention_hopper, reference

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Instance:
    """A kernel with the operands and static values of one configuration."""

    kernel: Kernel
    operands: Mapping[str, Any]  # run-time parameters in order: `pk.spec`s and numbers
    fixed: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ("o",)
    expected: Callable[..., dict[str, Array]] | None = None  # outputs in float64, from all operands by name

    def program(self) -> Program:
        """The traced program."""
        return self.kernel.program(**self.operands, **self.fixed)

    def cuda(self, arch: str) -> str:
        """The CUDA C for an architecture."""
        return self.kernel.cuda(**self.operands, **self.fixed, arch=arch)

    def arrays(self, seed: int = 0) -> dict[str, Any]:
        """Operands to run on: random normal arrays, zeros for the outputs."""
        rng = np.random.default_rng(seed)
        return {name: x if not isinstance(x, spec) else _array(x, rng, name in self.outputs) for name, x in self.operands.items()}


@dataclass(frozen=True)
class Shipped:
    """One shipped kernel. `options` maps each choice to its values, the default first.

    `make(**choice)` gives the instance for a choice, or None where there is none. `opcodes` are the SASS instructions
    that its code must contain: a kernel without them has lost the hardware it was written for.
    """

    name: str
    about: str
    make: Callable[..., Instance | None]
    architectures: tuple[str, ...]
    options: Mapping[str, tuple[Any, ...]]
    opcodes: tuple[str, ...]
    most_lines: int  # the promised length, helpers included

    def default(self) -> dict[str, Any]:
        """The first value of every option."""
        return {name: values[0] for name, values in self.options.items()}

    def configurations(self) -> Iterator[tuple[dict[str, Any], Instance]]:
        """Every choice of options that has an instance."""
        for values in itertools.product(*self.options.values()):
            choice = dict(zip(self.options, values, strict=True))
            if instance := self.make(**choice):
                yield choice, instance


def label(choice: Mapping[str, Any]) -> str:
    """A choice of options as a few words: "dim 64, bf16, causal"."""
    words = [(name if value else f"not {name}") if isinstance(value, bool) else value if isinstance(value, str) else f"{name} {value}"
             for name, value in choice.items()]  # fmt: skip
    return ", ".join(words)


def find(name: str) -> Shipped:
    """The row of a name. Raises KeyError, with what there is."""
    if name not in KERNELS:
        raise KeyError(f"there is no kernel {name!r}; there are {', '.join(KERNELS)}")
    return KERNELS[name]


def _array(x: spec, rng: np.random.Generator, zero: bool) -> Array:
    values = np.zeros(x.shape) if zero else rng.standard_normal(x.shape)
    return values.astype(numpy_dtype(x.dtype.name))


# The rows ---------------------------------------------------------------------------------------------------


def _attention(kernel: Kernel, n: int, m: int, dim: int, dtype: str, more: Mapping[str, Any] | None = None, **fixed: Any) -> Instance:
    """Two heads; operands besides q, k, v, o and scale are `more`."""
    q, k = spec(DTYPES[dtype], (1, 2, n, dim)), spec(DTYPES[dtype], (1, 2, m, dim))
    scale = dim**-0.5

    def expected(q: Array, k: Array, v: Array, **_: Any) -> dict[str, Array]:
        return {"o": reference.attention(q, k, v, scale=scale, causal=fixed["causal"])}

    return Instance(kernel, {"q": q, "k": k, "v": k, "o": q, **(more or {}), "scale": scale}, fixed, expected=expected)


def _attention_ada(dim: int, dtype: str, causal: bool) -> Instance:
    keys = 256 if dim == 64 else 128  # of a lap
    return _attention(attention_ada.attend, 40, 2 * keys + 40, dim, dtype, causal=causal)


def _attention_hopper(dim: int, dtype: str, causal: bool) -> Instance:
    settings = {64: {"keys": 128}, 128: {"keys": 128}, 256: {"keys": 80, "queries": 1}}[dim]
    rows = 3 * 128 - 40  # three tiles of each of two heads, and two blocks to do them
    return _attention(attention_hopper.attend, rows, 2 * settings["keys"] + 40, dim, dtype, {"lse": spec(f32, (1, 1, 1))}, causal=causal, sms=2, **settings)


_ROWS = (
    Shipped(
        name="attention_ada",
        about="flash attention forward with mma.sync: the RTX 4090 kernel of the ThunderKittens post",
        make=_attention_ada,
        architectures=("sm_80", "sm_86", "sm_89", "sm_90", "sm_90a"),
        options={"dim": (64, 128), "dtype": ("bf16", "f16"), "causal": (False, True)},
        opcodes=("HMMA", "LDSM"),
        most_lines=60,
    ),
    Shipped(
        name="attention_hopper",
        about="flash attention forward with TMA, asynchronous tensor cores and warp roles: the H100 kernel of the ThunderKittens post",
        make=_attention_hopper,
        architectures=("sm_90a",),
        options={"dim": (64, 128, 256), "dtype": ("bf16", "f16"), "causal": (False, True)},
        opcodes=("HGMMA", "UTMALDG", "UTMASTG", "USETMAXREG"),
        most_lines=100,
    ),
)

KERNELS: dict[str, Shipped] = {row.name: row for row in _ROWS}
