"""The documentation site builds strictly: no warning, no link to nothing; and what its pages name exists."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pykittens as pk
from pykittens.cli import app

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "site" / "pages").rglob("*.md"))


def build(out: Path, *more: str) -> None:
    script = str(ROOT / "docs" / "site" / "build.py")
    done = subprocess.run([sys.executable, script, "--out", str(out), *more], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr.strip(), done.stderr


STEPS = sorted((ROOT / "docs" / "tutorial").glob("*.py"))


def test_pages_have_no_link_to_nothing(tmp_path: Path) -> None:
    build(tmp_path, "--check")
    assert all((tmp_path / "source" / "tutorial" / f"{step.stem}.md").exists() for step in STEPS)
    page = (tmp_path / "source" / "tutorial" / "07_debugging.md").read_text(encoding="utf-8")
    assert "nothing orders the two" in page, "what a step prints is shown"
    words = (tmp_path / "source" / "reference" / "between-warps.md").read_text(encoding="utf-8")
    assert "ring.read()" in words and "report.read" not in words, "a word is shown in use, not another of the same name"
    elementwise = (tmp_path / "source" / "reference" / "elementwise.md").read_text(encoding="utf-8")
    assert "A column vector beside a tile" in elementwise, "operators have their methods' docstrings"
    assert "`(a < b) & (c < d)`" in elementwise, "code is shown as it is"


@pytest.mark.whole
def test_the_site_builds(tmp_path: Path) -> None:
    build(tmp_path)
    assert all((tmp_path / "html" / "tutorial" / f"{step.stem}.html").exists() for step in STEPS)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_pages_name_what_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    commands = {command.name for command in app.registered_commands} | {"cache"}
    assert set(re.findall(r"(?<!import )(?<!from )\bpykittens ([a-z]+)\b(?! as| is|\.)", text)) <= commands
    for module, names in re.findall(r"^from (pykittens[\w.]*) import ([\w, ]+)$", text, re.M):
        assert all(hasattr(importlib.import_module(module), name.strip()) for name in names.split(","))
    missing = [name for name in re.findall(r"\bpk\.([a-z_]\w*)", text) if not hasattr(pk, name)]
    assert not missing, missing


def test_every_public_function_and_module_is_said_to_be_for_something() -> None:
    nn = pytest.importorskip("pykittens.nn", reason="modules are torch's")
    text = (ROOT / "docs" / "site" / "pages" / "howto" / "which-function.md").read_text(encoding="utf-8")
    assert not [name for name in pk.PUBLIC if f"`pk.{name}" not in text]  # type: ignore[attr-defined]
    modules = [name for name in dir(nn) if name[0].isupper()]
    assert modules and not [name for name in modules if f"`{name}`" not in text]
    run(text)


def test_stencils_are_right() -> None:
    run((ROOT / "docs" / "site" / "pages" / "howto" / "halos.md").read_text(encoding="utf-8"))


def run(page: str) -> None:
    """The code of a page, together."""
    exec("".join(re.findall(r"```python\n(.*?)```", page, re.S)), {})
