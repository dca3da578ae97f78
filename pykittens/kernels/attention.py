"""Attention on arrays of any framework: what is checked, and which kernel runs.

    out = softmax(q @ k.T * scale) @ v        for each batch and head

Hopper and the simulated GPU run `attention_hopper`, Ampere and Ada `attention_ampere`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..architectures import SIMULATED, Architecture
from ..errors import ArgumentError
from ..gpu import driver
from ..gpu.libcuda import CudaError
from ..interop import arrays
from ..interop.arrays import ArrayInfo
from ..interop.views import View
from ..trace.scoring import Scoring
from ..types import DTYPES
from . import attention_divided, attention_dynamic, attention_hopper, attention_packed, schedule
from .arguments import KernelCall
from .blank import Blanked
from .scale import steady
from .tile_lists import Listed, Lists
from .widths import widths

DTYPE_NAMES = ("bf16", "f16")
WIDEST, WIDEST_MMA_SYNC = 256, 128  # head dimensions: of Hopper's kernels, of the others
SURE = 0.95  # of a predicted time: the model is seldom further off
LARGEST_CAP = 65536  # capped scores have an absolute error of some 2^-23 of the cap (`scale.squashed`)
FARTHEST = 2**30  # a side of a window that reaches past all keys
_SIMULATED_PROCESSORS = 2  # enough blocks of a persistent kernel


class Scores(NamedTuple):
    """How the scores of an attention are made, and which of them are seen: what its kernels are told.

    causal is right = 0, which they know when they are compiled; of left, right and softcap, whether they are given.
    """

    causal: bool
    scale: float
    left: int | None = None
    right: int | None = None
    softcap: float | None = None

    @property
    def kind(self) -> tuple[bool, ...]:
        """What decides which code runs."""
        return self.causal, self.scale > 0, self.left is None, self.right is None, self.softcap is None

    @property
    def numbers(self) -> tuple[float, ...]:
        """The scalar operands of the kernels, in their order."""
        if self.left is self.right is self.softcap is None:  # what most calls are, and each asks
            return (self.scale,)
        return tuple(x for x in (self.scale, self.left, self.right, self.softcap) if x is not None)

    @property
    def uneven(self) -> bool:
        """Whether some rows see fewer keys than others."""
        return self.left is not None or self.right is not None or self.causal

    @property
    def band(self) -> tuple[int | None, int | None, float | None]:
        """left, right, softcap."""
        return self[2:]


def scores(
    dim: Any, causal: bool, scale: float | None, left: int | None, right: int | None, softcap: float | None
) -> Scores:
    """From the settings of the public functions: `causal` is a right side of 0 at most.

    Raises `ArgumentError` for a softcap that is no positive number, or so large that scores lose their bits to it.
    """
    if softcap is not None and not 0 < softcap <= LARGEST_CAP:
        fix = f"pass a number above 0 and up to {LARGEST_CAP}, or None for no cap"
        raise ArgumentError(f"softcap={softcap!r}", fix=fix)
    if causal:
        right = 0 if right is None else min(right, 0)
    if left is not None:
        left = max(-FARTHEST, min(left, FARTHEST))
    if right is not None:
        right = max(-FARTHEST, min(right, FARTHEST))
    causal = right == 0
    return Scores(
        causal, (dim or 1) ** -0.5 if scale is None else float(scale), left, None if causal else right, softcap
    )


def call(
    q: Any,
    k: Any,
    v: Any,
    sinks: Any,
    out: Any,
    lse: Any,
    scores: Scores,
    offsets: tuple[Any, Any] = (None, None),
    scoring: Scoring | None = None,
    tables: Sequence[Any] = (),
    alike: tuple[bool, bool] = (False, False),
) -> KernelCall:
    """What writes the output, and log(sum(exp(scores))) of each row into `lse` unless that is None, for operands that
    `check` takes. offsets: where packed sequences begin, of queries and of keys. scoring: functions with `tables`;
    alike: whether the mask shows all of a batch, and all heads, the same."""
    given = ((name, x, arrays.describe(x, name)) for name, x in (("q", q), ("k", k), ("v", v)))
    q, k, v = (x if loadable(info) else arrays.dense_copy(x, name) for name, x, info in given)
    sinks = sinks if sinks is None or arrays.describe(sinks).strides == (1,) else arrays.dense_copy(sinks, "sinks")
    dim, device = q.shape[-1], arrays.describe(q).device
    theirs = [*map(table, tables)]
    lists = None if scoring is None or scoring.mask is None else Lists(scoring, scores, alike, theirs, offsets)
    if "wgmma" in machine_of(device).features:
        processors = processors_of(device)
        length = k.shape[2] if offsets[1] is None else k.shape[2] // (offsets[1].shape[0] - 1)  # on average
        window = scores.left is not None or scores.right is not None
        static: dict[str, Any] = {
            "causal": scores.causal,
            "with_lse": lse is not None,
            "sms": processors,
            "positive": scores.scale > 0,
        }
        if scores.softcap is None and scoring is None and offsets[0] is None:
            whole = not window and sinks is None
            chosen = plan(q.shape, k.shape, scores, sinks is not None, device, v.shape[-1])
            if whole and (rows := grouped(q, k, out)) is not None:
                each = q.shape[2] if scores.causal else None
                fewer = plan(rows(q).shape, k.shape, scores, False, device, v.shape[-1], each)
                if each is None or fewer.microseconds < SURE * chosen.microseconds:
                    q, out, lse, chosen = rows(q), rows(out), rows(lse), fewer
                    static |= {} if each is None else {"head_rows": each}
            way = chosen.way
            kernel: Any = attention_dynamic.DYNAMIC if way.dynamic else attention_hopper.attend
            if way.splits > 1:
                kernel, static["splits"] = attention_divided.DIVIDED, way.splits
            rest = () if whole else (*scores.band, sinks)
            return KernelCall(kernel, (q, k, v, out, lse, scores.scale, *rest), {**static, **way.settings})
        more = window or scores.softcap is not None or sinks is not None or scoring is not None
        light = scoring is None or (scoring.mask is None and max(scoring.score_ranks, default=0) < 2)
        low = scoring is None and steady(scores.softcap, arrays.describe(q).dtype)
        few = (light and scoring is not None and scores.softcap is None) or low
        few = few and not window and sinks is None and offsets[0] is None
        static |= {
            "scoring": scoring,
            "steady": low,
            **configuration(dim, scores.causal and not window, length, more, few, v.shape[-1]),
        }
        stays, kernel = static.get("stay", True), attention_hopper.attend
        if offsets[0] is not None:  # blocks that stay take tiles, of any length, one after another
            kernel = attention_packed.PACKED if stays else Blanked(kernel, offsets[0], lse, packed=True)
        elif stays and scores.uneven and light:  # others' scores leave no registers for a counter
            kernel = attention_dynamic.DYNAMIC
        operands: Any = (q, k, v, out, lse, scores.scale, *scores.band, sinks, *offsets)
        if lists is not None:
            kernel = Listed(kernel, lists, 64 * static.get("consumers", 2), static.get("keys", 128))
            return KernelCall(kernel, (*operands, *theirs, *[None] * (5 - len(theirs))), static)
        return KernelCall(kernel, (*operands, *theirs), static)
    from . import attention_ampere

    operands = (q, k, v, out, scores.scale, lse, *scores.band, sinks, *offsets, *theirs)
    kernel, static = attention_ampere.attend, {"causal": scores.causal, "scoring": scoring}
    if offsets[0] is not None:
        kernel = Blanked(attention_packed.Owned(kernel, 128), offsets[0], lse, packed=True)
    if lists is not None:
        kernel = Listed(kernel, lists, 128, attention_ampere.keys_of(widths(dim, v.shape[-1])[0]))
        operands = (*operands, *[None] * (4 - len(theirs)))
    return KernelCall(kernel, operands, static)


def grouped(q: Any, k: Any, out: Any) -> Callable[[Any], Any] | None:
    """What shows the rows of all heads that share keys as those of one head, where that fills more of the tiles of 128
    rows and memory has them so; else None. Rows that see all keys do not mind whose they are; a mask counts the rows of
    each head anew, and a tile in which two heads meet sees what the last row sees."""
    infos = [arrays.describe(x) for x in (q, out)]
    (batch, heads, n, _), shared = infos[0].shape, k.shape[1]
    size = heads // max(shared, 1)
    if size <= 1 or size * -(-n // 128) == -(-size * n // 128) or any(x.strides[1] != n * x.strides[2] for x in infos):
        return None

    def rows(x: Any) -> Any:
        """(batch, heads, n, ...) as (batch, shared, heads / shared * n, ...)."""
        if x is None:
            return None
        info = arrays.describe(x)
        strides = (info.strides[0], size * info.strides[1], *info.strides[2:])
        return View(x, (batch, shared, size * n, *info.shape[3:]), strides)

    return rows


def plan(
    q: Sequence[int],
    k: Sequence[int],
    scores: Scores,
    sinks: bool,
    device: int | None,
    values: int | None = None,
    head_rows: int | None = None,
) -> schedule.ChosenWay:
    """How attention of these shapes runs on a Hopper GPU. values: their head dimension, if not that of keys; head_rows:
    rows of each head where one of q has those of several."""
    band = scores.left, scores.right
    shape = schedule.AttentionShape(q[0], q[1], k[1], q[2], k[2], q[3], scores.causal, *band, sinks, values, head_rows)
    return schedule.attention(shape, schedule.machine(device))


def table(x: Any) -> Any:
    """An operand of a score function or a mask as kernels take it, with four dimensions; a copy where its last is not
    contiguous."""
    info = arrays.describe(x)
    if info.shape[-1] > 1 and info.strides[-1] != 1:
        x = arrays.dense_copy(x, "operand")
        info = arrays.describe(x)
    missing = 4 - len(info.shape)
    return View(x, (*[1] * missing, *info.shape), (*[0] * missing, *info.strides))


def configuration(
    dim: int, causal: bool, rows: int, more: bool = False, few: bool = False, values: int | None = None
) -> dict[str, Any]:
    """The measured choice for a head dimension and a length of keys: what differs from `attention_hopper.attend`'s
    defaults. more: than plain attention, which takes registers; few: a score that reads no element of its own, or a
    low cap. values: their head dimension, if not that of keys.

    Three consumers keep the special-function units busy where the head dimension gives the tensor core little to do.
    Blocks stay, so that a tile's first loads run beside the end of the one before, but where tiles of 160 keys leave no
    room for two of queries.
    """
    long = rows >= 8192
    plain = not more or (few and causal and long)  # three consumers have no registers for bounds, a cap, sinks
    if dim <= 64 and not plain:
        return {"stages": 3}
    if dim <= 64:
        return {"stages": 3} if causal and rows < 2048 else {"stages": 3, "consumers": 3}
    if dim <= 128 and more:  # nor have 160 keys
        return {}
    if dim <= 128:
        return {"keys": 160, "queries": 1, "pingpong": False, "stay": False} if causal and long else {}
    keys = schedule.roomiest(dim, values or dim)
    if more:
        keys = min(keys, max(80, schedule.roomiest(dim, values or dim, schedule.THREAD - 16)))
    return {"keys": keys, "queries": 1}


def check(infos: dict[str, ArrayInfo], deterministic: bool = False, sinks: ArrayInfo | None = None) -> None:
    """One `ArgumentError` for what no kernel takes."""
    q, k, v = infos.values()
    arch = machine_of(q.device)
    widest = WIDEST if "wgmma" in arch.features else WIDEST_MMA_SYNC
    if len(q.shape) != 4 or len(k.shape) != 4 or len(v.shape) != 4:
        problem, fix = "", "q, k and v have four dimensions: batch, heads, rows, head dimension"
    elif q.dtype not in DTYPE_NAMES or not q.dtype == k.dtype == v.dtype:
        problem, fix = "these dtypes are not supported", "pass all of them as bf16, or all as f16"
    elif k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        problem, fix = "the shapes do not go together", "k and v have one shape, with the batch and head dimension of q"
    elif q.shape[1] % k.shape[1] if k.shape[1] else q.shape[1]:
        problem, fix = f"{q.shape[1]} query heads share {k.shape[1]} key heads", "pass a multiple of the key heads"
    elif any(x.shape[3] % 8 or x.shape[3] > widest for x in (q, v)) or 0 < q.shape[3] < v.shape[3]:
        problem = f"there is no kernel for head dimension {q.shape[3]}"
        problem += "" if v.shape[3] == q.shape[3] else f", and {v.shape[3]} of values"
        fix = f"multiples of 8 up to {widest} are supported, for values no more than for keys"
        fix += "" if arch is SIMULATED else f", on {arch}"
    elif deterministic and "wgmma" not in arch.features:
        problem, fix = f"gradients in one order of additions need Hopper, not {arch}", "leave out deterministic=True"
    elif sinks is not None and (tuple(sinks.shape) != tuple(q.shape[1:2]) or sinks.dtype not in ("f32", q.dtype)):
        problem = f"sinks are {sinks.dtype} {tuple(sinks.shape)}"
        fix = f"pass one number for each of the {q.shape[1]} query heads, as f32 or {q.dtype}"
    else:
        return
    said = ", ".join(f"{name} {x.dtype} {tuple(x.shape)}" for name, x in infos.items())
    raise ArgumentError(f"attention of {said}" + (f": {problem}" if problem else ""), fix=fix)


def loadable(info: ArrayInfo) -> bool:
    """Whether kernels can read an array in place: contiguous rows that begin at multiples of 16 bytes."""
    *outer, (_, last) = zip(info.shape, info.strides, strict=True)
    size = DTYPES[info.dtype].size
    return last == 1 and info.pointer % 16 == 0 and all(n == 1 or (s >= 0 and s * size % 16 == 0) for n, s in outer)


def processors_of(device: int | None) -> int:
    """The multiprocessors of a device, or as many as the simulated one is told to have."""
    return _SIMULATED_PROCESSORS if device is None else driver.multiprocessors(device)


def machine_of(device: int | None) -> Architecture:
    """That of a device; the simulated GPU's on the CPU, and where a fake tensor names a device that is not here."""
    try:
        return SIMULATED if device is None else driver.architecture(device)
    except CudaError:
        if driver.available():
            raise
        return SIMULATED
