"""Where rows lie in memory: at distances known at launch, or constant ones."""

import re
from typing import Annotated

import numpy as np
import pytest

import pykittens as pk
from pykittens import Scalar, Tensor, f32, i32, warp

X = Annotated[Tensor, pk.gl(f32, "N", pk.static("D"), dense=True)]
Y = Annotated[Tensor, pk.gl(f32, "M", pk.static("D"), dense=True)]


@pk.kernel(warps=1)
def moved(x: X, y: Y, by: Annotated[Scalar, i32]) -> None:
    """Three rows of x: one and two behind `by`, and one that a variable has known."""
    changing = pk.var(i32, 5)
    late = changing + 1
    changing.set(0)
    for i, row in enumerate((by + 1, 2 + by, late)):
        warp.store(y, warp.load(x, pk.at(row, 0), rows=1, cols=64, layout=pk.coalesced(32, 2)), pk.at(i, 0))


def specs(*strides: int) -> list[pk.spec]:
    return [pk.spec(f32, (n, 64), strides=strides or None) for n in (9, 3)]


def test_rows_without_gaps_are_a_constant_apart() -> None:
    dense, others = (moved.cuda(*specs(*strides), 1, arch="sm_90a") for strides in ((), (96, 1)))
    assert "stride[2]" not in dense and "stride[2]" in others
    assert others == moved.cuda(*specs(128, 1), 1, arch="sm_90a")  # one program for all of them


def test_rows_share_what_their_addresses_have_in_common() -> None:
    """`by` times the distance once, and a constant each; not of a variable, which has changed since."""
    text = moved.cuda(*specs(), 1, arch="sm_90a")
    lines = re.findall(r"const float\* p_\d+ = .* (\(i64\)v_\d+ \* 64)(.*);", text)
    (one, more), (two, further), (late, nothing) = lines
    assert one == two != late
    assert [more, further, nothing] == [" + 0 + (i64)1 * 64", " + 0 + (i64)2 * 64", " + 0"]


@pytest.mark.parametrize("gaps", [False, True])
def test_both_read_the_same(gaps: bool) -> None:
    x = np.random.default_rng(0).standard_normal((9, 96)).astype(np.float32)
    given, y = x[:, :64] if gaps else np.ascontiguousarray(x[:, :64]), np.zeros((3, 64), np.float32)
    moved(given, y, 2)
    assert np.array_equal(y, x[[3, 4, 6], :64])
