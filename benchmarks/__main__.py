"""`python -m benchmarks`: the demo, errors, host costs and mma.sync attention, recorded on this machine's GPU.

What is measured beside others' kernels has a command of its own: `python -m benchmarks.families`.
"""

from . import demo, errors, host, speed

for part in (demo, errors, host, speed):
    print(f"\n{part.__name__}", flush=True)
    part.main()
