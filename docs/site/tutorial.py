"""Pages of the tutorial from its files: comments are prose, code is shown with what it prints."""

from __future__ import annotations

import ast
import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS, read
from benchmarks.tables import TABLES, newest
from pykittens.reference.picture import svg
from pykittens.reference.time_picture import drawn

Segment = tuple[str, int, str]  # "prose" or "code", the number of its first line, its text


def write_steps(steps: Path, to: Path) -> None:
    """A page for each file, and one that lists them."""
    to.mkdir()
    files = sorted(steps.glob("*.py"))
    for file in files:
        (to / f"{file.stem}.md").write_text(page(file), encoding="utf-8")
    listed = "\n".join(file.stem for file in files)
    about = "Each step is a file of `docs/tutorial` that is a test, too: run it, change it. No GPU is needed."
    text = f"# Tutorial\n\n{about}\n\n```{{toctree}}\n:maxdepth: 1\n\n{listed}\n```\n"
    (to / "index.md").write_text(text, encoding="utf-8")


def write_examples(folder: Path, to: Path) -> None:
    """One page with all example kernels."""
    parts = ["# Kernels to read", "Each is one file of `examples/kernels`, and runs without a GPU: `python FILE`."]
    for file in sorted(folder.glob("*.py")):
        source = file.read_text(encoding="utf-8")
        about = ast.get_docstring(ast.parse(source)) or ""
        code = source.partition('"""\n\n')[2].partition("\n\nif __name__")[0].strip()
        parts += [f"## {file.stem.replace('_', ' ')}", about, f"```python\n{code}\n```"]
    to.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def page(file: Path) -> str:
    """The Markdown of a step, which is run for it."""
    source = file.read_text(encoding="utf-8")
    relative = file.relative_to(Path.cwd())
    namespace: dict[str, Any] = {"__name__": "__main__", "__file__": str(relative)}
    out = [ast.get_docstring(ast.parse(source)) or ""]
    for kind, line, text in segments(source):
        if kind == "prose":
            out.append(text)
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * line + text, str(relative), "exec", dont_inherit=True), namespace)
        out.append(f"```python\n{text.strip()}\n```")
        if printed.getvalue().strip():
            out.append(f"```text\n{printed.getvalue().rstrip()}\n```")
    return "\n\n".join([*out, f"*The file: `{relative.as_posix()}`*"]) + "\n"


def segments(source: str) -> Iterator[Segment]:
    """Prose and code in turn: a run of comment lines between blank lines is prose."""
    lines = source.splitlines()
    first = ast.parse(source).body[0].end_lineno or 0
    held: list[str] = []
    start, i = first, first
    while i < len(lines):
        end = i
        while end < len(lines) and lines[end].startswith("#"):
            end += 1
        alone = end > i and not (held and held[-1].strip()) and (end == len(lines) or not lines[end].strip())
        if not alone:
            held += lines[i : max(end, i + 1)]
            i = max(end, i + 1)
            continue
        if "".join(held).strip():
            yield "code", start, "\n".join(held)
        yield "prose", i, "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines[i:end])
        held, start, i = [], end, end
    if "".join(held).strip():
        yield "code", start, "\n".join(held)


def inserted(kind: str, what: str, folder: Path) -> str:
    """A picture of a type, or a table of recorded results: `picture: rt(bf16, 16, 16)`, `table: summary Attention`."""
    if kind == "picture":
        name = "".join(c if c.isalnum() else "-" for c in what).strip("-") + ".svg"
        (folder / name).write_text(svg(drawn(what)), encoding="utf-8")
        return f"![{what}]({name})"
    table, _, word = what.partition(" ")
    lines = TABLES[table](newest([read(file) for file in sorted(RESULTS.glob("*.json"))])).splitlines()
    head = [line for line in lines if line.startswith("|")][:2]
    body = [line for line in lines if line.startswith("|")][2:]
    notes = [line for line in lines if line and not line.startswith(("|", "!["))]
    kept = [line for line in body if word in line] or sys.exit(f"no row of {table} says {word}")
    family = [note for note in notes if not word or word.split()[0].lower() in note.lower()] or notes
    return "\n".join([*head, *kept, "", *(f"* {note}" for note in family)])
