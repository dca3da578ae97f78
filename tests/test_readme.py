"""The README's kernel runs as printed, and its test command is what CI runs."""

import importlib
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_code_runs(tmp_path: Path, monkeypatch) -> None:
    """A kernel, a training step, and a mixer."""
    names: dict = {"__name__": "readme"}
    kernel, step, mixer = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(kernel, "README.md", "exec"), names)
    x = names["x"].astype(np.float64)
    expected = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
    assert np.abs(names["y"] - expected).max() < 1e-6
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    exec(compile(step, "README.md", "exec"), names)
    parameters = [*names["block"].parameters(), *names["head"].parameters()]
    assert len(parameters) == 9 and all(x.grad.isfinite().all() and x.grad.any() for x in parameters)
    assert abs(float(names["loss"].detach()) - np.log(1000)) < 0.5
    exec(compile(mixer, "README.md", "exec"), names)
    assert names["mixed"].shape == (2, 70, 128)
    assert all(x.grad.isfinite().all() and x.grad.any() for x in names["p"].values())


def test_ci_runs_the_test_command() -> None:
    commands = re.findall(r"```sh\n(.*?)\n```", README, re.DOTALL)
    assert len(commands) == 2
    assert commands[1] in (ROOT / ".ci" / "run").read_text()


def test_the_package_says_what_it_exports() -> None:
    vocabulary = importlib.import_module("pykittens.vocabulary")
    public = {
        name
        for name, value in vars(vocabulary).items()
        if not name.startswith("_") and type(value).__name__ != "module"
    }
    assert public == set(vocabulary.__all__)
