"""What a kernel costs the host: compiling, starting in a new process, calling. Needs a GPU and torch.

python -m benchmarks.host
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

import pykittens as pk
from pykittens.cuda import compiler, driver
from pykittens.cuda.run import Call
from pykittens.kernels.attention_ada import attend

from .record import record

_NEW_PROCESS = """
import time, torch, pykittens
from pykittens.kernels.attention_ada import attend
q, k, v, o = (torch.randn(1, 2, 512, 64, device="cuda", dtype=torch.bfloat16) for _ in range(4))
torch.cuda.synchronize()
start = time.perf_counter()
attend.bind(q, k, v, o, 0.125)
print(time.perf_counter() - start)
"""


def main() -> None:
    rows = [
        {"what": "compiling attention, cold", "value": compiling(), "unit": "s", "limit": 1.5},
        {"what": "a cached kernel in a new process: traced, found and loaded", "value": new_process(), "unit": "ms", "limit": 50},
        *calling(),
    ]
    for row in rows:
        print(row)
    print("->", record("host", rows, ("what",)))


def compiling() -> float:
    """Seconds to trace and compile, without a cache; the median of five."""
    x, times = pk.spec(pk.bf16, (1, 2, 512, 64)), []
    for _ in range(5):
        start = time.perf_counter()
        compiler.compile(pk.Kernel(attend.function, attend.options).cuda(x, x, x, x, 0.125, arch=driver.architecture()), driver.architecture())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def new_process() -> float:
    """Milliseconds from arrays to a loaded kernel, in a process that has torch and the package imported; the median of five, after one to fill the cache."""
    times = []
    for _ in range(6):
        done = subprocess.run([sys.executable, "-c", _NEW_PROCESS], capture_output=True, text=True, check=True)
        times.append(float(done.stdout) * 1000)
    return statistics.median(times[1:])


def calling() -> list[dict[str, Any]]:
    """Host microseconds of 10,000 calls over those of the bare driver call."""
    q, k, v, o = (torch.randn(1, 1, 16, 64, device="cuda", dtype=torch.bfloat16) for _ in range(4))
    given, fixed = attend.arguments((q, k, v, o, 0.125), {})
    bare = Call(attend, *attend.specialise(given, fixed), fixed).launcher._call
    floor = each(bare)
    others = [tuple(torch.empty_like(x) for x in (q, k, v, o)) for _ in range(2)]
    turn = iter(range(10**9))
    calls = {
        "a call on four torch tensors": (lambda: attend(q, k, v, o, 0.125), 8),
        "a call whose tensors move each time": (lambda: attend(*others[next(turn) % 2], 0.125), 8),
        "a call of a bound kernel": (attend.bind(q, k, v, o, 0.125), 1.5),
    }
    return [{"what": f"{what}, over a bare driver launch", "value": each(call) - floor, "unit": "us", "limit": limit, "bare": floor} for what, (call, limit) in calls.items()]  # fmt: skip


def each(call: Callable[[], Any], calls: int = 10_000, batch: int = 500) -> float:
    """Microseconds of one call: the median over batches, short enough that the GPU's queue never fills."""
    times = []
    for _ in range(calls // batch):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(batch):
            call()
        times.append((time.perf_counter() - start) / batch * 1e6)
    torch.cuda.synchronize()
    return statistics.median(times)


if __name__ == "__main__":
    main()
