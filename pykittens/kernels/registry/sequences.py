"""Linear attention and Based, and their gradients."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from ...call.arguments import spec
from ...types import DTYPES, f32
from .. import based_backward, linear_attention_backward
from .. import gated_linear_attention as gated
from ..based import FEATURES
from ..based import Config as BasedConfig
from ..based import D as FEATURE_DIM
from ..based import attend as based_attend
from ..based import reference as based_reference
from ..catalog import Array, Instance, Shipped
from ..linear_attention import Config as LinearConfig
from ..linear_attention import attend as linear_attend
from ..linear_attention import reference as linear_reference


def _linear_attention(dim: int, dtype: str, decay: bool, reverse: bool = False) -> Instance:
    x, state, n = spec(DTYPES[dtype], (1, 2, 3 * 64 - 20, dim)), spec(f32, (1, 2, dim, dim)), 3 * 64
    config = LinearConfig() if dim == 64 else LinearConfig(stages=2, blocks_per_sm=1)
    others: dict[str, Any] = {"along": None, "dots": None}
    if reverse and decay:
        others = {"along": x, "dots": spec(f32, (1, 2, dim // 64, n))}
    operands = {
        "q": x,
        "k": x,
        "v": x,
        "o": x,
        "log_decay": spec(f32, (2,)) if decay else None,
        "before": state,
        "after": state,
        **others,
        "scale": dim**-0.5,
    }

    def expected(
        q: Array,
        k: Array,
        v: Array,
        log_decay: Array | None,
        before: Array,
        along: Any = None,
        **_: Any,
    ) -> dict[str, Array]:
        if reverse:
            found = linear_attention_backward.reference(v, k, q, v, log_decay=log_decay, dafter=before)
            o, after = found[2], found[4]
        else:
            o, after = linear_reference(q, k, v, log_decay=log_decay, state=before)
        if along is None:
            return {"o": o, "after": after}
        parts = (o * along.astype(float)).reshape(1, 2, -1, dim // 64, 64).sum(-1).swapaxes(2, 3)
        return {"o": o, "after": after, "dots": np.pad(parts, ((0, 0), (0, 0), (0, 0), (0, n - o.shape[2])))}

    outputs = ("o", "after", "dots") if others["dots"] else ("o", "after")
    statics = {"config": config, "reverse": reverse, "beside": reverse}
    return Instance(linear_attend, operands, statics, outputs, expected, {"log_decay": np.array([-0.1, -0.01])})


def _gated_sums() -> Instance:
    line = spec(f32, (3, 2 * 192))
    operands = {"log_decay": spec(f32, (2, 3, 150)), "offsets": None, "sums": line, "left": line}

    def expected(log_decay: Array, **_: Any) -> dict[str, Array]:
        padded = np.pad(np.maximum(log_decay.astype(float) / np.log(2), -160), ((0, 0), (0, 0), (0, 42)))
        parts = padded.reshape(2, 3, 3, 64).swapaxes(0, 1)
        left = np.pad(parts[..., :0:-1].cumsum(3)[..., ::-1], ((0, 0), (0, 0), (0, 0), (0, 1)))
        return {"sums": parts.cumsum(3).reshape(3, 384), "left": left.reshape(3, 384)}

    values = -np.abs(np.random.default_rng(5).standard_normal((2, 3, 150)))
    values[0, 0, 70] = -np.inf
    return Instance(gated.accumulate_lines, operands, {}, ("sums", "left"), expected, {"log_decay": values})


def _gated_decays(dim: int) -> Instance:
    rows = spec(f32, (dim // 64, 3, 2 * 192))
    operands = {"offsets": None, **dict.fromkeys(("by_y", "by_x", "between"), rows), "o": spec(f32, (2, 3, 150))}

    def expected(**given: Array) -> dict[str, Array]:
        y, x, behind = (
            given[name].astype(float).sum(0).reshape(3, 2, 3, 64).swapaxes(0, 1) for name in ("by_y", "by_x", "between")
        )
        change = np.where(np.arange(192).reshape(3, 64) < 150, y - x, 0)
        slope = np.flip(np.flip(change, 3).cumsum(3), 3) + behind.sum(3, keepdims=True)
        return {"o": slope.reshape(2, 3, 192)[..., :150]}

    return Instance(gated.finish_lines, operands, expected=expected)


def _linear_attention_transpose() -> Instance:
    operands = {"x": spec(f32, (1, 2, 64, 128)), "o": spec(f32, (1, 2, 128, 64))}
    return Instance(
        linear_attention_backward.transpose, operands, expected=lambda x, **_: {"o": x.swapaxes(2, 3).astype(float)}
    )


def _linear_attention_decay(dim: int) -> Instance:
    rows, state = spec(f32, (2, 3, dim // 64, 19 * 64)), spec(f32, (2, 3, dim * dim))

    def expected(queries: Array, keys: Array, after: Array, dafter: Array, n: int, **_: Any) -> dict[str, Array]:
        change = (queries.astype(float) - keys).sum(2) @ (np.arange(queries.shape[3]) + 1)
        return {"o": change + n * (after.astype(float) * dafter).sum(2)}

    operands = {"queries": rows, "keys": rows, "after": state, "dafter": state, "o": spec(f32, (2, 3)), "n": 1200}
    return Instance(linear_attention_backward.add_decay, operands, expected=expected)


def _based(dim: int, dtype: str, reverse: bool = False) -> Instance:
    x, v = (spec(DTYPES[dtype], (1, 2, 3 * 64 - 20, cols)) for cols in (FEATURE_DIM, dim))
    state = spec(f32, (1, 2, dim, FEATURES))

    def expected(q: Array, k: Array, v: Array, before: Array, **_: Any) -> dict[str, Array]:
        if reverse:
            o, after = based_backward.reference(v, k, q, v, dafter=before)[2:]
        else:
            o, after = based_reference(q, k, v, state=before)
        return {"o": o, "after": after}

    operands = {"q": x, "k": x, "v": v, "o": v, "before": state, "after": state}
    statics = {"config": BasedConfig(), "reverse": reverse}
    return Instance(based_attend, operands, statics, ("o", "after"), expected, {"before": _based_state(dim)})


def _based_state(dim: int) -> Array:
    """Any state: some of its columns are of no feature, and zero."""
    state = np.random.default_rng(7).standard_normal((1, 2, dim, FEATURES))
    state[..., 137:144] = 0
    return state


def _based_backward(dim: int, dtype: str, reverse: bool) -> Instance:
    x, v = (spec(DTYPES[dtype], (1, 2, 3 * 64 - 20, cols)) for cols in (FEATURE_DIM, dim))
    o = x if dim == 64 else spec(f32, (1, 2, 3 * 64 - 20, 2 * FEATURE_DIM))

    def expected(x: Array, y: Array, a: Array, b: Array, before: Array, **_: Any) -> dict[str, Array]:
        parts = []
        for part in range(0, dim, 64):
            mine, other, state = a[..., part : part + 64], b[..., part : part + 64], before[:, :, part : part + 64]
            parts += [
                based_backward.reference(other, y, x, mine, dafter=state)[1]
                if reverse
                else based_backward.reference(mine, x, y, other, state=state)[0]
            ]
        return {"o": np.concatenate(parts, 3)}

    operands = {"x": x, "y": x, "a": v, "b": v, "o": o, "before": spec(f32, (1, 2, dim, FEATURES))}
    statics = {"config": BasedConfig(), "reverse": reverse}
    return Instance(based_backward.differentiate, operands, statics, ("o",), expected, {"before": _based_state(dim)})


def _based_backward_combine(dtype: str) -> Instance:
    operands = {"parts": spec(f32, (1, 2, 150, 32)), "o": spec(DTYPES[dtype], (1, 2, 150, 16))}
    return Instance(
        based_backward.combine,
        operands,
        expected=lambda parts, **_: {"o": parts[..., :16].astype(float) + parts[..., 16:]},
    )


ROWS = (
    Shipped(
        name="linear_attention",
        about="causal linear attention in chunks, plain or with decay",
        make=_linear_attention,
        needs=("wgmma",),
        options={"dim": (64, 128), "dtype": ("bf16", "f16"), "decay": (False, True)},
        opcodes=("HGMMA", "UTMALDG", "UTMASTG"),
    ),
    Shipped(
        name="linear_attention_backward",
        about="linear attention from the last row to the first, for the gradients of its keys and values",
        make=partial(_linear_attention, reverse=True),
        needs=("wgmma",),
        options={"dim": (64, 128), "dtype": ("bf16", "f16"), "decay": (False, True)},
        opcodes=("HGMMA", "UTMALDG", "UTMASTG"),
    ),
    Shipped(
        name="gated_linear_attention_sums",
        about="before gated linear attention: the sums of each chunk's decays",
        make=_gated_sums,
        needs=("wgmma",),
        options={},
        opcodes=("LDG", "STG", "SHFL"),
    ),
    Shipped(
        name="gated_linear_attention_decays",
        about="after gated linear attention backward: the gradient of each row's decay",
        make=_gated_decays,
        needs=("wgmma",),
        options={"dim": (64, 128)},
        opcodes=("LDG", "STG", "SHFL"),
    ),
    Shipped(
        name="linear_attention_transpose",
        about="before linear attention backward: transposed states",
        make=_linear_attention_transpose,
        needs=("wgmma",),
        options={},
        opcodes=("LDG", "STG"),
    ),
    Shipped(
        name="linear_attention_decay",
        about="after linear attention backward: the gradient of each head's decay",
        make=_linear_attention_decay,
        needs=("wgmma",),
        options={"dim": (64, 128)},
        opcodes=("LDG", "STG"),
    ),
    Shipped(
        name="based",
        about="linear attention with the second-order Taylor feature map (Based)",
        make=_based,
        needs=("wgmma",),
        options={"dim": (64, 128), "dtype": ("bf16", "f16")},
        opcodes=("HGMMA", "UTMALDG", "UTMASTG", "STSM"),
    ),
    Shipped(
        name="based_backward",
        about="gradients of Based's queries and keys, through the features of its state",
        make=_based_backward,
        needs=("wgmma",),
        options={"dim": (64, 128), "dtype": ("bf16", "f16"), "reverse": (False, True)},
        opcodes=("HGMMA", "UTMALDG", "STG"),
    ),
    Shipped(
        name="based_backward_values",
        about="Based from the last row to the first, for the gradient of its values",
        make=partial(_based, reverse=True),
        needs=("wgmma",),
        options={"dim": (64, 128), "dtype": ("bf16", "f16")},
        opcodes=("HGMMA", "UTMALDG", "UTMASTG", "STSM"),
    ),
    Shipped(
        name="based_backward_combine",
        about="after Based backward: the sums of two halves of a gradient",
        make=_based_backward_combine,
        needs=("wgmma",),
        options={"dtype": ("bf16", "f16")},
        opcodes=("LDG", "STG"),
    ),
)
