"""The results file: one measurement a row, with the device, driver, versions and command that gave it."""

from __future__ import annotations

import datetime
import json
import platform
import re
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")
_PACKAGES = ("pykittens", "torch", "numpy", "nvidia-cudnn-cu13", "nvidia-cublas", "flash-attn-4", "quack-kernels")


def record(table: str, rows: Iterable[dict[str, Any]], key: tuple[str, ...], file: Path | None = None) -> Path:
    """Files measurements under a table's name. A row replaces an earlier one of the table that agrees on the columns of `key`."""
    where = _where()
    file = file or RESULTS / f"{_device_word(where['device'])}.json"
    old, new = read(file), [{"table": table, **row, **where} for row in rows]
    fresh = {tuple(row.get(k) for k in key) for row in new}
    kept = [row for row in old if row["table"] != table or tuple(row.get(k) for k in key) not in fresh]
    everything = sorted(kept + new, key=lambda row: row["table"])  # stable: within a table, the order of measuring
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("[\n" + ",\n".join(json.dumps(row) for row in everything) + "\n]\n")
    return file


def read(file: Path) -> list[dict[str, Any]]:
    """The rows of a results file; none where there is no file."""
    return json.loads(file.read_text()) if file.exists() else []


def _where() -> dict[str, Any]:
    """What a measurement depends on besides what is measured."""
    from pykittens.cuda import compiler, driver

    versions = {name: version for name in _PACKAGES if (version := _version(name))}
    return {
        "device": driver.device_name(), "driver": _driver(), "compiler": compiler.compiler_version(),
        "python": platform.python_version(), "versions": versions, "command": _command(),
        "date": datetime.date.today().isoformat(),
    }  # fmt: skip


def _driver() -> str:
    """The driver's own version, such as 580.65, and the CUDA it knows."""
    from pykittens.cuda import driver

    knows = "CUDA {}.{}".format(*driver.driver_version())
    about = Path("/proc/driver/nvidia/version")
    found = re.search(r"Module\D+([\d.]+)", about.read_text()) if about.exists() else None
    return f"{found[1]} ({knows})" if found else knows


def _command() -> str:
    module = getattr(sys.modules["__main__"], "__spec__", None)
    name = f"-m {module.name.removesuffix('.__main__')}" if module else Path(sys.argv[0]).name
    return " ".join(["python", name, *sys.argv[1:]])


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _device_word(device: str) -> str:
    """ "NVIDIA H200" is filed under "h200"."""
    return device.lower().removeprefix("nvidia").strip().replace(" ", "-")
