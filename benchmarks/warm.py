"""Has flash-linear-attention's Triton kernels compiled and tuned before anything is measured beside them.

    python -m benchmarks.warm "recurrences: gla, backward" "layer: GatedDeltaNet" training --processes 14 --seconds 300

A job is cells of a family of `pykittens bench`, a layer of `benchmarks.fla`, or the training example. Its first process
(seed 0) tunes as Triton does, but for 25 ms a configuration, and alone on the GPU; others go through the same
configurations in orders of their own, so that these are compiled when the first comes to them, and time nothing. So
many `--processes` run at a time, for the jobs in turn; a job whose first process has ended is done. What was compiled
lies in TRITON_CACHE_DIR, and what was chosen, too, where the kernels are declared with `cache_results`, as fla's are: a
run that follows tunes nothing. `--keep FILE` packs of that folder what such a run reads.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import random
import site
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REP = 25  # milliseconds that a configuration is timed for
READ = (".cubin", ".json")  # what a later run reads of a compiled kernel
LOCK = Path(tempfile.gettempdir(), "pykittens-tuning.lock")


def tune(seed: int) -> None:
    """Makes Triton's tuners time alone (seed 0), or compile everything and take the first."""
    from triton.runtime.autotuner import Autotuner
    from triton.testing import do_bench

    given = Autotuner.prune_configs

    def shuffled(tuner: Any, named: dict[str, Any]) -> list[Any]:
        found = list(given(tuner, named))
        random.Random(seed).shuffle(found)
        return found

    def alone(call: Callable[[], Any], quantiles: Any = None) -> Any:
        call()  # compiles, beside others
        with LOCK.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return do_bench(call, warmup=5, rep=REP, quantiles=quantiles)

    def once(call: Callable[[], Any], quantiles: Any = None) -> list[float]:
        call()
        return [0.0] * 3

    def forget(tuner: Any, key: Any, configs: Any, bench: Callable[[], None]) -> bool:
        bench()
        return False

    Autotuner.do_bench = property(lambda tuner: once if seed else alone)
    if seed:
        Autotuner.prune_configs, Autotuner.check_disk_cache = shuffled, forget


def do(job: str) -> None:
    """What a job is: everybody but us runs once, forward and backward."""
    import torch

    name, _, rest = (part.strip() for part in job.partition(":"))
    if name == "layer":
        from . import fla

        layer, *given = fla.made(rest)
        fla.run(layer, *given)
        fla.decoded(layer, given[0])
    elif name == "training":
        from examples.llama import FlaDelta
        from examples.train import LARGE

        sizes = LARGE.size, LARGE.heads, LARGE.key_heads, LARGE.head_dim
        layer = FlaDelta.Attention(*sizes).bfloat16().cuda()
        x = torch.randn(8, LARGE.length, LARGE.size, device="cuda").bfloat16().requires_grad_()
        layer(x, None, None).backward(torch.randn_like(x))
    else:
        from pykittens.bench.families import FAMILIES, select
        from pykittens.bench.measure import OURS

        for cell in select(name, [rest] if rest else []):
            for who, run in FAMILIES[name].trial(cell, True).runs.items():
                if who not in (OURS, "copy", "torch", "torch.compile"):
                    run()
    torch.cuda.synchronize()


def pool(jobs: list[str], processes: int, seconds: float, seeds: int) -> list[str]:
    """The jobs that were done within so many seconds."""
    begin, folder, done = time.monotonic(), Path(tempfile.mkdtemp()), list[str]()
    going: dict[tuple[str, int], subprocess.Popen[bytes]] = {}
    todo = [(job, seed) for i in range(0, len(jobs), 4) for seed in range(seeds) for job in jobs[i : i + 4]]
    while (todo or going) and time.monotonic() - begin < seconds and len(done) < len(jobs):
        while todo and len(going) < processes:
            job, seed = todo.pop(0)
            if job not in done:
                log = (folder / f"{jobs.index(job)}.{seed}").open("wb")
                command = [sys.executable, "-m", "benchmarks.warm", job, "--seed", str(seed)]
                going[job, seed] = subprocess.Popen(command, stdout=log, stderr=log)
        for (job, seed), process in [*going.items()]:
            if (job, seed) not in going or process.poll() is None:
                continue
            del going[job, seed]
            if process.returncode:
                text = (folder / f"{jobs.index(job)}.{seed}").read_text(errors="replace")
                print(f"{job} ({seed}): {text[-300:]}", flush=True)
            if seed == 0:
                done += [job] * (not process.returncode)
                print(f"{job}: {time.monotonic() - begin:.0f} s", flush=True)
                for other in [key for key in going if key[0] == job]:
                    going.pop(other).kill()
                todo = [key for key in todo if key[0] != job]
        time.sleep(0.2)
    for (job, seed), process in going.items():
        process.kill()
        if seed == 0:
            print(f"{job}: not done in {seconds:.0f} s", flush=True)
    return done


def keep(file: Path) -> None:
    """Packs what a later run reads of the folder of compiled kernels."""
    folder = Path(os.environ["TRITON_CACHE_DIR"])
    with tarfile.open(file, "w") as packed:
        for path in folder.rglob("*"):
            if path.suffix in READ:
                packed.add(path, path.relative_to(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seeds", type=int, default=4, help="processes of a job, at most")
    parser.add_argument("--seed", type=int, help="that of this process: it does its jobs itself")
    parser.add_argument("--site", type=Path)
    parser.add_argument("--keep", type=Path)
    o = parser.parse_args()
    if o.site:
        site.addsitedir(str(o.site))
        os.environ["PYTHONPATH"] = os.pathsep.join((str(o.site), os.environ.get("PYTHONPATH", "")))
    if o.seed is None:
        pool(o.jobs, o.processes, o.seconds, o.seeds)
    else:
        tune(o.seed)
        for job in o.jobs:
            do(job)
    if o.keep:
        keep(o.keep)


if __name__ == "__main__":
    main()
