"""The tables in the texts, made from the results: between `<!-- begin:NAME -->` and `<!-- end:NAME -->`.

python -m benchmarks.tables           # writes them anew
python -m benchmarks.tables --check   # says which are stale, and fails if any is
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .record import RESULTS, read

ROOT = Path(__file__).parents[1]
Rows = list[dict[str, Any]]
_NONE = "*Not measured yet.*"


def main() -> int:
    """The number of texts that are stale (with `--check`), else 0."""
    rows, stale = read(RESULTS / "h200.json"), []
    for text in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        before = text.read_text()
        after = fill(before, rows)
        if after != before:
            stale.append(str(text.relative_to(ROOT)))
            if "--check" not in sys.argv:
                text.write_text(after)
    print(f"stale: {', '.join(stale)}" if stale else "every table says what the results say")
    return len(stale) if "--check" in sys.argv else 0


def fill(text: str, rows: Rows) -> str:
    """A text with the contents of every marked table made anew. KeyError for a table nobody makes."""
    pattern = re.compile(r"(<!-- begin:(\w+) -->\n).*?(<!-- end:\2 -->)", re.DOTALL)
    return pattern.sub(lambda m: m[1] + TABLES[m[2]](rows) + "\n" + m[3], text)


def markdown(head: tuple[str, ...], body: list[tuple[str, ...]], source: Rows) -> str:
    """A table, and under it where its numbers come from."""
    lines = [head, ("---",) * len(head), *body]
    origins = {(r["device"], r["driver"], r["compiler"], r["date"], r["command"]) for r in source}
    notes = [f"{device}, driver {driver}, {compiler}, {date}: `{command}`" for device, driver, compiler, date, command in sorted(origins)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n\n" + "\n".join(notes)


def of(table: str, rows: Rows) -> Rows:
    """The rows of one table."""
    return [row for row in rows if row["table"] == table]


def errors(rows: Rows) -> str:
    """Errors of attention against float64, beside torch's."""
    source = of("attention_error", rows)
    if not source:
        return _NONE
    body = [(r["kernel"], f"{r['dim']}", f"{r['n']}", "causal" if r["causal"] else "full", f"{r['error']:.2e}", f"{r['torch_error']:.2e}", f"{r['ratio']:.2f}") for r in source]  # fmt: skip
    return markdown(("kernel", "head dim", "n", "", "error", "torch's", "ratio"), body, source)


def speed(rows: Rows) -> str:
    """Speed of attention beside torch's FlashAttention-2 in the same run."""
    source = of("attention_speed", rows)
    if not source:
        return _NONE
    body = [(r["kernel"], f"{r['batch']}, {r['heads']}, {r['n']}, {r['dim']}", "causal" if r["causal"] else "full", f"{r['tflops']:.0f}", f"{r['fa2_tflops']:.0f}", f"{r['ratio']:.2f}") for r in source]  # fmt: skip
    return markdown(("kernel", "batch, heads, n, head dim", "", "TFLOP/s", "FA2", "ratio"), body, source)


def host(rows: Rows) -> str:
    """What a call costs the host, and how long kernels take to be there."""
    source = of("host", rows)
    if not source:
        return _NONE
    return markdown(("what", "measured", "promised"), [(r["what"], f"{r['value']:.3g} {r['unit']}", f"{r['limit']:g} {r['unit']}") for r in source], source)


TABLES: dict[str, Callable[[Rows], str]] = {"errors": errors, "speed": speed, "host": host}

if __name__ == "__main__":
    sys.exit(main())
