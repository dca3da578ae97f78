"""Products on the asynchronous tensor core: every shape, order, dtype and place of A, exact on small integers, and
compiled."""

from typing import Any

import numpy as np
import pytest

import pykittens as pk
from pykittens import bf16, e4m3, e5m2, f16, f32, i8, i32, u8, warpgroup
from pykittens.gpu import driver, sass
from pykittens.types import DType

EIGHT = [(e4m3, e4m3), (e5m2, e5m2), (e4m3, e5m2), (e5m2, e4m3)]


def product(n: int, a: DType, b: DType, total: DType, ta: bool, tb: bool, registers: bool, m: int = 64) -> pk.Kernel:
    """c = a @ b by one warpgroup, in two products: the first overwrites, the second adds."""
    half = 128 // a.size
    k = 2 * half

    @pk.kernel(warps=4)
    def multiply(x: pk.gl(a, "XR", "XC"), y: pk.gl(b, "YR", "YC"), c: pk.gl(total, m, n)) -> None:
        left, right = pk.shared(pk.st(a, *((k, m) if ta else (m, k)))), pk.shared(pk.st(b, *((n, k) if tb else (k, n))))
        warpgroup.load_into(left, x, (0, 0))
        warpgroup.load_into(right, y, (0, 0))
        warpgroup.sync()
        out = warpgroup.zeros(total, m, n)
        for i, what in enumerate(("mm", "mma")):
            part = left.part(i * half, 0, half, m) if ta else left.part(0, i * half, m, half)
            other = right.part(0, i * half, n, half) if tb else right.part(i * half, 0, half, n)
            getattr(warpgroup, f"{what}_A{'t' * ta}B{'t' * tb}")(
                out, warpgroup.load(part) if registers else part, other
            )
        warpgroup.wait(out)
        warpgroup.store(c, out, (0, 0))

    return multiply


def operands(n: int, a: DType, b: DType, total: DType, ta: bool, tb: bool, m: int = 64) -> tuple[Any, Any, Any, Any]:
    """x, y, zeros for c, and the exact product."""
    rng, k = np.random.default_rng(n), 256 // a.size
    x, y = rng.integers(-3, 4, (m, k)), rng.integers(-3, 4, (k, n))
    stored = [(x.T if ta else x).astype(a.numpy), (y.T if tb else y).astype(b.numpy)]
    return np.ascontiguousarray(stored[0]), np.ascontiguousarray(stored[1]), np.zeros((m, n), total.numpy), x @ y


CASES = [
    *(
        pytest.param(n, bf16, bf16, f32, False, tb, False, id=f"n{n}-{'ABt' if tb else 'AB'}")
        for n in range(16, 257, 16)
        for tb in (n % 32 == 0,)
    ),
    *(
        pytest.param(
            64,
            dtype,
            dtype,
            total,
            ta,
            tb,
            registers,
            id=f"{dtype}-{total}-A{'t' * ta}B{'t' * tb}-{'registers' if registers else 'shared'}",
        )
        for dtype, total in ((bf16, f32), (f16, f32), (f16, f16))
        for ta, tb, registers in (
            (ta, tb, r) for ta in (False, True) for tb in (False, True) for r in (False, True) if not (ta and r)
        )
    ),
    *(pytest.param(n, a, b, f32, False, True, False, id=f"{a}-{b}-n{n}") for a, b in EIGHT for n in (32, 256)),
    pytest.param(96, e4m3, e4m3, f16, False, True, False, id="e4m3-f16"),
]


@pytest.mark.thin(5)
@pytest.mark.parametrize(("n", "a", "b", "total", "ta", "tb", "registers"), CASES)
def test_exact_and_compiles(n: int, a: DType, b: DType, total: DType, ta: bool, tb: bool, registers: bool) -> None:
    kernel = product(n, a, b, total, ta, tb, registers)
    x, y, c, expected = operands(n, a, b, total, ta, tb)
    assert kernel.simulate(x, y, c).clean
    assert (c.astype(float) == expected).all()
    cubin = kernel.compile(x, y, c)
    assert not cubin.spills and not cubin.serialized


@pytest.mark.gpu
@pytest.mark.parametrize(("n", "a", "b", "total", "ta", "tb", "registers"), CASES)
def test_exact_on_a_gpu(n: int, a: DType, b: DType, total: DType, ta: bool, tb: bool, registers: bool) -> None:
    torch = pytest.importorskip("torch")
    if driver.capability() != (9, 0):
        pytest.skip("wgmma is Hopper's")
    x, y, c, expected = operands(n, a, b, total, ta, tb)
    names = {
        bf16: torch.bfloat16,
        f16: torch.float16,
        f32: torch.float32,
        e4m3: torch.float8_e4m3fn,
        e5m2: torch.float8_e5m2,
    }
    left, right = (torch.from_numpy(z.astype(np.float32)).cuda().to(names[dtype]) for z, dtype in ((x, a), (y, b)))
    out = torch.zeros(c.shape, dtype=names[total], device="cuda")
    product(n, a, b, total, ta, tb, registers)(left, right, out)
    assert (out.double().cpu().numpy() == expected).all()


@pytest.mark.parametrize(("m", "dims"), [(128, (False, True)), (128, (True, False))])
def test_two_blocks_of_rows(m: int, dims: tuple[bool, bool]) -> None:
    kernel = product(64, bf16, bf16, f32, *dims, False, m=m)
    x, y, c, expected = operands(64, bf16, bf16, f32, *dims, m=m)
    assert kernel.simulate(x, y, c).clean and (c == expected).all()
    assert not kernel.compile(x, y, c).serialized


def chain(waits: str) -> pk.Kernel:
    """Two products in flight; `waits` says how they are waited for."""

    @pk.kernel(warps=4)
    def two(x: pk.gl(bf16, 64, 64), c: pk.gl(f32, 64, 64)) -> None:
        a = pk.shared(pk.st(bf16, 64, 64), name="a")
        warpgroup.load_into(a, x, (0, 0))
        warpgroup.sync()
        first, second = warpgroup.zeros(f32, 64, 64), warpgroup.zeros(f32, 64, 64)
        warpgroup.mm_AB(first, a, a)
        warpgroup.mm_ABt(second, a, a)
        if waits == "tiles":
            warpgroup.wait(first)
        elif waits == "pending":
            warpgroup.wait(pending=1)
        elif waits == "both":
            warpgroup.wait(first, second)
        if waits != "late":
            first += 1.0
        warpgroup.wait()
        warpgroup.store(c, first + second, (0, 0))

    return two


@pytest.mark.parametrize(("waits", "counts"), [("tiles", [1, 0]), ("pending", [1, 0]), ("both", [0, 0])])
def test_waits_count(waits: str, counts: list[int]) -> None:
    kernel, x, c = (
        chain(waits),
        np.random.default_rng(0).integers(-2, 3, (64, 64)).astype(bf16.numpy),
        np.zeros((64, 64), np.float32),
    )
    assert kernel.simulate(x, c).clean
    wide = x.astype(float)
    assert (c == wide @ wide + wide @ wide.T + 1).all()
    text = kernel.cuda(x, c)
    assert [int(piece[0]) for piece in text.split("wgmma_wait<")[1:] if piece[0].isdigit()] == counts


def test_a_release_keeps_the_next_wait_behind_what_shall_run_beside_the_product() -> None:
    """ptxas moves a wait up over the exponentials that were written before it, but not over an arrival that depends on
    them."""

    @pk.kernel(warps=8)
    def beside(x: pk.gl(bf16, 64, 64), c: pk.gl(f32, 64, 64)) -> None:
        first, second = (pk.ring(1, pk.st(bf16, 64, 64), name=name) for name in ("first", "second"))
        with pk.role("load", warps=4):
            with first.fill() as a:
                pk.tma.load(a, x, (0, 0))
            with second.fill() as b:
                pk.tma.load(b, x, (0, 0))
        with pk.role("multiply", warpgroups=1):
            score, out = warpgroup.zeros(f32, 64, 64), warpgroup.zeros(f32, 64, 64)
            left, right = first.read(), second.read()
            warpgroup.mm_AB(score, left, left)
            warpgroup.mm_AB(out, right, right)
            warpgroup.wait(score)
            weight = pk.exp2(score * 0.125)
            total = weight.row_sum(partial=True)
            first.release(after=total)
            warpgroup.wait(out)
            second.release()
            warpgroup.store(c, (out + weight) * total.total(), (0, 0))

    x, c = np.zeros((64, 64), bf16.numpy), np.zeros((64, 64), np.float32)
    x[np.arange(64), np.arange(64)] = 4  # so that x @ x is 16 on the diagonal, and weights 4 there and 1 elsewhere
    assert beside.simulate(x, c).clean
    assert (c == np.where(np.eye(64) > 0, (16 + 4) * 67, 67)).all()
    opcodes = [i.opcode for i in sass.instructions(sass.disassemble(beside.compile(x, c)))]
    waits = [i for i, opcode in enumerate(opcodes) if opcode.startswith("WARPGROUP.DEPBAR")]
    assert sum(opcode == "MUFU.EX2" for opcode in opcodes[: waits[1]]) == 32


def refused(function: Any, *specs: Any, **options: Any) -> str:
    with pytest.raises(pk.KernelError) as caught:
        pk.kernel(**{"warps": 4, **options})(function).cuda(*specs)
    assert "fix: " in str(caught.value)
    return str(caught.value)


def test_a_tile_in_flight_is_not_touched() -> None:
    with pytest.raises(pk.InFlightError) as caught:
        chain("none").program(pk.spec(bf16, (64, 64)), pk.spec(f32, (64, 64)))
    text = str(caught.value)
    assert (
        "first is touched while the tensor core still writes it" in text
        and "it is in flight since" in text
        and "warpgroup.wait(first) first" in text
    )


def test_what_a_release_comes_after_is_a_vector() -> None:
    def tile(x: pk.gl(bf16, 64, 64)) -> None:
        ring = pk.ring(1, pk.st(bf16, 64, 64))
        with pk.role("load", warps=4), ring.fill() as slot:
            pk.tma.load(slot, x, (0, 0))
        with pk.role("read", warpgroups=1):
            ring.read()
            ring.release(after=warpgroup.zeros(f32, 64, 64))

    assert "pass a float32 vector" in refused(tile, pk.spec(bf16, (64, 64)), warps=8)


def test_what_does_not_exist() -> None:
    def says(
        fact: str, fix: str, a: Any, b: Any, d: Any, product: str = "mma_AB", b_in_registers: bool = False
    ) -> None:
        def kernel(x: pk.gl(bf16, 16, 16)) -> None:
            left, right = (pk.shared(z) if isinstance(z, pk.st) else warpgroup.zeros(*z) for z in (a, b))
            getattr(warpgroup, product)(warpgroup.zeros(*d), left, right)

        text = refused(kernel, pk.spec(bf16, (16, 16)))
        assert fact in text and fix in text, text

    st = pk.st
    says("n = 272", "n = 8 to 256 in steps of 8", st(bf16, 64, 64), st(bf16, 64, 272), (f32, 64, 272))
    says(
        "does not multiply bf16 by f16",
        "bf16 by bf16, f16 by f16, f32 by f32, e4m3 by e4m3",
        st(bf16, 64, 64),
        st(f16, 64, 64),
        (f32, 64, 64),
    )
    says("does not multiply f32 by bf16", "wgmma multiplies", st(f32, 64, 64), st(bf16, 64, 64), (f32, 64, 64))
    for dtype, held in ((e4m3, f32), (f32, f32), (i8, i32)):
        wide = st(dtype, 64, 64)
        says(f"operands of {dtype} must have k along their rows", "mma_ABt", wide, wide, (held, 64, 64))
    whole = st(i8, 64, 64)
    says("of u8 accumulates into a row-layout tile of i32", "pk.i32", st(u8, 64, 64), whole, (f32, 64, 64), "mma_ABt")
    says("in registers it is of 16 bits", "shared tile", (f32, 64, 64), st(f32, 64, 64), (f32, 64, 64), "mma_ABt")
    says(
        "of bf16 accumulates into a row-layout tile of f32, not",
        "warpgroup.zeros(pk.f32, m, n)",
        st(bf16, 64, 64),
        st(bf16, 64, 64),
        (f16, 64, 64),
    )
    says(
        "accumulates into a row-layout tile of f32",
        "warpgroup.zeros",
        st(bf16, 64, 64),
        st(bf16, 64, 64),
        (bf16, 64, 64),
    )
    says("reads B from shared memory", "store it to a shared tile", st(bf16, 64, 64), (bf16, 64, 64), (f32, 64, 64))
    says(
        "a register A is a warpgroup's row-layout tile",
        "not transposed",
        (bf16, 64, 64),
        st(bf16, 64, 64),
        (f32, 64, 64),
        "mma_AtB",
    )


def test_wgmma_is_hoppers_alone() -> None:
    for arch in ("sm_89", "sm_90"):
        with pytest.raises(pk.ResourceError, match="wgmma: sm_[0-9]+ has none") as caught:
            chain("tiles").cuda(pk.spec(bf16, (64, 64)), pk.spec(f32, (64, 64)), arch=arch)
        assert "compile for sm_90a" in str(caught.value)
