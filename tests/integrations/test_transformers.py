"""transformers with our attention beside its own: a small Llama with random weights, forward and backward."""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from transformers import (  # noqa: E402
    AttentionMaskInterface,
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    StaticCache,
)

import pykittens as pk  # noqa: E402
from pykittens.integrations import masks  # noqa: E402
from pykittens.integrations import transformers as integration  # noqa: E402

integration.register()
N = 20
CALLS: list[Any] = []


@pytest.fixture(autouse=True)
def counted(monkeypatch: Any) -> Iterator[None]:
    """Counts calls of our functions, and forgets which warnings were given."""

    CALLS.clear()
    integration._WARNED.clear()
    integration._asked.cache_clear()

    def counting(name: str, ours: Any) -> Any:
        def call(*operands: Any, **settings: Any) -> Any:
            CALLS.append((operands, {**settings, "name": name}))
            return ours(*operands, **settings)

        return call

    for name in ("attention", "attention_cached", "attention_varlen"):
        monkeypatch.setattr(integration, name, counting(name, getattr(pk, name)))
    yield


def models(dtype: Any = torch.bfloat16, dim: int = 64, **config: Any) -> list[Any]:
    """The same weights under each attention: ours and transformers' own."""
    made = []
    for name in ("pykittens", "sdpa"):
        torch.manual_seed(0)
        sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 50}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": dim}
        model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, attn_implementation=name, **config))
        for w in model.parameters():  # far from 0, so that it shows who attends to what
            if w.dim() > 1:
                torch.nn.init.normal_(w, std=0.2)
        made.append(model.to(dtype))
    return made


def tokens(batch: int = 2, n: int = N) -> Any:
    return torch.randint(50, (batch, n), generator=torch.Generator().manual_seed(1))


def alike(pair: list[Any], backward: bool = True, seen: Any = None, **inputs: Any) -> int:
    """Compares logits (where `seen`) and gradients, and returns how many calls of ours there were."""
    CALLS.clear()
    outs = [model(**inputs).logits.float() for model in pair]
    calls = len([1 for (q, *_), _ in CALLS if q.numel()])
    seen = torch.ones(outs[0].shape[:2]) if seen is None else seen
    outs = [x * seen[..., None] for x in outs]
    assert (outs[0] - outs[1]).norm() < 2e-2 * outs[1].norm()
    if backward:
        up = torch.randn(outs[0].shape, generator=torch.Generator().manual_seed(2))
        grads = [
            torch.autograd.grad((x * up).sum(), [*model.parameters()]) for x, model in zip(outs, pair, strict=True)
        ]
        for x, y in zip(*grads, strict=True):
            assert (x.float() - y.float()).norm() < 5e-2 * y.float().norm()
    return calls


def test_one_call_registers_both() -> None:
    """Without the second table, transformers passes no mask, and padding is attended to."""
    assert "pykittens" in AttentionMaskInterface().valid_keys()
    integration.register("kittens")
    model = models()[1]
    model.set_attn_implementation("kittens")
    assert model(input_ids=tokens()).logits.isfinite().all() and CALLS


def test_full_batches() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert alike(models(), input_ids=tokens()) == 1
        assert alike(models(), input_ids=tokens(), attention_mask=torch.ones(2, N, dtype=torch.long)) == 1


@pytest.mark.thin(4)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches(side: str) -> None:
    mask = torch.ones(2, N, dtype=torch.long)
    mask[1, slice(0, 7) if side == "left" else slice(-7, None)] = 0
    pair = models()
    assert alike(pair, seen=mask, input_ids=tokens(), attention_mask=mask) == 1
    ids = tokens()
    (a, b) = (pair[0](input_ids=x, attention_mask=mask).logits[mask.bool()] for x in (ids, ids * mask))
    assert torch.equal(a, b)  # nobody has seen what stands in the padding


def test_masks_of_booleans() -> None:
    """Padding in the middle; a mask of one's own, with rows that see later keys."""
    mask = torch.ones(2, N, dtype=torch.long)
    mask[1, 3:5] = 0
    assert alike(models(), seen=mask, input_ids=tokens(), attention_mask=mask) == 1
    own = torch.rand(2, 1, N, N, generator=torch.Generator().manual_seed(3)) < 0.5
    own |= torch.eye(N).bool()
    assert alike(models(), backward=False, input_ids=tokens(), attention_mask=own) == 1
    assert not integration._WARNED


def test_packed_sequences() -> None:
    ids = torch.cat((torch.arange(8), torch.arange(N - 8)))[None]
    assert alike(models(), input_ids=tokens(1), position_ids=ids, use_cache=False) == 1
    offsets = torch.tensor([0, 8, N])
    pair = models()
    whole = pair[1](input_ids=tokens(1), position_ids=ids, use_cache=False).logits
    told = pair[0](input_ids=tokens(1), position_ids=ids, cu_seq_lens_q=offsets, cu_seq_lens_k=offsets).logits
    assert (told.float() - whole.float()).norm() < 2e-2 * whole.float().norm()


def test_static_cache() -> None:
    """Filled in two steps, then one token: the kernels see the keys that somebody has written."""
    pair = models()
    caches = [StaticCache(config=model.config, max_cache_len=32) for model in pair]
    outs = []
    with torch.no_grad():
        for model, cache in zip(pair, caches, strict=True):
            logits = [
                model(input_ids=tokens()[:, part], past_key_values=cache, use_cache=True).logits
                for part in (slice(0, 12), slice(12, 17), slice(17, 18))
            ]
            outs.append(torch.cat(logits, 1).float())
    calls = [(s["name"], q.shape[2], k.shape[2]) for (q, k, *_), s in CALLS if q.numel()]
    assert calls == [("attention", 12, 12), ("attention_cached", 5, 17), ("attention_cached", 1, 18)]
    assert (outs[0] - outs[1]).norm() < 2e-2 * outs[1].norm()


FAMILIES: dict[str, Any] = {
    "mistral": {"sliding_window": 6},
    "gemma2": {"sliding_window": 6, "query_pre_attn_scalar": 64, "attn_logit_softcapping": 2.0},
    "gpt_oss": {"sliding_window": 6, "num_local_experts": 2, "num_experts_per_tok": 2},
    "qwen3": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
}
SIZES = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 50, "head_dim": 64}


@pytest.mark.thin(4)
@pytest.mark.parametrize(
    "family", [pytest.param(x, marks=[] if x in ("gemma2", "gpt_oss") else [pytest.mark.whole]) for x in FAMILIES]
)
def test_families(family: str) -> None:
    """Windows, caps of scores, sinks, in batches padded left and right: as near to float32 as eager in bf16 is."""
    config = AutoConfig.for_model(
        family, **SIZES, num_attention_heads=2, num_key_value_heads=1, pad_token_id=0, **FAMILIES[family]
    )
    found = {}
    mask = torch.ones(2, N, dtype=torch.long)
    mask[0, :3] = mask[1, -4:] = 0
    up = torch.randn(2, N, 50, generator=torch.Generator().manual_seed(2)) * mask[..., None]
    for name, dtype in (("pykittens", torch.bfloat16), ("eager", torch.bfloat16), ("eager", torch.float32)):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=name, dtype=torch.float32)
        for key, w in model.named_parameters():
            torch.nn.init.normal_(w, std=0.2 if w.dim() > 1 or "sinks" in key else 0.5)
            w.data = w.data.bfloat16().to(dtype)
        logits = model.to(dtype)(input_ids=tokens(), attention_mask=mask, use_cache=False).logits
        (logits.float() * up).sum().backward()
        grads = {key: w.grad.float() for key, w in model.named_parameters() if "attn" in key}
        found[name, dtype] = {"logits": logits.float() * mask[..., None], **grads}
    ours, theirs, exact = found.values()
    rows = [(q, s) for (q, *_), s in CALLS if q.numel()]
    assert len(rows) == 2 and (family == "mistral" or rows[0][1]["window"] != rows[1][1]["window"])
    for key, x in exact.items():
        error, usual = ((y[key] - x).norm() / x.norm() for y in (ours, theirs))
        assert error < 1.5 * usual + 5e-3, key


@pytest.mark.whole
@pytest.mark.parametrize("family", [*FAMILIES, "llama4_text"])
def test_families_decode(family: str) -> None:
    """From a batch padded on the left, with a static cache: as near to float32 as eager in bf16 is."""
    chunked = {"attention_chunk_size": 6, "intermediate_size_mlp": 64, "num_local_experts": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0, "eos_token_id": None}
    config = AutoConfig.for_model(family, **SIZES, **heads, **FAMILIES.get(family, chunked))
    mask = torch.ones(2, 11, dtype=torch.long)
    mask[0, :3] = 0
    found = []
    for name, dtype in (("pykittens", torch.bfloat16), ("eager", torch.bfloat16), ("eager", torch.float32)):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=name, dtype=torch.float32).eval()
        for w in model.parameters():
            torch.nn.init.normal_(w, std=0.2 if w.dim() > 1 else 0.5)
            w.data = w.data.bfloat16().to(dtype)
        model, cache, logits = model.to(dtype), StaticCache(config=config, max_cache_len=16), []
        with torch.no_grad():
            for part in (slice(0, 9), slice(9, 10), slice(10, 11)):
                given = {"attention_mask": mask[:, : part.stop], "past_key_values": cache, "use_cache": True}
                logits.append(model(input_ids=tokens(n=11)[:, part], **given).logits.float())
        found.append(torch.cat(logits, 1) * mask[..., None])
    error, usual = ((x - found[2]).norm() / found[2].norm() for x in found[:2])
    assert error < 1.5 * usual + 5e-3 and not integration._WARNED


def test_generating_from_a_padded_batch() -> None:
    """Left padding, a cache that grows: as without a cache."""
    mask = torch.ones(2, 5, dtype=torch.long)
    mask[1, :2] = 0
    pair, ids = models(), tokens(n=5)
    outs = []
    for cached in (True, False):
        config = {"max_new_tokens": 3, "do_sample": False, "use_cache": cached, "pad_token_id": 0}
        told = {"return_dict_in_generate": True, "output_logits": True}
        made = pair[0].generate(ids, attention_mask=mask, **config, **told)
        outs.append(torch.stack(made.logits).float())
    assert (outs[0] - outs[1]).norm() < 2e-2 * outs[1].norm() and not integration._WARNED
    rows = [q.shape for (q, *_), s in CALLS if s["name"] == "attention_varlen"]
    assert (4, 1, 64) in rows  # heads that share keys are the rows of a sequence: no cache is copied


def test_decoding_is_what_the_whole_sequence_gives() -> None:
    ids, pair = tokens(n=5), models()
    with torch.no_grad():
        whole = pair[0](input_ids=ids).logits
        out = pair[0](input_ids=ids[:, :3], use_cache=True)
        logits = [out.logits]
        for i in range(3, 5):
            out = pair[0](input_ids=ids[:, i : i + 1], past_key_values=out.past_key_values, use_cache=True)
            logits.append(out.logits)
    step = torch.cat(logits, 1).float()
    assert (step - whole.float()).norm() < 2e-2 * whole.float().norm()
    assert any(q.shape[2] == 1 and k.shape[2] == 5 for (q, k, *_), _ in CALLS)


@pytest.mark.parametrize(
    ("reason", "config"),
    [
        ("no kernel for head dimension 20|head dimension", {"dim": 20}),
        ("these dtypes are not supported", {"dtype": torch.float32}),
        ("no attention dropout", {"attention_dropout": 0.5}),
    ],
)
def test_what_no_kernel_takes_goes_to_sdpa(reason: str, config: Any) -> None:
    pair = models(**config)
    with pytest.warns(UserWarning, match=rf"falls back to sdpa: .*({reason})") as given:
        if "attention_dropout" in config:
            pair[0].train()(input_ids=tokens())
        else:
            assert alike(pair, input_ids=tokens()) == 0
    assert len(given) == 1


@pytest.mark.parametrize("family", ["bloom", "mpt"])
def test_models_with_an_attention_of_their_own(family: str) -> None:
    """They ask for the mask, and add it to their scores: no mask, or one of booleans, would show them later keys."""
    config = AutoConfig.for_model(family, vocab_size=50, hidden_size=32, d_model=32, n_heads=2, n_head=2, n_layers=1)
    mask, found = torch.ones(2, 9, dtype=torch.long), []
    mask[0, :3] = 0
    masks._asks.cache_clear()
    with pytest.warns(UserWarning, match="compute their attention themselves, not by PyKittens") as given:
        for name in ("pykittens", "eager"):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, attn_implementation=name).eval()
            for w in model.parameters():
                torch.nn.init.normal_(w, std=0.2)
            whole = [model(input_ids=tokens(n=9), attention_mask=x, use_cache=False).logits for x in (mask, None)]
            found.append(torch.stack(whole)[:, mask.bool()])
    assert torch.equal(*found) and not CALLS and len(given) == 1


def test_weights_that_nobody_has_are_told_of() -> None:
    model = models()[0]
    with torch.no_grad(), pytest.warns(UserWarning, match="no weights come of output_attentions") as given:
        for _ in range(2):
            assert not model(input_ids=tokens(), output_attentions=True).attentions
    assert len(given) == 1


def test_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert alike(models(torch.float32), input_ids=tokens()) == 1


def test_softcap_and_sinks() -> None:
    """What sdpa would refuse, or ignore."""
    q, k, v = (torch.randn(1, h, 9, 64).bfloat16() * 2 for h in (4, 2, 2))
    sinks = torch.randn(4)
    scores = 3 * (q.float() @ k.float().repeat_interleave(2, 1).mT / 8 / 3).tanh()
    scores = scores.masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf)
    scores = torch.cat((scores, sinks[:, None, None].expand(1, 4, 9, 1)), -1)
    exact = (scores.softmax(-1)[..., :-1] @ v.float().repeat_interleave(2, 1)).transpose(1, 2)
    given: dict[str, Any] = {"softcap": 3.0, "s_aux": sinks}
    for rows in (9, 1):  # all of them, then the last after a cache
        out, _ = integration.attend(torch.nn.Module(), q[:, :, 9 - rows :], k, v, None, **given)
        assert (out.float() - exact[:, 9 - rows :]).norm() < 1e-2 * exact[:, 9 - rows :].norm()
    assert CALLS[-1][1]["name"] == "attention_cached"
    for name, value in given.items():
        with pytest.raises(ValueError, match=f"a mask that kernels do not read .*, and sdpa has no .*{name}"):
            integration.attend(torch.nn.Module(), q, k, v, torch.zeros(1, 1, 9, 9), **{name: value})


def test_compiled() -> None:
    """Without a mask, with lengths, and whole models, whose mask is of booleans while transformers is traced."""
    torch._dynamo.reset()
    q, k, v = (torch.randn(1, h, 9, 64).bfloat16() for h in (4, 2, 2))
    compiled = torch.compile(
        lambda *x: integration.attend(torch.nn.Module(), *x, None)[0], fullgraph=True, backend="eager"
    )
    assert torch.equal(compiled(q, k, v), pk.attention(q, k, v, causal=True).transpose(1, 2))
    offsets = torch.tensor([0, 4, 9])
    told = torch.compile(
        lambda *x: integration.attend(torch.nn.Module(), *x, torch.ones(1, 1, 9, 9).bool(), cu_seq_lens_q=offsets)[0],
        fullgraph=True,
        backend="eager",
    )
    rows = [x.transpose(1, 2)[0] for x in (q, k, v)]
    assert torch.equal(told(q, k, v)[0], pk.attention_varlen(*rows, offsets.int(), causal=True))
    (ours, _), ids = models(), tokens(1)
    padding = torch.ones_like(ids)
    padding[0, :3] = 0
    for given in ({"use_cache": True}, {"use_cache": False, "attention_mask": padding}):
        compiled = torch.compile(ours.model, backend="eager", fullgraph=True)
        expected = ours.model(input_ids=ids, **given).last_hidden_state * padding[..., None]
        found = compiled(input_ids=ids, **given).last_hidden_state * padding[..., None]
        assert (found - expected).norm() < 1e-2 * expected.norm() and not integration._WARNED
