"""Every operation does the same in NumPy, on the simulated GPU and on a GPU; and every way to write it compiles.

On a machine with a GPU, `pytest -m gpu tests/test_conformance.py` runs every sample there.
"""

import importlib
import pkgutil
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import pykittens as pk
import pykittens.ops
from pykittens.architectures import ARCHITECTURES, having
from pykittens.gpu import compiler, driver, nvrtc
from pykittens.ops.samples import Sample
from pykittens.program import Op, Scope, Value
from pykittens.testing.conformance import Case, cases, conform, operations
from pykittens.types import RegisterTile, Type

for module in pkgutil.iter_modules(pykittens.ops.__path__):
    importlib.import_module(f"pykittens.ops.{module.name}")

# What has no elements to compare, or needs several blocks, several threads or a text of the user's: tested where those
# are.
WITHOUT_SAMPLES = {
    "Barrier",
    "NamedArrive",
    "NamedSync",
    "ClusterBarrier",
    "DependencyWait",
    "DependencyLaunch",
    "Arrive",
    "Wait",
    "Advance",
    "CommitCopies",
    "WaitCopies",
    "CommitBulk",
    "WaitBulk",
    "ProxyFence",
    "MemoryFence",
    "TmaPrefetch",
    "WgmmaWait",
    "Print",
    "Assert",
    "Inline",
    "Item",
    "Dimension",
    "ShareTerms",
    "SendTerms",
    "Combine",
    "ShareColumns",
    "CombineColumns",
    "StoreRemote",
    "LoadRemote",
}
OURS = [op for op in operations() if op.__module__.startswith("pykittens.")]
SAMPLED = [op for op in OURS if op.__name__ not in WITHOUT_SAMPLES]
BATCH = 24  # kernels compiled together


@pytest.mark.parametrize("op", OURS, ids=lambda op: op.__name__)
def test_every_operation_has_samples(op: type[Op]) -> None:
    assert any(True for _ in op.samples()) != (op.__name__ in WITHOUT_SAMPLES), (
        f"{op.__name__} needs samples(), or a reason to have none"
    )


@pytest.mark.parametrize("op", SAMPLED, ids=lambda op: op.__name__)
def test_simulator_and_numpy(op: type[Op]) -> None:
    wrong = []
    for case in cases(op):
        expected = case.expected()
        assert expected is not None, f"{case} has no formula"
        wrong += [f"{case}: {d}" for d in case.differences(case.simulate(), expected, bits=False)]
    assert not wrong, "\n".join(wrong)


def batches() -> Iterator[Any]:
    """All samples to compile, many at once; of each operation a few, and the others with `--whole`."""
    few: list[Case] = []
    rest: list[Case] = []
    for op in SAMPLED:
        for number, sample in enumerate(op.samples()):
            (few if number == 0 or number % 24 == 12 else rest).append(Case(op, sample, number))
    for found, marks, name in ((few, (), "few"), (rest, (pytest.mark.whole,), "rest")):
        for i in range(0, len(found), BATCH):
            yield pytest.param(i // BATCH, found[i : i + BATCH], marks=marks, id=f"{name}-{i}")


@pytest.mark.parametrize(("turn", "chosen"), [*batches()])
def test_compiles(turn: int, chosen: list[Case]) -> None:
    """Many kernels at once, each batch for one of the architectures (a newer one for what the older lack). On a GPU all
    are compiled."""
    for arch in ARCHITECTURES:
        batch = [c for c in chosen if _compiled_for(c.sample, turn) == arch]
        if batch:
            text = "\n".join(_in_namespace(c.text(arch), i) for i, c in enumerate(batch))
            try:
                _, log = nvrtc.compile_cubin(text, (f"--gpu-architecture={arch}", *compiler._FLAGS))
            except nvrtc.NvrtcError as error:
                pytest.fail(f"{arch}: {error.log}\n" + "\n".join(f"{i}: {c}" for i, c in enumerate(batch)))
            assert len(re.findall("Compiling entry function", log)) == len(batch)
            assert not re.findall(r"\(C75\d\d\)|\(C76\d\d\)", log), log  # serialised wgmma, ignored setmaxnreg


def _compiled_for(sample: Sample, turn: int) -> str:
    known = having(*[sample.needs] * bool(sample.needs))
    return known[turn % len(known)]


def _in_namespace(text: str, number: int) -> str:
    return (
        f"namespace case_{number} {{\n{text.replace('pk_kernel_conformance(', f'pk_kernel_conformance_{number}(')}\n}}"
    )


@pytest.mark.gpu
@pytest.mark.parametrize("op", SAMPLED, ids=lambda op: op.__name__)
def test_gpu_and_simulator(op: type[Op]) -> None:
    row = driver.architecture(0)
    known = row.features - {"clusters"}  # a sample is one block
    arch, found = row.name, list(cases(op, keep=lambda sample: not sample.needs or sample.needs in known))
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda case: case.compile(arch), found))
    wrong = [f"{case}: {d}" for case in found for d in case.differences(case.launch(), case.simulate(), bits=True)]
    assert not wrong, "\n".join(wrong)


# The harness itself -----------------------------------------------------------------------------------------


@dataclass(eq=False)
class Cube(Op):
    """a * a * a: an operation as a user adds it."""

    scope: Scope
    a: Value

    def types(self) -> tuple[Type, ...]:
        return (self.a.type,)

    def numpy(self, m: Any) -> Any:
        return m[self.a] ** 3

    def cuda(self, c: Any) -> None:
        c.map(self.result, lambda r: f"{c.element(self.a, r)} * {c.element(self.a, r)} * {c.element(self.a, r)}")

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for layout in ("row", "col"):
            yield Sample({"a": RegisterTile(pk.f32, 16, 32, layout)}, lambda a: a * a * a)  # type: ignore[arg-type]


class WrongCube(Cube):
    def numpy(self, m: Any) -> Any:
        return m[self.a] ** 2


class WrongText(Cube):
    def cuda(self, c: Any) -> None:
        c.map(self.result, lambda r: "no such thing")


def test_an_operation_of_the_users() -> None:
    conform(Cube)


def test_a_wrong_meaning_is_found() -> None:
    with pytest.raises(
        AssertionError,
        match=r"WrongCube\[0\]: a=rt<f32, 16x32>, simulated: result0: \d+ of 1024 elements differ, first at \(0, 0, "
        r"0\)",
    ):
        conform(WrongCube)


def test_a_wrong_text_is_found() -> None:
    with pytest.raises(compiler.CompileError, match="no"):
        conform(WrongText)


def test_what_counts_as_equal() -> None:
    case = next(cases(Cube))
    one = {"result0": np.array([[[1.0, np.nan, np.inf, 0.0]]], np.float32)}
    assert not case.differences(one, {"result0": np.array([[[1.0 + 1e-6, np.nan, np.inf, -0.0]]])}, bits=False)
    for other in (
        [1.1, np.nan, np.inf, 0.0],
        [1.0, 1.0, np.inf, 0.0],
        [1.0, np.nan, -np.inf, 0.0],
        [1.0, np.nan, 1e38, 0.0],
    ):
        assert case.differences(one, {"result0": np.array([[other]])}, bits=False)
