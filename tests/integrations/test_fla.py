"""flash-linear-attention's own functions and layers with our kernels, on the simulated GPU; which calls are left to
it.
"""

import inspect
import logging
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import pykittens as pk  # noqa: E402
from examples import llama, train  # noqa: E402
from pykittens import nn  # noqa: E402
from pykittens.errors import ArgumentError  # noqa: E402
from pykittens.integrations import fla as integration  # noqa: E402
from pykittens.integrations.fla.plan import HINTS, REPLACEMENTS  # noqa: E402
from tests.integrations.fla_without_triton import Launched, load  # noqa: E402

layers: Any
ops: Any
conv: Any
norms: Any
losses: Any
BF16, F32 = torch.bfloat16, torch.float32


@pytest.fixture(scope="module", autouse=True)
def fla() -> None:
    """Loaded by the process that runs these tests, not by every one that looks for tests: it takes seconds."""
    global layers, ops, conv, norms, losses
    layers, ops, conv, norms, losses = load(
        "fla.layers", "fla.ops", "fla.modules.convolution", "fla.modules", "fla.modules.fused_cross_entropy"
    )


@pytest.fixture(autouse=True)
def enabled() -> Iterator[None]:
    integration.enable()
    yield
    integration.disable()


def normal(*shape: int, dtype: Any = BF16, seed: int = 0, grad: bool = False) -> Any:
    g = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=g).to(dtype).requires_grad_(grad)


def distance(x: Any, y: Any) -> float:
    x, y = x.detach().double(), y.detach().double()
    assert x.shape == y.shape
    return float((x - y).norm() / y.norm())


def recurrence(q: Any, k: Any, v: Any, decay: Any, beta: Any, state: Any, scale: float) -> tuple[Any, Any]:
    """fla's operands (batch, time, heads, ...), keys first in the state, in float64. Without beta nothing is
    overwritten.
    """
    q, k, v, state = (x.double() for x in (q, k, v, state))
    each, rows = v.shape[2] // q.shape[2], []
    q, k = (x.repeat_interleave(each, 2) for x in (q, k))
    for i in range(q.shape[1]):
        fade = decay[:, i].double().exp()
        state = state * (fade[..., None, None] if fade.ndim == 2 else fade[..., None])
        found = torch.einsum("bhkv,bhk->bhv", state, k[:, i])
        change = v[:, i] if beta is None else beta[:, i].double()[..., None] * (v[:, i] - found)
        state = state + k[:, i, :, :, None] * change[:, :, None]
        rows.append(torch.einsum("bhkv,bhk->bhv", state, q[:, i]) * scale)
    return torch.stack(rows, 1), state


def unit(x: Any) -> Any:
    return x / (x * x).sum(-1, keepdim=True).add(1e-6).sqrt()


def softplus(x: Any) -> Any:
    return torch.nn.functional.softplus(x)


def operands(n: int = 5, heads: int = 2, groups: int = 2, batch: int = 2) -> tuple[Any, ...]:
    q, k = (normal(batch, n, groups, 64, seed=i) for i in range(2))
    return q, k, normal(batch, n, heads, 64, seed=2), normal(batch, heads, 64, 64, dtype=F32, seed=3)


# What is replaced -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", REPLACEMENTS, ids=lambda row: row.name)
def test_a_replacement_knows_fla_s_arguments(row: Any) -> None:
    parameters = row.signature.parameters
    free = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    known = {"use_gate_in_kernel", "A_log", "dt_bias"}  # chunk_gated_delta_rule takes them as keywords
    shared = {"g", "gk", "state_v_first", "use_beta_sigmoid_in_kernel", "allow_neg_eigval", "g_gamma"}
    assert row.handled - known - shared <= set(parameters) or free
    needed = {
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }
    assert needed <= row.handled
    assert hasattr(pk, row.ours)


@pytest.mark.parametrize("row", REPLACEMENTS, ids=lambda row: row.name)
def test_what_a_replacement_does_not_know_is_left_to_fla(row: Any) -> None:
    """Each argument of fla's that is neither handled nor a hint, given at another value than fla's default."""
    needed = {
        name: normal(1, 3, 2, 64)
        for name, p in row.signature.parameters.items()
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    }
    others = {n for n, p in row.signature.parameters.items() if p.kind is not p.VAR_KEYWORD} - row.handled - HINTS
    if any(p.kind is p.VAR_KEYWORD for p in row.signature.parameters.values()):
        others |= {"an_option_of_tomorrow"}
    for name in others:
        with pytest.raises(ArgumentError, match=f"left to fla: {row.name} with {name}="):
            row.planned(**needed, **{name: object()})


def test_replaced_lists_functions_of_fla_s_and_ours() -> None:
    for theirs, ours in integration.replaced().items():
        module, _, name = theirs.rpartition(".")
        assert hasattr(sys.modules[module], name), theirs
        assert callable(getattr(pk, ours.removeprefix("pykittens.")))


def everything() -> dict[tuple[str, str], int]:
    return {
        (name, key): id(value)
        for name, module in list(sys.modules.items())
        if name.split(".")[0] == "fla"
        for key, value in list(vars(module).items())
    }


def test_disable_gives_everything_back() -> None:
    integration.disable()
    before = everything(), vars(layers.mamba2.Mamba2)["cuda_kernels_forward"], layers.mamba2.is_fast_path_available
    integration.enable()
    integration.enable()
    changed = {key for key, value in everything().items() if value != before[0][key]}
    assert {
        ("fla.ops.gla", "chunk_gla"),
        ("fla.layers.gla", "chunk_gla"),
        ("fla.ops.gla.chunk", "chunk_gla"),
    } <= changed
    assert layers.mamba2.is_fast_path_available
    late = types.ModuleType("imported_since")
    late.chunk = ops.chunk_gla
    sys.modules["imported_since"] = late
    integration.disable()
    del sys.modules["imported_since"]
    after = everything(), vars(layers.mamba2.Mamba2)["cuda_kernels_forward"], layers.mamba2.is_fast_path_available
    assert before == after and late.chunk is ops.gla.chunk.chunk_gla
    q, k, v, _ = operands()
    with pytest.raises(Launched):
        ops.chunk_gated_delta_rule(q, k, v, g=normal(2, 5, 2, dtype=F32), beta=normal(2, 5, 2, dtype=F32))


def test_a_registry_that_is_off_is_an_error(monkeypatch: Any) -> None:
    monkeypatch.setattr(sys.modules["fla.backends"], "_DISPATCH_DISABLED", True)
    with pytest.raises(ArgumentError, match="asks no registry"):
        integration.enable()


def test_what_ours_does_not_take_runs_in_fla(monkeypatch: Any) -> None:
    said: list[str] = []
    handler, logger = logging.Handler(), logging.getLogger(integration.__name__)
    monkeypatch.setattr(handler, "emit", lambda record: said.append(record.getMessage()))
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "level", logging.INFO)
    q, k, v, _ = (x.float() for x in operands())
    with pytest.raises(Launched):
        ops.chunk_simple_gla(q, k, v, g=-normal(2, 5, 2, dtype=F32).abs())
    assert any("these dtypes are not supported" in text for text in said)
    wide = normal(1, 3, 2, 80)
    with pytest.raises(Launched):
        ops.chunk_gated_delta_rule(wide, wide, wide, g=normal(1, 3, 2), beta=normal(1, 3, 2))


# Functions ------------------------------------------------------------------------------------------------------


def test_gated_delta_rule_with_raw_gates() -> None:
    q, k, v, state = operands(heads=2, groups=1)
    g, beta, a, bias = normal(2, 5, 2), normal(2, 5, 2, seed=5), normal(2, dtype=F32), normal(2, dtype=F32, seed=6)
    options = {"use_gate_in_kernel": True, "use_beta_sigmoid_in_kernel": True, "use_qk_l2norm_in_kernel": True}
    given = {"g": g, "beta": beta, "A_log": a, "dt_bias": bias, "output_final_state": True, "allow_neg_eigval": True}
    o, after = ops.chunk_gated_delta_rule(q, k, v, **given, **options, initial_state=state)
    decay = -a.double().exp() * softplus(g.double() + bias)
    wanted, last = recurrence(
        unit(q.double()), unit(k.double()), v, decay, 2 * beta.double().sigmoid(), state, 64**-0.5
    )
    assert o.is_contiguous() and distance(o, wanted) < 5e-3 and distance(after, last) < 5e-3
    turned = {"initial_state": state.mT.contiguous(), "state_v_first": True}
    first, flipped = ops.chunk_gated_delta_rule(q, k, v, **given, **options, **turned)
    assert torch.equal(first, o) and torch.equal(flipped.mT, after)
    step, one = ops.fused_recurrent_gated_delta_rule(
        q[:, :1], k[:, :1], v[:, :1], **given | {"g": g[:, :1], "beta": beta[:, :1]}, **options, **turned
    )
    assert distance(step, wanted[:, :1]) < 5e-3 and one.shape == state.shape


def test_kimi_delta_attention_with_a_bounded_gate() -> None:
    q, k, v, state = operands()
    g, beta, a, bias = (
        normal(2, 5, 2, 64),
        normal(2, 5, 2, seed=5).sigmoid(),
        normal(2, dtype=F32),
        normal(128, dtype=F32),
    )
    given = {"beta": beta, "A_log": a, "dt_bias": bias, "use_gate_in_kernel": True, "use_qk_l2norm_in_kernel": True}
    bounds = {"safe_gate": True, "lower_bound": -5.0}
    o, after = ops.chunk_kda(q, k, v, g, **given, **bounds, initial_state=state, output_final_state=True)
    decay = -5 * torch.sigmoid(a.double().exp()[:, None] * (g.double() + bias.view(2, 64)))
    wanted, last = recurrence(unit(q.double()), unit(k.double()), v, decay, beta, state, 64**-0.5)
    assert distance(o, wanted) < 6e-3 and distance(after, last) < 6e-3


@pytest.mark.thin
@pytest.mark.parametrize("how", ["g", "g_gamma", "none"])
@pytest.mark.parametrize("packed", [False, True])
def test_simple_gla_and_its_kin(how: str, packed: bool) -> None:
    q, k, v, state = operands(batch=1)
    state = torch.cat([state, state]) if packed else state
    decay = {"g": -normal(1, 5, 2, dtype=F32).abs(), "g_gamma": torch.tensor([-0.5, 0.0]), "none": None}[how]
    given = {} if decay is None else {how: decay}
    if packed:
        given["cu_seqlens"] = torch.tensor([0, 2, 5])
    o, after = ops.chunk_simple_gla(q, k, v, **given, initial_state=state, output_final_state=True)
    fade = torch.zeros(1, 5, 2) if decay is None else decay.expand(1, 5, 2)
    parts = [slice(0, 2), slice(2, 5)] if packed else [slice(0, 5)]
    for i, rows in enumerate(parts):
        one = [x[:, rows] for x in (q, k, v, fade)]
        wanted, last = recurrence(*one, None, state[i : i + 1], 64**-0.5)
        assert distance(o[:, rows], wanted) < 5e-3 and distance(after[i : i + 1], last) < 5e-3


def test_one_row_of_gated_linear_attention() -> None:
    q, k, v, state = (x[:, :1] if x.dtype is BF16 else x for x in operands())
    g, gk = -normal(2, 1, 2, dtype=F32).abs(), -normal(2, 1, 2, 64).abs()
    for function, given in ((ops.fused_recurrent_simple_gla, {"g": g}), (ops.fused_recurrent_gla, {"gk": gk})):
        o, after = function(q, k, v, **given, initial_state=state, output_final_state=True)
        wanted, last = recurrence(q, k, v, *given.values(), None, state, 64**-0.5)
        assert distance(o, wanted) < 5e-3 and distance(after, last) < 5e-3
    with pytest.raises(Launched):
        ops.fused_recurrent_simple_gla(*operands()[:3], g=-normal(2, 5, 2, dtype=F32).abs())


def test_gates_of_channels() -> None:
    q, k, v, state = operands(batch=1)
    g = -normal(1, 5, 2, 64, dtype=F32).abs()
    o, after = ops.chunk_gla(q, k, v, g, initial_state=state, output_final_state=True)
    wanted, last = recurrence(q, k, v, g, None, state, 64**-0.5)
    assert distance(o, wanted) < 5e-3 and distance(after, last) < 5e-3


def test_names_that_lead_to_simple_gla_lead_to_ours() -> None:
    q, k, v, _ = operands()
    assert ops.chunk_retention(q, k, v)[0].shape == v.shape
    assert ops.chunk_lightning_attn(q, k, v, layer_idx=0, num_layers=2)[0].shape == v.shape
    o, _ = ops.chunk_linear_attn(q, k, v, normalize=False)
    assert torch.equal(o, ops.fused_chunk_linear_attn(q, k, v, normalize=False)[0])


def test_the_delta_rule_and_its_gradients() -> None:
    q, k, v, state = operands(batch=1)
    beta = normal(1, 5, 2).sigmoid()
    leaves = [x.detach().requires_grad_() for x in (q, unit(k.float()).bfloat16(), v, beta, state)]
    o, after = ops.chunk_delta_rule(*leaves[:4], initial_state=leaves[4], output_final_state=True)
    exact = [x.detach().double().requires_grad_() for x in leaves]
    wanted, last = recurrence(*exact[:3], torch.zeros(1, 5, 2), *exact[3:], 64**-0.5)
    ups = normal(*o.shape), normal(*after.shape, dtype=F32)
    found = torch.autograd.grad((o, after), leaves, ups)
    for x, y in zip(found, torch.autograd.grad((wanted, last), exact, [u.double() for u in ups]), strict=True):
        assert distance(x, y) < 8e-3


@pytest.mark.parametrize("n", [2, pytest.param(6, marks=pytest.mark.whole)])  # fewer rows than the width, and more
def test_the_short_convolution_with_its_state(n: int) -> None:
    x, weight, bias = normal(2, n, 32), normal(32, 4), normal(32)
    state = normal(2, 32, 4)
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias, state)]
    y, after = conv.causal_conv1d(*leaves[:3], initial_state=leaves[3], output_final_state=True, activation="swish")
    exact = [t.detach().double().requires_grad_() for t in leaves]
    whole = torch.cat([exact[3], exact[0].mT], 2)
    z = torch.nn.functional.conv1d(whole[:, :, 1:], exact[1][:, None], exact[2], groups=32)
    wanted, last = (z * z.sigmoid()).mT, whole[:, :, -4:]
    assert distance(y, wanted) < 4e-3 and torch.equal(after.double(), last)
    ups = normal(*y.shape), normal(*after.shape)
    found = torch.autograd.grad((y, after), leaves, ups)
    for a, b in zip(found, torch.autograd.grad((wanted, last), exact, [u.double() for u in ups]), strict=True):
        assert distance(a, b) < 6e-3


def test_norms_and_cross_entropy() -> None:
    x, residual = normal(3, 96), normal(3, 96, seed=1)
    norm = norms.RMSNorm(96, dtype=BF16)
    y, s = norm(x, residual=residual, prenorm=True)
    both = (x.float() + residual.float()).bfloat16()
    assert distance(y, torch.nn.functional.rms_norm(both.double(), (96,), eps=1e-5)) < 4e-3 and torch.equal(s, both)
    with pytest.raises(Launched):  # a copy of x in float32 is fla's affair
        norm(x, prenorm=True, residual_in_fp32=True)
    targets = torch.tensor([0, -100, 95])
    one = float("1")  # fla's default, and another object
    loss, z = losses.cross_entropy_loss(x, targets, logit_scale=one, lse_square_scale=0.5, label_smoothing=0.25)
    lse = x.double().logsumexp(-1)
    plain = torch.nn.functional.cross_entropy(x.double(), targets, reduction="none", label_smoothing=0.25)
    assert distance(z, torch.where(targets < 0, 0, 0.5 * lse**2)) < 1e-5
    assert distance(loss, plain + z.double()) < 1e-5


# Layers ---------------------------------------------------------------------------------------------------------


class GatedNorm(torch.nn.Module):
    """fla's norm with its gate, which is a kernel of Triton's, in torch."""

    def __init__(self, weight: Any) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Any, gate: Any) -> Any:
        y = torch.nn.functional.rms_norm(x.float(), x.shape[-1:], self.weight.float(), 1e-5)
        return (y * torch.nn.functional.silu(gate.float())).to(x.dtype)


@pytest.mark.whole
def test_fla_s_gated_delta_net_and_ours_are_one_layer() -> None:
    """With the same weights: results and gradients."""
    torch.manual_seed(0)
    theirs = layers.GatedDeltaNet(hidden_size=64, expand_v=1, head_dim=64, num_heads=1, num_v_heads=2, layer_idx=0)
    ours = nn.GatedDeltaNet(64, 2, 1, 64)
    ours.load_state_dict(theirs.state_dict())
    theirs.o_norm = GatedNorm(theirs.o_norm.weight)
    found = []
    for layer in (theirs.bfloat16(), ours.bfloat16()):
        x = normal(1, 9, 64, grad=True)
        y = layer(x)
        y = y[0] if isinstance(y, tuple) else y
        named = dict(layer.named_parameters())
        grads = torch.autograd.grad(y, [x, *(named[k] for k in sorted(named))], normal(1, 9, 64, seed=4))
        found.append([y, *grads])
    for a, b in zip(*found, strict=True):
        assert distance(a, b) < 2e-2


def test_the_training_example_s_kits_have_the_same_weights() -> None:
    shape = train.TINY._replace(vocabulary=8)
    ours = llama.Llama(shape, llama.PyKittensDelta).state_dict()
    llama.Llama(shape, llama.FlaDelta).load_state_dict(ours)


def test_mamba2_s_fast_path_is_ours_and_torch_does_the_rest() -> None:
    torch.manual_seed(0)
    layer = layers.Mamba2(hidden_size=64, head_dim=64, state_size=64, expand=1, rmsnorm=False).bfloat16().eval()
    layer.act = torch.nn.functional.silu  # fla's own is a kernel of Triton's
    x = normal(1, 7, 64)
    with torch.no_grad():
        fast, conv_state, state = layer.cuda_kernels_forward(x, use_cache=True)
        slow, conv_wanted, wanted = layer.torch_forward(x, use_cache=True)
        assert distance(fast, slow) < 2e-2 and distance(state, wanted) < 1e-2
        assert torch.equal(conv_state, conv_wanted)
        one = layer.in_proj(x[:, 0]).split([64, 192, 1], -1)
        b = one[1][:, None, 64:128]
        before = state.clone()
        y = layers.mamba2.selective_state_update(
            state,
            one[1][:, None, :64],
            one[2][..., None].expand(-1, -1, 64),
            torch.full((1, 1, 1), -0.5).expand(1, 64, 64),
            b,
            b,
            dt_softplus=True,
        )
        dt = softplus(one[2].double())
        after = before.double() * (-0.5 * dt).exp()[..., None, None]
        after = after + (dt[..., None] * one[1][:, None, :64].double())[..., None] * b.double()[..., None, :]
        assert distance(state, after) < 1e-5 and distance(y, (after @ b.double()[..., None])[..., 0]) < 4e-3
    odd = layers.Mamba2(hidden_size=96, head_dim=32, state_size=16, expand=1, rmsnorm=False).bfloat16()
    odd.act = layer.act
    assert torch.equal(odd.cuda_kernels_forward(normal(1, 3, 96))[0], odd.torch_forward(normal(1, 3, 96))[0])
