"""The table of architectures says what ptxas says."""

import pytest

import pykittens as pk
from pykittens import bf16, f32, warp
from pykittens.architectures import ARCHITECTURES, FEATURES, architecture, having
from pykittens.gpu import nvrtc
from tests.expecting import says

# An instruction of each feature. `a` is an address in shared memory, `p` one in global memory.
INSTRUCTIONS = {
    "fp8 conversions": """asm volatile("{.reg .b16 h; cvt.rn.satfinite.e4m3x2.f32 h, 0f3f800000, 0f3f800000;}");""",
    "fp8 mma": """asm volatile("{.reg .f32 f; .reg .b32 x; mov.b32 x, %0; mov.f32 f, 0f00000000;"
        "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {f, f, f, f}, {x, x, x, x}, {x, x}, {f, f, f, f};}"
        :: "r"(a));""",
    "stmatrix": """asm volatile("stmatrix.sync.aligned.m8n8.x1.shared.b16 [%0], {%0};" :: "r"(a));""",
    "bf16 additions": """asm volatile("red.global.add.noftz.bf16 [%0], %1;" :: "l"(p), "h"((short)0) : "memory");""",
    "wide additions": """asm volatile("{.reg .b64 p; mov.b64 p, {%0, %0}; "
        "red.relaxed.gpu.global.add.v4.f32 [p], {0f00000000, 0f00000000, 0f00000000, 0f00000000};}"
        :: "r"(a));""",
    "elect": """asm volatile("{.reg .pred q; elect.sync _|q, 0xffffffff;}");""",
    "mbarrier bytes": """asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], 16;" :: "r"(a));
        asm volatile("{.reg .pred q; mbarrier.try_wait.parity.shared::cta.b64 q, [%0], 0;}" :: "r"(a));""",
    "tma": """asm volatile("fence.proxy.async.shared::cta;");
        asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group"
                     " [%1, {%0, %0}], [%0];" :: "r"(a), "l"(p));
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                     " [%0], [%1, {%0, %0}], [%0];" :: "r"(a), "l"(p));""",
    "multicast": """asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
        ".multicast::cluster [%0], [%1, {%0, %0}], [%0], %2;" :: "r"(a), "l"(p), "h"((short)3));""",
    "clusters": """asm volatile("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;");
        asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %0, [%0];" :: "r"(a));""",
    "dependent launch": """asm volatile("griddepcontrol.wait;" ::: "memory");""",
    "setmaxnreg": """asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");""",
    "wgmma": """asm volatile("wgmma.fence.sync.aligned;");""",
}


def accepts(name: str, features: set[str]) -> bool:
    text = "".join(INSTRUCTIONS[feature] for feature in sorted(features))
    source = f'extern "C" __global__ void k(void* p, unsigned a) {{ {text} }}'
    try:
        nvrtc.compile_cubin(source, (f"--gpu-architecture={name}",))
    except nvrtc.NvrtcError as error:
        assert "ptxas" in error.log, error.log
        return False
    return True


def test_every_feature_has_an_instruction() -> None:
    assert INSTRUCTIONS.keys() == FEATURES.keys()
    assert all(row.features <= FEATURES.keys() for row in ARCHITECTURES.values())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_ptxas_agrees(name: str) -> None:
    try:
        nvrtc.version()
    except nvrtc.CompilerMissing as missing:
        pytest.skip(str(missing))
    row = ARCHITECTURES[name]
    assert accepts(name, set(row.features))
    assert not [feature for feature in FEATURES.keys() - row.features if accepts(name, {feature})]


@pytest.mark.parametrize("name", ["sm_75", "sm_101", "hopper", "", "sm_90A", "compute_90", 90, None])
def test_no_such_architecture(name: str) -> None:
    """One error, wherever an architecture is named; its fix works."""
    x = pk.spec(f32, (64, 64))

    @pk.kernel(warps=1)
    def k(x: pk.gl(f32, "M", 64)) -> None:  # type: ignore[valid-type]
        warp.store(x, warp.load(x, (0, 0), rows=16) * 2.0, (0, 0))

    for refused in (lambda: k.compile(x, arch=name), lambda: k.cuda(x, arch=name), lambda: architecture(name)):
        with pytest.raises(pk.ArgumentError) as caught:
            refused()
        says(caught.value, f"there is no architecture {name!r}", "choose one of sm_80, sm_86")
    (fix,) = [word for word in caught.value.fix.replace(",", " ").split() if word == "sm_120"]
    assert k.compile(x, arch=fix).arch == "sm_120"


def test_what_an_architecture_lacks() -> None:
    """The error names the architectures that have it, and there it compiles."""
    x = pk.spec(bf16, (64, 64))

    @pk.kernel(warps=8)
    def k(x: pk.gl(bf16, 64, 64)) -> None:  # type: ignore[valid-type]
        with pk.role("a", warps=4, registers=40):
            pass
        with pk.role("b", warps=4, registers=232):
            pass

    with pytest.raises(pk.ResourceError) as caught:
        k.cuda(x, arch="sm_100")
    says(caught.value, "register budgets (setmaxnreg): sm_100 has none", "compile for sm_90a or sm_100a")
    for name in having("setmaxnreg"):
        assert name in caught.value.fix
    assert "setmaxnreg" in k.cuda(x, arch="sm_100a")


def test_the_fix_names_architectures_that_have_all_that_a_kernel_needs() -> None:
    @pk.kernel(warps=4)
    def k(x: pk.gl(bf16, 64, 64)) -> None:  # type: ignore[valid-type]
        tile, landed = pk.shared(pk.st(bf16, 64, 64)), pk.barrier()
        pk.tma.expect(landed, tile)
        pk.tma.load(tile, x, (0, 0), landed)  # from sm_90
        pk.wait(landed, 0)
        product = pk.warpgroup.zeros(pk.f32, 64, 64)
        pk.warpgroup.mma_ABt(product, tile, tile)  # sm_90a alone
        pk.warpgroup.wait(product)

    with pytest.raises(pk.ResourceError) as caught:
        k.cuda(pk.spec(bf16, (64, 64)), arch="sm_80")
    assert "sm_80 has none" in caught.value.fact and caught.value.fix == "compile for sm_90a"
