"""Attention with mma.sync, forward and backward, beside torch's FlashAttention-2 in one run. Needs a GPU and torch.

    python -m benchmarks.speed

Correctness first. Then the two take turns, many times; each time is by device events, behind a write that empties the
L2.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from pykittens.gpu import driver
from pykittens.kernels import attention_backward

from . import errors
from .record import record

CASES = [(4, 32, 4096, 64), (1, 32, 16384, 64), (4, 16, 4096, 128), (1, 16, 16384, 128)]  # batch, heads, n, d
BACKWARD = [*CASES, (16, 32, 1024, 64), (16, 16, 1024, 128), (3, 5, 2500, 64), (3, 5, 2500, 128)]
TURNS = 30


def main() -> None:
    rows = []
    for batch, heads, n, d in CASES:
        for causal in (False, True):
            q, k, v = (torch.randn(batch, heads, n, d, device="cuda", dtype=torch.bfloat16) for _ in range(3))
            runs: dict[str, Callable[[], Any]] = {"FA2": lambda q=q, k=k, v=v, c=causal: flash(q, k, v, c)}
            expected = flash(q, k, v, causal).double()
            for name, kernel in errors.KERNELS.items():
                out = torch.full_like(q, float("nan"))
                runs[name] = kernel.bind(q, k, v, out, d**-0.5, causal=causal)
                runs[name]()
                if (error := errors.row_error(out, expected)) > 2e-2:
                    raise SystemExit(
                        f"{name} {(batch, heads, n, d)} causal={causal} differs from FlashAttention-2 by {error}"
                    )
            times = interleaved(runs)
            rows += compared(times, 4, batch, heads, n, d, causal)
    for batch, heads, n, d in BACKWARD:
        for causal in (False, True):
            rows += compared(backward(batch, heads, n, d, causal), 10, batch, heads, n, d, causal)
    print("->", record("attention_speed", rows, ("kernel", "batch", "heads", "n", "dim", "causal")))


def compared(
    times: dict[str, float], products: int, batch: int, heads: int, n: int, d: int, causal: bool
) -> list[dict[str, Any]]:
    """A row for each of ours. products: operations for each score and element of the head dimension."""
    flops = products * batch * heads * n * n * d * (0.5 if causal else 1)
    facts = {
        "batch": batch,
        "heads": heads,
        "n": n,
        "dim": d,
        "causal": causal,
        "fa2_tflops": flops / times["FA2"] / 1e12,
    }
    rows = [
        {"kernel": name, **facts, "tflops": flops / time / 1e12, "ratio": times["FA2"] / time}
        for name, time in times.items()
        if name != "FA2"
    ]
    print(*rows, sep="\n", flush=True)
    return rows


def backward(batch: int, heads: int, n: int, d: int, causal: bool) -> dict[str, float]:
    """Median seconds of the backward passes, all launches of each."""
    q, k, v, do = (torch.randn(batch, heads, n, d, device="cuda", dtype=torch.bfloat16) for _ in range(4))
    scale = d**-0.5
    made = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)
    o, lse, *rest = made[:8]
    theirs = torch.ops.aten._scaled_dot_product_flash_attention_backward
    found = [torch.full_like(q, float("nan")) for _ in range(3)]
    room = {"mma_sync": driver.architecture(0).shared_bytes, "causal": causal}
    runs: dict[str, Callable[[], Any]] = {
        "FA2": lambda: theirs(do, q, k, v, o, lse, *rest[:4], 0.0, causal, *rest[4:6], scale=scale),
        "attention_backward_ampere": lambda: attention_backward.STEPS(do, q, k, v, o, lse, None, *found, scale, **room),
    }
    expected = runs["FA2"]()
    runs["attention_backward_ampere"]()
    for x, y in zip(found, expected, strict=False):
        if not float((x.double() - y.double()).norm() / y.double().norm()) < 2e-2:
            raise SystemExit(f"the gradients of {(batch, heads, n, d)} causal={causal} differ from FlashAttention-2's")
    return interleaved(runs)


def flash(q: Any, k: Any, v: Any, causal: bool) -> Any:
    """torch's FlashAttention-2."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)


def interleaved(runs: dict[str, Callable[[], Any]], turns: int = TURNS) -> dict[str, float]:
    """Median seconds of each, taking turns so that a GPU that throttles throttles for all."""
    scratch = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns + 3):
        for name, run in runs.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            scratch.zero_()
            start.record()
            run()
            end.record()
            end.synchronize()
            if turn >= 3:
                times[name].append(start.elapsed_time(end) / 1000)
    return {name: statistics.median(found) for name, found in times.items()}


if __name__ == "__main__":
    main()
