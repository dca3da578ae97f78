"""The gated delta rule, and parts of sequences for it and Kimi delta attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np

from ...call.arguments import spec
from ...interop.base import numpy_dtype
from ...types import DTYPES, bf16, f32, i32
from .. import delta_parts, delta_step
from .. import gated_delta_rule as delta
from .. import gated_delta_rule_backward as backward
from ..catalog import Array, Instance, Shipped

HEADS, N, SCALE = 2, 240, 0.25
_WHOLE = {"high": None, "low": None, "each": 2**24, "pieces": 1}  # sequences that have no parts
_TERMS = {"high": 0.05, "low": 0.0002}  # of what a part does to a state


def chunks_of(n: int) -> list[slice]:
    """The rows of each chunk of a sequence."""
    return [slice(i, min(i + 64, n)) for i in range(0, n, 64)]


PARTS = {  # the rows of each chunk, by `packed`
    False: chunks_of(N),
    True: [slice(0, 30), *(slice(i, min(i + 64, N)) for i in range(30, N, 64))],
}


class Later(Mapping[str, Array]):
    """Arrays that are made when the first of them is asked for: tables of kernels are read more often than run."""

    def __init__(self, made: Callable[[], dict[str, Array]]):
        self._made = cache(made)

    def __getitem__(self, name: str) -> Array:
        return self._made()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._made())

    def __len__(self) -> int:
        return len(self._made())


def specs_of(dim: int, dtype: str, packed: bool, values: int = 0, n: int = N) -> dict[str, Any]:
    made, rows = DTYPES[dtype], 64 * len(PARTS[packed] if n == N else chunks_of(n))
    keys, squares, decays = spec(made, (1, 1, n, dim)), spec(made, (1, HEADS, rows, 64)), spec(f32, (1, HEADS, n))
    return {
        "q": keys,
        "k": keys,
        "v": spec(made, (1, HEADS, n, values or dim)),
        "log_decay": decays,
        "beta": decays,
        "offsets": spec(i32, (3,)) if packed else None,
        "w": squares,
        "p": squares,
        "factors": spec(f32, (1, HEADS, len(delta.FACTORS), rows)),
        "decays": spec(f32, (1, HEADS, rows // 64, 1)),
    }


def drawn_values(dim: int, dtype: str, n: int = N) -> dict[str, Array]:
    chance = np.random.default_rng(11)
    q, k = ((chance.standard_normal((1, 1, n, dim)) * dim**-0.5).astype(numpy_dtype(dtype)) for _ in range(2))
    decay, beta = -0.1 * chance.random((1, HEADS, n)), chance.random((1, HEADS, n)).round(1)
    return {"q": q, "k": k, "log_decay": decay, "beta": beta, "offsets": np.array([0, 30, n])}


def _solved(x: dict[str, Array], norm: bool, packed: bool, scaled: bool) -> dict[str, Array]:
    """What `prepare` makes, in float64."""
    chunks = len(PARTS[packed])
    w, p = np.zeros((2, 1, HEADS, 64 * chunks, 64))
    factors, decays = np.zeros((1, HEADS, len(delta.FACTORS), 64 * chunks)), np.ones((1, HEADS, chunks, 1))
    for head in range(HEADS):
        for chunk, rows in enumerate(PARTS[packed]):
            at = slice(64 * chunk, 64 * chunk + 64)
            q, k, g, b = (np.zeros((64, *y.shape[3:])) for y in (x["q"], x["k"], x["log_decay"], x["beta"]))
            m = rows.stop - rows.start
            q[:m], k[:m] = x["q"][0, 0, rows], x["k"][0, 0, rows]
            g[:m], b[:m] = x["log_decay"][0, head, rows], x["beta"][0, head, rows]
            of_q, of_k = (1 / np.sqrt((y * y).sum(1) + delta.EPSILON) if norm else np.ones(64) for y in (q, k))
            sums = g.cumsum()
            logs = sums / np.log(2)
            fade = np.exp(np.minimum(sums[:, None] - sums, 0)) * of_k
            a = np.tril(fade * of_k[:, None] * (k @ k.T), -1)
            w[0, head, at] = np.linalg.solve(np.eye(64) + a * b, a)
            p[0, head, at] = np.tril(fade * of_q[:, None] * (q @ k.T)) * SCALE
            units = np.array([unit_of(y[0, head, at]) if scaled else np.zeros(64) for y in (p, w)])
            lift = np.exp(sums) * of_q * SCALE / (units[0] if scaled else 1.0)
            factors[0, head, :, at] = [
                np.exp(sums) * of_k,
                np.exp(sums[-1] - sums) * of_k,
                lift,
                b,
                *units,
                logs,
                of_q,
                of_k,
            ]
            for y, unit in zip((p, w), units if scaled else (), strict=False):
                y[0, head, at] /= unit[:, None]
            decays[0, head, chunk] = np.exp(sums[-1])
    return {"w": w, "p": p, "factors": factors, "decays": decays}


def unit_of(x: Array) -> Array:
    peak = abs(x).max(1)
    return np.where(peak > 0, peak / 256, 1.0)


def _prepare(dim: int, dtype: str, packed: bool) -> Instance | None:
    if packed and (dim, dtype) != (128, "bf16"):
        return None
    operands, norm = {**specs_of(dim, dtype, packed), "scale": SCALE}, dim == 64

    def expected(q: Array, k: Array, log_decay: Array, beta: Array, **_: Any) -> dict[str, Array]:
        given = {"q": q, "k": k, "log_decay": log_decay, "beta": beta}
        return _solved({name: x.astype(float) for name, x in given.items()}, norm, packed, dtype == "f16")

    outputs = ("w", "p", "factors", "decays")
    return Instance(delta.prepare, operands, {"norm": norm}, outputs, expected, drawn_values(dim, dtype))


def _walk(dim: int, dtype: str, packed: bool) -> Instance | None:
    if packed and (dim, dtype) != (128, "bf16"):
        return None
    specs, values = specs_of(dim, dtype, packed), drawn_values(dim, dtype)
    states = spec(f32, (2 if packed else 1, HEADS, dim, dim))
    taken = {x: specs[x] for x in ("q", "k", "v", "offsets", "w", "p", "factors", "decays")}
    others = {**dict.fromkeys(("errors", "states", "units")), **_WHOLE}
    operands = {**taken, "lasting": None, "before": states, "o": specs["v"], "after": states, **others}
    exact = {name: x.astype(float) for name, x in values.items()}

    def expected(q: Array, k: Array, v: Array, before: Array, **_: Any) -> dict[str, Array]:
        rows = [slice(0, 30), slice(30, N)] if packed else [slice(0, N)]
        made = [
            delta.reference(
                *(x[:, :, y] for x in (q, k, v, values["log_decay"], values["beta"])),
                scale=SCALE,
                state=before[i : i + 1],
                norm=True,
            )
            for i, y in enumerate(rows)
        ]
        return {"o": np.concatenate([o for o, _ in made], 2), "after": np.concatenate([state for _, state in made])}

    given = Later(lambda: {**values, **_solved(exact, True, packed, dtype == "f16")})
    return Instance(delta.walk, operands, {}, ("o", "after"), expected, given)


def _moves(dim: int, dtype: str) -> Instance:
    """The same of two parts: what each adds to a state, and what it does to one."""
    walk, heads, pieces = _walk(dim, dtype, False), (2, HEADS, dim, dim), [slice(0, 192), slice(192, N)]
    assert walk is not None
    changed = {
        "before": None,
        "o": None,
        "after": spec(f32, heads),
        **dict.fromkeys(("high", "low"), spec(bf16, heads)),
    }
    values = drawn_values(dim, dtype)

    def expected(q: Array, k: Array, v: Array, log_decay: Array, beta: Array, **_: Any) -> dict[str, Array]:
        def after(values: Array, state: Array | None) -> Array:
            given = [[x[:, :, y] for x in (q, k, values, log_decay, beta)] for y in pieces]
            return np.concatenate([delta.reference(*x, scale=SCALE, state=state, norm=True)[1] for x in given])

        one = np.broadcast_to(np.eye(dim), (1, *heads[1:]))
        return {"after": after(v, None), "high": after(v * 0, one)}

    def given(**x: Array) -> dict[str, Array]:
        return expected(**{**values, **x})

    operands = {**walk.operands, **changed, "each": 3, "pieces": 2}
    return Instance(delta.walk, operands, {}, ("after", "high"), given, walk.values)


def _carry(dim: int, reverse: bool) -> Instance:
    states, moves = spec(f32, (3, HEADS, dim, dim)), spec(bf16, (3, HEADS, dim, dim))
    end = spec(f32, (1, HEADS, dim, dim))
    operands: dict[str, Any] = {"before": end, "local": states, **dict.fromkeys(_TERMS, moves)}
    operands |= {"starts": states, "after": end, "offsets": None, "each": 1, "pieces": 3}

    def expected(before: Array, local: Array, high: Array, low: Array, **_: Any) -> dict[str, Array]:
        moves = high.astype(float) + low.astype(float)
        if reverse:
            local, moves = local[::-1], moves[::-1].swapaxes(2, 3)
        found = [before[0].astype(float)]
        for x, y in zip(local, moves, strict=True):
            found.append(found[-1] @ y + x)
        return {"starts": np.stack(found[-2::-1] if reverse else found[:-1]), "after": found[-1][None]}

    chance = np.random.default_rng(5)
    drawn = {x: (chance.standard_normal(moves.shape) * y).astype(numpy_dtype("bf16")) for x, y in _TERMS.items()}
    return Instance(delta_parts.carry, operands, {"reverse": reverse}, ("starts", "after"), expected, drawn)


def _gradients(
    dim: int, dtype: str, packed: bool, given: dict[str, Array] | None = None, norm: bool = True, values: int = 0
) -> dict[str, Array]:
    """All that the backward pass reads and makes, in float64; states and gradients of states at chunks."""
    x, chance = drawn_values(dim, dtype), np.random.default_rng(13)
    made, states = numpy_dtype(dtype), (2 if packed else 1, HEADS, values or dim, dim)
    do, v = (chance.standard_normal((1, HEADS, N, values or dim)).astype(made) for _ in range(2))
    before, dafter = (chance.standard_normal(states).astype(np.float32) for _ in range(2))
    whole = dict(zip(("do", "v", "before", "dafter"), (do, v, before, dafter), strict=True)) | (given or {})
    sequences, parts = [slice(0, 30), slice(30, N)] if packed else [slice(0, N)], []
    kept: dict[str, list[Array]] = {"states": [], "dstates": []}
    for i, rows in enumerate(sequences):
        one = (y[:, :, rows] for y in (whole["do"], x["q"], x["k"], whole["v"], x["log_decay"], x["beta"]))
        ends = {"state": whole["before"][i : i + 1], "dafter": whole["dafter"][i : i + 1]}
        found = backward.reference(*one, scale=SCALE, norm=norm, **ends)
        for chunk in PARTS[packed]:
            if rows.start <= chunk.start < rows.stop:
                kept["states"].append(found["states"][chunk.start - rows.start])
                kept["dstates"].append(found["dstates"][chunk.stop - rows.start])
        parts.append({**found, "dbefore": found["dstates"][0]})
    names = ("dq", "dk", "dv", "dbeta", "dlog_decay", "errors", "g")
    result = {name: np.concatenate([y[name] for y in parts], 2) for name in names}
    result["dbefore"] = np.concatenate([y["dbefore"] for y in parts])
    for name, units in (("states", "units"), ("dstates", "dunits")):
        flat = np.concatenate(kept[name], 2)
        if dtype == "f16":
            result[units] = np.stack([unit_of(y) for y in flat[0]])[None]
            flat = flat / result[units][..., None]
        result[name] = flat
    return {**x, **_solved({n: y.astype(float) for n, y in x.items()}, norm, packed, dtype == "f16"), **whole, **result}


def _unwind(dim: int, dtype: str, packed: bool) -> Instance | None:
    if packed and (dim, dtype) != (128, "bf16"):
        return None
    specs = specs_of(dim, dtype, packed)
    taken = {x: specs["v" if x == "do" else x] for x in ("q", "k", "do", "offsets", "w", "p", "factors", "decays")}
    taken["lasting"] = None
    states, rows = spec(f32, (2 if packed else 1, HEADS, dim, dim)), len(PARTS[packed]) * dim
    made = {"dafter": states, "g": specs["v"], "dv": specs["v"], "dstates": spec(DTYPES[dtype], (1, HEADS, rows, dim))}
    units = spec(f32, (1, HEADS, rows)) if dtype == "f16" else None
    operands = {**taken, **made, "units": units, "dbefore": states, "each": _WHOLE["each"], "pieces": 1}

    def expected(do: Array, dafter: Array, **_: Any) -> dict[str, Array]:
        found = _gradients(dim, dtype, packed, {"do": do, "dafter": dafter})
        return {n: found["dunits" if n == "units" else n] for n in outputs}

    outputs = ("g", "dv", "dstates", "dbefore", *(("units",) if units else ()))
    drawn = Later(lambda: _gradients(dim, dtype, packed))
    return Instance(backward.unwind, operands, {}, outputs, expected, drawn)


def _ends(dim: int, dtype: str) -> Instance:
    """The same of two parts: what each adds to the gradient of a state."""
    unwind, states, pieces = _unwind(dim, dtype, False), spec(f32, (2, HEADS, dim, dim)), (slice(0, 192), slice(192, N))
    assert unwind is not None
    nothing = dict.fromkeys(("dafter", "g", "dv", "dstates", "units"))
    values = drawn_values(dim, dtype)

    def expected(do: Array, **_: Any) -> dict[str, Array]:
        made = []
        for y in pieces:
            q, k, g, b = (values[name][:, :, y] for name in ("q", "k", "log_decay", "beta"))
            rows = do[:, :, y]
            made.append(backward.reference(rows, q, k, rows * 0, g, b, scale=SCALE, norm=True)["dstates"][0])
        return {"dbefore": np.concatenate(made)}

    operands = {**unwind.operands, **nothing, "dbefore": states, "each": 3, "pieces": 2}
    return Instance(backward.unwind, operands, {}, ("dbefore",), expected, unwind.values)


def _differentiate(dim: int, dtype: str, packed: bool) -> Instance | None:
    if packed and dtype != "bf16":
        return None
    long = (dim, dtype, packed) == (64, "bf16", False)
    norm, values = dim == 64, 256 if long else dim  # four parts go through two slots
    specs = specs_of(dim, dtype, packed, values)
    drawn = Later(lambda: _gradients(dim, dtype, packed, norm=norm, values=values))
    states = spec(DTYPES[dtype], (1, HEADS, len(PARTS[packed]) * values, dim))
    units = spec(f32, states.shape[:3]) if dtype == "f16" else None
    keys = spec(DTYPES[dtype], (1, HEADS, N, dim))
    operands = {
        "q": specs["q"],
        "k": specs["k"],
        **dict.fromkeys(("do", "g", "errors"), specs["v"]),
        **{x: specs[x] for x in ("offsets", "w", "factors", "decays")},
        **{"states": states, "units": units, "dstates": states, "dunits": units},
        **{"dq": keys, "dk": keys, "dbeta": specs["beta"], "dlog_decay": specs["beta"]},
        "scale": SCALE,
    }
    outputs = ("dq", "dk", "dbeta", "dlog_decay")

    def expected(**_: Any) -> dict[str, Array]:
        return {name: drawn[name] for name in outputs}

    return Instance(backward.differentiate, operands, {"norm": norm}, outputs, expected, drawn)


def _step(dim: int, dtype: str) -> Instance:
    made, state, heads = DTYPES[dtype], spec(f32, (3, HEADS, dim, dim)), spec(f32, (3, HEADS))
    keys, values = spec(made, (3, 1, dim)), spec(made, (3, HEADS, dim))
    operands = {
        **dict.fromkeys(("q", "k"), keys),
        "v": values,
        **dict.fromkeys(("log_decay", "beta"), heads),
        "before": state,
        "o": values,
        "after": state,
        "gates": None,
        "scale": SCALE,
    }

    def expected(q: Array, k: Array, v: Array, log_decay: Array, beta: Array, before: Array, **_: Any) -> Any:
        rows = (x[:, :, None] for x in (q, k, v, log_decay, beta))
        o, after = delta.reference(*rows, scale=SCALE, state=before, norm=True)
        return {"o": o[:, :, 0], "after": after}

    drawn = {"log_decay": -np.random.default_rng(3).random((3, HEADS))}
    return Instance(delta_step.step, operands, {"norm": True}, ("o", "after"), expected, drawn)


def _rows(dim: int, dtype: str) -> Instance:
    made, state, heads = DTYPES[dtype], spec(f32, (2, HEADS, dim, dim)), spec(f32, (1, HEADS, 5))
    keys, values, offsets = spec(made, (1, 1, 5, dim)), spec(made, (1, HEADS, 5, dim)), np.array([0, 2, 5])
    operands = {
        **{
            **dict.fromkeys(("q", "k"), keys),
            "v": values,
            "log_decay": None,
            "beta": heads,
            "offsets": spec(i32, (3,)),
        },
        **{"before": state, "o": values, "after": state, "gates": spec(f32, (1, HEADS, 5, dim)), "scale": SCALE},
    }

    def expected(q: Array, k: Array, v: Array, beta: Array, before: Array, gates: Array, **_: Any) -> dict[str, Array]:
        made = []
        for i, y in enumerate((slice(0, 2), slice(2, 5))):
            given = (x[:, :, y] for x in (q, k, v, gates, beta))
            made.append(delta.reference(*given, scale=SCALE, state=before[i : i + 1], norm=True))
        return {"o": np.concatenate([o for o, _ in made], 2), "after": np.concatenate([state for _, state in made])}

    drawn = {"gates": -np.random.default_rng(3).random((1, HEADS, 5, dim)), "offsets": offsets}
    return Instance(delta_step.recur, operands, {"norm": True}, ("o", "after"), expected, drawn)


OPTIONS: dict[str, Any] = {"dim": (64, 128), "dtype": ("bf16", "f16"), "packed": (False, True)}
ROWS = (
    Shipped(
        name="gated_delta_rule_prepare",
        about="before the gated delta rule: each chunk solved for what its keys overwrite",
        make=_prepare,
        needs=("wgmma",),
        options=OPTIONS,
        opcodes=("HMMA", "UTMALDG", "MOVM"),
        spilled=32,  # f16
    ),
    Shipped(
        name="gated_delta_rule",
        about="linear attention whose keys overwrite what they find, with a decay (Gated DeltaNet)",
        make=_walk,
        needs=("wgmma",),
        options=OPTIONS,
        opcodes=("HGMMA", "UTMALDG", "UTMASTG", "STSM"),
    ),
    Shipped(
        name="gated_delta_rule_unwind",
        about="gradients of the gated delta rule, from the last chunk to the first",
        make=_unwind,
        needs=("wgmma",),
        options=OPTIONS,
        opcodes=("HGMMA", "UTMALDG", "UTMASTG", "STSM"),
        spilled=128,  # f16
    ),
    Shipped(
        name="gated_delta_rule_backward",
        about="gradients of the gated delta rule's queries and keys, all chunks at once",
        make=_differentiate,
        needs=("wgmma",),
        options=OPTIONS,
        opcodes=("HGMMA", "UTMALDG", "STG"),
        spilled=76,  # at d 64, of which two blocks share a multiprocessor
    ),
    Shipped(
        name="gated_delta_rule_step",
        about="one row of the gated delta rule",
        make=_step,
        options={"dim": (64, 128), "dtype": ("bf16", "f16")},
        opcodes=("LDG", "STG", "SHFL"),
    ),
    Shipped(
        name="gated_delta_rule_rows",
        about="the gated delta rule row by row, in float32, where states have to be exact",
        make=_rows,
        options={"dim": (64, 128), "dtype": ("bf16", "f16")},
        opcodes=("LDG", "STG", "SHFL"),
    ),
    Shipped(
        name="gated_delta_rule_moves",
        about="what parts of sequences add to a state of the gated delta rule, and do to one, where heads are few",
        make=_moves,
        needs=("wgmma",),
        options={"dim": (64, 128), "dtype": ("bf16", "f16")},
        opcodes=("HGMMA", "UTMALDG", "STG"),
    ),
    Shipped(
        name="gated_delta_rule_ends",
        about="what parts of sequences add to the gradient of a state of the gated delta rule, where heads are few",
        make=_ends,
        needs=("wgmma",),
        options={"dim": (64, 128), "dtype": ("bf16", "f16")},
        opcodes=("HGMMA", "UTMALDG", "STG"),
    ),
    Shipped(
        name="gated_delta_rule_carry",
        about="between the two: the states that parts of sequences begin with, or the gradients of those they end with",
        make=_carry,
        needs=("wgmma",),
        options={"dim": (64, 128), "reverse": (False, True)},
        opcodes=("HGMMA", "UTMALDG", "STG"),
    ),
)
