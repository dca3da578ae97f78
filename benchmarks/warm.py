"""Fills Triton's cache with what the peers of a family are tuned from, so that a run beside them spends its time on
measuring.

    python -m benchmarks.warm sequences --cells "n 1024" --processes 14 [--site FOLDER]
    python -m benchmarks.warm fla --cells GatedDeltaNet DeltaNet --processes 14    # layers of `benchmarks.fla`

Each process goes through all that a tuner would try in an order of its own, and times nothing: what others have
compiled it finds. No choice is kept; the run that follows makes its own, from times.
"""

from __future__ import annotations

import argparse
import random
import site
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pykittens.bench.families import FAMILIES, select
from pykittens.bench.measure import OURS

from . import fla


def compile_everything(seed: int) -> None:
    """Has Triton's tuners run all of their configurations once, and take the first."""
    from triton.runtime.autotuner import Autotuner

    given = Autotuner.prune_configs

    def shuffled(tuner: Any, named: dict[str, Any]) -> list[Any]:
        found = list(given(tuner, named))
        random.Random(seed).shuffle(found)
        return found

    def once(call: Callable[[], Any], quantiles: Any = None) -> list[float]:
        call()
        return [0.0] * 3

    def forget(tuner: Any, key: Any, configs: Any, bench: Callable[[], None]) -> bool:
        bench()
        return False

    Autotuner.prune_configs, Autotuner.check_disk_cache = shuffled, forget
    Autotuner.do_bench = property(lambda tuner: once)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("family", choices=[*FAMILIES, "fla"])
    parser.add_argument("--cells", nargs="*", default=[])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--site", type=Path)
    o = parser.parse_args()
    if o.site:
        site.addsitedir(str(o.site))
    if o.processes > 1:
        given = [sys.executable, "-m", "benchmarks.warm", *sys.argv[1:], "--processes", "1", "--seed"]
        started = [subprocess.Popen([*given, str(i)]) for i in range(o.processes)]
        sys.exit(max(abs(x.wait()) for x in started))
    compile_everything(o.seed)
    if o.family == "fla":
        for name in o.cells or fla.LAYERS:
            layer, *given = fla.made(name)
            fla.run(layer, *given)
            fla.decoded(layer, given[0])
        return
    for cell in select(o.family, o.cells):
        for name, run in FAMILIES[o.family].trial(cell, True).runs.items():
            if name not in (OURS, "copy", "torch", "torch.compile"):
                run()


if __name__ == "__main__":
    main()
