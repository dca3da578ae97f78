"""Settings of a wrong kind are refused by what the schema says, for arrays of every framework; so are functions of the
caller's that take or return the wrong things."""

import re
from typing import Any

import numpy as np
import pytest

import pykittens as pk
from pykittens.errors import ArgumentError, TraceError
from pykittens.functions import load
from pykittens.functions.declaration import ALL, Function

load()
WRONG: dict[str, tuple[Any, ...]] = {
    "float": ("1.0", True, None, 1j, [1.0], np.ones(2), 1e39, -(10**400)),
    "int": (1.5, "1", True, None, np.float32(1), [1]),
    "bool": (1, 0.0, "yes", None, np.array([True])),
    "str": (3, None, b"mean", True),
}
RIGHT: dict[str, tuple[Any, ...]] = {
    "float": (1, 0.5, np.float32(2), np.int64(3), np.array(0.5), 3e38, float("-inf")),
    "int": (1, np.int32(2), -3),
    "bool": (True, np.bool_(False)),
    "str": ("mean",),
}


def settings() -> list[tuple[Function, int, str]]:
    """Each setting of each function, and its kind."""
    return [(f, i, x.split()[0]) for f in ALL if f.settings for i, x in enumerate(f.settings.split(", "))]


def test_by_the_schema() -> None:
    assert len(settings()) > 60
    for function, i, kind in settings():
        plain, given = kind.removesuffix("?").replace("SymInt", "int"), [None] * i
        if plain not in WRONG:
            continue
        fine = [*given]  # those before it are as they may be
        for j, x in enumerate(function.settings.split(", ")[:i]):
            fine[j] = RIGHT.get(x.split()[0].removesuffix("?").replace("SymInt", "int"), (None,))[0]
        for value in RIGHT[plain] + ((None,) if kind.endswith("?") else ()):
            function.checked_settings([*fine, value])
        for value in WRONG[plain]:
            if value is not None or not kind.endswith("?"):
                with pytest.raises(ArgumentError, match=f"{function.name}: {function.setting_names[i]} is") as error:
                    function.checked_settings([*fine, value])
                assert error.value.fix.startswith("pass ")


def tensors(torch: bool, *shape: int) -> Any:
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    if torch:
        return pytest.importorskip("torch").tensor(values).bfloat16()
    return values.astype(pk.bf16.numpy)


@pytest.mark.parametrize("torch", [False, True])
def test_in_calls(torch: bool) -> None:
    q, x = tensors(torch, 1, 1, 16, 64), tensors(torch, 16, 64)
    for run in (
        lambda: pk.attention(q, q, q, scale="0.1"),
        lambda: pk.attention(q, q, q, causal=1),
        lambda: pk.layernorm(x, eps="a"),
        lambda: pk.linear_attention(q, q, q, scale="x"),
    ):
        with pytest.raises(ArgumentError, match=r"is .*, a (str|int)"):
            run()


@pytest.mark.parametrize("torch", [False, True])
def test_what_decides_before_an_operator_is_asked(torch: bool) -> None:
    q, x = tensors(torch, 1, 1, 16, 64), tensors(torch, 16, 64)
    for run, said in (
        (lambda: pk.matmul(x, x, operands=True), "matmul: operands is True"),
        (lambda: pk.matmul(x, x, epilogue=lambda t, r, c: t, operands=x), "matmul: operands is "),
        (lambda: pk.attention(q, q, q, score_operands=2.0), "attention: score_operands is 2.0"),
        (lambda: pk.attention(q, q, q, mask_operands=q), "attention: mask_operands is "),
        (lambda: pk.attention(x, x, x, lengths_k=x), "attention: lengths of "),
        (lambda: pk.attention(q, q, q, lengths_k=x, causal=x), "attention: causal is "),
        (lambda: pk.rmsnorm(x, p=None), "rmsnorm: p is None"),
        (lambda: pk.rmsnorm(x, p=0.5, seed=None), "rmsnorm: seed is None"),
        (lambda: pk.layernorm(x, p=0.5, seed=2**64), f"layernorm: seed is {2**64}"),
        (lambda: pk.linear_attention(q, q, q, return_state=q), "linear_attention: "),
        (lambda: pk.gradients(x, x), "gradients of "),
        (lambda: pk.gradients(pk.rmsnorm, x, of=0), "gradients of 0"),
    ):
        with pytest.raises(ArgumentError, match=re.escape(said)) as error:
            run()
        assert error.value.fix


@pytest.mark.parametrize("torch", [False, True])
def test_functions_of_the_caller(torch: bool) -> None:
    x = tensors(torch, 64, 64)
    for activation, said in (
        (lambda t: None, "the activation returns None"),
        (lambda t, u: t, "the activation is called with 1 arguments"),
        (lambda t: t.row_sum(), "the activation returns"),
    ):
        with pytest.raises(TraceError, match=said) as error:
            pk.linear(x, x, None, activation)
        assert error.value.fix
    for epilogue, said in (
        (lambda t, row: t, "the epilogue is called with 3 arguments"),
        (lambda t, row, col, bias: t, "missing a required argument: 'bias'"),
        (lambda t, row, col: 1.0, "the epilogue returns 1.0"),
    ):
        with pytest.raises(TraceError, match=said):
            pk.matmul(x, x, epilogue=epilogue)
