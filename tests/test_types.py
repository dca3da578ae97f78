"""The types of values: what they refuse, and the numbers they know about themselves."""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from pykittens import bf16, bool_, e4m3, e5m2, f16, f32, f64, i8, i32, rt, rv, st, sv, u8, u32
from pykittens.errors import TypeRuleError
from pykittens.types import DTYPES, REGISTER_DTYPES, DType, Global, ScalarType, swizzle_bytes, with_dtype

NUMPY = {
    "bf16": ml_dtypes.bfloat16,
    "f16": np.float16,
    "f32": np.float32,
    "f64": np.float64,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "i8": np.int8,
    "u8": np.uint8,
    "i32": np.int32,
    "u32": np.uint32,
    "i64": np.int64,
    "bool": np.bool_,
}


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_a_dtype_is_numpys(dtype: DType) -> None:
    assert dtype.numpy == np.dtype(NUMPY[dtype.name])
    assert dtype.size == dtype.numpy.itemsize and dtype.bits == 8 * dtype.size
    assert dtype.kind == {"V": "f", "f": "f", "i": "i", "u": "u", "b": "b"}[dtype.numpy.kind]
    assert dtype.packed == (dtype.name in ("bf16", "f16"))
    assert repr(dtype) == str(dtype) == dtype.name


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: rt(f32, 20, 16), "20 x 16 f32 does not divide over 1 warps"),
        (lambda: rt(f32, 16, 8), "16 x 8 f32 does not divide"),
        (lambda: rt(f32, 32, 16, "row", 4), "32 x 16 f32 does not divide over 4 warps"),
        (lambda: rt(f32, 0, 16), "0 x 16"),
        (lambda: rt(f32, -16, 16), "-16 x 16"),
        (lambda: rt(f32, 16, 16, "diagonal"), "layout 'diagonal'"),  # type: ignore[arg-type]
        (lambda: rt(e4m3, 16, 16), "a register tile cannot hold e4m3"),
        (lambda: rt("f32", 16, 16), "a register tile cannot hold 'f32'"),  # type: ignore[arg-type]
        (lambda: rv(f32, 24, "col"), "a register vector cannot have 24 elements"),
        (lambda: rv(f32, 0, "naive"), "a register vector cannot have 0 elements"),
        (lambda: rv(f32, 32, "diagonal"), "kind 'diagonal'"),  # type: ignore[arg-type]
        (lambda: rv(f64, 32, "col"), "a register vector cannot hold f64"),
        (lambda: rv(f32, 16, "row", partial=True), "can be partial"),
        (lambda: rv(f32, 48, "col", warps=2), "48 elements"),
        (lambda: st(f32, 12, 16), "a shared tile cannot be 12 x 16"),
        (lambda: st(f32, 8, 24), "a shared tile cannot be 8 x 24"),
        (lambda: st(f32, 8, 16, swizzle=16), "cannot swizzle over 16 bytes"),
        (lambda: st(bf16, 8, 16, swizzle=128), "32 bytes"),
        (lambda: st(u8, 8, 16), "rows of 16 u8 (16 bytes) has no swizzle"),
        (lambda: st(f64, 8, 16), "a shared tile cannot hold f64"),
        (lambda: sv(f32, 0), "a shared vector cannot have 0 elements"),
        (lambda: sv(bool_, 4), "a shared vector cannot hold bool"),
    ],
)
def test_types_that_cannot_be(make: Callable[[], Any], text: str) -> None:
    with pytest.raises(TypeRuleError) as caught:
        make()
    assert text in caught.value.fact and caught.value.fix


@pytest.mark.parametrize("dtype", REGISTER_DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["row", "col"])
@pytest.mark.parametrize("warps", [1, 2, 4])
def test_registers_of_tiles_and_their_vectors(dtype: DType, layout: Any, warps: int) -> None:
    tile = rt(dtype, 32 * warps, 48, layout, warps)
    assert tile.registers * 32 * warps == tile.rows * tile.cols and tile.shape == (32 * warps, 48)
    for kind, length in (("col", tile.rows), ("row", tile.cols)):
        vector = tile.vector(kind)  # type: ignore[arg-type]
        assert (vector.length, vector.layout, vector.warps, vector.dtype) == (length, layout, warps, dtype)
        assert vector.registers * (8 if vector.ortho else 4) == length // (warps if kind == "col" else 1)
        assert vector.ortho == ((kind == "col") == (layout == "row"))
    assert with_dtype(tile, f32) == rt(f32, 32 * warps, 48, layout, warps)


@pytest.mark.parametrize(
    ("length", "warps", "width", "registers"),
    [(32, 1, 1, 1), (33, 1, 1, 2), (256, 1, 8, 8), (100, 2, 2, 2), (1024, 4, 4, 8), (8, 1, 8, 8)],
)
def test_naive_vectors(length: int, warps: int, width: int, registers: int) -> None:
    assert rv(f32, length, "naive", warps=warps, width=width).registers == registers


def test_a_partial_vector_holds_a_term_per_thread_of_a_row() -> None:
    assert rv(f32, 32, "col", partial=True).shape == (32, 4)
    assert rt(f32, 32, 16).vector("col", partial=True) == rv(f32, 32, "col", partial=True)


@pytest.mark.parametrize(
    ("dtype", "cols", "span"),
    [
        (bf16, 64, 128),
        (bf16, 32, 64),
        (bf16, 16, 32),
        (bf16, 192, 128),
        (bf16, 96, 64),
        (bf16, 48, 32),
        (f32, 16, 64),
        (f32, 32, 128),
        (e5m2, 32, 32),
        (i8, 128, 128),
        (f16, 80, 32),
    ],
)
def test_the_swizzle_is_the_widest_that_divides_a_row(dtype: DType, cols: int, span: int) -> None:
    tile = st(dtype, 16, cols)
    assert swizzle_bytes(dtype, cols) == tile.swizzle == span
    assert (
        tile.panel * dtype.size == span
        and cols % tile.panel == 0
        and tile.bytes == 16 * cols * dtype.size
        and tile.pitch == 16
    )


def test_a_swizzle_may_be_chosen() -> None:
    assert st(bf16, 16, 64, swizzle=32).panel == 16


def test_tensors() -> None:
    type = Global(bf16, ("N", 64))
    assert type.rank == 2 and type.padded == (1, 1, "N", 64) and type.align == 16


def test_texts() -> None:
    shown = [
        rt(f32, 16, 32),
        rt(bf16, 64, 32, "col", 4),
        rv(f32, 16, "col", partial=True),
        rv(f32, 16, "row", "col"),
        rv(i32, 40, "naive"),
        st(bf16, 64, 128),
        sv(f32, 7),
        Global(f16, ("B", "N", 64)),
        ScalarType(u32),
    ]
    assert [str(x) for x in shown] == [
        "rt<f32, 16x32>",
        "rt<bf16, 64x32, col> over 4 warps",
        "rv<f32, 16, col_vec, partial>",
        "rv<f32, 16, row_vec, col>",
        "rv<i32, 40, naive>",
        "st<bf16, 64x128>",
        "sv<f32, 7>",
        "gl<f16, B x N x 64>",
        "u32",
    ]
