"""What a measurement depends on besides what is measured: device, driver, compiler, versions, command, date."""

from __future__ import annotations

import datetime
import platform
import re
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "pykittens",
    "torch",
    "triton",
    "numpy",
    "nvidia-cudnn-cu13",
    "nvidia-cublas",
    "flash-attn-4",
    "quack-kernels",
    "nvidia-cutlass-dsl",
    "flash-linear-attention",
)


def facts() -> dict[str, Any]:
    """The columns that every row of results has."""
    from ..gpu import cache, compiler, driver

    there = driver.available()
    return {
        "device": driver.device_name() if there else "CPU",
        "driver": driver_version() if there else "none",
        "compiler": ", ".join(sorted(cache.compilers)) or compiler.compiler_version(),
        "python": platform.python_version(),
        "versions": versions(),
        "command": command(),
        "date": datetime.date.today().isoformat(),
        "time": datetime.datetime.now().strftime("%H:%M"),
    }


def driver_version() -> str:
    """The driver's own version, such as 580.65, and the CUDA it knows."""
    from ..gpu import driver

    knows = "CUDA {}.{}".format(*driver.driver_version())
    about = Path("/proc/driver/nvidia/version")
    found = re.search(r"\b(\d{3}\.\d+(?:\.\d+)?)\b", about.read_text()) if about.exists() else None
    return f"{found[1]} ({knows})" if found else knows


def versions() -> dict[str, str]:
    """Of the packages that are installed; cuDNN's and CUDA's as torch sees them."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if torch := sys.modules.get("torch"):
        if cudnn := torch.backends.cudnn.version():
            found["cuDNN"] = str(cudnn)
        found["torch CUDA"] = str(torch.version.cuda)
    return found


def command() -> str:
    """How this process was started, in the words of who would do it again; of folders and files elsewhere, the
    names.
    """
    module = getattr(sys.modules["__main__"], "__spec__", None)
    if module:
        name = f"python -m {module.name.removesuffix('.__main__')}"
    else:
        name = Path(sys.argv[0]).name if Path(sys.argv[0]).suffix != ".py" else f"python {Path(sys.argv[0]).name}"
    return " ".join([name, shlex.join(Path(x).name if Path(x).is_absolute() else x for x in sys.argv[1:])]).strip()
