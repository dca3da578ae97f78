"""Matrix products on the simulated GPU: small integers, so that every result is exact."""

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import pykittens as pk
from pykittens.errors import ArgumentError, RaceError
from pykittens.functions.product import MATMUL, MATMUL_EPILOGUE, number_of
from pykittens.kernels import aligned, gemm, gemm_ampere, gemm_divided, matmul, schedule
from pykittens.kernels.gemm import Config

BF16, E4M3, E5M2 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
ORDERS = [(False, False), (False, True), (True, False), (True, True)]
CONFIGS = [
    Config(128, 128, 2, 2, group=2),
    Config(128, 64, 3, 1, group=1),
    Config(192, 64, 2, 3),
    Config(64, 192, 2, 1),
    Config(64, 64, 2, 1, depth=256),
    Config(64, 64, 2, 1, rotate=True),
    Config(128, 128, 2, 2, cluster=2),
    Config(128, 128, 2, 2, cluster=2, share="a"),
    Config(64, 128, 2, 1, cluster=2, share="k"),
    Config(128, 128, 2, 2, cluster=4, share="k"),
    Config(64, 128, 2, 1, cluster=8, share="k"),
]
SWAPPED = [
    Config(64, 16, 3, 1, swap=True),
    Config(64, 32, 2, 1, depth=256, rotate=True, once="a", swap=True),
    Config(128, 80, 2, 2, swap=True),
    Config(256, 144, 2, 2, cluster=2, share="a", swap=True),
    Config(128, 48, 2, 2, cluster=2, swap=True),
    Config(64, 16, 2, 1, cluster=2, share="k", swap=True),
    Config(64, 48, 2, 1, cluster=4, share="k", swap=True),
    Config(64, 128, 2, 1, cluster=2, share="k", swap=True),
]


def integers(rows: int, cols: int, dtype: Any, transposed: bool = False) -> np.ndarray:
    """A matrix of small integers, stored by rows or (as a view) by columns."""
    x = np.random.default_rng(rows * 31 + cols).integers(-3, 4, (rows, cols)).astype(np.float32).astype(dtype)
    return np.ascontiguousarray(x.T).T if transposed else x


def exact(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a.astype(np.float32) @ b.astype(np.float32)


def same(c: np.ndarray, expected: np.ndarray) -> bool:
    return np.array_equal(c.astype(np.float32), expected.astype(c.dtype).astype(np.float32))


@pytest.mark.thin
@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("seed", [None, 1])
def test_every_configuration(config: Config, seed: int | None) -> None:
    a, b = integers(136, 304, BF16), integers(304, 264, BF16, True)
    c = np.full((136, 264), np.nan, BF16)
    gemm.gemm.simulate(a, b.T, c, None, None, None, None, 8, config=config, tb=True, seed=seed)
    assert same(c, exact(a, b))


@pytest.mark.thin
@pytest.mark.parametrize("config", SWAPPED, ids=str)
@pytest.mark.parametrize(("n", "k", "dtype"), [(264, 176, BF16), (131, 175, np.float16)], ids=str)
@pytest.mark.parametrize("tb", [False, True])
def test_tiles_of_the_transpose(config: Config, n: int, k: int, dtype: Any, tb: bool) -> None:
    """Pieces with fewer rows than others, rows that TMA can neither read nor write, and b in either order."""
    a, b = integers(200, k, dtype), integers(k, n, dtype, tb)
    assert same(MATMUL.run((a, b, None, None), (None,), config=config)[0], exact(a, b))


@pytest.mark.thin
@pytest.mark.parametrize(("ta", "tb"), ORDERS)
@pytest.mark.parametrize("dtype", [BF16, np.float16], ids=str)
@pytest.mark.parametrize("cluster", [1, 2])
def test_either_order(ta: bool, tb: bool, dtype: Any, cluster: int) -> None:
    a, b = integers(136, 200, dtype, ta), integers(200, 264, dtype, tb)
    assert same(MATMUL.run((a, b, None, None), (None,), config=Config(128, 128, 2, 2, cluster=cluster))[0], exact(a, b))


@pytest.mark.thin
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (1, 4096, 16), (77, 131, 515), (129, 33, 7), (64, 520, 600)])
@pytest.mark.parametrize(("ta", "tb"), ORDERS)
def test_any_shape(m: int, n: int, k: int, ta: bool, tb: bool) -> None:
    """Rows that do not begin at multiples of 16 bytes too: copied once, or stored without TMA."""
    a, b = integers(m, k, BF16, ta), integers(k, n, BF16, tb)
    assert same(pk.matmul(a, b), exact(a, b))


@pytest.mark.parametrize("dtype", [BF16, E4M3], ids=str)
def test_operands_from_anywhere(dtype: Any) -> None:
    """Rows of any alignment, of a part of something larger, every other one, none contiguous, all the same."""
    whole = integers(41, 150, dtype)
    flat = integers(1, 40 * 131 + 3, dtype)[0]
    columns = np.asfortranarray(integers(40, 131, dtype))
    for a in (whole[1:, 3:134], flat[3:].reshape(40, 131), whole[:, ::2], columns[::2], whole[::-1, 1:]):
        b = integers(a.shape[1], 48, dtype, True)
        assert same(pk.matmul(a, b), exact(a, b))
        assert same(pk.matmul(b.T, a.T), exact(b.T, a.T))
    same_rows = np.broadcast_to(whole[:1, 1:132], (40, 131))
    assert same(pk.matmul(same_rows, integers(131, 48, dtype, True)), exact(same_rows, integers(131, 48, dtype)))


def test_aligned_copies_keep_every_number() -> None:
    x = np.array([[np.nan, np.inf, -np.inf, -0.0, 3e-39, 3e38, 1.0]], BF16).repeat(5, 0)
    (copy,) = aligned.copies([x], False)
    made = copy.array[:, :7]
    assert np.array_equal(made.astype(float), x.astype(float), equal_nan=True)
    assert np.signbit(made[:, 3].astype(float)).all()
    assert copy.array.shape == (5, 64) and not copy.array[:, 7:].astype(float).any()  # TMA reads whole lines


@pytest.mark.thin
@pytest.mark.parametrize(("first", "second"), [(E4M3, E4M3), (E5M2, E5M2), (E4M3, E5M2), (E5M2, E4M3)], ids=str)
@pytest.mark.parametrize(("ta", "tb"), ORDERS)
def test_eight_bits(first: Any, second: Any, ta: bool, tb: bool) -> None:
    a, b = integers(72, 160, first, ta), integers(160, 136, second, tb)
    half, quarter = np.array([0.5], np.float32), np.array(0.25, np.float32)
    c = pk.matmul(a, b, scale_a=half, scale_b=quarter)
    assert c.dtype == BF16 and same(c, exact(a, b) / 8)


def test_output_dtypes() -> None:
    a, b = integers(72, 160, BF16), integers(160, 136, BF16)
    for name, dtype in (("f32", np.float32), ("f16", np.float16), ("bf16", BF16)):
        c = pk.matmul(a, b, dtype=name)
        assert c.dtype == dtype and same(c, exact(a, b))


def test_epilogues() -> None:
    a, b = integers(72, 160, BF16), integers(160, 136, BF16)
    bias, residual = integers(1, 136, np.float32)[0], integers(72, 136, BF16)

    def finish(x: Any, row: Any, col: Any, bias: Any, residual: Any) -> Any:
        x = x + pk.warpgroup.load_row(bias, pk.at(0, col), length=x.cols)
        return pk.relu(x) + pk.warpgroup.load(residual, pk.at(row, col), rows=x.rows, cols=x.cols, dtype=pk.f32)

    expected = np.maximum(exact(a, b) + bias, 0) + residual.astype(np.float32)
    for config in (None, Config(64, 128, 2, 1, cluster=2, share="k")):
        operands = (a, b, None, None, bias, residual, None, None)
        assert same(MATMUL_EPILOGUE.run(operands, (number_of(finish), None), config=config)[0], expected)
    column = pk.matmul(
        a, b, epilogue=lambda x, row, col: pk.where(pk.row_index(x) + row > pk.col_index(x) + col, x, 0.0)
    )
    assert same(column, np.where(np.arange(72)[:, None] > np.arange(136), exact(a, b), 0))


def test_an_epilogue_made_anew_is_traced_once() -> None:
    a, b = integers(64, 64, BF16), integers(64, 64, BF16)
    pk.matmul(a, b, epilogue=lambda x, row, col: x * 2.0)
    before = len(gemm.gemm.memory.programs)
    for _ in range(3):
        assert same(pk.matmul(a, b, epilogue=lambda x, row, col: x * 2.0), exact(a, b) * 2)
    assert len(gemm.gemm.memory.programs) <= before + 1  # the lambda on another line is another lambda


def test_bad_operands() -> None:
    a = integers(64, 64, BF16)
    wrong = [
        (integers(32, 64, BF16), r"b is \(k, n\)"),
        (integers(64, 64, np.float16), "pass both as bf16"),
        (a[None], r"b is \(k, n\)"),
    ]
    for b, words in wrong:
        with pytest.raises(ArgumentError, match=words):
            pk.matmul(a, b)
    with pytest.raises(ArgumentError, match="at most 4"):
        pk.matmul(a, a, epilogue=lambda x, *_: x, operands=(a,) * 5)
    with pytest.raises(ArgumentError, match="JAX array"):
        pk.matmul([1.0], a)


def test_bad_configurations() -> None:
    turning = {"cluster": 2, "rotate": True}
    for wrong in ({"rows": 96}, {"cols": 320}, {"cols": 80}, {"share": "c"}, {"consumers": 3}, turning):
        with pytest.raises(ValueError, match="rows are a multiple"):
            Config(**wrong)


def test_too_few_buffers_are_found() -> None:
    """A tile that leaves through one buffer: waiting for the store before the last is not enough."""

    @pk.kernel(warps=4)
    def leave(c: pk.gl(pk.bf16, "M", 64)) -> None:
        buffer = pk.shared(pk.st(pk.bf16, 64, 64))
        for i in pk.range(c.rows // 64):
            pk.warpgroup.tma.wait(pending=1, read=True)
            pk.warpgroup.sync()
            pk.warpgroup.store(buffer, pk.warpgroup.ones(pk.bf16, 64, 64))
            pk.warpgroup.sync()
            pk.warpgroup.tma.store(c, buffer, (i, 0))
            pk.warpgroup.tma.commit()
        pk.warpgroup.tma.wait()

    with pytest.raises(RaceError, match="may still read it"):
        leave(np.zeros((256, 64), BF16))


@pytest.mark.parametrize(
    ("m", "n", "k"), [(4096, 4096, 4096), (64, 8192, 8192), (1000, 1032, 1000), (1, 1, 1), (99999, 16, 16)]
)
def test_the_choice_fits(m: int, n: int, k: int) -> None:
    config, _ = schedule.product(schedule.Multiply(m, n, k), schedule.DeviceModel()).way
    assert replace(config, rotate=False, once="") in schedule.CONFIGS


def test_products_of_few_rows_are_turned_where_they_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for an epilogue, and not where rows of a lie along m; the simulated GPU takes tiles of 64 rows."""
    a, b = integers(8, 4104, BF16), integers(4104, 4104, BF16)
    assert not matmul.choose_kernel(matmul.described(a), matmul.described(b), False, True).config.swap
    monkeypatch.setattr(matmul, "SIMULATED", 132)
    matmul.choose_kernel.cache_clear()
    for first, swap, turned in ((a, True, True), (a, False, False), (np.asfortranarray(a), True, False)):
        config = matmul.choose_kernel(matmul.described(first), matmul.described(b), False, swap).config
        assert config.swap == turned and config.cols == (16 if turned else config.cols)
    matmul.choose_kernel.cache_clear()


@pytest.mark.thin(3)
@pytest.mark.parametrize(
    ("config", "sms", "splits", "dtype"),
    [
        (Config(64, 128, 2, 1), 6, 3, np.dtype(np.float32)),  # three rounds, and 2 of 20 tiles are left
        (Config(128, 64, 2, 2), 4, 2, BF16),
        (Config(128, 128, 2, 1), 21, 2, BF16),  # all 10 tiles are the last round
    ],
    ids=str,
)
def test_the_last_round_is_divided_along_k(config: Config, sms: int, splits: int, dtype: Any) -> None:
    a, b = integers(200, 304, BF16), integers(304, 520, BF16)
    c = np.full((200, 520), np.nan, dtype)
    operands = (a, b, c, None, None, None, None, sms, None, None, None)
    gemm_divided.DIVIDED(*operands, config=config, splits=splits, ta=False, tb=False)
    assert same(c, exact(a, b))


# Ampere ---------------------------------------------------------------------------------------------------


@pytest.mark.thin
@pytest.mark.parametrize(("ta", "tb"), ORDERS)
@pytest.mark.parametrize("config", [gemm_ampere.Config(), gemm_ampere.Config(64, 64, 2, 64, 1)], ids=str)
def test_ampere_in_either_order(ta: bool, tb: bool, config: Any) -> None:
    for m, n, k in ((136, 200, 104), (1, 1, 1), (77, 65, 30)):
        a, b = integers(m, k, BF16, ta), integers(k, n, BF16, tb)
        assert same(MATMUL.run((a, b, None, None), (None,), config=config)[0], exact(a, b))


def test_all_that_is_made_of_products_on_ampere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gates and what their backward pass needs, epilogues with operands, sums in place, and such as store alone."""
    torch = pytest.importorskip("torch")
    chosen = matmul.choose_kernel

    def ampere(first: Any, second: Any, pair: bool = False, *others: bool) -> Any:
        rows, cols = first.shape[0], second.shape[1]
        return replace(chosen(first, second, pair), config=matmul.choose_ampere(rows, cols, 2, pair))

    def found() -> list[Any]:
        generator = torch.Generator().manual_seed(1)
        x, w, b = (torch.randn(s, generator=generator).bfloat16().requires_grad_() for s in ((70, 40), (48, 40), (48,)))
        buffer = torch.zeros(48, 40)
        y = pk.linear(x, w, b, "swiglu") + pk.linear(x, w, b, "geglu", grad_buffer=buffer)
        loss = pk.linear_cross_entropy(y, w[:, :24], torch.arange(70) % 48)
        loss.backward()
        return [y, loss, x.grad, w.grad, b.grad, buffer]

    hopper = found()
    with monkeypatch.context() as patched:
        patched.setattr(matmul, "choose_kernel", ampere)
        again = found()
    for one, other in zip(hopper, again, strict=True):
        assert torch.allclose(one.float(), other.float(), atol=2e-2 * float(one.detach().abs().max()))


def test_the_choice_for_ampere() -> None:
    assert matmul.choose_ampere(4096, 4096, 108, False) == gemm_ampere.Config()
    assert matmul.choose_ampere(4096, 4096, 108, True) == gemm_ampere.Config(128, 64)
    assert matmul.choose_ampere(128, 1024, 108, False) == gemm_ampere.Config(64, 64)
