"""flash-linear-attention with `pykittens.integrations.fla` beside itself: its layers, and its own tests.

    python -m benchmarks.fla layers                                 # each forward and backward, by fla and on ours
    python -m benchmarks.fla layers --only GatedDeltaNet --warm     # only fills Triton's cache
    python -m benchmarks.fla tests FOLDER [PYTEST ARGUMENT ...]     # fla's tests (a checkout's `tests`) on our kernels

A layer has the same weights and inputs both times; compared are its result and all its gradients. Of fla's tests those
count whose calls are all ours: one that ours leaves to fla is stopped there, and counted as left. Its functions that go
row by row are what its tests compare with: those stay fla's. Files rows in benchmarks/results.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from . import reports
from .record import record

# The layers, at a width of 2048: 16 heads of 128, or as near as the layer allows; how many sequences, of how many rows.
# Without mamba_ssm, fla's Mamba-2 is plain torch, which has no memory for more.
LAYERS: dict[str, tuple[dict[str, Any], int, int]] = {
    "GatedDeltaNet": ({"head_dim": 128, "num_heads": 16, "expand_v": 1}, 4, 4096),
    "DeltaNet": ({"num_heads": 16}, 4, 4096),
    "KimiDeltaAttention": ({"head_dim": 128, "num_heads": 16}, 4, 4096),
    "GatedLinearAttention": ({"num_heads": 16, "expand_k": 1.0, "expand_v": 1.0}, 4, 4096),
    "SimpleGatedLinearAttention": ({"num_heads": 16, "expand_k": 1.0, "expand_v": 1.0}, 4, 4096),
    "MultiScaleRetention": ({"num_heads": 16, "expand_k": 1, "expand_v": 1}, 4, 4096),
    "LinearAttention": ({"num_heads": 16, "do_feature_map_norm": False}, 4, 4096),
    "Mamba2": ({"head_dim": 64, "state_size": 128}, 4, 256),
}
TESTS = {
    "chunk_gated_delta_rule": "ops/test_gdn.py",
    "chunk_kda": "ops/test_kda.py",
    "chunk_gla": "ops/test_gla.py",
    "chunk_simple_gla": "ops/test_simple_gla.py",
    "chunk_delta_rule": "ops/test_delta.py",
    "chunk_linear_attn": "ops/test_linear_attn.py",
    "chunk_retention": "ops/test_retention.py",
    "chunk_lightning_attn": "ops/test_lightning_attn.py",
    "causal_conv1d": "modules/test_conv.py",
    "norms": "modules/test_layernorm.py",
    "cross_entropy": "modules/test_cross_entropy.py",
}
REFERENCES = "fused_recurrent_"  # how functions are called that fla's tests compare with


def run(layer: Any, x: Any, up: Any) -> list[Any]:
    """What a layer makes of x, and the gradients of x and of its parameters."""
    leaf = x.detach().requires_grad_()
    y = layer(leaf)[0]
    return [y, *torch.autograd.grad(y, [leaf, *layer.parameters()], up.to(y.dtype))]


def decoded(layer: Any, x: Any) -> list[Any]:
    """Rows before and one row after them, with fla's cache."""
    from fla.models.cache_utils import Cache

    layer.eval()
    with torch.no_grad():
        first, _, cache = layer(x[:, :200], past_key_values=Cache(), use_cache=True)
        last, *_ = layer(x[:, 200:201], past_key_values=cache, use_cache=True)
    layer.train()
    return [first, last]


def time_of(f: Callable[[], Any], seconds: float) -> float:
    """The median of a call, in milliseconds of the GPU."""
    spent, times = time.perf_counter(), []
    while len(times) < 5 or time.perf_counter() - spent < seconds:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        f()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[2:])


def layer_class(name: str) -> Any:
    """One of fla's layers, of which its list has all but one."""
    module = "fla.layers.simple_gla" if name == "SimpleGatedLinearAttention" else "fla.layers"
    return getattr(importlib.import_module(module), name)


def made(name: str) -> tuple[Any, Any, Any]:
    """A layer, what it is given, and the gradient of what it makes of that."""
    torch.manual_seed(0)
    sizes, batch, length = LAYERS[name]
    layer = layer_class(name)(hidden_size=2048, **sizes, layer_idx=0).bfloat16().cuda()
    return layer, *(torch.randn(batch, length, 2048, device="cuda").bfloat16() for _ in range(2))


def layer_row(name: str, seconds: float) -> dict[str, Any]:
    """A layer by fla and with our kernels: how far apart results and gradients are, what each takes."""
    from pykittens.integrations import fla as ours

    layer, x, up = made(name)
    calls: list[str] = []
    steps = decoded(layer, x)
    theirs, their_ms = run(layer, x, up), time_of(lambda: run(layer, x, up), seconds)
    ours.enable()
    try:
        with watched(calls):
            found, our_steps = run(layer, x, up), decoded(layer, x)
        our_ms = time_of(lambda: run(layer, x, up), seconds)
    finally:
        ours.disable()
    again = run(layer, x, up)
    spread = [distance(a, b) for a, b in zip(again, theirs, strict=True)]
    apart = [distance(a, b) for a, b in zip(found, theirs, strict=True)]
    names = ["result", "x", *(n for n, _ in layer.named_parameters())]
    worst = max(range(1, len(apart)), key=lambda i: apart[i])
    return {
        "what": f"fla.layers.{name}",
        "shape": list(x.shape),
        "ours": sorted({c for c in calls if not c.startswith("left")}),
        "left": sorted({c.removeprefix("left: ") for c in calls if c.startswith("left")}),
        "apart": apart[0],
        "gradient_apart": apart[worst],
        "gradient": names[worst],
        "decode_apart": max(distance(a, b) for a, b in zip(our_steps, steps, strict=True)),
        "fla_again": max(spread),
        "fla_ms": their_ms,
        "ms": our_ms,
    }


def distance(x: Any, y: Any) -> float:
    return float((x.double() - y.double()).norm() / y.double().norm())


class watched:
    """Within it, each call of a function that is replaced is noted: its name, or "left: " and the reason."""

    def __init__(self, calls: list[str], left: Callable[[str], Any] | None = None) -> None:
        self.calls, self.left = calls, left

    def __enter__(self) -> None:
        from pykittens.errors import ArgumentError
        from pykittens.integrations.fla.plan import Replacement

        self.planned = planned = Replacement.planned

        def noting(row: Replacement, *args: Any, **kwargs: Any) -> Any:
            try:
                plan = planned(row, *args, **kwargs)
            except ArgumentError as error:
                reason = f"{row.name}: {str(error).splitlines()[0]}"
                self.calls.append(f"left: {reason}")
                if self.left:
                    self.left(reason)
                raise
            self.calls.append(row.name)
            return plan

        Replacement.planned = noting  # type: ignore[method-assign]

    def __exit__(self, *error: Any) -> None:
        from pykittens.integrations.fla.plan import Replacement

        Replacement.planned = self.planned  # type: ignore[method-assign]


# fla's own tests: this module is then a plugin of pytest's (`-p benchmarks.fla`). --------------------------------


def pytest_runtest_call(item: Any) -> None:
    """Stops a test at the first call that is left to fla."""
    import pytest

    def left(reason: str) -> None:
        if not reason.startswith(REFERENCES):
            pytest.skip(f"left to fla: {reason}")

    calls: list[str] = []
    watching = watched(calls, left)
    watching.__enter__()
    item.addfinalizer(watching.__exit__)
    item.user_properties.append(("calls", calls))


def pytest_sessionstart(session: Any) -> None:
    from pykittens.integrations import fla as ours

    ours.enable()


def pytest_runtest_makereport(item: Any, call: Any) -> None:
    """A list of calls as words, which a report can carry to another process."""
    if call.when == "call":
        for i, (key, value) in enumerate(item.user_properties):
            if key == "calls":
                item.user_properties[i] = key, " ".join(sorted({name for name in value if not name.startswith("left")}))


def test_row(name: str, cases: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The counts of one file of fla's tests."""
    row: dict[str, Any] = {"what": f"fla's tests of {name}", "passed": 0, "failed": 0, "left": 0, "without": 0}
    failures, reasons = [], set()
    for case in cases:
        if case["outcome"] == "failed":
            row["failed"] += 1
            failures.append(case["name"])
        elif "left to fla: " in case["why"]:
            row["left"] += 1
            reasons.add(case["why"].partition("left to fla: ")[2])
        else:  # a test that fla itself skips, or that calls none of the functions, says nothing of ours
            ours = case["outcome"] == "passed" and case["properties"].get("calls")
            row["passed" if ours else "without"] += 1
    return {**row, "failures": failures, "reasons": sorted(reasons)}


def tests(folder: Path, arguments: list[str], names: list[str], seconds: float | None) -> int:
    failed = 0
    for name in names:
        options = ["-p", "benchmarks.fla", "-c", os.devnull, f"--rootdir={folder}", *arguments]
        row = test_row(name, reports.run([*options, TESTS[name]], folder, seconds))
        print(row, record("fla", [row], ("what",)), flush=True)
        failed += row["failed"]
    return failed


def main() -> int:
    """How many tests failed, or how many layers are far from fla's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["layers", "tests"])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--warm", action="store_true")
    parser.add_argument("--seconds", type=float, help="for timing a layer (1), or for a file of tests")
    o, rest = parser.parse_known_args()
    if o.what == "tests":
        return tests(o.folder, rest, o.only or [*TESTS], o.seconds)
    wrong = 0
    for name in o.only or LAYERS:
        start = time.perf_counter()
        row = layer_row(name, 0.0 if o.warm else o.seconds or 1.0)
        print(row, f"{time.perf_counter() - start:.0f} s", flush=True)
        wrong += row["apart"] > 2e-2 or row["gradient_apart"] > 5e-2
        if not o.warm:
            record("fla", [row], ("what",))
    return wrong


if __name__ == "__main__":
    sys.exit(main())
