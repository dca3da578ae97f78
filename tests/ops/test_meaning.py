"""What kernels compute, as their authors see it: promotion, comparisons, reductions, contraction, refusals."""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import pykittens as pk
from pykittens import bf16, block, f16, f32, i32, i64, u32, warp
from pykittens.gpu import sass
from pykittens.types import DType, bool_

X = pk.gl(f32, 16, 32)


def scalar(operation: Callable[..., Any], *given: tuple[DType, Any]) -> tuple[DType, Any]:
    """The dtype and the value of an operation on traced scalars."""
    kinds: list[DType] = []

    @pk.kernel(warps=1)
    def compute(a: pk.gl(given[0][0], 1), b: pk.gl(given[-1][0], 1), y: pk.gl(i64, 1), z: pk.gl(f32, 1)) -> None:
        found = operation(*(x[0] for x in (a, b)[: len(given)]))
        kinds.append(found.dtype)
        warp.set(z if found.dtype is f32 else y, 0, pk.where(found, 1, 0) if found.dtype is bool_ else found)

    arrays = [np.array([x], d.numpy) for d, x in (given[0], given[-1])]
    y, z = np.zeros(1, np.int64), np.zeros(1, np.float32)
    compute.simulate(*arrays, y, z)
    return kinds[0], (z if kinds[0] is f32 else y)[0]


@pytest.mark.parametrize(
    ("operation", "given", "dtype", "value"),
    [
        (lambda a, b: a + b, ((i32, 2**31 - 1), (i32, 1)), i32, -(2**31)),
        (lambda a, b: a - b, ((u32, 3), (u32, 5)), u32, 2**32 - 2),
        (lambda a, b: a * b, ((i64, 2**62), (i64, 4)), i64, 0),
        (lambda a, b: a + b, ((i32, -1), (u32, 2**32 - 1)), i64, 2**32 - 2),
        (lambda a, b: a < b, ((i32, -1), (u32, 1)), bool_, 1),
        (lambda a: a < -1, ((u32, 5),), bool_, 0),
        (lambda a: a < 2**31, ((i32, -1),), bool_, 1),
        (lambda a: a + 2**31, ((i32, 1),), i64, 2**31 + 1),
        (lambda a: a ^ 0x9E3779B9, ((u32, 1),), u32, 0x9E3779B8),
        (lambda a: a * 0.1, ((i32, 9),), f32, np.float32(9) * np.float32(0.1)),
        (lambda a, b: a == b, ((i32, 2**24 + 1), (f32, 2.0**24)), bool_, 1),
        (lambda a: pk.where(a > 0, a, 0.5), ((i32, 2**24 + 1),), f32, 2.0**24),
        (lambda a: -a, ((i32, -(2**31)),), i32, -(2**31)),
        (lambda a: -a, ((u32, 1),), u32, 2**32 - 1),
        (lambda a: abs(a), ((u32, 5),), u32, 5),
        (lambda a: ~a, ((i32, 7),), i32, -8),
        (lambda a, b: a << b, ((i32, 1), (i32, 32)), i32, 0),
        (lambda a, b: a >> b, ((i32, -8), (i32, -1)), i32, -1),
        (lambda a, b: a // b, ((i32, -(2**31)), (i32, -1)), i32, -(2**31)),
        (lambda a, b: a % b, ((i32, -7), (i32, 3)), i32, 2),
        (lambda a: pk.cast(a, i32), ((f32, 3e9),), i32, 2**31 - 1),
        (lambda a: pk.cast(a, i64), ((f32, np.nan),), i64, -(2**63)),
        (lambda a: pk.cast(a, u32), ((i32, -1),), u32, 2**32 - 1),
        (lambda a, b: 1.0 / pk.maximum(a, b), ((f32, -0.0), (f32, 0.0)), f32, np.inf),
        (lambda a, b: pk.fma(a, b, -1.0), ((f32, 1 + 2.0**-12), (f32, 1 - 2.0**-12)), f32, -(2.0**-24)),
    ],
)
def test_scalars(operation: Callable[..., Any], given: Any, dtype: DType, value: Any) -> None:
    assert scalar(operation, *given) == (dtype, value)


@pytest.mark.parametrize("kind", ["maximum", "minimum"])
def test_nan_is_never_lost(kind: str) -> None:
    @pk.kernel(warps=1)
    def largest(x: X, y: X, z: pk.gl(f32, 16)) -> None:
        a = warp.load(x, (0, 0), rows=16)
        warp.store(y, pk.relu(getattr(pk, kind)(a, 1.0)), (0, 0))
        warp.store(z, a.row_max() if kind == "maximum" else a.row_min(), (0,))

    x = np.ones((16, 32), np.float32)
    x[3, 5] = np.nan
    y, z = np.zeros_like(x), np.zeros(16, np.float32)
    largest.simulate(x, y, z)
    assert np.array_equal(np.isnan(y), np.isnan(x)) and np.array_equal(np.isnan(z), np.isnan(x).any(1))


@pytest.mark.parametrize("dtype", [i32, u32, f32, bf16, f16], ids=str)
@pytest.mark.parametrize("kind", ["row_max", "row_sum"])
def test_rows_over_several_warps_keep_their_dtype(kind: str, dtype: DType) -> None:
    """One warp and four give the same; integers are not rounded to float32."""
    large = 2**24 + 1 if dtype.kind in "iu" else 1

    @pk.kernel(warps=4)
    def reduce(x: pk.gl(dtype, 1, 1024), y: pk.gl(dtype, 1)) -> None:
        found = getattr(block.load(x, (0, 0), rows=1, cols=1024, layout=pk.coalesced(128, 8)), kind)()
        assert found.dtype is dtype
        block.store(y, found, (0,))

    x, y = np.zeros((1, 1024), dtype.numpy), np.zeros(1, dtype.numpy)
    x[0, 77] = large
    reduce.simulate(x, y)
    assert y[0] == large


def test_nothing_is_contracted() -> None:
    """a * b + a rounds twice, pk.fma once, on both back ends."""

    @pk.kernel(warps=1)
    def both(a: X, b: X, twice: X, once: X) -> None:
        x, y = (warp.load(t, (0, 0), rows=16) for t in (a, b))
        warp.store(twice, x * y + x, (0, 0))
        warp.store(once, pk.fma(x, y, x), (0, 0))

    a, b = np.random.default_rng(0).standard_normal((2, 16, 32)).astype(np.float32)
    twice, once = np.zeros_like(a), np.zeros_like(a)
    both.simulate(a, b, twice, once)
    assert np.array_equal(twice, a * b + a) and (twice != once).any()
    exact = a.astype(np.float64) * b + a
    assert np.abs(once - exact).max() <= np.abs(twice - exact).max()
    (opcodes,) = sass.opcodes_of([both.compile(a, b, twice, once, arch="sm_80")])
    assert (opcodes["FFMA"], opcodes["FMUL"], opcodes["FADD"]) == (16, 16, 16)


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        (lambda x: x + 2**31, "2147483648 is no i32"),
        (lambda x: x + 0.5, "mixes a i32 tile with the float 0.5"),
        (lambda x: warp.full(i32, 16, 32, -(2**40)), "is no i32"),
        (lambda x: (x > 0) + (x > 1), "takes numbers, not bool"),
        (lambda x: ~pk.relu(x.to(f32)), "takes masks and integers"),
    ],
)
def test_refusals(operation: Callable[[Any], Any], words: str) -> None:
    @pk.kernel(warps=1)
    def kernel(x: pk.gl(i32, 16, 32)) -> None:
        operation(warp.load(x, (0, 0), rows=16))

    with pytest.raises(pk.TypeRuleError) as error:
        kernel.program(np.zeros((16, 32), np.int32))
    assert words in str(error.value) and "fix:" in str(error.value)


def test_where_of_integers_is_a_tile_of_integers() -> None:
    @pk.kernel(warps=1)
    def count(x: X, y: pk.gl(i32, 16)) -> None:
        ones = pk.where(warp.load(x, (0, 0), rows=16) > 0, 1, 0)
        assert ones.dtype is i32
        warp.store(y, ones.row_sum(), (0,))

    x, y = np.random.default_rng(0).standard_normal((16, 32)).astype(np.float32), np.zeros(16, np.int32)
    count.simulate(x, y)
    assert np.array_equal(y, (x > 0).sum(1))


def test_what_is_moved_keeps_the_bits_of_a_nan() -> None:
    @pk.kernel(warps=1)
    def through(x: pk.gl(bf16, 16, 32), y: pk.gl(bf16, 16, 32)) -> None:
        tile = warp.load(x, (0, 0), rows=16)
        warp.store(y, pk.where(tile == tile, 0.0, tile), (0, 0))

    x = np.full((16, 32), 0x7FA5, np.uint16).view(ml_dtypes.bfloat16)
    y = np.zeros_like(x)
    through.simulate(x, y)
    assert (y.view(np.uint16) == 0x7FA5).all()


@pytest.mark.parametrize(
    ("choose", "dtype", "expected"),
    [
        (lambda m, i, x: pk.where(m, i, x), f32, lambda m, i, x: np.where(m, i, x)),
        (lambda m, i, x: pk.where(m, x, i), f32, lambda m, i, x: np.where(m, x, i)),
        (lambda m, i, x: pk.where(m, i, 0.5), f32, lambda m, i, x: np.where(m, i, 0.5)),
        (lambda m, i, x: pk.where(m, x.to(bf16), x.to(f16)), f32, lambda m, i, x: x),
        (lambda m, i, x: pk.where(m, x.to(bf16), 2), bf16, lambda m, i, x: np.where(m, x, 2)),
        (lambda m, i, x: pk.where(m, m, 3), i32, lambda m, i, x: np.where(m, m, 3)),
        (lambda m, i, x: pk.where(m, m, i), i32, lambda m, i, x: np.where(m, m, i)),
        (lambda m, i, x: pk.where(m, ~m, m), bool_, lambda m, i, x: np.where(m, ~m, m)),
        (lambda m, i, x: pk.where(x.row_max().max() > 0.0, i, x), f32, lambda m, i, x: i),
    ],
)
def test_where_promotes_as_numpy(choose: Callable[..., Any], dtype: DType, expected: Callable[..., Any]) -> None:
    """But for float64, which is float32: a choice of integers and floats keeps both."""
    found: list[DType] = []

    @pk.kernel(warps=1)
    def choice(x: X, i: pk.gl(i32, 16, 32), y: X) -> None:
        a, b = warp.load(x, (0, 0), rows=16), warp.load(i, (0, 0), rows=16)
        made = choose(a > 0, b, a)
        found.append(made.dtype)
        warp.store(y, made.to(f32), (0, 0))

    rng = np.random.default_rng(0)
    x = np.round(rng.standard_normal((16, 32)) * 4).astype(np.float32)
    i = rng.integers(-500, 500, (16, 32)).astype(np.int32)
    y = np.empty_like(x)
    choice.simulate(x, i, y)
    assert found[0] is dtype and np.array_equal(y, expected(x > 0, i, x))


def test_differences_of_indices_are_converted_before_they_are_taken() -> None:
    """Positions within a score function are small: one conversion of a row and a thread's columns, exact ones."""

    @pk.kernel(warps=4)
    def distances(y: pk.gl(f32, 64, 32), first: pk.i32) -> None:
        tile: Any = pk.warpgroup.zeros(f32, 64, 32)
        row, col = pk.row_index(tile) + first, pk.col_index(tile) + 2 * first
        row.most = col.most = 2**20
        pk.warpgroup.store(y, (row - col).to(f32) + (col + row).to(f32), (0, 0))

    y = np.zeros((64, 32), np.float32)
    distances(y, 400_001)
    rows, cols = np.arange(64)[:, None] + 400_001, np.arange(32) + 800_002
    assert np.array_equal(y, (rows - cols) + (cols + rows))
    text = distances.cuda(pk.spec(f32, (64, 32)), 1, arch="sm_90a")
    assert text.count("12582912.0f") == 4
