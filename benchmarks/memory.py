"""The memory-bound kernels beside torch eager, torch.compile and a device copy of as many bytes, in one run.

    python -m benchmarks.memory                          # every case, with peers; files its rows in benchmarks/results
    # ways to divide the work, ranked, without peers and without filing
    python -m benchmarks.memory --variants
    # only fills the cache of kernels (PYKITTENS_CACHE); needs no GPU
    python -m benchmarks.memory --compile-only [...]

Options: --only WORDS (cases whose name has one of them), --peers copy,eager,compile, --repeats 11, --gib 1.

Correctness comes first: fresh random inputs, outputs that begin as NaN, rows from the front, the middle and the end
against float64, within 1.5 times the error of the same formula in float32 plus the rounding of the output. Then
interleaved repeats of a few launches between two events, medians. GB/s counts each operand read once and each result
written once.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np

from pykittens.bench.measure import poisoned
from pykittens.call.kernel import Kernel
from pykittens.errors import KernelError
from pykittens.functions.declaration import Function
from pykittens.functions.gates import GEGLU, SWIGLU
from pykittens.functions.norms import LAYERNORM, RMSNORM
from pykittens.functions.rotary import ROTARY
from pykittens.functions.softmax import SOFTMAX
from pykittens.kernels import gates, norms, rotary, rows, softmax
from pykittens.types import DTYPES

WIDTHS = (256, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
Arrays = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One measurement: a function of named operands, its peer in torch, and the ways to divide its work that are
    worth a try.
    """

    name: str
    shapes: Callable[[int], dict[str, tuple[int, ...]]]  # of the operands, for a number of elements of x
    run: Callable[..., Any]  # (arrays, config) -> output or outputs
    peer: Callable[[Any, Arrays], Any]  # (torch, arrays) -> the same
    moved: int  # tensors like x that are read or written
    module: Any
    variants: Callable[[], dict[str, Any]] = field(default=lambda: {})
    dtype: str = "bf16"


def tuned(function: Function, arrays: Any, settings: Any, also: bool, config: Any) -> Any:
    """A public function under a configuration (None: its own choice)."""
    if config is None:
        return function(arrays, settings, also)
    made = function.run(arrays, settings, also, config=config)
    return made[0] if len(made) == 1 else tuple(made)


def _row_variants(n: int, size: int, inputs: int = 1, weights: int = 0) -> dict[str, Any]:
    """Names and configurations for rows of n elements, with as many inputs and weights."""
    found: dict[str, Any] = {}
    choices: list[dict[str, Any]] = [{}]
    if n * size <= rows.PART:
        choices += [{"held": 32}, {"held": 32, "resident": 32}, {"resident": 32}]
    else:
        parts = min(8, rows.stream(n, size, inputs * size, weights * size).cluster * 2)
        choices += [{"team": 16, "teams": 1}, {"cluster": parts}, {"cluster": parts, "teams": 3}]
        choices += [{"cluster": 8, "team": 4, "teams": 3}, {"processors": 152}, {"processors": 156}]
    for choice in choices:
        config = rows.plan(n, size, 16, inputs=inputs * size, weights=weights * size, **choice)
        if config not in found.values():
            found[" ".join(f"{k}={v}" for k, v in choice.items()) or "default"] = config
    return found


def _norm(kind: str, n: int, residual: bool, p: float, dtype: str) -> Case:
    def shapes(elements: int) -> dict[str, tuple[int, ...]]:
        like = {"x": (elements // n, n), "weight": (n,)} | ({"bias": (n,)} if kind == "layernorm" else {})
        return like | ({"residual": (elements // n, n)} if residual else {})

    def run(a: Arrays, config: Any) -> Any:
        arrays = (a["x"], a.get("residual"), a.get("weight"), a.get("bias"), None)
        return tuned(LAYERNORM if kind == "layernorm" else RMSNORM, arrays, (1e-5, p, 1234), residual or p > 0, config)

    def peer(torch: Any, a: Arrays) -> Any:
        f, s = torch.nn.functional, a["x"]
        s = f.dropout(s, p) if p else s
        s = s + a["residual"] if residual else s
        rest = (s.shape[-1],), a["weight"]
        y = f.layer_norm(s, *rest, a["bias"], 1e-5) if kind == "layernorm" else f.rms_norm(s, *rest, 1e-5)
        return (y, s) if residual else y

    name = (
        f"{kind}{'+residual' if residual else ''}{'+dropout' if p else ''} {n}{'' if dtype == 'bf16' else ' ' + dtype}"
    )
    return Case(
        name,
        shapes,
        run,
        peer,
        4 if residual else 2,
        norms,
        lambda: _row_variants(n, DTYPES[dtype].size, 1 + residual, 2 if kind == "layernorm" else 1),
        dtype,
    )


def _softmax(n: int, dtype: str) -> Case:
    return Case(
        f"softmax {n}{'' if dtype == 'bf16' else ' ' + dtype}",
        lambda elements: {"x": (elements // n, n)},
        lambda a, config: tuned(SOFTMAX, (a["x"],), (), False, config),
        lambda torch, a: torch.softmax(a["x"], -1),
        2,
        softmax,
        lambda: _row_variants(n, DTYPES[dtype].size),
        dtype,
    )


def _rotary(n: int, d: int, r: int, interleaved: bool) -> Case:
    heads = 16

    def shapes(elements: int) -> dict[str, tuple[int, ...]]:
        return {"x": (max(1, elements // (heads * n * d)), heads, n, d), "cos": (n, r // 2), "sin": (n, r // 2)}

    def peer(torch: Any, a: Arrays) -> Any:
        x, c, s = a["x"][..., :r], a["cos"], a["sin"]
        first, second = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., : r // 2], x[..., r // 2 :])
        parts = first * c - second * s, second * c + first * s
        turned = torch.stack(parts, -1).flatten(-2) if interleaved else torch.cat(parts, -1)
        return torch.cat((turned, a["x"][..., r:]), -1) if r < d else turned

    def variants() -> dict[str, Any]:
        found = {}
        for choice in (
            [{}]
            + [{"heads": h} for h in (2, 4)]
            + [{"rows": k} for k in (8, 16)]
            + [{"warps": w} for w in (2, 8)]
            + [{"load_hint": ""}, {"load_hint": "stream"}, {"store_hint": ""}, {"heads": 2, "rows": 8}]
        ):
            config = rotary.plan(d, 2, 16, r, interleaved, **choice)
            if config not in found.values():
                found[" ".join(f"{k}={v}" for k, v in choice.items()) or "default"] = config
        return found

    run = lambda a, config: tuned(ROTARY, (*a.values(),), (interleaved,), False, config)  # noqa: E731
    return Case(
        f"rotary {'interleaved ' if interleaved else ''}{r} of {d}, n {n}", shapes, run, peer, 2, rotary, variants
    )


def _gate(kind: str, n: int) -> Case:
    def run(a: Arrays, config: Any) -> Any:
        settings = () if kind == "silu" else ("tanh" if kind == "gelu_tanh" else "none",)
        return tuned(SWIGLU if kind == "silu" else GEGLU, (a["gate"], a["up"]), settings, False, config)

    def peer(torch: Any, a: Arrays) -> Any:
        f = torch.nn.functional
        return (
            f.silu(a["gate"])
            if kind == "silu"
            else f.gelu(a["gate"], approximate="tanh" if kind == "gelu_tanh" else "none")
        ) * a["up"]

    def variants() -> dict[str, Any]:
        found = {}
        for choice in [
            {},
            {"held": 8},
            {"held": 32},
            {"warps": 2},
            {"warps": 8},
            {"load_hint": ""},
            {"store_hint": "stream"},
            {"held": 32, "warps": 8},
        ]:
            config = gates.plan(kind, n, 2, 16, **choice)  # type: ignore[arg-type]
            if config not in found.values():
                found[" ".join(f"{k}={v}" for k, v in choice.items()) or "default"] = config
        return found

    return Case(f"{kind} gate {n}", lambda e: {"gate": (e // n, n), "up": (e // n, n)}, run, peer, 3, gates, variants)


def cases() -> Iterator[Case]:
    for n in WIDTHS:
        yield _norm("rmsnorm", n, False, 0.0, "bf16")
        yield _norm("layernorm", n, False, 0.0, "bf16")
        yield _norm("layernorm", n, True, 0.0, "bf16")
        yield _softmax(n, "bf16")
    for n in (1024, 8192, 65536):
        yield _norm("rmsnorm", n, True, 0.1, "bf16")
        yield _norm("layernorm", n, True, 0.0, "f32")
        yield _softmax(n, "f32")
    for interleaved in (False, True):
        yield _rotary(16384, 128, 128, interleaved)
        yield _rotary(4096, 64, 64, interleaved)
    yield _rotary(16384, 128, 64, False)
    for kind, n in itertools.product(("silu", "gelu_tanh", "gelu"), (256, 1024, 11008, 32768, 65536)):
        yield _gate(kind, n)


def compile_all(chosen: list[Case], variants: bool, arch: str) -> None:
    """Compiles what the cases will launch, on as many threads as there are, from small arrays with the same
    alignment.
    """
    jobs = [(case, config) for case in chosen for config in (case.variants().values() if variants else [None])]

    def work(job: tuple[Case, Any]) -> None:
        case, config = job
        count = 2 * int(np.prod(case.shapes(1 << 24)["x" if case.module is not gates else "gate"][1:]))
        arrays = {k: np.zeros(s, DTYPES[case.dtype].numpy) for k, s in case.shapes(count).items()}
        try:
            case.run(arrays, config)
        except KernelError as error:
            print(f"\r{case.name}: {error.fact.splitlines()[0]}")

    with (
        mock.patch.object(Kernel, "_run", lambda self, args, named: self.compile(*args, **named, arch=arch)),
        ThreadPoolExecutor(2) as pool,
    ):
        for i, _ in enumerate(pool.map(work, jobs)):
            print(f"\r{i + 1} of {len(jobs)} kernels", end="", flush=True)
    print()


class Bench:
    """Runs cases on this machine's GPU (checks also run elsewhere, on the simulator)."""

    def __init__(self, gib: float, repeats: int, where: str = "cuda"):
        import torch

        self.torch, self.bytes, self.repeats, self.location = torch, gib * 2**30, repeats, where

    def operands(self, case: Case, seed: int) -> Arrays:
        torch = self.torch
        torch.manual_seed(seed)
        dtype = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[case.dtype]
        elements = int(self.bytes / case.moved / dtype.itemsize)
        shapes = case.shapes(elements)
        a = {k: torch.randn(s, device=self.location, dtype=dtype) for k, s in shapes.items()}
        return {k: (v.cos() if k == "cos" else v.sin() if k == "sin" else v) for k, v in a.items()}

    def check(self, case: Case, a: Arrays, config: Any) -> str:
        """Empty, or what is wrong with the results."""
        torch = self.torch
        with poisoned():
            results = case.run(a, config)
        results = results if isinstance(results, tuple) else (results,)
        for y in results:
            if torch.isnan(y).any():
                return f"{int(torch.isnan(y).sum())} of {y.numel()} results were not written, or are NaN"
        if "dropout" in case.name:
            return self.check_dropout(a, results)
        first = next(iter(a))
        count = a[first].shape[0]
        picked = torch.tensor(
            sorted({*range(min(8, count)), count // 2, *range(max(0, count - 8), count)}), device=self.location
        )
        some = {
            k: v[picked] if v.shape[:1] == a[first].shape[:1] and v.dim() == a[first].dim() else v for k, v in a.items()
        }
        exact, single = (
            case.peer(torch, {k: v.to(t) for k, v in some.items()}) for t in (torch.float64, torch.float32)
        )
        pairs = zip(results, *((e if isinstance(e, tuple) else (e,)) for e in (exact, single)), strict=True)
        for y, e, s in pairs:
            rounding = torch.finfo(y.dtype).eps * e.abs() + torch.finfo(torch.float32).eps
            worst = ((y[picked].double() - e).abs() - rounding * 1.01 - 1.5 * (s.double() - e).abs().max()).max().item()
            if not worst <= 1e-6 * e.abs().max().item():
                return f"error too large by {worst:.3g}"
        return ""

    def check_dropout(self, a: Arrays, results: Any) -> str:
        """The first and last rows of s against the NumPy meaning of the generator."""
        from pykittens.ops.random import random_bits

        m, n = a["x"].shape
        for first in (0, m - 2):
            bits = random_bits(np.arange(first, first + 2)[:, None], np.arange(n)[None], (1234, 0))
            x, r = (a[k][first : first + 2].double().cpu().numpy() for k in ("x", "residual"))
            s = np.where(bits >= int(0.1 * 2**32), x / 0.9, 0) + r
            if np.abs(results[1][first : first + 2].double().cpu().numpy() - s).max() > 2**-7 * np.abs(s).max():
                return "dropout differs from its NumPy meaning"
        return ""

    def times(self, functions: dict[str, Callable[[], Any]], launches: int = 3) -> dict[str, float]:
        """Milliseconds of one call, medians of interleaved repeats."""
        cuda = self.torch.cuda
        for f in functions.values():
            f(), f()
        found: dict[str, list[float]] = {name: [] for name in functions}
        for _ in range(self.repeats):
            for name, f in functions.items():
                start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
                start.record()
                for _ in range(launches):
                    f()
                end.record()
                end.synchronize()
                found[name].append(start.elapsed_time(end) / launches)
        return {name: statistics.median(x) for name, x in found.items()}

    def bytes_of(self, case: Case, a: Arrays) -> int:
        tensors = [v for v in a.values()]
        outputs = case.moved - sum(v.numel() == max(t.numel() for t in tensors) for v in tensors)
        return sum(t.numel() * t.element_size() for t in tensors) + outputs * max(
            t.numel() * t.element_size() for t in tensors
        )

    def copy(self, size: int) -> Callable[[], Any]:
        a, b = (
            self.torch.empty(size // 2, dtype=self.torch.uint8, device=self.location).view(self.torch.uint8)
            for _ in range(2)
        )
        return lambda: b.copy_(a)

    def measure(self, case: Case, configs: dict[str, Any], peers: list[str]) -> list[dict[str, Any]]:
        """A row for each configuration and peer; wrong ones are reported and not timed."""
        a = self.operands(case, hash(case.name) & 0xFFFF)
        size, functions, wrong = self.bytes_of(case, a), {"copy": self.copy(self.bytes_of(case, a) // 32 * 32)}, {}
        for name, config in configs.items():
            try:
                wrong[name] = self.check(case, a, config)
            except Exception as error:
                wrong[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            if not wrong[name]:
                functions[name] = lambda config=config: case.run(a, config)
        if "eager" in peers:
            functions["eager"] = lambda: case.peer(self.torch, a)
        if "compile" in peers:
            compiled = self.torch.compile(lambda a: case.peer(self.torch, a), dynamic=False)
            functions["compile"] = lambda: compiled(a)
        with self.torch.no_grad():
            ms = self.times(functions)
        found = [
            {
                "case": case.name,
                "who": who,
                "ms": round(t, 5),
                "gbps": round(size / t / 1e6),
                "of_copy": round(ms["copy"] / t, 4),
            }
            for who, t in ms.items()
        ]
        return found + [{"case": case.name, "who": who, "wrong": why} for who, why in wrong.items() if why]


def main() -> None:
    parser = argparse.ArgumentParser()
    for flag in ("--variants", "--compile-only"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--only", default="", help="words, separated by commas")
    parser.add_argument("--peers", default="copy,eager,compile")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--arch", default="sm_90a")
    o = parser.parse_args()
    chosen = [c for c in cases() if not o.only or any(word in c.name for word in o.only.split(","))]
    if o.compile_only:
        compile_all(chosen, o.variants, o.arch)
        return
    bench, everything = Bench(o.gib, o.repeats), []
    for case in chosen:
        found = bench.measure(
            case, case.variants() if o.variants else {"pykittens": None}, [] if o.variants else o.peers.split(",")
        )
        everything += found
        good = sorted((r for r in found if "ms" in r and r["who"] != "copy"), key=lambda r: r["ms"])
        base = [r for r in good if r["who"] == "default"]
        shown = (base + [r for r in good if r["who"] != "default"][:5]) if o.variants else good
        gbps = next(r["gbps"] for r in found if r["who"] == "copy")
        print(
            f"{case.name:32s} copy {gbps} | " + " | ".join(f"{r['who']} {r['of_copy']:.3f}" for r in shown), flush=True
        )
        for r in found:
            if "wrong" in r:
                print(f"    WRONG {r['who']}: {r['wrong']}", flush=True)
        bench.torch._dynamo.reset()
    if not o.variants:
        from .record import record

        record("memory", [r for r in everything if "ms" in r], ("case", "who"))
    sys.exit(any("wrong" in r for r in everything))


if __name__ == "__main__":
    main()
