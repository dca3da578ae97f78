"""The compiler: cubins for every architecture, what it reports, and what it says when it refuses."""

import pickle
import subprocess
import sys

import pytest

import pykittens as pk
from pykittens.architectures import ARCHITECTURES
from pykittens.errors import ArgumentError
from pykittens.gpu import nvrtc
from pykittens.gpu.compiler import (
    CompileError,
    Cubin,
    compile,
    compiler_version,
    known_faults,
)
from tests.gpu.kernels import MMA, SPILLING, WGMMA

try:
    nvrtc.version()
except nvrtc.CompilerMissing as missing:
    pytest.skip(str(missing), allow_module_level=True)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_compiles_for_every_architecture(arch: str) -> None:
    cubin = compile(MMA, arch)
    assert cubin.image.startswith(b"\x7fELF")
    assert (cubin.entry, cubin.arch, cubin.compiler) == ("multiply", arch, compiler_version())
    assert 8 <= cubin.registers <= 64
    assert (cubin.stack_bytes, cubin.shared_bytes, cubin.spills) == (0, 0, False)
    assert cubin.warnings == cubin.serialized == ()
    assert 0 < cubin.seconds < 60


def test_reports_spills_and_shared_memory() -> None:
    cubin = compile(SPILLING, "sm_90a", options=("--maxrregcount=64",))
    assert cubin.spills
    assert cubin.spill_store_bytes > 400
    assert cubin.spill_load_bytes > 400
    assert cubin.stack_bytes > 400
    assert cubin.shared_bytes == 256 * 4
    assert cubin.registers <= 64


def test_says_when_wgmma_is_serialized() -> None:
    clean = compile(WGMMA.replace("TOUCH", ""), "sm_90a")
    assert clean.warnings == ()
    touched = compile(WGMMA.replace("TOUCH", "d[0] += 1.f;"), "sm_90a")
    assert touched.serialized
    assert "wgmma.mma_async instructions are serialized" in "\n".join(touched.serialized)


def test_says_when_setmaxnreg_is_ignored() -> None:
    text = 'extern "C" __global__ void k(int* p) { asm("setmaxnreg.dec.sync.aligned.u32 24;"); *p = 1; }'
    (line,) = compile(text, "sm_90a").serialized
    assert "(C7508)" in line


def test_front_end_warnings_are_not_serialization() -> None:
    cubin = compile('#line 7 "user.py"\nextern "C" __global__ void k() { int unused; }', "sm_80")
    (line,) = cubin.warnings
    assert line.startswith("user.py(7): warning #177-D")
    assert cubin.serialized == ()


def test_errors_point_at_python() -> None:
    text = '__device__ int before;\n#line 41 "attention.py"\nextern "C" __global__ void k() { undefined = 1; }'
    with pytest.raises(CompileError, match=r'attention\.py\(41\): error: identifier "undefined"') as caught:
        compile(text, "sm_80")
    assert caught.value.source == text
    assert "1 error detected" in caught.value.log


def test_warnings_point_at_the_line_of_python_that_made_the_text() -> None:
    """An unused tile, text of the author's own with several lines, and the device functions that it calls."""

    @pk.kernel(warps=1)
    def k(x: pk.gl(pk.f32, 16, 16)) -> None:
        pk.warp.full(pk.f32, 16, 16, 2.0)  # nobody uses it
        pk.cuda(
            """
            int first = 0;
            int second = first = 1; double third = 2;
            """,
            support="""
            __device__ int helper() {
              int inside = 1; inside = 2; return 0;
            }
            """,
        )

    first = k.function.__code__.co_firstlineno
    text = k.cuda(pk.spec(pk.f32, (16, 16)), arch="sm_80")
    lines = compile(text, "sm_80").warnings
    assert len(lines) >= 3
    found = {int(line.split("(")[1].split(")")[0]) - first for line in lines if line.startswith(__file__)}
    assert len(lines) == sum(line.startswith(__file__) for line in lines) and found <= {2, 3}, lines
    assert found == {2, 3}


def test_errors_of_ptxas_are_compile_errors() -> None:
    with pytest.raises(CompileError, match="Not a name of any known instruction: 'bogus'"):
        compile('extern "C" __global__ void k() { asm volatile("bogus.foo;"); }', "sm_90a")
    with pytest.raises(CompileError, match=r"sm_90a|wgmma"):
        compile(WGMMA.replace("TOUCH", ""), "sm_80")


def test_wants_exactly_one_kernel() -> None:
    with pytest.raises(CompileError, match="one __global__ function, it defines none"):
        compile("__device__ int f() { return 1; }", "sm_80")
    two = 'extern "C" __global__ void one() {}\nextern "C" __global__ void two() {}'
    with pytest.raises(CompileError, match=r"it defines (one, two|two, one)"):
        compile(two, "sm_80")


def test_refuses_other_architectures_and_unknown_options() -> None:
    with pytest.raises(ArgumentError, match="there is no architecture 'sm_70'"):
        compile(MMA, "sm_70")
    with pytest.raises(CompileError, match="unrecognized option --no-such-option"):
        compile(MMA, "sm_80", options=("--no-such-option",))


def test_options_are_passed_on() -> None:
    text = 'extern "C" __global__ void k(float* p) { *p = WANTED; }'
    assert compile(text, "sm_80", options=("--define-macro=WANTED=3.f",)).entry == "k"


def test_known_faults() -> None:
    (fault,) = known_faults("NVRTC 13.0")
    assert "overwrite the registers" in fault
    assert known_faults("NVRTC 13.3") == known_faults("NVRTC 14.0") == ()


@pytest.mark.parametrize(
    ("wheel", "toolkit", "chosen"),
    [((13, 5), (13, 6), (13, 5)), ((13, 0), (13, 6), (13, 6)), ((13, 2), (13, 1), (13, 2))],
)
def test_a_newer_compiler_is_preferred_to_a_faulty_one(
    monkeypatch: pytest.MonkeyPatch,
    wheel: tuple[int, int],
    toolkit: tuple[int, int],
    chosen: tuple[int, int],
) -> None:
    monkeypatch.setattr(nvrtc, "_toolkit", lambda: ["toolkit"])
    monkeypatch.setattr(nvrtc, "_load", lambda name: toolkit if name == "toolkit" else wheel)
    monkeypatch.setattr(nvrtc, "_version", lambda library: library)
    assert nvrtc._library.__wrapped__() == chosen


def test_missing_compiler_names_the_fix() -> None:
    code = "from pykittens.gpu.compiler import compile\ncompile('', 'sm_80')"
    blocked = "import sys; sys.modules['cuda.pathfinder'] = None\n"
    environment = {"CUDA_HOME": "/nowhere", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", blocked + code], env=environment, capture_output=True, text=True)
    assert "CompilerMissing" in done.stderr
    assert "Fix: pip install nvidia-cuda-nvrtc" in done.stderr


def test_an_unloadable_compiler_names_its_path() -> None:
    code = "from pykittens.gpu.compiler import compile\ncompile('', 'sm_80')"
    environment = {"PYKITTENS_NVRTC": "/nowhere/libnvrtc.so", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "CompilerMissing: NVRTC cannot be loaded from /nowhere/libnvrtc.so" in done.stderr


def test_errors_cross_process_boundaries() -> None:
    error = pickle.loads(pickle.dumps(CompileError("refused", "log", "text")))
    assert (str(error), error.log, error.source) == ("refused\nlog", "log", "text")


def test_a_cubin_is_shown_without_its_image() -> None:
    cubin = Cubin(b"\x7fELF" * 10_000, "k", "sm_80", "log" * 1000, 32, 0, 0, 0, 0, (), "NVRTC 13.0", 0.1)
    assert len(repr(cubin)) < 300 and "registers=32" in repr(cubin)
