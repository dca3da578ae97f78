"""The meaning of conversions and arithmetic, against tables, exact integers and fractions."""

from collections.abc import Iterator

import ml_dtypes  # noqa: F401  (NumPy knows the narrow dtypes by it)
import numpy as np
import pytest

from pykittens.ops import arithmetic, conversion
from pykittens.ops.scalar_arithmetic import BITS
from pykittens.ops.unary import apply
from pykittens.testing import number_reference as reference
from pykittens.testing.hard_numbers import numbers
from pykittens.types import DType, bf16, bool_, e4m3, e5m2, f16, f32, i8, i32, i64, u8, u32

HELD = (f32, bf16, f16, i32, u32, i64, bool_)
MEMORY = (*HELD, e4m3, e5m2, i8, u8)


@pytest.fixture(autouse=True)
def as_the_simulator_runs_them() -> Iterator[None]:
    with np.errstate(all="ignore"):
        yield


def same(got: np.ndarray, want: np.ndarray) -> bool:
    return got.dtype == want.dtype and np.array_equal(reference.bits_of(got), reference.bits_of(want))


@pytest.mark.parametrize("target", MEMORY, ids=str)
@pytest.mark.parametrize("source", MEMORY, ids=str)
def test_conversions(source: DType, target: DType) -> None:
    x = numbers(source, 3000)
    got, want = conversion.convert(x, target), reference.convert(x, target)
    wrong = reference.bits_of(got) != reference.bits_of(want)
    assert same(got, want), (x[wrong][:5], got[wrong][:5], want[wrong][:5])


@pytest.mark.parametrize("dtype", (f32, i32, u32, i64), ids=str)
@pytest.mark.parametrize("kind", ("add", "sub", "mul", "max", "min", *BITS, *arithmetic.COMPARISONS, "floordiv", "mod"))
def test_two_numbers(kind: str, dtype: DType) -> None:
    if dtype.kind == "f" and kind in (*BITS, "floordiv", "mod"):
        return
    x = numbers(dtype, 60)
    a, b = np.repeat(x, len(x)), np.tile(x, len(x))
    if kind in ("floordiv", "mod"):
        a, b = a[b != 0], b[b != 0]
    got, want = arithmetic.calculate(kind, a, b), reference.calculate(kind, a, b, dtype)
    wrong = reference.bits_of(got) != reference.bits_of(want)
    assert same(got, want), (a[wrong][:5], b[wrong][:5], got[wrong][:5], want[wrong][:5])


@pytest.mark.thin(2)
@pytest.mark.parametrize("dtype", (f32, bf16, f16), ids=str)
def test_fused_multiply_add_rounds_once(dtype: DType) -> None:
    x = numbers(dtype, 11)
    a, b, c = (v.ravel() for v in np.meshgrid(x, x, x))
    got, want = arithmetic.fma(a, b, c, dtype), reference.fma(a, b, c, dtype)
    wrong = reference.bits_of(got) != reference.bits_of(want)
    assert same(got, want), (a[wrong][:5], b[wrong][:5], c[wrong][:5], got[wrong][:5], want[wrong][:5])


@pytest.mark.parametrize("kind", ("neg", "abs", "relu", "sqrt"))
def test_one_number(kind: str) -> None:
    x = numbers(f32, 3000)
    assert same(apply(kind, x), reference.unary(kind, x, f32))


@pytest.mark.parametrize("kind", ("exp2", "exp", "rcp", "sigmoid", "sin"))
def test_what_is_flushed(kind: str) -> None:
    """Subnormal operands count as zeros of their sign, and so do subnormal results."""
    tiny = np.array([1e-40, -1e-40], np.float32)
    with np.errstate(divide="ignore"):
        assert same(apply(kind, tiny), apply(kind, np.array([0.0, -0.0], np.float32)))
    x = numbers(f32, 3000)
    out = apply(kind, x)
    assert not ((out != 0) & (np.abs(out) < 2.0**-126)).any()
