"""`pykittens vocabulary`: every word of kernels, and what stands behind it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.markup import escape

from .console import AsJson, Refusal, answer, command, out


@command
def show_vocabulary(
    part: Annotated[str, typer.Argument(help="Only words that contain this, such as row_ or atomic.")] = "",
    as_json: AsJson = False,
) -> None:
    """List the words of kernels with their operations: scopes, dtypes, layouts, architectures, numerics."""
    from ..reference.vocabulary import as_data, table
    from ..suggestions import meant

    if as_json:
        answer({"vocabulary": [entry for entry in as_data() if part in entry["word"]]})
        return
    found = [(group, word, rows) for group, word, rows in table() if part in word]
    if not found:
        hint = meant(part.partition(".")[2] or part, [word.rpartition(".")[2] for _, word, _ in table()])
        raise Refusal(f"no word contains {part!r}{hint}", fix="pykittens vocabulary lists all")
    last = ""
    for group, word, rows in found:
        if group != last:
            out.print(f"\n[bold underline]{group}[/]")
            last = group
        out.print(f"[bold]{escape(word)}[/]  {' '.join(row.operation for row in rows)}", soft_wrap=True)
        if part:
            for row in rows:
                _show(row)


def _show(row: Any) -> None:
    """All that is known of an operation."""
    out.print(f"    [bold]{row.operation}[/]: {escape(row.about)}", soft_wrap=True)
    for name, cell in asdict(row).items():
        if name not in ("operation", "about"):
            out.print(f"        {name}: {escape(cell)}", style="dim", soft_wrap=True)
