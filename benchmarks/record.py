"""The results file: one measurement a row, with the device, driver, versions and command that gave it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pykittens.bench.machine import facts

RESULTS = Path(__file__).with_name("results")


def record(table: str, rows: Iterable[dict[str, Any]], key: tuple[str, ...], file: Path | None = None) -> Path:
    """Files measurements under a table's name. A row replaces an earlier one of the table that agrees on the columns
    of `key`.
    """
    where = facts()
    file = file or RESULTS / f"{_device_word(where['device'])}.json"
    new = [{"table": table, **row, **where} for row in rows]
    fresh = {tuple(row.get(k) for k in key) for row in new}
    file.parent.mkdir(parents=True, exist_ok=True)
    with alone(file):
        kept = [row for row in read(file) if row["table"] != table or tuple(row.get(k) for k in key) not in fresh]
        everything = sorted(kept + new, key=lambda row: row["table"])  # stable: within a table, the order of measuring
        file.write_text("[\n" + ",\n".join(json.dumps(row) for row in everything) + "\n]\n")
    return file


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """Within it, no other process files anything: several measure at once. Windows has no such lock."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with Path(tempfile.gettempdir(), f"{file.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def read(file: Path) -> list[dict[str, Any]]:
    """The rows of a results file; none where there is no file."""
    return json.loads(file.read_text()) if file.exists() else []


def _device_word(device: str) -> str:
    """ "NVIDIA H200" is filed under "h200"."""
    return device.lower().removeprefix("nvidia").strip().replace(" ", "-")
