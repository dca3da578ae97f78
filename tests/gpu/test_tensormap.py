"""Tensor maps: every rule is checked before the driver is asked, and the driver is asked the right thing."""

from typing import Any

import pytest

from pykittens.gpu.libcuda import CudaError
from pykittens.gpu.tensormap import TensorMapError, encode, validate
from tests.gpu.fake_driver import FakeDriver

# (batch 2, heads 3, n 1000, d 128) in bf16, as attention sees it: box of 64 columns by 128 rows.
GOOD: dict[str, Any] = {
    "pointer": 0x7F00_0000_0100,
    "dtype": "bf16",
    "shape": (128, 1000, 3, 2),
    "strides": (256, 256_000, 768_000),
    "box": (64, 128, 1, 1),
    "swizzle": 128,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pointer": 0x7F00_0000_0108}, "begins at 0x7f0000000108, which is not a multiple of 16 bytes"),
        ({"dtype": "i4"}, "does not move i4, only u8, i8"),
        ({"shape": (8,) * 6, "strides": (256,) * 5, "box": (8,) * 6}, "rank 6; the copy engine takes 1 to 5"),
        ({"shape": (), "strides": (), "box": ()}, "rank 0; the copy engine takes 1 to 5"),
        ({"box": (64, 128, 1)}, "a box of 3 dimensions in a tensor of 4"),
        ({"strides": (2, 256, 256_000, 768_000)}, "4 strides for rank 4; all but the innermost: 3"),
        ({"swizzle": 16}, "a swizzle over 16 bytes; the hardware has 0, 32, 64 and 128"),
        ({"l2_promotion": 32}, "an L2 promotion of 32 bytes; there are 0, 64, 128, 256"),
        ({"shape": (128, 0, 3, 2)}, "dimension 1 (innermost is 0) has 0 elements; 1 to 2^32 are possible"),
        ({"shape": (128, 2**32 + 1, 3, 2)}, "has 4294967297 elements"),
        ({"strides": (250, 256_000, 768_000)}, "has a stride of 250 bytes, not a multiple of 16"),
        ({"strides": (256, 256_000, 2**40)}, "stride of 1099511627776 bytes; 0 to 2^40 are possible"),
        ({"strides": (256, -256_000, 768_000)}, "stride of -256000 bytes; 0 to 2^40 are possible"),
        ({"box": (64, 257, 1, 1)}, "the box has 257 elements in dimension 1; 1 to 256 are possible"),
        ({"box": (64, 0, 1, 1)}, "the box has 0 elements in dimension 1; 1 to 256 are possible"),
        ({"box": (4, 128, 1, 1)}, "the box is 8 bytes wide (4 of bf16); it must be a multiple of 16"),
        ({"box": (128, 128, 1, 1)}, "the box is 256 bytes wide, more than its swizzle of 128"),
        ({"swizzle": 64}, "the box is 128 bytes wide, more than its swizzle of 64"),
    ],
)
def test_rules(no_driver: None, change: dict[str, Any], message: str) -> None:
    with pytest.raises(TensorMapError) as caught:
        encode(**{**GOOD, **change})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"swizzle": 0, "box": (128, 128, 1, 1)},
        {"dtype": "f32", "box": (32, 256, 1, 1)},
        {"dtype": "e4m3", "box": (128, 64, 1, 1)},
        {"shape": (4096,), "strides": (), "box": (256,), "swizzle": 0},
        {"strides": (768, 256, 768_000)},  # (batch, n, heads, d) seen as (batch, heads, n, d)
        {"strides": (256, 0, 0)},  # one head for all
        {"shape": (128, 1000, 1, 1), "strides": (256, 1, -3)},  # nobody reads the stride of one element
    ],
)
def test_what_is_possible(change: dict[str, Any]) -> None:
    validate(**{**GOOD, **change})


def test_without_a_driver(no_driver: None) -> None:
    with pytest.raises(CudaError, match="there is no CUDA driver here"):
        encode(**GOOD)


def test_encoding(fake: FakeDriver) -> None:
    found = encode(**GOOD, l2_promotion=256)
    assert found.address % 64 == 0
    assert len(bytes(found)) == 128
    asked = fake.encoded
    assert (asked.dtype, asked.pointer) == (9, GOOD["pointer"])
    assert asked.shape == [128, 1000, 3, 2]
    assert asked.strides[:3] == [256, 256_000, 768_000]
    assert (asked.box, asked.steps) == ([64, 128, 1, 1], [1, 1, 1, 1])
    assert asked.modes == [0, 3, 3, 0]  # interleave, swizzle, promotion, filling


def test_strides_of_single_elements_are_made_legal(fake: FakeDriver) -> None:
    encode(**{**GOOD, "shape": (128, 1000, 1, 1), "strides": (256, 1, -3)})
    assert fake.encoded.strides[:3] == [256, 16, 16]


def test_moving(fake: FakeDriver) -> None:
    found = encode(**GOOD)
    found.replace_address(0x4000)
    assert bytes(found)[:8] == (0x4000).to_bytes(8, "little")
    with pytest.raises(TensorMapError, match="begins at 0x4008"):
        found.replace_address(0x4008)
