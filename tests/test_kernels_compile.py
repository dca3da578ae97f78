"""Every shipped kernel in every configuration and for every architecture: no spills, instructions it is written for.

With `--whole` each configuration for each of its architectures; else each configuration for one of them, and each
kernel in one configuration for each.
"""

import pytest

from pykittens.call.kernel import Kernel
from pykittens.gpu import cache, sass
from pykittens.gpu.compiler import Cubin
from pykittens.kernels.catalog import Instance, Shipped, label
from pykittens.kernels.registry import KERNELS
from pykittens.kernels.source_length import count_lines

Case = tuple[Shipped, str, Instance]  # a kernel, what its configuration is called, the kernel in it
TOGETHER = 10  # cases of a test: they are compiled alone, and disassembled together, because nvdisasm is slow to start


def of_one_kernel() -> list[list[Shipped]]:
    """The rows of the registry, those together that run one kernel."""
    found: dict[Kernel, list[Shipped]] = {}
    for row in KERNELS.values():
        found.setdefault(next(iter(row.configurations()))[1].kernel, []).append(row)
    return [*found.values()]


def choices(rows: list[Shipped], whole: bool) -> dict[str, list[Case]]:
    """The configurations of a kernel to compile for each architecture: all of them (`whole`), or one for each
    architecture, in turn, and what then is left for the first that has it.

    Architectures with a suffix take part where a configuration has no other: what the suffix adds is for such kernels.
    """
    cases = [
        ((row, label(choice), instance), row.targets(instance))
        for row in rows
        for choice, instance in row.configurations()
    ]
    found: dict[str, list[Case]] = {arch: [] for row in rows for arch in row.architectures}
    times = [0] * len(cases)
    for arch, chosen in found.items():
        can = [i for i, (_, targets) in enumerate(cases) if arch in targets]
        if not whole:
            can = sorted(can, key=times.__getitem__)[:1] if not arch.endswith("a") else []
        for i in can:
            times[i] += 1
            chosen.append(cases[i][0])
    for (case, targets), time in zip(cases, times, strict=True):
        if not time:
            found[targets[0]].append(case)
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cases" in metafunc.fixturenames:
        by_arch: dict[str, list[Case]] = {}
        for rows in of_one_kernel():
            for arch, found in choices(rows, metafunc.config.getoption("whole")).items():
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


def test_every_configuration_and_every_architecture_is_compiled() -> None:
    for rows in of_one_kernel():
        thin, whole = choices(rows, False), choices(rows, True)
        for found in (thin, whole):
            assert all(some for arch, some in found.items() if found is whole or not arch.endswith("a")), found
            named = {(row.name, name) for some in found.values() for row, name, _ in some}
            assert named == {(row.name, label(choice)) for row in rows for choice, _ in row.configurations()}


@pytest.mark.parametrize("row", KERNELS.values(), ids=lambda row: row.name)
def test_short_enough(row: Shipped) -> None:
    for choice, found in row.configurations():
        assert count_lines(found.kernel) <= row.most_lines, label(choice)
