"""`pykittens bench`: the shipped kernels measured on this machine's GPU, beside others'."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.markup import escape
from rich.table import Table

from ..kernels.catalog import Instance
from .console import Refusal, command, err, out, progress
from .user_kernel import is_own, own_kernel


class Family(str, Enum):
    """What can be measured."""

    attention = "attention"
    attention_backward = "attention_backward"
    delta_rules = "delta_rules"
    gemm = "gemm"
    linear = "linear"
    linear_layer = "linear_layer"
    loss = "loss"
    memory = "memory"
    recurrences = "recurrences"
    rows_backward = "rows_backward"
    attention_random = "attention_random"
    attention_backward_random = "attention_backward_random"
    attention_packed = "attention_packed"
    gemm_random = "gemm_random"
    sequences = "sequences"
    steps = "steps"
    host = "host"
    all = "all"


@command
def run_bench(
    context: typer.Context,
    what: Annotated[
        str,
        typer.Argument(
            help=f"{', '.join(f.value for f in Family)} (host: what calls cost the CPU), or FILE.py:NAME of your own."
        ),
    ],
    peers: Annotated[
        bool,
        typer.Option(
            "--peers",
            help="Beside everybody that is installed: FA2, FA4, quack, torch.compile, flash-linear-attention.",
        ),
    ] = False,
    file: Annotated[
        Path | None, typer.Option("--json", help="Write the rows here, with device, driver and versions.")
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option("--chart", help="Draw the rates here, as .svg; `all` puts the family's name before the suffix."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A quarter of the repeats.")] = False,
    cells: Annotated[
        list[str] | None,
        typer.Option(help='Only cells with these facts, such as "n 4096, causal"; may be repeated.'),
    ] = None,
) -> None:
    """Measure the shipped kernels on this GPU: correctness first, then everybody in turn, medians and ratios.

    A kernel of your own runs on random arrays: `pykittens bench my.py:softmax N=65536 D=128`.
    """
    if is_own(what):
        own(what, context.args)
        return
    if context.args or what not in {f.value for f in Family}:
        fix = f"choose one of {', '.join(f.value for f in Family)}, or name a kernel of your own: my.py:softmax N=4096"
        raise Refusal(f"there is nothing to measure called {' '.join([what, *context.args])!r}", fix=fix)
    family = Family(what)
    need_gpu()
    if picture and picture.suffix != ".svg":
        raise Refusal(
            f"charts are drawn as .svg, not as {picture.suffix or 'a file without a suffix'}",
            fix=f"--chart {picture.with_suffix('.svg')}",
        )
    from ..bench import machine

    names = [f.value for f in Family if f is not Family.all] if family is Family.all else [family.value]
    found: dict[str, list[dict[str, Any]]] = {}
    for name in names:
        found[name] = host_rows(quick) if name == "host" else family_rows(name, peers, quick, cells or ())
        if picture and name != "host" and found[name]:
            from ..bench.families import chart

            target = picture if len(names) == 1 else picture.with_suffix(f".{name}.svg")
            target.write_text(chart(name, found[name]))
            err.print(f"drawn: {target}")
        if file:  # after each family: what has been measured is not lost
            file.write_text(json.dumps({"machine": machine.facts(), "families": found}, indent=1) + "\n")
    wrong = [row for rows in found.values() for row in rows if "problem" in row]
    for row in wrong:
        err.print(f"[bold red]wrong:[/] {escape(str(row))}", soft_wrap=True)
    if wrong:
        raise typer.Exit(1)


def own(name: str, words: Sequence[str]) -> None:
    """Times a kernel of the user's own on random arrays, and says how fast its operands move."""
    *_, found = own_kernel(name, words)
    need_gpu()
    import torch

    from ..bench.timing import do_bench

    arrays = {
        n: torch.from_numpy(x).cuda() if isinstance(x, np.ndarray) else x for n, x in _torch_arrays(found).items()
    }
    times: Any = do_bench(found.kernel.bind(**arrays, **found.statics))
    bytes = sum(x.numel() * x.element_size() for x in arrays.values() if isinstance(x, torch.Tensor))
    out.print(
        f"[bold]{found.kernel.name}[/]: {times.median:.4g} ms (from {times.low:.4g} to {times.high:.4g}); "
        f"its operands, {bytes:,} bytes, move at {bytes / times.median / 1e6:.0f} GB/s",
        soft_wrap=True,
    )


def _torch_arrays(found: Instance) -> dict[str, Any]:
    """An instance's arrays, those of dtypes that NumPy lacks as torch's own."""
    import torch

    from ..interop.frameworks import torch_dtype

    made = {}
    for name, x in found.arrays().items():
        if isinstance(x, np.ndarray) and x.dtype.kind == "V":
            made[name] = torch.from_numpy(x.astype(np.float32)).to(torch_dtype(found.operands[name].dtype.name)).cuda()
        else:
            made[name] = x
    return made


def need_gpu() -> None:
    """Ends the command, in one sentence and with status 2, where nothing can be measured."""
    from ..gpu import driver

    missing = "" if driver.available() else "there is no NVIDIA GPU here, and the simulated one has no speed to measure"
    if not missing:
        try:
            import torch

            missing = "" if torch.cuda.is_available() else "this torch has no CUDA: install a CUDA build of it"
        except ImportError:
            missing = "what is measured here needs torch, which is not installed"
    if missing:
        err.print(f"{missing[0].upper()}{missing[1:]}.", soft_wrap=True)
        raise typer.Exit(2)


def host_rows(quick: bool) -> list[dict[str, Any]]:
    """What calls cost the CPU."""
    from ..bench import host

    rows = []
    for row in host.run(quick):
        rows.append(row)
        promised = f" (promised: {row['limit']:g})" if row["limit"] else ""
        out.print(f"{row['what']}: [bold]{row['value']:.3g} {row['unit']}[/]{promised}", soft_wrap=True)
    return rows


def family_rows(name: str, peers: bool, quick: bool, words: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a family, printed as they come."""
    from ..bench.families import FAMILIES, line, run, select, worst

    cells = select(name, words)
    if not cells:
        raise Refusal(
            f"no cell of {name} has {' or '.join(map(repr, words))}",
            fix=f"the first of its cells: {select(name)[0].label}",
        )
    rows = []
    out.print(f"[bold]{FAMILIES[name].TITLE}[/]")
    with progress(f"measuring {name}", len(cells)) as advance:
        for cell, row in zip(cells, run(name, cells, peers, quick, lambda done, *_: advance(done)), strict=True):
            rows.append(row)
            out.print(escape(line(cell.label, row)), soft_wrap=True)
    table = Table("beside", "geometric mean", "least", "cells", box=None, header_style="bold")
    for peer, (mean, least, count) in worst(rows):
        table.add_row(peer, f"{mean:.3f}", f"{least:.3f}", str(count))
    out.print(table)
    return rows
