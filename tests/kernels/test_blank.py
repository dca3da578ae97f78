"""Rows that are nobody's become zeros, and no others change."""

import ml_dtypes
import numpy as np
import pytest

from pykittens.kernels.blank import blank

BF16 = np.dtype(ml_dtypes.bfloat16)


@pytest.mark.parametrize(("packed", "last"), ((True, False), (False, False), (False, True)))
def test_blank(packed: bool, last: bool) -> None:
    batch = 1 if packed else 3
    x, y = np.full((batch, 2, 70, 72), np.nan, BF16), np.full((batch, 2, 70, 24), np.nan, BF16)
    lse = np.full((batch, 2, 70), np.nan, np.float32)
    ends = np.array([0, 5, 40] if packed else [0, 70, 33], np.int32)
    blank(ends, x, y, lse, packed=packed, last=last)
    row = np.arange(70)
    for b, n in enumerate(ends[-1:] if packed else ends):
        kept = row >= 70 - n if last else row < n
        for z, nothing in ((x, 0.0), (y, 0.0), (lse, -np.inf)):
            part = np.moveaxis(np.asarray(z[b], float), 1, 0)
            assert np.isnan(part[kept]).all()
            assert (part[~kept] == nothing).all()
