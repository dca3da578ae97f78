"""Every shipped kernel, in every configuration, for each of its architectures: no spills, the instructions it was written for."""

import pytest

from pykittens.gpu import cache, sass
from pykittens.gpu.compiler import Cubin
from pykittens.kernels.catalog import Instance, Shipped, label
from pykittens.kernels.registry import KERNELS
from pykittens.kernels.source_length import count_lines

TOGETHER = 6  # configurations of a test: they are compiled alone, and disassembled together
CASES = [
    pytest.param(row, arch, found[i : i + TOGETHER], id=f"{row.name}-{arch}-{i}")
    for row in KERNELS.values()
    for arch in row.architectures
    for found in [
        [(label(choice), instance) for choice, instance in row.configurations() if arch in row.targets(instance)]
    ]
    for i in range(0, len(found), TOGETHER)
]


def faults(cubin: Cubin, found: Instance) -> list[str]:
    """What is wrong with a compiled kernel, but for its instructions."""
    wrong = [f"{cubin.spill_store_bytes} bytes spilled"] if cubin.spills else []
    wrong += [f"{cubin.stack_bytes} bytes of local memory"] if cubin.stack_bytes else []
    wrong += cubin.serialized
    threads = found.program().threads
    return wrong + ([f"{cubin.registers} registers for {threads} threads"] if cubin.registers * threads > 65536 else [])


@pytest.mark.parametrize(("row", "arch", "found"), CASES)
def test_compiles_well(row: Shipped, arch: str, found: list[tuple[str, Instance]]) -> None:
    cubins = [cache.load_or_compile(instance.cuda(arch), arch) for _, instance in found]
    wrong = {}
    for (name, instance), cubin, present in zip(found, cubins, sass.opcodes_of(cubins), strict=True):
        missing = [one_of for one_of in row.opcodes if not any(present[opcode] for opcode in one_of.split("|"))]
        if bad := faults(cubin, instance) + (
            [f"instructions it was written for are missing: {missing}"] if missing else []
        ):
            wrong[name] = bad
    assert not wrong, wrong


@pytest.mark.parametrize("row", KERNELS.values(), ids=lambda row: row.name)
def test_short_enough(row: Shipped) -> None:
    for choice, found in row.configurations():
        assert count_lines(found.kernel) <= row.most_lines, label(choice)
