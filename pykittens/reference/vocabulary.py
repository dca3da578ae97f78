"""The vocabulary as a table: what stands behind each word, read from the operations themselves.

Dtypes, layouts and scopes are those of an operation's samples, which the conformance tests simulate, compile and run;
numerics are what it promises; architectures follow from what its CUDA text requires. `verified.json` says on which GPUs
its samples agreed with the simulator, bit for bit or within the promise (`python -m benchmarks.operations`).
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import ops
from ..architectures import FEATURES, having
from ..numerics import Numerics
from ..ops.samples import Rectangle, Sample
from ..program import Op, Value
from ..testing.conformance import Case, operations
from ..types import Coalesced, RegisterTile, RegisterVector, ScalarType, SharedTile, SharedVector
from .instructions import instructions, named
from .words import WORDS

VERIFIED = Path(__file__).with_name("verified.json")
GROUPS = {1: "warp", 4: "warpgroup"}  # scopes by how many warps they have


@dataclass(frozen=True)
class Row:
    """What is known of one operation, or one kind of it. No cell is empty: what does not apply says why."""

    operation: str
    about: str
    scopes: str
    dtypes: str
    layouts: str
    architectures: str
    instructions: str
    numerics: str
    simulated: str
    derivative: str
    verified: str


@functools.cache
def classes() -> dict[str, type[Op]]:
    """Every operation of the package by its name."""
    for module in pkgutil.iter_modules(ops.__path__):
        importlib.import_module(f"{ops.__name__}.{module.name}")
    return {op.__name__: op for op in operations() if op.__module__.startswith(f"{ops.__name__}.")}


def table() -> Iterator[tuple[str, str, list[Row]]]:
    """Each group's words in turn: the group, the word, and its operations."""
    for group, words in WORDS.items():
        for word, behind in words.items():
            yield group, word, [row(name) for name in behind.split()]


@functools.cache
def row(name: str) -> Row:
    """The row of an operation ("Mma"), or of a kind of one ("Unary.exp")."""
    cls, _, kind = name.partition(".")
    op = classes()[cls]
    samples = [s for s in op.samples() if not kind or _kind(s) == kind]
    types = [x for sample in samples for x in _types(sample.fields.values())]
    given = "none: it moves no numbers" if op.numerics is None else "those of what it is given"
    return Row(
        operation=name,
        about=" ".join(inspect.cleandoc(op.__doc__ or "").split("\n\n")[0].split()),
        scopes=_scopes(op, samples),
        dtypes=_listed(x.dtype.name for x in types if hasattr(x, "dtype")) or given,
        layouts=_listed(map(_layout, types)) or given,
        architectures=_architectures(op, samples),
        instructions=_instructions(op, samples),
        numerics=_numerics(op, samples),
        simulated="its meaning" if op.numpy is not Op.numpy else "as what it orders",
        derivative=_derivative(op, types),
        verified=_verified(cls, any(s.needs != "clusters" for s in samples)),  # a sample is one block
    )


def _kind(sample: Sample) -> Any:
    return sample.fields.get("kind", sample.fields.get("side"))


def _types(fields: Iterable[Any]) -> Iterator[Any]:
    for x in fields:
        if isinstance(x, tuple):
            yield from _types(x)
        elif isinstance(x, (RegisterTile, RegisterVector, ScalarType, SharedTile, SharedVector, Rectangle)):
            yield x


def _layout(x: Any) -> str:
    if isinstance(x, RegisterTile):
        return f"{'coalesced' if isinstance(x.layout, Coalesced) else x.layout} tile"
    if isinstance(x, RegisterVector):
        return f"{x.kind}{' partial' if x.partial else ''} vector"
    named = {ScalarType: "scalar", SharedTile: "shared tile", SharedVector: "shared vector", Rectangle: "global tensor"}
    return named[type(x)]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def _scopes(op: type[Op], samples: list[Sample]) -> str:
    if not samples:
        return "the scope it is called on" if op.collective else "each thread"
    if not op.collective:
        return "each thread"
    found = {getattr(x, "warps", 1) for s in samples for x in _types(s.fields.values())} | {s.warps for s in samples}
    return _listed(GROUPS.get(n, f"group({n})") for n in sorted(found))


def required(op: type[Op], always: bool) -> set[str]:
    """The features that an operation's CUDA text names: those of every form of it, or of some forms only."""
    found = set()
    for cls in op.__mro__[: op.__mro__.index(Op)]:
        for name in ("cuda", "_require"):
            if name in vars(cls):
                source = inspect.getsource(vars(cls)[name])
                # A statement of the function itself is indented twice, one under a condition more.
                found |= set(re.findall(rf'^ {{{"8" if always else "9,"}}}c\.require\("([^"]+)"', source, re.M))
    return found


def _architectures(op: type[Op], samples: list[Sample]) -> str:
    needs = {s.needs for s in samples}
    always = required(op, True) | (needs if len(needs) == 1 else set()) - {""}
    some = (required(op, False) | needs) - always - {""}
    known = having(*always)
    text = f"{known[0]} only" if len(known) == 1 else f"{known[0]} and newer"
    return text + "".join(f"; {FEATURES[f]} from {having(f)[0]}" for f in sorted(some))


def _instructions(op: type[Op], samples: list[Sample]) -> str:
    """Those of the first sample of each combination of dtypes."""
    seen, found = set[tuple[Any, ...]](), list[str]()
    for number, sample in enumerate(samples):
        dtypes = tuple(x.dtype for x in _types(sample.fields.values()) if hasattr(x, "dtype"))
        if dtypes not in seen:
            seen.add(dtypes)
            found += instructions(op, sample, number)
    return _listed(found or named(op)) or ("arithmetic, loads and stores of CUDA C" if samples else "none of its own")


def _numerics(op: type[Op], samples: list[Sample]) -> str:
    found = []
    for number, sample in enumerate(samples):
        probe = Case(op, sample, number).probe()
        probe.results = tuple(Value(type) for type in probe.types())
        found.append(str(probe.numerics))
    if not samples and op.numerics is not None:
        return str(op.numerics) if isinstance(op.numerics, Numerics) else "as the reduction that it finishes"
    return " | ".join(dict.fromkeys(x for x in found if x != "None")) or "none: it makes no numbers"


def _derivative(op: type[Op], types: list[Any]) -> str:
    if op.vjp is not Op.vjp:
        return "yes"
    return op.no_vjp or "none: it makes no floats of floats in registers"


def _verified(name: str, sampled: bool) -> str:
    known: dict[str, dict[str, int]] = json.loads(VERIFIED.read_text(encoding="utf-8"))
    what = "samples" if sampled else "kernels"
    found = [f"{device}: {counts[name]} {what}" for device, counts in known.items() if name in counts]
    if found:
        return "; ".join(found)
    return "not yet"


def as_data() -> list[dict[str, Any]]:
    """The table as JSON has it."""
    return [
        {"group": group, "word": word, "operations": [asdict(row) for row in rows]} for group, word, rows in table()
    ]
