"""The words that kernels are written with, in groups, each with the operations that it records.

    "pk.exp": "Unary.exp ScalarUnary.exp"       an operation, or of one its kind

A word in lower case before the dot is what a kernel holds: `x` a register tile or vector, `warp` any scope, `shared`,
`tensor`, `scalar`, `ring`, `turns`. What records nothing of its own is "" and is in a group of the language.
"""

from __future__ import annotations

from .. import vocabulary as pk

HELD: dict[str, type] = {  # what kernels hold, as words name it
    "x": pk.Tile,
    "tensor": pk.Tensor,
    "shared": pk.Shared,
    "scalar": pk.Scalar,
    "variable": pk.Variable,
    "ring": pk.Ring,
    "warp": pk.ScopeHandle,
    "turns": pk.Turns,
    "pk.tma": type(pk.tma),
    "pk.cluster": type(pk.cluster),
    "warpgroup": type(pk.warpgroup),
}

_PRODUCTS = {
    f"warp.{m}_{a}{b}": "Mma MmaBytes Wgmma" if (a, b) == ("A", "Bt") else "Mma Wgmma"
    for m in ("mma", "mm")
    for a in ("A", "At")
    for b in ("B", "Bt")
}
_ATOMICS = {f"pk.atomic_{kind}": f"Atomic.{kind}" for kind in ("add", "min", "max", "and", "or", "xor", "exch", "cas")}
_REDUCTIONS = {
    **{f"x.row_{kind}": f"Reduce.{kind} ShareTerms Combine SendTerms" for kind in ("max", "min", "sum", "prod")},
    **{f"x.col_{kind}": f"Reduce.{kind} ShareColumns CombineColumns" for kind in ("max", "min", "sum", "prod")},
}
_TWO = {
    **{"+": "add", "-": "sub", "*": "mul", "/": "div", "//": "floordiv", "%": "mod"},
    **{"&": "and", "|": "or", "^": "xor", "<<": "shl", ">>": "shr"},
    **{"<": "lt", "<=": "le", ">": "gt", ">=": "ge", "==": "eq", "!=": "ne"},
}
_FUNCTIONS = ("exp", "exp2", "log", "log2", "sqrt", "rsqrt", "round", "floor", "ceil", "trunc")

# Words that record operations.
WORDS: dict[str, dict[str, str]] = {
    "Making tiles and vectors": {
        **dict.fromkeys(("warp.full", "warp.zeros", "warp.ones", "warp.full_col", "warp.zeros_col"), "Fill"),
        **dict.fromkeys(("warp.full_row", "warp.zeros_row", "warp.full_vec"), "Fill"),
        **dict.fromkeys(("pk.full_like", "pk.zeros_like", "pk.ones_like"), "Fill"),
        **dict.fromkeys(("warp.iota", "warp.iota_col", "warp.iota_row"), "Positions"),
        **dict.fromkeys(("pk.row_index", "pk.col_index", "pk.iota"), "Positions"),
        "pk.random_bits": "RandomBits",
        "x[:] = y": "Assign",
        "x[:, 0:64]": "TilePart",
        "x[:, j]": "Positions Binary.eq Select Reduce.max",
        "pk.join": "TileJoin",
        "pk.stack": "TileStack",
        "pk.rolls": "Rolls",
        "x.take_rows": "TakeRows",
        "x.split_pairs": "SplitPairs",
        "pk.join_pairs": "JoinPairs",
    },
    "Elementwise": {
        **{f"x {symbol} y": f"Binary.{kind} ScalarBinary.{kind}" for symbol, kind in _TWO.items()},
        "x ** y": "Binary.pow ScalarBinary.pow",
        **{"-x": "Unary.neg ScalarUnary.neg", "abs(x)": "Unary.abs ScalarUnary.abs"},
        "~x": "Unary.not Unary.invert ScalarUnary.not ScalarUnary.invert",
        **{f"pk.{name}": f"Unary.{name} ScalarUnary.{name}" for name in _FUNCTIONS},
        **{f"pk.{name}": f"Unary.{name}" for name in ("rcp", "relu", "tanh", "sigmoid", "erf", "sin", "cos")},
        "pk.maximum": "Binary.max ScalarBinary.max",
        "pk.minimum": "Binary.min ScalarBinary.min",
        "pk.fma": "Fma ScalarFma",
        "x.to": "Convert",
        "pk.cast": "ScalarCast",
    },
    "Choosing": {
        "pk.where": "Select ScalarSelect",
        **dict.fromkeys(("pk.tril", "pk.triu", "pk.upper_fill", "pk.lower_fill"), "Positions Binary.gt Select"),
        "pk.upper_right_fill": "Positions Binary.lt Binary.and Select",
        **dict.fromkeys(("pk.right_fill", "pk.left_fill"), "SideFill"),
    },
    "Reducing": {
        **_REDUCTIONS,
        **dict.fromkeys(("x.row_dot", "pk.row_sums"), "Reduce.sum ShareTerms Combine SendTerms"),
        **dict.fromkeys(("x.row_any", "x.col_any"), "Convert Reduce.max Binary.ne"),
        **dict.fromkeys(("x.row_all", "x.col_all"), "Convert Reduce.min Binary.ne"),
        **dict.fromkeys(
            ("x.row_argmax", "x.row_argmin", "x.col_argmax", "x.col_argmin", "x.row_topk"), "TopK SortKeys FromKeys"
        ),
        "x.total": "Total ShareColumns CombineColumns",
        **{f"x.{kind}": f"VectorReduce.{kind}" for kind in ("sum", "max", "min")},
        **{
            f"x.{line}cum{kind}": f"Scan.{kind} ScanSegments CombineSegments"
            for line in ("row_", "col_", "")
            for kind in ("sum", "prod", "max", "min")
        },
        "pk.associative_scan": "Rolls Select",
        "x.any": "Convert VectorReduce.max ScalarBinary.ne",
        "x.all": "Convert VectorReduce.min ScalarBinary.ne",
    },
    "Layouts": {
        **dict.fromkeys(("x.transpose", "x.swap_layout"), "ConvertLayout ShareElements TakeElements"),
        **dict.fromkeys(("x.as_vec", "x.as_col", "x.as_row"), "ConvertVector"),
        **{"x.registers": "ToVector", "x.tile": "FromVector"},
    },
    "Products": {**_PRODUCTS, "x.unit_lower_inverse": "UnitLowerInverse"},
    "Moving between memory and registers": {
        **dict.fromkeys(("warp.load", "warp.load_vec", "warp.load_col", "warp.load_row"), "Load"),
        "warp.store": "Store CopyOut StoreRemote Scatter",
        "warp.add": "GlobalReduce.add AddVector SharedReduce.add ScatterReduce.add",
        **{f"warp.{kind}": f"GlobalReduce.{kind} SharedReduce.{kind} ScatterReduce.{kind}" for kind in ("min", "max")},
        "warp.load_transposed": "LoadTransposed",
        "warp.load_pairs": "LoadPairs",
        "warp.store_transposed": "StoreTransposed",
        "warp.set": "StoreScalar StrongStore",
        **{"tensor[i, j]": "LoadScalar Gather", "tensor.load": "StrongLoad"},
        "shared[i, j]": "LoadScalar Gather",
    },
    "Copies between global and shared memory": {
        "warp.load_into": "CopyIn",
        "warp.load_async": "CopyAsync",
        "warp.commit": "CommitCopies",
        "warp.wait_loads": "WaitCopies",
        **{"pk.tma.load": "TmaLoad", "pk.tma.share": "TmaLoad", "pk.tma.prefetch": "TmaPrefetch"},
        "pk.tma.expect": "Arrive",
        "pk.tma.store": "TmaStore.store",
        **{f"pk.tma.store_{kind}": f"TmaStore.{kind}" for kind in ("add", "min", "max")},
        "pk.tma.commit": "CommitBulk",
        "pk.tma.wait": "WaitBulk",
        "pk.cluster.load": "LoadRemote",
        **{"pk.tma.send": "BulkSend", "pk.tma.exchange": "BulkSend"},
        "shared.part": "Part",
        "shared[i]": "Item",
    },
    "Between warps": {
        "warp.sync": "Barrier",
        "warp.arrive_at": "NamedArrive",
        "warp.sync_at": "NamedSync",
        "warpgroup.wait": "WgmmaWait",
        "pk.cluster.sync": "ClusterBarrier",
        **{"pk.arrive": "Arrive", "pk.wait": "Wait"},
        **{"ring.fill": "Wait Arrive Advance", "ring.put": "Wait Arrive Advance", "ring.read": "Wait Advance"},
        **{"ring.hand": "Wait StoreOne Arrive Advance", "ring.receive": "Wait LoadScalar Arrive Advance"},
        **{"ring.drain": "Wait Advance"},
        **{"ring.release": "Arrive Advance", "ring.reading": "Wait Arrive Advance"},
        **dict.fromkeys(("turns.start", "turns.give"), "NamedArrive"),
        **dict.fromkeys(("turns.wait", "turns.finish"), "NamedSync"),
    },
    "Between blocks, and kernels": {
        **_ATOMICS,
        **{"pk.fence": "MemoryFence", "pk.signal": "Signal", "pk.wait_for": "WaitFor"},
        **{"pk.wait_for_previous": "DependencyWait", "pk.launch_next": "DependencyLaunch"},
    },
    "Scalars and variables": {
        "pk.var": "DeclareVariable",
        "variable.set": "SetVariable",
        "pk.grouped": "GroupedTile",
        **dict.fromkeys(
            ("pk.block_index", "pk.grid_size", "warp.index", "pk.cluster.rank", "pk.cluster.index"), "Index"
        ),
        **dict.fromkeys(("tensor.batch", "tensor.depth", "tensor.rows", "tensor.cols"), "Dimension"),
    },
    "Looking inside": {"pk.print": "Print", "pk.assert_": "Assert", "pk.cuda": "Inline"},
}

# Words that record no operation of their own: control flow, types, names, what is known while tracing.
LANGUAGE: dict[str, str] = {
    "Kernels": "pk.kernel pk.Kernel pk.gl pk.static pk.spec pk.at pk.derivative pk.vjp",
    "Measuring": "pk.do_bench pk.autotune",
    "Control flow": "pk.range pk.loop pk.break_if pk.when pk.otherwise pk.role "
    "pk.persistent pk.rectangle pk.triangle pk.band pk.packed pk.stretch pk.dynamic pk.shares pk.cdiv",
    "Scopes": "pk.warp pk.warpgroup pk.group pk.block pk.tma pk.cluster pk.ScopeHandle warp.warps warp.scope "
    "warp.count warpgroup.tma pk.cluster.size pk.cluster.everyone",
    "Memory": "pk.shared pk.ring pk.barrier pk.named_barrier pk.turns ring.held pk.Shared pk.Ring pk.Turns pk.Tensor",
    "Types": "pk.rt pk.rv pk.st pk.sv pk.coalesced pk.DType pk.bf16 pk.f16 pk.f32 pk.f64 pk.e4m3 pk.e5m2 pk.i8 pk.i32 "
    "pk.i64 pk.u8 pk.u32 pk.bool_ pk.inf pk.Tile pk.Scalar pk.Variable",
    "Known while tracing": "x.dtype x.shape x.rows x.cols x.length shared.dtype shared.shape shared.rows shared.cols "
    "shared.length tensor.dtype tensor.shape scalar.dtype",
    "Errors": "pk.ArgumentError pk.BarrierError pk.DeadlockError pk.Diagnosis pk.InFlightError pk.KernelAssertionError "
    "pk.KernelError pk.OutOfBoundsError pk.RaceError pk.ResourceError pk.TraceError pk.TypeRuleError "
    "pk.UninitializedError",
}

# Operations that no word records: the compiler adds them.
COMPILERS = {"ProxyFence": "a fence before the async proxy, from what was written (`passes/fences.py`)"}


def words() -> dict[str, str]:
    """Every word that records operations, with these."""
    return {word: ops for group in WORDS.values() for word, ops in group.items()}
