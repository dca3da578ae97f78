"""The constants of `kernels/schedule.py`, fitted to the times that `python -m benchmarks.schedules` recorded.

    python -m benchmarks.fit benchmarks/results/schedules/NAME.json [--held 50]    # -> pykittens/kernels/schedule.json

Of each kind the last `--held` shapes are not fitted: it prints for how many of them the way that the model takes is
within 5 % of the fastest that was measured. Least squares of the logarithms of times, by damped Gauss-Newton steps, in
which errors above 10 % count by their size and not its square.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pykittens.kernels import schedule

SMS, ROBUST, POWER = 132, 0.1, 4
Array = Any


def least_squares(residuals: Callable[[Array], Array], start: Array, groups: list[Array], steps: int = 25) -> Array:
    """Minimises the sum of squares over the logarithms of constants. groups: which residuals each constant moves."""
    x, damping = np.log(start), 1e-2
    base = residuals(np.exp(x))

    def cost(r: Array) -> float:
        return float(np.sum(2 * ROBUST**2 * (np.sqrt(1 + (r / ROBUST) ** 2) - 1)))

    for _ in range(steps):
        jacobian = np.zeros((len(base), len(x)))
        for i, rows in enumerate(groups):
            moved = x.copy()
            moved[i] += 1e-4
            jacobian[rows, i] = (residuals(np.exp(moved), rows) - base[rows]) / 1e-4
        weight = 1 / np.sqrt(1 + (base / ROBUST) ** 2)
        normal = jacobian.T @ (jacobian * weight[:, None])
        for _ in range(8):
            step = np.linalg.solve(normal + damping * np.diag(np.diag(normal) + 1e-6), jacobian.T @ (base * weight))
            tried = np.clip(x - step, math.log(1e-3), math.log(1e3))
            found = residuals(np.exp(tried))
            if cost(found) < cost(base):
                x, base, damping = tried, found, damping / 3
                break
            damping *= 4
        else:
            break
    return np.exp(x)


def fit(rows: list[tuple[Any, dict[Any, float]]], own: Constants, common: list[float]) -> dict[str, list[float]]:
    """Constants by name of way, and "all". own: where those of a way begin."""
    names = sorted({way.name for _, times in rows for way in times})
    starts = [own(next(way for _, times in rows for way in times if way.name == name)) for name in names]
    size = len(starts[0])
    data = [(shape, way, names.index(way.name), us) for shape, times in rows for way, us in times.items()]
    logs, everything = np.log([us for *_, us in data]), np.arange(len(data))
    # What is far from the fastest way of its shape is not chosen, and need not be known as well.
    counts = np.array([(min(times.values()) / us) ** POWER for _, times in rows for us in times.values()])

    def residuals(x: Array, which: Array = everything) -> Array:
        common = x[size * len(names) :]
        made = [
            data[i][0].microseconds(data[i][1], x[size * data[i][2] : size * data[i][2] + size], common, SMS)
            for i in which
        ]
        return (np.log(made) - logs[which]) * counts[which]

    owner = np.array([i for *_, i, _ in data])
    groups = [np.flatnonzero(owner == i // size) for i in range(size * len(names))]
    groups += [everything] * len(common)
    x = least_squares(residuals, np.array([*np.concatenate(starts), *common]), groups)
    errors = np.abs(residuals(x) / counts)
    print(
        f"    {len(data)} times, errors: median {np.median(errors):.3f}, 9 of 10 below {np.quantile(errors, 0.9):.3f}"
    )
    parts = {name: x[size * i : size * i + size] for i, name in enumerate(names)} | {"all": x[size * len(names) :]}
    return {name: [round(float(value), 4) for value in values] for name, values in parts.items()}


Constants = Callable[[Any], list[float]]


def judged(rows: list[tuple[Any, dict[Any, float]]], known: dict[str, list[float]]) -> list[float]:
    """Of each shape, the time of the way that the model takes over the least that was measured."""
    found = []
    for shape, times in rows:
        made = {way: shape.microseconds(way, known[way.name], known["all"], SMS) for way in times}
        found.append(times[min(made, key=made.__getitem__)] / min(times.values()))
    return found


def said(ratios: list[float]) -> str:
    within = sum(x <= 1.05 for x in ratios) / len(ratios)
    return f"{within:.0%} within 5 %, geometric mean {math.exp(np.mean(np.log(ratios))):.3f}, worst {max(ratios):.2f}"


def read(file: Path) -> tuple[dict[str, Any], list[Any], list[Any]]:
    """Facts, and rows of attention and of products: (shape, microseconds by way)."""
    found = json.loads(file.read_text())
    attention, product = [], []
    for row in found["rows"]:
        if row["kind"] == "attention":
            *sizes, causal = row["shape"]
            shape: Any = schedule.Attention(*sizes, bool(causal))
            attention.append((shape, {schedule.Way(*way): 1000 * ms for way, ms in row["ms"]}))
        else:
            m, n, k = row["shape"]
            across = [0.0 if x % 8 else schedule.straddling(2 * x) for x in (k, n)]
            shape = schedule.Multiply(m, n, k, 2, (across[0], across[1]))
            ways = {schedule.Product(schedule.CONFIGS[i], splits): 1000 * ms for (i, splits), ms in row["ms"]}
            allowed = {*shape.ways(SMS)}  # those that are tried no more stay in the file
            ways = {way: us for way, us in ways.items() if way in allowed}
            product.append((shape, ways))
    return found["facts"], attention, product


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--held", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path(schedule.__file__).with_suffix(".json"))
    o = parser.parse_args()
    facts, attention, product = read(o.file)
    made: dict[str, Any] = {"attention": {}, "product": {}}
    ratios: tuple[list[float], list[float]] = ([], [])
    for width in schedule.WIDTHS:
        fitted, held = (
            [row for row in rows if row[0].dim == width] for rows in (attention[: -o.held], attention[-o.held :])
        )
        print(f"attention, d {width}: {len(fitted)} shapes fitted, {len(held)} held back")
        known = fit(fitted, lambda way, d=width: [5, 2.5, way.rows * way.keys * d / 1.5e6, 0.5], [0.7, 0.5, 2.5, 3, 2])
        made["attention"][str(width)] = known
        for all_of_them, rows in zip(ratios, (fitted, held), strict=True):
            all_of_them += judged(rows, known)
    print("attention, fitted:", said(ratios[0]), "\nattention, held back:", said(ratios[1]))
    fitted, held = product[: -o.held], product[-o.held :]
    print(f"products: {len(fitted)} shapes fitted, {len(held)} held back")
    known = fit(
        fitted,
        lambda way: [5, 1.5, way.config.rows * way.config.cols / 6e4, (way.config.rows + way.config.cols) / 1e3],
        [2.8, 2, 8, 1, 0.8, 0.3],
    )
    made["product"] = known
    print("products, fitted:", said(judged(fitted, known)), "\nproducts, held back:", said(judged(held, known)))
    about = {"measured": facts, "rows": str(o.file), "held back": o.held}
    o.out.write_text(json.dumps({"about": about, **made}, indent=1) + "\n")


if __name__ == "__main__":
    main()
