"""What `pykittens bench` does, short of a GPU's clock: cells, trials on small cells of the simulated GPU, rows, charts,
refusals."""

import xml.etree.ElementTree
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from typer.testing import CliRunner

from pykittens.bench import (
    attention,
    attention_backward,
    attention_backward_random,
    attention_cached,
    attention_packed,
    delta_rules,
    families,
    gemm,
    linear,
    linear_layer,
    loss,
    machine,
    measure,
    memory,
    recurrences,
    rows_backward,
    sequences,
    steps,
    timing,
)
from pykittens.bench.measure import OURS, Cell, Trial
from pykittens.cli import app
from pykittens.gpu import driver

torch = pytest.importorskip("torch")


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials on the CPU, where each run takes as long as its name has letters."""
    monkeypatch.setattr(measure, "DEVICE", "cpu")
    monkeypatch.setattr(
        measure, "in_turn", lambda runs, budget: {name: timing.Times(len(name), 1.0, 20.0) for name in runs}
    )


SMALL: list[tuple[Any, Cell]] = [
    (attention, Cell({"batch": 1, "heads": 2, "n": 70, "dim": 64, "causal": True}, 1e9)),
    *(
        (
            attention_backward,
            Cell(
                {"batch": 1, "heads": 4, "key_heads": g, "n": 70, "dim": 64, "causal": g < 4, "deterministic": g < 4},
                1e9,
            ),
        )
        for g in (4, 2)
    ),
    *(
        (attention_cached, Cell(dict(zip(attention_cached.KEY, facts, strict=True)), 1e6, "GB/s"))
        for facts in ((1, 4, 2, 48, 1, 0, "bf16"), (2, 2, 1, 128, 2, 64, "e4m3"))
    ),
    *(
        (attention_packed, Cell({"sequences": "few", "heads": 2, "dim": 64, "pass": which}, 1e9))
        for which in ("forward", "backward")
    ),
    (
        attention_backward_random,
        Cell({"batch": 1, "heads": 2, "key_heads": 1, "n": 48, "dim": 64, "causal": True, "deterministic": False}, 1e9),
    ),
    (gemm, Cell({"m": 70, "n": 64, "k": 64, "dtype": "bf16"}, 1e9)),
    (gemm, Cell({"m": 64, "n": 64, "k": 64, "dtype": "e4m3"}, 1e9)),
    (linear, Cell({"kind": "based", "batch": 1, "heads": 1, "n": 130, "features": 16, "dim": 64}, 1e9)),
    (
        linear,
        Cell({"kind": "linear_attention", "batch": 1, "heads": 1, "n": 130, "features": 64, "dim": 64}, 1e6, "GB/s"),
    ),
    *(
        (
            sequences,
            Cell({"kind": kind, "backward": back, "batch": 1, "heads": 1, "n": 70, "dim": 64}, 1e6, "GB/s"),
        )
        for kind, back in (
            ("causal_conv1d", False),
            ("causal_conv1d", True),
            ("linear_attention", True),
            ("linear_attention_decay", True),
            ("based", True),
        )
    ),
    *(
        (
            recurrences,
            Cell(
                {"kind": kind, "backward": back, "batch": 2, "heads": 1, "n": 70, "dim": 64, "state": 64}, 1e6, "GB/s"
            ),
        )
        for kind in ("mamba2", "gated_linear_attention", "gla")
        for back in (False, True)
    ),
    *(
        (delta_rules, Cell({"kind": kind, "backward": back, "batch": 1, "heads": 1, "n": 70, "dim": 64}, 1e6, "GB/s"))
        for kind in ("gated_delta_rule", "kimi_delta_attention")
        for back in (False, True)
    ),
    *(
        (steps, Cell({"kind": kind, "batch": 2, "heads": 2, "dim": 64, "state": 64}, 1e6, "GB/s"))
        for kind in steps.KINDS
    ),
    (loss, Cell({"kind": "logits", "rows": 6, "hidden": 0, "vocabulary": 257}, 1e6, "GB/s")),
    *(
        (linear_layer, Cell({"m": 40, "n": 24, "k": 16, "activation": activation, "backward": backward}, 1e9))
        for activation, backward in (("swiglu", True), ("gelu", False), ("none", True))
    ),
    (loss, Cell({"kind": "linear", "rows": 40, "hidden": 64, "vocabulary": 300}, 1e9)),
    *(
        (family, Cell({"kind": kind, "width": 64 if kind == "rotary" else 256}, 1e6, "GB/s"))
        for family in (memory, rows_backward)
        for kind in family.MOVED
    ),
]


@pytest.mark.thin(3)
@pytest.mark.parametrize(
    ("family", "cell"), SMALL, ids=[f"{f.__name__.split('.')[-1]}: {cell.label}" for f, cell in SMALL]
)
def test_trials(simulated: None, monkeypatch: pytest.MonkeyPatch, family: Any, cell: Cell) -> None:
    """Every kind of cell is right on the simulated GPU, and gives a row."""
    monkeypatch.setitem(attention_packed.LENGTHS, "few", [40, 70])
    for rows in (memory, rows_backward):
        monkeypatch.setattr(rows, "TRAFFIC", 1 << 16)
        monkeypatch.setattr(rows, "ROTARY", ((2, 40, 64),))
    torch.manual_seed(0)
    row = measure.measure(cell, family.trial(cell, False))
    assert "problem" not in row, row["problem"]
    assert 0 <= row["error"] <= row["limit"]
    assert row["ms"] == len(OURS)
    assert row["rate"] == pytest.approx(cell.rate(len(OURS)))
    for name, peer in row["peers"].items():
        if "ratio" in peer:
            assert peer["ratio"] == pytest.approx(len(name) / len(OURS))
    assert set(family.KEY) <= set(row)


def test_all_cells() -> None:
    """The cells are those that others were measured with."""
    labels = {name: [cell.label for cell in families.select(name)] for name in families.FAMILIES}
    assert {name: len(found) for name, found in labels.items()} == {
        "attention": 30,
        "attention_backward": 44,
        "attention_backward_random": 48,
        "attention_cached": 23,
        "attention_packed": 8,
        "attention_random": 100,
        "attention_window": 10,
        "delta_rules": 16,
        "gemm": 11,
        "gemm_random": 50,
        "linear": 6,
        "linear_layer": 8,
        "loss": 7,
        "memory": 40,
        "recurrences": 24,
        "rows_backward": 23,
        "sequences": 13,
        "steps": 5,
    }
    assert labels["attention"][11] == "batch 1, heads 32, n 16384, dim 64, causal"
    assert families.select("attention", ["n 4096, causal"]) == [
        c for c in attention.cells() if c.facts["n"] == 4096 and c.facts["causal"]
    ]
    forward = [cell for cell in families.select("delta_rules") if not cell.facts["backward"]]
    assert families.select("delta_rules", ["no backward"]) == forward != []
    assert families.select("gemm", ["m 64", "e4m3"])[0].label == "m 64, n 8192, k 8192, bf16"
    assert families.select("linear")[1].rate(0.3253) == pytest.approx(
        227, rel=0.01
    )  # TFLOP/s as the published kernel's are counted
    assert families.select("attention")[0].rate(1.0) == pytest.approx(4 * 16 * 16 * 768**2 * 64 / 1e9)
    assert all(cell.work >= 1 << 30 for cell in families.select("memory"))


def trial(result: Callable[[], Any]) -> Trial:
    return Trial(
        {OURS: result, "other": lambda: torch.ones(4)},
        lambda x: measure.row_error(x, torch.ones(4).double()),
        lambda errors: 1e-3,
    )


def test_wrong_results_are_not_timed(simulated: None) -> None:
    cell = Cell({"n": 4}, 1e9)
    row = measure.measure(cell, trial(lambda: torch.tensor([1.0, 1, 1, float("nan")])))
    assert row["problem"] == "an error of inf, where 0.001 is allowed"
    assert "ms" not in row
    assert "inf" in measure.measure(cell, trial(lambda: torch.empty(4)))["problem"]  # nobody wrote it
    failing = measure.measure(cell, trial(lambda: [][0]))
    assert failing["problem"] == "IndexError: list index out of range"
    good = measure.measure(cell, trial(lambda: torch.ones(4)))
    assert (good["rate"], good["error"]) == (1e9 / len(OURS) / 1e9, 0.0)
    peer = Trial({OURS: lambda: torch.ones(4), "absent": lambda: 1 / 0}, lambda x: 0.0, lambda errors: 0.0)
    assert measure.measure(cell, peer)["peers"] == {"absent": {"problem": "ZeroDivisionError: division by zero"}}


def test_poison() -> None:
    with measure.poisoned():
        assert torch.empty(3).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_charts(tmp_path: Path) -> None:
    rows = [
        {
            "batch": 1,
            "heads": 2,
            "n": n,
            "dim": d,
            "causal": causal,
            "unit": "TFLOP/s",
            "rate": 600.0,
            "peers": {"cuDNN": {"rate": 500.0, "ratio": 1.2}, "<FA4>": {"problem": ""}},
        }
        for d in (64, 128)
        for causal in (False, True)
        for n in (768, 16384)
    ]
    rows.append({"batch": 1, "heads": 2, "n": 5, "dim": 64, "causal": False, "unit": "TFLOP/s", "problem": "wrong"})
    image = xml.etree.ElementTree.fromstring(families.chart("attention", rows))
    texts = ["".join(element.itertext()) for element in image.iter("{http://www.w3.org/2000/svg}text")]
    assert "head dimension 128, causal" in texts
    assert {"PyKittens", "cuDNN", "600", "16384"} <= set(texts)
    assert "<FA4>" not in texts
    assert families.worst(rows) == [("cuDNN", (pytest.approx(1.2), 1.2, 8))]
    assert families.chart("memory", [])
    whole = {**rows[0], "ms": 0.5, "error": 2e-3}
    assert families.line("n 768", whole) == "n 768: 600 TFLOP/s (0.5 ms, error 2.0e-03) | cuDNN 500 (1.200), <FA4>: "
    assert families.line("n 5", rows[-1]) == "n 5: wrong"


def test_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are filed with their machine, and make the tables and their summary."""
    from benchmarks import record, tables

    monkeypatch.setattr(
        record,
        "facts",
        lambda: {"device": "NVIDIA H200", "driver": "580", "compiler": "13.3", "date": "today", "command": "c"},
    )
    peers = {"cuDNN": {"rate": 500.0, "ratio": 1.25}, "FA4": {"problem": "absent"}}
    row = {
        "batch": 1,
        "heads": 2,
        "n": 768,
        "dim": 64,
        "causal": True,
        "unit": "TFLOP/s",
        "rate": 625.0,
        "error": 2e-3,
        "peers": peers,
    }
    file = record.record("bench_attention", [row, {**row, "causal": False}], attention.KEY, tmp_path / "h200.json")
    record.record("bench_attention", [row], attention.KEY, file)
    rows = record.read(file)
    assert len(rows) == 2
    text = tables.fill(
        "<!-- begin:bench_attention -->\n<!-- end:bench_attention -->\n<!-- begin:summary -->\n<!-- end:summary -->",
        rows,
    )
    assert "| 1, 2, 768, 64, causal | 625 TFLOP/s | 2.0e-03 | 500 (1.25x) |" in text
    assert "| Attention forward, bf16 | cuDNN **1.25** (1.25) |  | 2 |" in text
    assert "NVIDIA H200, today to today; the card and command of each" in text
    assert "FA4" not in text


def test_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "torch" in machine.versions()
    monkeypatch.setattr("sys.argv", ["/usr/bin/pykittens", "bench", "gemm"])
    monkeypatch.setattr(__import__("sys").modules["__main__"], "__spec__", None)
    assert machine.command() == "pykittens bench gemm"


@pytest.mark.skipif(driver.available(), reason="there is a GPU")
@pytest.mark.parametrize("family", ["attention", "attention_backward", "gemm", "linear", "memory", "host", "all"])
def test_without_a_gpu(family: str) -> None:
    done = CliRunner().invoke(app, ["bench", family])
    assert done.exit_code == 2
    assert done.output == "There is no NVIDIA GPU here, and the simulated one has no speed to measure.\n"


def test_turns_have_orders_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each turn has everybody once, and nobody always follows the same other one."""
    torch, made = pytest.importorskip("torch"), list[str]()
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(timing, "_event_pair", lambda run, *_: made.append(run()))
    monkeypatch.setattr(timing, "_milliseconds", lambda _: 1.0)
    names = ["ours", "FA4", "cuDNN", "FA2"]
    timing.in_turn({name: lambda name=name: name for name in names}, budget=40.0)  # type: ignore[misc]
    turns = np.array(made[len(names) * 3 :]).reshape(-1, len(names))  # behind those that warm up
    assert len(turns) == 40 and all(sorted(turn) == sorted(names) for turn in turns.tolist())
    before = {name: set[str]() for name in names}
    for one, other in pairwise(turns.ravel().tolist()):
        before[other] |= {one}
    assert all(len(found) >= 3 for found in before.values())


@pytest.mark.gpu
def test_on_a_gpu(tmp_path: Path) -> None:
    """A quick run of two cells: timed, right, written and drawn."""
    import json

    file, picture = tmp_path / "rows.json", tmp_path / "chart.svg"
    done = CliRunner().invoke(
        app,
        [
            "bench",
            "attention",
            "--quick",
            "--peers",
            "--cells",
            "n 1024, dim 128",
            "--json",
            str(file),
            "--chart",
            str(picture),
        ],
    )
    assert done.exit_code == 0, done.output
    rows = json.loads(file.read_text())["families"]["attention"]
    assert len(rows) == 2
    assert all(row["rate"] > 10 and {"cuDNN", "FA2"} <= set(row["peers"]) for row in rows)
    assert picture.read_text().startswith("<svg")


def test_what_only_reads() -> None:
    """Each byte once, the last tile's too."""
    x, sums = np.ones((300, 64), np.dtype(ml_dtypes.bfloat16)), np.zeros(2, np.float32)
    assert memory.read.simulate(x, sums).read["global"] == x.nbytes
