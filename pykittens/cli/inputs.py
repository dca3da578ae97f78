"""The user's Q, K and V: from .npy or .safetensors files, as arrays (batch, heads, rows, head dimension)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from .console import Refusal

Array = np.ndarray[Any, Any]
_SAFETENSORS = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}
MOST = 2**31 - 1  # elements of an array that is made here
_NAMES = {"q": ("q", "query"), "k": ("k", "key"), "v": ("v", "value")}


def random_inputs(batch: int, heads: int, n: int, d: int, seed: int) -> dict[str, Array]:
    """Random normal q, k and v in bf16."""
    for option, value, least in (("batch", batch, 1), ("heads", heads, 1), ("n", n, 1), ("d", d, 1), ("seed", seed, 0)):
        if value < least:
            raise Refusal(f"--{option} is {value}", fix=f"it is at least {least}")
    if (elements := batch * heads * n * d) > MOST:
        fix = f"batch x heads x n x d is at most {MOST:,}"
        raise Refusal(f"q, k and v of {batch} x {heads} x {n} x {d} = {elements:,} elements each", fix=fix)
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal((batch, heads, n, d), dtype=np.float32).astype(ml_dtypes.bfloat16) for name in "qkv"
    }


def read_npy(files: dict[str, Path | None]) -> dict[str, Array]:
    """q, k and v, each from a file of its own."""
    if missing := [f"--{name}" for name, file in files.items() if file is None]:
        raise Refusal(f"{' and '.join(missing)} missing", fix="give --q, --k and --v, or --safetensors")
    arrays = {}
    for name, file in files.items():
        assert file is not None
        try:
            arrays[name] = np.load(file, allow_pickle=False)
        except OSError:
            raise
        except Exception as error:  # a damaged header makes NumPy fail in many ways
            raise Refusal(f"{file} is no array of numbers ({error})", fix="write it with numpy.save") from None
        if not isinstance(arrays[name], np.ndarray):
            raise Refusal(f"{file} holds several arrays", fix="write each with numpy.save")
    return _checked(arrays)


def read_safetensors(file: Path) -> dict[str, Array]:
    """q, k and v (or query, key and value) from one file."""
    try:
        from safetensors import SafetensorError, deserialize
    except ImportError:
        raise Refusal("reading .safetensors needs the safetensors package", fix="pip install safetensors") from None
    try:
        tensors = {name.lower(): tensor for name, tensor in deserialize(file.read_bytes())}
    except SafetensorError as error:
        raise Refusal(f"{file} is no safetensors file ({error})") from None
    arrays = {}
    for name, spellings in _NAMES.items():
        tensor = next((tensors[s] for s in spellings if s in tensors), None)
        if tensor is None:
            raise Refusal(
                f"{file} has no tensor {' or '.join(spellings)}; it has {', '.join(tensors) or 'none'}",
                fix="name them q, k and v",
            )
        if tensor["dtype"] not in _SAFETENSORS:
            raise Refusal(f"{name} in {file} is {tensor['dtype']}", fix=f"it may be {', '.join(_SAFETENSORS)}")
        arrays[name] = np.frombuffer(tensor["data"], _SAFETENSORS[tensor["dtype"]]).reshape(tensor["shape"])
    return _checked(arrays)


def _checked(arrays: dict[str, Array]) -> dict[str, Array]:
    """The arrays with four dimensions, in bf16 or f16: what attention kernels take."""
    return {name: _four_dimensions(name, _sixteen_bits(name, array)) for name, array in arrays.items()}


def _sixteen_bits(name: str, array: Array) -> Array:
    if array.dtype in (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)):
        return array
    if array.dtype == np.dtype("V2") or array.dtype == np.uint16:  # NumPy saves bf16 without its name
        return array.view(ml_dtypes.bfloat16)
    if array.dtype in (np.dtype(np.float32), np.dtype(np.float64)):
        return array.astype(ml_dtypes.bfloat16)
    raise Refusal(
        f"{name} is {array.dtype}",
        fix="it may be bf16 (also as uint16), float16, float32 or float64; the last two are rounded to bf16",
    )


def _four_dimensions(name: str, array: Array) -> Array:
    if not 2 <= array.ndim <= 4 or array.size == 0:
        raise Refusal(
            f"{name} has shape {array.shape}",
            fix="(batch, heads, rows, head dimension), where the first two may be left out; none of them 0",
        )
    return np.ascontiguousarray(array).reshape((1,) * (4 - array.ndim) + array.shape)
