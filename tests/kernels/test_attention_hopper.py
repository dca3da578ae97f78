"""Hopper's attention where nothing is rounded: a difference of one bit is a fault."""

import ml_dtypes
import numpy as np
import pytest

from pykittens.kernels import attention_hopper
from pykittens.kernels.attention import configuration
from pykittens.testing.exact import SCALE, attention_operands


@pytest.mark.thin
@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_exact(dim: int, dtype: type) -> None:
    q, k, v, expected = (x[None, None] for x in attention_operands(70, 264, dim, dim))
    q, k, v = (x.astype(dtype) for x in (q, k, v))
    out = np.full_like(q, np.nan)
    attention_hopper.attend(q, k, v, out, None, SCALE, sms=2, **configuration(dim, False, 264))
    np.testing.assert_array_equal(out, expected.astype(dtype))


def test_weights_sum_to_a_power_of_two() -> None:
    q, k, _, _ = attention_operands(16, 64, 64, 0)
    assert set(np.exp2(q @ k.T).sum(1)) == {32.0}
    with pytest.raises(ValueError, match="multiples of 8"):
        attention_operands(16, 60, 64, 0)
