"""Attention with score functions and masks of a user and its gradients, beside float64 where no tile is full."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import pykittens as pk  # noqa: E402
from pykittens.errors import ArgumentError, TraceError  # noqa: E402
from pykittens.functions import scorings  # noqa: E402
from pykittens.interop.arrays import describe  # noqa: E402
from pykittens.kernels import attention_ampere, attention_backward  # noqa: E402
from pykittens.kernels.attention import scores, table  # noqa: E402
from pykittens.kernels.attention_backward_ampere import AMPLE  # noqa: E402
from pykittens.trace import scoring  # noqa: E402

BF16 = np.dtype(ml_dtypes.bfloat16)
HEADS = 2


class Case(NamedTuple):
    """A score function and a mask, and the same in torch: of (s, batch, head, row, col) that broadcast."""

    score: Callable[..., Any] | None = None
    mask: Callable[..., Any] | None = None
    plain: Callable[..., Any] = lambda s, *_: s
    seen: Callable[..., Any] = lambda *_: True
    score_operands: tuple[str, ...] = ()
    mask_operands: tuple[str, ...] = ()
    settings: Mapping[str, Any] = MappingProxyType({})


CASES = {
    "alibi": Case(
        lambda s, batch, head, row, col, slopes: s - slopes[head] * (row - col).to(pk.f32),
        plain=lambda s, batch, head, row, col, slopes: s - slopes[head] * (row - col),
        score_operands=("slopes",),
        settings={"causal": True},
    ),
    "bias": Case(
        lambda s, batch, head, row, col, bias: s + bias[head, row, col],
        plain=lambda s, batch, head, row, col, bias: s + bias[head, row, col],
        score_operands=("bias",),
    ),
    "relative": Case(
        lambda s, batch, head, row, col, table, by: s * by[0] + table[head, row - col + 140],
        plain=lambda s, batch, head, row, col, table, by: s * by[0] + table[head, row - col + 140],
        score_operands=("table", "by"),
        settings={"softcap": 3.0, "window": (60, 40)},
    ),
    "keys": Case(
        lambda s, batch, head, row, col, keyed: pk.tanh(s) * keyed[batch, col],
        plain=lambda s, batch, head, row, col, keyed: torch.tanh(s) * keyed[batch, col],
        score_operands=("keyed",),
    ),
    "documents": Case(
        mask=lambda batch, head, row, col, ids: ids[batch, row] == ids[batch, col],
        seen=lambda batch, head, row, col, ids: ids[batch, row] == ids[batch, col],
        mask_operands=("ids",),
        settings={"causal": True},
    ),
    "prefix": Case(
        lambda s, batch, head, row, col: pk.where(row == col, 2.0 * s, s),
        lambda batch, head, row, col, prefix: (col < prefix[batch]) | (row >= col),
        lambda s, batch, head, row, col: s * (1 + (row == col)),
        lambda batch, head, row, col, prefix: (col < prefix[batch]) | (row >= col),
        mask_operands=("prefix",),
    ),
    "added": Case(  # a product with a scalar, of which the scores are a factor, too
        lambda s, batch, head, row, col, slopes: pk.fma(s + (col - row).to(pk.f32), slopes[head], s),
        plain=lambda s, batch, head, row, col, slopes: (s + (col - row)) * slopes[head] + s,
        score_operands=("slopes",),
        settings={"causal": True},
    ),
    "nothing": Case(
        mask=lambda batch, head, row, col: (row > 20) & (col > 100),
        seen=lambda batch, head, row, col: (row > 20) & (col > 100),
    ),
    "infinite": Case(
        lambda s, batch, head, row, col: pk.where(col > 30, -pk.inf, s),
        plain=lambda s, batch, head, row, col: torch.where(col > 30, -torch.inf, s),
    ),
}


def some(*names: str) -> Any:
    """These, and with `--whole` all."""
    whole = pytest.mark.whole
    return pytest.mark.parametrize("name", [x if x in names else pytest.param(x, marks=whole) for x in CASES])


def operands(n: int, m: int, d: int = 64) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """do, q, k, v, and what functions may ask for."""
    rng = np.random.default_rng(n + m)
    shapes = ((2, HEADS, n, d),) * 2 + ((2, 1, m, d),) * 2
    tables = {
        "slopes": np.array([0.5, 0.03], np.float32),
        "bias": rng.standard_normal((HEADS, n, m)).astype(BF16),
        "table": rng.standard_normal((HEADS, 300)).astype(np.float32),
        "by": np.array([0.5], np.float32),
        "keyed": rng.standard_normal((2, m)).astype(np.float32),
        "ids": np.sort(rng.integers(0, 4, (2, max(n, m)))).astype(np.int32),
        "prefix": np.array([70, 3], np.int32),
    }
    return [rng.standard_normal(shape).astype(BF16) for shape in shapes], tables


def given(case: Case, tables: dict[str, np.ndarray]) -> list[np.ndarray]:
    return [tables[x] for x in (*case.score_operands, *case.mask_operands)]


def exact(case: Case, do: Any, q: Any, k: Any, v: Any, tables: dict[str, np.ndarray]) -> dict[str, Any]:
    """Output, log-sum-exp, and the gradients of sum(output * do), in float64, with the output that `delta` is made of
    rounded as kernels have it: sums over rows of what a shift of all scores changes cancel to no more than that."""
    (batch, heads, n, d), m = q.shape, k.shape[2]
    do, q, k, v = (torch.tensor(x.astype(float), requires_grad=True) for x in (do, q, k, v))
    at = [torch.arange(x).reshape([-1 if i == j else 1 for j in range(4)]) for i, x in enumerate((batch, heads, n, m))]
    floats = [torch.tensor(tables[x].astype(float), requires_grad=True) for x in case.score_operands]
    s = q @ k.expand(-1, heads, -1, -1).mT / d**0.5
    if cap := case.settings.get("softcap"):
        s = cap * torch.tanh(s / cap)
    s = case.plain(s, *at, *floats)
    seen = case.seen(*at, *(torch.tensor(tables[x]) for x in case.mask_operands))
    left, right = case.settings.get("window", (None, 0 if case.settings.get("causal") else None))
    distance = at[3] - at[2] - (m - n)
    seen = seen & (distance >= -(m + n if left is None else left)) & (distance <= (m + n if right is None else right))
    s = torch.where(seen, s, -torch.inf)
    lse = torch.logsumexp(s, 3, keepdim=True)
    weight = torch.where(lse == -torch.inf, 0.0, torch.exp(s - lse))
    wide = v.expand(-1, heads, -1, -1)
    out = weight @ wide
    rounded = torch.tensor(out.detach().numpy().astype(BF16).astype(float))
    slope = weight * (do @ wide.mT - (do * rounded).sum(3, keepdim=True))
    found = torch.autograd.grad(s, (q, k, *floats), torch.where(seen, slope, 0.0).detach(), retain_graph=True)
    names = ("q", "k", *case.score_operands)
    values = (weight.mT @ do).sum(1, keepdim=True)
    made = {"o": out, "lse": lse[..., 0], "v": values, **dict(zip(names, found, strict=True))}
    if floats:  # how large a sum of as many terms is when none cancel, for the sake of what does
        signs = [torch.tensor(np.random.default_rng(i).choice((-1.0, 1.0), slope.shape)) for i in range(8)]
        tried = [torch.autograd.grad(s, floats, slope.detach() * x, retain_graph=True) for x in signs]
        sizes = [torch.stack(x).square().mean(0).sqrt() for x in zip(*tried, strict=True)]
        made |= {f"size of {name}": x for name, x in zip(case.score_operands, sizes, strict=True)}
    return {name: x.detach().numpy() for name, x in made.items()}


def close(found: Any, expected: np.ndarray, least: float = 1e-2, size: Any = 1e-2) -> None:
    error = np.linalg.norm(np.asarray(found).astype(float) - expected)
    assert error < least * max(np.linalg.norm(expected), np.linalg.norm(size)), error / np.linalg.norm(expected)


def check(found: Any, logs: Any, expected: dict[str, Any]) -> None:
    close(found, expected["o"])
    np.testing.assert_allclose(logs, expected["lse"], rtol=1e-4, atol=2e-4)
    assert (np.asarray(found)[np.isneginf(expected["lse"])] == 0).all()


@pytest.mark.thin(3)
@some("relative", "added")
@pytest.mark.parametrize("d", (64, *(pytest.param(d, marks=pytest.mark.whole) for d in (128, 256))))
def test_hopper(name: str, d: int) -> None:
    case, (rows, tables) = CASES[name], operands(70, 140, d)
    theirs = {f"{x}_operands": [tables[y] for y in getattr(case, f"{x}_operands")] for x in ("score", "mask")}
    settings = {"score": case.score, "mask": case.mask, **theirs, **case.settings}
    expected = exact(case, *rows, tables)
    check(*pk.attention(*rows[1:], return_lse=True, **settings), expected)
    given = [torch.tensor(x.astype(np.float32)).bfloat16().requires_grad_() for x in rows[1:]]
    floats = {x: torch.tensor(tables[x].astype(np.float32)).requires_grad_() for x in case.score_operands}
    out = pk.attention(
        *given,
        **{
            **settings,
            "score_operands": [*floats.values()],
            "mask_operands": [*map(torch.tensor, theirs["mask_operands"])],
        },
    )
    do = torch.tensor(rows[0].astype(np.float32))
    found = torch.autograd.grad(out.float(), (*given, *floats.values()), do)
    for which, x in zip(("q", "k", "v", *floats), found, strict=True):
        close(x.float(), expected[which], 1.5e-2, expected.get(f"size of {which}", 1e-2))


@pytest.mark.thin(3)
def test_both_warpgroups_have_the_scores() -> None:
    """At d 256, where an operand's gradient is added by one of them."""
    test_hopper("alibi", 256)


@some("nothing")
@pytest.mark.parametrize("d", (64, pytest.param(128, marks=pytest.mark.whole)))
def test_mma_sync(name: str, d: int) -> None:
    case, ((do, q, k, v), tables) = CASES[name], operands(70, 140, d)
    theirs = given(case, tables)
    known = scorings.known_of(
        scorings.number_of(case.score, case.mask), len(case.score_operands), [*map(describe, theirs)]
    )
    window, cap = case.settings.get("window", (None, None)), case.settings.get("softcap")
    told = scores(d, case.settings.get("causal", False), None, *window, cap)
    out, logs = np.full_like(q, np.nan), np.full(q.shape[:3], np.nan, np.float32)
    how: Any = {"scoring": known.scoring, "causal": told.causal}
    attention_ampere.attend(q, k, v, out, told.scale, logs, *told.band, None, None, None, *map(table, theirs), **how)
    expected = exact(case, do, q, k, v, tables)
    check(out, logs, expected)
    found = [np.full_like(x, np.nan) for x in (q, k, v)]
    sums = [np.full(x.shape, np.nan, np.float32) for x in theirs[: len(case.score_operands)]]
    missing = [None] * (4 - len(theirs))
    more = ([*map(table, theirs), *missing], [*sums, *[None] * (4 - len(sums))])
    rest = (*told.band, None, None, None, None, *more)
    attention_backward.STEPS(do, q, k, v, out, logs, None, *found, told.scale, *rest, mma_sync=AMPLE, **how)
    for which, x in zip(("q", "k", "v", *case.score_operands), (*found, *sums), strict=True):
        close(x, expected[which], 1.5e-2, expected.get(f"size of {which}", 1e-2))


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    (
        ({"score": 5}, ArgumentError, "score is 5"),
        ({"mask": 5}, ArgumentError, "mask is 5"),
        ({"score": lambda s: s}, TraceError, "the score function is called with 5 arguments"),
        ({"mask": lambda row, col: row >= col}, TraceError, "the mask is called with 4 arguments"),
        ({"score": lambda s, b, h, row, col: row}, TraceError, "the score function returns"),
        ({"score": lambda s, b, h, row, col: s.to(pk.bf16)}, TraceError, "the score function returns"),
        ({"score": lambda s, b, h, row, col: s - s.row_max()}, TraceError, "in a score function"),
        ({"score": lambda s, b, h, row, col: s + s.row_sum()}, TraceError, "in a score function"),
        ({"score": lambda s, b, h, row, col: s + pk.row_index(s).to(pk.f32)}, TraceError, "in a score function"),
        ({"mask": lambda b, h, row, col: row - col}, TraceError, "the mask returns"),
        ({"mask": lambda b, h, row, col: None}, TraceError, "the mask returns None"),
        ({"mask_operands": [np.zeros(2, np.float32)]}, ArgumentError, "1 operands of no mask"),
        ({"score_operands": [np.zeros(2, np.float32)]}, ArgumentError, "1 operands of no score"),
        (
            {"score": lambda s, b, h, row, col, x: s * x[h], "score_operands": [np.zeros(3, np.float32)]},
            ArgumentError,
            r"shape \(3,\), indexed by head",
        ),
        (
            {"score": lambda s, b, h, row, col, x: s * x[h, row], "score_operands": [np.zeros(2, np.float32)]},
            TraceError,
            "2 indices of an operand of 1",
        ),
        (
            {"score": lambda s, b, h, row, col, x: s * x[h], "score_operands": [np.zeros(2)]},
            ArgumentError,
            "operand 0 of score and mask is f64",
        ),
        ({"lengths_k": np.zeros(2, np.int32), "padding": "up"}, ArgumentError, "padding='up'"),
        ({"padding": "left"}, ArgumentError, "padding='left' without lengths"),
        ({"lengths_k": np.array([1, -1], np.int32)}, ArgumentError, r"lengths_k is \[1, -1\] for"),
        ({"lengths_q": np.array([1, 999], np.int32)}, ArgumentError, r"lengths_q is \[1, 999\] for"),
        ({"lengths_q": np.zeros(2, np.int64)}, ArgumentError, r"lengths_q is i64 \(2,\)"),
        ({"lengths_k": np.zeros(3, np.int32)}, ArgumentError, r"shape \(3,\), indexed by batch"),
        ({"lengths_k": np.zeros(2, np.int32), "causal": True}, ArgumentError, "end at different rows"),
        (
            {"score": lambda s, *_: s, "score_operands": [np.zeros(2, np.float32)] * 5},
            ArgumentError,
            "5 operands of score and mask",
        ),
    ),
)
def test_refusals(settings: dict[str, Any], error: type[Exception], said: str) -> None:
    (_, q, k, v), _ = operands(20, 30)
    with pytest.raises(error, match=said):
        pk.attention(q, k, v, **settings)


def test_gradients_of_operands_have_no_order() -> None:
    (_, q, k, v), _ = operands(20, 30)
    rows = [torch.tensor(x.astype(np.float32)).bfloat16() for x in (q, k, v)]
    by = torch.ones(2, requires_grad=True)
    out = pk.attention(*rows, score=lambda s, b, h, row, col, x: s * x[h], score_operands=[by], deterministic=True)
    with pytest.raises(ArgumentError, match="added in any order"):
        out.sum().backward()


def test_masks_of_many_tiles() -> None:
    """Lists of a mask and the pieces of dq are of different lengths."""
    case, (rows, tables) = CASES["documents"], operands(20, 270)
    expected = exact(case, *rows, tables)
    q, k, v = (torch.tensor(x.astype(np.float32)).bfloat16().requires_grad_() for x in rows[1:])
    out = pk.attention(q, k, v, mask=case.mask, mask_operands=[torch.tensor(tables["ids"])], causal=True)
    found = torch.autograd.grad(out.float(), (q, k, v), torch.tensor(rows[0].astype(np.float32)))
    for which, x in zip(("q", "k", "v"), found, strict=True):
        close(x.float(), expected[which], 1.5e-2)


@pytest.mark.parametrize("padding", ("left", pytest.param("right", marks=pytest.mark.whole)))
def test_lengths_of_padded_batches(padding: str) -> None:
    """Each entry is an attention of its own, of a sequence without padding; the rest is zero."""
    rng, n, lengths = np.random.default_rng(3), 140, torch.tensor([140, 37], dtype=torch.int32)
    do, q, k, v = (torch.tensor(rng.standard_normal((2, 2, n, 64))).bfloat16() for _ in range(4))
    rows = [x.requires_grad_() for x in (q, k, v)]
    out, lse = pk.attention(*rows, causal=True, lengths_q=lengths, lengths_k=lengths, padding=padding, return_lse=True)
    found = torch.autograd.grad(out, rows, do)
    for b, length in enumerate(lengths.tolist()):
        kept = slice(0, length) if padding == "right" else slice(n - length, n)
        alone = [x[b : b + 1, :, kept].detach().requires_grad_() for x in rows]
        expected, logs = pk.attention(*alone, causal=True, return_lse=True)
        theirs = torch.autograd.grad(expected, alone, do[b : b + 1, :, kept])
        for x, y in zip((out.detach(), *found), (expected.detach(), *theirs), strict=True):
            close(x[b, :, kept].float(), y[0].float().numpy())
            others = torch.ones(n, dtype=torch.bool)
            others[kept] = False
            assert (x[b][:, others] == 0).all()
        np.testing.assert_allclose(lse[b, :, kept].detach(), logs[0].detach(), atol=1e-3)


def test_places_of_gradients_are_computed_again() -> None:
    """Where a score reads by rows and columns, those places wait for no gradient: each would take a register."""

    @pk.kernel(warps=1)
    def places(out: pk.gl(pk.i32, 16, 32), again: pk.gl(pk.i32, 16, 32)) -> None:  # type: ignore[valid-type]
        tile = pk.warp.zeros(pk.f32, 16, 32)
        place = pk.where(pk.col_index(tile) > 7, (pk.row_index(tile) - pk.col_index(tile)) // 4 + out.rows, 3)
        pk.warp.store(out, place, (0, 0))
        pk.warp.store(again, scoring.anew(place, {}), (0, 0))

    found = [np.zeros((16, 32), np.int32) for _ in range(2)]
    places(*found)
    row, col = np.ogrid[:16, :32]
    np.testing.assert_array_equal(found[0], np.where(col > 7, (row - col) // 4 + 16, 3))
    np.testing.assert_array_equal(*found)
    made = [op.anew for op in places.program(*found).walk() if type(op).__name__ == "Positions"]
    assert True in made and False in made
