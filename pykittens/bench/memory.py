"""The memory-bound kernels: bytes that must move over time, beside a device copy of as many and torch.compile.

At least 1 GiB moves in every cell: each operand is read once and each result written once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Annotated, Any

import pykittens as pk
from pykittens import Tensor, bf16, f32

from . import measure as measuring
from . import peers
from .measure import OURS, Cell, Trial, normal, row_error

TITLE = "Memory-bound kernels, bf16"
KEY = ("kind", "width")
TRAFFIC = 1 << 30
WIDTHS = (256, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
MOVED = {
    "layernorm": 2,
    "layernorm+residual": 4,
    "rmsnorm": 2,
    "softmax": 2,
    "swiglu": 3,
    "geglu": 3,
    "rotary": 2,
}  # tensors read or written
OPERANDS = {
    "layernorm": 1,
    "layernorm+residual": 2,
    "rmsnorm": 1,
    "softmax": 1,
    "swiglu": 2,
    "geglu": 2,
    "rotary": 1,
}  # as large as the result
ROTARY = ((16, 4096, 64), (16, 16384, 128))  # heads, n, head dimension
ROUNDING = 2.0**-8  # half a unit in the last place of a bf16 result


def cells() -> list[Cell]:
    """Every kernel at every width; rotary embedding at its head dimensions."""
    found = [
        (kind, width)
        for kind in MOVED
        if kind != "rotary"
        for width in (WIDTHS if kind not in ("swiglu", "geglu") else (1024, 11008, 65536))
    ]
    found += [("rotary", d) for _, _, d in ROTARY]
    return [
        Cell({"kind": kind, "width": width}, float(_rows(kind, width) * width * 2 * MOVED[kind]), "GB/s")
        for kind, width in found
    ]


def group(cell: Cell | dict[str, Any]) -> tuple[str, str]:
    """Where a cell stands in the chart: its panel, its label there."""
    facts = cell.facts if isinstance(cell, Cell) else cell
    return str(facts["kind"]), str(facts["width"])


def trial(cell: Cell, everybody: bool) -> Trial:
    """PyKittens and a device copy; with `everybody` also torch.compile and, where it is installed, quack."""
    import torch

    import pykittens as pk

    kind, width = cell.facts["kind"], cell.facts["width"]
    rows, functional = _rows(kind, width), torch.nn.functional
    operands: list[Any] = [normal(rows, width) for _ in range(OPERANDS[kind])]
    weight, bias = (normal(width) for _ in range(2))
    ours: Callable[..., Any]
    plain: Callable[..., Any]
    theirs: Callable[..., Any] | None = None
    if kind == "layernorm":
        operands += [weight, bias]
        ours, plain = pk.layernorm, lambda x, w, b: functional.layer_norm(x, (width,), w, b, 1e-5)
    elif kind == "layernorm+residual":
        operands += [weight, bias]
        ours = lambda x, r, w, b: pk.layernorm(x, w, b, residual=r)  # noqa: E731
        plain = lambda x, r, w, b: (functional.layer_norm(x + r, (width,), w, b, 1e-5), x + r)  # noqa: E731
    elif kind == "rmsnorm":
        operands += [weight]
        ours, plain = pk.rmsnorm, lambda x, w: functional.rms_norm(x, (width,), w, 1e-6)
        theirs = peers.function("quack", "rmsnorm")
    elif kind == "softmax":
        ours, plain, theirs = pk.softmax, lambda x: torch.softmax(x, -1), peers.function("quack", "softmax")
    elif kind == "rotary":
        heads, n, d = next(r for r in ROTARY if r[2] == width)
        angle = normal(n, d // 2, dtype=torch.float32)
        operands = [operands[0].view(-1, heads, n, d), angle.cos().bfloat16(), angle.sin().bfloat16()]
        ours, plain = pk.rotary, rotated
    else:
        act = functional.silu if kind == "swiglu" else functional.gelu
        ours, plain = pk.swiglu if kind == "swiglu" else pk.geglu, lambda gate, up: act(gate) * up
    runs: dict[str, Callable[[], Any]] = {OURS: lambda: ours(*operands), "copy": copy_of(int(cell.work))}
    if everybody:
        compiled = torch.compile(plain, dynamic=False)
        runs["torch.compile"] = lambda: compiled(*operands)
        if theirs:
            runs["quack"] = lambda: theirs(*operands)
    count = operands[0].shape[0]
    some = torch.tensor(sorted({0, count // 2, count - 1}), device=measuring.DEVICE)
    sample = [o[some] if o.shape[0] == count and o.dim() == operands[0].dim() else o for o in operands]
    exact, single = (
        cache(lambda t=t: _tensors(plain(*(o.to(t) for o in sample)))) for t in (torch.float64, torch.float32)
    )

    def error(result: Any) -> float:
        outputs = _tensors(result)
        if not all(torch.isfinite(o).all() for o in outputs):
            return float("inf")
        return max(row_error(o[some], e) for o, e in zip(outputs, exact(), strict=True))

    def limit(errors: dict[str, float]) -> float:
        return 1.5 * max(row_error(s, e) for s, e in zip(single(), exact(), strict=True)) + 1.01 * ROUNDING

    return Trial(runs, error, limit, frozenset({"copy", "torch.compile", "quack"}))


def copy_of(size: int) -> Callable[[], Any]:
    """A device copy that reads and writes `size` bytes in all."""
    import torch

    source, target = (torch.ones(size // 2, dtype=torch.uint8, device=measuring.DEVICE) for _ in range(2))
    return lambda: target.copy_(source)


@pk.kernel(warps=8, grid=lambda sums, **_: sums.cols)
def read(x: Annotated[Tensor, bf16, "M", 64], sums: Annotated[Tensor, f32, "B"]) -> None:
    """Everything comes into shared memory, once; three tiles of 16 KiB of a block are under way."""
    mine, stride, slots = pk.block_index.x, pk.grid_size.x, 4
    room = pk.shared(pk.st(bf16, 128, 64), count=slots, name="room")

    def load(i: Any) -> None:
        pk.block.load_async(room[i % slots], x, (mine + i * stride, 0))
        pk.block.commit()

    for i in range(slots - 1):
        load(i)
    for i in pk.range(pk.cdiv(pk.cdiv(x.rows, 128), stride)):
        pk.block.wait_loads(slots - 2)
        pk.block.sync()
        load(i + slots - 1)
    pk.block.wait_loads()
    pk.block.sync()
    with pk.when(pk.warp.index == 0):
        pk.warp.set(sums, mine, pk.cast(pk.warp.load(room[0].part(0, 0, 16, 64), dtype=f32).row_max().max(), f32))


def read_of(size: int) -> Callable[[], Any]:
    """A kernel that reads `size` bytes, a multiple of 128, and does no more: two blocks of a multiprocessor."""
    import torch

    @cache
    def operands() -> tuple[Any, Any]:
        processors = torch.cuda.get_device_properties(0).multi_processor_count
        x = torch.ones(size // 128, 64, dtype=torch.bfloat16, device=measuring.DEVICE)
        return x, torch.empty(2 * processors, device=measuring.DEVICE)

    return lambda: read(*operands())


def _rows(kind: str, width: int) -> int:
    """Rows that make 1 GiB of traffic; whole sequences for rotary embedding."""
    unit = next(h * n for h, n, d in ROTARY if d == width) if kind == "rotary" else 1
    return -(-TRAFFIC // (2 * MOVED[kind] * width * unit)) * unit


def rotated(x: Any, cos: Any, sin: Any) -> Any:
    """Rotary embedding as torch is asked for it."""
    import torch

    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def _tensors(result: Any) -> list[Any]:
    return list(result) if isinstance(result, (tuple, list)) else [result]
