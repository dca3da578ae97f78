"""What the GPU will execute: disassembly, opcode counts, and the loops with what they cost to issue.

A warp scheduler issues one instruction per cycle, so the instructions of the main loop are a first measure
of a variant, read before any GPU is used.
"""

import functools
import itertools
import re
import shutil
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .compiler import Cubin

_LINE = re.compile(
    r"^\s*/\*(?P<address>[0-9a-f]+)\*/\s+"  # /*00a0*/
    r"(?:@(?P<guard>!?U?P\w+)\s+)?"  # @!P0
    r"(?P<opcode>[A-Z]\S*?)(?: (?P<operands>.*?))?\s*;"  # BRA `(.L_x_0) ;
)
_LABEL = re.compile(r"^(\.L_x_\d+|\$?[\w$.]+):\s*$")
_TARGET = re.compile(r"\.L_x_\d+")
_ENDS_BLOCK = ("BRA", "BRX", "JMP", "JMX", "EXIT", "RET", "BSYNC")


class DisassemblerMissing(RuntimeError):
    """nvdisasm is not installed."""


@dataclass(frozen=True)
class Instruction:
    """One line of SASS. `opcode` is whole, such as "HMMA.16816.F32.BF16"; `guard` its predicate or empty."""

    address: int  # bytes from the start of its function
    guard: str
    opcode: str
    operands: str

    @property
    def base(self) -> str:
        """The opcode without its modifiers, such as "HMMA"."""
        return self.opcode.split(".")[0]


@dataclass(frozen=True)
class MachineLoop:
    """A loop, with everything in it: inner loops, and blocks that were laid out elsewhere."""

    instructions: tuple[Instruction, ...]  # by address
    depth: int  # 1 is outermost

    @property
    def opcodes(self) -> Counter[str]:
        """How often each base opcode stands in it."""
        return Counter(instruction.base for instruction in self.instructions)

    def gaps(self, base: str) -> list[int]:
        """How many instructions stand between one `base` (such as "HGMMA") and the next, by address."""
        places = [i for i, instruction in enumerate(self.instructions) if instruction.base == base]
        return [b - a - 1 for a, b in itertools.pairwise(places)]


@functools.lru_cache(maxsize=32)
def disassemble(cubin: Cubin) -> str:
    """The SASS of a kernel, as nvdisasm prints it. Raises `DisassemblerMissing`."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin.image)
        done = subprocess.run([nvdisasm(), "-c", str(file)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"nvdisasm cannot read `{cubin.entry}`: {done.stderr.strip()}")
    return done.stdout


def instructions(sass: str) -> list[Instruction]:
    """The instructions of a listing, in its order, without the padding at its end."""
    return [item for item in _parse(sass) if isinstance(item, Instruction)]


def opcodes(sass: str) -> Counter[str]:
    """How often each base opcode (HGMMA, UTMALDG, STL, ...) stands in a listing."""
    return Counter(instruction.base for instruction in instructions(sass))


_NAMES: dict[str, dict[int, str]] = {}  # of an architecture: base opcodes by the bits that say which


def opcodes_of(cubins: Sequence[Cubin]) -> list[Counter[str]]:
    """`opcodes` of each of several kernels for one architecture, NOPs behind their ends among them.

    An instruction is 16 bytes, and its lowest 12 bits are its base opcode: so nvdisasm, whose start takes longer than a
    kernel does, reads one instruction of each that it has not named before. (No other was found among the 300,000
    instructions of the shipped kernels; a test compares.)
    """
    (arch,) = {cubin.arch for cubin in cubins}
    words = [np.frombuffer(_code(cubin), "<u8").reshape(-1, 2) for cubin in cubins]
    names, every = _NAMES.setdefault(arch, {}), np.concatenate(words)
    codes, first = np.unique(every[:, 0] & 0xFFF, return_index=True)
    new = [(int(code), every[i].tobytes()) for code, i in zip(codes, first, strict=True) if int(code) not in names]
    if new:
        found = _listed(b"".join(word for _, word in new), arch)
        names.update((code, instruction.base) for (code, _), instruction in zip(new, found, strict=True))
    return [Counter(names[code] for code in (word[:, 0] & 0xFFF).tolist()) for word in words]


def _listed(code: bytes, arch: str) -> list[Instruction]:
    """Each instruction of code without an ELF file around it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernels.bin"
        file.write_bytes(code)
        which = f"SM{arch.removeprefix('sm_').removesuffix('a')}"
        done = subprocess.run([nvdisasm(), "-b", which, str(file)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"nvdisasm cannot read kernels for {arch}: {done.stderr.strip()}")
    return [item for item in _items(done.stdout) if isinstance(item, Instruction)]


def _code(cubin: Cubin) -> bytes:
    """The instructions in a cubin, an ELF64 file: the section `.text.NAME`."""
    image = cubin.image
    (table,), (size, count, names) = struct.unpack_from("<Q", image, 0x28), struct.unpack_from("<HHH", image, 0x3A)
    sections = [
        struct.unpack_from("<IIQQQQ", image, table + i * size) for i in range(count)
    ]  # name, type, flags, address, offset, size
    wanted = f".text.{cubin.entry}\0".encode()
    for name, _, _, _, offset, length in sections:
        start = sections[names][4] + name
        if image[start : start + len(wanted)] == wanted:
            return image[offset : offset + length]
    raise RuntimeError(f"no code of `{cubin.entry}` in its cubin")


def loops(sass: str) -> list[MachineLoop]:
    """The loops of a listing, by address. Code that nothing reaches is left out."""
    blocks, follow = _graph(_parse(sass))
    before: list[set[int]] = [set() for _ in blocks]
    for block, targets in enumerate(follow):
        for target in targets:
            before[target].add(block)
    above = _dominators(before, follow)
    bodies: dict[int, set[int]] = {}
    for tail, targets in enumerate(follow):
        for head in targets:
            if above[tail] >> head & 1:  # a jump back to a block that every path to it has passed
                body, todo = bodies.setdefault(head, {head}), [tail]
                while todo:
                    block = todo.pop()
                    if block not in body:
                        body.add(block)
                        todo += [earlier for earlier in before[block] if above[earlier]]
    found = []
    for head, body in sorted(bodies.items()):
        inside = tuple(instruction for block in sorted(body) for instruction in blocks[block])
        found.append(MachineLoop(inside, sum(head in other for other in bodies.values())))
    return found


def _parse(sass: str) -> list[str | Instruction]:
    """Labels and instructions, in order, without the padding at their end."""
    items = _items(sass)
    while items and (isinstance(items[-1], str) or items[-1].base == "NOP"):
        items.pop()
    return items


def _items(sass: str) -> list[str | Instruction]:
    items: list[str | Instruction] = []
    for line in sass.splitlines():
        if match := _LINE.match(line):
            guard, operands = match["guard"] or "", match["operands"] or ""
            items.append(Instruction(int(match["address"], 16), guard, match["opcode"], operands))
        elif match := _LABEL.match(line):
            items.append(match[1])
    return items


def _graph(items: list[str | Instruction]) -> tuple[list[list[Instruction]], list[set[int]]]:
    """The basic blocks of a listing, and for each the blocks that may run next. Block 0 is the entry."""
    blocks: list[list[Instruction]] = [[]]
    labels: dict[str, int] = {}
    for item in items:
        if isinstance(item, str):
            if blocks[-1]:
                blocks.append([])
            labels[item] = len(blocks) - 1
        else:
            blocks[-1].append(item)
            if item.base in _ENDS_BLOCK:
                blocks.append([])
    follow: list[set[int]] = [set() for _ in blocks]
    meets: dict[str, set[str]] = {}  # barrier register: where the threads of the latest BSSY on it meet again
    meeting: dict[int, set[str]] = {}  # the same for the BSYNC at an address: registers are used again
    for item in items:
        if isinstance(item, Instruction) and item.base in ("BSSY", "BSYNC"):
            register = item.operands.split(",")[0].strip()
            if item.base == "BSSY":
                meets[register] = set(_TARGET.findall(item.operands))
            else:
                meeting[item.address] = meets.get(register, set())
    for i, block in enumerate(blocks):
        last = block[-1] if block else None
        falls = True
        if last and last.base in _ENDS_BLOCK:
            targets = set(_TARGET.findall(last.operands))
            if last.base == "BSYNC":
                targets |= meeting[last.address]
            follow[i] |= {labels[target] for target in targets if target in labels}
            inner_condition = last.base == "BRA" and "," in last.operands  # BRA.U !UP0, `(.L_x_1)
            falls = bool(last.guard) or inner_condition or (last.base == "BSYNC" and not targets)
        if falls and i + 1 < len(blocks):
            follow[i].add(i + 1)
    return blocks, follow


def _dominators(before: list[set[int]], follow: list[set[int]]) -> list[int]:
    """For each block, as bits, the blocks on every path from the entry to it; no bits where nothing leads."""
    reached, todo = {0}, [0]
    while todo:
        for block in follow[todo.pop()] - reached:
            reached.add(block)
            todo.append(block)
    everything = (1 << len(before)) - 1
    above = [everything if block in reached else 0 for block in range(len(before))]
    above[0] = 1
    changed = True
    while changed:
        changed = False
        for block in sorted(reached - {0}):
            common = everything
            for earlier in before[block] & reached:
                common &= above[earlier]
            if (common := common | 1 << block) != above[block]:
                above[block], changed = common, True
    return above


@functools.cache
def nvdisasm() -> str:
    """The path of nvdisasm: its wheel's, a toolkit's, or one on PATH."""
    try:
        from cuda.pathfinder import find_nvidia_binary_utility

        found = find_nvidia_binary_utility("nvdisasm")
    except ImportError:  # no cuda-pathfinder, or one too old to look for programs
        found = None
    if not (found := found or shutil.which("nvdisasm")):
        raise DisassemblerMissing("reading SASS needs nvdisasm. Fix: pip install nvidia-cuda-nvdisasm")
    return str(found)
