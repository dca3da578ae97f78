"""What `pykittens demo` says on this machine's GPU.

python -m benchmarks.demo
"""

from __future__ import annotations

import json
import subprocess
import sys

from .record import record


def main() -> None:
    rows = []
    for d in (64, 128):
        for causal in (False, True):
            words = ["--device", "gpu", "--heads", "8", "--n", "4096", "--d", str(d), *["--causal"] * causal]
            done = subprocess.run(
                [sys.executable, "-m", "pykittens", "demo", "--json", *words], capture_output=True, text=True
            )
            facts = json.loads(done.stdout)
            if not facts.get("passed"):
                raise SystemExit(f"pykittens demo {' '.join(words)}: {facts}")
            rows.append(
                {
                    "demo": " ".join(words),
                    "kernel": facts["kernel"],
                    "error": facts["error"],
                    "tolerance": facts["tolerance"],
                    "us": facts["seconds"] * 1e6,
                }
            )
            print(rows[-1], flush=True)
    print("->", record("demo", rows, ("demo",)))


if __name__ == "__main__":
    main()
