"""Every shipped kernel, in every configuration, for each of its architectures: no spills, the instructions it was written for."""

import pytest

from pykittens.gpu import cache, sass
from pykittens.kernels.lines import count_lines
from pykittens.kernels.registry import KERNELS
from pykittens.kernels.shipped import Instance, Shipped, label

CASES = [
    pytest.param(row, found, arch, id=f"{row.name}-{arch}-{label(choice).replace(', ', '-').replace(' ', '_')}")
    for row in KERNELS.values()
    for choice, found in row.configurations()
    for arch in row.targets(found)
]


@pytest.mark.parametrize(("row", "found", "arch"), CASES)
def test_compiles_well(row: Shipped, found: Instance, arch: str) -> None:
    cubin = cache.load_or_compile(found.cuda(arch), arch)
    assert not cubin.spills
    assert cubin.stack_bytes == 0, "local memory"
    assert not cubin.serialized
    assert cubin.registers * found.program().threads <= 65536
    present = sass.opcodes(sass.disassemble(cubin))
    missing = [one_of for one_of in row.opcodes if not any(opcode in present for opcode in one_of.split("|"))]
    assert not missing, f"instructions that {row.name} was written for are missing: {missing}"


@pytest.mark.parametrize("row", KERNELS.values(), ids=lambda row: row.name)
def test_short_enough(row: Shipped) -> None:
    for choice, found in row.configurations():
        assert count_lines(found.kernel) <= row.most_lines, label(choice)
