"""`pykittens layout`: who holds what in a register tile, and where a shared tile lies in the banks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..reference.picture import draw, in_text, parse, svg
from .console import AsJson, answer, command, out


@command
def show_layout(
    type: Annotated[str, typer.Argument(help='A type as in a kernel: "rt(bf16, 16, 16)", "st(bf16, 16, 64)".')],
    to: Annotated[Path | None, typer.Option("--svg", help="Write the picture to this file, as SVG.")] = None,
    as_json: AsJson = False,
) -> None:
    """Draw a layout: the thread and register of each element, or the banks of each 16 bytes."""
    picture = draw(parse(type))
    if to is not None:
        to.write_text(svg(picture), encoding="utf-8")
    if as_json:
        answer({"type": picture.title, "counts": picture.counts, "cells": picture.text.tolist()})
    elif to is None:
        print(in_text(picture))
    else:
        out.print(f"{picture.title}: {to}")
