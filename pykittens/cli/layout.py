"""`pykittens layout`: who holds what in a register tile, which banks a shared tile lies in, who takes which tile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..reference.picture import in_text, svg
from ..reference.time_picture import drawn
from .console import AsJson, answer, command, out


@command
def show_layout(
    type: Annotated[
        str, typer.Argument(help='A type, a schedule or a ring: "rt(bf16, 16, 16)", "triangle(8, 2, blocks=4)".')
    ],
    to: Annotated[Path | None, typer.Option("--svg", help="Write the picture to this file, as SVG.")] = None,
    as_json: AsJson = False,
) -> None:
    """Draw a layout (the thread and register of each element, the banks of each 16 bytes), a schedule, or a ring."""
    picture = drawn(type)
    if to is not None:
        to.write_text(svg(picture), encoding="utf-8")
    if as_json:
        answer({"type": picture.title, "counts": picture.counts, "cells": picture.text.tolist()})
    elif to is None:
        print(in_text(picture))
    else:
        out.print(f"{picture.title}: {to}")
