"""The torch operators: checked by torch itself, traced without memory, compiled; on a GPU also captured in a graph."""

import subprocess
import sys
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import pykittens as pk  # noqa: E402
import pykittens.functions  # noqa: E402
from pykittens.errors import ArgumentError  # noqa: E402

gpu = pytest.mark.gpu
pykittens.functions.load()


def operands(device: str = "cpu", heads: int = 2, n: int = 40, d: int = 64, dtype: Any = torch.bfloat16) -> list[Any]:
    torch.manual_seed(n)
    return [torch.randn(1, heads, n, d, device=device).to(dtype) for _ in range(3)]


def close(out: Any, q: Any, k: Any, v: Any, causal: bool = False) -> bool:
    double = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=causal)
    return bool(((out.double() - double).norm(dim=-1) / double.norm(dim=-1)).max() < 1e-2)


@pytest.mark.parametrize("causal", [False, True])
def test_eager(causal: bool) -> None:
    q, k, v = operands()
    assert close(pk.attention(q, k, v, causal=causal), q, k, v, causal)
    assert close(torch.ops.pykittens.attention(q, k, v, causal=causal), q, k, v, causal)
    _, lse = pk.attention(q, k, v, return_lse=True)
    assert lse.shape == (1, 2, 40)
    assert torch.allclose(lse, torch.logsumexp(q.float() @ k.float().mT / 8, -1), atol=1e-3)


def test_strides() -> None:
    """A transposed view is read in place and gives a transposed result; other strides are copied."""
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in operands())
    out = pk.attention(q, k, v)
    assert out.stride() == q.stride()
    assert close(out, q, k, v)
    columns = [x.mT.contiguous().mT for x in (q, k, v)]
    assert torch.equal(pk.attention(*columns), out)
    assert pk.attention(*columns).is_contiguous()
    wide = [torch.nn.functional.pad(x, (1, 7))[..., 1:65] for x in (q, k, v)]  # rows not at multiples of 16 bytes
    assert torch.equal(pk.attention(*wide), out)
    expanded = pk.attention(q, k[:, :1].expand(-1, 2, -1, -1), v[:, :1].expand(-1, 2, -1, -1))
    assert torch.equal(expanded, pk.attention(q, k[:, :1], v[:, :1]))


def test_opcheck() -> None:
    q, k, v = operands(n=20)
    transposed = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    for arguments in ((q, k, v), (*transposed, None, True, 0.5)):
        torch.library.opcheck(torch.ops.pykittens.attention.default, arguments)
        torch.library.opcheck(torch.ops.pykittens.attention_lse.default, arguments)


def test_matmul() -> None:
    """Operators of it: rows and columns, 8-bit floats with scales, another dtype for the result."""
    a, b = torch.randn(70, 64).bfloat16(), torch.randn(64, 48).bfloat16()
    exact = a.double() @ b.double()
    for right in (b, b.T.contiguous().T):
        assert torch.allclose(pk.matmul(a, right).double(), exact, rtol=1e-2, atol=5e-2)
    assert torch.allclose(pk.matmul(a, b, dtype=pk.f32).double(), exact, rtol=1e-4, atol=1e-4)
    small, scale = [x.to(torch.float8_e4m3fn) for x in (a, b.T.contiguous())], torch.tensor([0.5])
    scaled = pk.matmul(small[0], small[1].T, scale_a=scale, scale_b=scale)
    assert scaled.dtype == torch.bfloat16
    assert torch.allclose(scaled.double(), small[0].double() @ small[1].T.double() / 4, rtol=1e-2, atol=5e-2)
    doubled = pk.matmul(a, b, epilogue=lambda x, row, col: x * 2)
    assert torch.allclose(doubled.double(), exact * 2, rtol=1e-2, atol=5e-2)
    torch.library.opcheck(torch.ops.pykittens.matmul.default, (a, b))
    torch.library.opcheck(torch.ops.pykittens.matmul.default, (a.half(), b.half(), scale), {"dtype": torch.float32})
    compiled = torch.compile(lambda a, b: pk.matmul(torch.relu(a), b) + 1, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(a, b), pk.matmul(torch.relu(a), b) + 1)
    with pytest.raises(ArgumentError, match="matmul of a bf16"):
        pk.matmul(a, b[:5])


def test_fake_tensors() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        for device in ("cpu", "cuda", "meta"):
            q, k = (torch.empty(2, h, 1000, 128, dtype=torch.bfloat16, device=device) for h in (8, 2))
            out, lse = pk.attention(q, k, k, return_lse=True)
            assert (out.shape, out.stride(), out.dtype, out.device) == (q.shape, q.stride(), q.dtype, q.device)
            assert (lse.shape, lse.dtype) == ((2, 8, 1000), torch.float32)
        with pytest.raises(ArgumentError, match="no kernel for head dimension 100"):
            pk.attention(q[..., :100], k[..., :100], k[..., :100])


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled(backend: str) -> None:
    def layer(x: Any, w: Any) -> Any:
        q, k, v = (x @ w).unflatten(-1, (3, 2, 64)).permute(2, 0, 3, 1, 4)
        return pk.attention(q, k, v, causal=True).transpose(1, 2).flatten(2)

    x, w = torch.randn(1, 33, 32).bfloat16(), torch.randn(32, 384).bfloat16()
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    assert torch.equal(compiled(x, w), layer(x, w))
    longer = torch.randn(1, 50, 32).bfloat16()  # a length that was not compiled for
    assert torch.equal(compiled(longer, w), layer(longer, w))


def test_an_older_inductor_is_told_of_operators() -> None:
    """Which then writes down nothing about those it meets late in a deep model."""
    from torch._inductor import lowering

    from pykittens.functions import operators

    operator = torch.ops.pykittens.linear_cross_entropy.default
    operators._introduce(operator)
    operators._introduce(operator)
    assert operator in lowering.lowerings and operator in lowering.fallbacks


def test_refusals() -> None:
    q, k, v = operands()
    with pytest.raises(ArgumentError, match="these dtypes are not supported"):
        pk.attention(q.float(), k, v)
    with pytest.raises(ArgumentError, match="q is a torch array on the CPU, k is a numpy array"):
        pk.attention(q.half(), k.half().numpy(), v.half())
    q.requires_grad_()
    (gradient,) = torch.autograd.grad(pk.attention(q, k, v).square().sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="pykittens.attention_backward is a derivative"):
        gradient.sum().backward()
    with torch.no_grad():
        assert not pk.attention(q, k, v).requires_grad


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_of_attention(causal: bool) -> None:
    """Beside float64: two heads that share keys, the gradient of the log-sum-exp, an output that nobody used."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, h, n, 64).bfloat16().requires_grad_() for h, n in ((4, 70), (2, 90), (2, 90)))
    out, lse = pk.attention(q, k, v, causal=causal, return_lse=True)
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    score = exact[0] @ exact[1].repeat_interleave(2, 1).mT / 8
    if causal:
        score = score.masked_fill(torch.arange(90) > torch.arange(70)[:, None] + 20, -torch.inf)
    outs = (torch.softmax(score, -1) @ exact[2].repeat_interleave(2, 1), torch.logsumexp(score, -1))
    up = torch.randn_like(out), torch.randn_like(lse)
    for chosen in ((0,), (1,), (0, 1)):
        found = torch.autograd.grad(
            [(out, lse)[i] for i in chosen], (q, k, v), [up[i] for i in chosen], retain_graph=True
        )
        wanted = torch.autograd.grad(
            [outs[i] for i in chosen], exact, [up[i].double() for i in chosen], retain_graph=True, allow_unused=True
        )
        for x, y in zip(found, wanted, strict=True):
            y = torch.zeros_like(x).double() if y is None else y
            assert (x.double() - y).norm() <= 1e-2 * y.norm()


def test_torch_is_not_imported_for_other_arrays() -> None:
    program = (
        "import sys, numpy as np, pykittens as pk\n"
        "x = np.ones((1, 1, 16, 64), np.float16)\n"
        "pk.attention(x, x, x)\n"
        "assert not {'torch', 'jax', 'cupy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@gpu
@pytest.mark.parametrize("d", [64, 128])
def test_graph(d: int) -> None:
    """Captured once, replayed on new contents."""
    q, k, v = operands("cuda", heads=4, n=300, d=d)
    pk.attention(q, k, v)  # compiled and loaded before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = pk.attention(q, k, v, causal=True)
    for x in (q, k, v):
        x.copy_(torch.randn_like(x))
    graph.replay()
    assert close(out, q, k, v, causal=True)


@gpu
def test_matmul_in_a_graph() -> None:
    a, b = (torch.randn(512, 512, device="cuda").bfloat16() for _ in range(2))
    pk.matmul(a, b)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = pk.matmul(a, b)
    a.copy_(torch.randn_like(a))
    graph.replay()
    assert torch.allclose(out.float(), (a @ b).float(), rtol=2e-2, atol=1e-1)


@gpu
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_inductor(mode: str) -> None:
    """Under torch.compile's own back end, in one graph, with what surrounds it fused."""

    def layer(q: Any, k: Any, v: Any) -> Any:
        return torch.nn.functional.silu(pk.attention(q * 2, k, v + 1)) * 3

    q, k, v = operands("cuda", heads=4, n=300, d=128)
    compiled = torch.compile(layer, mode=mode, fullgraph=True)
    for _ in range(3):
        assert torch.allclose(compiled(q, k, v).float(), layer(q, k, v).float(), rtol=2e-2, atol=2e-2)


@gpu
def test_devices_and_streams() -> None:
    q, k, v = operands("cuda", n=200)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        later = q * 1
        out = pk.attention(later, k, v)
    torch.cuda.current_stream().wait_stream(stream)
    assert close(out, q, k, v)
    with pytest.raises(ArgumentError, match="k is a torch array on the CPU"):
        pk.attention(q, k.cpu(), v)
