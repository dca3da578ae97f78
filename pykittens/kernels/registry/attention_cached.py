"""Attention on caches."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...architectures import SIMULATED
from ...call.arguments import spec
from ...types import bf16, f32, i32
from .. import attention_cached
from ..catalog import Array, Instance, Shipped
from ..decoding import cut

LENGTHS, PAGE = (0, 1, 290), 32
PROCESSORS = 2


def _cached(dim: int, pages: bool, n: int = 1, heads: int = 4, fixed: int = 0, **given: Any) -> Instance:
    """Three sequences, a key head that `heads` heads share; `given`: operands."""
    batch, rows, capacity = len(LENGTHS), heads * n, -(-max(LENGTHS) // PAGE) * PAGE
    how = cut(rows, dim, dim, 2, SIMULATED)
    cache = (batch * capacity // PAGE, 1, PAGE, dim) if pages else (batch, 1, capacity, dim)
    across = -(-rows // how.rows)
    places = batch * across * -(-capacity // (fixed * how.keys)) if fixed else 2 * PROCESSORS
    table = np.random.default_rng(0).permutation(cache[0]).reshape(batch, -1) if pages else None
    operands: dict[str, Any] = {
        "q": spec(bf16, (batch, 1, rows, dim)),
        "k": spec(bf16, cache),
        "v": spec(bf16, cache),
        "o": spec(bf16, (batch, 1, rows, dim)),
        "lengths": spec(i32, (batch,)),
        "scale": dim**-0.5,
        "parts": spec(f32, (places, *how.slices(dim))),
        "logs": spec(f32, (places, 2, how.rows)),
        "arrived": spec(i32, (batch * across,)),
        **({"page_table": spec(i32, table.shape)} if table is not None else {}),
        **given,
    }
    values = {"lengths": np.array(LENGTHS), "arrived": np.zeros(batch * across)}
    values |= {} if table is None else {"page_table": table}
    causal = "right" not in given
    statics = {"n": n, "page": PAGE if pages else 0, "fixed": fixed, "processors": PROCESSORS, "least": 1}
    statics |= {"causal": causal, **how._asdict()}

    def expected(q: Array, k: Array, v: Array, lengths: Array, scale: float, **rest: Any) -> dict[str, Array]:
        told = {name: rest.get(name) for name in ("left", "right", "softcap", "sinks")}
        table = rest.get("page_table")
        return {"o": attention_cached.reference(q, k, v, lengths, scale, n, table, causal=causal, **told)}

    return Instance(attention_cached.attend, operands, statics, expected=expected, values=values)


ROWS = (
    Shipped(
        name="attention_cached",
        about="attention of a query on a cache of keys and values, contiguous or in pages: what decoding does",
        make=_cached,
        options={"dim": (128, 256), "pages": (True, False)},
        opcodes=("HMMA", "LDSM", "LDGSTS"),
    ),
    Shipped(
        name="attention_cached_queries",
        about="the same of several queries, on caches that are cut at multiples of a tile's keys",
        make=lambda n: _cached(64, False, n, 8, fixed=1),
        options={"n": (8,)},
        opcodes=("HMMA", "LDSM", "LDGSTS"),
    ),
    Shipped(
        name="attention_cached_window",
        about="the same with a window, a cap of scores and sinks",
        make=lambda: _cached(64, True, 3, 5, left=200, right=-1, softcap=3.0, sinks=spec(f32, (5,))),
        options={},
        opcodes=("HMMA", "LDSM", "LDGSTS"),
    ),
)
