"""What a GPU does in a clock, recorded: a row a measurement, under `probe`.

python -m benchmarks.probe
"""

from __future__ import annotations

from pykittens.bench.probe import rows

from .record import record

if __name__ == "__main__":
    found = rows()
    for row in found:
        print(f"{row['what']:50} {row['value']:10.4g} {row['unit']}  {row['promised'] or ''}")
    print("->", record("probe", found, ("what",)))
