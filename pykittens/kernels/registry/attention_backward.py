"""Flash attention, backward: before, between and after its products."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np

from ...call.arguments import spec
from ...ops.register_order import order
from ...types import DTYPES, RegisterTile, f32, i32
from .. import (
    attention_backward,
    attention_backward_ampere,
    attention_backward_divided,
    attention_backward_hopper,
    attention_backward_wide,
    reference,
)
from ..catalog import Array, Instance, Shipped
from .attention import LENGTHS, owners, windowed


def _attention_backward(dim: int, dtype: str, causal: bool, laps: int = 0, softcap: float | None = None) -> Instance:
    """Two heads that share keys; tiles of queries go round the rings, and the second tile of keys is short.

    The kernel is told a log-sum-exp and a delta for each row, which here are any numbers.
    """
    settings = attention_backward.configuration(dim, softcap is not None)
    scale, keys = dim**-0.5, attention_backward_hopper.keys_of(dim)
    rows = settings.get("rows", 64)
    laps = laps or (2 if rows == 128 else 3)  # so that each tile of the padded rows has rows
    n, m = laps * rows + 40, 2 * keys - 24
    padded, parts = attention_backward.scratch(n, dim)
    q, k, row = spec(DTYPES[dtype], (1, 2, n, dim)), spec(DTYPES[dtype], (1, 1, m, dim)), spec(f32, (1, 2, padded))
    sums = spec(f32, (1, 2, *parts))

    def expected(
        q: Array,
        k: Array,
        v: Array,
        do: Array,
        lse: Array,
        delta: Array,
        left: int | None = None,
        right: int | None = None,
        softcap: float | None = None,
        **_: Any,
    ) -> dict[str, Array]:
        k, v = k.astype(float), v.astype(float)
        q, do = (np.pad(x.astype(float), ((0, 0), (0, 0), (0, padded - n), (0, 0))) for x in (q, do))
        score, steep = q @ k.swapaxes(2, 3) * scale, np.ones(())
        if softcap is not None:
            score = softcap * np.tanh(score / softcap)
            steep = 1 - (score / softcap) ** 2
        weight = np.exp2(score * np.log2(np.e) - lse[..., None].astype(float))
        weight[..., reference.hidden(np.arange(padded)[:, None] + (m - n), m, causal, left, right)] = 0
        slope = weight * (do @ v.swapaxes(2, 3) - delta[..., None].astype(float)) * steep
        dk, dv = ((x.swapaxes(2, 3) @ y).sum(1, keepdims=True) for x, y in ((slope, q), (weight, do)))
        tiles = (slope @ k).reshape(1, 2, padded // 64, 64, dim // 64, 64).swapaxes(3, 4).reshape(1, 2, -1, 4096)
        return {"dq": tiles[..., order(RegisterTile(f32, 64, 64, "row", 4), 4)], "dk": dk * scale, "dv": dv}

    return Instance(
        attention_backward_hopper.differentiate,
        {"q": q, "k": k, "v": k, "do": q, "lse": row, "delta": row, "dq": sums, "dk": k, "dv": k, "scale": scale}
        | ({} if softcap is None else {"softcap": softcap}),
        {"causal": causal, **settings},
        ("dq", "dk", "dv"),
        expected,
    )


AMPLE, SCARCE = attention_backward_ampere.AMPLE, 99 * 1024  # shared memory of A100 and H100, of Ada


def _attention_backward_ampere(dim: int, dtype: str, causal: bool, shared: int = AMPLE) -> Instance | None:
    """Two tiles of keys, of which the second is short; else as `_attention_backward`."""
    if dtype != "bf16" and (dim != 64 or shared != AMPLE):
        return None
    ours, settings = attention_backward_ampere, attention_backward_ampere.configuration(dim, shared)
    whole = _attention_backward(dim, dtype, causal)
    rows, warps, padded = settings["rows"], settings["warps"], whole.operands["lse"].shape[2]
    pieces = ours.parts(padded, dim, rows, warps)
    sums = spec(f32, (1, 2, *pieces))
    height, width = ours.HEIGHT, pieces[1] // ours.HEIGHT
    inverse, forward = (
        order(RegisterTile(f32, 64, 64, "row", 4), 4).argsort(),
        order(RegisterTile(f32, height, width), 4),
    )

    def expected(**arrays: Array) -> dict[str, Array]:
        assert whole.expected is not None
        found = whole.expected(**arrays)
        tiles = found["dq"][..., inverse].reshape(1, 2, padded // 64, dim // 64, 64, 64).swapaxes(3, 4)
        tiles = tiles.reshape(1, 2, padded // height, height, dim // width, width).swapaxes(3, 4)
        tiles = tiles.reshape(1, 2, -1, height * width)[..., forward]
        last = -(-arrays["q"].shape[2] // rows) * warps  # tiles that are all padding are not visited
        return {**found, "dq": np.where(np.arange(tiles.shape[2])[:, None] < last, tiles, 0)}

    statics = {"causal": causal, **settings}
    return Instance(ours.differentiate, {**whole.operands, "dq": sums}, statics, whole.outputs, expected)


def _attention_backward_ampere_divided(dim: int, causal: bool) -> Instance:
    """By five blocks for each tile of keys, which divide the tiles of queries of both heads: where these are four, one
    has none."""
    instance, many = _attention_backward_ampere(dim, "bf16", causal), 5
    assert instance is not None
    operands = dict(instance.operands)
    _, heads, n, d = operands["q"].shape
    m, rows, keys = operands["k"].shape[2], instance.statics["rows"], attention_backward_ampere.KEYS
    operands["sums"] = spec(f32, (2 * many, 1, m, d))

    def expected(**given: Any) -> dict[str, Array]:
        assert instance.expected is not None
        made = np.zeros((2, many, m, d))
        for tile in range(0, m, keys):
            first = max(tile - (m - n), 0) // rows if causal else 0
            seen = [(h, j) for h in range(heads) for j in range(first, -(-n // rows))]
            for part in range(many):
                for h, j in seen[part * len(seen) // many : (part + 1) * len(seen) // many]:
                    at = slice(j * rows, min((j + 1) * rows, n))
                    hidden = np.zeros_like(given["do"][:, h : h + 1, :n])
                    hidden[:, :, at] = 1  # the other rows' weights do not count
                    one = {x: given[x][:, h : h + 1, :n] for x in ("q", "do", "delta")} | {x: given[x] for x in "kv"}
                    one["lse"] = np.where(hidden[..., 0] == 1, given["lse"][:, h : h + 1, :n], np.inf)
                    dk, dv = _key_gradients(**one, causal=causal, scale=given["scale"])
                    its = slice(tile, tile + keys)
                    made[0, part, its] += dk[0, 0, its] / given["scale"]
                    made[1, part, its] += dv[0, 0, its]
        return {"dq": instance.expected(**given)["dq"], "sums": made.reshape(2 * many, 1, m, d)}

    return replace(instance, operands=operands, expected=expected, outputs=("dq", "sums"))


def _attention_backward_ampere_merge(dim: int, dtype: str) -> Instance:
    batch, heads, m, many, half = 2, 2, 70, 3, DTYPES[dtype]

    def expected(sums: Array, scale: float, **_: Any) -> dict[str, Array]:
        dk, dv = sums.astype(float).reshape(2, many, batch, heads, m, dim).sum(1)
        return {"dk": dk[..., : dim - 8] * scale, "dv": dv[..., : dim - 8]}

    out = spec(half, (batch, heads, m, dim - 8))
    operands = {"sums": spec(f32, (2 * many * batch, heads, m, dim)), "dk": out, "dv": out, "scale": 0.5}
    return Instance(attention_backward_ampere.merge, operands, {}, ("dk", "dv"), expected)


def _attention_backward_ampere_window() -> Instance:
    instance = _attention_backward_ampere(64, "bf16", False)
    assert instance is not None
    return windowed(instance, 210, 90, softcap=3.0)


def _attention_backward_ampere_finish(dim: int, dtype: str, shared: int) -> Instance:
    ours, (padded, _) = attention_backward_ampere, attention_backward.scratch(70, dim)
    settings = ours.configuration(dim, shared)
    rows, warps = settings["rows"], settings["warps"]
    pieces, row = ours.parts(padded, dim, rows, warps), spec(f32, (1, 2, padded))
    out, height, width = spec(DTYPES[dtype], (1, 2, 70, dim)), ours.HEIGHT, pieces[1] // ours.HEIGHT
    inverse = order(RegisterTile(f32, height, width), 4).argsort()

    def expected(dq: Array, **_: Any) -> dict[str, Array]:
        tiles = dq[..., inverse].reshape(1, 2, padded // height, dim // width, height, width).swapaxes(3, 4)
        return {"out": tiles.reshape(1, 2, padded, dim)[:, :, :70] * 0.5}

    operands = {"dq": spec(f32, (1, 2, *pieces)), "scaled": row, "out": out, "scale": 0.5}
    return Instance(ours.finish, operands, {"width": dim, "rows": rows, "warps": warps}, ("out",), expected)


def _attention_backward_prepare(dim: int, dtype: str) -> Instance:
    x, lse = spec(DTYPES[dtype], (1, 2, 70, dim)), spec(f32, (1, 2, 70))
    padded, parts = attention_backward.scratch(70, dim)
    row = spec(f32, (1, 2, padded))
    operands = {"o": x, "do": x, "lse": lse, "dlse": lse, "scaled": row, "delta": row, "dq": spec(f32, (1, 2, *parts))}

    def expected(o: Array, do: Array, lse: Array, dlse: Array, dq: Array, **_: Any) -> dict[str, Array]:
        delta, scaled = np.zeros((1, 2, padded)), np.full((1, 2, padded), np.inf)
        delta[..., :70] = (o.astype(float) * do.astype(float)).sum(3) - dlse
        scaled[..., :70] = lse * np.log2(np.e)
        return {"scaled": scaled, "delta": delta, "dq": np.zeros(dq.shape)}

    return Instance(attention_backward.prepare, operands, {}, ("scaled", "delta", "dq"), expected)


def _attention_backward_finish(dim: int, dtype: str) -> Instance:
    padded, parts = attention_backward.scratch(70, dim)
    sums, row, out = spec(f32, (1, 2, *parts)), spec(f32, (1, 2, padded)), spec(DTYPES[dtype], (1, 2, 70, dim))

    def expected(dq: Array, **_: Any) -> dict[str, Array]:
        tiles = dq[..., np.argsort(order(RegisterTile(f32, 64, 64, "row", 4), 4))].reshape(1, 2, -1, dim // 64, 64, 64)
        return {"out": tiles.swapaxes(3, 4).reshape(1, 2, padded, dim)[:, :, :70] * 0.5}

    return Instance(
        attention_backward.finish, {"dq": sums, "scaled": row, "out": out, "scale": 0.5}, {}, ("out",), expected
    )


def _attention_backward_sinks() -> Instance:
    row, sinks = spec(f32, (2, 2, 2176)), spec(f32, (2,))

    def expected(scaled: Array, delta: Array, sinks: Array, **_: Any) -> dict[str, Array]:
        weight = np.exp(np.minimum(sinks[:, None].astype(float) - scaled.astype(float) * np.log(2), 0))
        return {"dsinks": -(weight * delta).sum((0, 2))}

    operands = {"scaled": row, "delta": row, "sinks": sinks, "dsinks": sinks}
    return Instance(attention_backward.differentiate_sinks, operands, {}, ("dsinks",), expected)


def _attention_backward_merge(dim: int, dtype: str) -> Instance:
    """Two parts of the heads and three of the queries, and rows that end within a tile."""
    out, shape = spec(DTYPES[dtype], (1, 2, 70, dim)), attention_backward_divided.parts_of(1, 2, 70, dim, 2, 3)
    inverse = order(RegisterTile(f32, 64, min(dim, 128), "row", 4), 4).argsort()

    def expected(sums: Array, scale: float, **_: Any) -> dict[str, Array]:
        total = sums.astype(float).reshape(2, 2, 3, 2, -1, shape[3]).sum((1, 2))[..., inverse]
        rows = total.reshape(2, 1, 2, -1, max(dim // 128, 1), 64, min(dim, 128)).swapaxes(4, 5)
        dk, dv = rows.reshape(2, 1, 2, -1, dim)[..., :70, :]
        return {"dk": dk * scale, "dv": dv}

    operands = {"sums": spec(f32, shape), "dk": out, "dv": out, "scale": 0.5}
    return Instance(attention_backward_divided.merge, operands, {"width": dim}, ("dk", "dv"), expected)


def _divided(dim: int, causal: bool) -> Instance:
    """With additions to dq in one order, by a block for each head and tile of keys."""
    instance = _attention_backward(dim, "bf16", causal, laps=1)
    operands = dict(instance.operands)
    if dim == 256:
        instance = replace(instance, kernel=attention_backward_wide.differentiate, statics={"causal": causal})
    batch, heads, *parts = operands["dq"].shape
    operands["turns"] = spec(i32, (batch, heads, parts[0]))
    operands["together"] = 2
    values = {"turns": np.zeros((batch, heads, parts[0]))}
    shared, m = operands["k"].shape[1:3]
    shape = attention_backward_divided.parts_of(batch, shared, m, dim, heads, 1)
    operands["sums"] = spec(f32, shape)

    def expected(**given: Any) -> dict[str, Array]:
        assert instance.expected is not None
        found = {"dq": instance.expected(**given)["dq"]}
        parts, cols = [], min(dim, 128)
        for h in range(heads):
            one = {x: given[x][:, h : h + 1, : given["q"].shape[2]] for x in ("q", "do", "lse", "delta")}
            one |= {x: given[x] for x in "kv"}
            parts.append(_key_gradients(**one, causal=causal, scale=given["scale"]))
        dk, dv = (np.concatenate(x) for x in zip(*parts, strict=True))
        tiles = np.zeros((2 * heads, 1, shape[2] * 64 * cols // dim, dim))
        tiles[:, :, :m] = np.concatenate((dk / given["scale"], dv))
        tiles = tiles.reshape(2 * heads, 1, -1, 64, dim // cols, cols).swapaxes(3, 4).reshape(*shape)
        return found | {"sums": tiles[..., order(RegisterTile(f32, 64, cols, "row", 4), 4)]}

    return replace(instance, operands=operands, values=values, expected=expected, outputs=("dq", "sums"))


def _packed(instance: Instance | None, queries: tuple[int, ...], keys: tuple[int, ...]) -> Instance:
    """The same with sequences of these lengths one after another, whose rows are padded to tiles in lse, delta and dq:
    of its results, dk and dv.
    """
    assert instance is not None
    values = {name: np.cumsum([0, *x]) for name, x in (("q_offsets", queries), ("k_offsets", keys))}
    height = attention_backward_ampere.KEYS
    if instance.kernel is attention_backward_hopper.differentiate:
        height = attention_backward_hopper.keys_of(instance.operands["k"].shape[3])
    values["owners"] = owners(keys, height)
    padded = (sum(queries) // 128 + len(queries)) * 128
    operands: dict[str, Any] = dict(instance.operands)
    parts = operands["dq"].shape[2] * padded // operands["lse"].shape[2]
    for name, rows in (("q", queries), ("do", queries), ("k", keys), ("v", keys), ("dk", keys), ("dv", keys)):
        operands[name] = replace(operands[name], shape=(1, operands[name].shape[1], sum(rows), operands[name].shape[3]))
    for name in ("lse", "delta"):
        operands[name] = spec(f32, (1, 2, padded))
    operands["dq"] = replace(operands["dq"], shape=(1, 2, parts, operands["dq"].shape[3]))
    operands |= {name: spec(i32, x.shape) for name, x in values.items()}
    if instance.kernel is attention_backward_hopper.differentiate:
        operands["together"] = 2

    def expected(**given: Any) -> dict[str, Array]:
        dk, dv = np.zeros(given["k"].shape), np.zeros(given["v"].shape)
        for i, n in enumerate(queries):
            start, first = int(values["q_offsets"][i]), (int(values["q_offsets"][i]) // 128 + i) * 128
            a, b = slice(start, start + n), slice(*values["k_offsets"][i : i + 2])
            part = {name: given[name][:, :, a] for name in ("q", "do")} | {x: given[x][:, :, b] for x in "kv"}
            part |= {x: given[x][..., first : first + n] for x in ("lse", "delta")}
            dk[:, :, b], dv[:, :, b] = _key_gradients(**part, causal=instance.statics["causal"], scale=given["scale"])
        return {"dk": dk, "dv": dv}

    return replace(instance, operands=operands, values=values, expected=expected, outputs=("dk", "dv"))


def _first(dim: int, causal: bool, packed: bool) -> Instance:
    """Who comes first to a tile of dq stores."""
    instance = _attention_backward(dim, "bf16", causal)
    if packed:
        instance = _packed(instance, *LENGTHS)
    shape = instance.operands["dq"].shape[:3]
    values = {**instance.values, "claims": np.zeros(shape)}
    return replace(instance, operands={**instance.operands, "claims": spec(i32, shape)}, values=values)


def _packed_divided(dim: int, causal: bool) -> Instance:
    """The same, by a block for each head and tile of keys."""
    instance = _packed(_attention_backward(dim, "bf16", causal), *LENGTHS)
    queries, keys = (instance.values[name] for name in ("q_offsets", "k_offsets"))
    operands, heads, height = dict(instance.operands), 2, attention_backward_hopper.keys_of(dim)
    length = len(instance.values["owners"]) * height
    shape, cols = attention_backward_divided.parts_of(1, 1, length, dim, heads, 1), min(dim, 128)
    operands["sums"] = spec(f32, shape)

    def expected(**given: Any) -> dict[str, Array]:
        tiles = np.zeros((2, heads, length, dim))
        for i, (start, end) in enumerate(itertools.pairwise(queries)):
            rows, its = (int(start) // 128 + i) * 128, slice(*keys[i : i + 2])
            first = (int(keys[i]) // height + i) * height
            for h in range(heads):
                one = {x: given[x][:, h : h + 1, start:end] for x in ("q", "do")} | {
                    x: given[x][:, :, its] for x in "kv"
                }
                one |= {x: given[x][:, h : h + 1, rows : rows + end - start] for x in ("lse", "delta")}
                dk, dv = _key_gradients(**one, causal=causal, scale=given["scale"])
                tiles[:, h, first : first + dk.shape[2]] = dk[0, 0] / given["scale"], dv[0, 0]
        tiles = tiles.reshape(2 * heads, 1, -1, 64, dim // cols, cols).swapaxes(3, 4).reshape(*shape)
        return {"sums": tiles[..., order(RegisterTile(f32, 64, cols, "row", 4), 4)]}

    return replace(instance, operands=operands, expected=expected, outputs=("sums",))


def _key_gradients(
    q: Array, k: Array, v: Array, do: Array, lse: Array, delta: Array, causal: bool, scale: float
) -> tuple[Array, Array]:
    q, k, v, do = (x.astype(float) for x in (q, k, v, do))
    n, m = q.shape[2], k.shape[2]
    weight = np.exp2(q @ k.swapaxes(2, 3) * scale * np.log2(np.e) - lse[..., None].astype(float))
    weight[..., reference.hidden(np.arange(n)[:, None] + (m - n), m, causal, None, None)] = 0
    slope = weight * (do @ v.swapaxes(2, 3) - delta[..., None].astype(float))
    return (slope.swapaxes(2, 3) @ q).sum(1, keepdims=True) * scale, (weight.swapaxes(2, 3) @ do).sum(1, keepdims=True)


ROWS = (
    Shipped(
        name="attention_backward_hopper",
        about="flash attention backward with TMA, asynchronous tensor cores and warp roles: dq, dk and dv in one pass",
        make=_attention_backward,
        needs=("wgmma",),
        options={"dim": (64, 128, 256), "dtype": ("bf16", "f16"), "causal": (False, True)},
        opcodes=("HGMMA", "UTMALDG", "UTMASTG", "USETMAXREG", "UTMAREDG|REDG"),
        most_lines=250,
    ),
    Shipped(
        name="attention_backward_wide",
        about="the same for rows of 256: two blocks of a cluster give each other their dS and add half as much to dq",
        make=lambda dtype, causal: replace(
            _attention_backward(256, dtype, causal, laps=1),
            kernel=attention_backward_wide.differentiate,
            statics={"causal": causal},
        ),
        needs=("wgmma",),
        options={"dtype": ("bf16", "f16"), "causal": (False, True)},
        opcodes=("HGMMA", "UTMALDG", "UTMASTG", "USETMAXREG", "UBLKCP", "REDG"),
        most_lines=250,
    ),
    Shipped(
        name="attention_backward_hopper_divided",
        about="the same by several blocks for each tile of keys, and with additions to dq in one order",
        make=_divided,
        needs=("wgmma",),
        options={"dim": (128, 64), "causal": (True, False)},
        opcodes=("HGMMA", "UTMALDG", "USETMAXREG", "UTMAREDG|REDG"),
        most_lines=250,
        spilled=40,  # whose turn it is, before and after the loop
    ),
    Shipped(
        name="attention_backward_wide_divided",
        about="the same for rows of 256, of which two blocks of a cluster have a tile of keys each",
        make=lambda causal: _divided(256, causal),
        needs=("wgmma",),
        options={"causal": (True, False)},
        opcodes=("HGMMA", "UTMALDG", "USETMAXREG", "UBLKCP", "REDG"),
        most_lines=250,
        spilled=40,  # whose turn it is, before and after the loop
    ),
    Shipped(
        name="attention_backward_hopper_packed",
        about="the same of sequences that lie one after another",
        make=lambda dim, causal: _packed(_attention_backward(dim, "bf16", causal), *LENGTHS),
        needs=("wgmma",),
        options={"dim": (64, 128, 256), "causal": (False, True)},
        opcodes=("HGMMA", "UTMALDG", "UTMASTG", "USETMAXREG", "UTMAREDG|REDG"),
        most_lines=250,
    ),
    Shipped(
        name="attention_backward_hopper_packed_divided",
        about="the same by several blocks for each tile of keys",
        make=_packed_divided,
        needs=("wgmma",),
        options={"dim": (64, 128, 256), "causal": (False, True)},
        opcodes=("HGMMA", "UTMALDG", "USETMAXREG", "UTMAREDG|REDG"),
        most_lines=250,
        spilled=24,  # bounds of loops, before them
    ),
    Shipped(
        name="attention_backward_hopper_first",
        about="the same into a dq of anything: who comes first to a tile of it stores, all others add",
        make=_first,
        needs=("wgmma",),
        options={"dim": (128, 64), "causal": (True, False), "packed": (False, True)},
        opcodes=("HGMMA", "UTMALDG", "UTMASTG", "USETMAXREG", "UTMAREDG"),
        most_lines=250,
        spilled=36,  # of packed sequences: where a block's work lies, before the loops
    ),
    Shipped(
        name="attention_backward_hopper_window",
        about="the same with a window",
        make=lambda dim: windowed(_attention_backward(dim, "bf16", False, laps=5), 210, 90),
        needs=("wgmma",),
        options={"dim": (64, 128, 256)},
        opcodes=("HGMMA", "UTMALDG", "UTMASTG", "USETMAXREG", "UTMAREDG|REDG"),
        most_lines=250,
    ),
    Shipped(
        name="attention_backward_hopper_softcap",
        about="the same with a cap of scores",
        make=lambda dim: _attention_backward(dim, "bf16", False, softcap=3.0),
        needs=("wgmma",),
        options={"dim": (64, 128, 256)},
        opcodes=("HGMMA", "UTMALDG", "UTMASTG", "USETMAXREG", "UTMAREDG|REDG"),
        most_lines=250,
        spilled=340,  # at d 64, whose tiles are long
    ),
    Shipped(
        name="attention_backward_ampere",
        about="flash attention backward with mma.sync, ldmatrix and cp.async",
        make=_attention_backward_ampere,
        options={"dim": (64, 128), "dtype": ("bf16", "f16"), "causal": (False, True), "shared": (AMPLE, SCARCE)},
        opcodes=("HMMA", "LDSM", "LDGSTS"),
        spilled=8,
    ),
    Shipped(
        name="attention_backward_ampere_packed",
        about="the same of sequences that lie one after another",
        make=lambda causal: _packed(_attention_backward_ampere(64, "bf16", causal), *LENGTHS),
        options={"causal": (False, True)},
        opcodes=("HMMA", "LDSM", "LDGSTS"),
        spilled=24,
    ),
    Shipped(
        name="attention_backward_ampere_window",
        about="the same with a window and a cap of scores",
        make=_attention_backward_ampere_window,
        options={},
        opcodes=("HMMA", "LDSM", "LDGSTS"),
        spilled=8,
    ),
    Shipped(
        name="attention_backward_merge",
        about="after attention backward whose blocks divide the work on tiles of keys: dk and dv of all parts",
        make=_attention_backward_merge,
        options={"dim": (64, 128, 256), "dtype": ("bf16", "f16")},
        opcodes=("LDG", "STG"),
    ),
    Shipped(
        name="attention_backward_sinks",
        about="after attention backward: the gradients of sinks from the rows' log-sum-exp and deltas",
        make=_attention_backward_sinks,
        options={},
        opcodes=("LDG",),
    ),
    Shipped(
        name="attention_backward_ampere_divided",
        about="the same by several blocks for each tile of keys",
        make=_attention_backward_ampere_divided,
        options={"dim": (64, 128), "causal": (False, True)},
        opcodes=("HMMA", "LDSM", "LDGSTS"),
        spilled=24,  # at d 128, on sm_103
    ),
    Shipped(
        name="attention_backward_ampere_merge",
        about="gradients of keys and values from those of the parts of a block's work",
        make=_attention_backward_ampere_merge,
        options={"dim": (64, 128), "dtype": ("bf16", "f16")},
        opcodes=("LDG", "STG"),
    ),
    Shipped(
        name="attention_backward_ampere_finish",
        about="after attention backward with mma.sync: dq from float32 sums to rows",
        make=_attention_backward_ampere_finish,
        options={"dim": (64, 128), "dtype": ("bf16", "f16"), "shared": (AMPLE, SCARCE)},
        opcodes=("LDG", "STG"),
    ),
    Shipped(
        name="attention_backward_prepare",
        about="before attention backward: row sums of do * o, the log-sum-exp in powers of two, zeros for dq's sums",
        make=_attention_backward_prepare,
        options={"dim": (64, 128, 256), "dtype": ("bf16", "f16")},
        opcodes=("LDG", "STG"),
    ),
    Shipped(
        name="attention_backward_finish",
        about="after attention backward: dq from float32 sums in the order of registers to rows",
        make=_attention_backward_finish,
        options={"dim": (64, 128, 256), "dtype": ("bf16", "f16")},
        opcodes=("LDG", "STG"),
    ),
)
