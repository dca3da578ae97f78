"""How fast the simulator is: CPU seconds to simulate every configuration of every shipped kernel once.

    python tests/sim/bench.py [WORD ...]        # only kernels whose names have one of the words

In another checkout the same gives another version's times.
"""

from __future__ import annotations

import sys
import time

from pykittens.kernels.catalog import label
from pykittens.kernels.registry import KERNELS


def main() -> None:
    total = 0.0
    for row in KERNELS.values():
        if sys.argv[1:] and not any(word in row.name for word in sys.argv[1:]):
            continue
        for choice, instance in row.configurations():
            instance.program()  # traced once, and remembered
            arrays, start = instance.arrays(), time.process_time()
            instance.kernel.simulate_with((), {**arrays, **instance.statics})
            seconds = time.process_time() - start
            total += seconds
            print(f"{seconds:6.3f} s  {row.name} ({label(choice)})", flush=True)
    print(f"{total:6.1f} s in all")


if __name__ == "__main__":
    main()
