"""`pk.autotune` leaves out what cannot work, tries the rest once, and remembers; `pk.do_bench` says what it needs."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import pytest

import pykittens as pk
from pykittens import Tensor, f32, warp
from pykittens.bench import tuning
from pykittens.errors import ArgumentError

Rows = Annotated[Tensor, f32, "N", pk.static("D")]
CONFIGS = [{"rows": 3}, {"rows": 128}, {"rows": 4}, {"rows": 8}]  # 3 rows do not divide, 128 spill


@pk.kernel(warps=1, grid=lambda x, rows, **_: pk.cdiv(x.rows, rows))
def double(x: Rows, y: Rows, *, rows: int) -> None:
    """y = 2 x, some rows at a time."""
    tile = warp.load(x, (pk.block_index.x, 0), rows=rows, layout=pk.coalesced(8, 4))
    warp.store(y, tile + tile, (pk.block_index.x, 0))


def arrays() -> tuple[np.ndarray, np.ndarray]:
    x = np.arange(640, dtype=np.float32).reshape(10, 64)
    return x, np.zeros_like(x)


def test_on_the_simulated_gpu_the_first_that_can_be_traced_runs() -> None:
    tuned = pk.autotune(CONFIGS[::2])(double)
    x, y = arrays()
    tuned(x, y)
    assert np.array_equal(y, 2 * x) and tuned.best(x, y) == {"rows": 4}


def test_candidates_that_cannot_be_or_that_spill_are_left_out() -> None:
    shape = pk.spec(f32, (4096, 64))
    found = pk.autotune(CONFIGS)(double).candidates(shape, shape, arch="sm_80")
    assert [c.config["rows"] for c in found] == [4, 8]
    assert all(c.spilled == 0 and c.residents > 0 for c in found)


def test_what_was_found_is_kept_until_the_kernel_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU is played: arrays lie on it, and rows=8 is faster."""
    runs: list[str] = []

    def in_turn(found: dict[str, Any]) -> dict[str, Any]:
        runs.extend(found)
        return {number: SimpleNamespace(median=1.0 if number == "3" else 2.0) for number in found}

    described = tuning.describe
    monkeypatch.setattr(tuning, "describe", lambda x: described(x)._replace(device=0))
    monkeypatch.setattr(tuning.driver, "device_name", lambda device: "a GPU")
    monkeypatch.setattr(tuning.driver, "architecture", lambda device: pk.architectures.ARCHITECTURES["sm_80"])
    monkeypatch.setattr(tuning, "in_turn", in_turn)
    monkeypatch.setattr(type(double), "bind", lambda self, **named: None)
    x, y = arrays()
    table = tmp_path / "tuned.json"
    assert pk.autotune(CONFIGS, table=table)(double).best(x, y) == {"rows": 8}
    assert sorted(runs) == ["2", "3"] and len(json.loads(table.read_text())) == 1
    assert pk.autotune(CONFIGS, table=table)(double).best(x, y) == {"rows": 8} and len(runs) == 2, "read, not tried"
    assert pk.autotune(CONFIGS[2:], table=table)(double).best(x, y) is not None
    assert len(runs) == 4, "other candidates are tried"
    table.write_text("no JSON")
    assert pk.autotune(CONFIGS, table=table)(double).best(x, y) == {"rows": 8}


@pytest.mark.parametrize(
    ("configs", "options", "fact"),
    [
        ([{"lanes": 8}], {}, "lanes is no static value"),
        ([], {}, "without candidates"),
        ([{"rows": 4}], {"key": ("z",)}, "key names z"),
    ],
)
def test_what_cannot_be_tuned_is_refused(configs: list[dict[str, int]], options: dict[str, Any], fact: str) -> None:
    with pytest.raises(ArgumentError, match=fact):
        pk.autotune(configs, **options)(double)


def test_where_nothing_can_be_compiled_every_reason_is_given() -> None:
    x, y = arrays()
    with pytest.raises(ArgumentError, match=r"(?s)no candidate can be compiled.*does not divide"):
        pk.autotune(CONFIGS[:1])(double)(x, y)


def test_do_bench_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ArgumentError, match="no NVIDIA GPU"):
        pk.do_bench(lambda: None)
