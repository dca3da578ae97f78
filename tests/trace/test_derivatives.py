"""Derivatives of traced functions: every operation's rule against differences of its own samples, and the walk."""

import importlib
import pkgutil
from typing import Any

import numpy as np
import pytest
import torch

import pykittens as pk
import pykittens.ops
from pykittens import bf16, f32, warp
from pykittens.errors import TraceError
from pykittens.program import Op
from pykittens.testing.conformance import operations
from pykittens.testing.derivatives import check_derivatives, differentiable

for module in pkgutil.iter_modules(pykittens.ops.__path__):
    importlib.import_module(f"pykittens.ops.{module.name}")
OURS = [op for op in operations() if op.__module__.startswith("pykittens.")]
DIFFERENTIABLE = [op for op in OURS if any(differentiable(op, sample) for sample in op.samples())]


@pytest.mark.parametrize("op", DIFFERENTIABLE, ids=lambda op: op.__name__)
def test_every_operation_on_floats_has_a_derivative_or_a_reason(op: type[Op]) -> None:
    if op.vjp is Op.vjp:
        assert op.no_vjp, f"{op.__name__} makes floats of floats: give it vjp, or say in no_vjp why it has none"
    else:
        assert not op.no_vjp
        assert check_derivatives(op)


def test_what_has_one() -> None:
    """The list is made from the operations' samples: here is what it must not lose."""
    names = {op.__name__ for op in DIFFERENTIABLE if op.vjp is not Op.vjp}
    assert names >= {"Unary", "Binary", "Fma", "Select", "Convert", "Reduce", "VectorReduce", "SideFill", "Assign"}


# The walk ---------------------------------------------------------------------------------------------------


def run(function: Any, x: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """y and dx of a function of a 16 x 32 tile."""

    @pk.kernel(warps=1)
    def k(x: pk.gl(f32, 16, 32), dy: pk.gl(f32, 16, 32), y: pk.gl(f32, 16, 32), dx: pk.gl(f32, 16, 32)):
        out, pullback = pk.vjp(function, warp.load(x, (0, 0), rows=16))
        (found,) = pullback(warp.load(dy, (0, 0), rows=16))
        warp.store(y, out + warp.zeros(f32, 16, 32), (0, 0))
        warp.store(dx, found, (0, 0))

    y, dx = np.full_like(x, np.nan), np.full_like(x, np.nan)
    k(x, dy, y, dx)
    return y, dx


def softmax(x: Any) -> Any:
    p = pk.exp(x - x.row_max())
    p /= p.row_sum()
    return p


def changes_in_place(x: Any) -> Any:
    x += 1.0
    square = x * x
    x *= square
    x[:] = x + square
    return x


def partial_sums(x: Any) -> Any:
    return x / (x.row_dot(x, partial=True) * 2.0).total()


def two_broadcasts(x: Any) -> Any:
    """Vectors from both sides, a vector used as a tile and as a vector, and a scalar."""
    rows, cols = x.row_sum(), x.col_sum()
    outer = rows * 0.1 + cols
    return outer * rows + cols.max() * x * rows.sum()


FUNCTIONS = {
    softmax: lambda t: torch.softmax(t, -1),
    changes_in_place: lambda t: (t + 1) ** 3 + (t + 1) ** 2,
    partial_sums: lambda t: t / (2 * (t * t).sum(1, keepdim=True)),
    two_broadcasts: lambda t: (
        (t.sum(1, keepdim=True) * 0.1 + t.sum(0)) * t.sum(1, keepdim=True) + t.sum(0).max() * t * t.sum()
    ),
    (lambda x: x.row_sum()): lambda t: t.sum(1, keepdim=True).expand(16, 32),
    (lambda x: pk.where(pk.row_index(x) >= pk.col_index(x), pk.tanh(x / 30.0) * 30.0, 0.0)): lambda t: (
        torch.tanh(t / 30) * 30 * torch.ones(16, 32).tril()
    ),
    (lambda x: x.to(bf16).to(f32) * 3.0): lambda t: t * 3,
    (lambda x: pk.derivative(lambda z: z * z * z)(x)): lambda t: 3 * t * t,  # a second derivative
}


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_against_torch(function: Any) -> None:
    chance = np.random.default_rng(3)
    x, dy = (chance.standard_normal((16, 32)).astype(np.float32) for _ in range(2))
    t = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    expected = FUNCTIONS[function](t)
    expected.backward(torch.tensor(dy, dtype=torch.float64))
    _, dx = run(function, x, dy)
    assert t.grad is not None
    assert np.allclose(dx, t.grad, rtol=1e-4, atol=1e-4 * float(t.grad.abs().max()))


def test_corners_are_torchs() -> None:
    x = np.tile(np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1, -1, 2], np.float32), (16, 4))
    t = torch.tensor(x, requires_grad=True)
    torch.relu(t).sum().backward()
    assert np.array_equal(run(pk.relu, x, np.ones_like(x))[1], t.grad, equal_nan=True)
    t.grad = None
    torch.abs(t).sum().backward()
    found = run(abs, x, np.ones_like(x))[1]
    assert np.array_equal(found[~np.isnan(x)], t.grad.numpy()[~np.isnan(x)]) and np.isnan(found[np.isnan(x)]).all()
    t.grad = None
    torch.maximum(t, torch.tensor(0.0)).sum().backward()
    found = run(lambda x: pk.maximum(x, 0.0), x, np.ones_like(x))[1]
    assert np.array_equal(found[~np.isnan(x)], t.grad.numpy()[~np.isnan(x)])


REFUSED = {
    "stores": "leaves what has a derivative",
    "branches": "inside a region",
    "returns nothing": "returns None",
    "variable": "variables are for loops",
    "inline": "leaves what has a derivative",
    "product": "leaves what has a derivative",
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_has_no_derivative_is_refused(what: str) -> None:
    def function(x: Any) -> Any:
        if what == "stores":
            warp.store(pk.shared(pk.st(f32, 16, 32)), x)
        if what == "branches":
            with pk.when(pk.block_index.x == 0):
                x[:] = x * 2.0
        if what == "inline":
            pk.cuda("", reads={"x": x}, writes={"z": (z := x * 1.0)}, numpy=lambda x, z: x)
            return z
        if what == "product":
            warp.mma_ABt(acc := warp.zeros(f32, 16, 16), x.to(bf16), pk.shared(pk.st(bf16, 16, 32)))
            return acc
        if what == "returns nothing":
            return None
        return x * pk.var(f32, x.row_sum().sum()) if what == "variable" else x * x

    with pytest.raises(TraceError, match=REFUSED[what]):
        run(function, np.ones((16, 32), np.float32), np.ones((16, 32), np.float32))


def test_a_tile_that_changes_before_the_pullback_is_found() -> None:
    @pk.kernel(warps=1)
    def k(x: pk.gl(f32, 16, 32)):
        tile = warp.load(x, (0, 0), rows=16)
        _, pullback = pk.vjp(lambda x: x * x, tile)
        tile += 1.0
        warp.store(x, pullback(1.0)[0], (0, 0))

    with pytest.raises(TraceError, match="tile changes between a vjp and its pullback"):
        k(np.ones((16, 32), np.float32))


def two_of_one(x: Any, dy: Any) -> Any:
    first, second = pk.vjp(lambda u, v: u * v, x, x)[1](dy)
    return first + second


def through_vector_and_scalar(x: Any, dy: Any) -> Any:
    rows, total = x.row_sum(), x.row_sum().sum()
    du, drows, dtotal = pk.vjp(lambda u, v, s: u * v + u * s, x, rows, total)[1](dy)
    return du + drows + dtotal


def in_a_loop(x: Any, dy: Any) -> Any:
    total = warp.zeros(f32, 16, 32)
    for _ in pk.range(3):
        total += pk.vjp(lambda u: u * u, x)[1](dy)[0]
    return total


def overwritten(x: Any, dy: Any) -> Any:
    def function(u: Any) -> Any:
        mask, alias = u > 0.0, u
        y = pk.where(mask, u * u, 0.0)
        mask[:] = u < 0.0
        u[:] = 0.0
        return y + alias

    return pk.vjp(function, x)[1](dy)[0]


PULLBACKS = {
    two_of_one: lambda x, dy: 2 * x * dy,
    through_vector_and_scalar: lambda x, dy: (
        dy * (x.sum(1, keepdims=True) + x.sum()) + (dy * x).sum(1, keepdims=True) + (dy * x).sum()
    ),
    in_a_loop: lambda x, dy: 6 * x * dy,
    overwritten: lambda x, dy: 2 * x * dy * (x > 0),
    (lambda x, dy: pk.vjp(lambda u: warp.ones(f32, 16, 32), x)[1](dy)[0]): lambda x, dy: 0 * dy,
    (lambda x, dy: pk.vjp(lambda u: u, x)[1](dy)[0]): lambda x, dy: dy,
    (lambda x, dy: pk.vjp(lambda u: u * u, x)[1](dy.row_sum())[0]): lambda x, dy: 2 * x * dy.sum(1, keepdims=True),
    (lambda x, dy: pk.vjp(lambda u: u.row_max(), x)[1](2.0)[0]): lambda x, dy: 2.0 * (x == x.max(1, keepdims=True)),
    (lambda x, dy: (f := pk.vjp(lambda u: u * u, x)[1])(dy)[0] + f(1.0)[0]): lambda x, dy: 2 * x * (dy + 1),
}


@pytest.mark.parametrize("function", PULLBACKS, ids=lambda f: f.__name__)
def test_pullbacks(function: Any) -> None:
    @pk.kernel(warps=1)
    def k(x: pk.gl(f32, 16, 32), dy: pk.gl(f32, 16, 32), dx: pk.gl(f32, 16, 32)):
        warp.store(dx, function(*(warp.load(z, (0, 0), rows=16) for z in (x, dy))), (0, 0))

    chance = np.random.default_rng(3)
    x, dy = (chance.standard_normal((16, 32)).astype(np.float32) for _ in range(2))
    dx = np.full_like(x, np.nan)
    k(x, dy, dx)
    expected = PULLBACKS[function](x.astype(float), dy.astype(float))
    assert np.allclose(dx, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("whole", ["swap", "transpose", "both"])
def test_a_layout_that_changes_across_warps_has_a_derivative(whole: str) -> None:
    """Through shared memory and back: d(x^2 u) = 2 x u, with factors that lie elsewhere."""
    layout = pk.coalesced(128, 2)
    move: Any = {
        "swap": lambda t: t.swap_layout(layout),
        "transpose": lambda t: t.transpose(),
        "both": lambda t: t.transpose().transpose().swap_layout(layout),
    }[whole]

    @pk.kernel(warps=4)
    def moved(x: pk.gl(f32, 64, 256), u: pk.gl(f32, 64, 256), dx: pk.gl(f32, 64, 256)) -> None:
        tile, up = (pk.block.load(t, (0, 0), rows=64, cols=256, layout="row") for t in (x, u))
        _, pullback = pk.vjp(lambda t: move(t * t) * move(up), tile)
        pk.block.store(dx, pullback(1.0)[0], (0, 0))

    x, u = np.random.default_rng(0).standard_normal((2, 64, 256)).astype(np.float32)
    dx = np.full_like(x, np.nan)
    moved(x, u, dx)
    assert np.allclose(dx, 2 * x * u, rtol=1e-6)
