"""Linear layers and gradients of matrix products, beside float64 on the simulated GPU."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import pykittens as pk
from pykittens.errors import ArgumentError, TraceError

BF16 = torch.bfloat16
ACTIVATIONS: dict[Any, Any] = {
    None: lambda z: z,
    "relu": torch.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
    "reglu": lambda z: torch.relu(z[0]) * z[1],
    "geglu": lambda z: F.gelu(z[0]) * z[1],
    "geglu_tanh": lambda z: F.gelu(z[0], approximate="tanh") * z[1],
    "swiglu": lambda z: F.silu(z[0]) * z[1],
}
GATES = [x for x in ACTIVATIONS if x and x.endswith(("glu", "glu_tanh"))]


def tensor(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + len(shape))
    return torch.randn(shape, generator=generator).to(dtype)


def leaves(*given: Any) -> list[Any]:
    return [x if x is None else x.detach().clone().requires_grad_() for x in given]


def wide(*given: Any) -> list[Any]:
    return [x if x is None else x.detach().double().requires_grad_() for x in given]


def close(got: Any, want: Any, dtype: torch.dtype = BF16) -> bool:
    size = float(want.detach().abs().max()) if want.numel() else 0.0
    return torch.allclose(got.double(), want.double(), atol=(8e-3 if dtype is BF16 else 2e-3) * max(size, 1e-6), rtol=0)


def reference(x: Any, w: Any, bias: Any, activation: Any, residual: Any) -> Any:
    z = F.linear(x, w, bias)
    y = ACTIVATIONS[activation](z.chunk(2, -1) if activation in GATES else z)
    return y if residual is None else y + residual


def compare(
    shape: tuple[int, ...], n: int, activation: Any, *, bias: Any = None, residual: Any = None, dtype: Any = BF16
) -> None:
    """Result and all gradients, for an incoming gradient of a transposed layout."""
    both = 2 * n if activation in GATES else n
    given = leaves(
        tensor(*shape, dtype=dtype),
        tensor(both, shape[-1], dtype=dtype),
        None if bias is None else tensor(both, dtype=bias),
        None if residual is None else tensor(*shape[:-1], n, dtype=residual),
    )
    x, w, b, r = given
    y, wides = pk.linear(x, w, b, activation, r), wide(*given)
    expected = reference(*wides[:3], activation, wides[3])
    assert y.dtype == dtype and y.shape == expected.shape and close(y.detach(), expected.detach(), dtype)
    dy = tensor(n, *shape[:-1], dtype=dtype).movedim(0, -1)
    y.backward(dy)
    expected.backward(dy.double())
    for name, got, want in zip(("x", "weight", "bias", "residual"), given, wides, strict=True):
        if got is not None:
            assert got.grad.dtype == got.dtype and close(got.grad, want.grad, dtype), (activation, name)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: Any) -> None:
    compare((2, 5, 40), 24, activation, bias=torch.float32, residual=BF16)


@pytest.mark.parametrize(
    ("shape", "n", "activation", "options"),
    [
        ((1, 8), 1, "silu", {"bias": BF16, "residual": BF16}),
        ((67, 33), 65, "gelu", {"bias": BF16}),
        ((3, 7), 5, "swiglu", {"residual": torch.float32}),
        ((0, 16), 8, "gelu", {"bias": BF16, "residual": BF16}),
        ((4, 16), 0, "relu", {}),
        ((3, 1), 5, "geglu", {}),  # one half of the weight begins where TMA can read it, and the other does not
        ((16,), 8, None, {"bias": torch.float16, "dtype": torch.float16}),
        ((9, 24), 16, "geglu", {"bias": torch.float32, "dtype": torch.float16}),
    ],
    ids=str,
)
def test_shapes_and_dtypes(shape: Any, n: int, activation: Any, options: Any) -> None:
    compare(shape, n, activation, **options)


def test_two_weights_are_one_stacked() -> None:
    x, gate, up = leaves(tensor(20, 24), tensor(16, 24), tensor(16, 24) * 0.5)
    stacked = torch.cat([gate, up]).detach().requires_grad_()
    other = x.detach().clone().requires_grad_()
    y, same, dy = (
        pk.linear(x, (gate, up), activation="swiglu"),
        pk.linear(other, stacked, None, "swiglu"),
        tensor(20, 16),
    )
    assert torch.equal(y, same)
    y.backward(dy)
    same.backward(dy)
    assert torch.equal(torch.cat([gate.grad, up.grad]), stacked.grad) and close(x.grad, other.grad)


def test_a_function_of_ones_own() -> None:
    x, w = leaves(tensor(10, 16), tensor(8, 16))
    y = pk.linear(x, w, activation=lambda x: pk.relu(x) * pk.relu(x))
    wides = wide(x, w)
    expected = torch.relu(F.linear(*wides)) ** 2
    y.sum().backward()
    expected.sum().backward()
    assert close(y.detach(), expected) and close(x.grad, wides[0].grad) and close(w.grad, wides[1].grad)

    def branching(x: Any) -> Any:
        with pk.when(pk.block_index.x == 0):
            x[:] = x * 2.0
        return x

    with pytest.raises(TraceError, match="is inside a region"):
        pk.linear(x, w, activation=branching).sum().backward()


def test_what_needs_no_gradient_gets_none() -> None:
    x, w, b = tensor(10, 16), tensor(8, 16).requires_grad_(), tensor(8)
    pk.linear(x, w, b, "gelu").sum().backward()
    assert x.grad is None and b.grad is None and w.grad is not None
    x.requires_grad_()
    (found,) = torch.autograd.grad(pk.linear(x, w.detach(), b).sum(), x)
    assert close(found, w.detach().sum(0).expand(10, 16))


def test_a_gradient_of_zero_stride() -> None:
    x, w = leaves(tensor(10, 16), tensor(8, 16))
    y = pk.linear(x, w, None, "relu")
    y.backward(torch.ones((), dtype=BF16).expand_as(y))
    wides = wide(x, w)
    torch.relu(F.linear(*wides)).sum().backward()
    assert close(x.grad, wides[0].grad) and close(w.grad, wides[1].grad)


def test_operands_of_any_strides() -> None:
    """Rows that are not contiguous are copied, and gradients come back in their place."""
    x, w, b, r = leaves(tensor(16, 10), tensor(16, 8), tensor(16), tensor(8, 10))
    y = pk.linear(x.T, w.T, b[::2], "silu", r.T)
    wides = wide(x, w, b, r)
    expected = F.silu(F.linear(wides[0].T, wides[1].T, wides[2][::2])) + wides[3].T
    dy = tensor(10, 8)
    y.backward(dy)
    expected.backward(dy.double())
    assert close(y.detach(), expected.detach())
    assert all(close(got.grad, want.grad) for got, want in zip((x, w, b, r), wides, strict=True))


def test_a_buffer_for_the_weights_gradient() -> None:
    """Two passes add to it in float32, though both graphs keep it; the weight's own gradient stays as it is."""
    w, buffer, expected = tensor(8, 16).requires_grad_(), torch.ones(8, 16), torch.ones(8, 16, dtype=torch.float64)
    losses = []
    for step in range(2):
        x = tensor(10, 16) * (step + 1)
        losses.append(pk.linear(x, w, None, "silu", grad_buffer=buffer).sum())
        (wides := wide(w))[0].retain_grad()
        F.silu(F.linear(x.double(), wides[0])).sum().backward()
        expected += wides[0].grad
    sum(losses).backward()
    assert w.grad is None and close(buffer, expected)
    with pytest.raises(ArgumentError, match="float32 and the weight's shape"):
        pk.linear(x, w, grad_buffer=torch.ones(8, 15))
    with pytest.raises(ArgumentError, match="stack them"):
        pk.linear(x, (w, w), None, "swiglu", grad_buffer=buffer)


def test_autocast() -> None:
    x, w, b = leaves(
        tensor(10, 16, dtype=torch.float32), tensor(8, 16, dtype=torch.float32), tensor(8, dtype=torch.float32)
    )
    with torch.autocast("cpu", BF16):
        y = pk.linear(x, w, b, "gelu")
    assert y.dtype is BF16
    y.sum().backward()
    assert all(t.grad.dtype is torch.float32 for t in (x, w, b))
    with pytest.raises(ArgumentError, match="torch.autocast"):
        pk.linear(x, w)


def test_compiled() -> None:
    """One graph for all lengths, gradients and the buffer included."""
    w, b, buffer = tensor(32, 16).requires_grad_(), tensor(32).requires_grad_(), torch.zeros(32, 16)

    def layers(x: torch.Tensor) -> torch.Tensor:
        return pk.linear(x, w, b, "swiglu") + pk.linear(x, w, None, "geglu", grad_buffer=buffer)

    compiled = torch.compile(layers, backend="aot_eager", fullgraph=True, dynamic=True)
    for rows in (5, 9):
        found, x = [], tensor(rows, 16)
        for call in (compiled, layers):
            w.grad = b.grad = None
            buffer.zero_()
            call(x).sum().backward()
            found.append((w.grad, b.grad, buffer.clone()))
        assert all(torch.equal(*pair) for pair in zip(*found, strict=True)) and found[0][2].any()


def test_other_arrays() -> None:
    x, w, b = (t.float().numpy().astype(pk.bf16.numpy) for t in (tensor(3, 4, 16), tensor(16, 16), tensor(16)))
    y = pk.linear(x, w, b, "swiglu")
    expected = reference(*(torch.tensor(t.astype(np.float64)) for t in (x, w, b)), "swiglu", None)
    assert y.shape == (3, 4, 8) and close(torch.tensor(y.astype(np.float64)), expected)


def test_bad_operands() -> None:
    x, w = tensor(5, 16), tensor(8, 16)
    wrong: list[tuple[Any, Any, str]] = [
        ((x, tensor(8, 15)), {}, r"weight \(n, k\)"),
        ((x, w.half()), {}, "bf16 by bf16"),
        ((x, (w, w, w), None, "swiglu"), {}, "3 weights"),
        ((x, w), {"grad_buffer": torch.zeros(16, 8).T}, "contiguous rows"),
        ((x, w), {"grad_buffer": torch.zeros(1, 16).expand(8, 16)}, "each of its own"),
        ((x, w, None, "tanh"), {}, "use one of relu"),
        ((x, w, tensor(7)), {}, r"shape \(8,\)"),
        ((x, w, None, None, tensor(5, 7)), {}, r"shape \(5, 8\)"),
        ((x, (w, w), None, "relu"), {}, "two weights of one shape"),
        ((x, tensor(7, 16), None, "swiglu"), {}, r"\(2 n, k\)"),
    ]
    for args, named, words in wrong:
        with pytest.raises(ArgumentError, match=words):
            pk.linear(*args, **named)


# Products ---------------------------------------------------------------------------------------------------


@pytest.mark.thin
@pytest.mark.parametrize(("ta", "tb"), [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("out", [None, pk.f32])
def test_gradients_of_products(ta: bool, tb: bool, out: Any) -> None:
    a, b, scale = leaves(
        tensor(*((12, 9) if ta else (9, 12))), tensor(*((7, 12) if tb else (12, 7))), torch.tensor([0.5])
    )
    c = pk.matmul(a.T if ta else a, b.T if tb else b, scale_b=scale, dtype=out)
    wides = wide(a, b, scale)
    expected = (wides[0].T if ta else wides[0]) @ (wides[1].T if tb else wides[1]) * wides[2]
    dc = tensor(9, 7).to(c.dtype)
    c.backward(dc)
    expected.backward(dc.double())
    assert all(close(x.grad, y.grad) for x, y in zip((a, b, scale), wides, strict=True))


def test_gradients_of_both_scales() -> None:
    a, b = tensor(9, 12), tensor(12, 7)
    scales = leaves(torch.tensor([0.5]), torch.tensor(3.0))
    pk.matmul(a, b, scale_a=scales[0], scale_b=scales[1]).sum().backward()
    whole = (a.double() @ b.double()).sum()
    assert close(scales[0].grad, 3 * whole[None]) and close(scales[1].grad, whole / 2)


@pytest.mark.parametrize(("m", "n"), [(70, 67), (1, 8), (8, 1)])
def test_gradients_through_an_epilogue(m: int, n: int) -> None:
    """Of operands of every shape that broadcasts, with a scale beside them."""

    def epilogue(x: Any, row: Any, col: Any, bias: Any, column: Any, one: Any) -> Any:
        x = x + pk.warpgroup.load_row(bias, pk.at(0, col), length=x.cols)
        x *= pk.warpgroup.load(column, pk.at(row, 0), rows=x.rows, cols=16, dtype=pk.f32).row_sum()
        return pk.tanh(x) * one[0, 0]

    given = leaves(tensor(m, 16) * 0.2, tensor(16, n), tensor(n, dtype=torch.float32), tensor(m, 1), tensor(1))
    scale = torch.tensor([0.5], requires_grad=True)
    a, b, *operands = given
    c = pk.matmul(a, b, epilogue=epilogue, operands=operands, scale_a=scale)
    wides = wide(*given, scale)
    expected = torch.tanh((wides[0] @ wides[1] * wides[5] + wides[2]) * wides[3]) * wides[4]
    dc = tensor(m, n)
    c.backward(dc)
    expected.backward(dc.double())
    assert close(c.detach(), expected.detach())
    for i, (x, y) in enumerate(zip((*given, scale), wides, strict=True)):
        assert x.grad.shape == x.shape and close(x.grad, y.grad), i


def test_an_operand_read_elsewhere_has_no_gradient() -> None:
    a, b, other = leaves(tensor(8, 16), tensor(16, 8), tensor(8, 8))

    def epilogue(x: Any, row: Any, col: Any, other: Any) -> Any:
        return x + pk.warpgroup.load(other, pk.at(col, row), rows=x.rows, cols=x.cols, dtype=pk.f32)

    c = pk.matmul(a, b, epilogue=epilogue, operands=(other,))
    with pytest.raises(ArgumentError, match="reads elsewhere than at its own element"):
        c.sum().backward()
    assert close(
        torch.autograd.grad(pk.matmul(a, b, epilogue=epilogue, operands=(other.detach(),)).sum(), a)[0],
        b.sum(1).expand(8, 16),
    )


def test_eight_bits_have_no_gradient() -> None:
    a, b = (torch.ones(16, 16).to(torch.float8_e4m3fn) for _ in range(2))
    scale = torch.ones(1, requires_grad=True)
    with pytest.raises(ArgumentError, match="8-bit floats has no gradient"):
        pk.matmul(a, b, scale_a=scale).sum().backward()


def test_addmm() -> None:
    a, b, total = tensor(20, 9), tensor(20, 7), torch.ones(9, 7)
    before, version = total.clone(), total._version
    assert pk.addmm_(total, a.T, b) is None
    assert total._version > version and close(total, before.double() + a.double().T @ b.double())
    pk.addmm_(total, a[:0].T, b[:0])
    with pytest.raises(ArgumentError, match="requires its gradient"):
        pk.addmm_(total, a.T, b.requires_grad_())
    with pytest.raises(ArgumentError, match=r"float32 \(9, 7\)"):
        pk.addmm_(total.bfloat16(), a.T, b.detach())
    array = np.ones((9, 7), np.float32)
    pk.addmm_(array, *(x.detach().float().numpy().astype(pk.bf16.numpy) for x in (a.T, b)))
    assert close(torch.tensor(array), 1 + a.double().T @ b.detach().double())
