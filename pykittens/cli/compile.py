"""`pykittens compile`: kernels compiled ahead of time, for machines without a compiler."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from ..architectures import architecture
from ..errors import ArgumentError
from ..gpu import cache, compiler
from ..kernels.catalog import Instance, Shipped, label
from ..kernels.registry import KERNELS
from .choice import shipped
from .console import AsJson, Refusal, answer, command, out, progress


@command
def compile_kernels(
    arch: Annotated[list[str], typer.Option(help="An architecture, such as sm_90a; may be given several times.")],
    target: Annotated[Path, typer.Option("--out", help="The directory to fill.", file_okay=False)],
    kernels: Annotated[
        list[str] | None, typer.Argument(help="Names that `pykittens list` shows; all by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fill a directory with compiled kernels that another machine runs without a compiler."""
    try:
        for name in arch:
            architecture(name)
    except ArgumentError as error:
        raise Refusal(error.fact, fix=error.fix) from None
    rows = [shipped(name) for name in kernels] if kernels else list(KERNELS.values())
    jobs = [
        (row, choice, found, a)
        for row in rows
        for choice, found in row.configurations()
        for a in arch
        if a in row.targets(found)
    ]
    if not jobs:
        raise Refusal(
            f"none of {', '.join(row.name for row in rows)} can be compiled for {', '.join(arch)}",
            fix="`pykittens list` shows what can",
        )
    store, done = cache.Cache(target), []
    # The compiler lets go of Python's lock while it works.
    with progress(f"compiling {len(jobs)} kernels", len(jobs)) as advance, ThreadPoolExecutor(os.cpu_count()) as pool:
        for facts in pool.map(lambda job: _compile(store, *job), jobs):
            done.append(facts)
            advance(len(done))
    if as_json:
        answer({"directory": str(target.resolve()), "compiler": compiler.compiler_version(), "kernels": done})
        return
    for facts in done:
        out.print(
            f"{facts['kernel']} ({label(facts['configuration'])}) for {facts['arch']}: {facts['bytes']:,} bytes, "
            f"{facts['registers']} registers"
        )
    total = sum(facts["bytes"] for facts in done)
    out.print(
        f"{len(done)} kernels, {total:,} bytes. To use them: [bold]PYKITTENS_AOT={escape(str(target.resolve()))}[/]",
        soft_wrap=True,
    )


def _compile(store: cache.Cache, row: Shipped, choice: dict[str, Any], found: Instance, arch: str) -> dict[str, Any]:
    source = found.cuda(arch)
    name = cache.key(source, arch)
    cubin = compiler.compile(source, arch)
    file = store.put(name, cubin)
    return {
        "kernel": row.name,
        "configuration": choice,
        "arch": arch,
        "file": file.name,
        "bytes": file.stat().st_size,
        "registers": cubin.registers,
        "spill_bytes": cubin.spill_store_bytes + cubin.spill_load_bytes,
        "warnings": cubin.warnings,
    }
