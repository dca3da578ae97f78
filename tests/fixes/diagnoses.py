"""Programs that the simulator diagnoses, and the same with what the diagnosis proposes: lines of a kernel.

Each row is: what the fix says (`test_diagnoses.py` has all that the simulator may say), the lines that are wrong, those
that are right, and options: of the kernel, and `n`. `ARGUMENTS` says what the lines see.
"""

from typing import Any

ARGUMENTS = 'x: pk.gl(f32, "N", 16), y: pk.gl(f32, "M", 16), h: pk.gl(bf16, 64, 64), f: pk.gl(i32, 8), n: i32'
HERE = """
t, s = pk.shared(pk.st(f32, 16, 16)), pk.shared(pk.st(f32, 16, 16))
b, two = pk.barrier(1, name="b"), pk.shared(pk.sv(f32, 32))
ones, me = (lambda: warp.ones(f32, 16, 16)), pk.block_index.x
def load(i=0): pk.tma.expect(b, t); pk.tma.load(t, x, (i, 0), b)
def role(name): return pk.role(name, warps=1)
"""
CLUSTER: dict[str, Any] = {"grid": (2, 1, 1), "cluster": (2, 1, 1)}
TWO: dict[str, Any] = {"warps": 2}
BLOCKS: dict[str, Any] = {"grid": (2, 1, 1)}
GROUP: dict[str, Any] = {"warps": 4}

FOUR = """
tile, acc = pk.shared(pk.st(bf16, 64, 64)), warpgroup.zeros(f32, 64, 64)
warpgroup.load_into(tile, h, (0, 0))
warpgroup.sync()
warpgroup.mma_ABt(acc, tile, tile)
"""
STORE = "warp.store(t, ones())\nwarp.sync()\npk.tma.store(y, t, (0, 0))\npk.tma.commit()\n"

BACK = """
back = pk.barrier(1)
with role('waits'):
    pk.wait(b, 0)
    {}
with role('arrives'):
    pk.arrive(b)
    pk.wait(back, 0)
    pk.arrive(b)
with role('gives leave'):
    {}
"""

ROWS: list[tuple[str, str, str, dict[str, Any]]] = [
    # gathered rows
    (
        "make the rows differ (-1 for one that is not written), or add with warp.add",
        "warp.store(y, ones(), (warp.zeros_col(i32, 16), 0))",
        "warp.add(y, ones(), (warp.zeros_col(i32, 16), 0))",
        {},
    ),
    (
        "make the places differ (-1 for one that is not written), or add with warp.add",
        "warp.store(f, warp.iota(8), pk.at(warp.iota(8) // 2))",
        "warp.add(f, warp.iota(8), pk.at(warp.iota(8) // 2))",
        {},
    ),
    # mbarriers
    (
        "let whoever arrives at b wait first for what the phase before hands over, or count it in "
        "the barrier's arrivals",
        "with role('a'):\n    pk.arrive(b)\nwith role('c'):\n    pk.arrive(b)",
        "b = pk.barrier(2)\nwith role('a'):\n    pk.arrive(b)\nwith role('c'):\n    pk.arrive(b)\n    pk.wait(b, 0)",
        TWO,
    ),
    (
        "wait for the phases of b one after another",
        "with role('a'):\n    for i in pk.range(2):\n        pk.arrive(b)\n        pk.wait(b, i & 1)\n"
        "with role('c'):\n    pk.wait(b, 1)",
        "with role('a'):\n    pk.arrive(b)\n    pk.wait(b, 0)\nwith role('c'):\n    pk.wait(b, 0)",
        TWO,
    ),
    (
        "promise the bytes of all loads that complete on b",
        "pk.tma.expect(b, t)\npk.tma.load(t, x, (0, 0), b)\npk.tma.load(s, x, (1, 0), b)\npk.wait(b, 0)",
        "pk.tma.expect(b, t, s)\npk.tma.load(t, x, (0, 0), b)\npk.tma.load(s, x, (1, 0), b)\npk.wait(b, 0)",
        {},
    ),
    (
        "let every warp that waits for b arrive (or meet one that does) before the phase after it can end",
        BACK.format("pass", "pk.arrive(back)"),
        BACK.format("pk.arrive(back)", "pass"),
        {"warps": 3},
    ),
    # Named barriers.
    (
        "make it for all warps that arrive and wait in one phase",
        "m = pk.named_barrier(warps=2)\nwith pk.role('a', warps=3):\n    pk.group(3).sync_at(m)",
        "m = pk.named_barrier(warps=3)\nwith pk.role('a', warps=3):\n    pk.group(3).sync_at(m)",
        {"warps": 3},
    ),
    (
        "let a phase end (its other warps arrive or wait) before the same warps come again",
        "m = pk.named_barrier(warps=3)\nwith role('a'):\n    warp.arrive_at(m)\n    warp.arrive_at(m)\n"
        "with role('c'):\n    warp.sync_at(m)",
        "m = pk.named_barrier(warps=2)\nwith role('a'):\n    warp.arrive_at(m)\nwith role('c'):\n    warp.sync_at(m)",
        TWO,
    ),
    (
        "let it wait for that phase, or for a warp that did",
        "m = pk.named_barrier(warps=2)\nwith role('a'):\n    warp.sync_at(m)\nwith role('c'):\n    warp.sync_at(m)\n"
        "with role('d'):\n    warp.sync_at(m)\nwith role('e'):\n    warp.sync_at(m)",
        "m = pk.named_barrier(warps=4)\nwith role('a'):\n    warp.sync_at(m)\nwith role('c'):\n    warp.sync_at(m)\n"
        "with role('d'):\n    warp.sync_at(m)\nwith role('e'):\n    warp.sync_at(m)",
        GROUP,
    ),
    (
        "keep the index within 0 to 1, or make more with pk.named_barrier(count=4)",
        "m = pk.named_barrier(warps=1, count=2)\nwarp.sync_at(m, n)",
        "m = pk.named_barrier(warps=1, count=4)\nwarp.sync_at(m, n)",
        {},
    ),
    # What is not done when a block ends.
    (
        "wait for it before the kernel ends",
        "warp.load_async(t, x, (0, 0))\nwarp.commit()",
        "warp.load_async(t, x, (0, 0))\nwarp.commit()\nwarp.wait_loads(0)",
        {},
    ),
    (
        "wait for it before the kernel ends (at least until its source has been read)",
        STORE,
        STORE + "pk.tma.wait(read=True)",
        {},
    ),
    ("wait for every load, or do not issue it", "load()", "load()\npk.wait(b, 0)", {}),
    (
        "let the blocks of the cluster meet before they end: pk.cluster.sync()",
        "with pk.when(pk.cluster.rank == 0):\n    pk.arrive(b, rank=1)",
        "with pk.when(pk.cluster.rank == 0):\n    pk.arrive(b, rank=1)\npk.cluster.sync()",
        CLUSTER,
    ),
    (
        "let the blocks of the cluster meet first: pk.cluster.sync()",
        "warp.store(t, ones(), rank=1 - pk.cluster.rank)\npk.cluster.sync()",
        "pk.cluster.sync()\nwarp.store(t, ones(), rank=1 - pk.cluster.rank)\npk.cluster.sync()",
        {**CLUSTER, "plain": True},
    ),
    # Races.
    (
        "store or load it first, and wait for what does",
        "warp.store(y, warp.load(t), (0, 0))",
        "warp.store(t, ones())\nwarp.store(y, warp.load(t), (0, 0))",
        {},
    ),
    (
        "put a barrier between the two lines that both meet: pk.block.sync(), or that of their group",
        "warp.set(two, warp.index, 1.0)\nwarp.set(y, (warp.index, 0), two[1 - warp.index])",
        "warp.set(two, warp.index, 1.0)\npk.block.sync()\nwarp.set(y, (warp.index, 0), two[1 - warp.index])",
        TWO,
    ),
    (
        "wait for the copy (wait_loads), and meet in a barrier where other warps copied a part",
        "warp.load_async(t, x, (0, 0))\nwarp.commit()\nwarp.store(y, warp.load(t), (0, 0))\nwarp.wait_loads(0)",
        "warp.load_async(t, x, (0, 0))\nwarp.commit()\nwarp.wait_loads(0)\nwarp.sync()\n"
        "warp.store(y, warp.load(t), (0, 0))",
        {},
    ),
    (
        "close the group (commit) before you wait: an open group is not waited for",
        "warp.load_async(t, x, (0, 0))\nwarp.wait_loads(0)\nwarp.store(y, warp.load(t), (0, 0))\nwarp.commit()",
        "warp.load_async(t, x, (0, 0))\nwarp.commit()\nwarp.wait_loads(0)\nwarp.store(y, warp.load(t), (0, 0))",
        {},
    ),
    (
        "wait for the matrix product (warpgroup.wait) before its operands are overwritten",
        FOUR + "warpgroup.load_into(tile, h, (0, 0))\nwarpgroup.wait(acc)",
        FOUR + "warpgroup.wait(acc)\nwarpgroup.load_into(tile, h, (0, 0))",
        GROUP,
    ),
    (
        "wait until the bulk store has read its tile before it is overwritten",
        STORE + "warp.store(t, ones())\npk.tma.wait()",
        STORE + "pk.tma.wait(read=True)\nwarp.store(t, ones())\npk.tma.wait()",
        {},
    ),
    (
        "wait for the bulk store to finish before touching what it writes",
        STORE + "pk.tma.wait(read=True)\nwarp.store(y, warp.load(y, (0, 0), rows=16), (1, 0))\npk.tma.wait()",
        STORE + "pk.tma.wait()\nwarp.store(y, warp.load(y, (0, 0), rows=16), (1, 0))",
        {},
    ),
    (
        "wait on the mbarrier that the load completes on, with its phase's parity (0 for the first), before "
        "touching the bytes it writes",
        "load()\nwarp.store(y, warp.load(t), (0, 0))\npk.wait(b, 0)",
        "load()\npk.wait(b, 0)\nwarp.store(y, warp.load(t), (0, 0))",
        {},
    ),
    *(
        (
            "let one warp do it (with pk.when(warp.index == 0):), give each warp elements of its own, or put a barrier "
            "at the end of the loop they are in",
            wrong,
            right,
            TWO,
        )
        for wrong, right in (
            ("warp.set(two, 0, 1.0)", "warp.set(two, warp.index, 1.0)"),
            (
                "warp.load_async(t, x, (0, 0))\nwarp.commit()\nwarp.wait_loads()",
                "with pk.when(warp.index == 0):\n    warp.load_async(t, x, (0, 0))\nwarp.commit()\nwarp.wait_loads()",
            ),
            ("warp.set(y, (0, 0), 1.0)", "with pk.when(warp.index == 0):\n    warp.set(y, (0, 0), 1.0)"),
            (
                "for i in pk.range(2):\n    with pk.when(warp.index == i):\n        warp.set(y, (0, 0), 1.0)",
                "for i in pk.range(2):\n    with pk.when(warp.index == i):\n        warp.set(y, (0, 0), 1.0)\n"
                "    pk.block.sync()",
            ),
        )
    ),
    (
        "let the lanes meet between the two lines: warp.sync()",
        "warp.load_into(t, x, (0, 0))\nwarp.store(y, warp.load(t), (0, 0))",
        "warp.load_into(t, x, (0, 0))\nwarp.sync()\nwarp.store(y, warp.load(t), (0, 0))",
        {},
    ),
    (
        "let the lanes of the warp meet before one of them arrives for all: warp.sync() before the arrival",
        "with role('writes'):\n    warp.load_into(t, x, (0, 0))\n    pk.arrive(b)\n"
        "with role('reads'):\n    pk.wait(b, 0)\n    warp.store(y, warp.load(t), (0, 0))",
        "with role('writes'):\n    warp.load_into(t, x, (0, 0))\n    warp.sync()\n    pk.arrive(b)\n"
        "with role('reads'):\n    pk.wait(b, 0)\n    warp.store(y, warp.load(t), (0, 0))",
        TWO,
    ),
    # Global memory.
    (
        "let all of them be of one kind, or order them: what is left depends on which comes last",
        "with pk.when(me == 0):\n    pk.atomic_add(f, 0, 1)\nwith pk.otherwise():\n    pk.atomic_max(f, 0, 1)",
        "pk.atomic_add(f, 0, 1)",
        BLOCKS,
    ),
    (
        'both must be of a scope that holds both blocks (scope="gpu"): they are of cta and cta',
        'pk.atomic_add(f, 0, 1, scope="cta")',
        "pk.atomic_add(f, 0, 1)",
        BLOCKS,
    ),
    (
        "give each block elements of its own, combine with a reduction (atomics), or hand over by a "
        "flag (pk.signal after "
        'the one, pk.wait_for before the other; or an atomic with order="acq_rel" between them)',
        "with pk.when(me == 0):\n    warp.store(y, ones(), (0, 0))\n"
        "with pk.otherwise():\n    warp.store(x, warp.load(y, (0, 0), rows=16), (0, 0))",
        "with pk.when(me == 0):\n    warp.store(y, ones(), (0, 0))\n    pk.signal(f, 0)\n"
        "with pk.otherwise():\n    pk.wait_for(f, 0)\n    warp.store(x, warp.load(y, (0, 0), rows=16), (0, 0))",
        BLOCKS,
    ),
    (
        "do it after pk.wait_for_previous(); if that kernel does not touch x, say "
        "pk.wait_for_previous(independent=(x,))",
        "v = warp.load(x, (0, 0), rows=16)\npk.wait_for_previous()\nwarp.store(y, v, (0, 0))",
        "v = warp.load(x, (0, 0), rows=16)\npk.wait_for_previous(independent=(x,))\nwarp.store(y, v, (0, 0))",
        {"pdl": True},
    ),
    (
        "pass the parity of the phase, 0 or 1: phase % 2",
        "for i in pk.range(3):\n    pk.tma.expect(b, t)\n    pk.tma.load(t, x, (0, 0), b)\n    pk.wait(b, i)",
        "for i in pk.range(3):\n    pk.tma.expect(b, t)\n    pk.tma.load(t, x, (0, 0), b)\n    pk.wait(b, i % 2)",
        {},
    ),
    # Registers.
    (
        "use a value that is the same for the whole block, or do the operation on a warp",
        "pk.block.store(y, pk.block.ones(f32, 32, 16), (f[warp.index + 6], 0))",
        "warp.store(y, ones(), (warp.index, 0))",
        TWO,
    ),
    # Bounds.
    (
        "set bits of blocks that are there, at least one",
        "pk.tma.expect(b, t)\nwith pk.when(pk.cluster.rank == 0):\n    pk.tma.load(t, x, (0, 0), b, multicast=n + 4)\n"
        "pk.wait(b, 0)\npk.cluster.sync()",
        "pk.tma.expect(b, t)\nwith pk.when(pk.cluster.rank == 0):\n    pk.tma.load(t, x, (0, 0), b, multicast=n)\n"
        "pk.wait(b, 0)\npk.cluster.sync()",
        CLUSTER,
    ),
    (
        "ranks are 0 to 1; wrap them, as in (rank + 1) % 2",
        "pk.arrive(b, rank=pk.cluster.rank + 1)\npk.wait(b, 0)\npk.cluster.sync()",
        "pk.arrive(b, rank=(pk.cluster.rank + 1) % 2)\npk.wait(b, 0)\npk.cluster.sync()",
        CLUSTER,
    ),
    ("keep the index within 0 to 31", "warp.set(two, n * 16, 1.0)", "warp.set(two, n * 10, 1.0)", {}),
    (
        "keep it within 0 to 1",
        "several = pk.shared(pk.st(f32, 16, 16), count=2)\nwarp.store(several[n], ones())",
        "several = pk.shared(pk.st(f32, 16, 16), count=2)\nwarp.store(several[n % 2], ones())",
        {},
    ),
    ("bound the coordinate", "pk.atomic_add(f, n * 4, 1)", "pk.atomic_add(f, pk.minimum(n * 4, 7), 1)", {}),
    (
        "only rows and columns past the end are defined (they read as zero and are not written); "
        "bound the coordinate, or "
        "the grid; or read what lies before: within=(0, x.rows), x[rows, cols] at indices",
        "warp.store(y, ones(), (1 - n, 0))",
        "warp.store(y, ones(), (pk.maximum(1 - n, 0), 0))",
        {},
    ),
    (
        "keep coordinates below 2**31: bound what is computed in u32 or i64, and subtract only what is smaller",
        "warp.store(y, ones(), pk.at(pk.cast(2 - n, pk.u32), 0))",
        "warp.store(y, ones(), pk.at(pk.cast(pk.maximum(2 - n, 0), pk.u32), 0))",
        {},
    ),
    (
        "compute it in i64, with pk.cast(x, pk.i64) of an operand; or in u32, if it is meant to wrap",
        "warp.set(f, 0, n * 2**30 // 2**30)",
        "warp.set(f, 0, pk.cast(pk.cast(n, pk.i64) * 2**30 // 2**30, i32))",
        {},
    ),
    (
        "bound its operands",
        "warp.set(f, 0, pk.cast(pk.cast(n, pk.i64) * 2**62 // 2**62, i32))",
        "warp.set(f, 0, pk.cast(pk.cast(n, pk.i64) % 2 * 2**62 // 2**62, i32))",
        {},
    ),
    # Hangs.
    (
        "leave it with pk.break_if(condition), or simulate a smaller instance",
        "c = pk.var(i32, 0)\nfor _ in pk.loop():\n    c.set(c + 1)\n    pk.break_if(c < 0)",
        "c = pk.var(i32, 0)\nfor _ in pk.loop():\n    c.set(c + 1)\n    pk.break_if(c > 9)",
        {},
    ),
    (
        "let the missing arrivals, bytes or warps come, or do not wait for them; check the parity that is waited for",
        "pk.wait(b, 0)",
        "pk.arrive(b)\npk.wait(b, 0)",
        {},
    ),
    (
        "let a warp that goes on set what they look at, or leave the loop by another condition",
        "with role('a'):\n    pk.wait_for(f, 0)\nwith role('c'):\n    pass",
        "with role('a'):\n    pk.wait_for(f, 0)\nwith role('c'):\n    pk.signal(f, 0)",
        TWO,
    ),
    (
        "wait only for blocks of a lower index, or for lower tickets of an atomic counter; or "
        "declare that all blocks run "
        "at once: @pk.kernel(cooperative=True)",
        "with pk.when(me == 0):\n    pk.wait_for(f, 0)\nwith pk.otherwise():\n    pk.signal(f, 0)",
        "with pk.when(me == 1):\n    pk.wait_for(f, 0)\nwith pk.otherwise():\n    pk.signal(f, 0)",
        BLOCKS,
    ),
]
