"""Every operation that makes numbers says what it promises about them."""

import importlib
import pkgutil

import numpy as np
import pytest

import pykittens.ops
from pykittens.numerics import EXACT, ROUNDED, approximate
from pykittens.ops.unary import UNARY
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


def ulp(x: np.ndarray) -> np.ndarray:
    return np.exp2(np.floor(np.log2(np.abs(x))) - 23)


def exponential(x: np.ndarray, constant: float) -> tuple[np.ndarray, np.ndarray]:
    """exp2 of a rounded product of x and the constant: its value, and its largest error where ex2 is within 2 ulp."""
    product, single = np.abs(x * constant), float(np.float32(constant))
    value = np.exp2(x * constant)
    return value, 2 * ulp(value) + value * np.log(2) * (ulp(product) / 2 + np.abs(x) * abs(single - constant))


@pytest.mark.parametrize("name", ["exp", "sigmoid", "tanh"])
def test_bounds_follow_from_those_of_the_instructions(name: str) -> None:
    """ex2.approx is within 2 ulp, rcp.approx within 1, and additions round: what the C text of these adds up to."""
    x = np.linspace(-87.0, 87.0, 400_001)
    x = x[np.abs(x) > (0.25 if name == "tanh" else 1e-9)]  # nearer to 0, tanh is a series
    if name == "exp":
        true, error = exponential(x, np.log2(np.e))
    else:
        value, wrong = exponential(x if name == "tanh" else -x, 2 * np.log2(np.e) if name == "tanh" else np.log2(np.e))
        total = 1 + value
        true = 1 / total
        error = true * (wrong + ulp(total) / 2) / total + ulp(true)
        if name == "tanh":
            true, error = np.tanh(x), 2 * error + ulp(np.tanh(x)) / 2
    share = error / UNARY[name].numerics.allowed(true, x)
    assert 0.9 < share.max() <= 1, (share.max(), x[share.argmax()])
