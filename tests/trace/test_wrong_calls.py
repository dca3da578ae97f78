"""Words called with anything: what they do not take is an error of the kernel's line, with a fix, and never a crash."""

import inspect
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import pykittens as pk
from pykittens import bf16, block, e4m3, f32, i32, i64, u32, warp, warpgroup
from pykittens.call.arguments import specialise
from pykittens.gpu import writer
from pykittens.passes import prepare
from pykittens.trace.tile import Tile
from pykittens.trace.tracer import trace
from tests.expecting import X, refused, says


@pk.kernel(warps=4)
def operands(a: pk.gl(f32, 64, 64), b: pk.gl(bf16, 64, 64), c: pk.gl(i64, 64), d: pk.gl(e4m3, 64, 64), n: i32, s: f32):
    pass


GIVEN = {
    "a": pk.spec(f32, (64, 64)),
    "b": pk.spec(bf16, (64, 64)),
    "c": pk.spec(i64, (64,)),
    "d": pk.spec(e4m3, (64, 64)),
    "n": 3,
    "s": 0.5,
}
PLAIN = [0, 1, -1, 16, 64, 2**31, 0.5, float("nan"), True, None, "row", "x", (0, 0), (0, 0, 0), (0,), [], {}, f32, i32]
PLAIN += [slice(None), slice(0, 16), np.float32(2), np.int64(3), abs, range(16), (0, 64), pk.coalesced(8, 4)]


def values(r: random.Random, given: dict[str, Any]) -> list[Any]:
    """What a kernel may hold, and what it may name."""
    layouts = ["row", "col", pk.coalesced(8, 8), pk.coalesced(4, 4)]
    n, a = given["n"], given["a"]
    held = [
        r.choice([warp, warpgroup]).zeros(r.choice([f32, bf16, i32, i64, u32]), 64, 64, layout=r.choice(layouts))
        for _ in range(4)
    ]
    held += [
        warp.load_vec(given["c"], (0,), length=64),
        warp.zeros_col(i32, 16),
        warp.zeros_row(f32, 64),
        warp.iota(32),
    ]
    held += [pk.shared(pk.st(f32, 16, 64)), pk.shared(pk.sv(f32, 64)), pk.shared(pk.st(bf16, 16, 64), 2), pk.barrier()]
    held += [pk.named_barrier(warps=4), pk.var(i32, 3), pk.var(f32, 1.0), n > 3, held[4] > 0, pk.at(0, 0), pk.at(n, 0)]
    return [*given.values(), *held, *PLAIN, (n, 0), warp.load(a, (0, 0), rows=16)]


def words() -> list[Callable[..., Any]]:
    found = [getattr(pk, name) for name in dir(pk) if name not in ("kernel", "gl", "nn", "testing")]
    found = [x for x in found if inspect.isfunction(x) and x.__module__.startswith("pykittens.trace")]
    for scope in (warp, block, pk.tma):
        names = [name for name in dir(scope) if not name.startswith("_")]
        found += [x for name in names if inspect.ismethod(x := getattr(scope, name, None))]
    return found


METHODS = [name for name in dir(Tile) if not name.startswith("_") and inspect.isfunction(getattr(Tile, name))]


def calls(seed: int, told: Counter[str]) -> Callable[..., None]:
    """A kernel that calls a few words with arguments drawn for it."""

    def kernel(**given: Any) -> None:
        r, known = random.Random(seed), words()
        held = values(r, given)
        for _ in range(4):
            tiles = [x for x in held if isinstance(x, Tile)]
            word = r.choice(known) if r.random() < 0.6 else getattr(r.choice(tiles), r.choice(METHODS))
            parameters = inspect.signature(word).parameters.values()
            places = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
            count = r.randint(sum(p.default is p.empty for p in places), len(places))
            named = {p.name: r.choice(held) for p in parameters if p.kind is p.KEYWORD_ONLY and r.random() < 0.15}
            made = word(*(r.choice(held) for _ in range(count)), **named)
            told["taken"] += 1
            held += [made] * 3 if isinstance(made, Tile) else []

    return kernel


@pytest.mark.parametrize("part", range(4))
def test_any_word_takes_or_refuses_anything(part: int) -> None:
    specialisation, _ = specialise(operands.signature, GIVEN, {})
    told: Counter[str] = Counter()
    for seed in range(150 * part, 150 * part + 150):
        try:
            program = trace(calls(seed, told), dict(specialisation.types), {}, warps=4)
            prepare(program)
            writer.write(program, "sm_90a")
            told["whole"] += 1
        except pk.KernelError as error:
            told["refused"] += 1
            assert error.fix, f"seed {seed}: {error}"
    assert told["refused"] > 100 and told["taken"] > 10


def test_what_a_word_came_upon_is_said_with_what_it_was_given() -> None:
    def k(x: X):
        pk.arrive(pk.barrier(), scope=3)  #!

    error = refused(k)
    says(error, "arrive(barrier=<barrier: mbarrier<1>>, scope=3): 'int' object has no attribute 'scope'")
    says(error, "", "its parameters are arrive(barrier: Value, *, scope: ScopeHandle | None = None")
    assert isinstance(error.__cause__, AttributeError)


@pytest.mark.parametrize("within", [False, True], ids=["in the kernel", "called by a word"])
def test_errors_of_the_authors_own_stay_theirs(within: bool) -> None:
    def missing(*_: Any) -> Any:
        return {}["missing"]

    def k(x: X):
        pk.associative_scan(missing, warp.zeros(f32, 16, 64)) if within else missing()

    with pytest.raises(KeyError, match="missing"):
        pk.kernel(k).program(pk.spec(f32, (16, 64)))
