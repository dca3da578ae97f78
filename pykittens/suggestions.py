"""What somebody who wrote a name that does not exist may have meant: words of other libraries, and misspelt ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable

_TO = "x.to(pk.f32), or to another dtype"
_SHAPE = "vectors broadcast by themselves; a tile keeps its shape: store it, and load what you need"
_BLOCK = "pk.block.sync(), or warp.sync() for the lanes of a warp"
_THREADS = "the threads of a scope work together; warp.index says which warp this is"

# Names of NumPy, torch, Triton and CUDA, and how the same is written here. A test finds every word.
ELSEWHERE = {
    **dict.fromkeys(("zeros", "empty"), "warp.zeros(dtype, rows, cols), or pk.zeros_like(x)"),
    "ones": "warp.ones(dtype, rows, cols), or pk.ones_like(x)",
    "full": "warp.full(dtype, rows, cols, value), or pk.full_like(x, value)",
    "arange": "warp.iota(length), or warp.iota_col(rows) and warp.iota_row(cols)",
    "sum": "x.sum(), or x.row_sum() and x.col_sum()",
    "max": "x.max(), or x.row_max() and x.col_max(); pk.maximum(a, b) of two",
    "min": "x.min(), or x.row_min() and x.col_min(); pk.minimum(a, b) of two",
    "prod": "x.row_prod() and x.col_prod()",
    **dict.fromkeys(
        ("mean", "var", "std", "row_mean", "row_var", "row_std"), "x.row_sum() / x.cols, of squares where you need them"
    ),
    **dict.fromkeys(("argmax", "argmin"), "x.row_argmax(), x.row_argmin(), or col_ for columns"),
    **dict.fromkeys(("sort", "argsort", "topk"), "x.row_topk(k)"),
    "cumsum": "x.row_cumsum() and x.col_cumsum(); x.cumsum() of a vector",
    "any": "x.any(), or x.row_any() and x.col_any()",
    "all": "x.all(), or x.row_all() and x.col_all()",
    **dict.fromkeys(("dot", "matmul", "mm", "mma", "gemm"), "warp.mma_AB(acc, a, b), and mma_ABt, mma_AtB, mma_AtBt"),
    **dict.fromkeys(("program_id", "blockIdx", "block_id"), "pk.block_index.x"),
    **dict.fromkeys(("num_programs", "gridDim"), "pk.grid_size.x"),
    **dict.fromkeys(("threadIdx", "thread_id", "thread_index", "lane_id", "laneid", "tid"), _THREADS),
    **dict.fromkeys(("syncthreads", "sync", "debug_barrier", "syncwarp"), _BLOCK),
    "load": "warp.load(x, coordinate, rows=16)",
    "store": "warp.store(y, tile, coordinate)",
    "atomic_add": "warp.add(y, tile, coordinate); pk.atomic_add(y, at, value) of one element",
    "atomic_max": "warp.max(y, tile, coordinate); pk.atomic_max(y, at, value) of one element",
    "atomic_min": "warp.min(y, tile, coordinate); pk.atomic_min(y, at, value) of one element",
    **dict.fromkeys(("T", "mT", "permute", "swapaxes"), "x.transpose()"),
    **dict.fromkeys(("astype", "type_as", "float", "half", "int", "long", "bool", "cast"), _TO),
    **dict.fromkeys(("reshape", "view", "flatten", "ravel", "unsqueeze", "squeeze", "expand", "broadcast_to"), _SHAPE),
    "expand_dims": _SHAPE,
    "to": "x.to(pk.f32) of a tile, pk.cast(x, pk.f32) of a scalar",
    **dict.fromkeys(("size", "ndim", "numel"), "x.rows and x.cols"),
    **dict.fromkeys(("concat", "concatenate", "cat", "hstack"), "pk.join(a, b), side by side"),
    "vstack": "pk.stack(a, b), one below the other",
    **{"float32": "pk.f32", "float16": "pk.f16", "bfloat16": "pk.bf16", "float64": "pk.f64", "int8": "pk.i8"},
    **{"int32": "pk.i32", "int64": "pk.i64", "uint8": "pk.u8", "uint32": "pk.u32", "float8_e4m3fn": "pk.e4m3"},
    "float8_e5m2": "pk.e5m2",
    **dict.fromkeys(("pow", "power"), "x ** y"),
    "square": "x * x",
    "reciprocal": "pk.rcp(x)",
    **dict.fromkeys(("clip", "clamp"), "pk.minimum(pk.maximum(x, low), high)"),
    "abs": "abs(x)",
    "sign": "pk.where(x > 0, 1.0, pk.where(x < 0, -1.0, 0.0))",
    "silu": "x * pk.sigmoid(x)",
    "gelu": "0.5 * x * (1.0 + pk.erf(x * 0.70710678))",
    **dict.fromkeys(("rand", "randint", "randn", "random"), "pk.random_bits(like, seed)"),
    "histogram": "warp.add(counts, pk.full_like(index, 1), pk.at(index))",
    **dict.fromkeys(("gather", "take"), "tensor[index]; whole rows by warp.load(x, (index, 0), rows=16)"),
    "scan": "pk.associative_scan(f, x)",
    **dict.fromkeys(("constexpr", "Constexpr"), 'pk.static("D")'),
    **dict.fromkeys(("jit", "prim_func"), "@pk.kernel"),
    "static_range": "Python's range: its loops run while a kernel is traced",
    "static_assert": "Python's assert: what is known while tracing is a Python value",
    "device_print": "pk.print(x)",
    "device_assert": "pk.assert_(condition)",
}


def meant(name: str, known: Iterable[str]) -> str:
    """What to write instead of `name`, where `known` are the names that there are; nothing where nobody knows."""
    known = [word for word in known if not word.startswith("_")]
    if name in ELSEWHERE:
        return f"; here: {ELSEWHERE[name]}"
    from difflib import get_close_matches

    found = get_close_matches(name, known, n=2)
    return f"; did you mean {' or '.join(found)}?" if found else ""


class NoSuchWord(AttributeError):
    """An attribute that is not there. Python asks for many that it can do without: what was meant is found when
    somebody reads it.
    """

    def __init__(self, what: str, name: str, known: Callable[[], Iterable[str]]):
        super().__init__(what, name)
        self._what, self._asked, self._known = what, name, known

    def __str__(self) -> str:
        return f"{self._what} has no attribute {self._asked!r}{meant(self._asked, self._known())}"
