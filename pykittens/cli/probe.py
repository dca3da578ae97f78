"""`pykittens probe`: what this machine's GPU does in a clock, beside its data sheet."""

from __future__ import annotations

from dataclasses import asdict

from .bench import need_gpu
from .console import AsJson, answer, command, err, out


@command
def probe_gpu(as_json: AsJson = False) -> None:
    """Measure this GPU with small kernels: tensor cores, shared memory, L2, memory, exp2, barriers."""
    need_gpu()
    from ..bench import machine
    from ..bench.probe import SHEETS, run
    from ..gpu import driver

    if driver.capability() not in SHEETS:
        known = ", ".join(f"{a}.{b}" for a, b in SHEETS)
        err.print(f"no data sheet of compute capability {driver.capability()} is known here (only {known})")
    found = []
    for each in run():
        found.append(each)
        if not as_json:
            out.print(str(each), soft_wrap=True)
    if as_json:
        answer({"machine": machine.facts(), "found": [asdict(each) for each in found]})
