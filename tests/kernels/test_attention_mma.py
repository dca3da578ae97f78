"""The two attention kernels for mma.sync on the simulated GPU, against float64 and beside torch's own attention."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from pykittens.errors import ArgumentError
from pykittens.kernels import attention_ada, attention_ampere
from pykittens.kernels.reference import attention, row_error

BF16 = np.dtype(ml_dtypes.bfloat16)
KERNELS = {"ada": attention_ada.attend, "ampere": attention_ampere.attend}
each_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
each_dim = pytest.mark.parametrize("d", (64, 128))
full_or_causal = pytest.mark.parametrize("causal", (False, True), ids=("full", "causal"))


def normal(*shapes: tuple[int, ...], dtype: Any = BF16) -> list[np.ndarray]:
    rng = np.random.default_rng(sum(map(sum, shapes)))
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def run(
    kernel: Any, q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool = False, scale: float | None = None
) -> np.ndarray:
    out = np.full(q.shape, np.nan, q.dtype)
    report = kernel.simulate(q, k, v, out, q.shape[-1] ** -0.5 if scale is None else scale, causal=causal)
    assert report.clean
    return out


def torch_error(q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool, expected: np.ndarray) -> float:
    """The error of torch's attention on the same bf16 inputs; 1e-2 / 1.5 where torch is absent."""
    try:
        import torch
    except ImportError:
        return 1e-2 / 1.5
    q, k, v = (torch.from_numpy(x.view(np.int16)).view(torch.bfloat16) for x in (q, k, v))  # type: ignore[assignment]
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)  # type: ignore[arg-type]
    return row_error(out.float().numpy(), expected)


@pytest.mark.thin
@each_kernel
@each_dim
@full_or_causal
@pytest.mark.parametrize("n", (1, 17, 256, 1000))
def test_no_worse_than_torch(kernel: Any, n: int, d: int, causal: bool) -> None:
    q, k, v = normal(*[(1, 1, n, d)] * 3)
    expected = attention(q, k, v, scale=d**-0.5, causal=causal)
    assert row_error(run(kernel, q, k, v, causal), expected) <= 1.5 * torch_error(q, k, v, causal, expected)


@pytest.mark.thin
@each_kernel
@full_or_causal
@pytest.mark.parametrize(("n", "m"), ((1, 300), (130, 7), (65, 200), (300, 129)))
def test_other_numbers_of_keys(kernel: Any, n: int, m: int, causal: bool) -> None:
    q, k, v = normal((2, 1, n, 64), (2, 1, m, 64), (2, 1, m, 64))
    assert row_error(run(kernel, q, k, v, causal), attention(q, k, v, scale=64**-0.5, causal=causal)) < 1e-2


@each_kernel
@full_or_causal
def test_f16(kernel: Any, causal: bool) -> None:
    q, k, v = normal(*[(1, 1, 150, 128)] * 3, dtype=np.float16)
    assert row_error(run(kernel, q, k, v, causal), attention(q, k, v, scale=128**-0.5, causal=causal)) < 1e-3


@each_kernel
@each_dim
def test_views_of_one_array(kernel: Any, d: int) -> None:
    """(batch, n, 3, heads, d), as a projection leaves it: nothing is copied."""
    (packed,) = normal((2, 100, 3, 2, d))
    q, k, v = (packed[:, :, i].swapaxes(1, 2) for i in range(3))
    assert row_error(run(kernel, q, k, v, True), attention(q, k, v, scale=d**-0.5, causal=True)) < 1e-2


@each_kernel
@each_dim
def test_small_integers_are_exact(kernel: Any, d: int) -> None:
    """Each query points at two keys, so far above the others that these weigh nothing: the mean of two values."""
    n, rng = 200, np.random.default_rng(d)
    k = np.where(rng.random((1, 1, n // 2, d)) < 0.5, -1, 1).repeat(2, 2)  # every key twice
    q, v = k[:, :, rng.permutation(n)], rng.integers(-8, 9, (1, 1, n, d)) * 2
    score = (q @ k.swapaxes(2, 3))[0, 0]
    pointed = np.argsort(-score, axis=1, kind="stable")[:, :2]
    assert np.partition(score, -3, axis=1)[:, -3].max() <= d - 4, "the keys must differ"
    q, k, v = (x.astype(BF16) for x in (q, k, v))
    out = run(kernel, q, k, v, scale=32.0)
    assert (out[0, 0].astype(np.float32) == v[0, 0][pointed].astype(np.float32).mean(1)).all()


@each_kernel
@full_or_causal
def test_equal_weights_are_exact(kernel: Any, causal: bool) -> None:
    """Zero queries weigh all keys they see alike: exact wherever their number is a power of two."""
    q, k, v = (
        np.zeros((1, 1, 128, 64), BF16),
        normal((1, 1, 128, 64))[0],
        np.random.default_rng(0).integers(-8, 9, (1, 1, 128, 64)).astype(BF16),
    )
    out = run(kernel, q, k, v, causal)[0, 0].astype(np.float64)
    for count in (1, 2, 4, 8, 16, 32, 64, 128) if causal else (128,):
        mean = v[0, 0, :count].astype(np.float64).mean(0).astype(BF16)
        assert (out[count - 1] == mean.astype(np.float64)).all()


@pytest.mark.thin
@each_kernel
@full_or_causal
@pytest.mark.parametrize("bad", (np.nan, np.inf, -np.inf))
@pytest.mark.parametrize("which", (0, 1, 2), ids=("q", "k", "v"))
def test_nan_and_infinity_pass(kernel: Any, causal: bool, bad: float, which: int) -> None:
    qkv = normal(*[(1, 1, 100, 64)] * 3)
    qkv[which][0, 0, 70, 3] = bad
    q, k, v = qkv
    out, expected = run(kernel, q, k, v, causal), attention(q, k, v, scale=0.125, causal=causal)
    seen = np.ones((100, 100), bool) if not causal else np.tri(100, dtype=bool)
    touched = seen[:, 70] if which else np.arange(100) == 70  # the rows that the bad number is for
    assert (np.isfinite(out[0, 0, touched]) == np.isfinite(expected[0, 0, touched])).all()
    if which < 2 and not touched.all():  # a masked value is multiplied by 0, and 0 * NaN is NaN: so in the reference
        assert row_error(out[:, :, ~touched], expected[:, :, ~touched]) < 1e-2


def test_heads_share_keys_and_values() -> None:
    q, k, v = normal((2, 6, 40, 64), (2, 2, 70, 64), (2, 2, 70, 64))
    expected = attention(q, k.repeat(3, 1), v.repeat(3, 1), scale=0.125)
    assert row_error(run(attention_ampere.attend, q, k, v), expected) < 1e-2


@full_or_causal
def test_log_sum_exp(causal: bool) -> None:
    q, k, v = normal((1, 2, 150, 64), (1, 2, 140, 64), (1, 2, 140, 64))  # the first 10 rows see no key, if causal
    out, lse = np.full(q.shape, np.nan, BF16), np.full((1, 2, 150), np.nan, np.float32)
    attention_ampere.attend(q, k, v, out, 0.125, lse, causal=causal)
    score = q.astype(np.float64) @ k.astype(np.float64).swapaxes(2, 3) * 0.125
    if causal:
        score[..., np.arange(140) > np.arange(150)[:, None] - 10] = -np.inf
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(lse, np.log(np.exp(score).sum(-1)), rtol=1e-5, atol=1e-5)
    assert row_error(out, attention(q, k, v, scale=0.125, causal=causal)) < 1e-2


@each_kernel
def test_refusals(kernel: Any) -> None:
    q, k, v = normal(*[(1, 1, 32, 64)] * 3)
    for change, said in (
        ({"q": q.astype(np.float32)}, "is f32"),
        ({"k": k[:, :, :, :32]}, "D = "),
        ({"v": v[:, :, :16]}, "M = "),
        ({"o": q[0]}, "dimensions"),
        ({"q": q[:, :, :0]}, "is empty"),
        ({"k": k.repeat(2, -1)[..., ::2]}, "must be contiguous"),
    ):
        with pytest.raises(ArgumentError, match=said):
            kernel(**{"q": q, "k": k, "v": v, "o": q.copy(), "scale": 0.125} | change)
