"""What a GPU does in a clock, recorded: a row a measurement, under `probe`.

    python -m benchmarks.probe                  # files rows in benchmarks/results
    python -m benchmarks.probe counters         # needs ncu: the rates beside its counters, under `probe_counters`

The probe divides what a kernel does by clocks that the kernel reads itself. Nsight Compute counts the cycles in which
multiprocessors are active; what twice as many steps take more is one kernel's steps by its counters.
"""

from __future__ import annotations

import sys
from typing import Any

from pykittens.bench import probe
from pykittens.gpu import driver

from . import ncu
from .record import record

CYCLES = "sm__cycles_active.avg"
LONGER = 20  # times the probe's own steps, so that what surrounds them does not count
STEPS = (LONGER, 2 * LONGER)


def rates() -> list[probe.Rate]:
    return [*probe.rates(driver.architecture().features, probe.SHEETS.get(driver.capability(), {}))]


def counted() -> list[float]:
    """The cycles of each launch, in order."""
    found = ncu.launches("benchmarks.probe", "_rate", [CYCLES], "--cache-control", "none")
    return [launch[CYCLES] for launch in found]


def beside_counters() -> list[dict[str, Any]]:
    """Each rate as the probe finds it, and by ncu's counters."""
    measured = {found.what: found.value for found in probe.run()}
    cycles = iter(counted())
    rows = []
    for rate in rates():
        once, twice = next(cycles), next(cycles)
        value = rate.amount * rate.steps * LONGER / (twice - once)
        own = measured[rate.what]
        rows.append({"what": rate.what, "probe": own, "counters": value, "ratio": own / value, "unit": rate.unit})
        print(f"{rate.what:50} {own:10.4g} {value:10.4g} {own / value:6.3f}", flush=True)
    return rows


def main() -> None:
    if sys.argv[1:] == ["launch"]:
        for rate in rates():
            probe.launched(rate, [rate.steps * longer for longer in STEPS])
    elif sys.argv[1:] == ["counters"]:
        print("->", record("probe_counters", beside_counters(), ("what",)))
    else:
        found = probe.rows()
        for row in found:
            print(f"{row['what']:50} {row['value']:10.4g} {row['unit']}  {row['promised'] or ''}")
        print("->", record("probe", found, ("what",)))


if __name__ == "__main__":
    main()
