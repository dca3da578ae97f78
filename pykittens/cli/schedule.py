"""`pykittens schedule`: how attention, its backward pass or a product of a shape is divided on Hopper, in what time."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from .console import AsJson, Refusal, answer, command, out
from .words import assignments, unknown

_ATTENTION = {"batch": 1, "heads": 1, "shared": None, "n": 1024, "m": None, "dim": 128, "causal": 0}
_SIZES: dict[str, dict[str, int | None]] = {
    "attention": _ATTENTION | {"left": None, "right": None, "sinks": 0},
    "backward": _ATTENTION | {"deterministic": 0},
    "product": {"m": 1024, "n": 1024, "k": 1024},
}
_MAY_BE_ZERO = ("causal", "left", "right", "sinks", "deterministic")


@command
def show_schedule(
    kind: Annotated[str, typer.Argument(help="attention, backward or product.")],
    sizes: Annotated[
        list[str] | None, typer.Argument(help="Such as n=4096 causal=1 left=1024, or m=1000 n=5000 k=3000.")
    ] = None,
    sms: Annotated[int, typer.Option(help="Multiprocessors.", min=1)] = 132,
    bandwidth: Annotated[float, typer.Option(help="TB/s of its memory (H100 3.35, H200 4.81).", min=0.001)] = 3.35,
    as_json: AsJson = False,
) -> None:
    """Predict the time of each way to divide a shape among multiprocessors, best first (bf16, contiguous operands).

    left and right are the sides of a window; what a score function or a cap computes is not predicted.
    """
    from ..kernels import attention_backward_divided, schedule
    from ..kernels.widths import backward_width

    if kind not in _SIZES:
        raise unknown("there is no schedule of", kind, _SIZES)
    given: dict[str, Any] = dict(_SIZES[kind])
    for name, value in assignments(sizes or ()).items():
        word = f"{name}={value}"
        if name not in given or not value.isdecimal() or not (int(value) or name in _MAY_BE_ZERO):
            raise Refusal(
                f"{word!r} is no size of {kind}", fix=f"give numbers above 0: {' '.join(f'{n}=...' for n in given)}"
            )
        if name == "dim" and not (int(value) % 8 == 0 and 8 <= int(value) <= schedule.WIDTHS[-1]):
            raise Refusal(
                f"there is no kernel for {word}", fix=f"give a multiple of 8, of {schedule.WIDTHS[-1]} at most"
            )
        given[name] = int(value)
    machine = schedule.DeviceModel(sms, bandwidth)
    if kind != "product":
        given["m"], given["shared"] = given["m"] or given["n"], given["shared"] or given["heads"]
        if given["heads"] % given["shared"]:
            fix = f"give a divisor of {given['heads']} as shared"
            raise Refusal(f"{given['heads']} heads cannot share the keys of {given['shared']}", fix=fix)
        whole: dict[str, Any] = {**given, "causal": bool(given["causal"])}
    if kind == "attention":
        whole["causal"] = whole["causal"] or whole["right"] == 0
        whole |= {"right": None if whole["causal"] else whole["right"], "sinks": bool(whole["sinks"])}
        choices = schedule.attention_choices(schedule.AttentionShape(**whole), machine)
    elif kind == "backward":
        fixed, dim = bool(whole.pop("deterministic")), whole.pop("dim")
        whole |= {"width": backward_width(dim, dim), "fixed": fixed, "pairs": dim == 256}
        choices = attention_backward_divided.choices(attention_backward_divided.Shape(**whole), machine)
    else:
        choices = schedule.product_choices(schedule.contiguous(given["m"], given["n"], given["k"]), machine)
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
