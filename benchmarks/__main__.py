"""`python -m benchmarks`: everything that the README's tables are made of, measured and recorded on this machine's GPU."""

from . import demo, errors, host, speed

for part in (demo, errors, host, speed):
    print(f"\n{part.__name__}", flush=True)
    part.main()
