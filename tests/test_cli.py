"""The commands, as a user types them."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from typer.testing import CliRunner

import pykittens as pk
from pykittens.architectures import ARCHITECTURES
from pykittens.cli import app
from pykittens.gpu import cache, driver, nvrtc, sass
from pykittens.gpu.compiler import CompilerMissing
from pykittens.gpu.libcuda import CudaError
from pykittens.kernels import attention_ada, reference
from pykittens.kernels.registry import KERNELS


def run(*words: str, status: int = 0) -> str:
    """What a command prints on stdout."""
    result = CliRunner().invoke(app, words)
    assert result.exit_code == status, result.output
    return result.stdout


def ask(*words: str, status: int = 0) -> dict[str, Any]:
    """A command's JSON object."""
    return json.loads(run(*words, "--json", status=status))


def test_a_command_s_error_shows_no_line_of_what_calls_it() -> None:
    result = CliRunner().invoke(app, ("layout", "rv(f32, 16)"))
    assert result.exit_code and "no type of a tile or vector" in result.output and ".py:" not in result.output


def test_list() -> None:
    rows = ask("list")["kernels"]
    assert [row["kernel"] for row in rows] == list(KERNELS)
    assert "attention_ada" in run("list")


def test_inspect_says_what_the_compiler_said() -> None:
    facts = ask("inspect", "attention_ada", "--arch", "sm_89", "--dim", "128", "--causal")
    assert facts["kernel"] == "attention_ada" and facts["arch"] == "sm_89"
    assert facts["configuration"] == {"dim": 128, "dtype": "bf16", "causal": True}
    assert 20 < facts["lines"] <= 60
    assert 0 < facts["registers"] <= 255 and facts["spill_bytes"] == 0 and facts["shared_bytes"] == 65536
    assert facts["sass"]["HMMA"] > 0 and facts["sass"]["LDSM"] > 0
    assert any(loop["opcodes"].get("HMMA") for loop in facts["loops"])


def test_inspect_prints_each_stage() -> None:
    assert run("inspect", "attention_ada", "--program").startswith("kernel attend(q: gl<bf16")
    assert "__global__" in run("inspect", "attention_ada", "--arch", "sm_80", "--cuda")
    assert "HMMA" in run("inspect", "attention_ada", "--arch", "sm_80", "--sass")
    assert "registers a thread" in run("inspect", "attention_ada", "--arch", "sm_80")


def test_inspect_without_a_disassembler(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise sass.DisassemblerMissing("reading SASS needs nvdisasm")

    monkeypatch.setattr(sass, "nvdisasm", missing)
    sass.disassemble.cache_clear()
    assert ask("inspect", "attention_ada", "--arch", "sm_86")["sass"] is None
    assert "pip install nvidia-cuda-nvdisasm" in run("inspect", "attention_ada", "--arch", "sm_86")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["gemmm"], "there is no kernel 'gemmm'\n  fix: did you mean gemm"),
        (["attention_ada", "--dim", "80"], "--dim is '80'\n  fix: choose one of 64, 128"),
        (
            ["attention_ada", "--width=3"],
            "attention_ada has no option '--width=3'\n  fix: it takes --dim 64|128 --dtype bf16|f16 --causal",
        ),
        (["attention_ada", "--arch", "sm_75"], "there is no architecture 'sm_75'\n  fix: choose one of sm_80"),
        (["attention_ada", "--program"], "exclude each other"),
    ],
)
def test_inspect_refuses_in_words(words: list[str], says: str) -> None:
    assert says in ask("inspect", *words, status=1)["error"]
    assert run("inspect", *words, *(["--cuda"] if "--program" in words else []), status=1) == ""  # errors go to stderr


def test_compile_fills_a_directory_that_needs_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = ask("compile", "scale_rows", "--arch", "sm_89", "--arch", "sm_90a", "--out", str(tmp_path / "aot"))
    row = KERNELS["scale_rows"]
    assert len(facts["kernels"]) == 2 * len(list(row.configurations())) == len(list((tmp_path / "aot").iterdir()))

    def missing(*_: Any) -> Any:
        raise CompilerMissing("there is no compiler")

    monkeypatch.setattr(nvrtc, "_library", missing)
    monkeypatch.setenv("PYKITTENS_AOT", str(tmp_path / "aot"))
    monkeypatch.setenv("PYKITTENS_CACHE", str(tmp_path / "empty"))
    for _, found in row.configurations():
        assert cache.load_or_compile(found.cuda("sm_89"), "sm_89").arch == "sm_89"
    with pytest.raises(CompilerMissing):
        cache.load_or_compile(next(row.configurations())[1].cuda("sm_80"), "sm_80")


def test_compile_refuses_in_words(tmp_path: Path) -> None:
    assert (
        "there is no architecture 'sm_1'" in ask("compile", "--arch", "sm_1", "--out", str(tmp_path), status=1)["error"]
    )


def test_doctor_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise CudaError("there is no CUDA driver here")

    monkeypatch.setattr(driver, "driver_version", missing)
    facts = ask("doctor")
    assert facts["compiler"]["works"] and facts["compiler"]["version"].startswith("NVRTC 13.")
    assert not facts["gpu"]["works"] and "there is no CUDA driver here" in facts["gpu"]["problem"]
    assert all(places == ["simulated GPU"] for places in facts["runs"].values())
    assert "no GPU: there is no CUDA driver here" in run("doctor")


@pytest.mark.parametrize(("known", "works"), [((13, 0), True), ((12, 8), False)])
def test_doctor_weighs_the_driver(monkeypatch: pytest.MonkeyPatch, known: tuple[int, int], works: bool) -> None:
    fakes = {
        "driver_version": lambda: known,
        "device_count": lambda: 1,
        "device_name": lambda i: "NVIDIA GeForce RTX 4090",
        "capability": lambda i: (8, 9),
        "multiprocessors": lambda i: 128,
        "shared_limit": lambda i: 101376,
        "architecture": lambda i=0: ARCHITECTURES["sm_89"],
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(driver, name, fake)
    facts = ask("doctor")
    assert facts["gpu"]["works"] is works and facts["gpu"]["driver_needed"] == "CUDA 13.0 (driver 580)"
    assert facts["runs"]["attention_ada"] == (["GPU 0", "simulated GPU"] if works else ["simulated GPU"])
    assert "RTX 4090" in run("doctor")


def test_doctor_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise CompilerMissing("compiling a kernel needs NVRTC")

    monkeypatch.setattr(nvrtc, "_library", missing)
    facts = ask("doctor")
    assert facts["compiler"] == {"works": False, "problem": "compiling a kernel needs NVRTC"}
    assert "compiling a kernel needs NVRTC" in run("doctor")


def test_doctor_knows_the_compilers_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "version", lambda: (13, 0))
    (fault,) = ask("doctor")["compiler"]["faults"]
    assert "WGMMA" in fault and "13.3" in fault


def test_demo() -> None:
    facts = ask("demo", "--device", "cpu", "--n", "100", "--causal")
    assert facts["kernel"] == "attention_ada" and facts["device"] == "simulated GPU" and facts["passed"]
    assert 0 < facts["error"] <= facts["tolerance"] and facts["diagnoses"] == [] and facts["seconds"] > 0
    assert facts["saw"]["global_bytes_written"] == 2 * 100 * 64 * 2 and facts["saw"]["bank_conflicts"] == 0
    assert "no race" in run("demo", "--device", "cpu", "--n", "17", "--d", "128")


def test_demo_beside_torch() -> None:
    pytest.importorskip("torch")
    facts = ask("demo", "--device", "cpu", "--n", "200", "--torch")
    assert facts["passed"] and facts["tolerance"] == pytest.approx(1.5 * facts["torch_error"])


def arrays(dtype: Any = np.float32, shape: tuple[int, ...] = (1, 2, 40, 64)) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(dtype) for name in "qkv"}


def saved(folder: Path, arrays: dict[str, Any]) -> list[str]:
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return [word for name in arrays for word in (f"--{name}", str(folder / f"{name}.npy"))]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, "bits"])
def test_demo_on_npy_files(tmp_path: Path, dtype: Any) -> None:
    mine = arrays(ml_dtypes.bfloat16 if dtype == "bits" else dtype)
    files = saved(tmp_path, {name: x.view(np.uint16) for name, x in mine.items()} if dtype == "bits" else mine)
    facts = ask("demo", "--device", "cpu", *files)
    assert facts["passed"] and facts["shape"]["q"] == [1, 2, 40, 64]
    assert facts["dtype"] == ("float16" if dtype is np.float16 else "bfloat16")


def safetensors(file: Path, arrays: dict[str, Any]) -> str:
    """Writes bf16 arrays in the format: the header's length, the header, the bytes."""
    header, offset = {}, 0
    for name, array in arrays.items():
        header[name] = {"dtype": "BF16", "shape": array.shape, "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(array.tobytes() for array in arrays.values()))
    return str(file)


def test_demo_on_safetensors(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    mine = arrays(ml_dtypes.bfloat16, (40, 64))
    facts = ask(
        "demo",
        "--device",
        "cpu",
        "--safetensors",
        safetensors(tmp_path / "a", {"query": mine["q"], "key": mine["k"], "Value": mine["v"]}),
    )
    assert facts["passed"] and facts["shape"]["q"] == [1, 1, 40, 64]
    error = ask("demo", "--safetensors", safetensors(tmp_path / "b", {"w": mine["q"]}), status=1)["error"]
    assert "has no tensor q or query; it has w" in error
    (tmp_path / "junk").write_bytes(b"junk")
    assert "is no safetensors file" in ask("demo", "--safetensors", str(tmp_path / "junk"), status=1)["error"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"q": np.zeros((1, 2, 40, 80), np.float32)}, "attention_ada has no head dimension 80"),
        (
            {"k": np.zeros((1, 3, 40, 64), np.float32)},
            "the shapes do not go together: q bfloat16 (1, 2, 40, 64), k bfloat16 (1, 3, 40, 64)",
        ),
        ({"q": np.zeros((1, 2, 40, 64), np.float16)}, "the dtypes differ: q float16"),
        ({"v": np.zeros((1, 2, 40, 64), np.int32)}, "v is int32"),
        ({"v": np.zeros((1, 2, 0, 64), np.float32)}, "v has shape (1, 2, 0, 64)"),
        ({"v": np.zeros(64, np.float32)}, "v has shape (64,)"),
        ({"v": np.array([{}])}, "v.npy is no array of numbers"),
    ],
)
def test_demo_refuses_in_words(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    assert says in ask("demo", *saved(tmp_path, arrays() | change), status=1)["error"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--d", "80"], "attention_ada has no head dimension 80"),
        (["--q", "q.npy"], "--k and --v missing\n  fix: give --q, --k and --v, or --safetensors"),
        (
            ["--q", "nowhere.npy", "--k", "nowhere.npy", "--v", "nowhere.npy"],
            "No such file or directory: 'nowhere.npy'",
        ),
        (["--device", "tpu"], "there is no device 'tpu'"),
        (["--safetensors", "x", "--q", "q.npy"], "exclude each other"),
    ],
)
def test_demo_refuses_options_in_words(words: list[str], says: str) -> None:
    assert says in ask("demo", *words, status=1)["error"]


def test_demo_without_the_gpu_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(device: int = 0) -> Any:
        raise CudaError("there is no CUDA driver here")

    monkeypatch.setattr(driver, "architecture", missing)
    assert "there is no CUDA driver here" in ask("demo", "--device", "gpu", status=1)["error"]


def test_demo_tells_what_the_machine_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def racy(*_: Any, **__: Any) -> Any:
        raise pk.RaceError("two warps at once", fix="synchronise")

    monkeypatch.setattr(attention_ada.attend, "simulate", racy)
    facts = ask("demo", "--device", "cpu", "--n", "16", status=1)
    assert (
        not facts["passed"]
        and "two warps at once" in facts["diagnoses"][0]
        and "fix: synchronise" in facts["diagnoses"][0]
    )
    assert "two warps at once" in run("demo", "--device", "cpu", "--n", "16", status=1)


@pytest.mark.gpu
def test_demo_on_a_gpu() -> None:
    facts = ask("demo", "--device", "gpu", "--n", "1000")
    assert facts["passed"] and "sm_" in facts["device"] and facts["saw"] is None


def test_reference_attention() -> None:
    q, k, v = (x.astype(np.float64) for x in arrays(shape=(2, 1, 8, 16)).values())
    score = np.einsum("bhid,bhjd->bhij", q, k[:, :, :6]) * 0.25
    score[..., np.arange(6) > np.arange(8)[:, None] - 2] = -np.inf  # the first two rows see no key
    with np.errstate(invalid="ignore"):
        weight = np.nan_to_num(np.exp(score) / np.exp(score).sum(-1, keepdims=True))
    result = reference.attention(q, k[:, :, :6], v[:, :, :6], scale=0.25, causal=True)
    assert reference.row_error(result, weight @ v[:, :, :6]) < 1e-14
    assert not result[:, :, :2].any()


def test_row_error() -> None:
    expected = np.array([[3.0, 4.0], [0.0, 0.0], [np.nan, 1.0]])
    assert reference.row_error(expected, expected) == 0
    assert reference.row_error(expected + [[0, 5.0], [0, 0], [0, 0]], expected) == 1
    assert reference.row_error(expected + [[0, 0], [0, 0.5], [0, 0]], expected) == 0.5
    assert reference.row_error(np.nan_to_num(expected), expected) == np.inf
    assert reference.row_error(np.full((3, 2), np.nan), expected) == np.inf


# Cache ------------------------------------------------------------------------------------------------------


def test_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYKITTENS_CACHE", str(tmp_path / "cache"))
    assert ask("cache", "list")["kernels"] == []
    run("inspect", "attention_ada", "--arch", "sm_89")
    facts = ask("cache", "list")
    (row,) = facts["kernels"]
    assert (row["arch"], facts["count"], facts["bytes"]) == ("sm_89", 1, row["bytes"])
    assert "for sm_89, by NVRTC" in run("cache", "list") and "1 kernels" in run("cache", "list")
    assert ask("cache", "limit", "2GiB")["limit"] == ask("cache", "limit")["limit"] == 2 << 30
    assert ask("cache", "limit", "1.5kB")["count"] == 0
    assert "'lots' is no size" in ask("cache", "limit", "lots", status=1)["error"]
    ask("cache", "limit", "1GB")
    run("inspect", "attention_ada", "--arch", "sm_89")
    assert ask("cache", "clear")["removed"] == 1
    assert not list((tmp_path / "cache").glob("*.kernel"))


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--d", "-64", "--d is -64"),
        ("--seed", "-1", "--seed is -1"),
        ("--n", "0", "--n is 0"),
        ("--n", "99999999999999999999", "elements each"),
        ("--batch", str(2**31), "elements each"),
        ("--heads", "-3", "--heads is -3"),
    ],
)
def test_numbers_out_of_range_are_sentences(option: str, value: str, words: str) -> None:
    facts = ask("demo", option, value, status=1)
    assert words in facts["error"] and "fix: " in facts["error"]


def header(shape: str) -> bytes:
    """An .npy file of such a shape, without data."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "shape", ["(True, 64)", "(" * 300 + ")" * 300, "(2.5, 64)", "(-1, 64)", "(10**30, 64)", "None"]
)
def test_damaged_files_are_sentences(shape: str, tmp_path: Path) -> None:
    file = tmp_path / "x.npy"
    file.write_bytes(header(shape))
    facts = ask("demo", "--q", str(file), "--k", str(file), "--v", str(file), status=1)
    assert facts["kind"] == "Refusal" and "fix: " in facts["error"]


def test_json_has_no_infinities(tmp_path: Path) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    file = tmp_path / "x.npy"
    np.save(file, np.full((1, 1, 16, 64), 3e38, np.float32))
    words = ("demo", "--device", "cpu", "--q", str(file), "--k", str(file), "--v", str(file))
    facts = json.loads(run(*words, "--json", status=1), parse_constant=refuse)
    assert facts["error"] is None and facts["passed"] is False


def test_fortran_order(tmp_path: Path) -> None:
    file = tmp_path / "x.npy"
    np.save(file, np.asfortranarray(np.random.default_rng(0).standard_normal((1, 1, 16, 64), np.float32)))
    assert ask("demo", "--device", "cpu", "--q", str(file), "--k", str(file), "--v", str(file))["passed"]


OWN = """
from typing import Annotated
import pykittens as pk
from pykittens import Tensor, bf16, f32, warp

Rows = Annotated[Tensor, (bf16, f32), "N", pk.static("D")]

@pk.kernel(warps=1, grid=lambda x, **_: pk.cdiv(x.rows, 16))
def double(x: Rows, y: Rows, by: Annotated[pk.Scalar, f32], *, plus: float = 0.0):
    warp.store(y, warp.load(x, (pk.block_index.x, 0), rows=16) * by + plus, (pk.block_index.x, 0))

@pk.autotune([{"plus": 1.0}])
@pk.kernel(warps=1)
def tuned(x: Annotated[Tensor, f32, 16, 64], *, plus: float):
    warp.store(x, warp.zeros(f32, 16, 64) + plus, (0, 0))
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    """A file with kernels of a user's own."""
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    return str(file)


def test_inspect_of_a_kernel_of_ones_own(own: str) -> None:
    facts = ask("inspect", f"{own}:double", "N=4096", "D=64", "x=f32", "by=2", "plus=0.5", "--arch", "sm_80")
    assert facts["kernel"] == "double" and facts["registers"] > 0 and facts["configuration"]["N"] == 4096
    assert "double(x: gl<f32" in run("inspect", f"{own}:double", "N=4096", "D=64", "x=f32", "--program")
    assert "__global__" in run("inspect", f"{own}:tuned", "plus=1.0", "--cuda", "--arch", "sm_80")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([":double"], "add N=... D=..."),
        ([":double", "N=foo", "D=64"], "N=foo is no length"),
        ([":double", "N=16", "N=17", "D=64"], "N is given twice"),
        ([":double", "N=16", "D=64", "M=3"], "its dimensions are D, N"),
        ([":double", "N=16", "D=64", "x=i32"], "x is bf16 or f32"),
        ([":double", "N=16", "D=63"], "multiple of 16"),
        ([":double", "what"], "NAME=VALUE"),
        ([":single", "N=16"], "mine.py:double"),
        ([""], "which kernel of"),
        (["x.py:double"], "there is no file"),
    ],
)
def test_a_kernel_of_ones_own_that_is_not_understood(own: str, words: list[str], said: str) -> None:
    name, *rest = words
    result = CliRunner().invoke(app, ["inspect", own + name, *rest])
    assert result.exit_code == 1 and said in " ".join(result.output.split()), result.output


def test_bench_says_what_it_does_not_know(own: str) -> None:
    assert "my.py:softmax" in " ".join(CliRunner().invoke(app, ["bench", "attentoin"]).output.split())


def test_schedule_predicts_every_way() -> None:
    facts = ask("schedule", "attention", "n=461", "m=24211", "heads=2")
    times = [way["microseconds"] for way in facts["ways"]]
    assert times == sorted(times) and "splits=1" not in facts["ways"][0]["way"].split()
    facts = ask("schedule", "backward", "n=516", "heads=10", "shared=1", "deterministic=1")
    assert facts["ways"][0]["way"].startswith("parts of heads=") and facts["fitted"]["measured"]
    assert "microseconds" in run("schedule", "product", "m=1000", "n=5000", "k=3000")
    seen = [ask("schedule", "attention", "n=8192", "heads=16", "causal=1", *w)["ways"][0] for w in ([], ["left=256"])]
    assert seen[1]["microseconds"] < 0.5 * seen[0]["microseconds"]
    assert "multiple of 8" in ask("schedule", "attention", "dim=500", status=1)["error"]
    assert "divisor of 3" in ask("schedule", "attention", "heads=3", "shared=2", status=1)["error"]
    assert "choose one of" in ask("schedule", "softmax", status=1)["error"]
    assert "numbers above 0" in ask("schedule", "product", "m=x", status=1)["error"]
