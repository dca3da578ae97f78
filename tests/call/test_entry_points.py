"""Entry points on disk: what one process has traced and compiled, another launches without tracing, and never anything
else than what tracing would give."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest

import pykittens as pk
from pykittens import bf16, f32, warp
from pykittens.call import content
from pykittens.call.kernel import Kernel
from pykittens.errors import ArgumentError
from pykittens.gpu.store import FileStore
from pykittens.interop import frameworks
from tests.gpu.fake_driver import CONTEXT, FakeDriver

torch = pytest.importorskip("torch")
factor, traces = 2.0, 0


@pytest.fixture(autouse=True)
def gpu(uncompiled: None, fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """Tensors on the CPU pass for tensors on GPU 0."""
    real = frameworks.Torch.describe
    monkeypatch.setattr(frameworks.Torch, "describe", lambda self, x: real(self, x)._replace(device=0))
    monkeypatch.setattr(frameworks.Torch, "streams", lambda self: lambda device: 0x77)
    monkeypatch.setattr(content, "_source", lambda: "source")  # which may just have been written
    fake.parameter_sizes = [56, 56, 4]
    fake.current.context = CONTEXT
    return fake


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, ...]]:
    """Calls a kernel as a new process does: what was launched, the cubin that was loaded, how often it was traced."""
    from pykittens.call import kernel as module

    trace = module.trace

    def counted(*args: Any, **named: Any) -> Any:
        global traces
        traces += 1
        return trace(*args, **named)

    monkeypatch.setattr(module, "trace", counted)

    def called(kernel: Kernel, fake: FakeDriver, *args: Any, **named: Any) -> tuple[Any, ...]:
        global traces
        kernel.forget()
        from tests.gpu.conftest import forget

        forget()  # the driver's modules, too
        traces = 0
        before = len(fake.launches), len(fake.calls)
        kernel(*args, **named)
        (launch,) = fake.launches[before[0] :]
        image = next(call[1] for call in fake.calls[before[1] :] if call[0] == "cuModuleLoadData")
        about = launch.grid, launch.block, launch.shared_bytes, launch.attributes, launch.arguments
        return about, image, traces

    return called


def operands(*shape: int) -> tuple[Any, Any]:
    return tuple(torch.zeros(*(shape or (64, 64)), dtype=torch.bfloat16) for _ in range(2))  # type: ignore[return-value]


@pk.kernel(warps=lambda twice: 2 if twice else 1, grid=lambda x, **_: x.rows // 16)
def scale(
    x: Annotated[pk.Tensor, bf16, "N", 64],
    y: Annotated[pk.Tensor, bf16, "N", 64],
    by: Annotated[pk.Scalar, f32],
    *,
    twice: bool = False,
) -> None:
    tile = warp.load(x, (pk.block_index.x, 0), rows=16)
    warp.store(y, (tile.to(f32) * (by * factor) * (2 if twice else 1)).to(bf16), (pk.block_index.x, 0))


@pk.kernel(warps=4, cluster=2, grid=lambda x, **_: 2 * (x.rows // 64))
def copy(x: Annotated[pk.Tensor, bf16, "N", 64], y: Annotated[pk.Tensor, bf16, "N", 64]) -> None:
    """By TMA, in clusters: with all that a launch may have."""
    tile, ready = pk.shared(pk.st(bf16, 64, 64)), pk.barrier()
    pk.tma.expect(ready, tile)
    pk.tma.load(tile, x, (pk.block_index.x // 2, 0), ready)
    pk.wait(ready, 0)
    pk.warpgroup.tma.store(y, tile, (pk.block_index.x // 2, 0))
    pk.warpgroup.tma.commit()
    pk.warpgroup.tma.wait()


def test_what_one_process_traced_another_launches(run: Any, gpu: FakeDriver) -> None:
    x, y = operands()
    first, second = run(scale, gpu, x, y, 0.5), run(scale, gpu, x, y, 0.5)
    assert (first[2], second[2]) == (1, 0)
    assert first[:2] == second[:2]


def test_every_part_of_a_launch_is_kept(run: Any, gpu: FakeDriver) -> None:
    gpu.parameter_sizes = [56, 56, 128, 128]
    x, y = operands()
    first, second = run(copy, gpu, x, y), run(copy, gpu, x, y)
    assert (first[2], second[2]) == (1, 0)
    assert first[:2] == second[:2]
    assert first[0][2] > 8192 and 4 in first[0][3]  # shared memory and a cluster


def test_what_a_program_depends_on_is_seen(run: Any, gpu: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A global, a static value, the types, the options, the architecture: each is traced once."""
    x, y = operands()
    narrow = [t[:, :64] for t in operands(64, 72)]  # rows of 144 bytes are aligned, too
    odd = [t[:, :64] for t in operands(64, 65)]
    changes: list[tuple[Callable[[], Any], int]] = [
        (lambda: run(scale, gpu, x, y, 0.5), 1),
        (lambda: run(scale, gpu, x, y, 0.25), 0),
        (lambda: run(scale, gpu, *operands(128, 64), 0.5), 0),
        (lambda: run(scale, gpu, *narrow, 0.5), 0),
        (lambda: run(scale, gpu, *odd, 0.5), 1),
        (lambda: run(scale, gpu, x, y, 0.5, twice=True), 1),
        (lambda: run(scale, gpu, x, y, 0.5, twice=1), 1),
        (lambda: monkeypatch.setitem(globals(), "factor", 3.0), 0),
        (lambda: run(scale, gpu, x, y, 0.5), 1),
        (lambda: monkeypatch.setenv("PYKITTENS_ARCH", "sm_80"), 0),
        (lambda: run(scale, gpu, x, y, 0.5), 1),
        (lambda: run(pk.kernel(warps=1, blocks_per_sm=2, grid=4)(scale.function), gpu, x, y, 0.5), 1),
    ]
    for _ in range(2):
        monkeypatch.setitem(globals(), "factor", 2.0)
        monkeypatch.delenv("PYKITTENS_ARCH", raising=False)
        for i, (change, count) in enumerate(changes):
            if found := change():
                assert found[2] == count, i
        changes = [(change, 0) for change, _ in changes]


@pytest.mark.parametrize("content", [b"", b"{}", b"pykittens-entry-1 00\n{}", None])
def test_damage_is_mended(run: Any, gpu: FakeDriver, own_cache: Path, content: bytes | None) -> None:
    """Whatever lies there in place of an entry point, or of its kernel."""
    x, y = operands()
    for suffix in (".entry", ".kernel"):
        first = run(scale, gpu, x, y, 0.5)
        (file,) = (f for f in own_cache.iterdir() if f.suffix == suffix)
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        second, third = run(scale, gpu, x, y, 0.5), run(scale, gpu, x, y, 0.5)
        assert (second[2], third[2]) == (1, 0)
        assert first[:2] == second[:2] == third[:2]


def test_an_entry_of_another_name_is_none(run: Any, gpu: FakeDriver, own_cache: Path) -> None:
    x, y = operands()
    run(scale, gpu, x, y, 0.5), run(scale, gpu, x, y, 0.5, twice=True)
    one, other = (f for f in own_cache.iterdir() if f.suffix == ".entry")
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second), other.write_bytes(first)
    assert [run(scale, gpu, x, y, 0.5, twice=t)[2] for t in (False, True)] == [1, 1]


def test_what_others_could_write_is_not_read(run: Any, gpu: FakeDriver, own_cache: Path) -> None:
    x, y = operands()
    run(scale, gpu, x, y, 0.5)
    (entry,) = (f for f in own_cache.iterdir() if f.suffix == ".entry")
    entry.chmod(0o666)
    with pytest.warns(RuntimeWarning, match="can be written by others"):
        assert run(scale, gpu, x, y, 0.5)[2] == 1
    assert run(scale, gpu, x, y, 0.5)[2] == 0


def test_without_a_place_nothing_is_kept(run: Any, gpu: FakeDriver, own_cache: Path) -> None:
    own_cache.write_text("a file where the directory should be")
    x, y = operands()
    assert [run(scale, gpu, x, y, 0.5)[2] for _ in range(2)] == [1, 1]


def test_debug_builds_are_not_kept(run: Any, gpu: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their text has what the environment says."""
    monkeypatch.setenv("PYKITTENS_DEBUG", "1")
    x, y = operands()
    assert [run(scale, gpu, x, y, 0.5)[2] for _ in range(2)] == [1, 1]


counted = [0]


def test_what_tracing_changes_is_traced_by_everybody(run: Any, gpu: FakeDriver) -> None:
    @pk.kernel(warps=1)
    def counting(x: pk.gl(bf16, 64, 64), y: pk.gl(bf16, 64, 64)) -> None:  # type: ignore[valid-type]
        counted[0] += 1
        warp.store(y, warp.load(x, (0, 0), rows=16) + counted[0], (0, 0))

    gpu.parameter_sizes = [56, 56]
    assert [run(counting, gpu, *operands())[2] for _ in range(2)] == [1, 1]


def test_errors_say_the_same(run: Any, gpu: FakeDriver) -> None:
    """What is refused of operands names the kernel's line, traced or not."""
    x, y = operands()
    said = []
    for _ in range(2):
        with pytest.raises(ArgumentError) as caught:
            run(scale, gpu, x, y[:1].expand(64, 64), 0.5)
        said.append(str(caught.value))
        run(scale, gpu, x, y, 0.5)
    assert said[0] == said[1] and "test_entry_points.py" in said[0]


def test_they_are_removed_with_the_kernels(run: Any, gpu: FakeDriver, own_cache: Path) -> None:
    run(scale, gpu, *operands(), 0.5)
    store = FileStore(own_cache)
    assert sorted(file.suffix for file, _ in store.entries()) == [".entry", ".kernel"]
    assert store.shrink(-1) == 2 and store.entries() == []
