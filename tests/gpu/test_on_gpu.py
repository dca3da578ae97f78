"""The whole way on a real GPU: compile, load, describe tensors, launch on their stream."""

import threading
from typing import Any

import pytest

from pykittens.gpu import driver
from pykittens.gpu.cache import load_or_compile
from pykittens.gpu.launch import Launcher
from pykittens.gpu.libcuda import CudaError
from pykittens.gpu.tensormap import encode
from pykittens.interop.arrays import current_stream, describe, empty_like

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not driver.available(), reason="no GPU")]

# y = a * x, rows by blocks and columns by threads, whatever the strides; `shift` counts elements.
SCALE = r"""
struct Global { void* data; int shape[4]; long long stride[4]; };
extern "C" __global__ void scale(Global x, Global y, float a, long long shift, bool negate) {
  extern __shared__ float row[];
  int r = blockIdx.x;
  for (int c = threadIdx.x; c < x.shape[3]; c += blockDim.x) {
    row[c] = ((const float*)x.data)[r * x.stride[2] + c * x.stride[3]] * (negate ? -a : a);
    ((float*)y.data)[r * y.stride[2] + c * y.stride[3] + shift] = row[c];
  }
}
"""

# One block copies one box of a bf16 tensor through shared memory, unswizzled, by the copy engine.
BOX = r"""
struct __align__(64) TensorMap { unsigned long long opaque[16]; };
extern "C" __global__ void box(const __grid_constant__ TensorMap from, const __grid_constant__ TensorMap to) {
  __shared__ __align__(128) unsigned short tile[64 * 64];
  __shared__ __align__(8) unsigned long long barrier;
  unsigned b = __cvta_generic_to_shared(&barrier), t = __cvta_generic_to_shared(tile);
  int row = blockIdx.x * 64;
  if (threadIdx.x) return;
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(b) : "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], 8192;" :: "r"(b) : "memory");
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
    " [%0], [%1, {%2, %3}], [%4];" :: "r"(t), "l"(&from), "r"(0), "r"(row), "r"(b) : "memory");
  asm volatile("{.reg .pred P; W: mbarrier.try_wait.parity.shared::cta.b64 P, [%0], 0; @!P bra W;}"
    :: "r"(b) : "memory");
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];"
    :: "l"(&to), "r"(t), "r"(0), "r"(row) : "memory");
  asm volatile("cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;" ::: "memory");
}
"""


def scaler(x: Any, y: Any, a: float, **more: Any) -> Launcher:
    """A launcher of SCALE on two matrices."""
    source, destination = describe(x, "x"), describe(y, "y")
    device = source.device
    assert device is not None
    cubin = load_or_compile(SCALE, driver.architecture(device).name)
    shared = more.pop("shared_bytes", source.shape[-1] * 4)
    function = driver.load(cubin, device, source.shape[-1] * 4)
    kinds = ("tensor", "tensor", "f32", "i64", "bool")
    ready = Launcher(function, kinds, (source.shape[0], 1, 1), (128, 1, 1), shared_bytes=shared, **more)
    ready.set_tensor(0, source.pointer, source.shape, source.strides)
    ready.set_tensor(1, destination.pointer, destination.shape, destination.strides)
    ready.set_scalar(2, a)
    ready.set_scalar(3, 0)
    ready.set_scalar(4, False)
    return ready


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


def test_strides_scalars_and_large_shared_memory(torch: Any) -> None:
    x = torch.randn(20_000, 32, device="cuda").T  # 80,000 bytes of shared memory a block
    y = torch.zeros(32, 20_001, device="cuda")[:, :-1]
    ready = scaler(x, y, 2.5)
    ready.set_scalar(3, 1)
    ready.set_scalar(4, True)
    ready.launch(current_stream("torch", 0))
    assert torch.equal(y[:, 1:], -2.5 * x[:, :-1])


def test_follows_the_stream(torch: Any) -> None:
    x, stream = torch.ones(8, 64, device="cuda"), torch.cuda.Stream()
    y = empty_like(x)
    ready = scaler(x, y, 2)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        assert current_stream("torch", 0) == stream.cuda_stream != 0
        torch.cuda._sleep(20_000_000)
        x += 1
        ready.launch(current_stream("torch", 0))
    stream.synchronize()
    assert (y == 4).all()


def test_captured_in_a_graph(torch: Any) -> None:
    x, y = torch.ones(8, 64, device="cuda"), torch.zeros(8, 64, device="cuda")
    ready, graph = scaler(x, y, 3), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ready.launch(current_stream("torch", 0))
    ready.set_scalar(2, 7)  # the graph has its own copy of the arguments
    assert (y == 0).all()
    x += 1
    graph.replay()
    torch.cuda.synchronize()
    assert (y == 6).all()


@pytest.mark.parametrize("more", [{}, {"cluster": (2, 1, 1)}, {"cluster": (16, 1, 1)}, {"pdl": True}])
def test_from_a_thread_without_a_context(torch: Any, more: dict[str, Any]) -> None:
    if more and driver.capability() < (9, 0):
        pytest.skip("clusters and programmatic launches began with Hopper")
    x = torch.ones(32, 64, device="cuda")
    y = empty_like(x)
    ready = scaler(x, y, 5, **more)
    torch.cuda.synchronize()
    thread = threading.Thread(target=ready.launch)
    thread.start()
    thread.join()
    driver.synchronize()
    assert (y == 5).all()


def test_tensor_maps(torch: Any) -> None:
    if driver.capability() != (9, 0):
        pytest.skip("the copy engine began with Hopper")
    x = torch.randn(200, 64, device="cuda", dtype=torch.bfloat16)
    y, z = torch.zeros_like(x), torch.zeros_like(x)
    function = driver.load(load_or_compile(BOX, "sm_90a"))
    ready = Launcher(function, ("tensormap", "tensormap"), (4, 1, 1), (32, 1, 1))
    for i, tensor in enumerate((x, y)):
        ready.set_tensormap(i, encode(tensor.data_ptr(), "bf16", (64, 200), (128,), (64, 64), 0))
    ready.launch(current_stream("torch", 0))
    ready.move_tensormap(1, z.data_ptr())
    ready.launch(current_stream("torch", 0))
    assert torch.equal(x, y)
    assert torch.equal(x, z)


def test_refusals(torch: Any) -> None:
    x = torch.ones(8, 64, device="cuda")
    ready = scaler(x, x, 1, shared_bytes=300_000)
    with pytest.raises(CudaError, match="launching `scale`: invalid argument"):
        ready.launch()
    foreign = load_or_compile(SCALE, "sm_80" if driver.capability() >= (9, 0) else "sm_90a")
    with pytest.raises(CudaError, match=r"loading `scale`: .*compiled for another architecture"):
        driver.load(foreign)


@pytest.mark.parametrize("kind", ["cupy", "jax"])
def test_other_frameworks(kind: str) -> None:
    module = pytest.importorskip(kind)
    x = (module if kind == "cupy" else module.numpy).ones((8, 64), dtype="float32") * 2
    y = empty_like(x)
    assert (describe(x).kind, describe(x).device, describe(y).shape) == (kind, 0, (8, 64))
    scaler(x, y, 3).launch(current_stream(kind, 0))
    driver.synchronize()
    assert (y == 6).all()


def test_cuda_array_interface(torch: Any) -> None:
    class Wrapped:
        def __init__(self, tensor: Any) -> None:
            self.__cuda_array_interface__ = tensor.__cuda_array_interface__

    x = torch.ones(8, 64, device="cuda")
    info, same = describe(Wrapped(x)), describe(x)
    assert info[:5] == same[:5]
    assert info.kind == "cuda"


def test_a_slot_is_filled_again_only_when_it_has_been_read(torch: Any) -> None:
    """Rows past the end arrive at once: their zeros were seen in rows that were still being read."""
    from pykittens.kernels.norms_backward import layernorm_backward

    s, dy = (torch.randn(8192, 2048, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    found = [layernorm_backward(dy, s, dy[0], bias="f32") for _ in range(20)]
    for result in found[1:]:
        assert all(torch.equal(x, y) for x, y in zip(result, found[0], strict=True) if x is not None)
