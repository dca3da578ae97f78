"""Scratch of reductions is written again behind a barrier, wherever they stand, and no barrier is there without
need."""

import random

import numpy as np
import pytest

import pykittens as pk
from pykittens import f32
from pykittens.program import Program

X = pk.spec(f32, (4, 512))
Y = pk.spec(f32, (2, 512))
REDUCTIONS = {  # what is added to a variable, or to all of a row
    "s += v.sum()": lambda v: v.sum(),
    "s += v.max()": lambda v: v.max(),
    "u += t.row_sum()": lambda v: v.sum(),
    "u += t.row_max()": lambda v: v.max(),
}


def made(lines: list[str]) -> pk.Kernel:
    """A kernel over four warps with `v` (a vector of 512), `t` (the same as a row), and what sums up: `s` and the row
    `u`."""
    body = "\n".join(f"    {line}" for line in lines)
    text = f"""
@pk.kernel(warps=4)
def reducing(x: pk.gl(f32, 4, 512), y: pk.gl(f32, 2, 512)):
    s = pk.var(f32, 0.0)
    v = pk.block.load_vec(x, (0, 0))
    t = pk.block.load(x, (0, 0), rows=1, layout=pk.coalesced(128, 4))
    u = t * 0.0
{body}
    pk.block.set(y, (0, 0), s)
    pk.block.store(y, u, (1, 0))
"""
    scope = {"pk": pk, "f32": f32}
    exec(compile(text, "<made>", "exec"), scope)
    return scope["reducing"]


def barriers(program: Program) -> int:
    return sum(op.name == "barrier" for op in program.walk())


@pytest.mark.parametrize(
    ("lines", "count"),
    [
        (["s += v.sum()"], 1),
        (["s += v.sum()", "s += v.max()"], 2),
        (["s += v.sum()", "s += v.max()", "s += (v * v).sum()"], 3),
        (["for i in pk.range(3):", "    s += v.sum()"], 2),  # written again at the next pass
        (["for i in pk.range(3):", "    s += v.sum(); s += v.max()"], 2),  # each stands between the other's
        (["for i in pk.range(3):", "    s += v.sum(); s += v.max(); s += (v * v).sum()"], 4),
        (["for i in pk.range(3):", "    s += v.sum(); pk.block.sync()"], 2),  # the author's own will do
        (["s += v.sum()", "for i in pk.range(3):", "    s += v.sum(); s += v.max()"], 3),
    ],
)
def test_how_many_barriers(lines: list[str], count: int) -> None:
    assert barriers(made(lines).program(X, Y)) == count


def statements(dice: random.Random, depth: int, indent: str) -> tuple[list[str], list]:
    """Random statements that add reductions to `s`, and how often each is done."""
    lines, terms = [], []
    for _ in range(dice.randrange(1, 4)):
        kind = dice.choice(["reduce", "reduce", "sync", "loop", "when", "while"] if depth else ["reduce", "sync"])
        if kind == "reduce":
            text = dice.choice(list(REDUCTIONS))
            lines.append(indent + text)
            terms.append((1, text))
        elif kind == "sync":
            lines.append(f"{indent}pk.block.sync()")
        else:
            inner, what = statements(dice, depth - 1, indent + "    ")
            name, times = f"n{dice.randrange(10**6)}", dice.randrange(1, 4)
            if kind == "loop":
                lines += [f"{indent}for {name} in pk.range({times}):", *inner]
            elif kind == "when":
                times = dice.randrange(2)
                lines += [f"{indent}with pk.when(pk.block_index.x < {times}):", *inner]
            else:
                lines += [f"{indent}{name} = pk.var(pk.i32, 0)", f"{indent}for _ in pk.loop():", *inner]
                lines += [f"{indent}    {name} += 1", f"{indent}    pk.break_if({name} >= {times})"]
            terms += [(times * n, text) for n, text in what]
    return lines, terms


@pytest.mark.parametrize("seed", range(12))
def test_random_programs(seed: int) -> None:
    """The simulator finds no race in any order, and the values are right."""
    lines, terms = statements(random.Random(seed), 2, "")
    kernel = made(lines)
    x, y = np.random.default_rng(seed).integers(-9, 10, (4, 512)).astype(np.float32), np.zeros((2, 512), np.float32)
    for order in (None, 1, 2):
        kernel.simulate(x, y, seed=order)
        for got, target in ((y[0, :1], "s"), (y[1], "u")):
            want = sum(times * REDUCTIONS[text](x[0]) for times, text in terms if text[0] == target)
            assert (got == want).all(), lines


IN_CLUSTERS = {
    "straight": ["u += t.row_sum(cluster=True)"],
    "loop of one": ["for i in pk.range(3):", "    u += t.row_sum(cluster=True)"],
    "loop of two": ["for i in pk.range(3):", "    u += t.row_sum(cluster=True); u += t.row_max(cluster=True)"],
    "loop in a loop": ["for i in pk.range(2):", "    for j in pk.range(2):", "        u += t.row_sum(cluster=True)"],
    "a branch that is not taken": [
        "with pk.when(x.rows < 2):",
        "    u += t.row_sum(cluster=True)",
        "u += t.row_sum(cluster=True)",
    ],
    "a loop without a pass": [
        "for i in pk.range(x.rows - 4):",
        "    u += t.row_sum(cluster=True)",
        "u += t.row_max(cluster=True)",
    ],
}


@pytest.mark.parametrize("name", IN_CLUSTERS)
def test_blocks_of_a_cluster_meet_before_the_first_terms(name: str) -> None:
    body = "\n".join(f"    {line}" for line in IN_CLUSTERS[name])
    text = f"""
@pk.kernel(warps=4, grid=2, cluster=2)
def reducing(x: pk.gl(f32, "N", 1024), y: pk.gl(f32, 1, 1024)):
    t = pk.block.load(x, (0, pk.cluster.rank), rows=1, cols=512, layout=pk.coalesced(128, 4))
    u = t * 0.0
{body}
    pk.block.store(y, u, (0, pk.cluster.rank))
    pk.cluster.sync()
"""
    scope = {"pk": pk, "f32": f32}
    exec(compile(text, "<made>", "exec"), scope)
    x, y = np.random.default_rng(0).integers(-9, 10, (4, 1024)).astype(np.float32), np.zeros((1, 1024), np.float32)
    total, largest = x[0].sum(), x[0].max()
    want = {"loop of one": 3 * total, "loop of two": 3 * (total + largest), "loop in a loop": 4 * total}
    for order in (None, 1, 2, 3):
        scope["reducing"].simulate(x, y, seed=order)
        assert (y == want.get(name, largest if "pass" in name else total)).all()
