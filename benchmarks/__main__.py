"""`python -m benchmarks`: demo, errors, host costs, mma.sync attention, exact sums and tests, recorded on this
machine's GPU.

What is measured beside others' kernels has a command of its own: `python -m benchmarks.families`.
"""

from . import conformance, demo, errors, exact, host, speed

for part in (demo, errors, host, speed, exact, conformance):
    print(f"\n{part.__name__}", flush=True)
    part.main()
