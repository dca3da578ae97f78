"""Every operation that makes numbers says what it promises about them."""

import importlib
import pkgutil

import numpy as np
import pytest

import pykittens.ops
from pykittens.numerics import EXACT, ROUNDED, approximate
from pykittens.program import Op, Value
from pykittens.testing.conformance import cases, operations

for module in pkgutil.iter_modules(pykittens.ops.__path__):
    importlib.import_module(f"pykittens.ops.{module.name}")

OURS = [op for op in operations() if op.__module__.startswith("pykittens.ops.")]


@pytest.mark.parametrize("op", OURS, ids=lambda op: op.__name__)
def test_operations_with_samples_promise_something(op: type[Op]) -> None:
    """What has a formula to be compared with makes numbers, or moves them."""
    for case in cases(op):
        if not case.outputs + case.written:
            continue
        probe = case.probe()
        probe.results = tuple(Value(type) for type in probe.types())
        assert probe.numerics is not None and str(probe.numerics), f"{case} needs `numerics`"


def test_promises_read_well() -> None:
    assert str(EXACT) == "exact"
    assert str(EXACT.with_special("wraps")) == "exact; wraps"
    assert str(ROUNDED).startswith("correctly rounded; subnormals are kept; ")
    assert str(approximate(2)) == "approximate: within 2 ulp"
    assert (
        str(approximate(3, per=0.5, flushes=True))
        == "approximate: within (3 + 0.5 |x|) ulp; subnormal operands and results are zero"
    )
    assert str(approximate(2, absolute=2.0**-22)) == "approximate: within 2 ulp and 2.4e-07"


def test_bounds_are_in_units_of_the_last_place() -> None:
    true, x = np.array([1.0, 1.99, 2.0, 3e-39, 0.0]), np.array([0.0, 10.0, 0.0, 0.0, 0.0])
    one = 2.0**-23
    assert approximate(2).allowed(true).tolist() == [2 * one, 2 * one, 4 * one, 2.0**-148, 2.0**-148]
    assert approximate(2, per=0.5).allowed(true, x)[1] == 7 * one
    assert approximate(0, absolute=1e-3, flushes=True).allowed(true)[0] == 1e-3 + 2.0**-126
