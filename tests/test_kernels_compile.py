"""Every shipped kernel in every configuration and for every architecture: no spills, instructions it is written for.

With `--whole` each configuration for each of its architectures; else each configuration for one, each architecture with
one configuration.
"""

from collections import Counter

import pytest

from pykittens.gpu import cache, sass
from pykittens.gpu.compiler import Cubin
from pykittens.kernels.catalog import Instance, Shipped, label
from pykittens.kernels.registry import KERNELS
from pykittens.kernels.source_length import count_lines

Case = tuple[Shipped, str, Instance]  # a kernel, what its configuration is called, the kernel in it
TOGETHER = 10  # cases of a test: they are compiled alone, and disassembled together, because nvdisasm is slow to start


def choices(row: Shipped, whole: bool) -> dict[str, list[Case]]:
    """The configurations to compile for each architecture: all of them (`whole`), or one for each architecture, in
    turn, and what then is left for the first that has it.

    Architectures with a suffix take part where a configuration has no other: what the suffix adds is for such kernels.
    """
    cases = [(row, label(choice), instance, row.targets(instance)) for choice, instance in row.configurations()]
    found: dict[str, list[Case]] = {arch: [] for arch in row.architectures}
    times: Counter[str] = Counter()
    for arch, chosen in found.items():
        can = [case for case in cases if arch in case[3]]
        if not whole:
            plain = not arch.endswith("a")
            can = sorted(can, key=lambda case: times[case[1]])[:1] if plain else []
        chosen += [case[:3] for case in can]
        times.update(case[1] for case in can)
    for case in cases:
        if not times[case[1]]:
            found[case[3][0]].append(case[:3])
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cases" in metafunc.fixturenames:
        by_arch: dict[str, list[Case]] = {}
        for row in KERNELS.values():
            for arch, found in choices(row, metafunc.config.getoption("whole")).items():
                by_arch.setdefault(arch, []).extend(found)
        parts = [
            (arch, found[i : i + TOGETHER]) for arch, found in by_arch.items() for i in range(0, len(found), TOGETHER)
        ]
        ids = [f"{arch}-{'+'.join(dict.fromkeys(row.name for row, _, _ in cases))}" for arch, cases in parts]
        metafunc.parametrize(("arch", "cases"), parts, ids=ids)


def faults(cubin: Cubin, found: Instance, spilled: int = 0) -> list[str]:
    """What is wrong with a compiled kernel, but for its instructions."""
    wrong = [f"{cubin.spill_store_bytes} bytes spilled"] if cubin.spill_store_bytes > spilled else []
    wrong += [f"{cubin.stack_bytes} bytes of local memory"] if cubin.stack_bytes > spilled else []
    wrong += cubin.warnings  # those of ptxas that say it undid the kernel's asynchrony among them
    threads = found.program().threads
    return wrong + ([f"{cubin.registers} registers for {threads} threads"] if cubin.registers * threads > 65536 else [])


def test_compiles_well(arch: str, cases: list[Case]) -> None:
    cubins = [cache.load_or_compile(instance.cuda(arch), arch) for _, _, instance in cases]
    wrong = {}
    for (row, name, instance), cubin, present in zip(cases, cubins, sass.opcodes_of(cubins), strict=True):
        missing = [one_of for one_of in row.opcodes if not any(present[opcode] for opcode in one_of.split("|"))]
        bad = faults(cubin, instance, row.spilled)
        if missing:
            bad.append(f"instructions it was written for are missing: {missing}")
        if bad:
            wrong[f"{row.name}: {name}"] = bad
    assert not wrong, wrong


@pytest.mark.parametrize("row", KERNELS.values(), ids=lambda row: row.name)
def test_every_configuration_and_every_architecture_is_compiled(row: Shipped) -> None:
    thin, whole = choices(row, False), choices(row, True)
    for found in (thin, whole):
        assert all(some for arch, some in found.items() if found is whole or not arch.endswith("a")), found
        assert {name for some in found.values() for _, name, _ in some} == {label(c) for c, _ in row.configurations()}


@pytest.mark.parametrize("row", KERNELS.values(), ids=lambda row: row.name)
def test_short_enough(row: Shipped) -> None:
    for choice, found in row.configurations():
        assert count_lines(found.kernel) <= row.most_lines, label(choice)
