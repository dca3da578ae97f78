"""The tensor maps that a program's TMA operations need, each once."""

from __future__ import annotations

from ..program import Program


def collect_maps(program: Program) -> None:
    """Sets `program.maps`."""
    program.maps = list(dict.fromkeys(spec for op in program.walk() for spec in op.tensor_maps()))
