"""CUDA C to a cubin, with ptxas's report on what the kernel uses and what it objects to. Needs no GPU."""

import re
import time
from dataclasses import field

from ..architectures import architecture
from ..loading import dataclass
from . import nvrtc
from .nvrtc import CompilerMissing
from .unrolled import prepared

__all__ = [
    "CompileError",
    "CompilerMissing",
    "Cubin",
    "SERIALIZED",
    "compile",
    "compiler_version",
    "known_faults",
]

# What ptxas says when it serialises WGMMAs or ignores setmaxnreg: correct code at a fraction of its speed.
SERIALIZED = frozenset({7504, 7507, 7508, 7509, 7510, 7511, 7512, 7515, 7517, 7519, 7602})

# With a driver present NVRTC keeps a cache of its own, and what it takes from there comes without a report.
# A minimal NVRTC does not read the declarations of textures and of the CUDA runtime first: an eighth of a short kernel.
_FLAGS = ("--std=c++17", "--fmad=false", "--ptxas-options=-v", "--no-cache", "--minimal")


class CompileError(Exception):
    """The compiler refused the source. `log` is its text, `source` what it was given."""

    def __init__(self, message: str, log: str = "", source: str = "") -> None:
        super().__init__(f"{message}\n{log}" if log else message)
        self.log = log
        self.source = source


@dataclass(frozen=True)
class Cubin:
    """One compiled kernel. Sizes are in bytes, of one thread unless said."""

    image: bytes = field(repr=False)  # the ELF file that the driver loads
    entry: str  # name of the kernel in it
    arch: str  # "sm_90a"
    log: str = field(repr=False)  # what the compiler printed
    registers: int  # 32-bit registers of one thread, at launch
    stack_bytes: int  # local memory, spills included
    spill_store_bytes: int  # written to local memory for want of registers, summed over instructions
    spill_load_bytes: int
    shared_bytes: int  # static shared memory of one block
    warnings: tuple[str, ...]  # one line each, from the front end and from ptxas
    compiler: str  # "NVRTC 13.5"
    seconds: float  # that the compilation took
    key: str = field(default="", repr=False, compare=False)  # that it is filed under (`cache.py`)

    @property
    def spills(self) -> bool:
        """Whether registers went through local memory."""
        return self.spill_store_bytes > 0 or self.spill_load_bytes > 0

    @property
    def serialized(self) -> tuple[str, ...]:
        """The warnings that say ptxas undid the kernel's asynchrony: a shipped kernel has none."""
        codes = ((re.search(r"\(C(\d{4})\)", line), line) for line in self.warnings)
        return tuple(line for code, line in codes if code and int(code[1]) in SERIALIZED)


def compile(source: str, arch: str, *, options: tuple[str, ...] = ()) -> Cubin:
    """Compiles CUDA C that defines exactly one `__global__` function, for one architecture.

    Nothing is included, and nothing is contracted into fused multiply-adds (-fmad, on in CUDA, is off): the text says
    what it wants, `options` what it wants of NVRTC. `#line` directives make messages point at Python: each holds until
    the next, because all lines of C between them come from one line of Python.

    Raises `CompileError` with the compiler's log, `CompilerMissing` where there is no NVRTC, `ArgumentError` for
    an architecture that `architectures.py` has no row of.
    """
    arch = architecture(arch).name
    flags = (f"--gpu-architecture={arch}", *_FLAGS, *options)
    start = time.perf_counter()
    try:
        image, log = nvrtc.compile_cubin(_held_lines(prepared(source)), flags)
    except nvrtc.NvrtcError as error:
        raise CompileError(f"the CUDA compiler refused the kernel for {arch}", error.log, source) from error
    seconds = time.perf_counter() - start
    entries = re.findall(r"Compiling entry function '(\S+)'", log)
    if len(entries) != 1:
        found = ", ".join(entries) or "none"
        raise CompileError(f"the source must define one __global__ function, it defines {found}", log, source)
    spills = re.findall(r"stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    return Cubin(
        image=image,
        entry=entries[0],
        arch=arch,
        log=log,
        registers=_number(r"Used (\d+) registers", log),
        stack_bytes=_number(r"(\d+) bytes cumulative stack size", log),
        spill_store_bytes=sum(int(stores) for stores, _ in spills),
        spill_load_bytes=sum(int(loads) for _, loads in spills),
        shared_bytes=_number(r"(\d+) bytes smem", log),
        warnings=_warnings(log),
        compiler=compiler_version(),
        seconds=seconds,
    )


def _held_lines(source: str) -> str:
    """The source with each `#line` directive repeated before every line up to the next one.

    Not inside a raw string, whose text it would change, nor behind a line that a backslash continues.
    """
    if re.search(r'\bR"', source):
        return source
    out, held, continued = [], "", False
    for line in source.split("\n"):
        directive = re.match(r"\s*#\s*line\b", line) is not None
        if held and not directive and not continued:
            out.append(held)
        held = line if directive else held
        continued = line.endswith("\\")
        out.append(line)
    return "\n".join(out)


def compiler_version() -> str:
    """The compiler in use, such as "NVRTC 13.5"."""
    major, minor = nvrtc.version()
    return f"NVRTC {major}.{minor}"


def known_faults(compiler: str | None = None) -> tuple[str, ...]:
    """What is known to be wrong with a compiler: the one in use, or one named as in `Cubin.compiler`."""
    major, minor = map(int, (compiler or compiler_version()).removeprefix("NVRTC ").split("."))
    if (major, minor) < nvrtc.SOUND:
        return (
            f"ptxas {major}.{minor} may overwrite the registers of a WGMMA's A operand before the "
            "instruction has read them (mended in 13.3). Fix: pip install 'nvidia-cuda-nvrtc>=13.3', or set "
            "PYKITTENS_NVRTC to the path of a newer libnvrtc",
        )
    return ()


def _number(pattern: str, log: str) -> int:
    """The number in ptxas's report, which leaves out what is zero."""
    match = re.search(pattern, log)
    return int(match[1]) if match else 0


def _warnings(log: str) -> tuple[str, ...]:
    """The lines that report a doubt: `file(line): warning #n`, `ptxas warning :`, `ptxas info : (Cnnnn)`."""
    doubt = re.compile(r"\bwarning\s*[#:]|^ptxas .*\(C\d{4}\)")
    return tuple(line.strip() for line in log.splitlines() if doubt.search(line))
