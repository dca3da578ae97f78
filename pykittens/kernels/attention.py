"""Attention on arrays of any framework: what is checked, and which kernel runs.

    out = softmax(q @ k.T * scale) @ v        for each batch and head

Hopper and the simulated GPU run `attention_hopper`, Ampere and Ada `attention_ampere`.
"""

from __future__ import annotations

from typing import Any

from ..cuda import driver
from ..cuda.libcuda import CudaError
from ..errors import ArgumentError
from ..interop import arrays
from ..interop.arrays import ArrayInfo, Unsupported
from ..types import DTYPES
from . import attention_hopper

DTYPE_NAMES = ("bf16", "f16")
HOPPER = (64, 128, 256)
AMPERE = (64, 128)
_SIMULATED_PROCESSORS = 2  # enough blocks of a persistent kernel


def run(q: Any, k: Any, v: Any, out: Any, lse: Any, causal: bool, scale: float | None) -> None:
    """Writes the output, and log(sum(exp(scores))) of each row into `lse` unless that is None."""
    infos = describe(q, k, v)
    arch, dim = check(infos), q.shape[-1]
    device = infos["q"].device
    q, k, v = (x if loadable(infos[name]) else arrays.dense_copy(x, name) for name, x in (("q", q), ("k", k), ("v", v)))
    scale = dim**-0.5 if scale is None else float(scale)
    if arch in ("", "sm_90a"):
        processors = _SIMULATED_PROCESSORS if device is None else driver.multiprocessors(device)
        attention_hopper.attend(q, k, v, out, lse, scale, causal=bool(causal), with_lse=lse is not None, sms=processors, **configuration(dim, bool(causal), k.shape[2]))
    else:
        from . import attention_ampere

        attention_ampere.attend(q, k, v, out, scale, lse, causal=bool(causal))


def configuration(dim: int, causal: bool, rows: int) -> dict[str, Any]:
    """The measured choice for a head dimension and a length of keys: what differs from `attention_hopper.attend`'s defaults.

    Blocks of a cluster that load keys together halve the traffic from L2, which pays where every block does the same work;
    three consumers keep the special-function units busy where the head dimension gives the tensor core little to do.
    """
    if dim == 64:
        return {"stages": 3} if causal and rows < 2048 else {"stages": 3, "consumers": 3, "share": 2 if not causal and rows >= 8192 else 1}
    if dim == 128:
        if rows >= 8192:
            return {"keys": 160, "queries": 1, "share": 2}
        return {} if causal else {"share": 2, "pingpong": False}
    return {"keys": 80, "queries": 1, "share": 1 if causal else 2}


def describe(q: Any, k: Any, v: Any) -> dict[str, ArrayInfo]:
    """What is known of the operands, by name."""
    try:
        return {name: arrays.describe(x, name) for name, x in (("q", q), ("k", k), ("v", v))}
    except Unsupported as error:
        raise ArgumentError(f"attention: {error}", fix="pass NumPy, torch, CuPy or JAX arrays") from None


def check(infos: dict[str, ArrayInfo]) -> str:
    """The architecture to run on, "" for the simulated GPU. One `ArgumentError` for what no kernel takes."""
    q, k, v = infos.values()
    said = ", ".join(f"{name} {x.dtype} {tuple(x.shape)}" for name, x in infos.items())
    if any(len(x.shape) != 4 for x in infos.values()):
        raise ArgumentError(f"attention of {said}", fix="q, k and v have four dimensions: batch, heads, rows, head dimension")
    if q.dtype not in DTYPE_NAMES or len({x.dtype for x in infos.values()}) > 1:
        raise ArgumentError(f"attention of {said}: these dtypes are not supported", fix="pass all of them as bf16, or all as f16")
    if len({(x.kind, x.device) for x in infos.values()}) > 1:
        places = ", ".join(f"{name} is a {x.kind} array on {'the CPU' if x.device is None else f'GPU {x.device}'}" for name, x in infos.items())
        raise ArgumentError(f"attention: {places}", fix="pass arrays of one framework on one device")
    if any(n == 0 for x in infos.values() for n in x.shape):
        raise ArgumentError(f"attention of {said}: an array is empty", fix="every dimension is at least 1")
    if k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ArgumentError(f"attention of {said}: the shapes do not go together", fix="k and v have one shape, with the batch and head dimension of q")
    if q.shape[1] % k.shape[1]:
        raise ArgumentError(f"attention of {said}: {q.shape[1]} query heads share {k.shape[1]} key heads", fix="pass a multiple of the key heads")
    arch = _architecture(q.device)
    dims = AMPERE if arch not in ("", "sm_90a") else HOPPER
    if q.shape[3] not in dims:
        fix = f"head dimensions {', '.join(map(str, dims))} are supported{f' on {arch}' if arch else ''}"
        raise ArgumentError(f"attention of {said}: there is no kernel for head dimension {q.shape[3]}", fix=fix)
    return arch


def loadable(info: ArrayInfo) -> bool:
    """Whether kernels can read an array in place: contiguous rows that begin at multiples of 16 bytes."""
    *outer, (_, last) = zip(info.shape, info.strides, strict=True)
    size = DTYPES[info.dtype].size
    return last == 1 and info.pointer % 16 == 0 and all(n == 1 or (s >= 0 and s * size % 16 == 0) for n, s in outer)


def _architecture(device: int | None) -> str:
    """That of a device; "" where a fake tensor names a device that is not here."""
    try:
        return "" if device is None else driver.architecture(device)
    except CudaError:
        if driver.available():
            raise
        return ""
