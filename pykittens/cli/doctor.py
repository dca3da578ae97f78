"""`pykittens doctor`: what is installed, which GPU there is, and what would run where."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

from rich.markup import escape

from .. import __version__
from ..architectures import ARCHITECTURES
from ..gpu import cache, compiler, driver, nvrtc, sass, trust
from ..gpu.libcuda import CudaError
from ..kernels.registry import KERNELS
from .console import AsJson, answer, command, out

UNVERIFIED = "compiled and inspected for, never run on"
_PACKAGES = ("numpy", "ml_dtypes", "safetensors", "torch", "cupy", "jax")
_DRIVERS = {12: "525", 13: "580"}  # the first driver of each major version of CUDA, whose cubins all run on it


@command
def run_doctor(as_json: AsJson = False) -> None:
    """Say what is installed, which GPU there is, and what would run where."""
    facts: dict[str, Any] = {
        "pykittens": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "compiler": _compiler(),
        "disassembler": _disassembler(),
        "cache": {
            "directory": str(directory) if (directory := cache.user_directory()) else None,
            "ahead_of_time": [str(path) for path in cache.ahead_of_time()],
            "problems": [
                why
                for path in (*cache.ahead_of_time(), directory)
                if path is not None and (why := trust.distrusted(path))
            ],
        },
        "gpu": _gpus(),
    }
    facts["architectures"] = {name: row.verified for name, row in ARCHITECTURES.items()}
    facts["runs"] = {name: _where(row.architectures, facts) for name, row in KERNELS.items()}
    if as_json:
        answer(facts)
    else:
        _show(facts)


def _version(package: str) -> str | None:
    """A package's version, without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _compiler() -> dict[str, Any]:
    """The CUDA compiler, and whether it compiles."""
    try:
        facts: dict[str, Any] = {
            "version": compiler.compiler_version(),
            "path": nvrtc.path(),
            "faults": list(compiler.known_faults()),
        }
        cubin = compiler.compile('extern "C" __global__ void nothing() {}', "sm_80")
    except (compiler.CompilerMissing, compiler.CompileError) as error:
        return {"works": False, "problem": str(error)}
    return {**facts, "works": True, "seconds": round(cubin.seconds, 3)}


def _disassembler() -> str | None:
    try:
        return sass.nvdisasm()
    except sass.DisassemblerMissing:
        return None


def _gpus() -> dict[str, Any]:
    """The driver and its devices. A driver runs the cubins of any compiler of its own major version, and of older
    ones.
    """
    try:
        major, minor = driver.driver_version()
        devices = [_device(i) for i in range(driver.device_count())]
    except CudaError as error:
        return {"works": False, "problem": str(error), "devices": []}
    facts: dict[str, Any] = {"works": True, "driver": f"CUDA {major}.{minor}", "devices": devices}
    try:
        needed = nvrtc.version()[0]
    except compiler.CompilerMissing:
        needed = 13
    facts["driver_needed"] = f"CUDA {needed}.0" + (f" (driver {_DRIVERS[needed]})" if needed in _DRIVERS else "")
    if major < needed:
        facts |= {
            "works": False,
            "problem": f"the driver knows CUDA {major}.{minor}; cubins of this compiler need {facts['driver_needed']} "
            "or newer",
        }
    return facts


def _device(i: int) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "name": driver.device_name(i),
        "capability": "{}.{}".format(*driver.capability(i)),
        "multiprocessors": driver.multiprocessors(i),
        "shared_bytes": driver.shared_limit(i),
    }
    try:
        return {**facts, "arch": driver.architecture(i).name, "verified": driver.architecture(i).verified}
    except CudaError as error:
        return {**facts, "arch": None, "problem": str(error)}


def _where(architectures: tuple[str, ...], facts: dict[str, Any]) -> list[str]:
    """Where a kernel would run: on which GPUs, and on the simulated one."""
    places = []
    if facts["gpu"]["works"] and (facts["compiler"]["works"] or cache.ahead_of_time()):
        places = [f"GPU {i}" for i, device in enumerate(facts["gpu"]["devices"]) if device["arch"] in architectures]
    return [*places, "simulated GPU"]


def _show(facts: dict[str, Any]) -> None:
    good, bad, note = "[green]ok[/]  ", "[red]no[/]  ", "[yellow]note[/]"
    out.print(f"{good} pykittens {facts['pykittens']}, Python {facts['python']}, {facts['platform']}")
    out.print("     " + ", ".join(f"{name} {version or 'absent'}" for name, version in facts["packages"].items()))
    nvrtc_facts, gpu = facts["compiler"], facts["gpu"]
    if nvrtc_facts["works"]:
        out.print(f"{good} compiler {nvrtc_facts['version']}, {escape(nvrtc_facts['path'])}", soft_wrap=True)
        for fault in nvrtc_facts["faults"]:
            out.print(f"{note} {escape(fault)}", soft_wrap=True)
    else:
        out.print(f"{bad} compiler: {escape(nvrtc_facts['problem'])}", soft_wrap=True)
    if facts["disassembler"]:
        out.print(f"{good} disassembler {escape(facts['disassembler'])}", soft_wrap=True)
    else:
        out.print(f"{note} no disassembler (only `inspect` wants it): pip install nvidia-cuda-nvdisasm", soft_wrap=True)
    kept = facts["cache"]
    ahead = "".join(f", ahead of time {escape(path)}" for path in kept["ahead_of_time"])
    where = (
        escape(kept["directory"]) if kept["directory"] else "none: this user has no home directory, set PYKITTENS_CACHE"
    )
    out.print(f"{good if kept['directory'] else note} cache {where}{ahead}", soft_wrap=True)
    for problem in kept["problems"]:
        out.print(f"{note} not used: {escape(problem)}", soft_wrap=True)
    if gpu["works"]:
        out.print(f"{good} driver {gpu['driver']}; {gpu['driver_needed']} or newer is needed")
    else:
        out.print(f"{note} no GPU: {escape(gpu['problem'])}", soft_wrap=True)
    for i, device in enumerate(gpu["devices"]):
        out.print(
            f"{good if device['arch'] else bad} GPU {i}: {device['name']}, {device['arch'] or device['problem']}, "
            f"{device['multiprocessors']} multiprocessors"
            + ("" if device.get("verified", True) else f"; {UNVERIFIED}"),
            soft_wrap=True,
        )
    unverified = [name for name, verified in facts["architectures"].items() if not verified]
    out.print(f"{note} {UNVERIFIED}: {', '.join(unverified)}", soft_wrap=True)
    for name, places in facts["runs"].items():
        out.print(f"     {name} runs on: {', '.join(places)}")
