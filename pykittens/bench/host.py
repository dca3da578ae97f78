"""What a kernel costs the host: compiling, starting in a new process, calling."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from .measure import Row

KEY = ("arch", "what")
_NEW_PROCESS = """
import time, torch, pykittens
from pykittens.kernels.{module} import attend
q, k, v, o = (torch.randn(1, 2, 512, 64, device="cuda", dtype=torch.bfloat16) for _ in range(4))
torch.cuda.synchronize()
start = time.perf_counter()
attend.bind(q, k, v, o, {rest}0.125)
print(time.perf_counter() - start)
"""
_IMPORT = "import time; start = time.perf_counter(); import pykittens{}; print(time.perf_counter() - start)"


def run(quick: bool = False) -> Iterator[Row]:
    """A row for each cost; `arch` is what kernels were compiled for."""
    from ..gpu import driver

    for row in _run(quick):
        yield {"arch": driver.architecture().name, **row}


def _run(quick: bool = False) -> Iterator[Row]:
    """Rows of `what`, `value`, `unit` and the promised `limit`."""
    module, rest = kernel()
    yield {"what": f"compiling {module}, cold", "value": compiling(), "unit": "s", "limit": 1.5}
    new = _NEW_PROCESS.format(module=module, rest="None, " if rest else "")
    yield {
        "what": f"a cached {module} in a new process: found and loaded",
        "value": new_process(new),
        "unit": "ms",
        "limit": 50.0,
    }
    yield {
        "what": "import pykittens in a new process",
        "value": new_process(_IMPORT.format("")),
        "unit": "ms",
        "limit": 150.0,
    }
    words = new_process(_IMPORT.format("; pykittens.call.kernel"))
    yield {
        "what": "import pykittens and the words of kernels, NumPy included, in a new process",
        "value": words,
        "unit": "ms",
        "limit": None,
    }
    yield from calling(1000 if quick else 10_000)


def kernel() -> tuple[str, tuple[Any, ...]]:
    """The attention kernel of this GPU, and its operands between the output and the scale."""
    from ..gpu import driver

    return ("attention_hopper", (None,)) if "wgmma" in driver.architecture().features else ("attention_ada", ())


def compiling() -> float:
    """Seconds to trace and compile, without a cache; the median of five."""
    import importlib

    import pykittens as pk

    from ..gpu import compiler, driver

    module, rest = kernel()
    attend, arch = importlib.import_module(f"pykittens.kernels.{module}").attend, driver.architecture().name
    x, times = pk.spec(pk.bf16, (1, 2, 512, 64)), []
    for _ in range(5):
        start = time.perf_counter()
        compiler.compile(pk.Kernel(attend.function, attend.options).cuda(x, x, x, x, *rest, 0.125, arch=arch), arch)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def new_process(program: str) -> float:
    """Milliseconds that a program says it took, each time in a new process; the median of three, after one that fills
    caches.

    Python's own is among these, wherever it may be kept: an installed package has its bytecode.
    """
    times = []
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": folder, "PYTHONDONTWRITEBYTECODE": ""}
        for _ in range(4):
            done = subprocess.run(
                [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
            )
            times.append(float(done.stdout.split()[-1]) * 1000)
    return statistics.median(times[1:])


def calling(calls: int) -> Iterator[Row]:
    """Host microseconds of a call, over those of the bare driver call that it makes."""
    import importlib

    import torch

    module, rest = kernel()
    attend = importlib.import_module(f"pykittens.kernels.{module}").attend
    operands = [
        tuple(torch.randn(1, 1, 16, 64, device="cuda", dtype=torch.bfloat16) for _ in range(4)) for _ in range(2)
    ]
    for four in operands:
        attend(*four, *rest, 0.125)
    call = next(reversed(attend.memory.launchers.values()))
    (q, k, v, o), (q2, k2, v2, o2) = operands

    def moving() -> None:
        attend(q, k, v, o, *rest, 0.125)
        attend(q2, k2, v2, o2, *rest, 0.125)

    found = each(
        {
            "bare": call.launcher.prepare(torch.cuda.current_stream().cuda_stream),
            "moving": moving,
            "bound": attend.bind(*operands[0], *rest, 0.125),
            "attention": lambda: _attention(q, k, v),
            "torch": lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v),
        },
        calls,
    )
    maps = (
        ""
        if not call.entry.maps
        else f" (tensor maps re-addressed {'in place' if not any(call.maps.values()) else 'by the driver'})"
    )
    bare = found["bare"]
    for what, value, limit in (
        (
            f"a call of {module} on four torch tensors that move each time{maps}",
            found["moving"] / 2,
            6.0 if rest else 8.0,
        ),
        (f"a call of {module}, bound", found["bound"], 1.5),
    ):
        yield {
            "what": f"{what}, over a bare driver launch",
            "value": value - bare,
            "unit": "us",
            "limit": limit,
            "bare": bare,
        }
    for what, name in {
        "pykittens.attention on torch tensors": "attention",
        "torch's scaled_dot_product_attention": "torch",
    }.items():
        yield {"what": f"{what}, in all", "value": found[name], "unit": "us", "limit": None}
    for name, value in each(trained(), max(1, calls // 10)).items():
        yield {"what": f"{name}, forward and backward, in all", "value": value, "unit": "us", "limit": None}


def trained() -> dict[str, Callable[[], Any]]:
    """Calls on small tensors that require gradients, and the backward passes of their results."""
    import torch

    import pykittens as pk

    def tensor(*shape: int) -> Any:
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16).requires_grad_()

    rows, weight, square = tensor(64, 64), tensor(64), tensor(64, 64)
    heads = [tensor(1, 1, 64, 64) for _ in range(3)]

    def both(function: Callable[..., Any], *operands: Any) -> Callable[[], None]:
        gradient = torch.ones_like(function(*operands))

        def run() -> None:
            torch.autograd.backward(function(*operands), gradient)
            for x in operands:
                x.grad = None

        for _ in range(3):  # traced, and its plans made
            run()
        return run

    torchs = torch.nn.functional
    return {
        "pykittens.layernorm": both(pk.layernorm, rows, weight),
        "torch's layer_norm": both(lambda x, w: torchs.layer_norm(x, (64,), w), rows, weight),
        "pykittens.linear": both(pk.linear, rows, square),
        "torch's linear": both(torchs.linear, rows, square),
        "pykittens.attention": both(pk.attention, *heads),
        "torch's scaled_dot_product_attention": both(torchs.scaled_dot_product_attention, *heads),
    }


def _attention(q: Any, k: Any, v: Any) -> Any:
    import pykittens as pk

    return pk.attention(q, k, v)


def each(runs: dict[str, Callable[[], Any]], calls: int = 10_000, batch: int = 250) -> dict[str, float]:
    """Microseconds of one call of each: medians over batches that take turns, short enough that the GPU's queue never
    fills.

    Turns, because a host's speed changes within a second as well as a GPU's does.
    """
    import torch

    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(max(1, calls // batch)):
        for name, call in runs.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(batch):
                call()
            times[name].append((time.perf_counter() - start) / batch * 1e6)
    torch.cuda.synchronize()
    return {name: statistics.median(found) for name, found in times.items()}
