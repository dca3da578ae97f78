"""Every way to divide attention and products that `kernels/schedule.py` knows, and some of attention's backward pass,
timed at random shapes.

    python -m benchmarks.schedules --compile-only     # only fills the cache (PYKITTENS_CACHE); needs no GPU
    python -m benchmarks.schedules --count 300        # -> benchmarks/results/schedules/<device>.json
    python -m benchmarks.schedules product            # one kind; the other's rows stay
    python -m benchmarks.schedules product --below 1.4  # only ways that the model predicts to be near the fastest
    python -m benchmarks.schedules product few --below 1.12 --under 12 --out ...  # once more, short products alone
    python -m benchmarks.fit FILE ...                 # from there: the constants of the model

All ways of a shape take turns, behind a write that empties L2. Each is compared with the first before it is timed.
Those near the fastest take more turns, whose times count: the least of many medians of five is too small.

The same way takes another time in another session: below 12 us by 4 to 5 % (standard deviation). So ways are loaded
and take turns in a random order, and `benchmarks.fit` takes the mean of several sessions, each with a file of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pykittens.bench import attention_backward_random, attention_random, gemm_random
from pykittens.bench.machine import facts
from pykittens.bench.timing import in_turn
from pykittens.kernels import (
    attention_backward,
    attention_backward_divided,
    attention_backward_hopper,
    attention_backward_wide,
    attention_divided,
    attention_hopper,
    gemm,
    gemm_divided,
    schedule,
)
from pykittens.kernels.counters import clear

from .record import RESULTS

SLOTS = 132
MOST = 2e12  # operations of an attention
PARTS = (2, 3, 4, 6, 8, 12, 16, 32)  # into which the backward pass is divided, or the nearest that may be
NEAR, MARGIN, TURNS = 1.12, 7e-4, 20  # how far from the fastest, or by how many ms, and how many turns more are taken
SLEEP = 300_000  # cycles before a run: a bound kernel is launched faster than a Python function is called
Shape = tuple[int, ...]
Make = Callable[..., Any]  # an array of a dtype and a shape


def attention_runs(shape: Shape, make: Make, empty: Make) -> Iterator[tuple[list[Any], list[Any]]]:
    """Ways, and what each calls: kernels with operands and static values; the last is what they write."""
    b, h, g, n, m, d, causal, *left = shape
    q, k, v = make("bf16", b, h, n, d), make("bf16", b, g, m, d), make("bf16", b, g, m, d)
    statics = {"causal": bool(causal), "positive": True, "sms": SLOTS}
    band = [*left, *left] if left and not causal else left
    for way in schedule.AttentionShape(b, h, g, n, m, d, bool(causal), *band).ways(SLOTS):
        settings, o, scale = way.settings, empty("bf16", b, h, n, d), d**-0.5
        if (splits := way.splits) == 1:
            more: dict[str, Any] = {"counter": empty("i32", 1)} if way.dynamic else {}
            calls = [(clear, (more["counter"],), {})] if more else []
            calls.append((attention_hopper.attend, (q, k, v, o, None, scale, *band), {**statics, **settings, **more}))
            yield list(way), [*calls, o]
            continue
        parts, logs = empty("f32", splits * b, h, n, d), empty("f32", splits * b, h, n)
        first = {**statics, **settings, "with_lse": True, "splits": splits}
        merging = {"splits": splits, "rows": attention_divided.rows_of(splits, d)}
        both = (attention_hopper.attend, (q, k, v, parts, logs, scale), first)
        yield list(way), [both, (attention_divided.merge, (parts, logs, o), merging), o]


def backward_shapes(seed: int) -> Iterator[Shape]:
    """As those of the bench, every second one with additions in an order."""
    drawn = (x for x in attention_backward_random.shapes(seed) if 10 * x[0] * x[1] * x[3] ** 2 * x[4] <= MOST)
    for i, (b, h, g, n, d, causal) in enumerate(drawn):
        yield b, h, g, n, n, d, causal, i % 2


def backward_shape(shape: Shape) -> attention_backward_divided.Shape:
    """As the model knows it."""
    b, h, g, n, m, d, causal, fixed = shape
    return attention_backward_divided.Shape(b, h, g, n, m, d, bool(causal), bool(fixed), d == 256)


def backward_runs(shape: Shape, make: Make, empty: Make) -> Iterator[tuple[list[Any], list[Any]]]:
    """The same of the backward pass: no division, the model's choice, and others of about twice as many parts each."""
    b, h, g, n, m, d, causal, fixed = shape
    known = backward_shape(shape)
    cuts = [*known.ways()]
    some = {min(cuts, key=lambda x, t=t: abs(math.log(x.heads * x.queries / t))) for t in PARTS}  # type: ignore[misc]
    q, do, k, v = make("bf16", b, h, n, d), make("bf16", b, h, n, d), make("bf16", b, g, m, d), make("bf16", b, g, m, d)
    padded, parts = attention_backward.scratch(n, d)
    by = (b * g, h // g) if d == 256 else (b, h)
    lse, delta, sums = make("f32", *by, padded), make("f32", *by, padded), empty("f32", *by, *parts)
    turns = empty("i32", *by, parts[0]) if fixed else None
    for way in sorted({cuts[0], attention_backward_divided.choices(known, schedule.DeviceModel(SLOTS))[0].way, *some}):
        dk, dv, more = empty("bf16", b, g, m, d), empty("bf16", b, g, m, d), None
        if way != cuts[0]:
            more = empty("f32", *attention_backward_divided.parts_of(b, g, m, d, way.heads, way.queries))
        given = (q, k, v, do, lse, delta, sums, dk, dv, d**-0.5, turns)
        calls: list[Any] = [] if turns is None else [turns]
        heads = b * g * way.heads * way.queries
        together = attention_backward_hopper.at_once(heads, n, d) if causal or fixed else None
        static = {"causal": bool(causal), "sums": more, "together": together}
        if d == 256:
            calls.append((attention_backward_wide.differentiate, given, static))
        else:
            static |= attention_backward.configuration(d)
            calls.append((attention_backward_hopper.differentiate, given, static))
        if more is not None:
            calls.append((attention_backward_divided.merge, (more, dk, dv, d**-0.5), {"width": d}))
        yield [way.heads, way.queries], [*calls, dk]


def product_runs(shape: Shape, make: Make, empty: Make) -> Iterator[tuple[list[Any], list[Any]]]:
    """The same of products. Rows that begin anywhere are copied to whole lines first, which is not timed."""
    m, n, k = shape
    a, b = (make("bf16", rows, -(-cols // 64) * 64 if cols % 8 else cols) for rows, cols in ((m, k), (k, n)))
    a = a[:, :k]
    for way in schedule.contiguous(m, n, k).ways(SLOTS):
        c, config, calls, more = empty("bf16", m, n), way.config, [], {}
        if way.splits > 1:
            parts, flags = gemm_divided.scratch(config, m, n, 2, 1, way.splits, SLOTS)
            more = {"splits": way.splits, "parts": empty("f32", *parts), "flags": empty("i32", *flags)}
            more |= {"dependent": True}
            calls = [(clear, (more["flags"],), {})]
        static = {"config": schedule.for_rows(config, m), **more}
        static |= {"ta": True, "tb": True} if config.swap else {}
        given = (b, a) if config.swap else (a, b)
        calls.append((gemm.gemm, (*given, c, None, None, None, None, SLOTS), static))
        yield way.words, [*calls, c]


def few_rows(seed: int) -> Iterator[Shape]:
    """Random products of 1 to 64 rows."""
    draw = random.Random(seed)
    for _, n, k in gemm_random.shapes(seed):
        yield max(1, round(2 ** draw.uniform(0, 6))), n, k


def windows(seed: int) -> Iterator[Shape]:
    """Random attentions with windows: causal ones and such with two sides, of 16 keys to all."""
    draw = random.Random(seed)
    for shape in attention_random.shapes(seed, MOST):
        yield *shape, round(2 ** draw.uniform(4, math.log2(shape[4])))


KINDS: dict[str, tuple[Any, Any]] = {
    "window": (windows, attention_runs),
    "attention": (lambda seed: attention_random.shapes(seed, MOST), attention_runs),
    "backward": (backward_shapes, backward_runs),
    "product": (gemm_random.shapes, product_runs),
    "few": (few_rows, product_runs),
}


def compile_all(kinds: list[str], count: int, seed: int, below: float = math.inf) -> None:
    import torch

    dtypes = {"bf16": torch.bfloat16, "f32": torch.float32, "i32": torch.int32}
    seen: set[int] = set()

    def make(dtype: str, *shape: int) -> Any:
        return torch.empty(*shape, dtype=dtypes[dtype])

    for kind in kinds:
        shapes, runs = KINDS[kind]
        for shape in take(shapes(seed), count):
            hopeless = slow(kind, shape, below, schedule.machine(None))
            for calls in (calls for way, calls in runs(shape, make, make) if json.dumps(way) not in hopeless):
                for kernel, operands, named in (x for x in calls if isinstance(x, tuple)):
                    program = kernel.program(*operands, **named)
                    if id(program) in seen:
                        continue
                    seen.add(id(program))
                    cubin = kernel.compile_program(program, "sm_90a")
                    said = {k: v for k, v in named.items() if not hasattr(v, "shape")}
                    bad = f"SPILLS {cubin.spill_store_bytes}" if cubin.spills else ""
                    print(len(seen), kernel.name, said, cubin.registers, bad, " ".join(cubin.serialized), flush=True)
        print(kind, flush=True)


def take(shapes: Iterator[Shape], count: int) -> list[Shape]:
    return [next(shapes) for _ in range(count)]


def measure(
    kind: str, count: int, seed: int, seconds: float, below: float = math.inf, under: float = math.inf
) -> list[dict[str, Any]]:
    """Rows of the file. below: only ways that are predicted to take so many times as long as the fastest at most.
    under: only products that are predicted to take fewer microseconds."""
    import torch

    dtypes = {"bf16": torch.bfloat16, "f32": torch.float32, "i32": torch.int32}
    shapes, runs = KINDS[kind]
    rows, begin = [], time.perf_counter()

    def make(dtype: str, *shape: int) -> Any:
        return torch.randn(*shape, device="cuda", dtype=dtypes[dtype])

    def empty(dtype: str, *shape: int) -> Any:
        return torch.full(shape, float("nan") if dtype != "i32" else 0, dtype=dtypes[dtype], device="cuda")

    def bound(calls: list[Any]) -> Callable[[], None]:
        steps: list[Callable[[], Any]] = []
        for x in calls[:-1]:
            steps.append(x[0].bind(*x[1], **x[2]) if isinstance(x, tuple) else x.zero_)

        def run() -> None:
            for step in steps:
                step()

        return run

    for shape in take(shapes(seed), count):
        if time.perf_counter() - begin > seconds:
            break
        if under < math.inf and kind in ("product", "few"):
            if schedule.product(schedule.contiguous(*shape), schedule.machine(0)).microseconds > under:
                continue
        first, launch = None, {}
        hopeless = slow(kind, shape, below, schedule.machine(0))
        ways = {name: calls for way, calls in runs(shape, make, empty) if (name := json.dumps(way)) not in hopeless}
        for name, calls in random.sample([*ways.items()], len(ways)):
            try:
                launch[name] = bound(calls)
                launch[name]()
                torch.cuda.synchronize()
            except Exception as error:
                launch.pop(name, None)
                print(shape, name, type(error).__name__, str(error).splitlines()[:1], flush=True)
                continue
            out = calls[-1].float()
            first = out if first is None else first
            wrong = float((out - first).norm() / first.norm())
            if not wrong < 1e-2:
                print("WRONG", shape, name, wrong, flush=True)
                del launch[name]
        if launch:
            rows.append({"kind": kind, "shape": shape, "ms": [[json.loads(way), ms] for way, ms in timed(launch)]})
    print(kind, len(rows), "shapes", round(time.perf_counter() - begin), "s", flush=True)
    return rows


def timed(launch: dict[str, Callable[[], None]]) -> list[tuple[str, float]]:
    """Milliseconds of each way: those near the fastest take more turns, without the others. Fewer kernels that take
    turns are each a little faster, because their instructions are still near: times of the others are filed in
    proportion.
    """
    first = {name: t.median for name, t in in_turn(launch, 0.0, SLEEP).items()}
    least = min(first.values())
    near = {name: launch[name] for name, ms in first.items() if ms < max(NEAR * least, least + MARGIN)}
    again = {name: t.median for name, t in in_turn(near, TURNS * max(first[n] for n in near), SLEEP).items()}
    scale = statistics.geometric_mean([again[name] / first[name] for name in near])
    return [(name, round(again.get(name, ms * scale), 5)) for name, ms in first.items()]


def slow(kind: str, shape: Shape, below: float, machine: schedule.DeviceModel) -> set[str]:
    """Names of the ways that are predicted to take more than `below` times as long as the fastest."""
    if below == math.inf or kind == "backward":
        return set()
    if kind == "window":
        return set()
    if kind == "attention":
        choices = schedule.attention_choices(schedule.AttentionShape(*shape[:-1], bool(shape[-1])), machine)
        return {json.dumps(list(c.way)) for c in choices if c.microseconds > below * choices[0].microseconds}
    choices = schedule.product_choices(schedule.contiguous(*shape), machine)
    return {json.dumps(c.way.words) for c in choices if c.microseconds > below * choices[0].microseconds}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kinds", nargs="*", choices=[[], *KINDS], default=[])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of each kind")
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument("--below", type=float, default=math.inf)
    parser.add_argument("--under", type=float, default=math.inf, help="microseconds: only shorter products")
    parser.add_argument("--out", type=Path)
    o = parser.parse_args()
    kinds = o.kinds or [*KINDS]
    if o.compile_only:
        compile_all(kinds, o.count, o.seed, o.below)
        return
    device = facts()["device"].lower().removeprefix("nvidia").strip().replace(" ", "-")
    file = o.out or RESULTS / "schedules" / f"{device}.json"
    there = json.loads(file.read_text())["rows"] if file.exists() else []
    rows = [row for row in there if row["kind"] not in kinds]
    for kind in kinds:
        rows += measure(kind, o.count, o.seed, o.seconds, o.below, o.under)
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(row) for row in rows)
    where = f'{{"facts": {json.dumps(facts())},\n"machine": {json.dumps(schedule.machine(0))},\n"seed": {o.seed},'
    file.write_text(f'{where}\n"rows": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
