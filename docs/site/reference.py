"""Pages of the reference: every word with its signature, its docstring, and the operations behind it."""

from __future__ import annotations

import functools
import inspect
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pykittens as pk
from pykittens.functions import PUBLIC
from pykittens.reference.expected import expected
from pykittens.reference.vocabulary import row
from pykittens.reference.words import HELD, LANGUAGE, WORDS

ROOT = Path(__file__).parents[2]
OPERATORS = {  # the method whose docstring says what they do
    "x + y": pk.Tile.__add__,
    "x ** y": pk.Tile.__pow__,
    "x & y": pk.Tile.__and__,
    "x < y": pk.Tile.__lt__,
    "x[:] = y": pk.Tile.__setitem__,
    "x[:, 0:64]": pk.Tile.__getitem__,
    "x[:, j]": pk.Tile.__getitem__,
    "tensor[i, j]": pk.Tensor.__getitem__,
    "shared[i, j]": pk.Shared.__getitem__,
}
INTRODUCTION = """\
In names, `x` is a register tile or vector, `warp` any scope (`pk.warp`, `pk.warpgroup`, `pk.block`, `pk.group(n)`),
`shared` a shared tile or vector, `tensor` a parameter in global memory.

Below each word stand the operations that it records, with the dtypes, layouts and scopes in which these are tested on
the simulator and on a GPU. They are no limits: a word that does not say otherwise works on any scope, layout and dtype,
and what has no meaning is refused when the kernel is traced.
"""


def write_reference(to: Path) -> None:
    """Pages for each group of words, the public functions, the vocabulary as a table, and upstream names."""
    to.mkdir()
    pages = {_file(group): group_page(group, words) for group, words in WORDS.items()}
    pages |= {_file(group): language_page(group, words.split()) for group, words in LANGUAGE.items()}
    pages["functions"] = functions_page()
    pages["vocabulary"] = vocabulary_page()
    pages["thunderkittens"] = upstream_page()
    for name, text in pages.items():
        (to / f"{name}.md").write_text(text, encoding="utf-8")
    listed = "\n".join(pages)
    head = f"# Reference\n\nMade from the docstrings and from the operations themselves.\n\n{INTRODUCTION}"
    text = f"{head}\n```{{toctree}}\n:maxdepth: 1\n\n{listed}\n```\n"
    (to / "index.md").write_text(text, encoding="utf-8")


def _file(group: str) -> str:
    return re.sub(r"[^a-z]+", "-", group.lower()).strip("-")


def _found(word: str) -> Any:
    """What a word names; None for an operator."""
    for name, cls in HELD.items():
        if word.startswith(f"{name}.") and word.removeprefix(f"{name}.").isidentifier():
            return inspect.getattr_static(cls, word.removeprefix(f"{name}."))
    return getattr(pk, word.removeprefix("pk."), None) if word.startswith("pk.") else None


def entry(word: str) -> str:
    """A word's heading, signature and docstring."""
    found = _found(word)
    lines = [f"## `{word}`"]
    if inspect.isfunction(found) or inspect.isclass(found):
        lines.append(f"```python\n{_signature(word, found)}\n```")
    doc = found.__doc__ if isinstance(found, property) else inspect.getdoc(found) if found is not None else ""
    if doc and (inspect.isfunction(found) or inspect.isclass(found) or isinstance(found, property)):
        lines.append(as_markdown(inspect.cleandoc(doc)))
    elif doc and _own_docstring(found):
        lines.append(as_markdown(doc))
    elif word in OPERATORS:
        lines.append(as_markdown(inspect.getdoc(OPERATORS[word]) or ""))
    if use := in_use(word):
        lines.append(use)
    return "\n\n".join(lines)


_HOST = re.compile(r"\bnp\.|\bdescribe\(|^if ")  # of lines that are not a kernel's


@functools.cache
def _lines() -> list[tuple[str, str]]:
    """Lines of code that people read, with their files: examples and the tutorial first, then the kernels."""
    folders = ("examples/kernels", "docs/tutorial", "pykittens/kernels")
    files = [file for folder in folders for file in sorted((ROOT / folder).glob("*.py"))]
    return [
        (line.strip(), file.relative_to(ROOT).as_posix())
        for file in files
        for line in file.read_text(encoding="utf-8").splitlines()
        if not line.strip().startswith(("#", '"', "assert")) and "`" not in line and len(line.strip()) < 110
    ]


def in_use(word: str) -> str:
    """A line of code that uses a word, and where it stands; empty where none does."""
    held, _, name = word.rpartition(".")
    if not name.isidentifier():
        return ""
    pattern = re.compile(rf"{_receiver(held)}\.{name}\b")
    for line, file in _lines():
        if f".{name}" in line and pattern.search(line) and (held.startswith("pk") or not _HOST.search(line)):
            return f"In use: `{line}` (`{file}`)"
    return ""


def _receiver(held: str) -> str:
    """What stands before the dot where a word is used: a name tells a ring from a scope, and a tile from a module."""
    if held == "warp":
        return r"\b(?:warp|warpgroup|block|group)"
    if held.startswith("pk"):
        return re.escape(held)
    if held in ("ring", "turns"):
        return rf"\b\w*{held}"
    if held == "warpgroup":
        return rf"\b{held}"
    return r"(?:\b(?!(?:warp|warpgroup|block|group|tma|pk|np|self|info|store|slot|report|mine)\.)\w+|[)\]])"


def _own_docstring(found: Any) -> bool:
    """Whether an object such as `pk.warp` is of a class of ours, whose docstring says what it is."""
    return type(found).__module__.startswith("pykittens")


def _signature(word: str, found: Any) -> str:
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        return word
    parameters = [p for p in signature.parameters.values() if p.name != "self"]
    text = f"{word}{signature.replace(parameters=parameters)}"
    text = re.sub(r"(pykittens|numpy|collections)(\.\w+)*\.(?=\w)", "", text).replace("'", "")
    if len(text) > 100 and parameters:
        text = text.replace("(", "(\n    ", 1)
        head, _, tail = text.rpartition(")")
        text = re.sub(r", (?=\*?\*?\w+(?::|=|,|$))", ",\n    ", head) + ",\n)" + tail
    return text


def as_markdown(doc: str) -> str:
    """A docstring as Markdown: code in it is indented by four, and its lists begin with an asterisk."""
    lines = doc.splitlines()
    return "\n".join(x if x.startswith("    ") else re.sub(r"(`[^`]*`)|<", lambda m: m[1] or "&lt;", x) for x in lines)


def group_page(group: str, words: dict[str, str]) -> str:
    """The words of a group, then what is known of their operations."""
    names = list(dict.fromkeys(name for ops in words.values() for name in ops.split()))
    parts = [f"# {group}", INTRODUCTION]
    for word, ops in words.items():
        links = ", ".join(f"[{name}](#{_anchor(name)})" for name in ops.split())
        parts += [entry(word), f"Operations: {links}"]
    parts.append("## The operations")
    for name in names:
        facts = row(name)
        parts.append(f"### {name}")
        parts.append(as_markdown(facts.about))
        cells = {name: cell for name, cell in asdict(facts).items() if name not in ("operation", "about")}
        parts.append("\n".join(f"* {name}: {as_markdown(cell)}" for name, cell in cells.items()))
    return "\n\n".join(parts) + "\n"


def _anchor(name: str) -> str:
    return re.sub(r"[^\w]", "", name.lower())


def language_page(group: str, words: list[str]) -> str:
    """Words that record no operation of their own."""
    return "\n\n".join([f"# {group}", INTRODUCTION, *map(entry, words)]) + "\n"


def functions_page() -> str:
    """The public functions on arrays."""
    return "\n\n".join(["# Functions on arrays", *(entry(f"pk.{name}") for name in sorted(PUBLIC))]) + "\n"


def _cell(text: str) -> str:
    return as_markdown(text).replace("|", "\\|")


def vocabulary_page() -> str:
    """All words with their operations, as a table."""
    parts = ["# The vocabulary", "`pykittens vocabulary` prints it, and `--json` gives it as data."]
    for group, words in WORDS.items():
        parts.append(f"## {group}")
        lines = ["| word | operations | dtypes | architectures | numerics |", "| --- | --- | --- | --- | --- |"]
        for word, ops in words.items():
            first = row(ops.split()[0])
            cells = (f"`{word}`", ", ".join(ops.split()), first.dtypes, first.architectures, first.numerics)
            lines.append("| " + " | ".join(map(_cell, cells)) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def upstream_page() -> str:
    """Every name of ThunderKittens, and what people miss beside others, with how it is written here."""
    parts = ["# From ThunderKittens, name by name"]
    last = ("", "")
    for wanted in expected():
        if (wanted.source, wanted.group) != last:
            title = wanted.group if wanted.source == "ThunderKittens" else wanted.source
            parts += ["", f"## {title}", "", "| name | here | |", "| --- | --- | --- |"]
            last = (wanted.source, wanted.group)
        words = re.findall(r"x [^ \w.]+ y|x\[[^]]*\](?: = y)?|[-~]x|abs\(x\)|[\w.\[\]]+", wanted.ours)
        here = " ".join(f"`{word}`" for word in words) or "not here"
        parts.append(f"| {_cell(wanted.name)} | {_cell(here)} | {_cell(wanted.why)} |")
    return "\n".join(parts) + "\n"
