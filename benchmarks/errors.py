"""How far attention lies from float64, beside torch's own attention on the same inputs. Needs a GPU and torch.

python -m benchmarks.errors
"""

from __future__ import annotations

from typing import Any

import torch

from pykittens.kernels import attention_ada, attention_ampere

from .record import record

LENGTHS = (1, 17, 256, 1000, 4096, 16384)
KERNELS = {"attention_ada": attention_ada.attend, "attention_ampere": attention_ampere.attend}
PROMISED = 1.5  # times torch's error


def main() -> None:
    rows = []
    for name, kernel in KERNELS.items():
        for d in (64, 128):
            exact(name, kernel, d)
            for causal in (False, True):
                for n in LENGTHS:
                    rows.append(measure(name, kernel, n, d, causal))
                    print(rows[-1], flush=True)
    print("->", record("attention_error", rows, ("kernel", "dim", "n", "causal")))
    if bad := [row for row in rows if row["error"] > PROMISED * row["torch_error"]]:
        raise SystemExit(f"{len(bad)} errors are more than {PROMISED} times torch's: {bad}")


def measure(name: str, kernel: Any, n: int, d: int, causal: bool) -> dict[str, Any]:
    """One case: two heads of random normal bf16 arrays."""
    torch.manual_seed(n + d)
    q, k, v = (torch.randn(1, 2, n, d, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    out = torch.full_like(q, float("nan"))
    kernel(q, k, v, out, d**-0.5, causal=causal)
    expected = attention(q, k, v, causal)
    error = row_error(out, expected)
    torch_error = row_error(torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal), expected)
    ratio = error / torch_error if torch_error else 1.0 if error == 0 else float("inf")
    return {
        "kernel": name,
        "dim": d,
        "n": n,
        "causal": causal,
        "error": error,
        "torch_error": torch_error,
        "ratio": ratio,
    }


def attention(q: Any, k: Any, v: Any, causal: bool) -> Any:
    """Attention in float64 on the GPU, some rows at a time."""
    (n, d), parts = q.shape[2:], []
    for first in range(0, n, 1024):
        score = q[:, :, first : first + 1024].double() @ k.double().transpose(2, 3) * d**-0.5
        if causal:
            rows = torch.arange(first, first + score.shape[2], device="cuda")
            score.masked_fill_(torch.arange(n, device="cuda") > rows[:, None], -torch.inf)
        parts.append(torch.softmax(score, -1) @ v.double())
    return torch.cat(parts, 2)


def row_error(out: Any, expected: Any) -> float:
    """The largest row-wise relative error; NaN counts as infinite."""
    error = (out.double() - expected).norm(dim=-1) / expected.norm(dim=-1)
    return float(error.nan_to_num(torch.inf).max())


def exact(name: str, kernel: Any, d: int) -> None:
    """Zero queries weigh all values alike: the mean of small integers over 2**k keys has no rounding error anywhere."""
    q = torch.zeros(1, 1, 256, d, device="cuda", dtype=torch.bfloat16)
    k = torch.randn(1, 1, 512, d, device="cuda", dtype=torch.bfloat16)
    v = torch.randint(-8, 8, (1, 1, 512, d), device="cuda").to(torch.bfloat16)
    out = torch.full_like(q, float("nan"))
    kernel(q, k, v, out, 1.0)
    if not torch.equal(out, v.double().mean(2, keepdim=True).to(torch.bfloat16).expand_as(out)):
        raise SystemExit(f"{name}, head dimension {d}: small integers are not exact")


if __name__ == "__main__":
    main()
