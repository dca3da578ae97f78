"""The gated delta rule, forward: linear attention whose keys overwrite what they find.

    S_i = exp(g_i) S_(i-1) + u_i k_i,   u_i = b_i (v_i - exp(g_i) S_(i-1) k_i),   o_i = scale * S_i q_i

for each batch and head: Yang et al., "Parallelizing Linear Transformers with the Delta Rule" (2024), without g; "Gated
Delta Networks" (2024). In chunks of 64 rows, S the state before one, c_i the sum of g from its beginning to row i, and
D_ij = exp(c_i - c_j) for j <= i, else 0 (differences of logarithms, never quotients of exponentials):

    Y = V - exp(c) K S^T                 A_ij = D_ij k_i.k_j, j < i
    E = (I + A b)^-1 Y = Y - W b Y       W = (I + A b)^-1 A = A (I + b A)^-1: without b, for b of 0, too
    U = b E
    O = scale * (exp(c) Q S^T + (D * Q K^T) U)
    S' = exp(c_64) S + (exp(c_64 - c) U)^T K

`prepare` makes W, the masked D * Q K^T and the factors of rows, a warp each chunk, all chunks at once; with `norm` the
factors hold the lengths of queries and keys, which are never rounded. `walk` goes through the chunks of a sequence. A
block owns 64 columns of the values; everything in its registers is transposed, values by rows: the state, Y, and U are
then left operands of wgmma out of registers, and nothing goes through shared memory on the way from chunk to chunk.

q, k: (batch, groups, n, d), v, o: (batch, heads, n, e), bf16 or f16, heads a multiple of groups; d 64 or 128, e 64, 128
or 256. States: float32 (batch, heads, e, d), as those of linear attention. What a tensor core takes is rounded to the
operands' dtype, once; in f16, whose range is small, rows are scaled on their way. Packed sequences are rows offsets[i]
to offsets[i + 1] - 1 of one batch, and their chunks begin where `pk.packed` says.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import numpy as np

import pykittens as pk
from pykittens import Scalar, Tensor, bf16, f16, f32, i32, warp, warpgroup

from ..interop import arrays
from .arguments import KernelCall, Launches
from .chunks import LEAST, LOG2E
from .delta_parts import Parts, carry, parts_of
from .delta_step import EPSILON, recur
from .sequences import DTYPES, check_decays, contiguous_rows, dense, operands, readable_offsets, terms, unit_of

CHUNK = 64
TINY = 2.0**-60  # what a smaller b counts as in W
FACTORS = ("keys", "adds", "queries", "beta", "unit", "solved", "sums", "own_q", "own_k")  # the last of backward passes
DIMS, VALUES = (64, 128), (64, 128, 256)


def fades(log_decay: np.ndarray | None, rows: tuple[int, ...], dtype: Any = np.float64) -> np.ndarray:
    """What each row of a reference multiplies a state by: (batch, heads, n, 1, 1), or (.., 1, d) where each channel has
    its own."""
    decay = np.exp(np.zeros(rows, dtype) if log_decay is None else log_decay.astype(dtype))
    return decay[..., None, :] if decay.ndim == 4 else decay[..., None, None]


def reference(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    log_decay: np.ndarray | None,
    beta: np.ndarray,
    *,
    scale: float | None = None,
    state: np.ndarray | None = None,
    norm: bool = False,
    dtype: Any = np.float64,
) -> tuple[np.ndarray, np.ndarray]:
    """(o, state) by the recurrence, row by row, in float64 (or another dtype); log_decay of heads or of channels."""
    batch, heads, n, e = v.shape
    q, k = (np.repeat(x.astype(dtype), heads // x.shape[1], 1) for x in (q, k))
    v, beta = v.astype(dtype), beta.astype(dtype)
    if norm:
        q, k = (x / np.sqrt((x * x).sum(-1, keepdims=True) + EPSILON) for x in (q, k))
    decay = fades(log_decay, (batch, heads, n), dtype)
    state = np.zeros((batch, heads, e, q.shape[-1]), dtype) if state is None else state.astype(dtype)
    o = np.empty(v.shape, dtype)
    for i in range(n):
        state = state * decay[:, :, i]
        change = beta[:, :, i, None] * (v[:, :, i] - (state @ k[:, :, i, :, None])[..., 0])
        state = state + change[..., None] * k[:, :, i, None, :]
        o[:, :, i] = (state @ q[:, :, i, :, None])[..., 0] * dtype(q.shape[-1] ** -0.5 if scale is None else scale)
    return o, state


def lengths(x: Any, norm: bool, d: int) -> Any:
    """1 over the length of each row of a shared tile, a column vector; 1 without `norm`."""
    if not norm:
        return warp.full_col(f32, CHUNK, 1.0)
    squares = warp.zeros_col(f32, CHUNK)
    for col in range(0, d, 16):
        part = warp.load(x[:, col : col + 16]).to(f32)
        squares += part.row_dot(part)
    return pk.rsqrt(squares + EPSILON)


def inverse(a: Any, b: Any) -> Any:
    """W of a chunk, a warp's tile, from what lies below the diagonal of A: (I + b A)^-1 = I - b W."""
    safe = pk.where(abs(b) < TINY, TINY, b)
    product = (a * safe).unit_lower_inverse() * (-1.0 / safe)
    return pk.where(pk.col_index(product) < pk.row_index(product), product, 0.0)


@pk.kernel(warps=1, grid=lambda v, w, **_: (w.rows // CHUNK, v.depth, v.batch))
def prepare(
    q: Annotated[Tensor, DTYPES, "B", "G", "N", pk.static("D")],
    k: Annotated[Tensor, DTYPES, "B", "G", "N", pk.static("D")],
    v: Annotated[Tensor, DTYPES, "B", "H", "N", pk.static("E")],
    log_decay: Annotated[Tensor, f32, "B", "H", "N"],
    beta: Annotated[Tensor, f32, "B", "H", "N"],
    offsets: Annotated[Tensor, i32, "S"],
    w: Annotated[Tensor, DTYPES, "B", "H", "M", CHUNK],
    p: Annotated[Tensor, DTYPES, "B", "H", "M", CHUNK],
    factors: Annotated[Tensor, f32, "B", "H", len(FACTORS), "M"],
    decays: Annotated[Tensor, f32, "B", "H", "C", 1],
    scale: Annotated[Scalar, f32],
    *,
    norm: bool = False,
) -> None:
    """W, scale * D * Q K^T, the factors of rows, and the decay of each chunk."""
    chunk, head, batch = pk.block_index.x, pk.block_index.y, pk.block_index.z
    dtype, d = q.dtype, q.cols
    group = head // (v.depth // q.depth)
    rows, tile = pk.stretch(q), chunk
    if offsets is not None:
        sequences = pk.packed(offsets)
        i = sequences.find(chunk, CHUNK)
        rows, tile = sequences[i], chunk - sequences.first(i, CHUNK)
    queries, keys = (pk.shared(pk.st(dtype, CHUNK, d), name=name) for name in ("queries", "keys"))
    vectors, landed = pk.shared(pk.sv(f32, CHUNK), count=2), pk.barrier()
    pk.tma.expect(landed, keys, queries)
    for to, source in ((keys, k), (queries, q)):
        pk.tma.load(to, source, **rows.tile(batch, group, tile, CHUNK), barrier=landed)

    def write(name: str, column: Any) -> None:
        warp.store(factors, column, (batch, head, FACTORS.index(name), chunk))

    def faded(x: Any) -> Any:
        """Keys' lengths and the decay from row j to row i, read anew: registers are short."""
        if norm:
            x = x * warp.load_row(vectors[0])
        return x if log_decay is None else x * pk.exp2(pk.minimum(sums - warp.load_row(vectors[1]), 0.0))

    pk.wait(landed, 0)
    own, b = lengths(keys, norm, d), warp.load_col(beta, **rows.run(batch, head, tile, CHUNK), length=CHUNK)
    warp.store(vectors[0], own)
    if log_decay is None:
        sums, last = warp.zeros_col(f32, CHUNK), pk.cast(0.0, f32)
    else:
        # In runs of 1, wherever it begins: sums are in one order, and a sequence has the bits that it has alone.
        g = warp.load_vec(log_decay, **rows.run(batch, head, tile, CHUNK), length=CHUNK).as_vec()
        warp.store(vectors[1], pk.maximum(g * LOG2E, LEAST).cumsum())
        sums, last = warp.load_col(vectors[1]), vectors[1][CHUNK - 1]
        warp.set(decays, (batch, head, chunk, 0), pk.exp2(last))
    write("keys", pk.exp2(sums) * own)
    write("adds", pk.exp2(last - sums) * own)
    for name, column in (("beta", b), ("sums", sums), ("own_k", own)):
        write(name, column)

    product = warp.zeros(f32, CHUNK, CHUNK)
    row, column = pk.row_index(product), pk.col_index(product)
    warp.mma_ABt(product, keys, keys)
    product[:] = inverse(faded(product * own), b)
    if dtype is f16:
        unit = unit_of(product)
        write("solved", unit)
        product[:] = product / unit
    warp.store(w, product.to(dtype), (batch, head, chunk, 0))

    own_q = lengths(queries, norm, d)
    write("own_q", own_q)
    warp.mm_ABt(product, queries, keys)
    product[:] = pk.where(column <= row, faded(product * (own_q * scale)), 0.0)
    lift = pk.exp2(sums) * own_q * scale
    if dtype is f16:
        unit = unit_of(product)
        write("unit", unit)
        product[:] = product / unit
        lift[:] = lift / unit
    write("queries", lift)
    warp.store(p, product.to(dtype), (batch, head, chunk, 0))


@pk.kernel(
    warps=4,
    grid=lambda v, q, offsets, high, pieces, **_: (
        (v.cols + (0 if high is None else q.cols)) // CHUNK * pieces,
        v.depth,
        v.batch if offsets is None else offsets.cols - 1,
    ),
)
def walk(
    q: Annotated[Tensor, DTYPES, "B", "G", "L", pk.static("D")],
    k: Annotated[Tensor, DTYPES, "B", "G", "L", pk.static("D")],
    v: Annotated[Tensor, DTYPES, "B", "H", "N", pk.static("E")],
    offsets: Annotated[Tensor, i32, "S"],
    w: Annotated[Tensor, DTYPES, "B", "H", "M", CHUNK],
    p: Annotated[Tensor, DTYPES, "B", "H", "M", CHUNK],
    factors: Annotated[Tensor, f32, "B", "H", len(FACTORS), "M"],
    decays: Annotated[Tensor, f32, "B", "H", "C", pk.static("W")],
    lasting: Annotated[Tensor, DTYPES, "B", "H", "L", pk.static("D")],
    before: Annotated[Tensor, f32, "T", "H", pk.static("E"), pk.static("D")],
    o: Annotated[Tensor, DTYPES, "B", "H", "N", pk.static("E")],
    after: Annotated[Tensor, f32, "T", "H", pk.static("E"), pk.static("D")],
    errors: Annotated[Tensor, DTYPES, "B", "H", "N", pk.static("E")],
    states: Annotated[Tensor, DTYPES, "B", "H", "R", pk.static("D")],
    units: Annotated[Tensor, f32, "B", "H", "R"],
    high: Annotated[Tensor, bf16, "T", "H", pk.static("D"), pk.static("D")],
    low: Annotated[Tensor, bf16, "T", "H", pk.static("D"), pk.static("D")],
    each: Annotated[Scalar, i32],
    pieces: Annotated[Scalar, i32],
) -> None:
    """o, and the state after the last row of each sequence; without `before` it begins at zero.

    With `lasting`, q and k are already those of chunks, decayed for the reading, and that is k decayed for the state:
    a gate for each channel (`kimi_delta_attention.py`); `decays` then has one for each, too, else 1.

    For the backward pass instead of o: E, and the state before each chunk, as products take it: R is chunks times E,
    and `units` are the factors of its rows in f16.

    Of sequences in `pieces` parts of `each` chunks the states are those of parts. `high`, `low`: what each part does to
    a state (`delta_parts.py`), by more blocks, which begin with the identity and see no values.
    """
    head, sequence, values = pk.block_index.y, pk.block_index.z, v.cols // CHUNK
    dtype, d, scaled = q.dtype, q.cols, q.dtype is f16
    wide = values if high is None else values + d // CHUNK
    part, begin = pk.block_index.x % wide, pk.block_index.x // wide * each
    place = sequence * pieces + pk.block_index.x // wide
    group, channels = head // (v.depth // q.depth), lasting is not None
    rows, first = pk.stretch(v), pk.cast(0, i32)
    batch: Any = sequence
    if offsets is not None:
        sequences = pk.packed(offsets)
        rows, first, batch = sequences[sequence], sequences.first(sequence, CHUNK), 0
    chunks = pk.minimum(pk.cdiv(rows.rows, CHUNK), begin + each)
    wide, square = pk.st(dtype, CHUNK, d), pk.st(dtype, CHUNK, CHUNK)
    names = [x for x in FACTORS[: 6 if scaled else 4] if not channels or x not in FACTORS[: 2 if scaled else 3]]
    members: dict[str, Any] = {"k": wide, "v": square, "w": square, **dict.fromkeys(names, pk.sv(f32, CHUNK))}
    members |= {"q": wide, "p": square} if o is not None else {}
    members |= {"lasting": wide, "decays": pk.sv(f32, d)} if channels else {}
    ring = pk.ring(2, **members)
    written = errors if o is None else o
    result = None if written is None else pk.shared(square, name="result")
    kept = None if states is None else pk.shared(wide, name="kept")

    def load(i: Any) -> None:
        with pk.when(i < chunks), ring.fill() as slot:
            at: dict[str, Any] = {"coordinate": (batch, head, first + i, 0)}
            own = at if channels else rows.tile(batch, group, i, CHUNK)
            pk.tma.load(slot.k, k, **own)
            pk.tma.load(slot.v, v, **rows.tile(batch, head, i, CHUNK, part % values, CHUNK))
            pk.tma.load(slot.w, w, **at)
            if o is not None:
                pk.tma.load(slot.q, q, **own)
                pk.tma.load(slot.p, p, **at)
            for to, source in ((slot.lasting, lasting), (slot.decays, decays)) if channels else ():
                pk.tma.load(to, source, **at)
            for name in names:
                pk.tma.load(getattr(slot, name), factors, (batch, head, FACTORS.index(name), first + i))

    def rounded(*tiles: Any) -> tuple[Any, Any]:
        """A tile as an operand of a product, and the factor of its rows; the others are to be divided by it, too."""
        if not scaled:
            return tiles[0].to(dtype), 1.0
        unit = unit_of(*tiles)
        return (tiles[0] / unit).to(dtype), unit

    for i in range(2):
        load(begin + i)
    state = (
        warpgroup.zeros(f32, CHUNK, d) if before is None else warpgroup.load(before, (place, head, part, 0), rows=CHUNK)
    )
    if high is not None:
        state[:] = pk.where(pk.col_index(state) == pk.row_index(state) + (part - values) * CHUNK, 1.0, 0.0)
    for i in pk.range(begin, chunks):
        found = warpgroup.zeros(f32, CHUNK, CHUNK)  # here, so that it ends here
        out = None if o is None else warpgroup.zeros(f32, CHUNK, CHUNK)
        slot = ring.read()
        decay = decays[batch, head, first + i, 0] if decays is not None and not channels else 1.0
        past, unit = rounded(state)
        warpgroup.mm_ABt(found, past, slot.k)
        if o is not None:
            warpgroup.mm_ABt(out, past, slot.q)
        warpgroup.wait(found)
        value = warpgroup.load_transposed(slot.v).to(f32)
        if high is not None:
            value = pk.where(pk.row_index(value) + part * CHUNK < v.cols, value, 0.0)
        wanted = value - (found * unit if channels else found * unit * warpgroup.load_row(slot.keys))
        weighted, unit_w = rounded(wanted * warpgroup.load_row(slot.beta))
        warpgroup.mm_ABt(found, weighted, slot.w)
        if o is not None:
            warpgroup.wait(out)
            out[:] = out * unit
            if not channels or scaled:
                out[:] = out * warpgroup.load_row(slot.queries)
        warpgroup.wait(found)
        if scaled:
            found[:] = found * unit_w * warpgroup.load_row(slot.solved)
        wanted[:] = wanted - found
        change = wanted * warpgroup.load_row(slot.beta)
        if decays is not None:
            state[:] = state * (warpgroup.load_row(slot.decays) if channels else decay)
        kept_on, unit_l = rounded(change if channels else change * warpgroup.load_row(slot.adds), state)
        state[:] = state / unit_l if scaled else state
        warpgroup.mma_AB(state, kept_on, slot.lasting if channels else slot.k)
        if o is not None:
            current, unit_c = rounded(change, out)
            out[:] = out / unit_c if scaled else out
            warpgroup.mma_ABt(out, current, slot.p)
        warpgroup.wait()
        if scaled:
            state[:] = state * unit_l
        if out is None:
            out = wanted
        elif scaled:
            out[:] = out * unit_c * warpgroup.load_row(slot.unit)
        ring.release()
        load(i + 2)
        if written is None:
            continue
        warpgroup.tma.wait(read=True)
        warpgroup.sync()  # `result` and `kept` have been read
        warpgroup.store_transposed(result, out.to(dtype))
        if states is not None:
            warpgroup.store(kept, past)
        warpgroup.sync()
        warpgroup.tma.store(written, result, **rows.tile(batch, head, i, CHUNK, part, CHUNK))
        if states is not None:
            at = (first + i) * (v.cols // CHUNK) + part
            warpgroup.tma.store(states, kept, (batch, head, at, 0))
            if scaled:
                warpgroup.store(units, unit, (batch, head, at))
        warpgroup.tma.commit()
    if written is not None:
        warpgroup.tma.wait()
    if high is None:
        if after is not None:
            warpgroup.store(after, state, (place, head, part, 0))
        return
    with pk.when(part < values):
        warpgroup.store(after, state, (place, head, part, 0))
    with pk.otherwise():
        for to, term in zip((high, low), terms(state, bf16), strict=True):
            warpgroup.store(to, term, (place, head, part - values, 0))


class Operands(NamedTuple):
    """What a delta rule is called with, as its kernels read it."""

    q: Any
    k: Any
    v: Any
    log_decay: Any  # of heads, or (Kimi delta attention) of channels; or None
    beta: Any
    offsets: Any
    state: Any

    def made(self, dtype: str, *shape: int) -> Any:
        """Scratch memory, (batch, heads, *shape)."""
        info = arrays.describe(self.v)
        return arrays.empty(info.kind, (*info.shape[:2], *shape), dtype, info.device)

    @property
    def dtype(self) -> str:
        """That of products."""
        return arrays.describe(self.v).dtype

    @property
    def chunks(self) -> int:
        """How many chunks there may be."""
        n = arrays.describe(self.v).shape[2]
        return -(-n // CHUNK) if self.offsets is None else n // CHUNK + arrays.describe(self.offsets).shape[0] - 1

    @property
    def sequences(self) -> int:
        """How many there are, of a batch or packed."""
        return arrays.describe(self.v).shape[0] if self.offsets is None else arrays.describe(self.offsets).shape[0] - 1

    def squares(self) -> tuple[Any, Any, Any]:
        """W, P and the factors of rows."""
        rows = self.chunks * CHUNK
        return *(self.made(self.dtype, rows, CHUNK) for _ in range(2)), self.made("f32", len(FACTORS), rows)


def read(name: str, q: Any, k: Any, v: Any, beta: Any, log_decay: Any, state: Any, offsets: Any) -> Operands:
    """The operands of the function `name` as its kernels read them."""
    q, k, v, state = operands(name, q, k, v, state)
    check_decays(name, "log_decay", log_decay)
    beta = dense(beta, "beta")
    if log_decay is not None:  # of channels it has rows, which are read in place
        in_place = contiguous_rows if len(arrays.describe(log_decay).shape) == 4 else dense
        log_decay = in_place(log_decay, "log_decay")
    return Operands(q, k, v, log_decay, beta, readable_offsets(name, offsets, arrays.describe(v).shape[2]), state)


def solve(x: Operands, scale: float, norm: bool) -> tuple[Any, Any, Any, Any]:
    """What `prepare` makes."""
    made = *x.squares(), None if x.log_decay is None else x.made("f32", x.chunks, 1)
    prepare(*x[:6], *made, scale, norm=norm)
    return made


def parts(x: Operands) -> Parts:
    """How many parts sequences are walked in."""
    n = arrays.describe(x.v).shape[2]
    return parts_of(x.v, x.sequences, -(-n // CHUNK))


def beginnings(x: Operands, solved: tuple[Any, ...], cut: Parts, after: Any) -> tuple[Any, list[Any]]:
    """The states that parts begin with, and what each part does to a state; that behind the last goes to `after`."""
    info, d = arrays.describe(x.v), arrays.describe(x.q).shape[3]
    made, nothing = (x.sequences * cut.pieces, info.shape[1]), (None, None, None)
    local, starts = (arrays.empty(info.kind, (*made, info.shape[3], d), "f32", info.device) for _ in range(2))
    moves = [arrays.empty(info.kind, (*made, d, d), "bf16", info.device) for _ in range(2)]
    walk(*solved, None, None, local, *nothing, *moves, cut.each, cut.pieces)
    carry(x.state, local, *moves, starts, after, x.offsets, cut.each, cut.pieces)
    return starts, moves


def through(x: Operands, solved: tuple[Any, ...], o: Any, after: Any) -> None:
    """The walk through all chunks, from part to part where there are few heads. `solved`: what comes before `before`
    among its operands."""
    cut, nothing = parts(x), (None, None, None)
    if cut.pieces == 1:
        walk(*solved, x.state, o, after, *nothing, None, None, cut.each, cut.pieces)
        return
    starts, _ = beginnings(x, solved, cut, after)
    walk(*solved, starts, o, None, *nothing, None, None, cut.each, cut.pieces)


def _forward(*given: Any, norm: bool) -> None:
    x, (o, after, scale) = Operands(*given[:7]), given[7:]
    through(x, (x.q, x.k, x.v, x.offsets, *solve(x, scale, norm), None), o, after)


FORWARD = Launches(_forward)


def call(*given: Any, scale: float, norm: bool, exact: bool = False) -> KernelCall:
    """What writes o, and the state after the last row into `after` unless that is None: the last two of `given`, which
    come behind what `read` takes. `exact`: row by row, in float32.
    """
    *taken, o, after = given
    x = read("gated_delta_rule", *taken)
    return KernelCall(recur if exact else FORWARD, (*x, o, after, *((None,) if exact else ()), scale), {"norm": norm})
