"""The families by name, and a run over the cells of one."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

from . import (
    attention,
    attention_backward,
    attention_backward_random,
    attention_cached,
    attention_packed,
    attention_random,
    attention_window,
    delta_rules,
    gemm,
    gemm_random,
    linear,
    linear_layer,
    loss,
    memory,
    recurrences,
    rows_backward,
    sequences,
    steps,
)
from .chart import bars
from .measure import OURS, Cell, Row, measure

FAMILIES: dict[str, ModuleType] = {
    "attention": attention,
    "attention_backward": attention_backward,
    "attention_backward_random": attention_backward_random,
    "attention_cached": attention_cached,
    "attention_packed": attention_packed,
    "attention_random": attention_random,
    "attention_window": attention_window,
    "delta_rules": delta_rules,
    "gemm": gemm,
    "gemm_random": gemm_random,
    "linear": linear,
    "linear_layer": linear_layer,
    "loss": loss,
    "memory": memory,
    "recurrences": recurrences,
    "rows_backward": rows_backward,
    "sequences": sequences,
    "steps": steps,
}
QUICK = 15.0  # milliseconds of work for each contender of a cell; else 60
Progress = Callable[[int, int, str], None]


def select(family: str, words: Sequence[str] = ()) -> list[Cell]:
    """The cells of a family: all, or those whose label has every part of one of `words`, such as "n 4096, causal", and
    none that is named with "no", such as "n 4096, no causal".
    """
    cells: list[Cell] = FAMILIES[family].cells()
    wanted = [[part.strip() for part in word.split(",")] for word in words]

    def meant(parts: list[str], label: list[str]) -> bool:
        return all((part.removeprefix("no ") in label) is not part.startswith("no ") for part in parts)

    return [cell for cell in cells if not wanted or any(meant(parts, cell.label.split(", ")) for parts in wanted)]


def run(
    family: str,
    cells: Sequence[Cell],
    everybody: bool = False,
    quick: bool = False,
    progress: Progress = lambda done, all, label: None,
) -> Iterator[Row]:
    """The rows of cells, one by one. A cell that cannot be tried says so in `problem`."""
    import torch

    for i, cell in enumerate(cells):
        progress(i, len(cells), cell.label)
        try:
            with torch.no_grad():
                torch.manual_seed(i)  # other numbers for every cell, the same for every run
                row = measure(cell, FAMILIES[family].trial(cell, everybody), QUICK if quick else 60.0)
        except Exception as error:
            row = {
                **cell.facts,
                "unit": cell.unit,
                "problem": f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}",
            }
        yield row
        gc.collect()
        torch.cuda.empty_cache()


def chart(family: str, rows: Sequence[Row]) -> str:
    """The rows as a picture: rates of everybody, ours last, as others have drawn it."""
    panels: dict[str, dict[str, dict[str, float]]] = {}
    units = {row["unit"] for row in rows}
    cards = {row.get("device", "here") for row in rows}
    for row in rows:
        if "rate" not in row:
            continue
        panel, label = FAMILIES[family].group(row)
        said = [row["unit"]] * (len(units) > 1) + [row.get("device", "here")] * (len(cards) > 1)
        heading = f"{panel} ({', '.join(said)})" if said else panel
        others = {name: peer["rate"] for name, peer in row["peers"].items() if "rate" in peer}
        panels.setdefault(heading, {})[label] = {OURS: row["rate"], **others}
    return bars(f"{FAMILIES[family].TITLE}", ", ".join(sorted(units)), panels)


def worst(rows: Sequence[Row]) -> list[tuple[str, Any]]:
    """For each peer, the geometric mean of ratios (above 1: we are faster) and the smallest."""
    import math

    ratios: dict[str, list[float]] = {}
    for row in rows:
        for name, peer in row.get("peers", {}).items():
            if "ratio" in peer:
                ratios.setdefault(name, []).append(peer["ratio"])
    return [
        (name, (math.exp(sum(map(math.log, found)) / len(found)), min(found), len(found)))
        for name, found in ratios.items()
    ]


def line(label: str, row: Row) -> str:
    """One row in words: our rate, then each contender's and how many times as fast we are."""
    if "problem" in row:
        return f"{label}: {row['problem']}"
    peers = (
        f"{name} {peer['rate']:.0f} ({peer['ratio']:.3f})" if "ratio" in peer else f"{name}: {peer['problem']}"
        for name, peer in row["peers"].items()
    )
    return f"{label}: {row['rate']:.0f} {row['unit']} ({row['ms']:.4g} ms, error {row['error']:.1e}) | " + ", ".join(
        peers
    )
