"""Attention on arrays of any framework: what is checked, and which kernel runs.

    out = softmax(q @ k.T * scale) @ v        for each batch and head

Hopper and the simulated GPU run `attention_hopper`, Ampere and Ada `attention_ampere`.
"""

from __future__ import annotations

from typing import Any

from ..architectures import SIMULATED, Architecture
from ..errors import ArgumentError
from ..gpu import driver
from ..gpu.libcuda import CudaError
from ..interop import arrays
from ..interop.arrays import ArrayInfo
from ..types import DTYPES
from . import attention_hopper
from .arguments import KernelCall

DTYPE_NAMES = ("bf16", "f16")
HOPPER = (64, 128, 256)
AMPERE = (64, 128)
_SIMULATED_PROCESSORS = 2  # enough blocks of a persistent kernel


def call(q: Any, k: Any, v: Any, out: Any, lse: Any, causal: bool, scale: float) -> KernelCall:
    """What writes the output, and log(sum(exp(scores))) of each row into `lse` unless that is None, for operands that
    `check` takes."""
    given = ((name, x, arrays.describe(x, name)) for name, x in (("q", q), ("k", k), ("v", v)))
    q, k, v = (x if loadable(info) else arrays.dense_copy(x, name) for name, x, info in given)
    dim, device = q.shape[-1], arrays.describe(q).device
    if "wgmma" in _architecture(device).features:
        processors = _SIMULATED_PROCESSORS if device is None else driver.multiprocessors(device)
        static = {
            "causal": bool(causal),
            "with_lse": lse is not None,
            "sms": processors,
            "positive": scale > 0,
            **configuration(dim, bool(causal), k.shape[2]),
        }
        return KernelCall(attention_hopper.attend, (q, k, v, out, lse, scale), static)
    from . import attention_ampere

    return KernelCall(attention_ampere.attend, (q, k, v, out, scale, lse), {"causal": bool(causal)})


def configuration(dim: int, causal: bool, rows: int) -> dict[str, Any]:
    """The measured choice for a head dimension and a length of keys: what differs from `attention_hopper.attend`'s
    defaults.

    Three consumers keep the special-function units busy where the head dimension gives the tensor core little to do.
    Blocks stay where tiles are short, so that a tile's first loads run beside the end of the one before; where they are
    long, the hardware hands them out as blocks become free, which leaves less idle at the end.
    """
    long = rows >= 8192
    if dim == 64:
        return {"stages": 3} if causal and rows < 2048 else {"stages": 3, "consumers": 3, "stay": not (causal and long)}
    if dim == 128:
        return {"keys": 160, "queries": 1, "pingpong": False, "stay": False} if causal and long else {}
    return {"keys": 80, "queries": 1, "stay": not (causal and long)}


def check(infos: dict[str, ArrayInfo], deterministic: bool = False) -> None:
    """One `ArgumentError` for what no kernel takes."""
    q, k, v = infos.values()
    arch = _architecture(q.device)
    dims = HOPPER if "wgmma" in arch.features else AMPERE
    if len(q.shape) != 4 or len(k.shape) != 4 or len(v.shape) != 4:
        problem, fix = "", "q, k and v have four dimensions: batch, heads, rows, head dimension"
    elif q.dtype not in DTYPE_NAMES or not q.dtype == k.dtype == v.dtype:
        problem, fix = "these dtypes are not supported", "pass all of them as bf16, or all as f16"
    elif k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        problem, fix = "the shapes do not go together", "k and v have one shape, with the batch and head dimension of q"
    elif q.shape[1] % k.shape[1] if k.shape[1] else q.shape[1]:
        problem, fix = f"{q.shape[1]} query heads share {k.shape[1]} key heads", "pass a multiple of the key heads"
    elif q.shape[3] not in dims:
        problem = f"there is no kernel for head dimension {q.shape[3]}"
        fix = f"head dimensions {', '.join(map(str, dims))} are supported{'' if arch is SIMULATED else f' on {arch}'}"
    elif deterministic and "wgmma" not in arch.features:
        problem, fix = f"gradients in one order of additions need Hopper, not {arch}", "leave out deterministic=True"
    else:
        return
    said = ", ".join(f"{name} {x.dtype} {tuple(x.shape)}" for name, x in infos.items())
    raise ArgumentError(f"attention of {said}" + (f": {problem}" if problem else ""), fix=fix)


def loadable(info: ArrayInfo) -> bool:
    """Whether kernels can read an array in place: contiguous rows that begin at multiples of 16 bytes."""
    *outer, (_, last) = zip(info.shape, info.strides, strict=True)
    size = DTYPES[info.dtype].size
    return last == 1 and info.pointer % 16 == 0 and all(n == 1 or (s >= 0 and s * size % 16 == 0) for n, s in outer)


def on_hopper(device: int | None) -> bool:
    """Whether Hopper's kernels run there."""
    return "wgmma" in _architecture(device).features


def _architecture(device: int | None) -> Architecture:
    """That of a device; the simulated GPU's on the CPU, and where a fake tensor names a device that is not here."""
    try:
        return SIMULATED if device is None else driver.architecture(device)
    except CudaError:
        if driver.available():
            raise
        return SIMULATED
