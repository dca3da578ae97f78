"""Every shipped kernel on the simulated GPU: no diagnosis, no bank conflict, the right result.

In CI every row, and every value of every option of a kernel, the first in every order of blocks and warps that its
result may depend on; with `--whole` every configuration in every order.
"""

import itertools

import numpy as np
import pytest

from pykittens.kernels.catalog import Instance, label
from pykittens.kernels.reference import row_error
from pykittens.kernels.registry import KERNELS
from tests import thin

TOLERANCE = {"bfloat16": 1e-2, "float16": 1e-3, "float32": 1e-5}
OF_CI = [[(row.name, choice) for row, choice, _ in thin.configurations(rows)] for rows in thin.of_one_kernel()]
FEW = list(itertools.chain.from_iterable(OF_CI))
IN_ALL_ORDERS = [of_kernel[0] for of_kernel in OF_CI]
CASES = [
    pytest.param(
        found,
        id=f"{row.name}-{label(choice).replace(', ', '-').replace(' ', '_')}",
        marks=[pytest.mark.whole] * ((row.name, choice) not in FEW)
        + [pytest.mark.one_order] * ((row.name, choice) not in IN_ALL_ORDERS),
    )
    for row in KERNELS.values()
    for choice, found in row.configurations()
]


@pytest.mark.parametrize("found", CASES)
def test_runs_clean_and_right(found: Instance) -> None:
    assert found.expected is not None
    arrays = found.arrays()
    expected = found.expected(**arrays, **found.statics)
    report = found.kernel.simulate(**arrays, **found.statics)
    assert report.clean
    assert report.bank_conflicts == 0, str(report)
    assert set(expected) == set(found.outputs)
    dtypes = {x.dtype.name for x in arrays.values() if isinstance(x, np.ndarray)}
    tolerance = max((TOLERANCE[name] for name in dtypes & {*TOLERANCE}), default=1e-5)  # of the shortest
    for name, values in expected.items():
        assert row_error(arrays[name], values) < tolerance, name
