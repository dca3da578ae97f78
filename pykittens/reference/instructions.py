"""The PTX instructions behind an operation: read from the CUDA C that it writes, and the functions that this calls."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any

from ..architectures import SIMULATED, architecture, having
from ..gpu.writer import Writer
from ..ops.samples import Sample
from ..program import Op
from ..testing.conformance import Case

_ASM = re.compile(r'asm(?: volatile)?\(((?:\s*"(?:\\.|[^"\\])*")+)')
_STRING = re.compile(r'"((?:\\.|[^"\\])*)"')
_MNEMONIC = re.compile(r"(?:^|[;{}\n])\s*(?:@!?%?\w+\s+)?([a-z]\w*(?:\.[\w:]+)+)")
_SOURCE = re.compile(
    r"\b((?:bar|barrier|mbarrier|cp|fence|griddepcontrol|wgmma|st|ld|mapa|discard|prefetch|red)\.[a-z][\w.:]*)"
)
HELPERS = ("xor.", "add.", "selp.", "setp.", "mov.")  # between the instructions that matter
BUILT_IN = {  # CUDA's own functions, and what they become
    "__shfl_xor_sync": "shfl.sync.bfly",
    "__shfl_sync": "shfl.sync.idx",
    "__syncthreads": "bar.sync",
    "__syncwarp": "bar.warp.sync",
    "fmaf": "fma.rn.f32",
    "rintf": "cvt.rni.f32.f32",
    "floorf": "cvt.rmi.f32.f32",
    "ceilf": "cvt.rpi.f32.f32",
    "truncf": "cvt.rzi.f32.f32",
    "sqrtf": "sqrt.rn.f32",
    "rsqrtf": "rsqrt.approx.f32",
    "fabsf": "abs.f32",
}


def instructions(op: type[Op], sample: Sample, number: int) -> list[str]:
    """The instructions of one sample, in order of appearance, but for plain arithmetic, loads and stores of C."""
    case = Case(op, sample, number)
    program = case.program()
    known = having(*filter(None, [sample.needs]))
    arch = SIMULATED if SIMULATED.name in known else architecture(known[0])
    own: list[str] = []

    class Listening(Writer):
        def statement(self, statement: Any) -> None:
            before = len(self.out)
            super().statement(statement)
            if type(statement) is op:
                own.extend(self.out[before:])

    text = Listening(program, arch).text()
    functions: dict[str, str] = {}
    for part in re.split(r'^(?=(?:template[^{;\n]*)?__device__|extern "C")', text, flags=re.M):
        if found := re.search(r"\b(pk_\w+)\(", part):  # overloads are one
            functions[found[1]] = functions.get(found[1], "") + part.partition("{")[2]
    return _listed(_of("\n".join(own), functions, set()))


def named(op: type[Op]) -> list[str]:
    """The instructions that the source of an operation without samples names: its own, and its module's preludes."""
    module = inspect.getmodule(op)
    sources = [inspect.getsource(vars(cls)["cuda"]) for cls in op.__mro__ if "cuda" in vars(cls) and cls is not Op]
    for name in re.findall(r"prelude\((\w+)\)", "".join(sources)):
        sources.append(str(getattr(module, name, "")) if name != "MEMORY" else "")
    return _listed(m for source in sources for m in _SOURCE.findall(source))


def _listed(names: Iterable[str]) -> list[str]:
    return [name for name in dict.fromkeys(names) if not name.startswith(HELPERS) and name[-1] not in ".:"]


def _of(text: str, functions: dict[str, str], seen: set[str]) -> list[str]:
    """Those that a text names itself, and those of the functions that it calls."""
    found = [m for block in _ASM.findall(text) for m in _MNEMONIC.findall("".join(_STRING.findall(block)))]
    for name in re.findall(r"\b\w+(?=[<(])", text):
        if name in BUILT_IN:
            found.append(BUILT_IN[name])
        elif name in functions and name not in seen:
            seen.add(name)
            found += _of(functions[name], functions, seen)
    return found
