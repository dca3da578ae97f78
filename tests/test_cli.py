"""The commands, as a user types them."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pykittens.cli import app
from pykittens.cuda import cache, driver, nvrtc, sass
from pykittens.cuda.compiler import CompilerMissing
from pykittens.cuda.libcuda import CudaError
from pykittens.kernels.registry import KERNELS


def run(*words: str, status: int = 0) -> str:
    """What a command prints on stdout."""
    result = CliRunner().invoke(app, words)
    assert result.exit_code == status, result.output
    return result.stdout


def ask(*words: str, status: int = 0) -> dict[str, Any]:
    """A command's JSON object."""
    return json.loads(run(*words, "--json", status=status))


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

    monkeypatch.setattr(sass, "_nvdisasm", missing)
    sass.disassemble.cache_clear()
    assert ask("inspect", "attention_ada", "--arch", "sm_86")["sass"] is None
    assert "pip install nvidia-cuda-nvdisasm" in run("inspect", "attention_ada", "--arch", "sm_86")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["gemmm"], "there is no kernel 'gemmm'\n  fix: choose one of attention_ada"),
        (["attention_ada", "--dim", "80"], "--dim is '80'\n  fix: choose one of 64, 128"),
        (["attention_ada", "--width=3"], "attention_ada has no option '--width=3'\n  fix: it takes --dim 64|128 --dtype bf16|f16 --causal"),
        (["attention_ada", "--arch", "sm_75"], "there is no architecture 'sm_75'\n  fix: choose one of sm_80"),
        (["attention_ada", "--program"], "exclude each other"),
    ],
)
def test_inspect_refuses_in_words(words: list[str], says: str) -> None:
    assert says in ask("inspect", *words, status=1)["error"]
    assert run("inspect", *words, *(["--cuda"] if "--program" in words else []), status=1) == ""  # errors go to stderr


def test_compile_fills_a_directory_that_needs_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = ask("compile", "attention_ada", "--arch", "sm_89", "--arch", "sm_90a", "--out", str(tmp_path / "aot"))
    row = KERNELS["attention_ada"]
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
    assert "there is no architecture 'sm_1'" in ask("compile", "--arch", "sm_1", "--out", str(tmp_path), status=1)["error"]


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
        "driver_version": lambda: known, "device_count": lambda: 1, "device_name": lambda i: "NVIDIA GeForce RTX 4090",
        "capability": lambda i: (8, 9), "multiprocessors": lambda i: 128, "shared_limit": lambda i: 101376,
        "architecture": lambda i=0: "sm_89",
    }  # fmt: skip
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
