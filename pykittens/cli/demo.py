"""`pykittens demo`: the 4090 attention kernel on random arrays or the user's, checked against float64."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import numpy as np
import typer
from rich.markup import escape

from ..call.kernel import Kernel
from ..errors import Diagnosis
from ..gpu import driver, memory
from ..kernels import attention_ada, reference
from ..sim import Report
from .console import AsJson, Refusal, answer, command, out, progress
from .inputs import Array, random_inputs, read_npy, read_safetensors

KERNEL = "attention_ada"
TOLERANCE = 1e-2  # bf16 has 8 bits of mantissa: weights, values and results are each off by up to 2**-9
OVER_TORCH = 1.5  # how much larger than the error of torch's own attention ours may be
_HEAD_DIMENSIONS = (64, 128)


@dataclass
class Run:
    """One run of the kernel: where, how long it took, and what was seen."""

    device: str
    out: Array
    seconds: float
    report: Report | None = None  # of the simulated GPU
    diagnoses: list[str] = field(default_factory=list)


@command
def run_demo(
    q: Annotated[Optional[Path], typer.Option(help="Q as a .npy file: (batch, heads, rows, head dimension).")] = None,  # noqa: UP045
    k: Annotated[Optional[Path], typer.Option(help="K as a .npy file.")] = None,  # noqa: UP045
    v: Annotated[Optional[Path], typer.Option(help="V as a .npy file.")] = None,  # noqa: UP045
    safetensors: Annotated[Optional[Path], typer.Option(help="A file with tensors q, k and v.")] = None,  # noqa: UP045
    batch: Annotated[int, typer.Option(help="Of random Q, K and V.")] = 1,
    heads: Annotated[int, typer.Option(help="Of random Q, K and V.")] = 2,
    n: Annotated[int, typer.Option(help="Rows of random Q, K and V.")] = 512,
    d: Annotated[int, typer.Option(help="Head dimension: 64 or 128.")] = 64,
    causal: Annotated[bool, typer.Option("--causal", help="Row i sees the keys up to i only.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu (the simulated GPU) or gpu.")] = "auto",
    compare: Annotated[bool, typer.Option("--torch", help="Let torch's own attention set the tolerance.")] = False,
    seed: Annotated[int, typer.Option(help="Of the random arrays.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Run flash attention, written in Python, on your GPU or on the simulated one, and check it."""
    files = {"q": q, "k": k, "v": v}
    where = choose_device(device)
    if safetensors and any(files.values()):
        raise Refusal("--safetensors and --q, --k, --v exclude each other", fix="give one of them")
    if safetensors:
        arrays = read_safetensors(safetensors)
    elif any(files.values()):
        arrays = read_npy(files)
    else:
        arrays = random_inputs(batch, heads, n, d, seed)
    check_shapes(arrays)
    scale = arrays["q"].shape[-1] ** -0.5
    if where == "gpu":
        with progress("compiling and running on the GPU"):
            run = on_gpu(attention_ada.attend, arrays, scale, causal)
    else:
        with progress("running on the simulated GPU", 1.0) as advance:
            run = simulated(attention_ada.attend, arrays, scale, causal, advance)
    with progress("checking against float64", 1.0) as advance:
        expected = reference.attention(
            arrays["q"], arrays["k"], arrays["v"], scale=scale, causal=causal, progress=advance
        )
        error = reference.row_error(run.out, expected)
        torch_error = reference.row_error(torch_attention(arrays, scale, causal), expected) if compare else None
    tolerance = TOLERANCE if torch_error is None else OVER_TORCH * torch_error
    passed = error <= tolerance and not run.diagnoses
    facts = {
        "kernel": KERNEL,
        "device": run.device,
        "shape": {"q": arrays["q"].shape, "k": arrays["k"].shape},
        "dtype": arrays["q"].dtype.name,
        "causal": causal,
        "passed": passed,
        "error": error,
        "tolerance": tolerance,
        "torch_error": torch_error,
        "seconds": run.seconds,
        "diagnoses": run.diagnoses,
        "saw": _saw(run.report),
    }
    if as_json:
        answer(facts)
    else:
        _show(facts, run)
    if not passed:
        raise typer.Exit(1)


def choose_device(asked: str) -> Literal["cpu", "gpu"]:
    """Where to run: on a GPU if there is one that can, unless the user says otherwise."""
    if asked not in ("auto", "cpu", "gpu"):
        raise Refusal(f"there is no device {asked!r}", fix="choose auto, cpu or gpu")
    if asked == "gpu":
        driver.architecture()  # says what is wrong with it
        return "gpu"
    if asked == "cpu" or not driver.available():
        return "cpu"
    try:
        driver.architecture()
    except driver.CudaError:
        return "cpu"
    return "gpu"


def check_shapes(arrays: dict[str, Array]) -> None:
    """Whether the kernel takes these arrays; says which do not fit."""
    said = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in arrays.items())
    q, k, v = arrays["q"], arrays["k"], arrays["v"]
    if q.shape[-1] not in _HEAD_DIMENSIONS:
        raise Refusal(
            f"{KERNEL} has no head dimension {q.shape[-1]} ({said})",
            fix=f"it may be {' or '.join(map(str, _HEAD_DIMENSIONS))}",
        )
    if k.shape != v.shape or q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise Refusal(
            f"the shapes do not go together: {said}",
            fix="K and V have one shape, which differs from that of Q in the number of rows at most",
        )
    if len({array.dtype for array in arrays.values()}) > 1:
        raise Refusal(f"the dtypes differ: {said}", fix="all of them bf16, or all of them float16")


def simulated(
    kernel: Kernel, arrays: dict[str, Array], scale: float, causal: bool, advance: Callable[[float], None]
) -> Run:
    """The kernel on the simulated GPU, with every check on."""
    result = np.zeros_like(arrays["q"])
    start = time.perf_counter()
    try:
        report = kernel.simulate(*arrays.values(), result, scale, causal=causal, progress=advance)
    except Diagnosis as diagnosis:
        return Run("simulated GPU", result, time.perf_counter() - start, None, [str(diagnosis)])
    return Run("simulated GPU", result, time.perf_counter() - start, report, list(map(str, report.diagnoses)))


def on_gpu(kernel: Kernel, arrays: dict[str, Array], scale: float, causal: bool) -> Run:
    """The kernel on the first GPU. No framework is needed."""
    there = {name: memory.DeviceArray(array) for name, array in arrays.items()}
    result = memory.DeviceArray(np.zeros_like(arrays["q"]))
    launch = kernel.bind(*there.values(), result, scale, causal=causal)
    launch()
    return Run(f"{driver.device_name()} ({driver.architecture()})", result.numpy(), memory.seconds(launch))


def torch_attention(arrays: dict[str, Array], scale: float, causal: bool) -> Array:
    """torch's own attention on the same arrays."""
    try:
        import torch
    except ImportError:
        raise Refusal("--torch needs torch", fix="pip install torch") from None
    if causal and arrays["q"].shape[2] != arrays["k"].shape[2]:
        raise Refusal(
            "torch's causal attention lines rows and keys up otherwise when their numbers differ",
            fix="leave out --torch",
        )
    dtype = getattr(torch, arrays["q"].dtype.name)
    place = "cuda" if torch.cuda.is_available() else "cpu"
    q, k, v = (torch.from_numpy(np.ascontiguousarray(x).view(np.int16)).view(dtype).to(place) for x in arrays.values())
    result = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
    return np.asarray(result.float().cpu().numpy())


def _saw(report: Report | None) -> dict[str, Any] | None:
    """What the simulated GPU counted."""
    if report is None:
        return None
    moved = {
        f"{memory}_bytes_{verb}": counts[memory]
        for verb, counts in (("read", report.read), ("written", report.written))
        for memory in ("global", "shared")
    }
    return {
        "blocks": report.blocks,
        "operations": sum(report.operations.values()),
        "matrix_flops": report.flops,
        **moved,
        "bank_conflicts": report.bank_conflicts,
    }


def _show(facts: dict[str, Any], run: Run) -> None:
    shape, kernel = facts["shape"]["q"], facts["kernel"]
    out.print(
        f"[bold]{kernel}[/] on the {facts['device']}: batch {shape[0]}, heads {shape[1]}, n {shape[2]}, d {shape[3]}, "
        f"{facts['dtype']}" + ", causal" * facts["causal"]
    )
    time = f"{facts['seconds']:.2f} s" if run.report or facts["diagnoses"] else f"{facts['seconds'] * 1e6:,.1f} us"
    out.print(f"  time   {time}")
    of_torch = "" if facts["torch_error"] is None else f"; torch's own is {facts['torch_error']:.2e}"
    good = facts["error"] <= facts["tolerance"]
    out.print(
        f"  error  {'[green]' if good else '[red]'}{facts['error']:.2e}[/], largest of a row against float64; at most "
        f"{facts['tolerance']:.2e} is good{of_torch}"
    )
    for i, line in enumerate(str(run.report).splitlines() if run.report else []):
        out.print(f"  {'' if i else 'saw':6} {escape(line)}")
    for diagnosis in facts["diagnoses"]:
        out.print(f"  [red]found[/]  {escape(diagnosis)}", soft_wrap=True)
    if run.report and not facts["diagnoses"]:
        out.print("  found  no race, no hang, no uninitialised or out-of-bounds access")
