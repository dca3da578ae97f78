"""Attention on caches."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...architectures import ARCHITECTURES
from ...call.arguments import spec
from ...trace import shares
from ...types import bf16, e4m3, f32, i32, i64
from .. import attention_cached, cache_append, rotary
from ..catalog import Array, Instance, Shipped
from ..decoding import cut
from ..widths import widths

LENGTHS, PAGE = (0, 1, 290), 32
SCALES = ("k_scale", "v_scale")
ONE_SCALE: dict[str, Any] = dict.fromkeys(SCALES, spec(f32, (1,)))


def _cached(
    dim: int,
    pages: bool,
    n: int = 1,
    heads: int = 4,
    fixed: int = 0,
    arch: str = "sm_90a",
    held: Any = bf16,
    **given: Any,
) -> Instance:
    """Three sequences, a key head that `heads` heads share; `given`: operands. One row is a warp's; of blocks that wait
    for others there must be some, of blocks with tiles one after another, too."""
    processors = 4 if heads * n == 1 or dim == 128 and pages else 2
    batch, rows, capacity = len(LENGTHS), heads * n, -(-max(LENGTHS) // PAGE) * PAGE
    how = cut(rows, dim, dim, held.size, ARCHITECTURES[arch], PAGE if pages else 0)
    cache = (batch * capacity // PAGE, 1, PAGE, dim) if pages else (batch, 1, capacity, dim)
    across = -(-rows // how.rows)
    places = batch * across * -(-capacity // (fixed * how.keys)) if fixed else 2 * processors
    table = np.random.default_rng(0).permutation(cache[0]).reshape(batch, -1) if pages else None
    operands: dict[str, Any] = {
        "q": spec(bf16, (batch, 1, rows, dim)),
        "k": spec(held, cache),
        "v": spec(held, cache),
        "o": spec(bf16, (batch, 1, rows, dim)),
        "lengths": spec(i32, (batch,)),
        "scale": dim**-0.5,
        "parts": spec(f32, (places, min(rows, how.rows), widths(dim, dim)[1])),
        "logs": spec(f32, (places, 2, min(rows, how.rows))),
        "arrived": spec(i64, (batch * across if fixed else processors,)),
        **({"page_table": spec(i32, table.shape)} if table is not None else {}),
        **given,
    }
    values = {"lengths": np.array(LENGTHS)}
    values |= {"arrived": np.full(batch * across, shares.OF_ITEM.nothing)} if fixed else {}
    values |= {} if table is None else {"page_table": table}
    causal = "right" not in given
    statics = {
        "n": n,
        "page": PAGE if pages else 0,
        "fixed": fixed,
        "dependent": bool(fixed),
        "processors": processors,
        "across": across,
    }
    statics |= {"causal": causal, **how._asdict()}

    def expected(q: Array, k: Array, v: Array, lengths: Array, scale: float, **rest: Any) -> dict[str, Array]:
        told = {name: rest.get(name) for name in ("left", "right", "softcap", "sinks")}
        told |= {name: rest[name] for name in ("k_scale", "v_scale") if name in rest}
        table = rest.get("page_table")
        return {"o": attention_cached.reference(q, k, v, lengths, scale, n, table, causal=causal, **told)}

    return Instance(attention_cached.attend, operands, statics, expected=expected, values=values)


def _clear(dependent: bool) -> Instance:
    def expected(arrived: Array, **_: Any) -> dict[str, Array]:
        return {"arrived": np.full(arrived.shape, shares.OF_ITEM.nothing)}

    operands = {"arrived": spec(i64, (300,))}
    return Instance(attention_cached.clear, operands, {"dependent": dependent}, ("arrived",), expected)


def _append(pages: bool, turned: bool, held: Any = bf16) -> Instance:
    """Two rows for each of three sequences; half of the features turn. held: what caches hold, with scales of 1 / 2 if
    that is 8-bit floats."""
    batch, n, dim, capacity, positions = 3, 2, 64, 96, np.array((2, 33, 96))
    cache = spec(held, (batch * capacity // PAGE, 2, PAGE, dim) if pages else (batch, 2, capacity, dim))
    table = np.random.default_rng(0).permutation(cache.shape[0]).reshape(batch, -1)
    rows, angles = spec(bf16, (batch, 2, n, dim)), spec(f32, (capacity, dim // 4))
    operands: dict[str, Any] = {
        "k": rows,
        "v": rows,
        "k_cache": cache,
        "v_cache": cache,
        "lengths": spec(i32, (batch,)),
    }
    operands["page_table"] = spec(i32, table.shape) if pages else None
    if turned:
        operands |= {"cos": angles, "sin": angles, "q": rows, "turned": rows}
    if held is e4m3:
        operands |= dict.fromkeys(SCALES, spec(f32, (2,)))
    config = rotary.plan(dim, 2, 16, dim // 2, False) if turned else None
    statics = {"config": config, "plain": (rotary.layout_of(dim, 8),) * 2}
    names = ("k_cache", "v_cache", *(("turned",) if turned else ()))

    def expected(k: Array, v: Array, lengths: Array, **given: Any) -> dict[str, Array]:
        tables = given.get("cos"), given.get("sin")
        found = {"turned": cache_append.reference(given["q"], lengths, *tables)} if turned else {}
        scales = given.get("k_scale", 1.0), given.get("v_scale", 1.0)
        made = (k, *tables, scales[0]), (v, None, None, scales[1])
        for name, (x, *how) in zip(("k_cache", "v_cache"), made, strict=True):
            x = cache_append.reference(x, lengths, *how).astype(held.numpy).astype(np.float64)
            whole = np.zeros((batch, 2, capacity, dim))
            for i, length in enumerate(lengths):
                whole[i, :, length - n : length] = x[i]
            if pages:
                found[name] = np.empty(cache.shape)
                found[name][table] = whole.reshape(batch, 2, -1, PAGE, dim).swapaxes(1, 2)
            else:
                found[name] = whole
        return found

    values: dict[str, Array] = {"lengths": positions} | ({"page_table": table} if pages else {})
    values |= dict.fromkeys(SCALES, np.full(2, 0.5)) if held is e4m3 else {}
    return Instance(cache_append.append, operands, statics, names, expected, values)


ROWS = (
    Shipped(
        name="attention_cached",
        about="attention of a query on a cache of keys and values, contiguous or in pages: what decoding does",
        make=lambda dim, pages: _cached(dim, pages, heads=4 if pages else 1),
        options={"dim": (128, 256), "pages": (True, False)},
        opcodes=("HMMA", "LDSM", "LDGSTS"),
        spilled=8,  # at d 256 on sm_100, where parts are added up
    ),
    Shipped(
        name="attention_cached_queries",
        about="the same of several queries, cut at multiples of a tile's keys, as it is before Hopper",
        make=lambda n: _cached(64, False, n, n, fixed=1, arch="sm_86"),
        options={"n": (8, 1)},
        opcodes=("HMMA", "LDSM", "LDGSTS"),
    ),
    Shipped(
        name="attention_cached_window",
        about="the same with a window, a cap of scores and sinks",
        make=lambda heads: _cached(
            64, True, 3 if heads > 1 else 1, heads, left=150, right=-1, softcap=3.0, sinks=spec(f32, (heads,))
        ),
        options={"heads": (5, 1)},
        opcodes=("HMMA", "LDSM", "LDGSTS"),
    ),
    Shipped(
        name="attention_cached_8bit",
        about="the same on caches of 8-bit floats with scales, a warp for the rows of a tile or several",
        make=lambda n: _cached(64, True, n, n, arch="sm_89", held=e4m3, **ONE_SCALE),
        options={"n": (1, 8)},
        opcodes=("HMMA", "LDSM", "LDGSTS"),
        needs=("fp8 conversions",),
    ),
    Shipped(
        name="attention_cached_clear",
        about="counters of the parts of attention on caches that are cut at fixed keys",
        make=_clear,
        options={"dependent": (True, False)},
        opcodes=("STG",),
    ),
    Shipped(
        name="cache_append",
        about="new keys and values at the end of caches, turned by the angles of their positions",
        make=_append,
        options={"pages": (False, True), "turned": (True, False)},
        opcodes=("LDG", "STG"),
    ),
    Shipped(
        name="cache_append_8bit",
        about="the same into caches of 8-bit floats, over scales",
        make=lambda: _append(True, True, e4m3),
        options={},
        opcodes=("LDG", "STG"),
        needs=("fp8 conversions",),
    ),
)
