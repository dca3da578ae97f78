"""LayerNorm and RMSNorm on the simulated GPU, against float64."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from pykittens.errors import ArgumentError, Diagnosis
from pykittens.functions.norms import LAYERNORM, RMSNORM, layernorm, rmsnorm
from pykittens.kernels import norms, rows
from pykittens.ops.sync import Barrier
from pykittens.types import DTYPES

BF16 = np.dtype(ml_dtypes.bfloat16)
EPS = {"bfloat16": 2**-8, "float16": 2**-11, "float32": 2**-24}
WIDTHS = (1, 2, 3, 8, 15, 64, 100, 256, 1000, 1023, 1024, 1025, 3000, 8192, 20000, 65536)


def random(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def close(y: np.ndarray, expected: np.ndarray) -> None:
    """Within the rounding of the output and what float32 loses on the way."""
    allowed = EPS[y.dtype.name] * np.abs(expected) + 4e-6 * np.abs(expected).max() + 1e-9
    assert (np.abs(y.astype(np.float64) - expected) <= allowed).all()


@pytest.mark.thin
@pytest.mark.parametrize("n", WIDTHS)
@pytest.mark.parametrize("dtype", [BF16, np.float16, np.float32], ids=str)
def test_every_width(n: int, dtype: Any) -> None:
    x, w, b = random((3, n), dtype), random((n,), dtype, 1), random((n,), dtype, 2)
    close(rmsnorm(x, w), norms.reference(x, w, eps=1e-6, centred=False)[0])
    if n > 2:  # two elements that nearly agree amplify rounding without bound
        close(layernorm(x, w, b), norms.reference(x, w, b, eps=1e-5)[0])


@pytest.mark.thin
@pytest.mark.parametrize("n", [5, 1000, 4096, 40000])
@pytest.mark.parametrize("p", [0.0, 0.25])
def test_residual_and_dropout(n: int, p: float) -> None:
    x, w, r = random((2, 3, n), BF16), random((n,), np.float32, 1), random((2, 3, n), np.float32, 2)
    y, s = layernorm(x, w, residual=r, p=p, seed=(7 << 40) + 3)
    expected, stream = norms.reference(x, w, residual=r, p=p, seed=(7 << 40) + 3, eps=1e-5)
    assert y.dtype == BF16 and s.dtype == np.float32 and y.shape == x.shape
    close(s, stream), close(y, expected)


def test_dropout_alone_returns_what_is_left() -> None:
    x = random((64, 512), np.float32) + 3
    y, s = rmsnorm(x, p=0.3, seed=5)
    assert abs((s == 0).mean() - 0.3) < 0.01
    np.testing.assert_allclose(s[s != 0], (x / 0.7)[s != 0], rtol=1e-6)
    assert not np.array_equal(s, rmsnorm(x, p=0.3, seed=6)[1])
    assert np.array_equal(s, rmsnorm(x, p=0.3, seed=5)[1])


def test_nothing_but_x() -> None:
    x = random((5, 300), np.float32)
    close(layernorm(x), norms.reference(x, eps=1e-5)[0])


def test_strided_rows_and_odd_alignment() -> None:
    whole = random((6, 2 * 257 + 1), BF16)
    for part in (whole[:, :256], whole[:, 1:258], whole[::2, 3:300]):
        close(rmsnorm(part), norms.reference(part, eps=1e-6, centred=False)[0])
    close(rmsnorm(whole[0]), norms.reference(whole[0], eps=1e-6, centred=False)[0])
    broadcast = np.broadcast_to(random((1, 128), BF16), (5, 128))
    close(rmsnorm(broadcast), norms.reference(broadcast, eps=1e-6, centred=False)[0])


def test_many_rows_of_one_element() -> None:
    x = random((1000, 1), np.float32)
    close(rmsnorm(x, eps=0.0), np.sign(x))
    assert (layernorm(x) == 0).all()


def test_large_means_lose_nothing() -> None:
    x = (random((4, 4096), np.float64) + 1000).astype(np.float32)
    y, expected = layernorm(x), norms.reference(x, eps=1e-5)[0]
    single = x - x.mean(-1, keepdims=True)
    single /= np.sqrt((single * single).mean(-1, keepdims=True) + np.float32(1e-5))
    assert np.abs(y - expected).max() <= 1.5 * np.abs(single - expected).max() + 1e-6


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n", [100, 5000])
def test_nan_and_infinity_stay_in_their_row(value: float, n: int) -> None:
    x = random((4, n), np.float32)
    x[2, n // 2] = value
    for y, centred in ((layernorm(x), True), (rmsnorm(x), False)):
        expected = norms.reference(x, eps=1e-5 if centred else 1e-6, centred=centred)[0]
        assert np.array_equal(np.isnan(y), np.isnan(expected))
        close(np.delete(y, 2, 0), np.delete(expected, 2, 0))


@pytest.mark.thin
@pytest.mark.parametrize(
    "settings", [{"held": 32}, {"most": 4}, {"most": 8, "held": 32}, {"clusters": False}, {"warps": 1}], ids=str
)
@pytest.mark.parametrize("n", [256, 6000, 40000])
def test_every_division_gives_the_same(n: int, settings: dict[str, Any]) -> None:
    x, w, r = random((3, n), BF16), random((n,), BF16, 1), random((3, n), BF16, 2)
    y, s = LAYERNORM.run(
        (x, r, w, None, None), (1e-5, 0.0, 0), True, config=rows.plan(n, 2, 16, inputs=4, weights=2, **settings)
    )
    expected, stream = norms.reference(x, w, residual=r, eps=1e-5)
    close(s, stream), close(y, expected)


@pytest.mark.thin
@pytest.mark.parametrize(
    "settings", [{"cluster": 1}, {"cluster": 2, "stages": 1}, {"cluster": 4, "teams": 3}, {}], ids=str
)
@pytest.mark.parametrize("n", [2048, 5000])
@pytest.mark.parametrize("dtype", [BF16, np.float32], ids=str)
def test_rows_that_stream(n: int, dtype: Any, settings: dict[str, Any]) -> None:
    """More rows than all slots hold, columns past the end of a row, a residual of another dtype, rows that do not
    follow one another."""
    x, r = random((11, n + 8), dtype)[:, :n], random((11, n + 8), np.float32, 3)[:, :n]
    w, b, size = random((n,), dtype, 1), random((n,), np.float32, 2), x.itemsize
    config = rows.stream(n, size, size + 4, size + 4, processors=3, team=4, **settings)
    assert config.blocks(11) // config.cluster * config.stages * config.teams < 11 or config.stages > 1
    y, s = LAYERNORM.run((x, r, w, b, None), (1e-5, 0.25, 3), True, config=config)
    expected, stream = norms.reference(x, w, b, residual=r, p=0.25, seed=3, eps=1e-5)
    close(s, stream), close(y, expected)
    close(
        RMSNORM.run((x, None, None, None, None), (1e-6, 0.0, 0), config=config)[0],
        norms.reference(x, eps=1e-6, centred=False)[0],
    )


def test_how_wide_rows_are_divided() -> None:
    """Registers, slots and weights have room, whatever goes along; what TMA cannot address does not stream."""
    for n in (16392, 20000, 28672, 32768, 50304, 65536):
        for size, inputs, weights in ((2, 2, 0), (2, 2, 4), (2, 4, 4), (2, 6, 8), (4, 4, 0), (4, 8, 8)):
            config = rows.plan(n, size, 16, inputs=inputs, weights=weights)
            assert config.stages >= 1 and config.team * config.teams + 4 == config.warps
            assert config.cols * size <= 128 * 32 * config.team and config.cols * config.cluster >= n
            slots = config.cols * (config.teams * config.stages * inputs + weights)
            assert slots + config.teams * config.cluster * rows.TERMS <= rows.SHARED
            assert 24 * 4 + config.budget * (config.warps - 4) <= 2048
        assert not rows.plan(n, 2, 8, inputs=2).stages and not rows.plan(n, 2, 16, inputs=2, clusters=False).stages


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"x": np.zeros((2, 70000), np.float32)}, "65536"),
        ({"x": np.zeros((2, 8))}, "x is f64"),
        ({"x": [1.0]}, "`x`"),
        ({"weight": np.zeros(7, np.float32)}, r"weight has shape \(7,\)"),
        ({"weight": np.zeros((1, 8), np.float32)}, "weight has shape"),
        ({"bias": np.zeros(8, np.int32)}, "bias is i32"),
        ({"residual": np.zeros((3, 8), np.float32)}, "residual has shape"),
        ({"residual": np.zeros((8, 2), np.float32).T}, "contiguous"),
        ({"x": np.zeros((4, 3, 16), np.float32)[:, :, ::2]}, "contiguous"),
        ({"x": np.zeros((4, 3, 8), np.float32).transpose(1, 0, 2)}, "evenly spaced"),
        ({"p": 1.0}, "p = 1.0"),
        ({"eps": -1.0}, "eps"),
        ({"eps": float("nan")}, "eps"),
    ],
)
@pytest.mark.parametrize("norm", [layernorm, rmsnorm])
def test_bad_arguments(norm: Any, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        norm(**{"x": np.zeros((2, 8), np.float32), **arguments})


def test_configurations_are_checked() -> None:
    for bad in (
        {"n": 0},
        {"team": 3},
        {"warps": 64},
        {"cluster": 16},
        {"cols": 64},
        {"stages": -1},
        {"stages": 2},
        {"processors": 0},
    ):
        with pytest.raises(ArgumentError):
            rows.Rows(**{"n": 128, "width": 8, "lanes": 16, "cols": 128, **bad})


@pytest.mark.parametrize("n", [4096, 40000])
def test_every_barrier_is_needed(n: int) -> None:
    """A row over several warps, or over a cluster: each of its barriers keeps order, or sees that the other blocks
    run."""
    x, y = random((2, n), np.float32), np.zeros((2, n), np.float32)
    config = rows.plan(n, 4, 8)  # not what TMA takes: rows do not stream
    operands = (x, None, None, None, y, None, None, 1e-5, 1.0, 0, 0, 0, None)
    settings = {"centred": True, "dropout": False, "config": config}
    program = norms.normalize.program(*operands, **settings)
    places = [i for i, op in enumerate(program.body.ops) if isinstance(op, Barrier) or op.name == "clusterbarrier"]
    assert len(places) >= 2
    for i in places:
        op = program.body.ops.pop(i)
        try:
            with pytest.raises(Diagnosis):
                norms.normalize.simulate(*operands, **settings)
        finally:
            program.body.ops.insert(i, op)
    assert norms.normalize.simulate(*operands, **settings).clean
    close(y, norms.reference(x, eps=1e-5)[0])


@pytest.mark.parametrize("n", [50304, 65536])
def test_wide_rows_compile_without_spills(n: int) -> None:
    """Whatever goes along with a row; also where TMA moves it in many boxes, because it is no multiple of 256."""
    from pykittens import spec

    x, w = spec(DTYPES["bf16"], (100, n)), spec(DTYPES["bf16"], (n,))
    for residual, weight, bias in ((None, None, None), (x, w, w)):
        config = rows.plan(
            n, 2, 16, inputs=4 if residual else 2, weights=2 * (weight is not None) + 2 * (bias is not None)
        )
        operands = (x, residual, weight, bias, x, residual, None, 1e-5, 1.0, 0, 0, 0, None)
        cubin = norms.normalize.compile(*operands, centred=True, dropout=False, config=config)
        assert not cubin.spills and cubin.stack_bytes == 0 and not cubin.serialized, cubin.log


def test_compiles_to_whole_vectors() -> None:
    """16-byte accesses only, no local memory, and every load of x before the first use of one."""
    from pykittens import spec
    from pykittens.gpu import sass

    for n in (256, 1024, 8192):
        x, w = spec(DTYPES["bf16"], (100, n)), spec(DTYPES["bf16"], (n,))
        cubin = norms.normalize.compile(
            x,
            None,
            w,
            None,
            x,
            None,
            None,
            1e-5,
            1.0,
            0,
            0,
            0,
            None,
            centred=False,
            dropout=False,
            config=rows.plan(n, 2, 16),
        )
        code = sass.instructions(sass.disassemble(cubin))
        loads = [i for i in code if i.base == "LDG"]
        assert not cubin.spills and cubin.stack_bytes == 0
        assert len(loads) == 8 and all(".128" in i.opcode for i in loads)
        assert all(".128" in i.opcode for i in code if i.base == "STG")
        first = min(i for i, x in enumerate(code) if x.base == "SHFL" and "BFLY" in x.opcode)
        assert len([i for i in code[:first] if i.base == "LDG"]) >= 4  # x, at least
