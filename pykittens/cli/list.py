"""`pykittens list`: the shipped kernels."""

from __future__ import annotations

from ..architectures import ARCHITECTURES
from ..kernels.registry import KERNELS
from ..kernels.source_length import count_lines
from .choice import describe_options, instance
from .console import AsJson, answer, command, out


@command
def list_kernels(as_json: AsJson = False) -> None:
    """Name the shipped kernels, what they need and how long they are."""
    rows = [
        {
            "kernel": row.name,
            "about": row.about,
            "architectures": row.architectures,
            "options": row.options,
            "lines": count_lines(instance(row, row.default()).kernel),
        }
        for row in KERNELS.values()
    ]
    if as_json:
        answer({"kernels": rows})
        return
    for row, facts in zip(KERNELS.values(), rows, strict=True):
        out.print(f"[bold]{row.name}[/]: {row.about}")
        out.print(
            f"    {facts['lines']} lines; {' '.join(row.architectures)}; {describe_options(row)}",
            style="dim",
            soft_wrap=True,
        )
    unverified = [name for name, row in ARCHITECTURES.items() if not row.verified]
    out.print(f"Compiled and inspected for, never run on: {' '.join(unverified)}", style="dim", soft_wrap=True)
