"""What a word is given it uses or refuses: each option of each word, in each form of a call, changes the program or is
an error.

The words and their options are read from the vocabulary; a word with an option that no form below gives fails the test.
"""

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

import pykittens as pk
from pykittens import bf16, f32, i32, warp, warpgroup
from pykittens.errors import KernelError
from pykittens.program import Place, Program, Value
from pykittens.trace.hopper import Tma, Turns
from pykittens.trace.memory import Shared
from pykittens.trace.rings import Ring
from pykittens.trace.scopes import ScopeHandle
from pykittens.trace.tile import Tile

COALESCED = pk.coalesced(8, 4)


def went(loop: Any, n: Any) -> None:
    """Goes through a loop whose index, or the first of whose indices, the program compares."""
    for found in loop:
        pk.assert_((found[0] if isinstance(found, tuple) else found) < n)


# A form of a call: the word, and the call in a kernel that has what `Here` makes, with options to add.
FORMS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "full": (ScopeHandle.full, lambda e, **o: warp.full(f32, 32, 32, 1.0, **o)),
    "zeros": (ScopeHandle.zeros, lambda e, **o: warp.zeros(f32, 32, 32, **o)),
    "ones": (ScopeHandle.ones, lambda e, **o: warp.ones(f32, 32, 32, **o)),
    "full_col": (ScopeHandle.full_col, lambda e, **o: warp.full_col(f32, 32, 1.0, **o)),
    "zeros_col": (ScopeHandle.zeros_col, lambda e, **o: warp.zeros_col(f32, 32, **o)),
    "full_row": (ScopeHandle.full_row, lambda e, **o: warp.full_row(f32, 32, 1.0, **o)),
    "zeros_row": (ScopeHandle.zeros_row, lambda e, **o: warp.zeros_row(f32, 32, **o)),
    "full_vec": (ScopeHandle.full_vec, lambda e, **o: warp.full_vec(f32, 128, 1.0, **o)),
    **{f: (getattr(pk, f), lambda e, f=f, **o: getattr(pk, f)(e.f, **o)) for f in ("zeros_like", "ones_like")},
    "full_like": (pk.full_like, lambda e, **o: pk.full_like(e.f, 1, **o)),
    "associative_scan": (pk.associative_scan, lambda e, **o: pk.associative_scan(pk.maximum, e.f, **o)),
    "iota": (ScopeHandle.iota, lambda e, **o: warp.iota(128, **o)),
    "iota_col": (ScopeHandle.iota_col, lambda e, **o: warp.iota_col(32, **o)),
    "iota_row": (ScopeHandle.iota_row, lambda e, **o: warp.iota_row(32, **o)),
    "as_vec": (Tile.as_vec, lambda e, **o: warp.iota(128).as_vec(**o)),
    "as_col": (Tile.as_col, lambda e, **o: warp.iota(128).as_col(**o)),
    "as_row": (Tile.as_row, lambda e, **o: warp.iota(128).as_row(**o)),
    "load of a tensor": (
        ScopeHandle.load,
        lambda e, **o: warp.load(e.x, **{"coordinate": (0, 0), "rows": 16, "cols": 16, **o}),
    ),
    "load of a tensor, coalesced": (
        ScopeHandle.load,
        lambda e, **o: warp.load(e.x, **{"coordinate": (0, 0), "rows": 16, "cols": 32, "layout": COALESCED, **o}),
    ),
    "load of a shared tile": (ScopeHandle.load, lambda e, **o: warp.load(e.tile, **o)),
    "load of a shared vector": (
        ScopeHandle.load,
        lambda e, **o: warp.load(e.row, **{"layout": pk.coalesced(32, 1), **o}),
    ),
    "load_pairs": (ScopeHandle.load_pairs, lambda e, **o: warp.load_pairs(e.bytes, **o)),
    "load_into": (ScopeHandle.load_into, lambda e, **o: warp.load_into(e.tile, e.x, **{"coordinate": (0, 0), **o})),
    "load_async": (ScopeHandle.load_async, lambda e, **o: warp.load_async(e.tile, e.x, **{"coordinate": (0, 0), **o})),
    **{
        f"{name} of a {what}": (
            getattr(ScopeHandle, name),
            lambda e, name=name, source=source, given=given, **o: getattr(warp, name)(getattr(e, source), **given | o),
        )
        for name in ("load_vec", "load_col", "load_row")
        for what, source, given in (
            ("tensor", "x", {"coordinate": (0, 0), "length": 32}),
            ("shared vector", "row", {}),
        )
    },
    "store of registers to a tensor": (
        ScopeHandle.store,
        lambda e, **o: warp.store(e.x, e.f, **{"coordinate": (0, 0), **o}),
    ),
    "store of a coalesced tile to a tensor": (
        ScopeHandle.store,
        lambda e, **o: warp.store(e.x, e.c, **{"coordinate": (0, 0), **o}),
    ),
    "store of a shared tile to a tensor": (
        ScopeHandle.store,
        lambda e, **o: warp.store(e.x, e.tile, **{"coordinate": (0, 0), **o}),
    ),
    "store of registers to a shared tile": (ScopeHandle.store, lambda e, **o: warp.store(e.tile, e.f, **o)),
    "store of a vector to a shared vector": (
        ScopeHandle.store,
        lambda e, **o: warp.store(e.row, e.f.row_max(), **o),
    ),
    **{
        f"{kind} at indices": (
            getattr(ScopeHandle, kind),
            lambda e, kind=kind, **o: getattr(warp, kind)(
                e.row, warp.iota_row(32).to(f32), **{"coordinate": warp.iota_row(32)} | o
            ),
        )
        for kind in ("add", "min", "max")
    },
    "set of a tensor's element": (ScopeHandle.set, lambda e, **o: warp.set(e.x, (0, 0), 1.0, **o)),
    "set in order": (ScopeHandle.set, lambda e, **o: warp.set(e.x, (0, 0), 1.0, **{"order": "release", **o})),
    "set of a shared vector's element": (ScopeHandle.set, lambda e, **o: warp.set(e.row, 0, 1.0, **o)),
    **{
        f"pk.atomic_{kind}": (
            getattr(pk, f"atomic_{kind}"),
            lambda e, kind=kind, **o: getattr(pk, f"atomic_{kind}")(e.z, (0, 0), 1, **{"by": warp, **o}),
        )
        for kind in ("add", "min", "max", "and", "or", "xor", "exch")
    },
    "pk.atomic_cas": (pk.atomic_cas, lambda e, **o: pk.atomic_cas(e.z, (0, 0), 0, 1, **{"by": warp, **o})),
    "pk.fence": (pk.fence, lambda e, **o: pk.fence(**o)),
    "pk.signal": (pk.signal, lambda e, **o: pk.signal(e.z, (0, 0), **o)),
    "pk.wait_for": (pk.wait_for, lambda e, **o: pk.wait_for(e.z, (0, 0), **o)),
    "swap_layout": (Tile.swap_layout, lambda e, **o: warp.zeros(bf16, 16, 16).swap_layout(**o)),
    "transpose": (Tile.transpose, lambda e, **o: warp.zeros(bf16, 16, 16).transpose(**o)),
    "registers": (Tile.registers, lambda e, **o: e.f.registers(**o)),
    "tile": (Tile.tile, lambda e, **o: warp.zeros(bf16, 16, 64).registers().tile(16, 64, **o)),
    "wait_loads": (ScopeHandle.wait_loads, lambda e, **o: warp.wait_loads(**o)),
    "arrive_at": (ScopeHandle.arrive_at, lambda e, **o: warp.arrive_at(e.named, **o)),
    "sync_at": (ScopeHandle.sync_at, lambda e, **o: warp.sync_at(e.named, **o)),
    "col_sum": (Tile.col_sum, lambda e, **o: pk.block.zeros(f32, 64, 32).col_sum(**o)),
    "pk.tril": (pk.tril, lambda e, **o: pk.tril(e.f, **o)),
    "pk.triu": (pk.triu, lambda e, **o: pk.triu(e.f, **o)),
    "row_max": (Tile.row_max, lambda e, **o: e.f.row_max(**o)),
    "row_sum": (Tile.row_sum, lambda e, **o: e.f.row_sum(**o)),
    "row_dot": (Tile.row_dot, lambda e, **o: e.f.row_dot(e.f, **o)),
    "row_dot, coalesced": (Tile.row_dot, lambda e, **o: e.c.row_dot(e.c, **o)),
    "row_max, coalesced": (Tile.row_max, lambda e, **o: e.c.row_max(**o)),
    "row_sum, coalesced": (Tile.row_sum, lambda e, **o: e.c.row_sum(**o)),
    "row_sum, coalesced, of the block": (Tile.row_sum, lambda e, **o: e.wide.row_sum(**o)),
    **{
        f"{line}cum{kind}": (
            getattr(Tile, f"{line}cum{kind}"),
            lambda e, word=f"{line}cum{kind}", **o: getattr(e.f if "_" in word else e.max, word)(**o),
        )
        for line in ("row_", "col_", "")
        for kind in ("sum", "prod", "max", "min")
    },
    "row_sums": (pk.row_sums, lambda e, **o: pk.row_sums(e.wide, **o)),
    "random_bits": (pk.random_bits, lambda e, **o: pk.random_bits(e.c, (1, 2), **o)),
    "pk.shared": (pk.shared, lambda e, **o: pk.shared(pk.st(f32, 16, 16), **o)),
    "pk.barrier": (pk.barrier, lambda e, **o: pk.barrier(**o)),
    "pk.named_barrier": (pk.named_barrier, lambda e, **o: pk.named_barrier(8, **o)),
    "pk.print": (pk.print, lambda e, **o: pk.print("x", **o)),
    "pk.grouped": (pk.grouped, lambda e, **o: went(pk.grouped(e.n, 3, 2, **o), e.n)),
    "pk.rectangle": (pk.rectangle, lambda e, **o: went(pk.rectangle(e.n, 3, **o), e.n)),
    "pk.shares": (
        pk.shares,
        lambda e, **o: pk.shares(*(pk.shared(pk.sv(i32, 32)) for _ in range(2)), 2, **o).walk().take(),
    ),
    "pk.band": (pk.band, lambda e, **o: pk.band(e.n, 64, **o).sees(e.f, 0, 0)),
    "pk.assert_": (pk.assert_, lambda e, **o: pk.assert_(e.n > 0, **o)),
    "pk.cuda": (pk.cuda, lambda e, **o: pk.cuda("", **o)),
    "pk.var": (pk.var, lambda e, **o: pk.var(pk.i32, **o)),
    "pk.range": (pk.range, lambda e, **o: went(pk.range(e.n, **o), e.n)),
    "tma.load": (Tma.load, lambda e, **o: pk.tma.load(e.tile, e.x, (0, 0), **{"barrier": e.bar, **o})),
    "tma.store": (Tma.store, lambda e, **o: pk.tma.store(e.x, e.tile, (0, 0), **o)),
    "tma.expect": (Tma.expect, lambda e, **o: pk.tma.expect(e.bar, e.tile, **o)),
    "tma.wait": (Tma.wait, lambda e, **o: pk.tma.wait(**o)),
    "warpgroup.wait": (type(warpgroup).wait, lambda e, **o: warpgroup.wait(**o)),
    "pk.arrive": (pk.arrive, lambda e, **o: pk.arrive(e.bar, **o)),
    "pk.wait": (pk.wait, lambda e, **o: pk.wait(e.bar, 0, **o)),
    "cluster.load": (type(pk.cluster).load, lambda e, **o: pk.cluster.load(e.remote, 1, **o)),
    "wait_for_previous": (pk.wait_for_previous, lambda e, **o: pk.wait_for_previous(**o)),
}
# Where it is not a program that an option changes: names for people, and words that stand on others in this table.
ELSEWHERE = {
    "name": "labels of rings, barriers and tiles",
    (Tma.share, "hint"): "handed to load",
    (pk.dynamic, "ahead"): "slots of a ring",
    (pk.dynamic, "taker"): "which of how many",
    (pk.gl, "dense"): "tests/ops/test_addressing.py",
    (Ring.release, "after"): "tests/hopper",
    (Ring.held, "place"): "tests/hopper",
    (pk.role, "warps"): "pk.role needs warps or warpgroups",
    (pk.role, "warpgroups"): "the same",
    (pk.role, "registers"): "tests/hopper/test_roles.py",
    (pk.ring, "tile"): "one tile, or tiles by name",
}


def given(name: str, e: SimpleNamespace, form: str) -> Any:
    """Something other than the default for an option."""
    return {
        "coordinate": (1, 1),
        "rows": 48,
        "cols": 64,
        "length": 64,
        "dtype": bf16,
        "diagonal": 1,
        "value": 7,
        "layout": "row" if form in ("swap_layout", "transpose") else "col",
        "partial": True,
        "along": "col",
        "width": 2 if form == "registers" else 4,
        "hint": "stream",
        "rank": 1,
        "pending": 1,
        "index": 1,
        "cluster": True,
        "onto": e.sum,
        "fade": e.max,
        "times": e.wide,
        "initial": 1,
        "row": 16,
        "col": 16,
        "count": 3,
        "parts": 2,
        "together": 2,
        "tiles": [e.n],
        "n": 3,
        "items": 3,
        "least": 5,
        "blocks": 4,
        "single": True,
        "left": 3,
        "right": 3,
        "text": "said",
        "order": "acq_rel" if form.startswith("pk.atomic") else "release" if "shared" in form else "relaxed",
        "scope": "cta"
        if form.startswith(("pk.atomic", "pk.fence", "pk.signal", "pk.wait_for", "set"))
        else pk.group(2),
        "by": pk.group(2),
        "reads": {"n": e.n},
        "writes": {"f": e.f},
        "numpy": lambda **_: None,
        "support": "// nothing",
        "touches": {"v": lambda i: i},
        "unroll": 2,
        "barrier": e.bar2,
        "multicast": 3,
        "bytes": 16,
        "read": True,
        "independent": (e.x,),
        "within": (0, 40),
        "columns": (0, 40),
        "reverse": True,
    }[name]


def options(word: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(word).parameters.values()
    return [p.name for p in parameters if p.default is not inspect.Parameter.empty]


def recorded(form: str, option: str = "") -> list[str]:
    """What a call records, as text in which values are numbered."""

    call = FORMS[form][1]

    @pk.kernel(warps=4, cluster=2, grid=2)
    def k(x: pk.gl(f32, "M", "N"), z: pk.gl(i32, "M", "N"), n: pk.i32):
        e = SimpleNamespace(x=x, z=z, n=n, tile=pk.shared(pk.st(f32, 32, 32)), row=pk.shared(pk.sv(f32, 32)))
        e.remote, e.bar, e.bar2 = pk.shared(pk.st(bf16, 64, 64)), pk.barrier(), pk.barrier()
        e.bytes, e.named = pk.shared(pk.st(pk.e4m3, 32, 32)), pk.named_barrier(8, count=2)
        e.f, e.c = warp.zeros(f32, 32, 32), warp.zeros(f32, 32, 32, layout=COALESCED)
        e.wide = pk.block.zeros(f32, 1, 512, layout=pk.coalesced(128, 4))
        e.sum, e.max = e.f.row_sum(partial=True), e.f.row_max()
        call(e, **({option: given(option, e, form)} if option else {}))

    x = pk.spec(f32, (64, 64))
    return text(k.program(x, pk.spec(i32, (64, 64)), 1))


def text(program: Program) -> list[str]:
    numbers: dict[Value, str] = {}

    def label(x: Any) -> str:
        if isinstance(x, Value):
            return numbers.setdefault(x, f"{x.type} #{len(numbers)}")
        if isinstance(x, Place):
            return f"{label(x.tensor)} at {[*map(label, x.first)]} of {x.shape} within {x.within} columns {x.columns}"
        if isinstance(x, (tuple, list)):
            return str([*map(label, x)])
        return repr(x)

    shown = ("location", "results")
    lines = [f"{label(b.value)} x {b.count}" for b in program.buffers]
    lines += [f"{b.type} x {b.count}" for b in program.facts.get("named barriers", [])]
    for op in program.walk():
        fields = {k: label(v) for k, v in vars(op).items() if k not in shown and "Block" not in type(v).__name__}
        lines.append(f"{type(op).__name__} {fields} -> {[*map(label, op.results)]}")
    return lines


NO_WORDS = ("kernel", "when", "spec", "autotune", "do_bench")  # that kernels are written with
WORDS = {word: None for word, _ in FORMS.values()}
CASES = [(form, option) for form, (word, _) in FORMS.items() for option in options(word) if option != "name"]


@pytest.mark.parametrize("form", FORMS)
def test_forms_are_right(form: str) -> None:
    """Without options nothing is refused: what is refused below is refused for its option."""
    recorded(form)


@pytest.mark.parametrize(("form", "option"), CASES, ids=lambda x: x)
def test_an_option_is_used_or_refused(form: str, option: str) -> None:
    try:
        changed = recorded(form, option)
    except KernelError as error:
        assert error.fix, error
        return
    assert changed != recorded(form), f"{form}: {option} is ignored"


def vocabulary() -> dict[str, Callable[..., Any]]:
    """Every function and method that kernels are written with, by name."""
    found: dict[str, Callable[..., Any]] = {}
    for name in pk.__all__:
        word = getattr(pk, name)
        if inspect.isfunction(word) and name not in pk.functions.PUBLIC and name not in NO_WORDS:
            found[name] = word
    for cls in (*ScopeHandle.__mro__[:-1], type(warpgroup), type(pk.cluster), Tma, Tile, Shared, Ring, Turns):
        for name, method in vars(cls).items():
            if inspect.isfunction(method) and not name.startswith("_"):
                found[f"{cls.__name__}.{name}"] = method
    return found


def test_every_word_with_options_has_a_form() -> None:
    missing = [
        f"{name}({option}=)"
        for name, word in vocabulary().items()
        for option in options(word)
        if word not in WORDS and (word, option) not in ELSEWHERE and option not in ELSEWHERE
    ]
    assert not missing, missing
