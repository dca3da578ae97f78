"""The vocabulary is complete: words and operations have rows, no cell is empty, what people look for is found."""

import inspect
import json
from dataclasses import asdict

import pytest
from typer.testing import CliRunner

import pykittens as pk
from pykittens.cli import app
from pykittens.functions import PUBLIC
from pykittens.reference.expected import Expected, expected
from pykittens.reference.vocabulary import classes, row, table
from pykittens.reference.words import COMPILERS, HELD, LANGUAGE, WORDS, words

LISTED = [*(w for group in WORDS.values() for w in group), *(w for group in LANGUAGE.values() for w in group.split())]
BEHIND = sorted({name for ops in words().values() for name in ops.split()})


def public() -> set[str]:
    """Every word of `pk`, and every method and property of what kernels hold."""
    found = {f"pk.{name}" for name in pk.__all__ if name not in PUBLIC}
    for name, cls in HELD.items():
        parts = cls.__mro__[:-1] if cls is pk.ScopeHandle else (cls,)  # whose words are divided among files
        held = [x for part in parts for x in vars(part).items()]
        members = {k for k, v in held if inspect.isfunction(v) or isinstance(v, property)}
        found |= {f"{name}.{member}" for member in members if not member.startswith("_")}
    return found


def test_every_word_is_listed_once() -> None:
    assert len(LISTED) == len(set(LISTED)), [w for w in LISTED if LISTED.count(w) > 1]
    named = {word for word in LISTED if word.replace(".", "").replace("_", "").isalnum()}
    assert public() - named == set(), "words without a row in pykittens/reference/words.py"
    assert named - public() == set(), "rows of words that do not exist"


def test_every_operation_is_behind_a_word() -> None:
    named = {name.partition(".")[0] for name in BEHIND} | set(COMPILERS)
    assert set(classes()) - named == set() and named - set(classes()) == set()


def test_every_kind_of_an_operation_is_behind_a_word() -> None:
    for name in {name.partition(".")[0] for name in BEHIND if "." in name}:
        kinds = {sample.fields["kind"] for sample in classes()[name].samples()}
        assert kinds == {other.partition(".")[2] for other in BEHIND if other.startswith(f"{name}.")}, name


@pytest.mark.parametrize("name", BEHIND)
def test_no_cell_is_empty(name: str) -> None:
    for column, cell in asdict(row(name)).items():
        assert cell.strip(), f"{name}: {column}"


@pytest.mark.parametrize("wanted", expected(), ids=lambda e: e.name)
def test_what_people_look_for_is_found_or_has_a_reason(wanted: Expected) -> None:
    left = wanted.ours
    for word in sorted(LISTED, key=len, reverse=True):
        left = left.replace(word, "")
    assert not left.strip(), f"{wanted.name}: there is no {left.strip()}"
    assert wanted.ours or wanted.why


def test_facts_are_read_from_the_operations() -> None:
    assert row("Wgmma").architectures == "sm_90a only" and row("TmaLoad").architectures == "sm_90 and newer"
    assert row("Unary.exp").architectures == "sm_80 and newer" and "clusters" in row("ShareTerms").architectures
    assert row("Unary.exp").numerics.startswith("approximate: within (3 + 1.25 |x|) ulp")
    assert row("Unary.exp2").instructions.startswith("ex2.approx.ftz.f32")
    assert row("CopyAsync").instructions == "cp.async.cg.shared.global, cp.async.ca.shared.global"
    assert row("NamedSync").instructions == "bar.sync, barrier.sync"
    assert "ldmatrix" in row("Mma").instructions and "mma.sync.aligned.m16n8k16" in row("Mma").instructions
    assert row("Binary.xor").dtypes == "i32, u32, i64, bool"
    assert "coalesced tile" in row("Reduce.sum").layouts and "warpgroup" in row("Reduce.sum").scopes


def test_the_command() -> None:
    text = CliRunner().invoke(app, ["vocabulary"]).stdout
    assert "x.row_sum" in text and "Elementwise" in text
    assert "approximate" in CliRunner().invoke(app, ["vocabulary", "pk.exp2"]).stdout
    found = json.loads(CliRunner().invoke(app, ["vocabulary", "--json"]).stdout)["vocabulary"]
    assert [entry["word"] for entry in found] == [word for _, word, _ in table()]
    refused = CliRunner().invoke(app, ["vocabulary", "no such word"])
    assert refused.exit_code == 1
