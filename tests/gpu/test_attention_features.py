"""Attention on a GPU with windows, caps, sinks, packed sequences, scores and masks, at random shapes and head
dimensions: output, log-sum-exp and gradients beside torch's own operations in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import pykittens as pk  # noqa: E402
from pykittens.gpu import driver  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not driver.available() or not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
Score = Callable[..., Any]


class Feature(NamedTuple):
    """What an attention is asked for: settings, functions of scores and who is seen with their operands, by name."""

    settings: dict[str, Any]
    score: tuple[Score, Score, tuple[str, ...]] | None = None  # ours, torch's, operands
    mask: tuple[Score, Score, tuple[str, ...]] | None = None
    packed: bool = False


def alibi(s: Any, b: Any, h: Any, row: Any, col: Any, slopes: Any) -> Any:
    return s - slopes[h] * (row - col).to(pk.f32)


def same(b: Any, h: Any, row: Any, col: Any, ids: Any) -> Any:
    return ids[b, row] == ids[b, col]


FEATURES = {
    "plain": Feature({"causal": True}),
    "window": Feature({"window": (70, 30)}),
    "softcap and sinks": Feature({"causal": True, "softcap": 4.0, "sinks": True}),
    "packed": Feature({"causal": True, "sinks": True}, packed=True),
    "packed window": Feature({"window": (50, 0), "softcap": 5.0}, packed=True),
    "alibi": Feature({"causal": True}, (alibi, lambda s, b, h, i, j, x: s - x[h] * (i - j), ("slopes",))),
    "bias": Feature(
        {"softcap": 3.0},
        (lambda s, b, h, row, col, x: s + x[h, row, col], lambda s, b, h, i, j, x: s + x[h, i, j], ("bias",)),
    ),
    "documents": Feature({"causal": True}, mask=(same, lambda b, h, i, j, x: x[b, i] == x[b, j], ("ids",))),
    "both": Feature(
        {"window": (150, None)},
        (
            lambda s, b, h, row, col, x: pk.tanh(s) * x[b, col],
            lambda s, b, h, i, j, x: torch.tanh(s) * x[b, j],
            ("keyed",),
        ),
        (
            lambda b, h, row, col, x: (col < x[b]) | (row >= col),
            lambda b, h, i, j, x: (j < x[b]) | (i >= j),
            ("prefix",),
        ),
    ),
}


class Case(NamedTuple):
    seed: int
    feature: str
    batch: int
    heads: int
    groups: int
    n: int
    m: int
    d: int


def cases(count: int = 18, seed: int = 0) -> list[Case]:
    """As many of each feature; everything else is drawn."""
    rng, found = np.random.default_rng(seed), []
    for i in range(count):
        groups, shared = rng.integers(1, 3), rng.integers(1, 4)
        n, m = rng.integers(1, 400, 2)
        d = 8 * int(rng.integers(1, 32))
        name = list(FEATURES)[i % len(FEATURES)]
        found.append(Case(i, name, int(rng.integers(1, 3)), int(groups * shared), int(groups), int(n), int(m), d))
    return found


def run(case: Case, device: str = "cuda") -> None:
    """Raises `AssertionError` where something is further from float64 than bf16 leads to."""
    feature, made = FEATURES[case.feature], torch.Generator().manual_seed(case.seed)
    batch, heads, groups, n, m, d = case[2:]
    if d > 128 and device == "cuda" and "wgmma" not in driver.architecture(0).features:
        return
    lengths = [n, m]
    if feature.packed:
        batch = 1
        cut = [torch.sort(torch.randint(0, x + 1, (3,), generator=made))[0].tolist() for x in lengths]
        cu = [torch.tensor([0, *c, x], dtype=torch.int32, device=device) for c, x in zip(cut, lengths, strict=True)]

    def normal(*shape: int) -> Any:
        return torch.randn(shape, generator=made).to(device)

    q, do = (normal(batch, heads, n, d).bfloat16() for _ in range(2))
    k, v = (normal(batch, groups, m, d).bfloat16() for _ in range(2))
    longest = max(n, m)
    tables = {
        "slopes": normal(heads).abs() / 8,
        "bias": normal(heads, n, m).bfloat16(),
        "keyed": normal(batch, m),
        "ids": torch.sort(torch.randint(0, 4, (batch, longest), generator=made))[0].int().to(device),
        "prefix": torch.randint(0, m, (batch,), generator=made).int().to(device),
    }
    settings = dict(feature.settings)
    sinks = normal(heads).requires_grad_() if settings.pop("sinks", False) else None
    rows = [x.requires_grad_() for x in (q, k, v)]
    floats = [tables[x].requires_grad_() for x in (feature.score[2] if feature.score else ())]
    told: dict[str, Any] = {**settings, "sinks": sinks, "return_lse": True}
    if feature.score:
        told |= {"score": feature.score[0], "score_operands": floats}
    if feature.mask:
        told |= {"mask": feature.mask[0], "mask_operands": [tables[x] for x in feature.mask[2]]}
    if feature.packed:
        out, lse = pk.attention_varlen(*(x[0].transpose(0, 1) for x in rows), *cu, **told)
        out, lse = out.transpose(0, 1)[None], lse[None]
    else:
        out, lse = pk.attention(*rows, **told)
    leaves = [*rows, *floats, *([sinks] if sinks is not None else [])]
    found = torch.autograd.grad(out, leaves, do, retain_graph=False)
    if device == "cpu":  # there is only code to be made
        return
    at = [
        torch.arange(x, device=device).reshape([-1 if i == j else 1 for j in range(4)])
        for i, x in enumerate((batch, heads, n, m))
    ]
    wide = [x.detach().double().requires_grad_() for x in leaves]
    qd, kd, vd = wide[:3]
    kd, vd = (x.repeat_interleave(heads // groups, 1) for x in (kd, vd))
    s = qd @ kd.mT / d**0.5
    if cap := settings.get("softcap"):
        s = cap * torch.tanh(s / cap)
    if feature.score:
        s = feature.score[1](s, *at, *wide[3 : 3 + len(floats)])
    seen = torch.ones_like(s, dtype=torch.bool)
    row, col, last = at[2], at[3], m - n
    if feature.packed:
        whose = [
            torch.bucketize(torch.arange(x, device=device), c[1:], right=True) for x, c in zip(lengths, cu, strict=True)
        ]
        seen = seen & (whose[0][:, None] == whose[1])
        size = [c.diff() for c in cu]
        inside = [torch.arange(x, device=device) - c[:-1][w] for x, c, w in zip(lengths, cu, whose, strict=True)]
        row, col = inside[0][:, None], inside[1][None]
        last = (size[1] - size[0])[whose[0]][:, None]
    left, right = settings.get("window", (None, None))
    right = 0 if settings.get("causal") else right
    if left is not None:
        seen = seen & (col - row - last >= -left)
    if right is not None:
        seen = seen & (col - row - last <= right)
    if feature.mask:
        seen = seen & feature.mask[1](*at, *(tables[x] for x in feature.mask[2]))
    s = torch.where(seen, s, -torch.inf)
    if sinks is not None:
        s = torch.cat([s, wide[-1][None, :, None, None].expand(batch, heads, n, 1)], 3)
        vd = torch.cat([vd, vd.new_zeros(batch, heads, 1, d)], 2)
    logs = torch.logsumexp(s, 3, keepdim=True)
    weight = torch.where(logs == -torch.inf, 0.0, torch.exp(s - torch.where(logs == -torch.inf, 0.0, logs)))
    exact = weight @ vd
    close(out, exact, f"{case}: output")
    assert torch.allclose(lse.double(), logs[..., 0], rtol=1e-4, atol=1e-3), f"{case}: log-sum-exp"
    # The kernels' delta is of the rounded output: what cancels over a row cancels to no more than that.
    slope = weight * (do.double() @ vd.mT - (do.double() * out.detach().double()).sum(3, keepdim=True))
    theirs = torch.autograd.grad(s, [wide[0], wide[1], *wide[3:]], slope.detach(), retain_graph=True, allow_unused=True)
    gv = torch.autograd.grad(exact, wide[2], do.double(), retain_graph=True)[0]
    for x, y, name in zip(
        found, (theirs[0], theirs[1], gv, *theirs[2:]), ("dq", "dk", "dv", *map(str, range(9))), strict=False
    ):
        close(
            x,
            torch.zeros_like(x, dtype=torch.float64) if y is None else y,
            f"{case}: {name}",
            noise(s, slope, name, wide),
        )


def noise(s: Any, slope: Any, name: str, wide: Any) -> float:
    """For what is summed over everything: how large such a sum is when nothing cancels."""
    if not name.isdigit():
        return 0.0
    x, sizes = wide[3 + int(name)], []
    for i in range(4):
        sign = (
            torch.randint(0, 2, s.shape, generator=torch.Generator(s.device).manual_seed(i), device=s.device) * 2.0 - 1
        )
        sizes.append(torch.autograd.grad(s, x, slope.detach() * sign, retain_graph=True)[0].square().sum())
    return float(torch.stack(sizes).mean().sqrt())


def close(found: Any, exact: Any, what: str, noise: float = 0.0) -> None:
    assert torch.isfinite(found).all(), what
    error, size = float((found.double() - exact).norm()), max(float(exact.norm()), noise, 1e-3 * found.numel() ** 0.5)
    assert error < 1.5e-2 * size, f"{what}: {error / size:.3g}"


@pytest.mark.parametrize("case", cases(), ids=str)
def test_beside_float64(case: Case) -> None:
    run(case)
