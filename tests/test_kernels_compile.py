"""Every shipped kernel, in every configuration and for each of its architectures: no spills, the instructions it was
written for.

Every pair of the two with `--whole`; else each configuration once, and each architecture at least once.
"""

import pytest

from pykittens.gpu import cache, sass
from pykittens.gpu.compiler import Cubin
from pykittens.kernels.catalog import Instance, Shipped, label
from pykittens.kernels.registry import KERNELS
from pykittens.kernels.source_length import count_lines

TOGETHER = 6  # configurations of a test: they are compiled alone, and disassembled together


def choices(row: Shipped, whole: bool) -> dict[str, list[tuple[str, Instance]]]:
    """The configurations to compile for each architecture: all of them (`--whole`), or each for one architecture in
    turn and, so that none is left out, the first that an architecture runs."""
    found: dict[str, list[tuple[str, Instance]]] = {arch: [] for arch in row.architectures}
    for number, (choice, instance) in enumerate(row.configurations()):
        targets = row.targets(instance)
        for place, arch in enumerate(targets):
            first = not found[arch] and not arch.endswith("a")  # what a suffix adds is for kernels that use it
            if whole or place == number % len(targets) or first:
                found[arch].append((label(choice), instance))
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "found" in metafunc.fixturenames:
        whole = metafunc.config.getoption("whole")
        cases = [
            pytest.param(row, arch, found[i : i + TOGETHER], id=f"{row.name}-{arch}-{i}")
            for row in KERNELS.values()
            for arch, found in choices(row, whole).items()
            for i in range(0, len(found), TOGETHER)
        ]
        metafunc.parametrize(("row", "arch", "found"), cases)


def faults(cubin: Cubin, found: Instance) -> list[str]:
    """What is wrong with a compiled kernel, but for its instructions."""
    wrong = [f"{cubin.spill_store_bytes} bytes spilled"] if cubin.spills else []
    wrong += [f"{cubin.stack_bytes} bytes of local memory"] if cubin.stack_bytes else []
    wrong += cubin.warnings  # those of ptxas that say it undid the kernel's asynchrony among them
    threads = found.program().threads
    return wrong + ([f"{cubin.registers} registers for {threads} threads"] if cubin.registers * threads > 65536 else [])


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
def test_every_configuration_and_every_architecture_is_compiled(row: Shipped) -> None:
    thin, whole = choices(row, False), choices(row, True)
    for found in (thin, whole):
        assert all(some for arch, some in found.items() if found is whole or not arch.endswith("a")), found
        assert {name for some in found.values() for name, _ in some} == {label(c) for c, _ in row.configurations()}


@pytest.mark.parametrize("row", KERNELS.values(), ids=lambda row: row.name)
def test_short_enough(row: Shipped) -> None:
    for choice, found in row.configurations():
        assert count_lines(found.kernel) <= row.most_lines, label(choice)
