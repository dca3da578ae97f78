"""A kernel's parameters, read from annotations that type checkers accept, and from the short ones."""

from typing import Annotated, Any, Optional, Union

import numpy as np
import pytest

import pykittens as pk
from pykittens import Scalar, Tensor, f32, warp
from pykittens.trace.signature import GlobalPattern, run_time

SAME = GlobalPattern((pk.f32,), ("N", 128))


@pytest.mark.parametrize(
    "annotation",
    [
        pk.gl(f32, "N", 128),
        Annotated[Tensor, f32, "N", 128],
        Annotated[Tensor, pk.gl(f32, "N", 128)],
        Annotated[Tensor, (f32,), "N", 128],
        Annotated[Tensor, f32, "N", 128] | None,
        pk.gl(f32, "N", 128) | None,
        Optional[Annotated[Tensor, f32, "N", 128]],  # noqa: UP045
        Union[None, Annotated[Tensor, f32, "N", 128]],
    ],
)
def test_spellings_of_a_tensor(annotation: Any) -> None:
    assert run_time(annotation) == SAME


@pytest.mark.parametrize("annotation", [f32, f32 | None, Annotated[Scalar, f32], Annotated[pk.Scalar, f32] | None])
def test_spellings_of_a_scalar(annotation: Any) -> None:
    assert run_time(annotation) is f32


@pytest.mark.parametrize("annotation", [int, bool, Annotated[int, "N"], int | None, "f32", None, Any, Tensor])
def test_other_annotations_are_of_static_values(annotation: Any) -> None:
    assert run_time(annotation) is None


@pytest.mark.parametrize(
    ("annotation", "fact"),
    [
        (Annotated[Tensor, "N", 128], "pk.gl of 'N'"),
        (Annotated[Tensor, f32, -1], "dimension -1"),
        (Annotated[Tensor, f32], "0 dimensions"),
        (Annotated[Scalar, f32, "N"], "Annotated[Scalar, f32, N]"),
        (Annotated[Scalar, "N"], "Annotated[Scalar, N]"),
    ],
)
def test_what_is_refused(annotation: Any, fact: str) -> None:
    with pytest.raises(pk.TraceError) as caught:
        run_time(annotation)
    assert fact in caught.value.fact


@pytest.mark.parametrize("dims", [("N", "D"), (128,)])
def test_distances_that_no_type_knows(dims: tuple[Any, ...]) -> None:
    with pytest.raises(pk.TraceError, match="dense=True"):
        pk.gl(f32, *dims, dense=True)


def test_a_kernel_runs_with_them() -> None:
    @pk.kernel(grid=lambda x, **_: pk.cdiv(x.rows, 16), warps=1)
    def scaled(
        x: Annotated[Tensor, f32, "N", 64],
        y: Annotated[Tensor, f32, "N", 64],
        by: Annotated[Scalar, f32],
        more: Annotated[Tensor, f32, 64] | None = None,
        *,
        twice: bool = False,
    ) -> None:
        tile = warp.load(x, (pk.block_index.x, 0), rows=16) * by
        if more is not None:
            tile = tile + warp.load_row(more, 0, length=64)
        warp.store(y, tile * 2 if twice else tile, (pk.block_index.x, 0))

    x, y = np.random.default_rng(0).random((20, 64), np.float32), np.empty((20, 64), np.float32)
    scaled(x, y, 3.0, twice=True)
    assert np.array_equal(y, x * np.float32(3) * np.float32(2))
    scaled(x, y, 3.0, x[0])
    assert np.array_equal(y, x * np.float32(3) + x[0])
