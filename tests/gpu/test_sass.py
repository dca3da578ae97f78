"""Reading SASS: real kernels through nvdisasm, and listings written by hand for the flow graph."""

import subprocess
import sys

import pytest

from pykittens.gpu import sass
from pykittens.gpu.compiler import CompilerMissing, Cubin, compile
from pykittens.gpu.sass import DisassemblerMissing, Instruction, disassemble, instructions, loops, opcodes, opcodes_of
from tests.gpu.kernels import MMA, SPILLING, WGMMA


def listing(source: str, arch: str, *options: str) -> str:
    try:
        return disassemble(compile(source, arch, options=options))
    except (CompilerMissing, DisassemblerMissing) as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89", "sm_90a"])
def test_a_loop_of_tensor_core_instructions(arch: str) -> None:
    sass = listing(MMA, arch)
    assert opcodes(sass)["HMMA"] == 1
    (loop,) = loops(sass)
    assert loop.depth == 1
    assert loop.opcodes["HMMA"] == 1
    assert loop.opcodes["LDG"] == 6  # six 32-bit registers of A and B
    assert loop.opcodes["STG"] == 0  # the results are written after it
    assert loop.instructions[-1].base == "BRA"
    assert 15 < len(loop.instructions) < 40


def test_warpgroup_instructions() -> None:
    sass = listing(WGMMA.replace("TOUCH", ""), "sm_90a")
    assert opcodes(sass)["HGMMA"] == 2
    assert loops(sass) == []


def test_opcodes_by_their_bits_are_those_of_the_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sass, "_NAMES", {})
    sources = MMA, WGMMA.replace("TOUCH", ""), MMA
    alone = [opcodes(listing(source, "sm_90a")) for source in sources]
    together = opcodes_of([compile(source, "sm_90a") for source in sources])
    for one, other in zip(alone, together, strict=True):
        assert {**one, "NOP": 0} == {**other, "NOP": 0}  # which also pad a kernel's end


def test_spills_show() -> None:
    counts = opcodes(listing(SPILLING, "sm_90a", "--maxrregcount=64"))
    assert counts["STL"] > 100
    assert counts["LDL"] > 100


def test_an_unreadable_image() -> None:
    listing(MMA, "sm_80")  # skips where there is no nvdisasm
    broken = Cubin(b"not an ELF file", "attend", "sm_90a", "", 0, 0, 0, 0, 0, (), "NVRTC 13.5", 0.0)
    with pytest.raises(RuntimeError, match="nvdisasm cannot read `attend`"):
        disassemble(broken)


def test_a_missing_disassembler_names_the_fix() -> None:
    code = "import sys; sys.modules['cuda.pathfinder'] = None; from pykittens.gpu import sass; sass.nvdisasm()"
    environment = {"PATH": "/nowhere", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "DisassemblerMissing" in done.stderr
    assert "Fix: pip install nvidia-cuda-nvdisasm" in done.stderr


def write(program: str) -> str:
    """A listing from lines of "label:" and "opcode operands"."""
    lines, address = [], 0
    for line in program.strip().splitlines():
        if line.strip().endswith(":"):
            lines.append(line.strip())
        else:
            lines.append(f"        /*{address:04x}*/                   {line.strip()} ;")
            address += 16
    return "\n".join(lines)


def shape(program: str) -> list[tuple[str, int]]:
    """Of each loop, its base opcodes in a row and its depth."""
    found = loops(write(program))
    return [(" ".join(i.base for i in loop.instructions), loop.depth) for loop in found]


def test_parsing() -> None:
    sass = write("LDC R1, c[0x0][0x28]\n@!P0 HMMA.16816.F32.BF16 R8, R12, R16, R8\nEXIT\n.L_x_9:\nNOP\nNOP")
    assert instructions(sass) == [
        Instruction(0, "", "LDC", "R1, c[0x0][0x28]"),
        Instruction(16, "!P0", "HMMA.16816.F32.BF16", "R8, R12, R16, R8"),
        Instruction(32, "", "EXIT", ""),
    ]
    assert opcodes(sass) == {"LDC": 1, "HMMA": 1, "EXIT": 1}


def test_nested_loops() -> None:
    assert shape("""
        MOV R0, R1
      .L_x_1:
        FADD R0, R0, R1
      .L_x_2:
        FMUL R0, R0, R1
        @P0 BRA `(.L_x_2)
        @!P1 BRA `(.L_x_1)
        EXIT
      .L_x_3:
        BRA `(.L_x_3)
    """) == [("FADD FMUL BRA BRA", 1), ("FMUL BRA", 2)]


def test_a_wait_laid_out_behind_the_end_belongs_to_its_loop_only() -> None:
    assert shape("""
        MOV R0, R1
      .L_x_1:
        SYNCS R0
        @!P0 BRA `(.L_x_5)
      .L_x_2:
        HGMMA R0, R1
        @P1 BRA `(.L_x_1)
        STG R0, R1
        EXIT
      .L_x_5:
        SYNCS.PHASECHK R0
        @!P0 BRA `(.L_x_5)
        BRA `(.L_x_2)
    """) == [("SYNCS BRA HGMMA BRA SYNCS BRA BRA", 1), ("SYNCS BRA", 2)]


def test_branches_with_inner_conditions_and_reconvergence() -> None:
    assert shape("""
      .L_x_1:
        BSSY B0, `(.L_x_3)
        BRA.U !UP0, `(.L_x_2)
        FADD R0, R0, R1
      .L_x_2:
        BSYNC B0
        FMUL R0, R0, R0
      .L_x_3:
        @P0 BRA `(.L_x_1)
        EXIT
    """) == [("BSSY BRA FADD BSYNC BRA", 1)]


def test_gaps() -> None:
    (loop,) = loops(write(".L_x_1:\nHGMMA R0\nFADD R0\nFMUL R0\nHGMMA R0\nHGMMA R0\n@P0 BRA `(.L_x_1)\nEXIT"))
    assert loop.gaps("HGMMA") == [2, 0]
    assert loop.gaps("FADD") == []
