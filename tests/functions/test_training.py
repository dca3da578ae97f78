"""What training does with functions: checkpoints, several processes, compiled steps, captured graphs, autocast."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as distributed  # noqa: E402
import torch.multiprocessing as multiprocessing  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import pykittens as pk  # noqa: E402
from pykittens import nn  # noqa: E402

ROOT = Path(pk.__file__).parents[1]
SIZE, N, VOCABULARY = 32, 10, 40


class Tiny(torch.nn.Module):
    """One layer with each of the functions that a model trains with."""

    def __init__(self, dtype: Any = torch.bfloat16, device: str = "cpu") -> None:
        super().__init__()
        self.norm, self.last = nn.RMSNorm(SIZE, **_(dtype, device)), nn.LayerNorm(SIZE, **_(dtype, device))
        self.attention = nn.Attention(SIZE, 2, 1, 64, **_(dtype, device))
        self.mlp = nn.GatedMLP(SIZE, 40, **_(dtype, device))
        self.head = torch.nn.Linear(SIZE, VOCABULARY, **_(dtype, device))
        self.tables = nn.rotary_tables(N, 64, device=device)

    def body(self, x: Any, seed: Any) -> Any:
        y, stream = pk.rmsnorm(self.attention(self.norm(x), *self.tables), residual=x, p=0.25, seed=seed)
        return self.last(self.mlp(y), stream)[0]

    def forward(self, x: Any, targets: Any, seed: Any, reentrant: Any = None) -> Any:
        if reentrant is None:
            hidden = self.body(x, seed)
        else:
            hidden = checkpoint(self.body, x, seed, use_reentrant=reentrant)
        return pk.cross_entropy(self.head(hidden).flatten(0, 1), targets.flatten())


def _(dtype: Any, device: str) -> dict[str, Any]:
    return {"dtype": dtype, "device": device}


def model(dtype: Any = torch.bfloat16, device: str = "cpu") -> Any:
    torch.manual_seed(0)
    return Tiny(dtype, device)


def inputs(batch: int = 2, device: str = "cpu") -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, N, SIZE, generator=generator).bfloat16()
    targets = torch.randint(VOCABULARY, (batch, N), generator=generator)
    return [t.to(device) for t in (x, targets, torch.tensor(5))]


def gradients(module: Any, *given: Any, **how: Any) -> list[Any]:
    x, *rest = given
    x = x.clone().requires_grad_()
    loss = module(x, *rest, **how)
    return [loss.detach(), *torch.autograd.grad(loss, [x, *module.parameters()])]


def same(found: list[Any], wanted: list[Any]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpoints(reentrant: bool) -> None:
    """The forward pass runs again in the backward pass, and drops the same elements."""
    x, targets, seed = inputs()
    plain, again = model(), model()
    x.requires_grad_()
    plain(x, targets, seed).backward()
    wanted, x.grad = x.grad, None
    again(x, targets, seed, reentrant).backward()
    assert torch.equal(x.grad, wanted)
    assert same([p.grad for p in again.parameters()], [p.grad for p in plain.parameters()])


def test_selective_checkpoints_may_keep_an_operator() -> None:
    """By its name, as torch's own: attention is not computed again."""
    from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

    def keep(context: Any, op: Any, *args: Any, **kwargs: Any) -> Any:
        ours = op is torch.ops.pykittens.attention_lse.default
        return CheckpointPolicy.MUST_SAVE if ours else CheckpointPolicy.PREFER_RECOMPUTE

    q, k, v = (torch.randn(1, 1, N, 64).bfloat16().requires_grad_() for _ in range(3))
    contexts = lambda: create_selective_checkpoint_contexts(keep)  # noqa: E731
    out = checkpoint(lambda *x: pk.attention(*x).square(), q, k, v, use_reentrant=False, context_fn=contexts)
    found = torch.autograd.grad(out.sum(), (q, k, v))
    assert same(found, torch.autograd.grad(pk.attention(q, k, v).square().sum(), (q, k, v)))


COMPILED = """
from pykittens import attention, matmul, softmax  # before torch, which then has them to trace
import torch
from tests.functions.test_training import inputs, model

compiled = torch.compile(model(), backend="aot_eager", fullgraph=True, dynamic=True)
losses, grads = [], []
for batch, module in ((2, compiled), (3, compiled), (3, model())):  # compiled again for a batch of any length
    x, targets, seed = inputs(batch)
    y = x.requires_grad_()
    loss = module(y, targets, seed)
    loss.backward()
    losses.append(loss.detach())
    grads.append(y.grad)
assert torch.allclose(*losses[1:], rtol=1e-3), losses
assert (grads[1] - grads[2]).norm() < 2e-2 * grads[2].norm()
assert not torch._dynamo.utils.counters["graph_break"]
"""


def test_a_compiled_step_in_a_fresh_process() -> None:
    """In one graph, forward and backward, for other lengths too; nothing of PyKittens has run there before."""
    subprocess.run([sys.executable, "-c", COMPILED], check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_autocast_trains_float32_weights() -> None:
    module, (x, targets, seed) = model(torch.float32), inputs()
    module.load_state_dict(model().state_dict())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradients(module, x.float(), targets, seed)
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in found)
    for g, h in zip(found, gradients(module.bfloat16(), x, targets, seed), strict=True):
        assert (g - h).norm() < 0.1 * g.norm()


def _rank(rank: int, file: str, out: str) -> None:
    """One of two processes: half of the batch, and gradients that are averaged."""
    torch.set_num_threads(1)  # a forked process has none of its parent's others
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    module = torch.nn.parallel.DistributedDataParallel(model())
    x, targets, seed = inputs()
    module(x[rank : rank + 1], targets[rank : rank + 1], seed).backward()
    torch.save([p.grad for p in module.parameters()], f"{out}{rank}")
    distributed.destroy_process_group()


def test_data_parallel_processes(tmp_path: Path) -> None:
    x, targets, seed = inputs()
    halves = [gradients(model(), x[i : i + 1], targets[i : i + 1], seed)[2:] for i in range(2)]
    given = str(tmp_path / "meeting"), str(tmp_path / "rank")
    multiprocessing.start_processes(_rank, given, nprocs=2, start_method="fork")  # which know the traced kernels
    found = [torch.load(tmp_path / f"rank{i}") for i in range(2)]
    assert same(found[0], found[1])
    for got, *parts in zip(found[0], *halves, strict=True):
        mean = sum(part.float() for part in parts) / 2
        assert (got.float() - mean).norm() <= 1e-2 * mean.norm()


@pytest.mark.gpu
def test_a_captured_step_draws_anew() -> None:
    """Forward, backward and update in one graph, replayed on other inputs under another seed."""
    module, (x, targets, seed) = model(device="cuda"), inputs(device="cuda")
    x = x.requires_grad_()

    def step() -> list[Any]:
        loss = module(x, targets, seed)
        return [loss, *torch.autograd.grad(loss, [x, *module.parameters()])]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = step()
    for number in (5, 2**40 + 7):
        seed.fill_(number)
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
        graph.replay()
        for got, wanted in zip(made, step(), strict=True):
            assert (got - wanted).norm() <= 1e-2 * wanted.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_step(mode: str) -> None:
    module, given = model(device="cuda"), inputs(device="cuda")
    compiled = torch.compile(module, mode=mode, fullgraph=True)
    for _ in range(3):
        found = [x.clone() for x in gradients(compiled, *given)]
        for got, wanted in zip(found, gradients(module, *given), strict=True):
            assert (got - wanted).norm() <= 2e-2 * wanted.norm()
