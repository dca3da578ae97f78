"""Every public word says what it does: a sentence for each word, method and property, and each parameter by name."""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

import pykittens as pk

# What kernels hold besides what `pk` names: reached from a word.
HELD = {
    "warpgroup": type(pk.warpgroup),
    "tma": type(pk.tma),
    "cluster": type(pk.cluster),
    "block_index": type(pk.block_index),
}


def classes() -> dict[str, type]:
    named = {name: word for name in pk.__all__ if inspect.isclass(word := getattr(pk, name))}
    return {**named, **HELD}


def words() -> Iterator[tuple[str, Any]]:
    """Every public function, class, method and property, by name."""
    for name in pk.__all__:
        if inspect.isfunction(word := getattr(pk, name)):
            yield name, word
    for name, cls in classes().items():
        yield name, cls
        parts = cls.__mro__[:-1] if cls is pk.ScopeHandle else (cls,)  # whose words are divided among files
        for member, value in [x for part in parts for x in vars(part).items()]:
            if not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                yield f"{name}.{member}", value


WORDS = dict(words())


@pytest.mark.parametrize("name", WORDS)
def test_a_word_is_documented(name: str) -> None:
    word = WORDS[name]
    # Of its own: a class would show that of what it is derived from, a dataclass its signature.
    text = inspect.cleandoc(word.__doc__ or "")
    assert text, f"pk.{name} has no docstring"
    assert not (inspect.isclass(word) and text.startswith(f"{word.__name__}(")), (
        f"pk.{name} has no docstring of its own"
    )
    first = text.split("\n\n")[0].rstrip()
    assert first.endswith((".", ":")) and "  " not in first, f"pk.{name}: the summary is no sentence: {first}"
    if inspect.isfunction(word):
        kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        whole = {"self"} | {p.name for p in inspect.signature(word).parameters.values() if p.kind in kinds}
        missing = [p for p in inspect.signature(word).parameters if p not in whole and not re.search(rf"\b{p}\b", text)]
        assert not missing, f"pk.{name} does not say what {', '.join(missing)} is"


@pytest.mark.parametrize("name", [name for name, word in WORDS.items() if inspect.isfunction(word)])
def test_a_word_says_what_it_raises(name: str) -> None:
    """Each function on arrays, and each word whose own code raises: by name, what and when."""
    word = WORDS[name]
    tree = ast.parse(textwrap.dedent(inspect.getsource(word)))
    raised = {
        node.exc.func for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
    }
    if raised or name in pk.PUBLIC:
        said = re.search(r"[Rr]aises (`\w+Error`.*)", word.__doc__ or "", re.S)
        assert said, f"pk.{name} does not say what it raises"
        missing = {ast.unparse(x) for x in raised} - set(re.findall(r"`(\w+)`", said.group(1)))
        assert not missing, f"pk.{name} does not say that it raises {', '.join(missing)}"


def test_what_kernels_hold_can_be_named() -> None:
    """For annotations and editors: everything that a word returns to a kernel has a name in `pk`."""
    for name in ("Tile", "Tensor", "Ring", "Shared", "Scalar", "Variable", "DType", "ScopeHandle", "Turns", "Kernel"):
        assert name in pk.__all__ and inspect.isclass(getattr(pk, name))


def test_a_misspelt_word_is_answered_with_what_was_meant() -> None:
    with pytest.raises(AttributeError, match="did you mean maximum"):
        pk.maximun  # noqa: B018
    with pytest.raises(AttributeError, match="has no attribute 'zzz'$"):
        pk.zzz  # noqa: B018
