"""Each fix that the simulator proposes is applied, and then works; each diagnosis says who, and shows both lines.

What the simulator may say is found in its source: every value of a `fix`. Each must be said to a row of `diagnoses.py`.
"""

import ast
import linecache
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pykittens as pk
from pykittens import sim
from tests.fixes.diagnoses import ARGUMENTS, HERE, ROWS

SOURCES = [p for p in sorted(Path(sim.__file__).parent.glob("*.py")) if p.name not in ("memory.py", "run.py")]
# What a traced program cannot come to, because tracing or the call has refused it, or the compiler does it itself.
NOT_REACHED = {
    "give every buffer bytes of its own: run the shared-memory plan",
    "bound the index of the view",
    "count one arrival for each thread or warp that arrives in a phase, or let fewer arrive",
    "let the writers meet the other side in a barrier after their writes (warp.sync(), pk.block.sync()); the compiler "
    "fences before it",
    "make it before the branch or role that uses it",
    "wait for it first: warpgroup.wait(.*)",
    "let all warps of the scope take the branch (a condition that is the same for all), or move the operation "
    "out of it",
}


def texts(node: ast.AST | None, names: dict[str, ast.AST]) -> Iterator[str]:
    """The texts that an expression may be, as patterns."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield re.escape(node.value)
    elif isinstance(node, ast.JoinedStr):
        yield "".join(next(texts(part, names), ".*") for part in node.values)
    elif isinstance(node, ast.BinOp):
        for left in texts(node.left, names):
            yield from (left + right for right in texts(node.right, names))
    elif isinstance(node, ast.IfExp):
        yield from texts(node.body, names)
        yield from texts(node.orelse, names)
    elif isinstance(node, ast.Name) and node.id in names:
        yield from texts(names[node.id], names)
    elif isinstance(node, ast.Dict):
        for value in node.values:
            yield from texts(value, names)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):  # WAITS.get(queue, BARRIER)
        yield from texts(node.func.value, names)
        for argument in node.args:
            yield from texts(argument, names)


def may_be_said() -> set[str]:
    found: set[str] = set()
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {
            n.targets[0].id: n.value for n in tree.body if isinstance(n, ast.Assign) and hasattr(n.targets[0], "id")
        }
        for node in ast.walk(tree):
            said = isinstance(node, ast.keyword) and node.arg == "fix"
            if isinstance(node, ast.Assign):
                said = any(isinstance(target, ast.Name) and target.id == "fix" for target in node.targets)
            if said:
                found.update(texts(node.value, names))  # type: ignore[attr-defined]
    return found


def run(lines: str, options: dict[str, Any], number: int) -> None:
    """Simulates a kernel of some lines, whose source errors can show."""
    here = HERE
    if options.get("plain"):  # without an mbarrier
        here = HERE.replace('b, two = pk.barrier(1, name="b"), ', "two = ")
    body = "".join(f"    {line}\n" for line in (here + lines).strip().splitlines())
    file, text = f"<diagnosis {number}>", f"def made({ARGUMENTS}):\n" + body
    linecache.cache[file] = (len(text), None, text.splitlines(True), file)
    space: dict[str, Any] = {name: getattr(pk, name) for name in ("bf16", "f32", "i32", "warp", "warpgroup")}
    exec(compile(text, file, "exec", dont_inherit=True), space | {"pk": pk}, space := {})
    settings = {"warps": 1, **{k: v for k, v in options.items() if k != "plain"}}
    kernel = pk.kernel(**settings)(space["made"])
    halves = np.zeros((64, 64), pk.bf16.numpy)
    kernel.simulate(
        np.ones((64, 16), np.float32), np.ones((32, 16), np.float32), halves, np.eye(8, dtype=np.int32)[7], 3
    )


@pytest.mark.parametrize("number", range(len(ROWS)), ids=[row[0][:40] for row in ROWS])
def test_a_fix_works(number: int) -> None:
    fix, wrong, right, options = ROWS[number]
    with pytest.raises(pk.Diagnosis) as caught:
        run(wrong, options, number)
    error = caught.value
    assert error.fix == fix, error
    assert error.location and error.location[0].text, "no line"
    assert re.search(r"(warps?|block) \d", error.fact), f"it does not say who: {error}"
    if isinstance(error, pk.RaceError):
        assert error.also or "cluster" in error.fix, "one line of two"
    run(right, options, number)


def test_every_fix_has_a_row() -> None:
    said = [row[0] for row in ROWS]
    missing = {p for p in may_be_said() if not any(re.fullmatch(p, fix) for fix in said)}
    assert {re.sub(r"\\(.)", r"\1", p) for p in missing} == NOT_REACHED
