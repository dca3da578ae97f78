"""`pykittens cache`: the kernels that are kept on disk, and what new processes launch them by."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from ..gpu import cache, trust
from .console import AsJson, Refusal, answer, command, out

app = typer.Typer(help="List, clear or limit the compiled kernels that are kept on disk.", no_args_is_help=True)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


@app.command("list")
@command
def list_entries(as_json: AsJson = False) -> None:
    """Show what is kept, the kernel used last at the end."""
    store, rows = _store(), []
    for file, stat in _kernels(store):
        cubin = cache.about(file)
        facts: dict[str, Any] = {"key": file.stem, "bytes": stat.st_size, "used": int(stat.st_mtime)}
        rows.append(
            {**facts, **({n: getattr(cubin, n) for n in ("entry", "arch", "compiler")} if cubin else {"damaged": True})}
        )
    facts = {**_facts(store), "kernels": rows}
    if as_json:
        answer(facts)
        return
    for row in rows:
        what = "damaged" if "damaged" in row else f"{row['entry']} for {row['arch']}, by {row['compiler']}"
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["used"]))
        out.print(f"{row['key'][:12]}  {row['bytes']:>9,} bytes  {used}  {escape(what)}", soft_wrap=True)
    _show(facts)


@app.command("clear")
@command
def clear(as_json: AsJson = False) -> None:
    """Remove all that is kept. Kernels that are needed again are compiled again."""
    store = _store()
    gone = len(_kernels(store))
    store.shrink(-1)
    if as_json:
        answer({**_facts(store), "removed": gone})
    else:
        out.print(f"{gone} kernels removed from {escape(str(store.path))}", soft_wrap=True)


@app.command("limit")
@command
def limit(
    size: Annotated[str, typer.Argument(help="Bytes, or such as 500MB, 2GiB; without it, the limit is shown.")] = "",
    as_json: AsJson = False,
) -> None:
    """Show or set how many bytes may be kept; what was not used for longest goes first."""
    store = _store()
    if size:
        store.set_limit(_bytes(size))
    facts = _facts(store)
    if as_json:
        answer(facts)
    else:
        _show(facts)


def _store() -> cache.Cache:
    directory = cache.user_directory()
    if directory is None:
        raise Refusal(
            "this user has no home directory, so that no kernels are kept", fix="set PYKITTENS_CACHE to a directory"
        )
    return cache.Cache(directory)


def _bytes(size: str) -> int:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", size, re.IGNORECASE)
    if not match or match[2].lower() not in _UNITS:
        raise Refusal(f"{size!r} is no size", fix="write a number of bytes, or such as 500MB or 2GiB")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def _kernels(store: cache.Cache) -> list[tuple[Path, os.stat_result]]:
    return [entry for entry in store.entries() if entry[0].suffix == ".kernel"]


def _facts(store: cache.Cache) -> dict[str, Any]:
    entries, kernels = store.entries(), _kernels(store)
    return {
        "directory": str(store.path),
        "count": len(kernels),
        "entry_points": len(entries) - len(kernels),
        "bytes": sum(stat.st_size for _, stat in entries),
        "limit": store.limit,
        "distrusted": trust.distrusted(store.path),
    }


def _show(facts: dict[str, Any]) -> None:
    out.print(
        f"{facts['count']} kernels, {facts['entry_points']} entry points, {facts['bytes']:,} bytes of at most "
        f"{facts['limit']:,}, in {escape(facts['directory'])}",
        soft_wrap=True,
    )
    if facts["distrusted"]:
        out.print(f"[yellow]note[/] not used: {escape(facts['distrusted'])}", soft_wrap=True)
