"""The constants of the models of time (`kernels/schedule.py`, and of attention's backward pass
`kernels/attention_backward_divided.py`), fitted to the times that `python -m benchmarks.schedules` recorded.

    python -m benchmarks.fit [KIND] [--folds 5] [--unseen FILE]    # -> pykittens/kernels/schedule.json

All files of benchmarks/results/schedules but the unseen one are fitted together. The way that the model takes counts as
right within 5 % of the fastest that was measured: at shapes that are held back, a fold after another (--folds), and at
those of a file that is never fitted. What several sessions measured counts as its mean; and as a bound of what any
model may reach, "measured again" says how near the fastest the way is that was the fastest in another session, of ways
that both measured. Least squares of the logarithms of times, by damped Gauss-Newton steps, in which
errors above 10 % count by their size and not its square, and what all ways of a shape have in common counts less than
how they differ, on which the choice depends.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pykittens.kernels import attention_backward_divided as divided
from pykittens.kernels import schedule

from .record import RESULTS
from .schedules import backward_shape

ROBUST, POWER, FAR = 0.1, 4, 1.6
COMMON = 0.2  # how much of a shape's mean error counts
FOLDER = RESULTS / "schedules"
Array = Any
Times = dict[Any, float]  # microseconds by way
Row = tuple[Any, schedule.DeviceModel, Times]
SORTS = {"window": "attention", "few": "product"}
Constants = Callable[[Any], list[float]]


class Problem:
    """Errors of a model's logarithms at rows. own: where the constants of a way begin; `common`: those of all ways."""

    def __init__(self, rows: list[Row], own: Constants, common: list[float]) -> None:
        rows = [(shape, machine, near(times)) for shape, machine, times in rows]
        self.names = sorted({way.name for *_, times in rows for way in times})
        starts = [own(next(way for *_, times in rows for way in times if way.name == name)) for name in self.names]
        self.start = np.log([*np.concatenate(starts), *common])
        self.size = len(starts[0])
        self.data = [(i, *row[:2], way) for i, row in enumerate(rows) for way in row[2]]
        self.logs = np.log([us for *_, times in rows for us in times.values()])
        # What is far from the fastest way of its shape is not chosen, and need not be known as well.
        self.counts = np.array([(min(times.values()) / us) ** POWER for *_, times in rows for us in times.values()])
        self.shapes = np.array([i for i, *_ in self.data])
        self.owner = np.array([self.names.index(way.name) for *_, way in self.data])
        self.weights = np.bincount(self.shapes, self.counts**2)
        everything = np.arange(len(self.data))
        self.moved = [np.flatnonzero(self.owner == i // self.size) for i in range(self.size * len(self.names))]
        self.moved += [everything] * len(common)

    def errors(self, x: Array, which: Array | None = None) -> Array:
        """The logarithms of predicted times over measured ones, for logarithms x of the constants."""
        values = np.exp(x)
        common = values[self.size * len(self.names) :]
        which = np.arange(len(self.data)) if which is None else which
        made = []
        for i in which:
            _, shape, machine, way = self.data[i]
            first = self.size * self.owner[i]
            made.append(shape.microseconds(way, values[first : first + self.size], common, machine))
        return np.log(made) - self.logs[which]

    def residuals(self, errors: Array) -> Array:
        """Weighted, and without most of what the ways of a shape have in common."""
        means = np.bincount(self.shapes, errors * self.counts**2) / self.weights
        return (errors - (1 - COMMON) * means[self.shapes]) * self.counts

    def slopes(self, x: Array, errors: Array) -> Array:
        """Derivatives of the residuals with respect to x."""
        found = []
        for i, rows in enumerate(self.moved):
            there = x.copy()
            there[i] += 1e-4
            change = np.zeros(len(errors))
            change[rows] = (self.errors(there, rows) - errors[rows]) / 1e-4
            found.append(self.residuals(change))
        return np.array(found).T


def near(times: Times) -> Times:
    """The ways that count for something."""
    return {way: us for way, us in times.items() if us < FAR * min(times.values())}


def merged(rows: list[Row]) -> list[Row]:
    """One row of each shape and device: of times that several sessions measured, each way's geometric mean, as if no
    session had been slower than the others on the whole."""
    found: dict[Any, list[Times]] = {}
    for shape, machine, times in rows:
        found.setdefault((shape, machine), []).append(times)
    return [(*key, sessions[0] if len(sessions) == 1 else _mean(sessions)) for key, sessions in found.items()]


def _mean(sessions: list[Times]) -> Times:
    slower = [0.0] * len(sessions)
    for _ in range(20):  # logarithms are a sum of the way's and the session's
        logs: dict[Any, list[float]] = {}
        for times, by in zip(sessions, slower, strict=True):
            for way, us in times.items():
                logs.setdefault(way, []).append(math.log(us) - by)
        means = {way: sum(x) / len(x) for way, x in logs.items()}
        slower = [sum(math.log(us) - means[way] for way, us in x.items()) / len(x) for x in sessions]
    return {way: math.exp(x + sum(slower) / len(slower)) for way, x in means.items()}


def measured_again(rows: list[Row]) -> list[float]:
    """Of each two sessions that measured a shape, the time in one of the way that was the fastest in the other, over
    the least: how near a model comes that knows as much as a session."""
    found, before = [], list[Row]()
    for row in rows:
        for other in (x for x in before if x[:2] == row[:2]):
            both = sorted(row[2].keys() & other[2].keys(), key=lambda way: way.words)
            for first, second in ((row[2], other[2]), (other[2], row[2])) if len(both) > 1 else ():
                found.append(second[min(both, key=first.__getitem__)] / min(second[way] for way in both))
        before.append(row)
    return found


def cost(residuals: Array) -> float:
    return float(np.sum(2 * ROBUST**2 * (np.sqrt(1 + (residuals / ROBUST) ** 2) - 1)))


def least_squares(problem: Problem, steps: int = 20) -> Array:
    """The logarithms of the constants that fit best."""
    x, damping = problem.start, 1e-2
    errors = problem.errors(x)
    base = problem.residuals(errors)
    for _ in range(steps):
        slopes, before = problem.slopes(x, errors), cost(base)
        weight = 1 / np.sqrt(1 + (base / ROBUST) ** 2)
        normal = slopes.T @ (slopes * weight[:, None])
        for _ in range(8):
            step = np.linalg.solve(normal + damping * np.diag(np.diag(normal) + 1e-6), slopes.T @ (base * weight))
            there = np.clip(x - step, math.log(1e-3), math.log(1e3))
            found = problem.errors(there)
            if cost(problem.residuals(found)) < before:
                x, errors, base, damping = there, found, problem.residuals(found), damping / 3
                break
            damping *= 4
        else:
            break
        if cost(base) > before * (1 - 1e-4):
            break
    return x


def fit(rows: list[Row], own: Constants, common: list[float]) -> dict[str, list[float]]:
    """Constants by name of way, and "all"."""
    problem = Problem(rows, own, common)
    x = np.exp(least_squares(problem))
    size, names = problem.size, problem.names
    parts = {name: x[size * i : size * i + size] for i, name in enumerate(names)} | {"all": x[size * len(names) :]}
    return {name: [round(float(value), 4) for value in values] for name, values in parts.items()}


def judged(rows: list[Row], known: dict[str, list[float]]) -> list[float]:
    """Of each shape, the time of the way that the model takes over the least that was measured."""
    found = []
    for shape, machine, times in rows:
        made = {way: shape.microseconds(way, known[way.name], known["all"], machine) for way in times}
        found.append(times[min(made, key=made.__getitem__)] / min(times.values()))
    return found


def said(ratios: list[float]) -> dict[str, Any]:
    """What the ratios come to."""
    within = sum(x <= 1.05 for x in ratios) / len(ratios)
    mean = math.exp(np.mean(np.log(ratios)))
    return {
        "shapes": len(ratios),
        "within 5 %": round(within, 3),
        "mean": round(mean, 4),
        "worst": round(max(ratios), 2),
    }


def read(file: Path) -> tuple[dict[str, Any], dict[str, list[Row]]]:
    """Facts, and rows of each kind: windows are attentions, and products of few rows are products."""
    found = json.loads(file.read_text())
    machine = schedule.DeviceModel(*found["machine"])
    rows: dict[str, list[Row]] = {kind: [] for kind in STARTS}
    for row in found["rows"]:
        if row["kind"] in ("attention", "window"):
            *sizes, causal = row["shape"][:7]
            band = [*row["shape"][7:]] * (1 if causal else 2)
            shape: Any = schedule.AttentionShape(*sizes, bool(causal), *band)
            ways: Times = {schedule.Way(*way): 1000 * ms for way, ms in row["ms"]}
        elif row["kind"] == "backward":
            shape = backward_shape(row["shape"])
            ways = {divided.Cut(shape.width, *way): 1000 * ms for way, ms in row["ms"]}
        else:
            shape = schedule.contiguous(*row["shape"])
            known = {way.words: way for way in shape.ways(machine.sms)}
            ways = {known[words]: 1000 * ms for words, ms in row["ms"] if words in known}
        allowed = {*shape.ways(machine.sms)}  # those that are tried no more stay in the file
        times = {way: us for way, us in ways.items() if way in allowed}
        rows[SORTS.get(row["kind"], row["kind"])].append((shape, machine, times))
    return found["facts"], rows


def _cols(way: schedule.ProductWay) -> int:
    """Those that a product's own constants are for."""
    return 128 if way.config.swap else way.config.cols


STARTS: dict[str, tuple[Constants, list[float]]] = {
    "attention": (lambda way: [5, 2.5, way.rows * way.keys / 2e4, 0.5], [0.7, 0.5, 0.8, 3, 0.6, 1, 0.2]),
    "backward": (lambda way: [4, 2.4, 5], [0.07, 0.5, 2]),
    "product": (
        lambda way: [5, 1.5, way.config.rows * _cols(way) / 6e4, (way.config.rows + _cols(way)) / 1e3],
        [0.85, 2, 1.6, 2, 0.3, 0.8, 0.3, 1, 1, 0.05, 10, 80],
    ),
}


def fitted(kind: str, rows: list[Row]) -> dict[str, Any]:
    """The constants of a kind: of attention, for each head dimension that was measured."""
    if kind != "attention":
        return fit(rows, *STARTS[kind])
    return {str(d): fit([row for row in rows if row[0].dim == d], *STARTS[kind]) for d in schedule.WIDTHS}


def judgement(kind: str, rows: list[Row], known: dict[str, Any]) -> list[float]:
    """`judged` for the constants of a kind."""
    if kind != "attention":
        return judged(rows, known)
    return [x for d in schedule.WIDTHS for x in judged([row for row in rows if row[0].dim == d], known[str(d)])]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kinds", nargs="*", choices=[[], *STARTS], default=[])
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--unseen", type=Path, default=FOLDER / "unseen.json")
    parser.add_argument("--out", type=Path, default=Path(schedule.__file__).with_suffix(".json"))
    o = parser.parse_args()
    files = [read(file) for file in sorted(FOLDER.glob("*.json")) if file.name != o.unseen.name]
    unseen = read(o.unseen)[1] if o.unseen.exists() else {}
    made = json.loads(o.out.read_text())
    for kind in o.kinds or [*STARTS]:
        every = [row for _, found in files for row in found[kind]]
        again, rows = measured_again(every), merged(every)
        numbers: dict[Any, int] = {}
        place = [numbers.setdefault(shape, len(numbers)) for shape, *_ in rows]  # one shape, one fold
        about: dict[str, Any] = {"measured": [facts for facts, found in files if found[kind]]}
        held: list[float] = []
        for fold in range(o.folds):
            known = fitted(kind, [row for row, i in zip(rows, place, strict=True) if i % o.folds != fold])
            held += judgement(kind, [row for row, i in zip(rows, place, strict=True) if i % o.folds == fold], known)
        known = fitted(kind, rows)
        about["fitted"] = said(judgement(kind, rows, known))
        if held:
            about["held back"] = said(held)
        if again:
            about["measured again"] = said(again)
        if unseen.get(kind):
            about["unseen"] = said(judgement(kind, unseen[kind], known))
        for name in about:
            if name != "measured":
                print(f"{kind}, {name}: {about[name]}", flush=True)
        made[kind] = known
        made["about"][kind] = about
    o.out.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
