"""`pykittens schedule`: how attention, its backward pass or a product of a shape is divided on Hopper, in what time."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from .console import AsJson, Refusal, answer, command, out

_ATTENTION = {"batch": 1, "heads": 1, "shared": 0, "n": 1024, "m": 0, "dim": 128, "causal": 0}
_SIZES = {
    "attention": _ATTENTION,
    "backward": _ATTENTION | {"deterministic": 0},
    "product": {"m": 1024, "n": 1024, "k": 1024},
}


@command
def show_schedule(
    kind: Annotated[str, typer.Argument(help="attention, backward or product.")],
    sizes: Annotated[list[str] | None, typer.Argument(help="Such as n=4096 causal=1, or m=1000 n=5000 k=3000.")] = None,
    sms: Annotated[int, typer.Option(help="Multiprocessors.", min=1)] = 132,
    bandwidth: Annotated[float, typer.Option(help="TB/s of its memory (H100 3.35, H200 4.81).", min=0.001)] = 3.35,
    as_json: AsJson = False,
) -> None:
    """Predict the time of each way to divide a shape among multiprocessors, best first (bf16, aligned rows)."""
    from ..kernels import attention_backward_divided, schedule
    from ..kernels.widths import backward_width

    if kind not in _SIZES:
        raise Refusal(f"there is no schedule of {kind!r}", fix=f"choose one of {', '.join(_SIZES)}")
    given = dict(_SIZES[kind])
    for word in sizes or ():
        name, _, value = word.partition("=")
        if name not in given or not value.isdecimal() or not (int(value) or name in ("causal", "deterministic")):
            raise Refusal(
                f"{word!r} is no size of {kind}", fix=f"give numbers above 0: {' '.join(f'{n}=...' for n in given)}"
            )
        given[name] = int(value)
    machine = schedule.Machine(sms, bandwidth)
    if kind != "product":
        given["m"], given["shared"] = given["m"] or given["n"], given["shared"] or given["heads"]
        whole: dict[str, Any] = {**given, "causal": bool(given["causal"])}
    if kind == "attention":
        choices = schedule.attention_choices(schedule.Attention(**whole), machine)
    elif kind == "backward":
        fixed, dim = bool(whole.pop("deterministic")), whole.pop("dim")
        whole |= {"width": backward_width(dim, dim), "fixed": fixed, "pairs": dim == 256}
        choices = attention_backward_divided.choices(attention_backward_divided.Shape(**whole), machine)
    else:
        choices = schedule.product_choices(schedule.Multiply(given["m"], given["n"], given["k"]), machine)
    found: list[dict[str, Any]] = [{"way": c.way.words, "microseconds": round(c.microseconds, 2)} for c in choices]
    about = schedule.constants()["about"][kind]
    if as_json:
        answer({"kind": kind, **given, "sms": sms, "bandwidth": bandwidth, "fitted": about, "ways": found})
        return
    table = Table("way", "microseconds")
    for row in found:
        table.add_row(row["way"], f"{row['microseconds']:.1f}")
    out.print(table)
    held = about["held back"]
    out.print("fitted to times of " + ", ".join(f"{facts['device']} ({facts['date']})" for facts in about["measured"]))
    out.print(
        f"of {held['shapes']} shapes held back, the way that it took was within 5 % of the fastest at "
        f"{held['within 5 %']:.0%}; on average it took {held['mean'] - 1:.1%} longer"
    )
