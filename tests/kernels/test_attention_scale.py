"""The three forward kernels where their arithmetic is at its edge: scales of 0 and below, values that nobody may
see."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

from pykittens.kernels import attention_ada, attention_ampere, attention_hopper
from pykittens.kernels.reference import attention, row_error

BF16 = np.dtype(ml_dtypes.bfloat16)
Array = np.ndarray
Run = Callable[[Array, Array, Array, Array, float, bool], None]
RUNS: dict[str, Run] = {
    "hopper": lambda q, k, v, o, scale, causal: attention_hopper.attend(q, k, v, o, None, scale, causal=causal, sms=2),
    "ampere": lambda q, k, v, o, scale, causal: attention_ampere.attend(q, k, v, o, scale, causal=causal),
    "ada": lambda q, k, v, o, scale, causal: attention_ada.attend(q, k, v, o, scale, causal=causal),
}
each_run = pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)


def operands(n: int, m: int, d: int) -> list[Array]:
    rng = np.random.default_rng(n * m)
    return [rng.standard_normal((1, 2, rows, d)).astype(BF16) for rows in (n, m, m)]


@pytest.mark.thin
@each_run
@pytest.mark.parametrize("d", (64, pytest.param(128, marks=pytest.mark.whole)))
@pytest.mark.parametrize("causal", (False, True), ids=("full", "causal"))
@pytest.mark.parametrize("scale", (0.0, -0.125, -1.0))
def test_scale_of_any_sign(run: Run, d: int, causal: bool, scale: float) -> None:
    """Also with whole tiles, whose scores no mask has touched, and with as many rows as make the first see no key."""
    for n, m in ((70, 90), (128, 256), (150, 130)):
        q, k, v = operands(n, m, d)
        o = np.full(q.shape, np.nan, BF16)
        run(q, k, v, o, scale, causal)
        assert row_error(o, attention(q, k, v, scale=scale, causal=causal)) < 1e-2


@each_run
def test_a_scale_of_nan_is_nan(run: Run) -> None:
    q, k, v = operands(20, 30, 64)
    o = np.zeros(q.shape, BF16)
    run(q, k, v, o, np.nan, False)
    assert np.isnan(o).all()


@pytest.mark.thin
@each_run
@pytest.mark.parametrize("bad", (np.nan, np.inf))
def test_rows_that_see_no_key_are_zero(run: Run, bad: float) -> None:
    """Whatever lies in the values of the tile that their mask cuts off."""
    q, k, v = operands(150, 130, 64)
    v[:, :, 0] = bad
    o = np.full(q.shape, np.nan, BF16)
    run(q, k, v, o, 0.125, True)
    assert (o[:, :, :20] == 0).all()
    assert not np.isfinite(o[:, :, 20:]).any()
