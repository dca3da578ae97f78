"""What a kernel costs the host: compiling, starting in a new process, calling. Needs a GPU and torch.

python -m benchmarks.host
"""

from __future__ import annotations

from pykittens.bench import host

from .record import record


def main() -> None:
    rows = []
    for row in host.run():
        rows.append(row)
        print(row, flush=True)
    print("->", record("host", rows, host.KEY))


if __name__ == "__main__":
    main()
