"""The tables in the texts, the charts in `docs/charts`, and what is verified on which GPU, made from the results.

A table lies between `<!-- begin:NAME -->` and `<!-- end:NAME -->`.

python -m benchmarks.tables           # writes them anew
python -m benchmarks.tables --check   # says which are stale, and fails if any is
"""

from __future__ import annotations

import json
import math
import re
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pykittens.bench.chart import curves
from pykittens.bench.families import FAMILIES, chart, worst
from pykittens.reference.vocabulary import VERIFIED

from .record import RESULTS, read

ROOT = Path(__file__).parents[1]
Rows = list[dict[str, Any]]
_NONE = "*Not measured yet.*"


def main() -> int:
    """The number of texts that are stale (with `--check`), else 0."""
    devices = [read(file) for file in sorted(RESULTS.glob("*.json"))]
    rows, stale = newest(devices), []
    agreed = json.dumps(verified(devices), indent=1) + "\n"
    if VERIFIED.read_text() != agreed:
        stale.append(str(VERIFIED.relative_to(ROOT)))
        if "--check" not in sys.argv:
            VERIFIED.write_text(agreed)
    for text in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        before = text.read_text()
        after = fill(before, rows)
        if after != before:
            stale.append(str(text.relative_to(ROOT)))
            if "--check" not in sys.argv:
                text.write_text(after)
    for name, drawn in charts(rows).items():
        picture = ROOT / "docs" / "charts" / f"{name}.svg"
        if not picture.exists() or picture.read_text() != drawn:
            stale.append(str(picture.relative_to(ROOT)))
            if "--check" not in sys.argv:
                picture.parent.mkdir(exist_ok=True)
                picture.write_text(drawn)
    print(f"stale: {', '.join(stale)}" if stale else "every table says what the results say")
    return len(stale) if "--check" in sys.argv else 0


def charts(rows: Rows) -> dict[str, str]:
    """The pictures by name, of what has been measured."""
    drawn = {name: chart(name, source) for name in FAMILIES if (source := of(f"bench_{name}", rows))}
    for name in ("training", "training_gated_delta_net"):
        if source := contenders(name, rows):
            lines = {row["contender"]: row["losses"] for row in source}
            drawn[name] = curves("Cross-entropy of a token, in nats", "steps", lines)
    return drawn


def newest(devices: list[Rows]) -> Rows:
    """Of every table, the rows of the device that it was measured on last; of a family of the bench, each cell as it
    was measured last, on whichever device, and of one day beside most others; of sanitizers, what each found last.
    """
    last: dict[str, tuple[tuple[str, str], Rows]] = {}
    for rows in devices:
        for table in dict.fromkeys(row["table"] for row in rows):
            when = max(_when(row) for row in of(table, rows))
            if table not in last or when > last[table][0]:
                last[table] = when, of(table, rows)
    for name in FAMILIES:
        if table := f"bench_{name}" in last and f"bench_{name}":
            last[table] = last[table][0], cells(name, [row for rows in devices for row in of(table, rows)])
    if "sanitizer" in last:
        found = sorted(of("sanitizer", [row for rows in devices for row in rows]), key=_when)
        last["sanitizer"] = last["sanitizer"][0], list({row["tool"]: row for row in found}.values())
    return [row for _, rows in last.values() for row in rows]


def _when(row: dict[str, Any]) -> tuple[str, str]:
    """Rows say since 2026-11-26 at what time of their day they were measured."""
    return row["date"], row.get("time", "")


def cells(name: str, rows: Rows) -> Rows:
    """One row for each cell that the family has, in the order of the cells."""
    key, best = FAMILIES[name].KEY, {}
    for row in rows:
        peers = sum("ratio" in peer for peer in row["peers"].values())
        rank, facts = (_when(row), peers), tuple(row.get(k) for k in key)
        if facts not in best or rank > best[facts][0]:
            best[facts] = rank, row
    wanted = [tuple(cell.facts.get(k) for k in key) for cell in FAMILIES[name].cells()]
    return [best[facts][1] for facts in wanted if facts in best]


def fill(text: str, rows: Rows) -> str:
    """A text with the contents of every marked table made anew. KeyError for a table nobody makes."""
    pattern = re.compile(r"(<!-- begin:(\w+) -->\n).*?(<!-- end:\2 -->)", re.DOTALL)
    return pattern.sub(lambda m: m[1] + TABLES[m[2]](rows) + "\n" + m[3], text)


def markdown(head: tuple[str, ...], body: list[tuple[str, ...]], source: Rows) -> str:
    """A table, and under it where its numbers come from."""
    lines = [head, ("---",) * len(head), *body]
    origins = {(r["device"], r["driver"], r["compiler"], r["date"], r["command"]) for r in source}
    notes = [
        f"{device}, driver {driver}, {compiler}, {date}: `{command}`"
        for device, driver, compiler, date, command in sorted(origins)
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n\n" + "\n".join(notes)


def of(table: str, rows: Rows) -> Rows:
    """The rows of one table."""
    return [row for row in rows if row["table"] == table]


def errors(rows: Rows) -> str:
    """Errors of attention against float64, beside torch's."""
    source = of("attention_error", rows)
    if not source:
        return _NONE
    body = [
        (
            r["kernel"],
            f"{r['dim']}",
            f"{r['n']}",
            "causal" if r["causal"] else "full",
            f"{r['error']:.2e}",
            f"{r['torch_error']:.2e}",
            f"{r['ratio']:.2f}",
        )
        for r in source
    ]
    return markdown(("kernel", "head dim", "n", "", "error", "torch's", "ratio"), body, source)


def speed(rows: Rows) -> str:
    """Speed of attention beside torch's FlashAttention-2 in the same run."""
    source = of("attention_speed", rows)
    if not source:
        return _NONE
    body = [
        (
            r["kernel"],
            f"{r['batch']}, {r['heads']}, {r['n']}, {r['dim']}",
            "causal" if r["causal"] else "full",
            f"{r['tflops']:.0f}",
            f"{r['fa2_tflops']:.0f}",
            f"{r['ratio']:.2f}",
        )
        for r in source
    ]
    return markdown(("kernel", "batch, heads, n, head dim", "", "TFLOP/s", "FA2", "ratio"), body, source)


def host(rows: Rows) -> str:
    """What a call costs the host, and how long kernels take to be there."""
    source = of("host", rows)
    if not source:
        return _NONE
    return markdown(
        ("what", "compiled for", "measured", "promised"),
        [
            (r["what"], r["arch"], f"{r['value']:.3g} {r['unit']}", f"{r['limit']:g} {r['unit']}" if r["limit"] else "")
            for r in source
        ],
        source,
    )


def gpu(rows: Rows) -> str:
    """What ran on a GPU, and how it ended."""
    source = of("conformance", rows) + of("exact", rows)
    if not source:
        return _NONE
    body = [(r["what"], "", f"{r['passed']} passed, {r['failed']} failed") for r in of("conformance", rows)]
    body += [
        (
            r["what"],
            r["made_by"],
            f"{r['different'] or 'no'} element{'' if r['different'] == 1 else 's'} "
            f"differ{'s' if r['different'] == 1 else ''}",
        )
        for r in of("exact", rows)
    ]
    return markdown(("what", "kernels made by", ""), body, source)


def agreement(rows: Rows) -> str:
    """The GPU beside the meaning of the operations, and the simulator's bank conflicts beside the counters of the
    GPU.
    """
    source = of("agreement", rows) + of("banks", rows) + of("judge", rows)
    if not source:
        return _NONE
    body = [
        (r["what"], f"{sum(r['numbers'].values()):,} numbers, {r['programs']:,} programs", f"{r['disagreements']}")
        for r in of("agreement", rows)
    ]
    if banks := of("banks", rows):
        differ = sum(not r["equal"] for r in banks)
        body.append(("bank conflicts, simulated beside Nsight Compute", f"{len(banks)} access patterns", str(differ)))
    if judged := of("judge", rows):
        programs, wrong = sum(r["right"] + r["wrong"] for r in judged), sum(r["misjudged"] for r in judged)
        what = "races and hangs, simulated beside every interleaving"
        body.append((what, f"{programs:,} programs of {len(judged)} kinds", str(wrong)))
    return markdown(("what", "tried", "disagreements"), body, source)


def sanitizer(rows: Rows) -> str:
    """What the tools of Compute Sanitizer find in attention's features."""
    source = of("sanitizer", rows)
    if not source:
        return _NONE
    body = [(r["tool"], ", ".join(r["features"]), str(r["errors"])) for r in source]
    return markdown(("tool", "features", "errors"), body, source)


def fla(rows: Rows) -> str:
    """flash-linear-attention on our kernels: its layers beside its own, and its tests."""
    source = of("fla", rows)
    if not source:
        return _NONE
    layers = [r for r in source if "ms" in r]
    body = [
        (
            f"`{r['what']}`",
            f"{r['fla_ms']:.2f} ms",
            f"{r['ms']:.2f} ms",
            f"{r['fla_ms'] / r['ms']:.2f}x",
            f"{r['apart']:.1e}",
            f"{r['gradient_apart']:.1e}",
            ", ".join(r["left"]),
        )
        for r in layers
    ]
    head = ("layer, forward and backward", "fla", "on ours", "is", "results apart", "gradients apart", "left to fla")
    tests = [
        (r["what"], str(r["passed"]), str(r["failed"]), str(r["left"]), str(r["without"]))
        for r in source
        if "passed" in r
    ]
    under = ("", "passed", "failed", "stopped where a call was left to fla", "without a call of ours")
    made = [
        markdown(h, b, [r for r in source if ("ms" in r) == (h is head)])
        for h, b in ((head, body), (under, tests))
        if b
    ]
    return "\n\n".join(made)


def contenders(table: str, rows: Rows) -> Rows:
    """The rows of a training run, PyKittens' first."""
    return sorted(of(table, rows), key=lambda row: not row["contender"].startswith("PyKittens"))


def training(rows: Rows, table: str = "training") -> str:
    """A training run by each contender: speed, memory, the loss it ends with."""
    source = contenders(table, rows)
    if not source:
        return _NONE
    first = source[0]
    body = [
        (
            r["contender"],
            f"{r['tokens_per_second']:,.0f}",
            f"{first['tokens_per_second'] / r['tokens_per_second']:.2f}x" if r is not first else "",
            f"{r['step_ms']:.1f} ms",
            f"{r['peak_gib']:.1f} GiB",
            f"{statistics.fmean(r['losses'][-10:]):.3f}",
        )
        for r in source
    ]
    said = (
        f"{first['parameters'] / 1e6:.0f} million parameters, {first['batch']} x {first['length']} tokens a step, "
        f"{first['steps']} steps, {first['vocabulary']:,} kinds of tokens."
    )
    head = ("", "tokens a second", f"{first['contender']} is", "a step", "most memory", "loss, last 10 steps")
    return f"{said}\n\n{markdown(head, body, source)}\n\n![losses](charts/{table}.svg)"


def ladder(rows: Rows) -> str:
    """The tutorial's product in eight steps."""
    source = of("ladder", rows)
    if not source:
        return _NONE
    best = max(row["tflops"] for row in source)
    body = [(row["step"], f"{row['tflops']:.0f}", f"{row['tflops'] / best:.0%}") for row in source]
    return markdown(("step", "TFLOP/s", "of the fastest"), body, source)


def probe(rows: Rows) -> str:
    """What a GPU does in a clock, by Nsight Compute's counters, too, and beside its data sheet."""
    source = of("probe", rows)
    if not source:
        return _NONE
    counted = {row["what"]: row for row in of("probe_counters", rows)}
    body = [
        (
            r["what"],
            f"{r['value']:.4g} {r['unit']}",
            f"{counted[r['what']]['counters']:.4g}" if r["what"] in counted else "",
            f"{r['promised']:g}" if r["promised"] else "",
            f"{r['value'] / r['promised']:.0%}" if r["promised"] else "",
        )
        for r in source
    ]
    return markdown(("what", "measured", "by counters", "data sheet", ""), body, source)


def verified(devices: list[Rows]) -> dict[str, dict[str, int]]:
    """For each device, the operations whose samples agree there with the simulator, and how many they are."""
    found: dict[str, dict[str, int]] = {}
    for row in (row for rows in devices for row in of("operations", rows)):
        if not row["disagreements"]:
            found.setdefault(row["device"], {})[row["operation"]] = row["samples"]
    return found


def versions(rows: Rows) -> str:
    """A version beside the one before it, in turn on one card: above 1 where the newer is faster."""
    source = of("versions", rows)
    if not source:
        return _NONE
    body = []
    for name in dict.fromkeys(row["family"] for row in source):
        ratios = [row["ratio"] for row in source if row["family"] == name]
        mean = math.exp(statistics.fmean(map(math.log, ratios)))
        body.append((name, f"{mean:.3f}", f"{min(ratios):.3f}", str(len(ratios))))
    return markdown(("family", "times as fast as before (geometric mean)", "least", "cells"), body, source)


def family(name: str) -> Callable[[Rows], str]:
    """The cells of a family of `pykittens bench`: our rate, and how much faster we are than each of the others in
    the same run.
    """

    def table(rows: Rows) -> str:
        source = of(f"bench_{name}", rows)
        if not source:
            return _NONE
        cards = list(dict.fromkeys(row["device"] for row in source))
        made = "\n\n".join(of_card([row for row in source if row["device"] == card]) for card in cards)
        return f"{made}\n\n{_beside_the_best(source)}\n\n![rates](charts/{name}.svg)"

    def of_card(source: Rows) -> str:
        key = FAMILIES[name].KEY
        peers = list(dict.fromkeys(peer for row in source for peer, found in row["peers"].items() if "ratio" in found))
        body = [
            (
                ", ".join(_fact(k, row[k]) for k in key if row[k] is not False),
                f"{row['rate']:.0f} {row['unit']}{_held(row)}",
                f"{row['error']:.1e}",
                *(_beside(row["peers"].get(peer, {})) for peer in peers),
            )
            for row in source
        ]
        ratios = [
            [row["peers"][peer]["ratio"] for row in source if "ratio" in row["peers"].get(peer, {})] for peer in peers
        ]
        body.append(
            (
                "geometric mean of the ratios",
                "",
                "",
                *(f"**{math.exp(statistics.fmean(map(math.log, found))):.2f}**" for found in ratios),
            )
        )
        return markdown((", ".join(key), "PyKittens", "error", *peers), body, source)

    return table


def _beside_the_best(rows: Rows) -> str:
    """Over the cells: the ratio beside whoever is fastest in each."""
    found = [[peer["ratio"] for peer in row["peers"].values() if "ratio" in peer] for row in rows]
    least = sorted(min(ratios) for ratios in found if ratios)
    mean = math.exp(statistics.fmean(map(math.log, least)))
    return f"Beside the fastest in each cell: {mean:.2f}, in nine cells of ten {least[len(least) // 10]:.2f} or more."


def summary(rows: Rows) -> str:
    """A line a family: how many times as fast as each of the others over its cells, the geometric mean and (the least),
    and what share of a device copy's speed.
    """
    source = [row for name in FAMILIES for row in of(f"bench_{name}", rows)]
    if not source:
        return _NONE
    body = []
    for name, module in FAMILIES.items():
        found = of(f"bench_{name}", rows)
        parts = module.parts(found) if hasattr(module, "parts") else {module.TITLE: found}
        for title, part in parts.items():
            beside = {peer: f"**{mean:.2f}** ({least:.2f})" for peer, (mean, least, _) in worst(part)}
            copy = beside.pop("copy", "")
            if part:
                others = ", ".join(f"{peer} {ratios}" for peer, ratios in beside.items())
                body.append((title, others, copy, str(len(part))))
    lines = [("", "times as fast as", "of a copy's speed", "cells"), ("---",) * 4, *body]
    cards, dates = sorted({row["device"] for row in source}), sorted({row["date"] for row in source})
    where = f"{' and '.join(cards)}, {dates[0]} to {dates[-1]}; the card and command of each: `docs/benchmarks.md`."
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n\n" + where


def _fact(name: str, value: Any) -> str:
    return name if value is True else str(value)


def _beside(peer: dict[str, Any]) -> str:
    """A peer's rate, and the ratio: above 1 where we are faster."""
    return f"{peer['rate']:.0f} ({peer['ratio']:.2f}x){_held(peer)}" if "ratio" in peer else ""


def _held(row: dict[str, Any]) -> str:
    """What a run holds beside operands and results, where that was measured."""
    return f", {row['memory'] / 2**30:.2f} GiB" if row.get("memory") is not None else ""


TABLES: dict[str, Callable[[Rows], str]] = {
    "errors": errors,
    "speed": speed,
    "host": host,
    "gpu": gpu,
    "agreement": agreement,
    "sanitizer": sanitizer,
    "versions": versions,
    "ladder": ladder,
    "probe": probe,
    "summary": summary,
    "training": training,
    "training_gated_delta_net": partial(training, table="training_gated_delta_net"),
    "fla": fla,
} | {f"bench_{name}": family(name) for name in FAMILIES}

if __name__ == "__main__":
    sys.exit(main())
