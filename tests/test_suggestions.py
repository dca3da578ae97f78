"""Names that do not exist suggest those that do."""

import re

import numpy as np
import pytest

import pykittens as pk
from pykittens import f32, warp
from pykittens.suggestions import ELSEWHERE
from pykittens.trace.memory import Tensor
from pykittens.trace.scopes import ScopeHandle
from pykittens.trace.tile import Tile

OWNERS = {"pk": pk, "warp": ScopeHandle, "x": Tile, "tensor": Tensor}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_is_suggested_exists(name: str) -> None:
    words = re.findall(r"\b(pk|warp|x|tensor)\.(\w+)", ELSEWHERE[name])
    assert all(hasattr(OWNERS[owner], word) for owner, word in words), ELSEWHERE[name]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (lambda x, t: warp.laod(x), "the scope 'warp' has no attribute 'laod'; did you mean load"),
        (lambda x, t: t.row_summ(), "rt<f32, 16x64> has no attribute 'row_summ'; did you mean row_sum"),
        (lambda x, t: t.T, "here: x.transpose()"),
        (lambda x, t: x.row, "x: gl<f32, N x 64> has no attribute 'row'; did you mean rows"),
        (lambda x, t: pk.program_id(0), "here: pk.block_index.x"),
        (lambda x, t: pk.shard(t), "did you mean shared or shares?"),
    ],
)
def test_an_error_says_what_was_meant(line: object, says: str) -> None:
    def k(x: pk.gl(f32, "N", 64)):
        line(x, warp.load(x, (0, 0), rows=16))  # type: ignore[operator]

    with pytest.raises(AttributeError, match=re.escape(says)):
        pk.kernel(k)(np.ones((16, 64), np.float32))


def test_a_wrong_call_names_the_parameters() -> None:
    def k(x: pk.gl(f32, "N", 64)):
        warp.zeros(f32, 16)

    with pytest.raises(pk.TraceError, match=r"zeros\(\) missing 1 required.*\n.*\n.*\n?.*zeros\(dtype, rows, cols, \*"):
        pk.kernel(k)(np.ones((16, 64), np.float32))


def test_errors_of_the_kernels_own_functions_are_its_own() -> None:
    def helper(a: int) -> int:
        return a

    def k(x: pk.gl(f32, "N", 64)):
        helper()  # type: ignore[call-arg]

    with pytest.raises(TypeError, match="helper"):
        pk.kernel(k)(np.ones((16, 64), np.float32))
