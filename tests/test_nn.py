"""The modules beside torch's and transformers' with the same weights, forward and backward."""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from transformers import LlamaConfig  # noqa: E402
from transformers.models.llama import modeling_llama as llama  # noqa: E402

from pykittens import nn  # noqa: E402
from pykittens.errors import ArgumentError  # noqa: E402

N, SIZE, HALF = 9, 32, torch.bfloat16
CONFIG = LlamaConfig(
    hidden_size=SIZE,
    intermediate_size=40,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=64,
    attn_implementation="sdpa",
)


def filled(module: Any) -> Any:
    generator = torch.Generator().manual_seed(3)
    for w in module.parameters():
        torch.nn.init.normal_(w, std=0.3, generator=generator)
    return module


class LlamaAttention(llama.LlamaAttention):
    """transformers' with our tables."""

    def forward(self, x: Any, cos: Any, sin: Any) -> Any:
        tables = tuple(torch.cat((t, t), -1)[None, :N].to(x.dtype) for t in (cos, sin))
        return super().forward(x, tables, None)[0]


CASES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "RMSNorm": (lambda: nn.RMSNorm(SIZE, eps=1e-5), lambda: torch.nn.RMSNorm(SIZE, eps=1e-5)),
    "LlamaRMSNorm": (lambda: nn.RMSNorm(SIZE), lambda: llama.LlamaRMSNorm(SIZE)),
    "LayerNorm": (lambda: nn.LayerNorm(SIZE), lambda: torch.nn.LayerNorm(SIZE)),
    "LayerNorm without bias": (lambda: nn.LayerNorm(SIZE, bias=False), lambda: torch.nn.LayerNorm(SIZE, bias=False)),
    "GatedMLP": (lambda: nn.GatedMLP(SIZE, 40), lambda: llama.LlamaMLP(CONFIG)),
    "Attention": (lambda: nn.Attention(SIZE, 2, 1, 64), lambda: LlamaAttention(CONFIG, 0)),
}


@pytest.mark.thin
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("way", ["bf16", "autocast"])
def test_is_what_torch_and_transformers_have(name: str, way: str) -> None:
    """With the state dict of the other; in autocast, weights stay float32."""
    ours, theirs = (make() for make in CASES[name])
    ours.load_state_dict(filled(theirs).state_dict())
    x = torch.randn(2, N, SIZE, generator=torch.Generator().manual_seed(1))
    found = []
    for module in (ours, theirs):
        module = module.to(HALF) if way == "bf16" else module
        given = x.to(HALF if way == "bf16" else torch.float32).requires_grad_()
        tables = nn.rotary_tables(N + 3, 64) if name == "Attention" else ()
        with torch.autocast("cpu", dtype=HALF, enabled=way == "autocast"):
            y = module(given, *tables)
        leaves = {"x": given, **dict(module.named_parameters())}
        up = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y.dtype)
        found.append([y, *torch.autograd.grad(y, [leaves[k] for k in sorted(leaves)], up)])
    for ours_is, theirs_is in zip(*found, strict=True):
        assert ours_is.shape == theirs_is.shape
        assert (ours_is.float() - theirs_is.float()).norm() < 2e-2 * theirs_is.float().norm()


@pytest.mark.parametrize("make", [nn.RMSNorm, nn.LayerNorm])
def test_a_residual_stream(make: Any) -> None:
    x, residual, norm = torch.randn(N, SIZE), torch.randn(N, SIZE), filled(make(SIZE))
    y, stream = norm(x, residual)
    assert torch.equal(stream, x + residual)
    assert torch.allclose(y, norm(x + residual), atol=1e-6)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_other_gates(activation: str) -> None:
    mlp, x = filled(nn.GatedMLP(SIZE, 40, activation, bias=True)), torch.randn(N, SIZE)
    kind = "tanh" if activation == "gelu_tanh" else "none"
    gate = torch.nn.functional.gelu(mlp.gate_proj(x), approximate=kind)
    assert torch.allclose(mlp(x), mlp.down_proj(gate * mlp.up_proj(x)), atol=1e-5)
    with pytest.raises(ArgumentError, match="GatedMLP with activation='tanh'"):
        nn.GatedMLP(SIZE, 40, "tanh")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_a_gate_in_one_kernel(activation: str, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done on a GPU, here on the simulated one: as the projections by themselves, gradients too."""
    mlp, x = (
        filled(nn.GatedMLP(SIZE, 40, activation, bias)).to(HALF).eval(),
        torch.randn(N, SIZE).to(HALF).requires_grad_(),
    )
    found = []
    for together in (False, True):
        monkeypatch.setattr(nn.transformer, "one_kernel", lambda *_, together=together: together)
        y = mlp(x)
        found.append([y, *torch.autograd.grad(y.float().square().sum(), [x, *mlp.parameters()])])
    for one, other in zip(*found, strict=True):
        assert (one.float() - other.float()).norm() < 2e-2 * one.float().norm()


def test_projections_that_somebody_changed_are_called() -> None:
    class Adapted(torch.nn.Linear):
        pass

    x, (first, second) = torch.randn(N, SIZE).to(HALF), (torch.nn.Linear(SIZE, 8).to(HALF) for _ in range(2))
    on_gpu = type("OnGpu", (), {"is_cuda": True, "device": x.device, "dtype": x.dtype})()
    assert nn.transformer.one_kernel(on_gpu, first, second) and not nn.transformer.one_kernel(x, first, second)
    assert not nn.transformer.one_kernel(on_gpu, first, Adapted(SIZE, 8).to(HALF)) and not nn.transformer.one_kernel(
        on_gpu, first.float(), second
    )
    second.register_forward_hook(lambda *_: None)
    assert not nn.transformer.one_kernel(on_gpu, first.to(HALF), second)


def test_attention_without_tables_turns_nothing() -> None:
    x = torch.randn(1, N, SIZE).to(HALF)
    attention = filled(nn.Attention(SIZE, 2, 1, 64, causal=False)).to(HALF)
    q, k, v = (
        p(x).unflatten(-1, (-1, 64)).transpose(1, 2) for p in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    exact = torch.nn.functional.scaled_dot_product_attention(q.float(), k.float(), v.float(), enable_gqa=True)
    exact = attention.o_proj(exact.to(HALF).transpose(1, 2).flatten(2)).float()
    assert (attention(x).float() - exact).norm() < 2e-2 * exact.norm()


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: nn.GatedDeltaNet(SIZE, 2, 1, 64), id="GatedDeltaNet"),
        pytest.param(lambda: nn.Mamba2(SIZE, 2, 64, 64), id="Mamba2", marks=pytest.mark.whole),
    ],
)
def test_a_recurrent_block_goes_on_from_its_cache_and_has_gradients(make: Any) -> None:
    torch.manual_seed(0)
    block = make().to(HALF)
    x = torch.randn(2, 6, SIZE).to(HALF)
    y = block(x)
    with torch.no_grad():
        made, cache = block(x[:, :4], return_cache=True)
        for i in (4, 5):  # by chunk, then row by row
            one, cache = block(x[:, i : i + 1], cache, return_cache=True)
            made = torch.cat((made, one), 1)
    assert (made - y).float().norm() < 1e-2 * y.float().norm()
    y.float().square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any() for p in block.parameters())


def test_heads_that_keys_do_not_divide_are_an_error() -> None:
    with pytest.raises(ArgumentError, match="3 heads, 2 for keys"):
        nn.GatedDeltaNet(SIZE, 3, 2)
