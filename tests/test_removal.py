"""Every synchronisation statement of every shipped kernel is needed, and its removal is found; or it is listed here
with a proof.

A kernel is run in several instances; a statement is found where one of them finds it. With `--whole` each row of the
registry finds its own, in all configurations; in CI the rows of one kernel do it together, in every value of every
option. Lists are by row, what the statement does, and its line. A statement that nothing misses and
that is not listed fails, and so does a listed one that is now missed.
"""

import contextlib
import functools
import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import pykittens as pk
from pykittens import f32, i32, warp
from pykittens.kernels import cross_entropy, gemm, rows
from pykittens.kernels.catalog import Instance, Shipped
from pykittens.kernels.registry import KERNELS
from pykittens.testing.removal import removals
from tests import thin

FIRST_PASS = "at the first pass through the ring, which finds every slot empty"
# Placed by `passes/read_fences.py`: the simulator orders reads before TMA's next write, and asks for no proxy fence.
FENCE_OF_READS = ("proxyfence", "ring.release()")
WHOLE = "products are a warpgroup's: a warp that has waited for one knows that all four have read its operands"
OF_HOPPER = [f"attention_hopper{what}" for what in ("", "_window", "_packed", "_scored", "_heads")]
# How many statements of that kind and line are harmless, and why.
HARMLESS = {
    ("linear_cross_entropy_finish", "barrier", "warp.store(shared[term * WARPS + warp.index], mine)"): (
        3,
        "each term has places of its own, which the pass that adds warps' barriers does not follow",
    ),
    ("attention_backward_wide", "wait", "query, grads = q_ring.read(), do_ring.held()"): (
        1,
        "the queries had landed when the other warpgroup made the scores, of which this one waits for the weights",
    ),
    **{
        (name, "namedsync", "turns.finish(me)"): (
            1,
            "takes the last turn, which nobody uses: a hardware barrier that is half full ends with its block",
        )
        for name in OF_HOPPER
    },
    **{
        (name, "waitbulk", "warpgroup.tma.wait()"): (
            1,
            "the wait of each tile covers what the stores read, and the end of the grid finishes what they write",
        )
        for name in OF_HOPPER
    },
    **{
        (name, *what): why
        for name in ("linear_attention", "linear_attention_backward")
        for what, why in {
            ("wait", "with pk.when(i < chunks), ring.fill() as slot:"): (2, FIRST_PASS),
            ("barrier", "warpgroup.sync()  # all warps have done with the decayed keys"): (1, WHOLE),
        }.items()
    },
    **{
        (name, *what): why
        for name in ("based", "based_backward_values")
        for what, why in {
            ("wait", "with pk.when(i > last if reverse else i < last), ring.fill() as slot:"): (3, FIRST_PASS),
            (
                "proxyfence",
                "warpgroup.store(tiles[1][:, FEATURES - D :], warpgroup.zeros(dtype, CHUNK, D))  # x needs no more",
            ): (1, "the fence of the first chunk's features, before their barrier, covers it"),
            ("wgmmawait", "warpgroup.wait(rest)  # whose registers are needed"): (
                1,
                "the next wait for the output covers it: this one lets the compiler use registers again",
            ),
            ("barrier", "warpgroup.sync()  # all warps have done with the features"): (1, WHOLE),
        }.items()
    },
    ("gla_prepare", "barrier", "query, key = warp.load(own_q), warp.load(own_k)"): (
        1,
        "each step has columns of its own",
    ),
    **{
        (name, "wait", "with pk.when(i < chunks), ring.fill() as slot:"): (2, FIRST_PASS)
        for name in ("gated_delta_rule", "gated_delta_rule_moves")
    },
    ("gated_delta_rule_carry", "wait", "with pk.when(i < count), ring.fill() as slot:"): (
        3,
        f"two {FIRST_PASS}; the third because only products read a slot, and {WHOLE}",
    ),
    **{
        (name, "wait", "with pk.when(step < chunks), ring.fill() as slot:"): (2, FIRST_PASS)
        for name in ("gated_delta_rule_unwind", "gated_delta_rule_ends")
    },
    ("gated_delta_rule_backward", "wait", "with both.fill() as slot:"): (1, FIRST_PASS),
    **{
        (name, "wait", "with pk.when(part < parts), ring.fill() as slot:"): (2, FIRST_PASS)
        for name in ("gated_delta_rule_backward", "kimi_delta_attention_states")
    },
    ("gated_delta_rule_prepare", "barrier", "warp.store(vectors[1], pk.maximum(g * LOG2E, LEAST).cumsum())"): (
        1,
        "a pass's barrier before the store, of a vector that nobody has read",
    ),
    (
        "kimi_delta_attention_prepare",
        "barrier",
        "warp.store(part(kept[i], col), (x * fade).to(dtype))",
    ): (2, "a pass's barrier before the store, of a part that nobody has read"),
    (
        "kimi_delta_attention_prepare",
        "barrier",
        "query, key = (warp.load(part(x, col)).to(f32) * own for x, own in zip((queries, keys), owns, strict=True))",
    ): (1, "a pass's barrier: what the warp has stored are other columns"),
    (
        "kimi_delta_attention_backward",
        "barrier",
        "warp.store(kept[i].part(block * ROWS, mine * WIDTH, ROWS, WIDTH), x)",
    ): (2, "a pass's barrier before the store, which comes behind a barrier of the block"),
    ("based_backward", "wait", "with pk.when(i < chunks), ring.fill() as slot:"): (3, FIRST_PASS),
    ("based_backward", "barrier", "warpgroup.sync()  # all warps have done with the features"): (1, WHOLE),
}

# Options whose other values change nothing in how a kernel synchronises. Of rows that add to dq in one order, none:
# what they have beside the others are turns, and additions, which commute, are right without them.
ENOUGH = {
    **{f"attention_backward_{name}_divided": {"causal": ()} for name in ("hopper", "wide")},
    "attention_backward_hopper": {"dtype": ("bf16",), "dim": (64, 256)},
    "attention_backward_ampere": {"dtype": ("bf16",), "dim": (64,)},
    "attention_backward_ampere_finish": {"dim": (64,), "dtype": ("bf16",), "shared": (163 * 1024,)},
    "attention_backward_prepare": {"dim": (64,), "dtype": ("bf16",)},
    "attention_backward_finish": {"dim": (64,), "dtype": ("bf16",)},
    "attention_backward_merge": {"dim": (64,), "dtype": ("bf16",)},
    "attention_ada": {"dtype": ("bf16",)},
    "attention_hopper": {"dtype": ("bf16",), "dim": (64,)},
    "attention_hopper_window": {"dim": (64,)},
    "attention_ampere_window": {"dim": (64,)},
    "attention_hopper_packed": {"dim": (64,)},
    "attention_hopper_heads": {"dim": (64,)},
    "attention_backward_hopper_packed": {"dim": (64,)},
    "attention_backward_hopper_window": {"dim": (64,)},
    "attention_backward_hopper_first": {"dim": (64,)},
    "attention_backward_hopper_softcap": {"dim": (64,)},
    "based": {"dim": (64,)},
    "based_backward": {"dim": (64,), "dtype": ("f16",), "reverse": (True,)},
    "based_backward_values": {"dim": (64,), "dtype": ("f16",)},
    "gemm": {"dtype": ("bf16",), "ta": (False,), "tb": (False,)},
    "gemm_swapped": {"dtype": ("bf16",), "tb": (False,)},
    "gated_delta_rule": {"dim": (64,), "dtype": ("f16",)},
    **{f"gated_delta_rule{part}": {"dim": (64,), "dtype": ("f16",)} for part in ("_prepare", "_unwind")},
    "gated_delta_rule_backward": {"dim": (64,), "dtype": ("bf16",)},
    "gla": {"dim": (64,), "dtype": ("bf16",)},
    "gla_prepare": {"dtype": ("bf16",)},
    "gla_states": {"dim": (64,)},
    "kimi_delta_attention_states": {"dim": (64,), "dtype": ("bf16",)},
    **{f"kimi_delta_attention_{part}": {"dim": (64,), "dtype": ("bf16",)} for part in ("prepare", "backward")},
    "linear_attention": {"dim": (64,)},
    **{
        f"linear_cross_entropy{step}": {"dtype": ("bf16",), "everything": (False,)}
        for step in ("", "_gradient", "_kept")
    },
    "ssd": {"state": (64,), "dtype": ("bf16",)},
    "ssd_backward": {"state": (64,), "dtype": ("bf16",), "gate": (True,)},
    "linear_attention_backward": {"dim": (64,), "dtype": ("bf16",)},
    "cross_entropy": {"n": (1000, 5000), "dtype": ("bf16",)},
    **{name: {"n": (1000,), "dtype": ("bf16",)} for name in ("layernorm_backward", "rmsnorm_backward")},
    **{
        name: {"n": (1000, 256, 8192)} for name in ("softmax", "softmax_backward", "layernorm", "rmsnorm")
    },  # wide rows: a small instance below
}
# Where blocks that come to a tile at once wait for one another: no order in which one ends before the next begins does.
AT_ONCE = ("attention_backward_hopper_first",)
LONGER = ("based", "based_backward", "based_backward_values")


def enough(row: Shipped, choice: dict[str, Any]) -> bool:
    return all(choice[option] in values for option, values in ENOUGH.get(row.name, {}).items())


def instances(rows: list[Shipped], whole: bool) -> Iterator[Instance]:
    """Of rows that run one kernel: all that is enough, or (in CI) each row and every value of every option."""
    every = [(row, found) for row in rows for choice, found in row.configurations() if enough(row, choice)]
    few = [(row, found) for row, _, found in thin.configurations(rows, enough)]
    for row, found in every if whole else few:
        yield longer(found, 5 * 64 - 20) if row.name in LONGER else found  # three slots go round twice
    for row in rows:
        yield from special(row, whole or row is rows[0])


def special(row: Shipped, signs: bool) -> Iterator[Instance]:
    """Instances of other operands or settings than the registry's; with `signs`, scales below 0."""
    name = row.name
    found = row.make(**row.default())
    assert found is not None
    if signs and name in (
        "attention_hopper",
        "attention_ampere",
        "attention_hopper_packed",
        "attention_hopper_heads",
        "attention_ampere_packed",
    ):  # a scale below 0 turns the queries
        yield replace(found, operands={**found.operands, "scale": -0.125})
    if name == "attention_backward_ampere_window":  # keys that nobody sees
        yield replace(found, operands={**found.operands, "left": -500})
    if name in (
        "attention_hopper",
        "attention_hopper_heads",
        "attention_hopper_window",
    ):  # with one block of keys, two tiles of queries are under way
        few = pk.spec(pk.bf16, (1, 2, 100, 64))
        yield replace(found, operands={**found.operands, "k": few, "v": few})
    if name.split("_")[0] in ("softmax", "layernorm", "rmsnorm"):
        few = row.make(**{**row.default(), "n": 2048, "dtype": "bf16"})
        assert few is not None
        for cluster in (1, 2):  # nine rows through two slots of each of two teams
            config = rows.stream(2048, 2, 4, 4, processors=cluster, cluster=cluster, team=4, stages=2)
            yield replace(few, statics={**few.statics, "config": config})
            if "counter" in few.operands:  # and through more slots than numbers of rows have
                config = rows.stream(2048, 2, 4, 4, processors=cluster, cluster=cluster, team=4, teams=1)
                operands = {**few.operands, "counter": pk.spec(pk.i32, (1,))}
                yield replace(few, operands=operands, statics={**few.statics, "config": config})
    if name == "cross_entropy":
        few = row.make(n=5001, dtype="bf16", everything=False)
        assert few is not None
        for cluster, teams, stages in ((1, 1, 4), (1, 2, 4), (2, 2, 4), (2, 2, 2)):
            settings: dict[str, Any] = {"split": (cluster, 4, teams), "processors": cluster, "stages": stages}
            statics = {**few.statics, "config": cross_entropy.plan_rows(5001, 2, 2, dense=True, **settings)}
            yield replace(few, statics=statics)  # rows are drawn
            yield replace(few, operands={**few.operands, "counter": None}, statics={**statics, "dependent": False})
    if name == "gemm":
        for share in ("a", "k"):
            yield replace(found, statics={**found.statics, "config": gemm.Config(cols=64, cluster=2, share=share)})


def longer(found: Instance, rows: int) -> Instance:
    """The instance with sequences of `rows` rows, and one head."""
    changed = {
        n: replace(x, shape=(1, 1, rows if n in "qkvoxyab" else x.shape[2], x.shape[3]))
        for n, x in found.operands.items()
    }
    return replace(found, operands=changed, values={n: x[:, :1] for n, x in found.values.items()})


def survivors(rows: list[Shipped], known: Counter[object], whole: bool) -> tuple[Counter[object], str]:
    """What nothing misses in any instance of the rows, by what and line, and in words.

    In CI all run in one order of blocks and warps, and then the first, and those of `AT_ONCE`, in every order; each
    looks at its own statements, and at those that nothing has found yet and that are not `known`.
    """
    is_found: dict[object, bool] = {}  # by statement, in any instance
    keys, words = {}, {}

    def left() -> list[object]:
        return [x for x, found in is_found.items() if not found and keys[x] != FENCE_OF_READS]

    every = [*instances(rows, whole)]
    again = [*every[:1], *(found for row in rows if row.name in AT_ONCE for found in instances([row], False))]
    for i, instance in enumerate(every if whole else [*every, *again]):
        seen: Counter[object] = Counter()
        open_ = Counter(keys[x] for x in left())
        settled = set() if whole else {x for x, found in is_found.items() if found or open_[keys[x]] == known[keys[x]]}
        with contextlib.nullcontext() if whole or i >= len(every) else thin.one_order():
            for removal in removals(instance.kernel, **instance.arrays(), **instance.statics):
                place = (removal.what, removal.op.location)
                seen[place] += 1
                statement = (place, seen[place])
                if statement in settled:
                    continue
                is_found[statement] = is_found.get(statement, False) or removal.found is not None
                keys[statement], words[statement] = (removal.what, removal.line), str(removal)
    return Counter(keys[x] for x in left()), "nothing misses\n" + "\n".join(words[x] for x in left())


def harmless(name: str) -> Counter[object]:
    return Counter({(what, line): count for (row, what, line), (count, _) in HARMLESS.items() if row == name})


@pytest.mark.parametrize("rows", thin.of_one_kernel(), ids=lambda rows: rows[0].name)
def test_every_removal_is_found(rows: list[Shipped]) -> None:
    known = functools.reduce(operator.or_, (harmless(row.name) for row in rows))
    left, words = survivors(rows, known, False)
    assert left == known, words


@pytest.mark.whole
@pytest.mark.parametrize("name", KERNELS)
def test_every_removal_is_found_in_each_row(name: str) -> None:
    left, words = survivors([KERNELS[name]], harmless(name), True)
    assert left == harmless(name), words


def test_flags_fences_and_atomics_lose_their_order() -> None:
    @pk.kernel(warps=4, grid=(4, 1, 1))
    def last_block(counter: pk.gl(i32, 1), part: pk.gl(f32, 64, 16), out: pk.gl(f32, 16, 16), *, fenced: bool) -> None:
        mine = pk.shared(pk.sv(i32, 4))
        with pk.when(warp.index == 1):
            warp.store(part, warp.full(f32, 16, 16, 0.25), (pk.block_index.x, 0))
        pk.block.sync()
        with pk.when(warp.index == 0):
            if fenced:
                pk.fence()
            ticket = pk.atomic_add(counter, 0, 1, order="relaxed" if fenced else "acq_rel", by=warp)
            if fenced:
                pk.fence()
            warp.set(mine, 0, ticket)
        pk.block.sync()
        with pk.when(mine[0] == 3), pk.when(warp.index == 2):
            total = warp.zeros(f32, 16, 16)
            for i in pk.range(4):
                total += warp.load(part, (i, 0), rows=16)
            warp.store(out, total, (0, 0))

    @pk.kernel(warps=2, grid=(4, 1, 1), cluster=(2, 1, 1))
    def chain(flags: pk.gl(i32, 8), x: pk.gl(i32, 1)) -> None:
        me = pk.block_index.x
        with pk.when(warp.index == 0):
            with pk.when(pk.cluster.rank == 1):
                pk.wait_for(flags, me - 1, scope="cluster")
            with pk.otherwise(), pk.when(me > 0):
                pk.wait_for(flags, me - 1)
        pk.block.sync()
        with pk.when(warp.index == 1):
            warp.set(x, 0, x[0] + 1)
        with pk.when(pk.cluster.rank == 0):
            pk.signal(flags, me, scope="cluster")
        with pk.otherwise():
            pk.signal(flags, me)

    def changes(kernel: pk.Kernel, *operands: np.ndarray, **statics: object) -> Counter[str]:
        for removal in (found := list(removals(kernel, *operands, **statics))):
            assert removal.found is not None, f"nothing misses the {removal}"
        return Counter(removal.what for removal in found)

    given = np.zeros(1, np.int32), np.zeros((64, 16), np.float32), np.zeros((16, 16), np.float32)
    atomic = changes(last_block, *given, fenced=False)
    assert atomic == Counter(
        {"barrier": 2, "atomic order=acquire": 1, "atomic order=release": 1, "atomic memory_scope=cta": 1}
    )
    fences = changes(last_block, *given, fenced=True)
    assert fences == Counter({"barrier": 2, "memoryfence": 2, "memoryfence memory_scope=cta": 2})
    flags = changes(chain, np.zeros(8, np.int32), np.zeros(1, np.int32))
    assert flags["signal"] == flags["waitfor"] == flags["signal order=relaxed"] == flags["waitfor order=relaxed"] == 2
    assert flags["signal memory_scope=cta"] == flags["signal memory_scope=cluster"] == 1
