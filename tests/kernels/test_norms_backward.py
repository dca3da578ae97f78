"""Gradients of LayerNorm and RMSNorm on the simulated GPU, against float64."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import pykittens as pk
from pykittens.errors import ArgumentError
from pykittens.kernels import column_sums, norms, norms_backward, rows
from pykittens.kernels.norms_backward import layernorm_backward, plan_backward, reference, rmsnorm_backward

BF16 = np.dtype(ml_dtypes.bfloat16)
EPS = {"bfloat16": 2**-8, "float16": 2**-11, "float32": 2**-24}
NORMS = {"layernorm": (layernorm_backward, True), "rmsnorm": (rmsnorm_backward, False)}


@pytest.fixture(autouse=True)
def wide_rows_are_summed_in_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second pass, a kernel of its own, adds up rows of up to 1,025 columns here. For wider ones, where it has a
    block every 32 columns and would take most of the time, NumPy does."""

    def add_up(parts: Any, more: Any, o: Any, other: Any) -> None:
        if max(x.shape[-1] for x in (o, other) if x is not None) <= 1025:
            column_sums.add_up(parts, more, o, other)
        else:
            for x, y in ((parts, o), (more, other)):
                if y is not None:
                    y[:] = x.sum(0, dtype=np.float32)

    monkeypatch.setattr(norms_backward, "add_up", add_up)


def random(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def close(x: np.ndarray, expected: np.ndarray) -> None:
    """Within the rounding of the output and what float32 loses on the way."""
    assert x.shape == expected.shape
    allowed = EPS[x.dtype.name] * np.abs(expected) + 4e-6 * np.abs(expected).max() + 1e-9
    allowed += 2.0**-25 if x.dtype == np.float16 else 0  # subnormal below 6e-5
    assert (np.abs(x.astype(np.float64) - expected) <= allowed).all()


@pytest.mark.parametrize("centred", [True, False])
def test_formula_against_differences(centred: bool) -> None:
    """The reference is the derivative of the forward's reference, by differences in float64."""
    x, weight, dy, ds = random((3, 7), np.float64), random((7,), np.float64, 1), *random((2, 3, 7), np.float64, 2)
    settings: dict[str, Any] = {"eps": 1e-3, "p": 0.25, "seed": 5, "centred": centred}
    residual = random((3, 7), np.float64, 3)

    def loss(x: Any = x, residual: Any = residual, weight: Any = weight, bias: Any = 0.0 * weight) -> float:
        y, s = norms.reference(x, weight, bias, residual=residual, **settings)
        return float((dy * y).sum() + (ds * s).sum())

    s = norms.reference(x, residual=residual, **settings)[1]
    found = reference(dy, s, weight, ds=ds, **settings)
    for name, at, gradient in zip(
        ("x", "residual", "weight", "bias"), (x, residual, weight, 0 * weight), found, strict=True
    ):
        for i in np.ndindex(at.shape):
            step = np.zeros(at.shape)
            step[i] = 1e-6
            slope = (loss(**{name: at + step}) - loss(**{name: at - step})) / 2e-6
            assert abs(slope - gradient[i]) < 1e-7, name


@pytest.mark.thin
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("n", (3, 100, 256, 1025, 4104, pytest.param(20000, marks=pytest.mark.whole)))
@pytest.mark.parametrize("dtype", [BF16, np.float32], ids=str)
def test_every_width(n: int, dtype: Any, norm: str) -> None:
    function, centred = NORMS[norm]
    dy, s, w = random((9, n), dtype), random((9, n), dtype, 1), random((n,), dtype, 2)
    found = function(dy, s, w, bias="f32", eps=1e-3)
    expected = reference(dy, s, w, eps=1e-3, centred=centred)
    assert found[0].dtype == dtype and found[2].dtype == dtype and found[3].dtype == np.float32
    assert found[1] is None
    for x, e in zip((found[0], *found[2:]), (expected[0], *expected[2:]), strict=True):
        close(x, e)


@pytest.mark.parametrize("n", [1, 2])
def test_the_shortest_rows(n: int) -> None:
    """Gradients cancel but for eps, so that float32 is seen: an error in parts of what cancels."""
    dy, s, w = random((9, n), np.float16), random((9, n), np.float16, 1), random((n,), np.float16, 2)
    for function, centred in NORMS.values():
        found, expected = function(dy, s, w, eps=0.5), reference(dy, s, w, eps=0.5, centred=centred)
        close(found[0], expected[0]), close(found[2], expected[2])


@pytest.mark.thin
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("n", [5, 4104])
@pytest.mark.parametrize("p", [0.0, 0.25])
def test_residual_and_dropout(n: int, p: float, norm: str) -> None:
    function, centred = NORMS[norm]
    dy, s, ds = random((2, 5, n), BF16), random((2, 5, n), np.float32, 1), random((2, 5, n), np.float32, 2)
    w, seed = random((n,), np.float32, 3), (7 << 40) + 3
    found = function(dy, s, w, ds=ds, p=p, seed=seed, eps=1e-3, bias="bf16", residual="f32")
    expected = reference(dy, s, w, ds=ds, p=p, seed=seed, eps=1e-3, centred=centred)
    assert [x.dtype for x in found] == [BF16, np.float32, np.float32, BF16]
    for x, e in zip(found, expected, strict=True):
        close(x, e)


def test_one_array_for_two_equal_gradients() -> None:
    """Without dropout x and the residual have the same gradient: where they have one dtype, it is written once."""
    dy, s = random((4, 64), BF16), random((4, 64), BF16, 1)
    dx, dresidual, dweight, dbias = rmsnorm_backward(dy, s, residual="bf16")
    assert dresidual is dx and dweight is None and dbias is None
    close(dx, reference(dy, s, eps=1e-6, centred=False)[0])


def test_mask_is_that_of_the_forward() -> None:
    x, dy = random((20, 300), np.float32), random((20, 300), np.float32, 1)
    _, s = pk.layernorm(x, p=0.4, seed=11)
    dx = layernorm_backward(dy, s, p=0.4, seed=11)[0]
    assert np.array_equal(dx == 0, s == 0)


def test_strided_rows_and_odd_alignment() -> None:
    whole, grads = random((6, 2 * 257 + 1), BF16), random((6, 600), BF16, 1)
    for part in (whole[:, :256], whole[:, 1:258], whole[::2, 3:300], whole[0]):
        dy = grads[: len(part), : part.shape[-1]] if part.ndim > 1 else grads[0, : part.shape[-1]]
        w = random(part.shape[-1:], BF16, 2)
        dx, _, dweight, _ = rmsnorm_backward(dy, part, w)
        expected = reference(dy, part, w, eps=1e-6, centred=False)
        close(dx, expected[0]), close(dweight, expected[2])
    dy = np.broadcast_to(random((1, 128), BF16), (5, 128))  # the gradient of a sum: rows that are one in memory
    close(layernorm_backward(dy, whole[:5, :128])[0], reference(dy, whole[:5, :128], eps=1e-5)[0])


@pytest.mark.thin
@pytest.mark.parametrize("m", [1, 3, 9, 70])
@pytest.mark.parametrize("n", [64, 2048])
def test_rows_that_are_not_there_add_nothing(m: int, n: int) -> None:
    """Past the last row there are zeros; with eps = 0 their statistics would be infinite."""
    dy, s, w = random((m, n), np.float32), random((m, n), np.float32, 1), random((n,), np.float32, 2)
    for function, centred in NORMS.values():
        _, _, dweight, dbias = function(dy, s, w, bias="f32", eps=0.0)
        expected = reference(dy, s, w, eps=0.0, centred=centred)
        close(dweight, expected[2]), close(dbias, expected[3])


@pytest.mark.parametrize("n", [100, 5000])
def test_nan_and_infinity(n: int) -> None:
    dy, s, w = random((4, n), np.float32), random((4, n), np.float32, 1), random((n,), np.float32, 2)
    s[2, n // 2] = np.inf
    dx, _, dweight, dbias = layernorm_backward(dy, s, w, bias="f32")
    assert np.isnan(dx[2]).all() and np.isfinite(dx[[0, 1, 3]]).all() and np.isnan(dweight).all()
    close(np.delete(dx, 2, 0), np.delete(reference(dy, s, w, eps=1e-5)[0], 2, 0))
    assert np.isfinite(dbias).all()


@pytest.mark.thin
@pytest.mark.parametrize("settings", [{"held": 32}, {"most": 4}, {"clusters": False}, {"warps": 1}], ids=str)
@pytest.mark.parametrize("n", [256, 6000])
def test_every_division_gives_the_same(n: int, settings: dict[str, Any]) -> None:
    dy, s, w = random((5, n), BF16), random((5, n), BF16, 1), random((n,), BF16, 2)
    align = 8 if n > 256 else 16  # no streams
    config = plan_backward(n, 2, align, inputs=4, weights=2, sums=2, **{"processors": 2, **settings})
    assert config.stays and not config.stages
    expected = reference(dy, s, w, eps=1e-5)
    found = layernorm_backward(dy, s, w, bias="f32", config=config)
    for x, e in zip((found[0], *found[2:]), (expected[0], *expected[2:]), strict=True):
        close(x, e)


@pytest.mark.thin
@pytest.mark.parametrize(
    "settings", [{"cluster": 1}, {"cluster": 2, "stages": 1}, {"cluster": 4, "teams": 3}, {}], ids=str
)
@pytest.mark.parametrize("n", [2048, 5000])
@pytest.mark.parametrize("dtype", [BF16, np.float32], ids=str)
def test_rows_that_stream(n: int, dtype: Any, settings: dict[str, Any]) -> None:
    dy, s = random((11, n + 8), dtype)[:, :n], random((11, n + 8), np.float32, 3)[:, :n]
    w, ds, size = random((n,), dtype, 1), random((11, n), np.float32, 2), dy.itemsize
    config = rows.stream(n, size, size + 8, size, processors=3, team=4, **settings)
    found = layernorm_backward(dy, s, w, ds=ds, p=0.25, seed=3, bias="f32", residual="f32", config=config)
    for x, e in zip(found, reference(dy, s, w, ds=ds, p=0.25, seed=3, eps=1e-5), strict=True):
        close(x, e)


def test_same_bits_every_time() -> None:
    dy, s, w = random((300, 96), BF16), random((300, 96), BF16, 1), random((96,), np.float32, 2)
    first, second = (layernorm_backward(dy, s, w, bias="f32") for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first[2:], second[2:], strict=True))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"s": np.zeros((2, 70000), np.float32), "dy": np.zeros((2, 70000), np.float32)}, "65536"),
        ({"dy": np.zeros((2, 9), np.float32)}, "dy has shape"),
        ({"dy": np.zeros((2, 8), np.int32)}, "dy is i32"),
        ({"ds": np.zeros((3, 8), np.float32)}, "ds has shape"),
        ({"ds": np.zeros((8, 2), np.float32).T}, "contiguous"),
        ({"weight": np.zeros(7, np.float32)}, r"weight has shape \(7,\)"),
        ({"p": 1.0}, "p = 1.0"),
        ({"eps": -1.0}, "eps"),
    ],
)
@pytest.mark.parametrize("norm", NORMS)
def test_bad_arguments(norm: str, arguments: dict[str, Any], words: str) -> None:
    zeros = np.zeros((2, 8), np.float32)
    with pytest.raises(ArgumentError, match=words):
        NORMS[norm][0](**{"dy": zeros, "s": zeros, **arguments})
