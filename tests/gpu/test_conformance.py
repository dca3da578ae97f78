"""The conformance tests' way to a GPU, as far as it goes without one: every kind of operand reaches the launch."""

import pytest

from pykittens.ops.copies import CopyOut
from pykittens.ops.masks import Select
from pykittens.ops.scalar_arithmetic import ScalarBinary
from pykittens.ops.tma import TmaLoad
from pykittens.program import Op
from pykittens.testing.conformance import cases
from tests.gpu.fake_driver import FakeDriver


@pytest.mark.parametrize("op", [CopyOut, Select, ScalarBinary, TmaLoad])
def test_launches(fake: FakeDriver, op: type[Op]) -> None:
    found = [case for case in cases(op) if case.sample.warps == 1][:4]
    for number, case in enumerate(found):
        out = case.launch()
        assert set(out) == set(case.outputs + case.written)
        assert len(fake.launches) == number + 1
