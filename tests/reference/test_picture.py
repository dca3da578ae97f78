"""Pictures say what the layouts say, and refuse what they cannot draw."""

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from typer.testing import CliRunner

import pykittens as pk
from pykittens import bf16, f32
from pykittens.cli import app
from pykittens.errors import ArgumentError
from pykittens.reference.picture import draw, in_text, owners, parse, svg
from pykittens.reference.time_picture import drawn


def test_a_fragment_is_that_of_the_tensor_cores() -> None:
    """PTX ISA, "Matrix Fragments for mma.m16n8k16": groups of four threads share a row, and have pairs of columns."""
    row, col = np.indices((16, 16))
    assert np.array_equal(owners(pk.rt(bf16, 16, 16)), row % 8 * 4 + col % 8 // 2)
    assert np.array_equal(owners(pk.rt(bf16, 16, 16, "col")), col % 8 * 4 + row % 8 // 2)


def test_every_element_has_an_owner() -> None:
    for type in (
        pk.rt(f32, 64, 32, "row", 4),
        pk.rt(f32, 3, 256, pk.coalesced(64, 2), 2),
        pk.rv(f32, 100, "naive"),
        pk.rt(bf16, 32, 48).vector("col"),
    ):
        found = owners(type)
        assert found.size == np.prod(type.shape) and (found >= 0).all() and (found < 32 * type.warps).all()


def test_a_column_of_a_swizzled_tile_meets_all_banks() -> None:
    picture = draw(parse("st(bf16, 16, 64)"))
    assert all(sorted(picture.group[:8, c]) == list(range(8)) for c in range(8))


@pytest.mark.parametrize(
    "text",
    [
        "rt(bf16, 16, 16)",
        "rt(f32, 4, 64, coalesced(8, 4))",
        "st(f32, 8, 32)",
        "col_vec(bf16, 16, 16)",
        "rv(f32, 64, naive)",
    ],
)
def test_pictures_in_text_and_as_svg(text: str) -> None:
    picture = draw(parse(text))
    assert in_text(picture).count("\n") == picture.text.shape[0]
    assert len(list(ElementTree.fromstring(svg(picture)))) == 1 + 2 * picture.text.size
    assert picture._repr_svg_() == svg(picture)


@pytest.mark.parametrize(
    "text", ["rt(bf16, 16", "tile(bf16, 16, 16)", "rt(bf17, 16, 16)", "bf16", "rt(bf16, 17, 16)", ""]
)
def test_what_is_no_type_is_refused_with_an_example(text: str) -> None:
    result = CliRunner().invoke(app, ["layout", text])
    assert result.exit_code == 1


def test_a_picture_that_nobody_could_read() -> None:
    with pytest.raises(ArgumentError, match="draw one of at most"):
        draw(pk.rt(f32, 256, 256))


def test_the_command(tmp_path: Path) -> None:
    assert "t0:0" in CliRunner().invoke(app, ["layout", "rt(bf16, 16, 16)"]).stdout
    CliRunner().invoke(app, ["layout", "st(bf16, 16, 64)", "--svg", str(tmp_path / "tile.svg")])
    assert (tmp_path / "tile.svg").read_text().startswith("<svg")


def test_a_schedule_visits_every_tile_once() -> None:
    for text, tiles in (
        ("persistent(20, blocks=3)", {str(i) for i in range(20)}),
        ("grouped(5, 3, 4, blocks=4)", {f"{row},{col}" for row in range(5) for col in range(3)}),
        ("rectangle(5, 3, blocks=4)", {f"{row},{matrix}" for row in range(5) for matrix in range(3)}),
        ("triangle(7, 2, blocks=3)", {f"{row},{matrix}" for row in range(7) for matrix in range(2)}),
    ):
        seen = [x for x in drawn(text).text.ravel() if x]
        assert {*seen} == tiles and len(seen) == len(tiles), text


def test_a_triangle_gives_all_blocks_as_much() -> None:
    picture = drawn("triangle(8, 2, blocks=4)")
    assert {sum(int(x.split(",")[0]) + 1 for x in row if x) for row in picture.text} == {18}


def test_a_ring_comes_round() -> None:
    assert drawn("ring(3, 5)").text.tolist() == [
        ["0:0*", "0:0", "0:0", "3:1*", "3:1"],
        ["", "1:0*", "1:0", "1:0", "4:1*"],
        ["", "", "2:0*", "2:0", "2:0"],
    ]


@pytest.mark.parametrize(
    "text", ["ring(3)", "ring(3, 4, blocks=2)", "triangle(8, 2)", "persistent(0, blocks=2)", "grouped(a)"]
)
def test_what_is_no_schedule_is_refused_with_one_that_is(text: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        drawn(text)
    for example in re.findall(r'"(.+?)"', caught.value.fix):
        assert drawn(example).text.size
