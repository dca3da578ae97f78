"""Programs that are refused, and the same with what the error proposes: lines of a kernel (KERNELS) or of its caller
(CALLS).

The lines of KERNELS see what `HERE` makes. Each row is one `fix=` of the package: `test_fixes.py` finds which, by where
the first program's error comes from.
"""

from typing import Any

HERE = """
t, c = warp.zeros(f32, 16, 64), warp.zeros(f32, 16, 64, layout=pk.coalesced(8, 8))
b, j = warp.zeros(bf16, 16, 64), warp.zeros(i32, 16, 64)
col, part = warp.zeros_col(f32, 16), warp.zeros_col(f32, 16, partial=True)
s, v, tiles = pk.shared(pk.st(f32, 16, 64)), pk.shared(pk.sv(f32, 64)), pk.shared(pk.st(f32, 16, 64), count=2)
hs, acc = pk.shared(pk.st(bf16, 64, 64)), warp.zeros(f32, 16, 16)
bar, named = pk.barrier(), pk.named_barrier(8)
"""

EXCHANGE = "ring = pk.ring(1, pk.st(f32, 16, 64))\nwith ring.fill() as slot: "

# Operations as such: what the words above them do not let through.
OPS = """
from pykittens.ops import binary, copies, cross_warp, load, reduce
from pykittens.ops.layout_conversion import ConvertLayout
from pykittens.trace.recorder import record, result, scope_of
wide = block.zeros(f32, 1, 1024, layout=pk.coalesced(128, 8))
terms = result(reduce.Reduce(scope_of(4), "sum", wide, "col", True))
square = block.zeros(f32, 64, 64)
"""

# Functions that attention's kernels trace.
ATTEND = "import ml_dtypes\nH = np.ones((1, 1, 16, 64), ml_dtypes.bfloat16)\npk.attention(H, H, H, "

KERNELS: list[Any] = [
    # Numbers.
    ("warp.full(f32, 16, 64, 10**400)", "warp.full(f32, 16, 64, float('inf'))"),
    ("j[:] = 1.5", "j[:] = 1"),
    ("round(t, 2)", "pk.round(t * 100.0) / 100.0"),
    ("print(f'{n:04}')", "pk.print(n)"),
    # Barriers.
    ("pk.barrier(0)", "pk.barrier(1)"),
    ("pk.wait(pk.barrier(), 2)", "pk.wait(pk.barrier(), 2 % 2)"),
    ("pass", "pass", {"cluster": 17}, {"cluster": 16}),
    # Derivatives.
    ("pk.vjp(pk.tanh, j)", "pk.vjp(pk.tanh, t)"),
    ("pk.vjp(lambda x: None, t)", "pk.vjp(lambda x: x * x, t)"),
    ("pk.vjp(lambda x: warp.store(s, x) or x, t)", "y, pull = pk.vjp(lambda x: x * x, t)\nwarp.store(s, y)"),
    (
        "pk.derivative(lambda x: x * pk.var(f32, x.row_sum().sum()))(t)",
        "pk.derivative(lambda x: x * x.row_sum().sum())(t)",
    ),
    ("y, pull = pk.vjp(pk.exp, t)\ny += 1.0\npull(1.0)", "y, pull = pk.vjp(pk.exp, t)\npull(1.0)\ny += 1.0"),
    (
        "with pk.when(n > 0):\n    pull = pk.vjp(pk.exp, t + 1.0)[1]\n    keep = [pull]\nkeep[0](1.0)",
        "with pk.when(n > 0):\n    pull = pk.vjp(pk.exp, t + 1.0)[1]\n    keep = [pull(1.0)]",
    ),
    (
        "pk.derivative(lambda x: x[0:16, 0:16].row_sum())(warp.zeros(f32, 32, 32))",
        "pk.derivative(lambda x: x[:, 0:64].row_sum())(t)",
    ),
    (
        "from pykittens.ops import reduce as r\nfrom pykittens.trace.recorder import result, scope_of\n"
        "pk.derivative(lambda x: result(r.Reduce(scope_of(1), 'max', x, 'col', False, col)))(t)",
        "pk.derivative(lambda x: pk.maximum(x.row_max(), col))(t)",
    ),
    (
        "from pykittens.ops import reduce as r\nfrom pykittens.trace.recorder import result, scope_of\n"
        "part = warp.zeros_col(f32, 16, partial=True)\n"
        "pk.derivative(lambda x: result(r.Total(scope_of(1), 'max', x)))(part)",
        "pk.derivative(lambda x: x.row_max())(t)",
    ),
    ("pk.derivative(lambda x: x.row_cummax().row_sum())(t)", "pk.derivative(lambda x: x.row_cumsum().row_sum())(t)"),
    # Elements at indices.
    ("w[0, pk.row_index(t).to(f32)]", "w[0, pk.row_index(t)]"),
    ("w[0, j, 0, 0]", "w[0, 0, j, 0]"),
    ("warp.add(w, b, pk.at(0, j))", "warp.add(w, t, pk.at(0, j))"),
    ("warp.add(w, col, pk.at(0, j))", "warp.add(w, t, pk.at(0, j))"),
    (
        "k = warp.load_vec(i, (0, 0), length=64)\nwarp.add(w, warp.full_col(f32, 64, 1.0), pk.at(0, k))",
        "k = warp.load_vec(i, (0, 0), length=64)\nwarp.add(w, pk.full_like(k, 1, pk.f32), pk.at(0, k))",
    ),
    (
        "warp.min(i, j[:, 0:16].row_sum(True), pk.at(0, warp.iota_col(16)))",
        "warp.min(i, j[:, 0:16].row_sum(True).total(), pk.at(0, warp.iota_col(16)))",
    ),
    ("np.exp(t)", "pk.exp(t)"),
    ("np.where(t > 0, t, 0)", "pk.where(t > 0, t, 0)"),
    ("np.array(t)", "t * 2"),
    (
        "k = 0\nfor _ in pk.range(n): k = 1\nwarp.full(i32, 16, 64, k)",
        "k = pk.var(i32, 0)\nfor _ in pk.range(n): k[:] = 1\nwarp.full(i32, 16, 64, k)",
    ),
    ("warp.load(x, (0, 0), rows=2**20)", "for k in pk.range(pk.cdiv(x.rows, 16)): warp.load(x, (k, 0), rows=16)"),
    ("with n > 3: pass", "with pk.when(n > 3): pass"),
    ("k = pk.var(i32, 0)\nk.value = 3", "k = pk.var(i32, 0)\nk[:] = 3"),
    ("t if 0 < n < 3 else t * 2", "pk.where((0 < n) & (n < 3), t, t * 2)"),
    ("max(t, 0)", "pk.maximum(t, 0)"),
    ("n > 0 and n < 3", "(n > 0) & (n < 3)"),
    (
        "k = pk.var(i32, 0)\nwhile k < n: k += 1",
        "k = pk.var(i32, 0)\nfor _ in pk.loop():\n    pk.break_if(~(k < n))\n    k += 1",
    ),
    ("assert n > 0", "pk.assert_(n > 0)"),
    ("f = lambda n: f(n - 1) if not n is None else 0\nf(n)", "f = lambda n: f(n - 1) if n else 0\nf(3)"),
    ("pk.block_index()", "pk.block_index.x"),
    ("x + 1.0", "warp.load(x, (0, 0), rows=16) + 1.0"),
    ("t + [1, 2]", "t + 1"),
    ("t.to('bf16')", "t.to(pk.bf16)"),
    ("pk.random_bits(t, 3)", "pk.random_bits(t, (3, 0))"),
    ("t.row_sum(axis=1)", "t.row_sum(partial=False)"),
    (
        "k = warp.zeros(i32, 16, 64)\nwarp.store(x, warp.zeros(f32, 16, 16), pk.at(k, k))",
        "k = warp.zeros(i32, 16, 64)\nwarp.store(x, pk.full_like(k, 1, pk.f32), pk.at(k, k))",
    ),
    (
        "k = warp.zeros_col(i32, 16)\nwarp.store(x, part, pk.at(0, k))",
        "k = warp.zeros_col(i32, 16)\nwarp.store(x, part.total(), pk.at(0, k))",
    ),
    ("s[warp.zeros_col(i32, 16)]", "s[warp.zeros_col(i32, 16), 3]"),
    (
        "pk.atomic_add(pk.shared(pk.sv(i32, 64)), 0, 1, order='acq_rel', by=warp)",
        "pk.atomic_add(pk.shared(pk.sv(i32, 64)), 0, 1, by=warp)\npk.block.sync()",
    ),
    ("pk.full_like(16, 0.0)", "warp.full(f32, 16, 16, 0.0)"),
    ("pk.ones_like(part)", "pk.ones_like(part.total())"),
    ("pk.associative_scan(pk.maximum, col)", "pk.associative_scan(pk.maximum, t)"),
    ("pk.associative_scan(pk.maximum, t, along='rows')", "pk.associative_scan(pk.maximum, t, along='row')"),
    ("pk.associative_scan(lambda a, b: a[0], (t, t))", "pk.associative_scan(lambda a, b: (a[0] + b[0], b[1]), (t, t))"),
    (
        "warp.zeros(f32, 64, 64) + v",
        "warp.zeros(f32, 64, 64) + warp.load_row(v)\nwarp.zeros(f32, 64, 64) + warp.load_col(v)",
    ),
    ("t.as_vec()", "t.row_sum().as_vec()\npart.total().as_vec()"),
    (
        OPS + "from pykittens.ops.vector_conversion import ConvertVector\nk = block.iota(256)\n"
        "record(ConvertVector(scope_of(4), k, pk.rv(i32, 256, 'naive', warps=4, width=2)))",
        "block.iota(256).as_vec(width=2)",
    ),
    # Coordinates and memory.
    (
        "index = warp.load_col(i, (0, 0), length=16)\npk.tma.load(s, x, (index, 0), bar)",
        "index = warp.load_col(i, (0, 0), length=16)\nwarp.store(s, warp.load(x, (index, 0), rows=16, cols=64))",
    ),
    (
        "index = warp.load_vec(i, (0, 0), length=16)\nwarp.load(x, (index, 0), rows=16)",
        "index = warp.load_col(i, (0, 0), length=16)\nwarp.load(x, (index, 0), rows=16)",
    ),
    (
        "index = warp.load_col(i, (0, 0), length=16)\nwarp.load(x, (index, 0), rows=16, within=(0, 3))",
        "index = warp.load_col(i, (0, 0), length=16)\nwarp.load(x, (index, 0), rows=16)",
    ),
    (
        "index = warp.load_col(i, (0, 0), length=16)\nwarp.load(x, (index, 0), rows=16, layout=pk.coalesced(8, 8))",
        "index = warp.load_col(i, (0,), length=16, layout=pk.coalesced(8, 8))\n"
        "warp.load(x, (index, 0), rows=16, layout=pk.coalesced(8, 8))".replace("(0,)", "(0, 0)"),
    ),
    ("warp.load(x, (0, 0), rows=16, within=3)", "warp.load(x, (0, 0), rows=16, within=(0, 3))"),
    (
        "warp.store(x, c.col_sum(), (0, 0), within=(0, 3))",
        "warp.store(x, t.col_sum(), (0, 0), within=(0, 3))",
    ),
    ("warp.store(x, t, (0, 0), columns=(3, 9))", "warp.store(x, c, (0, 0), columns=(3, 9))"),
    ("warp.store(x, c, (0, 0), columns=3)", "warp.store(x, c, (0, 0), columns=(0, 3))"),
    ("pk.packed(x)", "pk.packed(one)"),
    (
        "pk.shares(x, x, 2)",
        "units = pk.shared(pk.sv(pk.i32, 128)); pk.shares(units, units, 2)",
    ),
    ("block.load_into(v, x, (0, 0), within=(0, 3))", "warp.load_vec(x, (0, 0), length=64, within=(0, 3))"),
    ("warp.load(x, (0, 1), rows=16)", "warp.load(x, (1, 0), rows=16)"),
    ("warp.load(x, (0.5, 0), rows=16)", "warp.load(x, (pk.cast(0.5 * n, pk.i32), 0), rows=16)"),
    ("warp.load(x, (0, col), rows=16, cols=16)", "warp.load(x, (0, n), rows=16, cols=16)"),
    ("warp.load(x, rows=16)", "warp.load(x, (0, 0), rows=16)"),
    ("warp.load(x, (0, 0, 0), rows=16)", "warp.load(x, (0, 0), rows=16)"),
    ("warp.load(x, (0, 0))", "warp.load(x, (0, 0), rows=16)"),
    ("warp.load_row(w, (0, 0))", "warp.load_row(w, (0, 0), length=64)"),
    ("warp.load(v)", "warp.load_row(v)"),
    ("warp.load_vec(s)", "warp.load(s)"),
    ("warp.load(s, (1, 0))", "warp.load(s[0:16, 0:64])"),
    ("warp.load(tiles)", "warp.load(tiles[0])"),
    ("warp.load(t)", "warp.load(s)"),
    ("warp.load(3.0, (0, 0))", "warp.load(x, (0, 0), rows=16)"),
    (
        "warp.load(x, (0, 0), rows=16, hint='stream')",
        "warp.load(x, (0, 0), rows=16, layout=pk.coalesced(8, 8), hint='stream')",
    ),
    (
        "warp.load(x, (0, 0), rows=16, layout=pk.coalesced(8, 8), hint='fast')",
        "warp.load(x, (0, 0), rows=16, layout=pk.coalesced(8, 8), hint='once')",
    ),
    (
        "warp.load(h, (0, 0), rows=16, layout=pk.coalesced(8, 1))",
        "warp.load(h, (0, 0), rows=16, layout=pk.coalesced(8, 1), dtype=f32)",
    ),
    ("warp.store(x, t, None)", "warp.store(x, t, (0, 0))"),
    ("warp.store(x, 3.0, (0, 0))", "warp.store(x, t, (0, 0))"),
    ("warp.store(tiles[0], tiles[1])", "warp.store(tiles[0], warp.load(tiles[1]))"),
    ("warp.store(tiles[0], warp.zeros(f32, 32, 64))", "warp.store(tiles[0], warp.zeros(f32, 16, 64))"),
    ("warp.store(x, part, (0, 0))", "warp.store(x, part.total(), (0, 0))"),
    ("block.load_into(t, x, (0, 0))", "block.load_into(s, x, (0, 0))"),
    ("block.load_into(s, s, (0, 0))", "block.load_into(s, x, (0, 0))"),
    ("block.load_into(hs, x, (0, 0))", "warp.store(hs[0:16, :], warp.load(x, (0, 0), rows=16))"),
    ("warp.wait_loads(n)", "warp.wait_loads(0)"),
    ("warp.set(s, 3, 1.0)", "warp.set(v, 3, 1.0)"),
    ("v[0:2]", "v[0]"),
    ("s[0]", "s[0:16, 0:64]"),
    ("tiles[0:1]", "tiles[0][0:16, :]"),
    ("tiles[2]", "tiles[1]"),
    ("tiles[0] = t", "warp.store(tiles[0], t)"),
    ("x[0, 0] = 1.0", "warp.set(x, (0, 0), 1.0)"),
    ("s[0:16, 0:64:2]", "s[0:16, 0:32]"),
    ("s[0:n, 0:64]", "s.part(0, 0, 16, 64)"),
    ("s.part(0, 48, 16, 32)", "s.part(0, 32, 16, 32)"),
    (
        "pk.tma.load(pk.shared(pk.st(bf16, 72, 64)).part(n, 0, 64, 64), h, (0, 0), bar)",
        "pk.tma.load(pk.shared(pk.st(bf16, 72, 64)).part(n * 8, 0, 64, 64), h, (0, 0), bar)",
    ),
    ("hs.part(0, n, 16, 16)", "hs.part(0, n * 8, 16, 16)"),
    ("pk.shared(f32)", "pk.shared(pk.st(f32, 16, 16))"),
    ("pk.shared(pk.st(f32, 16, 16), count=0)", "pk.shared(pk.st(f32, 16, 16), count=1)"),
    # Types.
    ("warp.zeros(f32, 20, 64)", "warp.zeros(f32, 16, 64)"),
    ("warp.zeros(pk.e4m3, 16, 64)", "warp.zeros(f32, 16, 64)"),
    ("warp.zeros(f32, 16, 64, layout='rows')", "warp.zeros(f32, 16, 64, layout='row')"),
    ("warp.zeros(f32, 3, 64, layout=pk.coalesced(8, 8))", "warp.zeros(f32, 4, 64, layout=pk.coalesced(8, 8))"),
    ("block.zeros(f32, 1, 64, layout=pk.coalesced(8, 8))", "block.zeros(f32, 1, 1024, layout=pk.coalesced(128, 8))"),
    ("pk.coalesced(64, 3)", "pk.coalesced(64, 4)"),
    ("warp.full_vec(f32, 0, 1.0)", "warp.full_vec(f32, 32, 1.0)"),
    ("warp.zeros_col(f32, 16, layout='col', partial=True)", "warp.zeros_col(f32, 16, layout='col')"),
    ("pk.rv(f32, 16, 'diagonal')", "pk.rv(f32, 16, 'col')"),
    ("pk.st(f32, 20, 64)", "pk.st(f32, 24, 64)"),
    ("pk.st(bf16, 16, 64, swizzle=256)", "pk.st(bf16, 16, 64, swizzle=128)"),
    ("pk.st(bf16, 16, 32, swizzle=128)", "pk.st(bf16, 16, 32, swizzle=64)"),
    ("pk.st(u8, 16, 16)", "pk.st(u8, 16, 32)"),
    ("pk.sv(f32, 0)", "pk.sv(f32, 16)"),
    # Elementwise.
    ("t + b", "t + b.to(pk.f32)"),
    ("t + warp.zeros(f32, 16, 32)", "t + warp.zeros(f32, 16, 64)"),
    ("t * warp.full_vec(f32, 64, 2.0)", "t * warp.full_vec(f32, 64, 2.0).as_row()"),
    ("c * warp.full_vec(f32, 16, 2.0)", "c * warp.full_vec(f32, 16, 2.0).as_col(layout=pk.coalesced(8, 8))"),
    (
        "i[warp.full_vec(i32, 16, 0), warp.full_vec(i32, 16, 0, width=2)]",
        "i[warp.full_vec(i32, 16, 0).as_vec(width=2), warp.full_vec(i32, 16, 0, width=2)]",
    ),
    ("warp.load(one, (0, 0), rows=1, cols=16)", "warp.load(one, 0, rows=1, cols=32, layout=pk.coalesced(32, 1))"),
    (
        "four = pk.group(4)\nfour.mma_ABt(four.zeros(f32, 64, 16), four.zeros(bf16, 64, 64), b)",
        "warp.mma_ABt(acc, b, b)",
    ),
    ("pk.group(2).zeros(f32, 32, 64) + warp.zeros(f32, 32, 64)", "warp.zeros(f32, 32, 64) + warp.zeros(f32, 32, 64)"),
    ("t * part", "t * part.total()"),
    ("part + 1.0", "part.total() + 1.0"),
    ("pk.exp(part)", "pk.exp(part.total())"),
    ("pk.exp(j)", "pk.exp(j.to(pk.f32))"),
    ("-(t > 0.0)", "-(t > 0.0).to(pk.i32)"),
    ("~t", "~t.to(pk.i32)"),
    ("(t > 0.0) * 3", "(t > 0.0).to(pk.i32) * 3"),
    ("t.take_rows(warp.iota(16))", "t.take_rows(range(15, -1, -1))"),
    ("import copy\nwarp.store(x, copy.deepcopy(t), (0, 0))", "warp.store(x, t + 0.0, (0, 0))"),
    ("pk.cast(n, np.float32)", "pk.cast(n, pk.f32)"),
    ("pk.arrive(bar, scope=1)", "pk.arrive(bar, scope=warp)"),
    ("s += 1.0", "warp.store(s, s + 1.0)"),
    ("x += 1.0", "warp.store(x, t + 1.0, (0, 0))"),
    ("j / 2", "j.to(pk.f32) / 2"),
    ("j + 0.5", "j.to(pk.f32) + 0.5"),
    ("t << 2", "t.to(pk.i32) << 2"),
    ("(t > 0.0) + (t > 1.0)", "(t > 0.0).to(pk.i32) + (t > 1.0).to(pk.i32)"),
    ("pk.fma(j, j, j)", "j * j + j"),
    ("pk.exp(x)", "pk.exp(warp.load(x, (0, 0), rows=16))"),
    ("t + x", "t + warp.load(x, (0, 0), rows=16)"),
    ("pk.sigmoid(3)", "pk.sigmoid(t)"),
    ("t.to(pk.e4m3)", "warp.store(pk.shared(pk.st(pk.e4m3, 16, 64)), t)"),
    ("pk.where(t, t, 0.0)", "pk.where(t > 0, t, 0)"),
    ("pk.where(1.5, t, 0.0)", "pk.where(t > 0, t, 0)"),
    ("pk.where(n, 1, 2)", "pk.where(n > 0, 1, 2)"),
    ("t[:] = warp.zeros(f32, 32, 64)", "wide = warp.zeros(f32, 32, 64)\nwide[:] = warp.zeros(f32, 32, 64)"),
    ("b[:] = t", "b[:] = t.to(pk.bf16)"),
    ("t[0] = 1.0", "t[:] = pk.where(pk.row_index(t) == 0, 1.0, t)"),
    ("t[0]", "t[:, 0:64]"),
    (
        "warp.load_vec(x, (0, 0), length=64)[3]",
        "y = warp.load_vec(x, (0, 0), length=64)\npk.where(pk.iota(y) == 3, y, 0).sum()",
    ),
    ("t.swap_layout()[:, 0:32]", "warp.store(s, t.swap_layout())\nwarp.load(s[:, 0:32])"),
    ("tiles + 1.0", "tiles[0] + 1.0"),
    ("t[:, 64]", "t[:, 63]"),
    ("part.cumsum()", "part.total().cumsum()"),
    ("t.cumsum()", "t.row_cumsum(), t.col_cumsum()"),
    ("t[:, 0:8]", "t[:, 0:16]"),
    ("pk.join(c, c)", "pk.join(t, t)"),
    ("pk.join(t, warp.zeros(f32, 32, 64))", "pk.join(t, warp.zeros(f32, 16, 64))"),
    ("pk.join(1, 2)", "pk.join(t, t)"),
    ("pk.stack(t.swap_layout(), t)", "pk.stack(t, t), pk.stack(c, c)"),
    ("pk.stack(t, acc)", "pk.stack(t[:, 0:16], acc)"),
    ("pk.stack(1, 2)", "pk.stack(t, t)"),
    ("pk.right_fill(col, 3, 0.0)", "pk.where(pk.iota(col) >= 3, 0.0, col)"),
    ("pk.right_fill(t, 0.5, 0.0)", "pk.right_fill(t, 3, 0.0)"),
    ("pk.row_index(col)", "pk.row_index(t)"),
    ("pk.iota(t)", "pk.row_index(t), pk.col_index(t)"),
    ("pk.rolls(x, (1,))", "pk.rolls(b, (1,))"),
    ("pk.rolls(t.swap_layout(), (1,))", "pk.rolls(t.swap_layout().swap_layout(), (1,))"),
    ("pk.rolls(b, (64,))", "pk.rolls(b, (63,))"),
    ("pk.random_bits(col, (1, 2))", "pk.random_bits(t, (1, 2))"),
    ("pk.random_bits(t, (1, 2), row=0.5)", "pk.random_bits(t, (1, 2), row=1)"),
    ("t.split_pairs()", "warp.load(x, (0, 0), rows=16, layout=pk.coalesced(8, 8)).split_pairs()"),
    ("pk.join_pairs(t, t)", "pk.join_pairs(*c.split_pairs())"),
    ("t.take_rows([0, 1])", "t.take_rows(range(16))"),
    ("t.take_rows([16] * 16)", "t.take_rows([15] * 16)"),
    (
        "warpgroup.zeros(f32, 64, 16).take_rows(range(63, -1, -1))",
        "warp.zeros(f32, 64, 16).take_rows(range(63, -1, -1))",
    ),
    ("acc.to(pk.bf16).unit_lower_inverse()", "acc.unit_lower_inverse()"),
    ("warp.load_transposed(s)", "warp.load(s)"),
    ("warp.load_pairs(s)", "warp.load(s)"),
    (
        "warp.load_pairs(pk.shared(pk.st(pk.e4m3, 16, 32)), layout='x')",
        "warp.load_pairs(pk.shared(pk.st(pk.e4m3, 16, 32)), layout='col')",
    ),
    ("warp.store_transposed(hs, warp.zeros(f32, 64, 64))", "warp.store_transposed(hs, warp.zeros(bf16, 64, 64))"),
    ("warp.store_transposed(hs, b)", "warp.store_transposed(hs[:, 0:16], b)"),
    ("col.cols", "col.length"),
    ("t.length", "t.rows, t.cols"),
    # Reductions.
    ("col.row_sum()", "warp.zeros_row(f32, 64).sum()"),
    ("t.col_sum(partial=True)", "t.col_sum()"),
    ("(t > 0.0).row_max()", "(t > 0.0).row_any()"),
    ("t.row_any()", "(t > 0).row_any()"),
    ("(t > 0.0).row_argmax()", "(t > 0.0).to(i32).row_argmax()"),
    (
        "(block.zeros(f32, 2, 256, layout=pk.coalesced(128, 2)) > 0.0).row_argmax()",
        "(block.zeros(f32, 2, 256, layout=pk.coalesced(128, 2)) > 0.0).to(i32).row_argmax()",
    ),
    ("t.row_topk(65)", "t.row_topk(64)"),
    ("col.total()", "col"),
    ("t.row_sum(onto=part)", "t.row_sum(True, onto=part)"),
    ("t.row_sum(onto=t.row_sum())", "t.row_sum(True, onto=t.row_sum(True)).total()"),
    ("t.row_sum(True, fade=part)", "t.row_sum(True, onto=part, fade=part)"),
    ("t.row_dot(b)", "t.row_dot(b.to(pk.f32))"),
    ("c.row_sum(True)", "c.row_sum()"),
    ("part.sum()", "part.total().sum()"),
    ("warp.load(w, (0, 0), rows=16, cols=w.rows)", "warp.load(x, (0, 0), rows=16, cols=x.cols)"),
    ("w[0:16, 0:64]", "warp.load(w, pk.at(0, 0), rows=16, cols=64)"),
    (
        "k = warp.load(x, (0, 0), rows=16, layout=pk.coalesced(4, 16))\npk.join_pairs(k, k)",
        "k = warp.load(x, (0, 0), rows=16, layout=pk.coalesced(8, 8))\npk.join_pairs(k, k)",
    ),
    ("j ** -1", "j.to(f32) ** -1"),
    ("n ** -1", "pk.cast(n, f32) ** -1"),
    ("b @ hs", "warp.mma_ABt(warp.zeros(f32, 16, 64), b, hs)"),
    ("pk.row_sums(t)", "t.row_sum()"),
    (
        "pk.row_sums(c, warp.zeros(f32, 16, 64, layout=pk.coalesced(16, 4)))",
        "c.row_sum()\nwarp.zeros(f32, 16, 64, layout=pk.coalesced(16, 4)).row_sum()",
    ),
    # Products.
    ("warp.mma_ABt(acc, s, hs[0:16, :])", "warp.mma_ABt(acc, s, tiles[0])"),
    ("warp.mma_AB(warp.zeros(f32, 16, 64), s, pk.shared(pk.st(f32, 64, 64)))", "warp.mma_ABt(acc, s, tiles[0])"),
    ("warp.mma_ABt(warp.zeros(i32, 16, 16), s, tiles[0])", "warp.mma_ABt(acc, s, tiles[0])"),
    (
        "k = pk.shared(pk.st(pk.i8, 16, 64))\nwarp.mma_ABt(warp.zeros(i32, 16, 16), k[:, 0:16], k[:, 0:16])",
        "k = pk.shared(pk.st(pk.i8, 16, 64))\nwarp.mma_ABt(warp.zeros(i32, 16, 16), k, k)",
    ),
    ("warp.mma_ABt(acc, t, t)", "warp.mma_ABt(acc, t.to(pk.bf16), pk.shared(pk.st(bf16, 16, 64)))"),
    ("warp.mma_ABt(warp.zeros(bf16, 16, 64), b, hs)", "warp.mma_ABt(warp.zeros(pk.f32, 16, 64), b, hs)"),
    ("warp.mma_ABt(acc, b, hs)", "warp.mma_ABt(warp.zeros(f32, 16, 64), b, hs)"),
    (
        "warp.mma_AB(warp.zeros(f32, 16, 64), warp.zeros(bf16, 16, 16), b)",
        "warp.mma_AB(warp.zeros(f32, 16, 64), warp.zeros(bf16, 16, 16), b.swap_layout())",
    ),
    ("warp.mma_AB(acc, x, hs)", "warp.mma_AB(warp.zeros(f32, 16, 64), b, hs)"),
    (
        "warp.mma_ABt(pk.group(2).zeros(f32, 32, 64), hs[0:32, :], hs)",
        "pk.group(2).mma_ABt(pk.group(2).zeros(f32, 32, 64), hs[0:32, :], hs)",
    ),
    (
        "warp.mma_ABt(warp.zeros(f32, 32, 64), pk.group(2).zeros(bf16, 32, 64), hs)",
        "warp.mma_ABt(warp.zeros(f32, 32, 64), warp.zeros(bf16, 32, 64), hs)",
    ),
    (
        "pk.group(2).mma_ABt(pk.group(2).zeros(f32, 32, 16), pk.group(2).zeros(bf16, 32, 64), b)",
        "pk.group(2).mma_ABt(pk.group(2).zeros(f32, 32, 64), pk.group(2).zeros(bf16, 32, 64), hs)",
    ),
    (
        "warpgroup.mma_ABt(warpgroup.zeros(bf16, 64, 64), hs, hs)",
        "warpgroup.mma_ABt(warpgroup.zeros(pk.f32, 64, 64), hs, hs)",
    ),
    (
        "warpgroup.mma_ABt(warpgroup.zeros(f32, 64, 64), hs, warpgroup.zeros(bf16, 64, 64))",
        "warpgroup.mma_ABt(warpgroup.zeros(f32, 64, 64), warpgroup.zeros(bf16, 64, 64), hs)",
    ),
    (
        "warpgroup.mma_ABt(warpgroup.zeros(f32, 64, 64), hs, pk.shared(pk.st(pk.f16, 64, 64)))",
        "warpgroup.mma_ABt(warpgroup.zeros(f32, 64, 64), hs, hs)",
    ),
    (
        "warpgroup.mma_ABt(warpgroup.zeros(f32, 64, 272), hs, pk.shared(pk.st(bf16, 272, 64)))",
        "for half in range(2):\n"
        "    warpgroup.mma_ABt(warpgroup.zeros(f32, 64, 136 - 8), hs, pk.shared(pk.st(bf16, 128, 64)))",
    ),
    (
        "warpgroup.mma_AB(warpgroup.zeros(f32, 64, 64), pk.shared(pk.st(pk.e4m3, 64, 64)), pk.shared(pk.st(pk.e4m3, "
        "64, 64)))",
        "warpgroup.mma_ABt(warpgroup.zeros(f32, 64, 64), pk.shared(pk.st(pk.e4m3, 64, 64)), pk.shared(pk.st(pk.e4m3, "
        "64, 64)))",
    ),
    (
        "wide = pk.shared(pk.st(f32, 64, 64))\n"
        "warpgroup.mma_ABt(warpgroup.zeros(f32, 64, 64), warpgroup.zeros(f32, 64, 64), wide)",
        "wide = pk.shared(pk.st(f32, 64, 64))\nwarpgroup.mma_ABt(warpgroup.zeros(f32, 64, 64), wide, wide)",
    ),
    (
        "warpgroup.mma_ABt(warpgroup.zeros(f32, 64, 64), warpgroup.zeros(bf16, 64, 64, layout='col'), hs)",
        "warpgroup.mma_ABt(warpgroup.zeros(f32, 64, 64), warpgroup.zeros(bf16, 64, 64, layout='row'), hs)",
    ),
    # Scalars and variables.
    ("x[0, 0] & 3", "pk.cast(x[0, 0], pk.i32) & 3"),
    ("~x[0, 0]", "~pk.cast(x[0, 0], pk.i32)"),
    ("n + 2**70", "n + 2**20"),
    ("pk.var(pk.bf16, 0)", "pk.var(pk.f32, 0)"),
    ("count = pk.var(i32, 0)\ncount[:] = 1.5", "count = pk.var(i32, 0)\ncount[:] = pk.cast(1.5, pk.i32)"),
    ("count = pk.var(i32, 0)\ncount[0] = 1", "count = pk.var(i32, 0)\ncount[:] = 1"),
    ("pk.at(0, 0) and pk.block.set(x, (0, 0), 'a')", "pk.block.set(x, (0, 0), 1.0)"),
    (
        "with pk.role('a', warps=1): pk.atomic_add(h, (0, 0), 1.0)",
        "with pk.role('a', warps=1): pk.atomic_add(x, (0, 0), 1.0)",
    ),
    (
        "with pk.role('a', warps=1): pk.atomic_add(i, (0, 0), x[0, 0])",
        "with pk.role('a', warps=1): pk.atomic_add(i, (0, 0), pk.cast(x[0, 0], pk.i32))",
    ),
    # Python values and what is known only later.
    ("if n > 3: pass", "with pk.when(n > 3):\n    t[:] = t + 1.0"),
    ("for _ in range(n): pass", "for _ in pk.range(n): pass"),
    ("float(n)", "pk.cast(n, pk.f32)"),
    ("len(t)", "t.rows"),
    ("[*t]", "t + 1.0"),
    ("t + np.ones((16, 64))", "t + warp.load(x, (0, 0), rows=16)"),
    # Control.
    ("for _ in pk.range(1, 2, 3, 4): pass", "for _ in pk.range(1, 2, 3): pass"),
    ("for _ in pk.range(0, 4, 0): pass", "for _ in pk.range(0, 4, 1): pass"),
    ("for _ in pk.range(4, unroll=0): pass", "for _ in pk.range(4, unroll=2): pass"),
    ("for _ in pk.range(x[0, 0]): pass", "for _ in pk.range(i[0, 0]): pass"),
    ("pk.break_if(n > 3)", "for _ in pk.loop():\n    pk.break_if(n > 3)"),
    ("with pk.when(n): pass", "with pk.when(n != 0): pass"),
    ("pk.when(n > 0)", "with pk.when(n > 0): pass"),
    (
        "inside = pk.when(n > 0)\nwith inside: pass\nwith inside: pass",
        "with pk.when(n > 0): pass\nwith pk.when(n > 0): pass",
    ),
    ("with pk.otherwise(): pass", "with pk.when(n > 0): t[:] = t + 1.0\nwith pk.otherwise(): t[:] = t + 2.0"),
    ("with pk.role('a'): pass", "with pk.role('a', warps=1): pass"),
    ("with pk.when(n > 0), pk.role('a', warps=1): pass", "with pk.role('a', warps=1), pk.when(n > 0): pass"),
    ("with pk.role('a', warps=1, registers=40): pass", "with pk.role('a', warpgroups=1, registers=40): pass"),
    ("with pk.role('a', warps=5): pass", "with pk.role('a', warps=4): pass"),
    ("pk.group(3).zeros(f32, 48, 16)", "with pk.role('a', warps=3):\n    pk.group(3).zeros(f32, 48, 16)"),
    (
        "for k in pk.range(4):\n    u = warp.zeros(f32, 16, 64)\nwarp.store(x, u, (0, 0))",
        "u = warp.zeros(f32, 16, 64)\nfor k in pk.range(4):\n    u[:] = u + 1.0\nwarp.store(x, u, (0, 0))",
    ),
    ("for k in pk.range(4):\n    t = t + 1.0", "for k in pk.range(4):\n    t[:] = t + 1.0"),
    (
        "count = 0\nfor k in pk.range(4):\n    warp.store(x, t * count, (k, 0))\n    count += 1",
        "count = pk.var(i32, 0)\nfor k in pk.range(4):\n    warp.store(x, t * pk.cast(count, f32), (k, 0))\n"
        "    count[:] = count + 1",
    ),
    ("return 3", "return"),
    ("yield", "pass"),
    (
        "import io\nturns = io.BytesIO()\nfor _ in pk.range(n):\n    t += turns.tell()\n    turns.write(b'x')",
        "turns = pk.var(f32, 0.0)\nfor _ in pk.range(n):\n    t += turns\n    turns += 1.0",
    ),
    ("pk.range(n)", "for _ in pk.range(n): pass"),
    ("pk.assert_(False)", "pk.assert_(True)"),
    # Barriers, rings and TMA.
    ("warp.sync_at(s)", "warp.sync_at(pk.named_barrier(warps=8))"),
    ("pk.wait(s, 0)", "pk.wait(pk.barrier(1), 0)"),
    ("pk.arrive(pk.barrier(n=2))", "pk.arrive(pk.barrier(n=2)[0])"),
    ("pk.tma.load(s, x, (0, 0))", "pk.tma.load(s, x, (0, 0), pk.barrier())"),
    ("pk.tma.load(t, x, (0, 0), bar)", "pk.tma.load(pk.shared(pk.st(f32, 16, 64)), x, (0, 0), bar)"),
    ("pk.tma.load(tiles, x, (0, 0), bar)", "pk.tma.load(tiles[0], x, (0, 0), bar)"),
    ("pk.tma.load(s, x, (0, 0), bar, hint='soon')", "pk.tma.load(s, x, (0, 0), bar, hint='evict_first')"),
    (
        "pk.tma.load(pk.shared(pk.st(f32, 512, 64)), x, (0, 0), bar)",
        "tall = pk.shared(pk.st(f32, 512, 64))\nfor half in range(2):\n"
        "    pk.tma.load(tall[half * 256:(half + 1) * 256, :], x, (half, 0), bar)",
    ),
    (
        "pk.tma.load(pk.shared(pk.sv(f32, 66)), x, (0, 0), bar)",
        "pk.tma.load(pk.shared(pk.sv(f32, 64)), x, (0, 0), bar)",
    ),
    ("pk.tma.load(s, q, (0, 0), bar)", "block.load_into(s, q, (0, 0))"),
    ("pk.tma.store_min(x, s, (0, 0))", "pk.tma.store_add(x, s, (0, 0))"),
    ("pk.ring(2)", "pk.ring(2, pk.st(f32, 16, 64))"),
    ("pk.ring(0, pk.st(f32, 16, 64))", "pk.ring(1, pk.st(f32, 16, 64))"),
    (
        "ring = pk.ring(2, a=pk.st(f32, 16, 64))\nwith ring.fill() as slot: slot.b",
        "ring = pk.ring(2, a=pk.st(f32, 16, 64))\nwith ring.fill() as slot: pk.tma.load(slot.a, x, (0, 0))",
    ),
    (
        "ring = pk.ring(2, pk.st(f32, 16, 64))\nwith ring.fill(): pass",
        "ring = pk.ring(2, pk.st(f32, 16, 64))\nwith ring.fill() as slot: pk.tma.load(slot, x, (0, 0))",
    ),
    (
        "ring = pk.ring(2, pk.st(f32, 16, 64))\nwith ring.fill() as a, ring.fill() as b: pass",
        "ring = pk.ring(2, pk.st(f32, 16, 64))\nwith ring.fill() as a: pk.tma.load(a, x, (0, 0))\n"
        "with ring.fill() as b: pk.tma.load(b, x, (0, 0))",
    ),
    (
        "ring = pk.ring(2, pk.st(f32, 16, 64))\nwith ring.fill() as slot, pk.when(n > 0): pk.tma.load(slot, x, (0, 0))",
        "ring = pk.ring(2, pk.st(f32, 16, 64))\nwith pk.when(n > 0), ring.fill() as slot: pk.tma.load(slot, x, (0, 0))",
    ),
    ("pk.wait_for_previous(independent=(t,))", "pk.wait_for_previous(independent=(x,))"),
    # Inlined CUDA, print.
    ("pk.cuda('{a} = {b};', writes={'a': pk.var(i32, 0)})", "pk.cuda('{a} = 3;', writes={'a': pk.var(i32, 0)})"),
    (
        "pk.cuda('{a} = 3;', writes={'a': pk.var(i32, 0)}, touches={'v': lambda i: i})",
        "pk.cuda('', reads={'v': v}, touches={'v': lambda i: i % 32})",
    ),
    ("pk.cuda('{a} = 3;', writes={'a': 4})", "pk.cuda('{a} = 3;', writes={'a': pk.var(i32, 0)})"),
    ("pk.print(s)", "pk.print(warp.load(s))"),
    ("pk.dynamic(x, n)", "pk.dynamic(one, n)"),
    # More of each.
    ("pk.where('a', 1, 2)", "pk.where(n > 0, 1, 2)"),
    ("pk.var(f32, t)", "pk.var(f32, 1.0)"),
    ("pk.tma.store(s, s, (0, 0))", "pk.tma.store(x, s, (0, 0))"),
    (
        "with pk.role('a', warps=1): pass\nwith pk.role('b', warpgroups=1): pass",
        "with pk.role('b', warpgroups=1): pass\nwith pk.role('a', warps=1): pass",
        {"warps": 8},
    ),
    (
        "work = pk.dynamic(one, n)\nwith pk.role('a', warps=1):\n    for k in work.take(): pass\n"
        "with pk.role('b', warps=1):\n    for k in work.take(): pass",
        "work = pk.dynamic(one, n)\nwith pk.role('a', warps=1):\n    for k in work.take(): pass\n"
        "with pk.role('b', warps=1):\n    for k in work: pass",
    ),
    ("pk.dynamic(one, n)", "pk.dynamic(one, n, taker=(0, 1))", {"cluster": 2}),
    ("pk.dynamic(one, n, taker=(2, 2))", "pk.dynamic(one, n, taker=(1, 2))"),
    (
        "ring = pk.ring(2, pk.st(f32, 8, 64))\nwith ring.fill() as slot: pk.tma.share(slot, x, (0, 0))",
        "ring = pk.ring(2, pk.st(f32, 16, 64))\nwith ring.fill() as slot: pk.tma.share(slot, x, (0, 0))",
        {"cluster": 2},
    ),
    (
        "ring = pk.ring(2, pk.st(i32, 16, 64))\nwith pk.role('give', warps=1): ring.hand(n)\n"
        "with pk.role('take', warps=1): ring.receive()",
        "ring = pk.ring(2, pk.sv(i32, 4))\nwith pk.role('give', warps=1): ring.hand(n)\n"
        "with pk.role('take', warps=1): ring.receive()",
    ),
    (
        "ring = pk.ring(1, pk.st(f32, 16, 64))\nring.drain()",
        "ring = pk.ring(1, pk.st(f32, 16, 64))\nwith pk.role('load', warps=1):\n"
        "    with ring.fill() as slot: pk.tma.load(slot, x, (0, 0))\n    ring.drain()\n"
        "with pk.role('use', warps=1):\n    with ring.reading() as slot: warp.load(slot)",
    ),
    ("for row, col in pk.grouped(n, n, 0): pass", "for row, col in pk.grouped(n, n, 8): pass"),
    ("pk.tma.exchange(s, s)", EXCHANGE + "pk.tma.exchange(slot, s)", {"cluster": 2}),
    (EXCHANGE + "pk.tma.exchange(slot, s)", EXCHANGE + "pk.tma.exchange(slot, s)", {}, {"cluster": 2}),
    (
        EXCHANGE + "pk.tma.exchange(slot, pk.shared(pk.st(f32, 32, 64)).part(0, 0, 16, 64))",
        EXCHANGE + "pk.tma.exchange(slot, s)",
        {"cluster": 2},
    ),
    (
        EXCHANGE + "pk.tma.exchange(slot, pk.shared(pk.st(bf16, 16, 64)))",
        EXCHANGE + "pk.tma.exchange(slot, s)",
        {"cluster": 2},
    ),
    (
        "ring = pk.ring(2, pk.st(f32, 16, 64))\nwith ring.fill() as slot: pk.tma.load(slot, x, (0, 0), multicast=3)",
        "ring = pk.ring(2, pk.st(f32, 16, 64))\n"
        "with ring.fill() as slot: pk.tma.load(slot, x, (0, 0), multicast=pk.cluster.everyone)",
        {"cluster": 4},
    ),
    (
        "c.row_sum(cluster=True)",
        "block.zeros(f32, 1, 1024, layout=pk.coalesced(128, 8)).row_sum(cluster=True)",
        {"cluster": 2},
    ),
    ("warp.store(s, j, rank=0)", "warp.store(s, t, rank=0)", {"cluster": 2}),
    ("warp.store(hs, t, rank=0)", "warp.store(s, t, rank=0)", {"cluster": 2}),
    ("pk.cluster.load(v, 1)", "pk.cluster.load(pk.shared(pk.st(f32, 64, 64)), 1)", {"cluster": 2}),
    (
        "pk.cuda('{pk_a} = 3;', writes={'pk_a': pk.var(i32, 0)})",
        "pk.cuda('{pka} = 3;', writes={'pka': pk.var(i32, 0)})",
    ),
    ("pk.tma.load(s, x, pk.at(0, n), bar)", "pk.tma.load(s, x, pk.at(0, n * 32), bar)"),
    (
        "pk.tma.load(pk.shared(pk.st(bf16, 64, 128)).part(0, 32, 64, 64), h, (0, 0), bar)",
        "pk.tma.load(pk.shared(pk.st(bf16, 64, 128)).part(0, 64, 64, 64), h, (0, 0), bar)",
    ),
    (
        "warpgroup.mma_ABt(warpgroup.zeros(f32, 64, 64), hs, pk.shared(pk.st(bf16, 64, 128)).part(0, 32, 64, 64))",
        "warpgroup.mma_ABt(warpgroup.zeros(f32, 64, 64), hs, pk.shared(pk.st(bf16, 64, 128)).part(0, 64, 64, 64))",
    ),
    (
        "warpgroup.mma_ABt(warpgroup.zeros(pk.f16, 64, 64), hs, hs)",
        "warpgroup.mma_ABt(warpgroup.zeros(f32, 64, 64), hs, hs)",
    ),
    ("v.part(0, 0, 8, 16)", "s.part(0, 0, 8, 16)"),
    ("with pk.when(n > 0):\n    return", "with pk.when(n > 0):\n    t[:] = t + 1.0"),
    (
        "k = 1\nwith pk.when(n > 0):\n    k = 2\nwarp.store(x, t * k, (0, 0))",
        "k = pk.var(f32, 1.0)\nwith pk.when(n > 0):\n    k[:] = 2.0\nwarp.store(x, t * k, (0, 0))",
    ),
    (
        "k = []\nfor _ in pk.range(4):\n    k.append(1)\n    warp.store(x, t * len(k), (0, 0))",
        "k = pk.var(f32, 0.0)\nfor _ in pk.range(4):\n    k[:] = k + 1.0\n    warp.store(x, t * k, (0, 0))",
    ),
    ("k = pk.when(n > 0)\nk.__enter__()", "with pk.when(n > 0): pass"),
    ("next(pk.range(4))", "for k in pk.range(4): pass"),
    ("reversed(pk.range(4))", "for k in pk.range(n - 1, -1, -1): pass"),
    ("pk.range(4)[0]", "for k in pk.range(4): pass"),
    ("with pk.loop(): pass", "for _ in pk.loop(): pk.break_if(n > 0)"),
    ("k = sum(1 for _ in pk.range(4))", "k = pk.var(i32, 0)\nfor _ in pk.range(4): k += 1"),
    ("t[:] += 1.0", "t += 1.0"),
    ("k = t[:]", "k = t + 0"),
    (
        "warp.set(v, 0, 1.0, order='release')",
        "warp.set(v, 0, 1.0)\nwarp.sync()",
    ),
    ("warp.set(x, (0, 0), 1.0, scope='gpu')", "warp.set(x, (0, 0), 1.0, order='release', scope='gpu')"),
    ("warp.set(x, (0, 0), 1.0, order='sometime')", "warp.set(x, (0, 0), 1.0, order='release')"),
    ("pk.fence('world')", "pk.fence('gpu')"),
    ("warp.set(h, (0, 0), 1.0, order='release')", "warp.set(x, (0, 0), 1.0, order='release')"),
    ("warp.set(i, (0, 0), x[0, 0], order='release')", "warp.set(i, (0, 0), pk.cast(x[0, 0], pk.i32), order='release')"),
    ("pk.signal(i, (0, 0), 0.5)", "pk.signal(i, (0, 0), 1)"),
    ("warp.add(x, 3.0, (0, 0))", "warp.add(x, t, (0, 0))"),
    ("warp.max(h, b, (0, 0))", "warp.max(x, b.to(pk.f32), (0, 0))"),
    (
        "warp.add(h, warp.full_vec(f32, 64, 1.0), (0, 0))",
        "warp.add(x, warp.full_vec(f32, 64, 1.0), (0, 0))",
    ),
    ("col.registers()", "warp.store(v, warp.zeros_row(f32, 64))"),
    ("t.registers(width=3)", "t.registers(width=4)"),
    ("t.registers().tile(16, 32)", "t.registers().tile(16, 64)"),
    (
        "ring = pk.ring(2, pk.st(f32, 16, 64))\nwith pk.role('a', warps=1):\n    ring.held()",
        "ring = pk.ring(2, pk.st(f32, 16, 64))\n"
        "with pk.role('b', warps=1), ring.fill() as slot: pk.tma.load(slot, x, (0, 0))\n"
        "with pk.role('a', warps=1):\n    slot = ring.read()\n    ring.held()\n    ring.release()",
    ),
    # Signatures: inside a kernel's body they are only values.
    ("pk.gl(3)", "pk.gl(pk.bf16, 3)"),
    ("pk.gl(f32, 0)", "pk.gl(f32, 1)"),
    ("pk.gl(f32, 1, 2, 3, 4, 5)", "pk.gl(f32, 2, 3, 4, 5)"),
    ("pk.gl(f32, 'N', 'D', dense=True)", "pk.gl(f32, 'N', pk.static('D'), dense=True)"),
    # What operations refuse by themselves.
    (OPS + "result(binary.Binary(scope_of(1), 'add', 1.0, 2.0))", "warp.full(f32, 16, 64, 1.0) + 2.0"),
    (
        OPS + "record(copies.CopyIn(scope_of(4), t, warp.load(x, (0, 0), rows=16).producer.source))",
        "block.load_into(s, x, (0, 0))",
    ),
    (
        OPS + "record(cross_warp.ShareTerms(scope_of(4), v, (col,)))",
        "wide = block.zeros(f32, 1, 1024, layout=pk.coalesced(128, 8))\nwide.row_sum()",
    ),
    (
        OPS + "record(cross_warp.ShareTerms(scope_of(4), v, (terms,)))",
        OPS + "record(cross_warp.ShareTerms(scope_of(4), pk.shared(pk.sv(f32, 4)), (terms,)))",
    ),
    (
        OPS + "result(reduce.Total(scope_of(4), 'sum', terms))",
        "block.zeros(f32, 1, 1024, layout=pk.coalesced(128, 8)).row_sum()",
    ),
    (OPS + "result(load.Load(scope_of(1), bar, t.type))", "warp.load(s)"),
    ("part.swap_layout('col')", "part.total().swap_layout('col')"),
    (
        OPS + "result(ConvertLayout(scope_of(4), wide, pk.coalesced(128, 4)))",
        "block.zeros(f32, 1, 1024, layout=pk.coalesced(128, 8)).swap_layout(pk.coalesced(128, 4))",
    ),
    (OPS + "result(ConvertLayout(scope_of(4), square, 'col', True))", "block.zeros(f32, 64, 64).transpose()"),
    (
        "col.transpose()",
        "col.as_row()",
    ),
    (
        "tall = pk.shared(pk.st(bf16, 8, 64))\nwarp.mma_AtB(warp.zeros(f32, 64, 64), tall, tall)",
        "tall = pk.shared(pk.st(bf16, 16, 64))\nwarp.mma_AtB(warp.zeros(f32, 64, 64), tall, tall)",
    ),
    (
        "tall = pk.shared(pk.st(bf16, 8, 64))\nwarpgroup.mma_AtB(warpgroup.zeros(f32, 64, 64), tall, tall)",
        "tall = pk.shared(pk.st(bf16, 16, 64))\nwarpgroup.mma_AtB(warpgroup.zeros(f32, 64, 64), tall, tall)",
    ),
    (
        "pair = pk.shared(pk.st(bf16, 128, 64))\nwarpgroup.mma_ABt(block.zeros(f32, 128, 64), pair, hs)",
        "pair = pk.shared(pk.st(bf16, 128, 64))\nwarpgroup.mma_ABt(warpgroup.zeros(f32, 128, 64), pair, hs)",
        {"warps": 8},
    ),
    (
        "ring = pk.ring(2, pk.st(f32, 16, 64))\nwith ring.fill() as slot: pk.tma.load(slot, x, (0, 0))\n"
        "ring.read()\nring.release(after=j)",
        "ring = pk.ring(2, pk.st(f32, 16, 64))\nwith ring.fill() as slot: pk.tma.load(slot, x, (0, 0))\n"
        "ring.release(after=warp.load(ring.read()).row_sum())",
    ),
    (
        "a = t\nfor _ in pk.range(4):\n    a = t + 1.0\nwarp.store(x, a, (0, 0))",
        "a = t\nfor _ in pk.range(4):\n    a[:] = t + 1.0\nwarp.store(x, a, (0, 0))",
    ),
    ("a, d = t, t + 1.0\nfor _ in pk.range(4):\n    a = d", "a, d = t, t + 1.0\nfor _ in pk.range(4):\n    a[:] = d"),
    (
        "k = iter((1.0, 2.0, 3.0, 4.0))\nfor _ in pk.range(4):\n    warp.store(x, t * next(k), (0, 0))",
        "k = pk.var(f32, 0.0)\nfor _ in pk.range(4):\n    k[:] = k + 1.0\n    warp.store(x, t * k, (0, 0))",
    ),
    (
        OPS + "pk.row_sums(wide, block.zeros(i32, 1, 1024, layout=pk.coalesced(128, 8)))",
        OPS + "pk.row_sums(wide)\npk.row_sums(block.zeros(i32, 1, 1024, layout=pk.coalesced(128, 8)))",
    ),
    (
        "@pk.kernel\ndef inner(x: pk.gl(f32, 'N', 64)): warp.store(x, t, (0, 0))\n"
        "inner.program(pk.spec(f32, (64, 64)))",
        "@pk.kernel\ndef inner(x: pk.gl(f32, 'N', 64)): warp.store(x, warp.zeros(f32, 16, 64), (0, 0))\n"
        "inner.program(pk.spec(f32, (64, 64)))",
    ),
    (
        "ring = pk.ring(2, pk.st(f32, 16, 64))\n"
        "with pk.role('a', warps=1), ring.fill() as slot: pk.tma.load(slot, x, (0, 0))\n"
        "with pk.role('b', warps=1), ring.put() as slot: warp.store(slot, t)",
        "ring, other = pk.ring(2, pk.st(f32, 16, 64)), pk.ring(2, pk.st(f32, 16, 64))\n"
        "with pk.role('a', warps=1), ring.fill() as slot: pk.tma.load(slot, x, (0, 0))\n"
        "with pk.role('b', warps=1), other.put() as slot: warp.store(slot, warp.zeros(f32, 16, 64))",
    ),
    ("pk.tma.load(bar, x, (0, 0), bar)", "pk.tma.load(s, x, (0, 0), bar)"),
]

COPY = """
@pk.kernel(warps=1)
def copy(x: pk.gl(f32, "N", 64), first: pk.i32) -> None:
    gate, tile = pk.barrier(), pk.shared(pk.st(f32, 16, 64))
    pk.tma.expect(gate, tile)
    pk.tma.load(tile, x, pk.at(4, 0), gate, within=(first, 20))
    pk.wait(gate, 0)
"""
CALLS: list[Any] = [
    ("pk.gl(f32, 'N', pk.static(64))", "pk.gl(f32, 'N', 64)\npk.gl(f32, 'N', pk.static('D'))"),
    (
        "class B:\n    @pk.kernel(warps=1)\n    def f(self, x: pk.gl(f32, 'N', 64)): pass",
        "class B:\n    @staticmethod\n    @pk.kernel(warps=1)\n    def f(x: pk.gl(f32, 'N', 64), *, self): pass\n"
        "b = B()\nb.f(A, self=b)",
    ),
    ("pk.kernel(3)", "pk.kernel(warps=1)(idle)"),
    (
        "@pk.kernel\ndef f(x: pk.gl(f32, 'N', 64), /): pass",
        "@pk.kernel\ndef f(x: pk.gl(f32, 'N', 64)): pass",
    ),
    (
        "import os\n@pk.kernel(warps=1)\ndef f(x: pk.gl(f32, 'N', 64)): warp.set(x, (0, 0), float(os.getenv('F', 2)))\n"
        "f(A)",
        "import os\n@pk.kernel(warps=1)\ndef f(x: pk.gl(f32, 'N', 64), *, by): warp.set(x, (0, 0), by)\n"
        "f(A, by=float(os.getenv('F', 2)))",
    ),
    (
        ATTEND + "score=lambda s, b, h, row, col, x: s * x[h, 0], score_operands=[A[0]])",
        ATTEND + "score=lambda s, b, h, row, col, x: s * x[0], score_operands=[A[0]])",
    ),
    (ATTEND + "score=lambda s, b, h, row, col: row)", ATTEND + "score=lambda s, b, h, row, col: s * 2.0)"),
    (ATTEND + "score=lambda s: s * 2.0)", ATTEND + "score=lambda s, batch, head, row, col: s * 2.0)"),
    (ATTEND + "mask=lambda b, h, row, col: row)", ATTEND + "mask=lambda b, h, row, col: row >= col)"),
    (
        ATTEND + "score=lambda s, b, h, row, col: s - s.row_max())",
        ATTEND + "score=lambda s, b, h, row, col: s - row.to(f32))",
    ),
    (COPY + "copy(A, 5)", COPY + "copy(A, 4)"),
    (
        "import types\nm = types.ModuleType('m')\nm.__getattr__ = lambda name: [1.0]\n@pk.kernel\n"
        "def f(x: pk.gl(f32, 'N', 64)): warp.zeros(f32, 16, 64) + m.scale[0]\nf(A)",
        "import types\nm = types.ModuleType('m')\nm.__getattr__ = lambda name: [1.0]\n@pk.kernel\n"
        "def f(x: pk.gl(f32, 'N', 64), *, by): warp.zeros(f32, 16, 64) + by\nf(A, by=m.scale[0])",
    ),
    (
        "class Made:\n    def __getattr__(self, name): return [1.0]\nmade = Made()\n@pk.kernel\n"
        "def f(x: pk.gl(f32, 'N', 64)): warp.zeros(f32, 16, 64) + made.scale[0]\nf(A)",
        "class Made:\n    def __getattr__(self, name): return [1.0]\nmade = Made()\n@pk.kernel\n"
        "def f(x: pk.gl(f32, 'N', 64), *, by): warp.zeros(f32, 16, 64) + by\nf(A, by=made.scale[0])",
    ),
    (
        "g = abs\nmade = np.frompyfunc(g, 1, 1)\n@pk.kernel\n"
        "def f(x: pk.gl(f32, 'N', 64)): warp.zeros(f32, 16, 64) + made(2.0)\nf(A)",
        "g = abs\nmade = np.frompyfunc(g, 1, 1)\n@pk.kernel\n"
        "def f(x: pk.gl(f32, 'N', 64)): warp.zeros(f32, 16, 64) + g(2.0)\nf(A)",
    ),
    (
        "import io\nstream = io.BytesIO(b'1')\n@pk.kernel\n"
        "def f(x: pk.gl(f32, 'N', 64)): warp.zeros(f32, 16, 64) + float(stream.getvalue())\nf(A)",
        "import io\nstream = io.BytesIO(b'1')\n@pk.kernel\n"
        "def f(x: pk.gl(f32, 'N', 64), *, by): warp.zeros(f32, 16, 64) + by\nf(A, by=float(stream.getvalue()))",
    ),
    (
        "many = tuple((i,) for i in map(str, range(5000)))\n@pk.kernel\n"
        "def f(x: pk.gl(f32, 'N', 64)): warp.zeros(f32, 16, 64) + len([*map(len, many)])\nf(A)",
        "many = tuple((i,) for i in map(str, range(5000)))\n@pk.kernel\n"
        "def f(x: pk.gl(f32, 'N', 64), *, by): warp.zeros(f32, 16, 64) + by\nf(A, by=len(many))",
    ),
    ("pk.spec('f32', (16, 64))", "pk.spec(pk.f32, (16, 64))"),
    ("pk.spec(f32, (16, 6.4))", "pk.spec(f32, (64, 128))"),
    ("pk.spec(f32, (16, 64), strides=(64,))", "pk.spec(f32, (16, 64), strides=(64, 1))"),
    ("pk.spec(f32, (16, 64), align=2)", "pk.spec(f32, (16, 64), align=4)"),
    ("k(A, A, A)", "k(A, A)"),
    ("k(A)", "k(A, A)"),
    ("k(A, A, x=A)", "k(A, y=A)"),
    ("k(A, A, z=1)", "k(A, A, by=1)"),
    ("k(A, [1.0])", "k(A, np.zeros((16, 64), np.float32))"),
    ("k(A, A.astype(np.float16))", "k(A, A.astype(np.float32))"),
    ("k(A[0], A)", "k(A[0][None].repeat(16, 0), A)"),
    ("k(A[:, :32], A)", "k(A[:, :64], A)"),
    ("k(A[:0], A[:0])", "k(A[:1], A[:1])"),
    ("k(A.T.copy().T, A)", "k(np.ascontiguousarray(A.T.copy().T), A)"),
    ("k(A[::-1], A)", "k(A[::-1].copy(), A)"),
    ("k(A, A[:8])", "k(A[:8], A[:8])"),
    ("k(A, np.broadcast_to(A[:1], (16, 64)))", "k(A, np.broadcast_to(A[:1], (16, 64)).copy())"),
    ("times(A, 1.5)", "times(A, 1)"),
    ("times(A, 'a')", "times(A, 1)"),
    ("times(A, 2**31)", "times(A, 2**31 - 1)"),
    ("scaled(A, 'a')", "scaled(A, 1.0)"),
    ("k(pk.spec(f32, (16, 64)), pk.spec(f32, (16, 64)))", "k.program(pk.spec(f32, (16, 64)), pk.spec(f32, (16, 64)))"),
    ("k.bind(A, A)", "k(A, A)"),
    ("pk.kernel(wraps=1)(k.function)", "pk.kernel(warps=1)(k.function)"),
    ("pk.kernel(warps=33)(idle)(A)", "pk.kernel(warps=32)(idle)(A)"),
    ("idle_kernel = pk.kernel(idle)\nidle_kernel[4](A)", "pk.kernel(grid=4)(idle)(A)"),
    (
        "@pk.kernel\ndef f(x: pk.gl(f32, 'N', 64), y: pk.gl(f32, 'N', 64) = A): pass\nf(A)",
        "@pk.kernel\ndef f(x: pk.gl(f32, 'N', 64), y: pk.gl(f32, 'N', 64) = None): pass\nf(A)",
    ),
    ("pk.kernel(grid=lambda rows: 1)(k.function)(A, A)", "pk.kernel(warps=1, grid=lambda x: 1)(k.function)(A, A)"),
    ("pk.kernel(registers=300)(idle)(A)", "pk.kernel(registers=255)(idle)(A)"),
    ("pk.kernel(pdl=1)(idle)(A)", "pk.kernel(pdl=True)(idle)(A)"),
    ("pk.kernel(grid=1.5)(idle)(A)", "pk.kernel(grid=pk.cdiv(3, 2))(idle)(A)"),
    ("pk.kernel(grid=(1, 1, 1, 1))(idle)(A)", "pk.kernel(grid=(1, 1, 1))(idle)(A)"),
    ("pk.kernel(grid=0)(idle)(A)", "pk.kernel(grid=1)(idle)(A)"),
    ("pk.kernel(grid=(1, 70000))(idle)(A)", "pk.kernel(warps=1, grid=(4, 1))(idle)(A)"),
    (
        "k(torch.zeros(16, 64, requires_grad=True), torch.zeros(16, 64))",
        "k(torch.zeros(16, 64, requires_grad=True).detach(), torch.zeros(16, 64))",
    ),
    (
        "by = torch.tensor(2.0, requires_grad=True)\n@pk.kernel\n"
        "def f(x: pk.gl(f32, 'N', 64)): warp.zeros(f32, 16, 64) + float(by)\nf(A)",
        "by = torch.tensor(2.0, requires_grad=True).item()\n@pk.kernel\n"
        "def f(x: pk.gl(f32, 'N', 64)): warp.zeros(f32, 16, 64) + float(by)\nf(A)",
    ),
    ("warp.zeros(f32, 16, 64)", "k(A, A)"),
    ("divided(A, 0)", "guarded(A, 0)"),
    (
        "@pk.kernel\ndef f(x: Annotated[pk.Scalar, bf16]): pass",
        "@pk.kernel\ndef f(x: Annotated[pk.Scalar, f32]): pass",
    ),
    (
        "@pk.kernel\ndef f(x: pk.gl(f32, 'N', 64), n: Annotated[pk.Scalar, pk.bool_]): pass\nf(A, 0.5)",
        "@pk.kernel\ndef f(x: pk.gl(f32, 'N', 64), n: Annotated[pk.Scalar, pk.bool_]): pass\nf(A, True)",
    ),
    (
        "@pk.kernel\ndef f(x: Annotated[pk.Scalar, f32, i32]): pass",
        "@pk.kernel\ndef f(x: Annotated[pk.Scalar, f32]): pass",
    ),
    (
        "table = np.ones((4, 4))\n@pk.kernel\n"
        "def f(x: pk.gl(f32, 'N', 64)): warp.zeros(f32, 16, 64) + float(table[0, 0])\nf(A)",
        "table = np.ones((4, 4))\n@pk.kernel\n"
        "def f(x: pk.gl(f32, 'N', 64), table: pk.gl(pk.f64, 4, 4)): warp.zeros(f32, 16, 64)\nf(A, table)",
    ),
    (
        "@pk.kernel\ndef f(x: pk.gl(f32, 'N', 64), *, by): pass\nf(A, by=A)",
        "@pk.kernel\ndef f(x: pk.gl(f32, 'N', 64), by: pk.gl(f32, 'N', 64)): pass\nf(A, by=A)",
    ),
    (
        "table = [1.0] * 100\n@pk.kernel\ndef f(x: pk.gl(f32, 'N', 64)): warp.zeros(f32, 16, 64) + sum(table)\nf(A)",
        "table = (1.0,) * 100\n@pk.kernel\ndef f(x: pk.gl(f32, 'N', 64)): warp.zeros(f32, 16, 64) + sum(table)\nf(A)",
    ),
    (
        "turns = iter([1, 2])\n@pk.kernel\ndef f(x: pk.gl(f32, 'N', 64)): warp.zeros(f32, 16, 64) + next(turns)\nf(A)",
        "@pk.kernel\ndef f(x: pk.gl(f32, 'N', 64), *, turn): warp.zeros(f32, 16, 64) + turn\nf(A, turn=1)",
    ),
    (
        "k(A, np.lib.stride_tricks.as_strided(A, (16, 64), (0, 4)))",
        "k(A, np.lib.stride_tricks.as_strided(A, (16, 64), (0, 4)).copy())",
    ),
    (
        "k.program(pk.spec(f32, (2**31, 64)), pk.spec(f32, (2**31, 64)))",
        "k.program(pk.spec(f32, (2**30, 64)), pk.spec(f32, (2**30, 64)))",
    ),
    (
        "@pk.kernel\ndef f(x: pk.gl(f32, 'N', 64)): pk.cuda('')\nf(A)",
        "@pk.kernel\ndef f(x: pk.gl(f32, 'N', 64)): pk.cuda('', numpy=lambda: ())\nf(A)",
    ),
    ("@pk.kernel\ndef untyped(x): pass", "@pk.kernel\ndef typed(x: pk.gl(f32, 16, 64)): pass"),
    ("scaled(A, 1e39)", "scaled(A, float('inf'))"),
    ("scaled(A, 10**400)", "scaled(A, float('inf'))"),
    (
        "class Elsewhere:\n    __cuda_array_interface__ = (\n"
        "        dict(shape=(16, 64), typestr='<f4', data=(0, False), version=3))\n"
        "k(A, Elsewhere())",
        "k(A, A.copy())",
    ),
    (
        "class Odd:\n    __slots__ = ()\n    def __eq__(self, other): return True\nodd = Odd()\n@pk.kernel\n"
        "def f(x: pk.gl(f32, 'N', 64)): assert odd\nf(A)",
        "@pk.kernel\ndef f(x: pk.gl(f32, 'N', 64), *, odd): assert odd\nf(A, odd=True)",
    ),
    (
        "@pk.kernel\ndef f(x: 'pk.gl(f32, missing, 64)'): pass",
        "missing = 'N'\n@pk.kernel\ndef f(x: 'pk.gl(f32, missing, 64)'): pass\nf(A)",
    ),
]
