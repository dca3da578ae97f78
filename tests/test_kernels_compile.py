"""Every shipped kernel, compiled: no spills, no warnings, the instructions it is written for.

With `--whole` each configuration is compiled for each architecture that it runs on, but for those with a suffix where
it needs nothing that the suffix adds: it would be the same C. Else each row of the registry for one architecture: the
first of a kernel's rows in its last configuration (of most options that is the largest value, or the one that adds
something), its others, which vary that kernel, in their first; and every kernel for one of each family of
architectures: those that have the same features, for which it is the same C. Which of a family goes round from kernel
to kernel.
"""

import inspect
import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest

from pykittens.architectures import ARCHITECTURES, SIMULATED, having
from pykittens.call.arguments import spec
from pykittens.gpu import cache, sass
from pykittens.gpu.compiler import Cubin
from pykittens.gpu.writer import Writer
from pykittens.kernels.catalog import Instance, Shipped, label
from pykittens.kernels.registry import KERNELS
from pykittens.kernels.source_length import count_lines
from tests import thin

Case = tuple[Shipped, str, Instance]  # a kernel, what its configuration is called, the kernel in it
EIGHT_BITS = {"fp8 conversions", "fp8 mma"}
TOGETHER = 16  # cases of a test: they are compiled alone, and disassembled together, because nvdisasm is slow to start


def families(rows: list[Shipped]) -> list[list[str]]:
    """The architectures that have all that a kernel needs, those together that have the same features but for 8-bit
    floats, which a kernel needs or does without. Those with a suffix take part where there are no others: what it adds
    is for such kernels."""
    known = [ARCHITECTURES[name] for name in dict.fromkeys(name for row in rows for name in row.architectures)]
    plain = [arch for arch in known if not arch.name.endswith("a")] or known
    grouped: dict[frozenset[str], list[str]] = {}
    for arch in plain:
        grouped.setdefault(arch.features - EIGHT_BITS, []).append(arch.name)
    return [*grouped.values()]


def of_ci() -> dict[str, list[Case]]:
    """What CI compiles, by the architecture that it is for; where a configuration has no room on that, it takes
    another."""
    found: dict[str, list[Case]] = {}
    for turn, rows in enumerate(thin.of_one_kernel()):
        taken = [(row, *[*row.configurations()][0 if i else -1]) for i, row in enumerate(rows)]
        cases = [(row, label(choice), instance) for row, choice, instance in taken]
        wanted = [family[turn % len(family)] for family in families(rows)]
        for case, arch in zip(
            itertools.islice(itertools.cycle(cases), max(len(cases), len(wanted))),
            itertools.cycle(wanted),
            strict=False,
        ):
            found.setdefault(arch, []).append(case)
    return found


def everything() -> dict[str, list[Case]]:
    """Every configuration, by the architectures that have what its kernel needs."""
    found: dict[str, list[Case]] = {}
    for row in KERNELS.values():
        for arch in itertools.chain.from_iterable(families([row])):
            found.setdefault(arch, []).extend((row, label(choice), made) for choice, made in row.configurations())
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cases" in metafunc.fixturenames:
        by_arch = everything() if metafunc.config.getoption("whole") else of_ci()
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


def test_compiles_well(
    arch: str, cases: list[Case], request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> None:
    whole = request.config.getoption("whole")
    by_arch: dict[str, list[Case]] = {}
    for case in cases:
        row, _, instance = case
        targets = row.targets(instance)
        assert targets, f"{row.name}: {case[1]} runs nowhere"
        if arch in targets:
            by_arch.setdefault(arch, []).append(case)
        elif not whole:  # its tiles have no room there; with --whole it is compiled for all others anyway
            by_arch.setdefault(targets[0], []).append(case)
    wrong = {}
    for target, found in by_arch.items():
        cubins = [cache.load_or_compile(instance.cuda(target), target) for _, _, instance in found]
        for (row, name, instance), cubin, present in zip(found, cubins, sass.opcodes_of(cubins), strict=True):
            missing = [one_of for one_of in row.opcodes if not any(present[opcode] for opcode in one_of.split("|"))]
            bad = faults(cubin, instance, row.spilled)
            if missing:
                bad.append(f"instructions it was written for are missing: {missing}")
            if bad:
                wrong[f"{row.name}: {name}, {target}"] = bad
    record_property("kernels", sum(map(len, by_arch.values())))
    assert not wrong, wrong


def test_a_family_has_one_text() -> None:
    """Also of kernels with 8-bit floats, which may lack the features that `families` leaves out."""
    for row in KERNELS.values():
        for choice, found in row.configurations():
            given = [x.dtype for x in found.operands.values() if isinstance(x, spec)]
            if any(dtype.size == 1 and dtype.kind == "f" for dtype in given):
                runs_on = row.targets(found)
                for family in families([row]):
                    texts = {found.cuda(arch) for arch in family if arch in runs_on}
                    assert len(texts) <= 1, (row.name, choice, family)


def test_what_ci_compiles() -> None:
    """Every row of the registry; every kernel for every family of architectures; every architecture."""
    found = of_ci()
    assert {*found} == {name for name in ARCHITECTURES if not name.endswith("a")} | {"sm_90a"}
    chosen = {(row.name, name): arch for arch, cases in found.items() for row, name, _ in cases}
    for rows in thin.of_one_kernel():
        on = {arch for arch, cases in found.items() for row, _, _ in cases if row in rows}
        assert all(on & {*family} for family in families(rows)), rows[0].name
        assert {row.name for row in rows} <= {name for name, _ in chosen}
    whole = {(row.name, name, arch) for arch, cases in everything().items() for row, name, _ in cases}
    assert {(row, name) for row, name, _ in whole} == {
        (r.name, label(c)) for r in KERNELS.values() for c, _ in r.configurations()
    }
    assert {arch for _, _, arch in whole} == {*found}


@pytest.mark.parametrize("row", KERNELS.values(), ids=lambda row: row.name)
def test_short_enough(row: Shipped) -> None:
    for choice, found in row.configurations():
        assert count_lines(found.kernel) <= row.most_lines, label(choice)


@pytest.mark.parametrize("name", [name for name, row in KERNELS.items() if not row.needs])
def test_a_kernel_that_needs_nothing_runs_on_ampere(name: str) -> None:
    """Those that may overlap with the kernel ahead, or let the next begin, where GPUs cannot: without."""
    row = KERNELS[name]
    instance = row.make(**row.default())
    assert instance is not None
    if "dependent" in inspect.signature(instance.kernel.function).parameters:
        instance = replace(instance, statics={**instance.statics, "dependent": False})
    used = Writer(instance.program(), SIMULATED)
    used.text()
    assert "sm_80" in having(*used.required)
