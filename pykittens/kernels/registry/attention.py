"""Flash attention, forward."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ...call.arguments import spec
from ...call.kernel import Kernel
from ...types import DTYPES, f32, i32
from .. import attention_ada, attention_ampere, attention_hopper, reference
from ..attention import configuration
from ..catalog import Array, Instance, Shipped


def _attention(
    kernel: Kernel, n: int, m: int, dim: int, dtype: str, more: Mapping[str, Any] | None = None, **statics: Any
) -> Instance:
    """Two heads; operands besides q, k, v, o and scale are `more`."""
    q, k = spec(DTYPES[dtype], (1, 2, n, dim)), spec(DTYPES[dtype], (1, 2, m, dim))
    scale = dim**-0.5

    def expected(q: Array, k: Array, v: Array, **given: Any) -> dict[str, Array]:
        told: dict[str, Any] = {name: given.get(name) for name in ("left", "right", "softcap", "sinks")}
        return {"o": reference.attention(q, k, v, scale=scale, causal=statics["causal"], **told)}

    return Instance(
        kernel, {"q": q, "k": k, "v": k, "o": q, **(more or {}), "scale": scale}, statics, expected=expected
    )


def _attention_ada(dim: int, dtype: str, causal: bool) -> Instance:
    keys = 256 if dim == 64 else 128  # of a lap
    return _attention(attention_ada.attend, 40, 2 * keys + 40, dim, dtype, causal=causal)


def _attention_ampere(dim: int, dtype: str, causal: bool, laps: int = 2) -> Instance:
    keys = 4096 // dim  # of a lap
    return _attention(attention_ampere.attend, 128 + 40, laps * keys + 40, dim, dtype, causal=causal)


def _attention_hopper(dim: int, dtype: str, causal: bool, long: bool, window: bool = False) -> Instance:
    settings = {"keys": 128, "consumers": 2} | configuration(dim, causal, 16384 if long else 4096, window)
    rows = 3 * 64 * settings["consumers"] - 40  # three tiles of each of two heads, and two blocks to do them
    return _attention(
        attention_hopper.attend,
        rows,
        (6 if window else 2) * settings["keys"] + 40,
        dim,
        dtype,
        {"lse": spec(f32, (1, 1, 1))},
        causal=causal,
        sms=2,
        **settings,
    )


def windowed(instance: Instance, left: int, right: int, **more: Any) -> Instance:
    """The same with a window, and other operands."""
    operands = {**instance.operands, "left": left, "right": right, **more}
    return replace(instance, operands=operands, statics={**instance.statics, "causal": False})


def packed(instance: Instance, queries: tuple[int, ...], keys: tuple[int, ...]) -> Instance:
    """The same with sequences of these lengths that lie one after another."""
    lengths = {"q_offsets": queries, "k_offsets": keys}
    values = {name: np.cumsum([0, *x]).astype(np.int32) for name, x in lengths.items()}
    at = [(int(a), int(b)) for a, b in zip(*values.values(), strict=True)]

    def expected(q: Array, k: Array, v: Array, **rest: Any) -> dict[str, Array]:
        assert instance.expected is not None
        parts = [
            instance.expected(q=q[:, :, a:c], k=k[:, :, b:d], v=v[:, :, b:d], **rest)["o"]
            for (a, b), (c, d) in itertools.pairwise(at)
            if c > a
        ]
        return {"o": np.concatenate(parts, 2)}

    operands: dict[str, Any] = dict(instance.operands)
    for name, rows in (("q", queries), ("o", queries), ("k", keys), ("v", keys)):
        x = operands[name]
        operands[name] = replace(x, shape=(1, *x.shape[1:2], sum(rows), x.shape[3]))
    operands |= {name: spec(i32, x.shape) for name, x in values.items()}
    return replace(instance, operands=operands, values=values, expected=expected)


LENGTHS = (150, 0, 200, 30), (200, 40, 300, 30)
CAPPED: dict[str, Any] = {"softcap": 3.0, "sinks": spec(f32, (2,))}
ROWS = (
    Shipped(
        name="attention_ada",
        about="flash attention forward with mma.sync: the RTX 4090 kernel of the ThunderKittens post",
        make=_attention_ada,
        options={"dim": (64, 128), "dtype": ("bf16", "f16"), "causal": (False, True)},
        opcodes=("HMMA", "LDSM"),
        most_lines=60,
    ),
    Shipped(
        name="attention_ampere",
        about="flash attention forward with mma.sync, ldmatrix and cp.async: FlashAttention-2",
        make=_attention_ampere,
        options={"dim": (64, 128), "dtype": ("bf16", "f16"), "causal": (False, True)},
        opcodes=("HMMA", "LDSM", "LDGSTS"),
    ),
    Shipped(
        name="attention_ampere_packed",
        about="the same of sequences that lie one after another",
        make=lambda causal: packed(_attention_ampere(64, "bf16", causal), *LENGTHS),
        options={"causal": (False, True)},
        opcodes=("HMMA", "LDSM", "LDGSTS"),
        spilled=16,
    ),
    Shipped(
        name="attention_ampere_window",
        about="the same with a window, a cap of scores and sinks",
        make=lambda dim: windowed(_attention_ampere(dim, "bf16", False, 8), 260, 60, **CAPPED),
        options={"dim": (64, 128)},
        opcodes=("HMMA", "LDSM", "LDGSTS"),
        spilled=16,
    ),
    Shipped(
        name="attention_hopper",
        about="flash attention forward with TMA, asynchronous tensor cores and warp roles: the H100 kernel of the "
        "ThunderKittens post",
        make=_attention_hopper,
        needs=("wgmma",),
        options={"dim": (64, 128, 256), "dtype": ("bf16", "f16"), "causal": (False, True), "long": (False, True)},
        opcodes=("HGMMA", "UTMALDG", "UTMASTG", "USETMAXREG"),
        most_lines=230,
    ),
    Shipped(
        name="attention_hopper_packed",
        about="the same of sequences that lie one after another",
        make=lambda dim, causal: packed(_attention_hopper(dim, "bf16", causal, False), *LENGTHS),
        needs=("wgmma",),
        options={"dim": (64, 128, 256), "causal": (False, True)},
        opcodes=("HGMMA", "UTMALDG", "UTMASTG", "USETMAXREG"),
        most_lines=230,
    ),
    Shipped(
        name="attention_hopper_window",
        about="the same with a window, a cap of scores and sinks",
        make=lambda dim: windowed(_attention_hopper(dim, "bf16", False, False, True), 360, 130, **CAPPED),
        needs=("wgmma",),
        options={"dim": (64, 128, 256)},
        opcodes=("HGMMA", "UTMALDG", "UTMASTG", "USETMAXREG"),
        most_lines=230,
    ),
)
