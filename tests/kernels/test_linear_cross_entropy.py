"""Cross-entropy of a linear layer and its gradients on the simulated GPU, against float64."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import pykittens as pk
from pykittens.errors import ArgumentError, KernelAssertionError
from pykittens.functions.loss import (
    LINEAR_CROSS_ENTROPY_BACKWARD,
    LINEAR_CROSS_ENTROPY_BACKWARD_HELD,
    LINEAR_CROSS_ENTROPY_KEPT,
)
from pykittens.kernels import gemm_ampere, matmul, vocabulary_slices
from pykittens.kernels.linear_cross_entropy import find_columns, reference
from pykittens.kernels.vocabulary_slices import STEP, areas_of, held_of, kept_of, slices_of

BF16 = np.dtype(ml_dtypes.bfloat16)
PLAIN = ("mean", -100, 0.0, 0.0, 0.0)
NAMES = ("reduction", "ignore_index", "label_smoothing", "z_loss", "softcap")


def inputs(m: int, h: int, v: int, dtype: Any = BF16, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((v, h)) * 2 * h**-0.5
    return rng.standard_normal((m, h)).astype(dtype), weight.astype(dtype), rng.integers(0, v, m)


def gradients(
    x: Any, weight: Any, targets: Any, lse: Any, settings: tuple[Any, ...], *more: Any, **statics: Any
) -> Any:
    """Of x, weight and bias, by the backward pass; `more`: bias, dloss, dlse, and what was kept."""
    operands = (x, weight, targets, lse, *more, *[None] * (6 - len(more)))
    return LINEAR_CROSS_ENTROPY_BACKWARD.run(operands, settings, **statics)


def close(found: np.ndarray, wanted: np.ndarray, share: float) -> bool:
    """Whether the error of each row is at most a share of the longest row's length."""
    error = np.linalg.norm(found.astype(np.float64) - wanted, axis=-1)
    return bool((error <= share * np.linalg.norm(wanted, axis=-1).max() + 1e-30).all())


def check(
    x: np.ndarray,
    weight: np.ndarray,
    targets: np.ndarray,
    bias: np.ndarray | None = None,
    settings: tuple[Any, ...] = PLAIN,
    kept: int = 0,
    early: bool = False,
    **statics: Any,
) -> None:
    """`kept`: how many columns the forward pass keeps the exponentials of; `early`: others in the gradient's memory."""
    named = dict(zip(NAMES, settings, strict=True))
    loss, lse = pk.linear_cross_entropy(x, weight, targets, bias, **named, return_lse=True)
    expected = reference(x, weight, targets, bias, **named)
    # tanh is the GPU's approximation, within 2^-10.9 on the simulator's other side: exact here
    np.testing.assert_allclose(loss, expected[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(lse, expected[1], rtol=1e-5, atol=1e-5)
    powers, peaks, held = None, None, None
    if kept or early:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(vocabulary_slices, "kept_of", lambda m, v, most=None: min(v, kept))
            again, other, *more = LINEAR_CROSS_ENTROPY_KEPT.run(
                (x, weight, targets, bias), (*settings, early), **statics
            )
        powers, peaks, held = (x if x.size else None for x in more)
        assert (held is not None) == early
        np.testing.assert_allclose(again, loss, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(other, lse, rtol=1e-5, atol=1e-5)
    up = np.ones(loss.shape, np.float32)
    more = [bias, up, None, powers, peaks]
    found = gradients(x, weight, targets, lse, (*settings, True, True, True), *more, held, **statics)
    if held is not None:  # the same bits, and again once the exponentials are overwritten
        again = LINEAR_CROSS_ENTROPY_BACKWARD_HELD.run(
            (held, x, weight, targets, lse, *more), (*settings, True, True), **statics
        )
        for made, other in zip((again[0], held, again[1]), found, strict=True):
            assert made.tobytes() == other.tobytes()
    for made, given, wanted in zip(found, (x, weight, bias), expected[2:], strict=True):
        if given is not None:
            assert made.dtype == given.dtype and made.shape == given.shape
            assert close(made, wanted, 2.0**-7 if x.dtype == BF16 else 2.0**-10)


@pytest.mark.thin
@pytest.mark.parametrize("dtype", [BF16, np.float16], ids=str)
@pytest.mark.parametrize(("m", "h", "v"), [(1, 1, 1), (3, 64, 256), (70, 37, 517), (129, 72, 130)])
def test_any_shape(m: int, h: int, v: int, dtype: Any) -> None:
    """Rows that do not begin at multiples of 16 bytes too."""
    x, weight, targets = inputs(m, h, v, dtype)
    check(x, weight, targets.astype(np.int32), kept=v)


EVERYTHING = ("none", 3, 0.1, 1e-3, 5.0)


@pytest.mark.parametrize(
    "settings",
    [("sum", -100, 0.1, 0.0, 0.0), ("mean", -100, 0.0, 1e-2, 0.0), ("none", 3, 0.0, 0.0, 3.0), EVERYTHING],
    ids=lambda x: str(x[0]),
)
def test_every_setting_over_slices(settings: tuple[Any, ...]) -> None:
    """Several slices of the vocabulary, the last one short; targets at the ends of slices, and ignored rows."""
    m, v = 40, 2 * STEP + 77
    x, weight, targets = inputs(m, 64, v)
    targets[:6] = 0, STEP - 1, STEP, 2 * STEP, v - 1, settings[1]
    bias = np.random.default_rng(3).standard_normal(v).astype(np.float32) if settings[0] == "none" else None
    check(x, weight, targets, bias, settings, workspace=2 * m * STEP)


def test_operands_of_any_strides() -> None:
    x, weight, targets = inputs(20, 144, 300)
    check(x[::2, :72], weight[:, 72:], targets[::2])
    check(x[:, 1:66], weight[:, 3:68], targets)
    check(np.asfortranarray(x), np.asfortranarray(weight), targets)


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_what_is_wanted(wanted: tuple[bool, ...]) -> None:
    x, weight, targets = inputs(9, 64, 100)
    bias, lse = np.zeros(100, np.float32), reference(x, weight, targets)[1].astype(np.float32)
    found = gradients(x, weight, targets, lse, (*PLAIN, *wanted), bias, np.array(1, np.float32))
    for made, exact, want in zip(found, reference(x, weight, targets)[2:], wanted, strict=True):
        assert close(made, exact, 2.0**-7) if want else made.size == 0


def test_gradients_of_losses_and_of_log_sum_exps() -> None:
    """Each row has its own; that of an ignored row's log-sum-exp counts, that of its loss does not."""
    x, weight, targets = inputs(30, 64, 200)
    targets[4] = -100
    lse, exact = (reference(x, weight, targets)[1], x.astype(float) @ weight.astype(float).T)
    up, along = np.random.default_rng(5).standard_normal((2, 30)).astype(np.float32)
    share = np.exp(exact - lse[:, None])
    slope = up[:, None] * (share - (np.arange(200) == targets[:, None]))
    slope[4] = 0
    slope += along[:, None] * share
    settings = ("none", *PLAIN[1:], True, True, False)
    dx, dweight, _ = gradients(x, weight, targets, lse.astype(np.float32), settings, None, up, along)
    assert close(dx, slope @ weight.astype(float), 2.0**-7) and close(dweight, slope.T @ x.astype(float), 2.0**-7)


def test_a_confident_target_keeps_its_gradient() -> None:
    """p - 1 is rounded once: a probability that bf16 rounds to 1 still leaves a gradient."""
    x, weight, targets = np.zeros((1, 64)), np.zeros((2, 64)), np.zeros(1, np.int64)
    x[0, 0], weight[0, 0] = 8, 1
    x, weight = x.astype(BF16), weight.astype(BF16)
    _, lse, dx, dweight, _ = reference(x, weight, targets)
    settings, up = (*PLAIN, True, True, False), np.array(1, np.float32)
    _, _, *kept, _ = LINEAR_CROSS_ENTROPY_KEPT.run((x, weight, targets, None), (*PLAIN, False))
    for more in ([], [None, *kept]):
        found = gradients(x, weight, targets, lse.astype(np.float32), settings, None, up, *more)
        assert close(found[0], dx, 2.0**-7) and close(found[1], dweight, 2.0**-7) and dx[0, 0] != 0


def test_ignored_rows() -> None:
    """Zero loss and gradient, whatever they hold; a mean over none is NaN, as in torch, and its gradient zero."""
    x, weight, targets = inputs(6, 64, 100)
    x[1], targets[1] = np.nan, -100
    loss, lse = pk.linear_cross_entropy(x, weight, targets, return_lse=True)
    assert np.isfinite(loss) and np.isnan(lse[1])
    up = np.array(1, np.float32)
    dx, _, _ = gradients(x, weight, targets, lse, (*PLAIN, True, True, False), None, up)
    assert (dx[1] == 0).all() and np.isfinite(dx.astype(np.float32)).all()
    nobody = np.full(6, -100)
    x[1] = 0
    loss, lse = pk.linear_cross_entropy(x, weight, nobody, return_lse=True)
    assert np.isnan(loss) and pk.linear_cross_entropy(x, weight, nobody, reduction="sum") == 0
    found = gradients(x, weight, nobody, lse, (*PLAIN, True, True, False), None, up)
    assert all((made == 0).all() for made in found)


def test_infinite_and_large_logits() -> None:
    x, weight, targets = inputs(4, 64, 300)
    x[0] *= 100
    x[1], x[2, 0], weight[:, 0] = 0, np.inf, np.abs(weight[:, 0]) + 1
    loss, lse = pk.linear_cross_entropy(x, weight, targets, reduction="none", return_lse=True)
    with np.errstate(all="ignore"):
        expected = reference(x, weight, targets, reduction="none")
    np.testing.assert_allclose(loss, expected[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(lse, expected[1], rtol=1e-5)
    assert np.isnan(loss[2]) and np.isfinite(loss[[0, 1, 3]]).all()


def test_no_rows() -> None:
    x, weight, targets = inputs(0, 64, 100)
    assert np.isnan(pk.linear_cross_entropy(x, weight, targets))
    assert pk.linear_cross_entropy(x, weight, targets, reduction="sum") == 0
    lse, up = np.zeros(0, np.float32), np.array(1, np.float32)
    found = gradients(x, weight, targets, lse, (*PLAIN, True, True, False), None, up)
    assert found[0].shape == (0, 64) and (found[1] == 0).all()


@pytest.mark.parametrize("target", [-1, 100, 2**31 + 5, -(2**40), 2**32 - 100])
def test_a_target_that_is_no_column(target: int) -> None:
    """Past the look at what lies on the CPU: as a debug build on a GPU says it."""
    _, _, targets = inputs(4, 64, 100)
    targets[3] = target
    with pytest.raises(KernelAssertionError, match="ignore_index"):
        find_columns(targets[:, None], np.zeros(4, np.int32), -100, 100, 0, 100)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"x": np.zeros((2, 3, 8), BF16)}, "reshape"),
        ({"x": np.zeros((2, 9), BF16)}, "reshape"),
        ({"x": np.zeros((2, 8), np.float32)}, "both as bf16"),
        ({"weight": np.zeros((5, 8), np.float16)}, "both as bf16"),
        ({"weight": np.zeros((0, 8), BF16)}, "at least 1"),
        ({"bias": np.zeros(4, BF16)}, r"shape \(5,\)"),
        ({"bias": np.zeros(10, BF16)[::2]}, "contiguous"),
        ({"targets": np.zeros(3, np.int64)}, "targets"),
        ({"targets": np.zeros(2, np.float32)}, "int32 or int64"),
        ({"reduction": "median"}, "median"),
        ({"label_smoothing": 1.5}, "1.5"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    given = {"x": np.zeros((2, 8), BF16), "weight": np.zeros((5, 8), BF16), "targets": np.zeros(2, np.int64)}
    with pytest.raises(ArgumentError, match=words):
        pk.linear_cross_entropy(**{**given, **arguments})


SIZES = [(8192, 4096, 131072), (1, 8, 50257), (100_000, 96, 50257), (10**7, 64, 1000), (3, 4, 5), (700, 8192, 32000)]


@pytest.mark.parametrize(("m", "h", "v"), [*SIZES, (64, 64, 1000), (8192, 4096, 32000), (520, 513, 1023)])
@pytest.mark.parametrize("most", [0, 1 << 20, 1 << 29])
@pytest.mark.parametrize(("early", "processors"), [(False, 1), (True, 2), (True, 132), (True, 7)])
def test_slices_cover_the_vocabulary_within_the_workspace(
    m: int, h: int, v: int, most: int, early: bool, processors: int
) -> None:
    held = held_of(m, h, v, most) if early else 0
    kept = kept_of(m, v - held, most) if most else 0
    assert kept in (0, v - held) or (kept % STEP == 0 and (kept * m * 2 <= most or kept == STEP))
    room = 512 << 20
    slices = slices_of(m, h, v, held, kept, room, processors)
    assert [x.first for x in slices] == [0, *np.cumsum([x.wide for x in slices])[:-1]]
    assert sum(x.wide for x in slices) == v
    assert {0, held, held + kept} <= {v, *(x.first for x in slices)}
    for x in slices:
        assert x.first % STEP == 0 and (x.wide * m * 2 <= room or x.wide <= STEP)
        assert (x.offset is not None) == (x.first < held)
    assert len(slices) <= 5 + v * m * 4 // room or slices[0].wide == STEP
    # Whatever is written before all that is held has been taken out ends where that begins.
    places = [x for x in slices if x.offset is not None]
    assert all(x.offset % 64 == 0 and 0 <= x.offset <= v * h - m * x.wide for x in places)
    for x, behind in pairwise(places):
        assert (x.first + x.wide) * h <= behind.offset == x.offset + m * x.wide


@pytest.mark.parametrize(
    ("m", "h", "v"), [*SIZES, (32768, 4096, 131072), (4096, 4096, 131072), (8192, 8192, 262144), (31066, 2082, 485297)]
)
@pytest.mark.parametrize("room", [1 << 22, 1 << 27, 1000 << 20])
@pytest.mark.parametrize(("early", "kept"), [(False, False), (False, True), (True, True)])
def test_gradients_of_logits_find_room(
    m: int, h: int, v: int, room: int, early: bool, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Areas cover the vocabulary within the room, and no slice is written over before it has been read."""
    monkeypatch.setattr(vocabulary_slices, "ROOM", room)
    areas = areas_of(m, h, v, early, kept)
    if areas is None:
        assert room < 1000 << 20 or 2 * STEP * m > room or v > 400_000
        return
    assert [x.first for x in areas.slices] == [0, *np.cumsum([x.wide for x in areas.slices])[:-1]]
    assert sum(x.wide for x in areas.slices) == v and 0 < areas.rows <= m
    own = areas.again - areas.held
    assert 2 * (m * own + areas.rows * areas.spare) <= room and (kept or own == 0) and (early or areas.held == 0)
    assert areas.spare == -(-(v - areas.again) // 8) * 8
    for x in areas.slices:
        assert (x.offset is not None) == (x.first < areas.held)
        assert x.first < areas.held or x.first < areas.again or x.wide <= max(own, STEP) or areas.again == 0
    held = [x for x in areas.slices if x.offset is not None]
    assert len(areas.slices) - len(held) <= vocabulary_slices.MOST
    for x in held:
        assert x.offset is not None and x.offset % 64 == 0 and (x.first + x.wide) * h <= x.offset
        assert x.offset + m * (areas.held - x.first) <= v * h
    for x, behind in pairwise(held):
        assert behind.offset == (x.offset or 0) + m * x.wide


@pytest.mark.parametrize(("m", "h", "room", "kinds"), [(140, 64, 201_000, 1), (140, 128, 174_000, 3), (40, 64, 1, 0)])
def test_gradients_made_ahead(m: int, h: int, room: int, kinds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some rows at a time, with slices in the memory of the weight's gradient, in memory of their own, and made again;
    a graph that is kept gives the same bits twice, and the last backward pass leaves the gradient in its memory.
    """
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(vocabulary_slices, "ROOM", room)
    monkeypatch.setattr(vocabulary_slices, "AT_ONCE", 128)
    v, dtype = 640, torch.bfloat16 if h == 64 else torch.float16
    areas = areas_of(m, h, v, True, True)
    assert (areas is None) == (kinds == 0) and (areas is None or len(areas.slices) == kinds)
    x, weight, targets = (torch.from_numpy(a.astype(np.float32)) for a in inputs(m, h, v, np.float32))
    targets[:7] = torch.tensor([0, 255, 256, 511, 512, v - 1, -100])
    x, weight = (a.to(dtype).requires_grad_() for a in (x, weight))
    bias, targets = torch.randn(v).requires_grad_(), targets.long()
    settings = {"reduction": "mean" if kinds > 2 else "sum", "label_smoothing": 0.1, "z_loss": 1e-3}
    loss = pk.linear_cross_entropy(x, weight, targets, bias, **settings)
    exact = reference(
        *(a.detach().double().numpy() for a in (x, weight)), targets.numpy(), bias.detach().numpy(), **settings
    )
    np.testing.assert_allclose(loss.item(), exact[0], rtol=1e-5)
    upstream = torch.tensor(8.0)
    first = torch.autograd.grad(loss, (x, weight, bias), upstream, retain_graph=True)
    torch.autograd.backward(loss, upstream)
    for found, again, wanted in zip(first, (x.grad, weight.grad, bias.grad), exact[2:], strict=True):
        assert torch.equal(found, again)
        assert close(found.float().numpy(), 8 * wanted, 2.0**-7 if dtype == torch.bfloat16 else 2.0**-10)
    assert weight.grad.untyped_storage().nbytes() == weight.numel() * 2


def test_exponentials_beside_the_targets_logit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rows with logits that are far above the target's, of ignored ones with infinite logits, and of such whose
    gradient of the log-sum-exp is negative under a z-loss; over slices held, kept and made again."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(vocabulary_slices, "ROOM", 149_000)
    monkeypatch.setattr(vocabulary_slices, "AT_ONCE", 128)
    m, h, v, z_loss = 130, 128, 576, 0.1
    areas = areas_of(m, h, v, True, True, 3, True)
    assert areas is not None and 0 < areas.held < areas.again < v
    x, weight, targets = (torch.from_numpy(a.astype(np.float32)) for a in inputs(m, h, v, np.float32))
    x[5] *= 100
    x[7] = 3e38 * x[7].sign()
    targets[:9] = torch.tensor([0, 255, 256, 511, 512, v - 1, v - 2, -100, 3])
    x, weight, bias = x.bfloat16().requires_grad_(), weight.bfloat16().requires_grad_(), torch.randn(v) - 12
    bias.requires_grad_()
    loss = pk.linear_cross_entropy(x, weight, targets.long(), bias, z_loss=z_loss)
    loss.backward()
    given = [a.detach().double().numpy() for a in (x, weight)]
    given[0][7] = 0
    exact = reference(*given, targets.long().numpy(), bias.detach().numpy(), z_loss=z_loss)
    np.testing.assert_allclose(loss.item(), exact[0], rtol=1e-5)
    assert (1 + 2 * z_loss * exact[1] < 0.3).any() and (exact[1] > 0).any()
    for found, wanted in zip((x.grad, weight.grad, bias.grad), exact[2:], strict=True):
        assert close(found.float().numpy(), wanted, 2.0**-7)


def test_a_target_that_is_nearly_certain() -> None:
    """A loss of 1e-6 beside a logit of 19, and its gradients, are as exact as float32 sums of exponentials."""
    torch = pytest.importorskip("torch")
    x, weight = torch.ones(3, 64).bfloat16(), torch.zeros(200, 64).bfloat16()
    weight[0] = 0.3
    x, weight, targets = x.requires_grad_(), weight.requires_grad_(), torch.zeros(3, dtype=torch.int64)
    loss = pk.linear_cross_entropy(x, weight, targets)
    loss.backward()
    exact = reference(x.detach().double().numpy(), weight.detach().double().numpy(), targets.numpy())
    assert loss.item() == pytest.approx(exact[0], rel=0.1)
    for found, wanted in zip((x.grad, weight.grad), exact[2:4], strict=True):
        assert close(found.float().numpy(), wanted, 0.1)


@pytest.mark.parametrize("frozen", ["x", "weight", "both"])
def test_what_is_frozen_costs_nothing(frozen: str) -> None:
    """No product is made, and nothing kept, for a gradient that nobody wants."""
    torch = pytest.importorskip("torch")
    x, weight = torch.randn(9, 64).bfloat16(), torch.randn(70, 64).bfloat16()
    bias, targets = torch.randn(70), torch.arange(9)
    leaves = {"x": [weight], "weight": [x], "both": [bias]}[frozen]
    for leaf in leaves:
        leaf.requires_grad_()
    loss = pk.linear_cross_entropy(x, weight, targets, bias)
    wanted = reference(
        x.double().detach().numpy(), weight.double().detach().numpy(), targets.numpy(), bias.detach().numpy()
    )
    kept = {n: getattr(loss.grad_fn, f"_saved_{n}", None) for n in ("dx", "kept")}
    assert all(x is None or x.numel() == 0 or n != {"x": "dx", "weight": "kept"}.get(frozen) for n, x in kept.items())
    loss.backward()
    place = {"x": 3, "weight": 2, "both": 4}[frozen]
    assert close(leaves[0].grad.float().numpy(), wanted[place], 2.0**-7)
    assert sum(x.grad is not None for x in (x, weight, bias)) == 1


@pytest.mark.parametrize("kept", [STEP, 2 * STEP, 2 * STEP + 77])
def test_exponentials_that_were_kept(kept: int) -> None:
    """Of some columns, of all but the last slice, and of all, over slices narrower than that; targets at the ends."""
    m, v = 40, 2 * STEP + 77
    x, weight, targets = inputs(m, 64, v, BF16 if kept > STEP else np.float16)
    targets[:6] = 0, STEP - 1, STEP, 2 * STEP, v - 1, -100
    x[5] *= 300
    bias = np.random.default_rng(3).standard_normal(v).astype(np.float32) if kept > STEP else None
    settings = ("mean", -100, 0.1, 1e-3, 0.0) if kept == STEP else ("sum", -100, 0.0, 0.0, 0.0)
    check(x, weight, targets, bias, settings, kept=kept, workspace=2 * m * STEP)


@pytest.mark.thin(3)
@pytest.mark.parametrize(("m", "h", "kept"), [(40, 64, 77), (96, 64, STEP), (150, 64, 0)])
def test_exponentials_in_the_memory_of_the_gradient(m: int, h: int, kept: int) -> None:
    """Of three slices, of two and of one, others being kept elsewhere or made again; more rows than columns of x, and
    fewer."""
    x, weight, targets = inputs(m, h, 3 * STEP + 77)
    targets[:6] = 0, STEP - 1, STEP, 2 * STEP, len(weight) - 1, -100
    bias = np.random.default_rng(3).standard_normal(len(weight)).astype(np.float32) if kept else None
    check(x, weight, targets, bias, ("sum", -100, 0.1, 1e-3, 0.0), kept, True, workspace=2 * m * STEP)


def test_the_gradient_of_the_weight_takes_the_memory_of_exponentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no graph is kept, so that a backward pass that keeps it gives the same again."""
    torch = pytest.importorskip("torch")
    x, weight = (torch.randn(shape).bfloat16().requires_grad_() for shape in ((8, 64), (600, 64)))
    monkeypatch.setattr(vocabulary_slices, "KEPT", 0)
    loss = pk.linear_cross_entropy(x, weight, torch.arange(8) * 70, reduction="none").sum()
    first = torch.autograd.grad(loss, (x, weight), retain_graph=True)
    only = torch.autograd.grad(loss, x, retain_graph=True)
    loss.backward()
    frozen = weight.detach().requires_grad_()
    pk.linear_cross_entropy(x.detach(), frozen, torch.arange(8) * 70, reduction="none").sum().backward()
    for found, wanted in zip((x.grad, weight.grad, only[0], frozen.grad), (*first, *first), strict=True):
        assert torch.equal(found, wanted)
    assert weight.grad.untyped_storage().nbytes() == weight.numel() * 2
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_with_mma_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no wgmma, the same steps go through the product for Ampere."""
    choose = matmul.choose_kernel
    monkeypatch.setattr(
        matmul, "choose_kernel", lambda *infos: replace(choose(*infos), config=gemm_ampere.Config(64, 64, 2))
    )
    x, weight, targets = inputs(70, 72, 2 * STEP + 33)
    targets[:3] = 0, 63, -100
    bias = np.random.default_rng(3).standard_normal(len(weight)).astype(np.float32)
    before = len(gemm_ampere.gemm_ampere.memory.programs)
    check(x, weight, targets, bias, ("mean", -100, 0.1, 1e-3, 5.0), workspace=2 * 70 * STEP)
    assert len(gemm_ampere.gemm_ampere.memory.programs) >= before + 4


@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_target_counts(rows: int, reduction: str) -> None:
    """torch's gradients, by what the forward pass kept, are 0, and of the operands' shapes; so they are of no rows."""
    torch = pytest.importorskip("torch")
    shapes = (rows, 64), (70, 64), (70,)
    given = [torch.randn(shape).bfloat16().requires_grad_() for shape in shapes]
    loss = pk.linear_cross_entropy(*given[:2], torch.full((rows,), -100), given[2], reduction=reduction)
    assert loss.isnan() if reduction == "mean" else loss.tolist() == [0] * rows
    found = torch.autograd.grad(loss.sum(), given)
    assert [x.shape for x in found] == [x.shape for x in given] and not any(x.any() for x in found)
