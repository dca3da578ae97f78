"""What is known of a shipped kernel besides its code: its configurations, and an instance of each that can be traced,
compiled and run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..architectures import ARCHITECTURES, SIMULATED, having
from ..call.arguments import spec
from ..call.kernel import Kernel
from ..gpu.writer import Writer
from ..interop.base import numpy_dtype
from ..program import Program

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Instance:
    """A kernel with the operands and static values of one configuration."""

    kernel: Kernel
    operands: Mapping[str, Any]  # run-time parameters in order: `pk.spec`s and numbers
    statics: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ("o",)
    expected: Callable[..., dict[str, Array]] | None = None  # outputs in float64, from all operands by name
    values: Mapping[str, Array] = field(default_factory=dict)  # of operands that cannot be any numbers

    def program(self) -> Program:
        """The traced program."""
        return self.kernel.program(**self.operands, **self.statics)

    def cuda(self, arch: str) -> str:
        """The CUDA C for an architecture."""
        return self.kernel.cuda(**self.operands, **self.statics, arch=arch)

    def arrays(self, seed: int = 0) -> dict[str, Any]:
        """Operands to run on: random normal arrays (or `values`), zeros for the outputs."""
        rng = np.random.default_rng(seed)

        def array(name: str, x: spec) -> Array:
            values = np.zeros(x.shape) if name in self.outputs else self.values.get(name, rng.standard_normal(x.shape))
            return values.astype(numpy_dtype(x.dtype.name))

        return {name: array(name, x) if isinstance(x, spec) else x for name, x in self.operands.items()}


@dataclass(frozen=True)
class Shipped:
    """One shipped kernel. `options` maps each choice to its values, the default first.

    `make(**choice)` gives the instance for a choice, or None where there is none. `opcodes` are the SASS instructions
    that its code must contain ("A|B": one of them): a kernel without them has lost the hardware it was written for.
    """

    name: str
    about: str
    make: Callable[..., Instance | None]
    options: Mapping[str, tuple[Any, ...]]
    opcodes: tuple[str, ...]
    most_lines: int = 250  # the promised length, helpers included
    spilled: int = 0  # bytes that may be spilled
    # Features (`architectures.FEATURES`) that all its configurations use, or the kernels that it always runs beside.
    needs: tuple[str, ...] = ()

    def default(self) -> dict[str, Any]:
        """The first value of every option."""
        return {name: values[0] for name, values in self.options.items()}

    def configurations(self) -> Iterator[tuple[dict[str, Any], Instance]]:
        """Every choice of options that has an instance which no choice before it has."""
        seen: set[str] = set()
        for values in itertools.product(*self.options.values()):
            choice = dict(zip(self.options, values, strict=True))
            if (instance := self.make(**choice)) and (what := repr((instance.operands, instance.statics))) not in seen:
                seen.add(what)
                yield choice, instance

    @property
    def architectures(self) -> tuple[str, ...]:
        """The names of those with all that some configuration needs."""
        return having(*self.needs)

    def targets(self, instance: Instance) -> tuple[str, ...]:
        """The architectures that an instance runs on: those with the features that it uses, and with room for its
        tiles."""
        program = instance.program()
        used = Writer(program, SIMULATED)
        used.text()
        return tuple(
            name for name in having(*used.required) if program.shared_bytes <= ARCHITECTURES[name].shared_bytes
        )


def label(choice: Mapping[str, Any]) -> str:
    """A choice of options as a few words: "dim 64, bf16, causal"."""
    words = [
        (name if value else f"not {name}")
        if isinstance(value, bool)
        else value
        if isinstance(value, str)
        else f"{name} {value}"
        for name, value in choice.items()
    ]
    return ", ".join(words)
