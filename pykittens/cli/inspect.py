"""`pykittens inspect`: a shipped kernel at every stage, from its program to the instructions of the GPU."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.syntax import Syntax

from ..architectures import SIMULATED, architecture
from ..errors import ArgumentError
from ..gpu import cache, driver, sass
from ..gpu.compiler import Cubin
from ..gpu.libcuda import CudaError
from ..kernels.catalog import Instance, Shipped, label
from ..kernels.source_length import count_lines
from .choice import instance, read_choice, shipped
from .console import AsJson, Refusal, answer, command, out, progress
from .user_kernel import is_own, own_kernel


@dataclass(frozen=True)
class Inspection:
    """What is known of one configuration of a kernel, compiled for one architecture. Bytes are of a thread or a
    block.
    """

    kernel: str
    arch: str
    configuration: dict[str, Any]
    lines: int  # of Python, helpers included
    threads: int  # of a block
    registers: int  # of a thread
    spill_bytes: int  # stored to and loaded from local memory for want of registers
    local_bytes: int  # of local memory a thread has
    shared_bytes: int  # of a block
    warnings: tuple[str, ...]
    compiler: str
    compile_seconds: float
    sass: dict[str, int] | None  # opcode counts; None without a disassembler
    loops: list[dict[str, Any]] | None


def inspect_instance(row: Shipped, choice: dict[str, Any], found: Instance, arch: str) -> tuple[Inspection, Cubin]:
    """Compiles (or takes from the cache) one configuration of a kernel, and reads the result."""
    program, source = found.program(), found.cuda(arch)
    cubin = cache.load_or_compile(source, arch)
    opcodes = loops = None
    try:
        listing = sass.disassemble(cubin)
    except sass.DisassemblerMissing:
        pass
    else:
        opcodes = dict(sass.opcodes(listing).most_common())
        loops = [
            {"depth": loop.depth, "instructions": len(loop.instructions), "opcodes": dict(loop.opcodes.most_common())}
            for loop in sass.loops(listing)
        ]
    facts = Inspection(
        kernel=row.name,
        arch=arch,
        configuration=choice,
        lines=count_lines(found.kernel),
        threads=program.threads,
        registers=cubin.registers,
        spill_bytes=cubin.spill_store_bytes + cubin.spill_load_bytes,
        local_bytes=cubin.stack_bytes,
        shared_bytes=program.shared_bytes + cubin.shared_bytes,
        warnings=cubin.warnings,
        compiler=cubin.compiler,
        compile_seconds=round(cubin.seconds, 3),
        sass=opcodes,
        loops=loops,
    )
    return facts, cubin


@command
def inspect_kernel(
    context: typer.Context,
    kernel: Annotated[str, typer.Argument(help="A name that `pykittens list` shows, or FILE.py:NAME of your own.")],
    arch: Annotated[str, typer.Option(help="The architecture, such as sm_89; by default this machine's GPU's.")] = "",
    program: Annotated[bool, typer.Option("--program", help="Print the traced program.")] = False,
    cuda: Annotated[bool, typer.Option("--cuda", help="Print the CUDA C.")] = False,
    show_sass: Annotated[bool, typer.Option("--sass", help="Print the disassembly.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a kernel becomes: its program, its CUDA C, its instructions, and what they use.

    The kernel's own options (`pykittens list` shows them) choose the configuration: --dim 128 --causal. Of a kernel of
    your own, NAME=VALUE gives the lengths of dimensions, dtypes, and values of other parameters: N=4096 D=128 x=bf16.
    """
    choice: dict[str, Any]
    if is_own(kernel):
        row, choice, found = own_kernel(kernel, context.args)
    else:
        row = shipped(kernel)
        choice = read_choice(row, context.args)
        found = instance(row, choice)
    if program + cuda + show_sass + as_json > 1:
        raise Refusal("--program, --cuda, --sass and --json exclude each other", fix="give one")
    if program:
        print(found.program())
        return
    arch = _architecture(row, arch)
    if cuda:
        text = found.cuda(arch)
        out.print(Syntax(text, "cuda", background_color="default")) if out.is_terminal else print(text)
        return
    with progress(f"compiling {row.name} for {arch}"):
        facts, cubin = inspect_instance(row, choice, found, arch)
    if show_sass:
        print(sass.disassemble(cubin))
    elif as_json:
        answer(asdict(facts))
    else:
        _show(facts, "|".join(row.opcodes).split("|"))


def _architecture(row: Shipped, asked: str) -> str:
    """The architecture asked for, or else this machine's, or else the simulated GPU's."""
    if not asked:
        try:
            here = driver.architecture().name
        except CudaError:
            here = ""
        return here if here in row.architectures else SIMULATED.name
    try:
        architecture(asked)
    except ArgumentError as error:
        raise Refusal(error.fact, fix=error.fix) from None
    if asked not in row.architectures:
        raise Refusal(
            f"{row.name} cannot be compiled for {asked}", fix=f"it is made for {', '.join(row.architectures)}"
        )
    return asked


def _show(facts: Inspection, meant: list[str]) -> None:
    out.print(
        f"[bold]{facts.kernel}[/] ({label(facts.configuration)}) for {facts.arch}, by {facts.compiler} in "
        f"{facts.compile_seconds} s"
    )
    out.print(
        f"  {facts.lines} lines of Python; {facts.threads} threads, {facts.shared_bytes:,} bytes of shared memory for "
        "a block"
    )
    out.print(
        f"  {facts.registers} registers a thread, {facts.spill_bytes} bytes spilled, {facts.local_bytes} bytes of "
        "local memory"
    )
    for warning in facts.warnings:
        out.print(f"  [yellow]{escape(warning)}[/]")
    if facts.sass is None or facts.loops is None:
        out.print("  no instructions: pip install nvidia-cuda-nvdisasm")
        return
    out.print(f"  {sum(facts.sass.values())} instructions: {_counts(facts.sass, meant, 12)}")
    for loop in facts.loops:
        if loop["instructions"] >= 64:
            out.print(f"  {'  ' * loop['depth']}loop of {loop['instructions']}: {_counts(loop['opcodes'], meant, 8)}")


def _counts(opcodes: dict[str, int], meant: list[str], most: int) -> str:
    """The instructions that the kernel was written for, then the most frequent others."""
    first = sorted(opcodes.items(), key=lambda item: item[0] not in meant)  # stable
    return ", ".join(f"{count} {opcode}" for opcode, count in first[:most])
