"""Options that belong to a kernel, such as `--dim 64 --causal`: read against the kernel's row in the registry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..kernels.catalog import Instance, Shipped, label
from ..kernels.registry import KERNELS
from .console import Refusal
from .words import unknown


def shipped(name: str) -> Shipped:
    """The row of a kernel's name."""
    if name not in KERNELS:
        raise unknown("there is no kernel", name, KERNELS)
    return KERNELS[name]


def read_choice(row: Shipped, words: Sequence[str]) -> dict[str, Any]:
    """The choice that words such as `--dim 64 --no-causal` make; defaults for what they leave out."""
    choice, rest = row.default(), list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        flag = name.removeprefix("no-").replace("-", "_")
        option = name.replace("-", "_")
        if word.startswith("--") and flag in choice and isinstance(choice[flag], bool) and not equals:
            choice[flag] = option == flag
        elif word.startswith("--") and option in choice and (equals or rest):
            choice[option] = _value(option, value if equals else rest.pop(0), row.options[option])
        else:
            raise Refusal(f"{row.name} has no option {word!r}", fix=f"it takes {describe_options(row)}")
    return choice


def instance(row: Shipped, choice: dict[str, Any]) -> Instance:
    """The instance of a choice."""
    found = row.make(**choice)
    if found is None:
        raise Refusal(f"{row.name} has no configuration {label(choice)}", fix="`pykittens list` shows what there is")
    return found


def describe_options(row: Shipped) -> str:
    """A kernel's options as they are typed: "--dim 64|128 --causal"."""
    flags = [
        f"--{name.replace('_', '-')}" + ("" if isinstance(values[0], bool) else " " + "|".join(map(str, values)))
        for name, values in row.options.items()
    ]
    return " ".join(flags)


def _value(option: str, text: str, values: tuple[Any, ...]) -> Any:
    for value in values:
        if str(value).lower() == text.lower():
            return value
    raise Refusal(f"--{option} is {text!r}", fix=f"choose one of {', '.join(map(str, values))}")
