"""Flash attention, forward."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ...call.arguments import spec
from ...call.kernel import Kernel
from ...trace.scoring import Scoring
from ...types import DTYPES, f32, i32
from .. import (
    attention_ada,
    attention_ampere,
    attention_divided,
    attention_hopper,
    attention_packed,
    blank,
    reference,
    tile_lists,
)
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


def _attention_hopper(dim: int, dtype: str, causal: bool, long: bool, window: bool = False, **more: Any) -> Instance:
    settings = {"keys": 128, "consumers": 2} | configuration(dim, causal, 16384 if long else 4096, window)
    rows = 3 * 64 * settings["consumers"] - 40  # three tiles of each of two heads, and two blocks to do them
    made = _attention(
        attention_hopper.attend,
        rows,
        (6 if window else 2) * settings["keys"] + 40,
        dim,
        dtype,
        {"lse": spec(f32, (1, 1, 1))},
        causal=causal,
        sms=2,
        **settings,
        **more,
    )
    return taking(made) if causal and settings.get("stay", True) else made


def taking(instance: Instance) -> Instance:
    """The same whose blocks take tiles from a counter."""
    values = {**instance.values, "counter": np.zeros(1, np.int32)}
    return replace(instance, operands={**instance.operands, "counter": spec(i32, (1,))}, values=values)


def windowed(instance: Instance, left: int, right: int, **more: Any) -> Instance:
    """The same with a window, and other operands."""
    operands = {**instance.operands, "left": left, "right": right, **more}
    return replace(instance, operands=operands, statics={**instance.statics, "causal": False})


def of_several(instance: Instance, heads: int) -> Instance:
    """The same, causal, where each head of q has the rows of so many heads, one after another."""
    n, causal = instance.operands["q"].shape[2], {**instance.statics, "causal": True}
    each = n // heads

    def expected(q: Array, k: Array, v: Array, **_: Any) -> dict[str, Array]:
        apart, wide = q.reshape(1, -1, each, q.shape[3]), (np.repeat(x, heads, 1) for x in (k, v))
        return {"o": reference.attention(apart, *wide, scale=q.shape[3] ** -0.5, causal=True).reshape(q.shape)}

    return replace(instance, operands={**instance.operands, "head_rows": each}, statics=causal, expected=expected)


def owners(lengths: tuple[int, ...], rows: int) -> Array:
    """Whose each tile of `rows` rows is, as `attention_packed.find_owners` finds it."""
    firsts = np.cumsum([0, *lengths])[:-1] // rows + np.arange(len(lengths))
    tiles = np.arange(sum(lengths) // rows + len(lengths))
    return (np.searchsorted(firsts, tiles, "right") - 1).astype(np.int32)


def ordered(
    queries: tuple[int, ...],
    keys: tuple[int, ...],
    rows: int,
    growing: bool,
    together: int = 64,
    right: int = 0,
    most: int = 2**30,
) -> Array:
    """The tiles of `rows` rows and their sequences as `attention_packed.order_tiles` orders them."""
    sequences = owners(queries, rows)
    places = np.arange(len(sequences)) - np.searchsorted(sequences, sequences)

    def rank(tile: int) -> tuple[int, ...]:
        sequence, place = int(sequences[tile]), int(places[tile])
        n, m, first = queries[sequence], keys[sequence], (-(-queries[sequence] // rows) - 1 - place) * rows
        end = min(first + rows, n) + m - n + right if growing else m
        seen = max(min(end, m, most), 0)
        return sequence // together, -seen if first >= 0 else 1, sequence, place

    order = np.array(sorted(range(len(sequences)), key=rank), np.int32)
    return np.stack([order, sequences[order]])


def packed(instance: Instance, queries: tuple[int, ...], keys: tuple[int, ...]) -> Instance:
    """The same with sequences of these lengths that lie one after another."""
    lengths = {"q_offsets": queries, "k_offsets": keys}
    values = {name: np.cumsum([0, *x]).astype(np.int32) for name, x in lengths.items()}
    at = [(int(a), int(b)) for a, b in zip(values["q_offsets"], values["k_offsets"], strict=True)]

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
    if instance.kernel is attention_hopper.attend:  # whose blocks take tiles from a counter
        growing = instance.statics["causal"]
        values["order"] = ordered(queries, keys, 64 * instance.statics.get("consumers", 2), growing)
        values["counter"] = np.zeros(1, np.int32)
    else:
        values["owners"] = owners(queries, 128)
    operands |= {name: spec(i32, x.shape) for name, x in values.items()}
    return replace(instance, operands=operands, values=values, expected=expected)


def biased(s: Any, batch: Any, head: Any, row: Any, col: Any, slopes: Any, bias: Any) -> Any:
    """The score function of the instances: a slope for each head, and a bias for each key."""
    return s - slopes[head] * (row - col).to(f32) + bias[batch, col]


def own(batch: Any, head: Any, row: Any, col: Any, ids: Any) -> Any:
    """Their mask: sequences one after another in a row, by number."""
    return ids[batch, row] == ids[batch, col]


def _tiles(instance: Instance) -> tuple[int, int]:
    """Rows and keys of a tile."""
    return 64 * instance.statics["consumers"], instance.statics["keys"]


SCORING = Scoring(biased, own, (1, 2), (2,))


def listed(seen: Array, rows: int, cols: int, in_part: bool = False) -> Array:
    """The list (`trace/visits.py`) of each row of tiles of the scores that are `seen`; in_part: as if none were seen as
    a whole."""
    n, m = seen.shape
    across, along = -(-n // rows), -(-m // cols)
    made = np.zeros((across, 2 + along), np.int32)
    for i, line in enumerate(made):
        tiles = [seen[i * rows : (i + 1) * rows, j * cols : (j + 1) * cols] for j in range(along)]
        whole = [j for j, x in enumerate(tiles) if x.all() and x.shape[1] == cols and not in_part]
        parts = [j for j, x in enumerate(tiles) if j not in whole and (x.any() or in_part)] or [0] * (not whole)
        line[0], line[1], line[2 : 2 + len(whole)] = len(whole), len(parts), whole
        line[2 + along - len(parts) :] = parts[::-1]
    return made


def scored(instance: Instance, tile: tuple[int, int] | None = None) -> Instance:
    """The same with scores and a mask of functions; tile: rows and columns of those that the mask is listed by, for the
    first head all as seen in part."""
    (batch, heads, n, _), m = instance.operands["q"].shape, instance.operands["k"].shape[2]
    tables: dict[str, Any] = {"o0": spec(f32, (1, 1, 1, heads)), "o1": spec(f32, (1, 1, batch, m))}
    tables |= {"o2": spec(i32, (1, 1, batch, max(n, m)))}
    first = 0 if tile is None else max(tile[0], 2 * tile[1])  # a sequence that sees whole tiles
    ids = np.maximum(np.arange(max(n, m)) - first, -1) // 97
    values = {"o2": ids[None, None, None].repeat(batch, 2).astype(np.int32)}
    if tile is not None:
        tables |= {"splits": None} if "splits" in instance.kernel.signature.optional else {}
        seen = ids[:n, None] == ids[:m]
        values["lists"] = np.array([[listed(seen, *tile, in_part=head == 0) for head in range(heads)]])
        tables["lists"] = spec(i32, values["lists"].shape)

    def expected(
        q: Array, k: Array, v: Array, o0: Array, o1: Array, o2: Array, scale: float, **_: Any
    ) -> dict[str, Array]:
        rows, cols = np.arange(n)[:, None], np.arange(m)
        s = q.astype(float) @ k.astype(float).swapaxes(2, 3) * scale
        s = s - o0[0, 0, 0].astype(float)[:, None, None] * (rows - cols) + o1[0, 0][:, None, None, :].astype(float)
        s = np.where(o2[0, 0][:, None, :n, None] == o2[0, 0][:, None, None, :m], s, -np.inf)
        weight = np.exp(s - np.maximum(s.max(3, keepdims=True), -1e30))
        total = weight.sum(3, keepdims=True)
        return {"o": weight @ v.astype(float) / np.where(total == 0, 1, total)}

    statics = {**instance.statics, "scoring": SCORING, "causal": False}
    return replace(
        instance, operands={**instance.operands, **tables}, statics=statics, values=values, expected=expected
    )


def _blank(dtype: str) -> Instance:
    x, lse = spec(DTYPES[dtype], (1, 2, 70, 64)), spec(f32, (1, 2, 70))
    operands = {"ends": spec(i32, (3,)), "x": x, "y": x, "lse": lse}

    def expected(x: Array, y: Array, lse: Array, **_: Any) -> dict[str, Array]:
        found = {"x": x.astype(float), "y": y.astype(float), "lse": lse.astype(float)}
        for name, z in found.items():
            z[:, :, 40:] = -np.inf if name == "lse" else 0.0
        return found

    values = {"ends": np.array([0, 10, 40], np.int32)}
    return Instance(blank.blank, operands, {"packed": True}, ("x", "y", "lse"), expected, values)


def _order(growing: bool) -> Instance:
    queries, keys, rows = (150, 0, 200, 30, 70), (200, 40, 300, 30, 10), 64
    values = {n: np.cumsum([0, *x]).astype(np.int32) for n, x in (("q_offsets", queries), ("k_offsets", keys))}
    order = ordered(queries, keys, rows, growing, 3, 20, 150)
    shapes: dict[str, tuple[int, ...]] = {"q_offsets": (6,), "k_offsets": (6,), "order": order.shape, "counter": (1,)}
    operands: dict[str, Any] = {name: spec(i32, shape) for name, shape in shapes.items()}
    operands |= {"right": 20, "most": 150, "together": 3, "o": spec(DTYPES["bf16"], (1, 1, sum(queries) + 30, 64))}
    statics = {"rows": rows, "growing": growing}

    def expected(**_: Any) -> dict[str, Array]:
        return {"order": order.astype(float), "counter": np.zeros(1), "o": np.zeros(operands["o"].shape)}

    return Instance(attention_packed.order_tiles, operands, statics, ("order", "counter", "o"), expected, values)


def _tile_lists(down: bool) -> Instance:
    n, m, rows, cols = 200, 300, 64, 32
    lines, tiles = (-(-m // cols), -(-n // rows)) if down else (-(-n // rows), -(-m // cols))
    operands = {"lists": spec(i32, (1, 1, lines, tiles + 2)), "kinds": spec(i32, (1, 1, lines, tiles)), "n": n, "m": m}
    statics = {"scoring": Scoring(None, lambda batch, head, row, col: row >= col), "causal": False}

    def expected(kinds: Array, **_: Any) -> dict[str, Array]:
        seen = np.arange(n)[:, None] >= np.arange(m)
        padded = np.pad(seen, ((0, -n % rows), (0, -m % cols))).reshape(-1, rows, -(-m // cols), cols)
        count, real = padded.sum((1, 3)), np.minimum(rows, n - np.arange(0, n, rows))[:, None] * cols
        kind = np.where(count == 0, 0, np.where(count < real, 1, 2))
        return {"kinds": (kind.T if down else kind)[None, None]}

    return Instance(
        tile_lists.list_tiles, operands, {**statics, "rows": rows, "cols": cols, "down": down}, ("kinds",), expected
    )


def _merged(splits: int) -> Instance:
    """Parts of two batches of one head, some of whose rows are ragged."""
    n, dim = 37, 64
    parts, logs = spec(f32, (2 * splits, 1, n, dim)), spec(f32, (2 * splits, 1, n))
    operands = {"parts": parts, "logs": logs, "o": spec(DTYPES["bf16"], (2, 1, n, dim)), "lse": spec(f32, (2, 1, n))}

    def expected(parts: Array, logs: Array, **_: Any) -> dict[str, Array]:
        shares = np.exp(logs.astype(float)).reshape(splits, 2, 1, n)
        made = (parts.astype(float).reshape(splits, 2, 1, n, dim) * shares[..., None]).sum(0)
        return {"o": made / shares.sum(0)[..., None], "lse": np.log(shares.sum(0))}

    statics = {"splits": splits, "rows": attention_divided.rows_of(splits, dim)}
    return Instance(attention_divided.merge, operands, statics, ("o", "lse"), expected)


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
        spilled=16,  # from sm_100 on
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
        name="attention_ampere_scored",
        about="the same with scores and a mask of functions",
        make=lambda dim: scored(_attention_ampere(dim, "bf16", False, 4), (128, 4096 // dim)),
        options={"dim": (64, 128)},
        opcodes=("HMMA", "LDSM", "LDGSTS"),
        spilled=16,
    ),
    Shipped(
        name="attention_blank",
        about="zeros in the rows that are no sequence's",
        make=_blank,
        options={"dtype": ("bf16", "f16")},
        opcodes=(),
    ),
    Shipped(
        name="attention_packed_order",
        about="packed sequences' tiles, the longest first",
        make=_order,
        needs=("dependent launch",),
        options={"growing": (True, False)},
        opcodes=(),
    ),
    Shipped(
        name="attention_tile_lists",
        about="which tiles of scores a mask lets be seen",
        make=_tile_lists,
        options={"down": (False, True)},
        opcodes=(),
    ),
    Shipped(
        name="attention_hopper",
        about="flash attention forward with TMA, asynchronous tensor cores and warp roles: the H100 kernel of the "
        "ThunderKittens post",
        make=_attention_hopper,
        needs=("wgmma",),
        options={"dim": (64, 128, 256), "dtype": ("bf16", "f16"), "causal": (False, True), "long": (False, True)},
        opcodes=("HGMMA", "UTMALDG", "UTMASTG", "USETMAXREG"),
        most_lines=250,
        spilled=8,  # at d 64, causal: while a tile is made, where its number came from
    ),
    Shipped(
        name="attention_hopper_scored",
        about="the same with scores and a mask of functions",
        make=lambda dim: scored(whole := _attention_hopper(dim, "bf16", False, False, True), _tiles(whole)),
        needs=("wgmma",),
        options={"dim": (64, 128, 256)},
        opcodes=("HGMMA", "UTMALDG", "UTMASTG", "USETMAXREG"),
        most_lines=250,
        spilled=100,
    ),
    Shipped(
        name="attention_hopper_packed",
        about="the same of sequences that lie one after another",
        make=lambda dim, causal: packed(_attention_hopper(dim, "bf16", causal, False, positive=True), *LENGTHS),
        needs=("wgmma",),
        options={"dim": (64, 128, 256), "causal": (False, True)},
        opcodes=("HGMMA", "UTMALDG", "UTMASTG", "USETMAXREG"),
        most_lines=250,
    ),
    Shipped(
        name="attention_hopper_heads",
        about="the same where one head's rows are those of several, one after another",
        make=lambda dim: of_several(_attention_hopper(dim, "bf16", False, False), 4),
        needs=("wgmma",),
        options={"dim": (64, 128, 256)},
        opcodes=("HGMMA", "UTMALDG", "UTMASTG", "USETMAXREG"),
        most_lines=250,
    ),
    Shipped(
        name="attention_divided",
        about="the output of attention from those of parts of the keys: FlashDecoding's second step",
        make=_merged,
        options={"splits": (2, 16)},
        opcodes=("LDG", "STG", "MUFU"),
    ),
    Shipped(
        name="attention_hopper_window",
        about="the same with a window, a cap of scores and sinks",
        make=lambda dim: windowed(taking(_attention_hopper(dim, "bf16", False, False, True)), 360, 130, **CAPPED),
        needs=("wgmma",),
        options={"dim": (64, 128, 256)},
        opcodes=("HGMMA", "UTMALDG", "UTMASTG", "USETMAXREG"),
        most_lines=250,
    ),
)
