"""Causal convolution along time, and its gradients."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from ...call.arguments import spec
from ...types import DTYPES, f32, i32
from .. import causal_conv1d as ours
from .. import causal_conv1d_backward as back
from ..catalog import Array, Instance, Shipped

BEGIN = np.array([0, 1, 1, 90, 118, 130])  # of packed sequences: the second is empty
WIDTH, N, CHANNELS = 4, 130, 264  # a block's rows and channels, and more


def _specs(dtype: str, packed: bool) -> dict[str, Any]:
    """Two sequences of one length, or packed ones."""
    batch, sequences = (1, len(BEGIN) - 1) if packed else (2, 2)
    x, state = spec(DTYPES[dtype], (batch, N, CHANNELS)), spec(DTYPES[dtype], (sequences, WIDTH - 1, CHANNELS))
    bounds = spec(i32, BEGIN.shape) if packed else None
    return {"x": x, "taps": spec(f32, (WIDTH + 1, CHANNELS)), "state": state, "bounds": bounds}


def _forward(dtype: str, packed: bool) -> Instance:
    operands = _specs(dtype, packed)

    def expected(x: Array, taps: Array, state: Array, bounds: Array | None, **_: Any) -> dict[str, Array]:
        found = ours.reference(x, taps[:-1].T, taps[-1], activation="silu", state=state, bounds=bounds)
        return {"y": found[0]}

    operands["y"] = operands["x"]
    return Instance(ours.convolve, operands, {"activation": "silu"}, ("y",), expected, {"bounds": BEGIN})


def _keep(dtype: str, packed: bool) -> Instance:
    operands = _specs(dtype, packed)
    del operands["taps"]

    def expected(x: Array, state: Array, bounds: Array | None, **_: Any) -> dict[str, Array]:
        return {"after": ours.reference(x, np.zeros((CHANNELS, WIDTH)), state=state, bounds=bounds)[1]}

    operands["after"] = operands["state"]
    return Instance(ours.keep, operands, {}, ("after",), expected, {"bounds": BEGIN})


def _backward(dtype: str, packed: bool, state: bool) -> Instance:
    given = _specs(dtype, packed)
    block_rows = ours.WARPS * back.ROWS
    tiles = -(-N // block_rows)  # of a batch: a large block has the first two of all, two others the rest in turn
    blocks, shares = 3, {"large": 1, "laps": 2, "few": 2}
    parts = spec(f32, (blocks, WIDTH + 1, CHANNELS))
    weights = {"weight": spec(DTYPES[dtype], (CHANNELS, WIDTH)), "bias": spec(DTYPES[dtype], (CHANNELS,))}
    operands = {"x": given["x"], "dy": given["x"], **weights, "state": given["state"]}
    operands |= {"dafter": given["state"], "bounds": given["bounds"]}
    operands |= {"dstate": given["state"]} if state else {"dx": given["x"], "parts": parts, **shares}
    outputs = ("dstate",) if state else ("dx", "parts")

    def expected(
        x: Array,
        dy: Array,
        weight: Array,
        bias: Array,
        state: Array,
        dafter: Array,
        bounds: Array | None,
        **others: Any,
    ) -> dict[str, Array]:
        packed = [] if bounds is None else [(0, slice(*pair)) for pair in pairwise(bounds)]
        made = {"dx": np.zeros(x.shape), "dstate": np.zeros(state.shape), "parts": np.zeros(parts.shape)}
        for i, (batch, rows) in enumerate(packed or [(i, slice(0, N)) for i in range(len(x))]):
            own = {"activation": "silu", "state": state[i : i + 1], "dafter": dafter[i : i + 1]}

            def of(
                slope: Array, batch: int = batch, rows: slice = rows, own: dict[str, Any] = own
            ) -> tuple[Array, ...]:
                return back.reference(slope[None], x[batch, rows][None], weight, bias, **own)

            slope = dy[batch, rows]
            (made["dx"][batch, rows],), _, _, (made["dstate"][i],) = of(slope)
            for block in range(blocks):  # of the rows that a block has: of others dy is 0
                tile = batch * tiles + np.arange(N)[rows] // block_rows
                owner = np.where(tile < 2, 0, 1 + tile % 2)
                _, dweight, dbias, _ = of(np.where((owner == block)[:, None], slope, 0))
                made["parts"][block] += np.concatenate([dweight.T, dbias[None]])
        return {name: made[name] for name in outputs}

    statics: dict[str, Any] = {"activation": "silu"}
    kernel = back.differentiate_state if state else back.differentiate
    return Instance(kernel, operands, statics, outputs, expected, {"bounds": BEGIN})


def _turn(dtype: str) -> Instance:
    weight, bias, taps = spec(DTYPES[dtype], (70, 3)), spec(DTYPES[dtype], (70,)), spec(f32, (4, 70))

    def expected(weight: Array, bias: Array, **_: Any) -> dict[str, Array]:
        return {"taps": np.concatenate([weight.T, bias[None]]).astype(float)}

    return Instance(ours.turn, {"weight": weight, "bias": bias, "taps": taps}, {}, ("taps",), expected)


def _gather(dtype: str) -> Instance:
    blocks, channels = 150, 70  # more than one lap
    weight, bias = spec(DTYPES[dtype], (channels, 3)), spec(DTYPES[dtype], (channels,))
    parts = spec(f32, (4, blocks, channels))

    def expected(parts: Array, **_: Any) -> dict[str, Array]:
        sums = parts.astype(float).sum(1)
        return {"weight": sums[:3].T, "bias": sums[3]}

    operands = {"parts": parts, "weight": weight, "bias": bias}
    return Instance(back.gather, operands, {}, ("weight", "bias"), expected)


_OPTIONS = {"dtype": ("bf16", "f16", "f32"), "packed": (False, True)}
ROWS = (
    Shipped(
        name="causal_conv1d",
        about="causal convolution along time, each channel by itself",
        make=_forward,
        options=_OPTIONS,
        opcodes=("LDG", "STG", "FFMA"),
    ),
    Shipped(
        name="causal_conv1d_state",
        about="the last rows of each sequence, for the convolution of what follows",
        make=_keep,
        options=_OPTIONS,
        opcodes=("LDG", "STG"),
    ),
    Shipped(
        name="causal_conv1d_turn",
        about="before the causal convolution: its weights as rows of channels",
        make=_turn,
        options={"dtype": ("bf16", "f32")},
        opcodes=("LDG", "STG"),
    ),
    Shipped(
        name="causal_conv1d_backward",
        about="gradients of the causal convolution along time",
        make=partial(_backward, state=False),
        options=_OPTIONS,
        opcodes=("LDG", "STG", "FFMA"),
        spilled=24,  # packed, of 16 bits, on sm_80
    ),
    Shipped(
        name="causal_conv1d_backward_state",
        about="the gradient of the rows before a causal convolution",
        make=partial(_backward, state=True),
        options=_OPTIONS,
        opcodes=("LDG", "STG", "FFMA"),
    ),
    Shipped(
        name="causal_conv1d_backward_sums",
        about="after causal convolution backward: the gradients of weights and bias, summed over all blocks",
        make=_gather,
        options={"dtype": ("bf16", "f32")},
        opcodes=("LDG", "STG"),
    ),
)
