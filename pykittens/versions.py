"""The oldest versions of other packages that this one works with, checked where each is first used.

NumPy, ml_dtypes and typer: tests were run with these under Python 3.10, with the newest under 3.11 and 3.13. torch is
optional; the public functions' operators need `torch.library.register_autograd`, `Library.impl(with_keyset=True)` and
`torch.get_autocast_dtype`, and were run with 2.6, 2.11 and 2.13. torch.compile of 2.6 takes no mask, score or epilogue
that is made inside the compiled function, and its inductor writes a line about each operator that it meets.
`pyproject.toml` says the same to installers.
"""

from __future__ import annotations

import re

MINIMUM = {"numpy": "1.24", "ml_dtypes": "0.4", "typer": "0.13", "torch": "2.6"}


def check_version(package: str, version: str) -> None:
    """Raises `ImportError`, in one sentence, for a package that is too old."""
    if not new_enough(package, version):
        raise ImportError(
            f"pykittens needs {package} {MINIMUM[package]} or newer, and this is {version}\n"
            f'  fix: pip install --upgrade "{package}>={MINIMUM[package]}"'
        )


def new_enough(package: str, version: str) -> bool:
    return _parts(version) >= _parts(MINIMUM[package])


def _parts(version: str) -> list[int]:
    """The numbers that a version begins with: [2, 13] of "2.13.0+cpu"."""
    return [int(x) for x in re.findall(r"\d+", version.split("+")[0])[:2]]
