"""Minimum versions: one sentence where one is too old, and the same numbers for installers."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pykittens.versions import MINIMUM, check_version, new_enough

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("package", MINIMUM)
def test_too_old_is_one_sentence(package: str) -> None:
    with pytest.raises(
        ImportError, match=rf"needs {package} .* or newer, and this is 0\.0\.1\n  fix: pip install"
    ) as error:
        check_version(package, "0.0.1")
    assert f'"{package}>={MINIMUM[package]}"' in str(error.value)
    for fine in (MINIMUM[package], f"{MINIMUM[package]}.3+cpu", "99.0.0a1"):
        check_version(package, fine)
    assert new_enough("torch", "2.13.0+cpu") and not new_enough("torch", "2.4.1")


def test_installers_are_told_the_same() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    told = dict(re.findall(r'"(\w+)>=([\d.]+)"', text))
    assert {name: told[name] for name in ("numpy", "ml_dtypes", "typer")} == {
        name: MINIMUM[name] for name in ("numpy", "ml_dtypes", "typer")
    }


@pytest.mark.thin(3)
@pytest.mark.parametrize(
    ("package", "program"),
    [
        ("numpy", "import numpy; numpy.__version__ = '1.20.0'; import pykittens as pk; pk.warp"),
        ("typer", "import typer; typer.__version__ = '0.9.0'; import pykittens.cli"),
        ("torch", "import torch; torch.__version__ = '2.4.0'; import pykittens as pk; pk.softmax(torch.ones(2, 8))"),
    ],
)
def test_checked_where_it_is_first_used(package: str, program: str) -> None:
    pytest.importorskip(package)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode and f"pykittens needs {package} {MINIMUM[package]} or newer" in done.stderr, done.stderr


def test_an_old_torch_is_nothing_to_numpy() -> None:
    pytest.importorskip("torch")
    program = (
        "import torch; torch.__version__ = '2.4.0'\n"
        "import numpy as np, pykittens as pk; assert pk.softmax(np.ones((2, 8), 'f4'))[0, 0] == 0.125"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
