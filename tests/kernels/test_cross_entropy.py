"""Cross-entropy and its gradient on the simulated GPU, against float64."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import pykittens as pk
from pykittens.errors import ArgumentError, KernelAssertionError
from pykittens.kernels import cross_entropy as kernels
from pykittens.kernels import scale_rows
from pykittens.kernels.cross_entropy import cross_entropy, plan_rows, reference
from pykittens.kernels.rows import drawing

BF16 = np.dtype(ml_dtypes.bfloat16)
EPS = {"bfloat16": 2**-8, "float16": 2**-11, "float32": 2**-24}
EVERYTHING: dict[str, Any] = {"label_smoothing": 0.1, "z_loss": 1e-3, "softcap": 5.0}


def inputs(m: int, n: int, dtype: Any = np.float32, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((m, n)) * 3).astype(dtype), rng.integers(0, n, m)


def check(x: np.ndarray, targets: np.ndarray, **settings: Any) -> None:
    kept = {k: v for k, v in settings.items() if k not in ("config", "in_place")}
    expected = reference(x, targets, **kept)
    loss, lse, dx = cross_entropy(x, targets, **settings)
    assert dx.dtype == x.dtype and lse.dtype == np.float32 and loss.dtype == np.float32
    np.testing.assert_allclose(loss, expected[0], rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(lse, expected[1], rtol=2e-6, atol=1e-6)
    allowed = EPS[dx.dtype.name] * np.abs(expected[2]) + 2e-6 * np.abs(expected[2]).max() + 1e-7
    assert (np.abs(dx.astype(np.float64) - expected[2]) <= allowed).all()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("settings", [{}, EVERYTHING], ids=["plain", "everything"])
def test_formula_against_differences(reduction: str, settings: dict[str, Any]) -> None:
    x, targets = inputs(3, 5, np.float64)
    targets[1] = -100
    grad = reference(x, targets, reduction=reduction, **settings)[2]
    for i in np.ndindex(x.shape):
        step = np.zeros(x.shape)
        step[i] = 1e-6
        after, before = (reference(y, targets, reduction=reduction, **settings)[0].sum() for y in (x + step, x - step))
        assert abs((after - before) / 2e-6 - grad[i]) < 1e-7


@pytest.mark.thin
@pytest.mark.parametrize("dtype", [BF16, np.float16, np.float32], ids=str)
@pytest.mark.parametrize("n", [1, 7, 100, 1000, 1025, 4096, 5003, 20000])
def test_every_vocabulary(n: int, dtype: Any) -> None:
    x, targets = inputs(7, n, dtype)
    targets[2] = -100
    check(x, targets.astype(np.int32))


@pytest.mark.thin
@pytest.mark.parametrize("n", [9, 5000])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", EVERYTHING)
def test_every_setting(name: str, reduction: str, n: int) -> None:
    x, targets = inputs(5, n)
    targets[4] = 3
    check(x, targets, reduction=reduction, ignore_index=3, **{name: EVERYTHING[name]})


@pytest.mark.parametrize("n", [9, 1000, 5000])
def test_all_settings_in_place(n: int) -> None:
    x, targets = inputs(6, n, BF16)
    expected = cross_entropy(x, targets, **EVERYTHING)
    loss, lse, dx = cross_entropy(x, targets, in_place=True, **EVERYTHING)
    assert dx is x and np.array_equal(x, expected[2]) and loss == expected[0] and np.array_equal(lse, expected[1])


@pytest.mark.thin(3)
@pytest.mark.parametrize("split", [(1, 8, 2), (2, 4, 2), (4, 4, 1), (2, 4, 3)])
def test_rows_that_stream(split: tuple[int, int, int]) -> None:
    """More rows than slots, over clusters; targets at both ends of every block's columns."""
    n = 5000
    x, targets = inputs(12, n, BF16)
    config = plan_rows(n, 2, 16, split=split, processors=2)
    ends = [c for part in range(split[0]) for c in (part * config.cols, (part + 1) * config.cols - 1) if c < n]
    targets[: len(ends)] = ends
    targets[-1] = n - 1
    check(x, targets, config=config, **EVERYTHING)
    check(x, targets, config=config, in_place=True)


@pytest.mark.parametrize("n", [24584, 24601, 5001, 33024])
def test_rows_that_are_drawn(n: int) -> None:
    """By one team a block, two teams, and over a cluster; the targets of two teams are loaded a row ahead."""
    config = plan_rows(n, 2, 16 if n % 8 == 0 else 2, dense=True, processors=2)
    few = 6 * config.parts(100)
    assert drawing(config, few, 2) and not drawing(config, few - 1, 2)
    x, targets = inputs(few + 1, n, BF16)
    targets[3] = -100
    check(x, targets)
    check(x, targets, in_place=True, reduction="none")


def test_rows_over_a_cluster_that_take_many_loads_are_not_drawn() -> None:
    assert drawing(plan_rows(131072, 2, 16), 1000, 132) is not None
    assert drawing(plan_rows(50304, 2, 16), 1000, 132) is None


def test_more_targets_than_teams_count_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "ALONE", 20)
    for m in (20, 21):
        x, targets = inputs(m, 5001, BF16)
        targets[5:9] = -100
        check(x, targets)


@pytest.mark.thin
@pytest.mark.parametrize("dtype", [BF16, np.float32], ids=str)
@pytest.mark.parametrize("n", [5003, 9001, 50257])
def test_rows_that_begin_anywhere_in_place(n: int, dtype: Any) -> None:
    """The tile of a row has ends of its neighbours, which may be gradients by then."""
    x, targets = inputs(5, n, dtype)
    check(x, targets, in_place=True)


def test_strided_logits_and_vocabularies_that_begin_anywhere() -> None:
    whole, targets = inputs(6, 6001, BF16)
    for part in (whole[:, :5990], whole[:, 1:5000], whole[:, :99], whole[::2, :77]):
        check(part, targets[: len(part)] % part.shape[1])


def test_a_single_row() -> None:
    """Its stride says nothing of where it may be read."""
    for n in (1, 3, 8, 1001):
        for begin in (0, 1):
            x, targets = inputs(1, n + 1, np.float32)
            check(x[:, begin : begin + n], targets % n)


def test_without_gradient() -> None:
    x, targets = inputs(3, 100)
    loss, _, dx = cross_entropy(x, targets, gradient=False)
    assert dx is None and abs(loss - reference(x, targets)[0]) < 1e-6


@pytest.mark.parametrize("n", [50, 5000])
def test_ignored_rows(n: int) -> None:
    """Zero loss and gradient, whatever they hold; a mean over none is NaN, as in torch, and its gradient zero."""
    x, targets = inputs(4, n)
    x[1], targets[1] = np.nan, -100
    loss, _, dx = cross_entropy(x, targets)
    assert np.isfinite(loss) and (dx[1] == 0).all() and np.isfinite(dx).all()
    loss, _, dx = cross_entropy(x, np.full(4, -100))
    assert np.isnan(loss) and (dx == 0).all()
    assert cross_entropy(x, np.full(4, -100), reduction="sum")[0] == 0


def test_nan_and_infinity() -> None:
    x, targets = inputs(5, 300)
    targets[:] = 7
    x[0, 3], x[1, 3], x[2, 3], x[3, 7], x[4] = np.nan, np.inf, -np.inf, -np.inf, -np.inf
    loss, lse, dx = cross_entropy(x, targets, reduction="none")
    expected = reference(x, targets, reduction="none")
    np.testing.assert_allclose(loss, expected[0], rtol=1e-6)
    np.testing.assert_allclose(lse, expected[1], rtol=1e-6)
    np.testing.assert_allclose(dx, expected[2], atol=1e-6)
    assert np.isnan(loss[[0, 1, 4]]).all() and loss[3] == np.inf and dx[3, 7] == -1


def test_targets_that_are_nearly_certain() -> None:
    """Losses far below a unit in the last place of the logits, which float32 differences of these would lose."""
    rng = np.random.default_rng(0)
    x, targets = rng.standard_normal((40, 300)), rng.integers(0, 300, 40)
    x[np.arange(40), targets] += np.arange(40)
    x = x.astype(np.float32)
    loss, _, _ = cross_entropy(x, targets, reduction="none")
    exact = reference(x, targets, reduction="none")[0]
    assert (loss >= 0).all() and np.abs(loss[exact < 1] - exact[exact < 1]).max() < 4e-7


def test_large_logits() -> None:
    x, targets = inputs(4, 1000)
    check(x * 1e4, targets)


@pytest.mark.parametrize("target", [-1, 100, 2**31 + 5, -(2**40)])
def test_a_target_that_is_no_column(target: int) -> None:
    x, targets = inputs(4, 100)
    targets[3] = target
    with pytest.raises(KernelAssertionError, match="ignore_index"):
        cross_entropy(x, targets)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"x": np.zeros((2, 3, 8), np.float32)}, "reshape"),
        ({"x": np.zeros((2, 8), np.int32)}, "x is i32"),
        ({"x": np.zeros((8, 2), np.float32).T}, "contiguous"),
        ({"x": np.zeros((2, 600_000), BF16)}, "524288"),
        ({"targets": np.zeros(3, np.int64)}, "targets"),
        ({"targets": np.zeros(2, np.float32)}, "int32 or int64"),
        ({"reduction": "median"}, "median"),
        ({"label_smoothing": 1.5}, "1.5"),
        ({"z_loss": -1.0}, "-1.0"),
        ({"softcap": float("nan")}, "nan"),
        ({"ignore_index": 2**40}, "32-bit"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        cross_entropy(**{"x": np.zeros((2, 8), np.float32), "targets": np.zeros(2, np.int64), **arguments})


@pytest.mark.thin
@pytest.mark.parametrize("dtype", [BF16, np.float16, np.float32], ids=str)
@pytest.mark.parametrize("n", [1, 7, 8, 4104, 5001])
@pytest.mark.parametrize("each", [False, True])
def test_rows_times_numbers(n: int, dtype: Any, each: bool) -> None:
    """In place rows whose number is 1 are left alone: NaN stays the NaN it was."""
    x, _ = inputs(5, n, dtype)
    factor = np.array([1.0, 0.5, 0.0, -3.0, 1.0] if each else 0.25, np.float32)
    expected = scale_rows.reference(x, np.broadcast_to(factor, 5)).astype(dtype)
    for o in (np.full_like(x, np.nan), x):
        call = scale_rows.call(x, factor, o)
        call.kernel(*call.operands, **call.statics)
        assert np.array_equal(o.astype(np.float64), expected.astype(np.float64))


def test_an_upstream_gradient_of_one_leaves_the_gradient_where_it_is() -> None:
    torch = pytest.importorskip("torch")
    for up in (1.0, 0.5):
        x = torch.randn(4, 40, requires_grad=True)
        loss = pk.cross_entropy(x, torch.tensor([1, 2, -100, 4]))
        (dx,) = (y for y in loss.grad_fn.saved_tensors if y.shape == x.shape)
        pointer, before = dx.data_ptr(), dx.clone()
        (loss * up).backward(retain_graph=True)  # not in place: the graph is kept
        assert x.grad.data_ptr() != pointer and torch.equal(dx, before)
        assert torch.allclose(x.grad, before * up)
        x.grad = None
        del dx
        (loss * up).backward()
        assert x.grad.data_ptr() == pointer and torch.allclose(x.grad, before * up)


def test_the_gradient_of_float16_logits_stays_in_range() -> None:
    """Under a scaled loss it is what float32 gives, rounded once; divided by the count before, it would underflow."""
    torch = pytest.importorskip("torch")
    x, targets = torch.randn(500, 60, generator=torch.Generator().manual_seed(0)), torch.arange(500) % 60
    exact, half = x.half().double().requires_grad_(), x.half().requires_grad_()
    (torch.nn.functional.cross_entropy(exact, targets) * 4096).backward()
    (pk.cross_entropy(half, targets) * 4096).backward()
    assert torch.allclose(half.grad.double(), exact.grad, rtol=2**-9, atol=0)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_gradient_over_the_logits(compiled: bool) -> None:
    """On request: the memory of the logits holds their gradient, and autograd knows that they have changed."""
    torch = pytest.importorskip("torch")
    weight, targets = torch.randn(40, 8, requires_grad=True), torch.tensor([1, 2, -100, 4])
    h = torch.randn(4, 8)
    (expected,) = torch.autograd.grad(torch.nn.functional.cross_entropy(h @ weight.T, targets), [weight])
    logits = h @ weight.T
    x, before = logits.detach(), logits._version
    call = lambda x: pk.cross_entropy(x, targets, in_place=True)  # noqa: E731
    loss = (torch.compile(call, backend="aot_eager", fullgraph=True) if compiled else call)(x)
    assert logits._version > before and torch.allclose(loss, torch.nn.functional.cross_entropy(h @ weight.T, targets))
    logits.backward(x)
    assert torch.allclose(weight.grad, expected, atol=1e-6)
    with pytest.raises(ArgumentError, match="requires its gradient"):
        pk.cross_entropy(h @ weight.T, targets, in_place=True)
    with pytest.raises(ArgumentError, match="return_lse"):
        pk.cross_entropy(x, targets, in_place=True, return_lse=True)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_targets_of_any_stride(reduction: str) -> None:
    torch = pytest.importorskip("torch")
    x, targets = torch.randn(6, 37).requires_grad_(), torch.arange(12)[::2]
    for given in (targets, torch.tensor(5).expand(6)):
        loss = pk.cross_entropy(x, given, reduction=reduction).sum()
        wanted = torch.nn.functional.cross_entropy(x, given, reduction=reduction).sum()
        assert torch.allclose(loss, wanted)
        assert torch.allclose(*(torch.autograd.grad(y, x)[0] for y in (loss, wanted)), atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_rows_in_place_are_what_no_rows_are(reduction: str) -> None:
    x, targets = np.zeros((0, 5), np.float32), np.zeros(0, np.int64)
    found, expected = (pk.cross_entropy(x, targets, reduction=reduction, in_place=kind) for kind in (True, False))
    assert np.array_equal(found, expected, equal_nan=True)
