"""Bytecode as it is decoded here and as Python's own `dis` decodes it."""

import argparse
import dis
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import CodeType

import pytest

import pykittens.kernels
from pykittens.trace.bytecode import operations


def codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


@pytest.mark.thin(6)
@pytest.mark.parametrize("module", [argparse, dis, inspect, *pkgutil.iter_modules(pykittens.kernels.__path__)], ids=str)
def test_operations_are_those_of_dis(module: object) -> None:
    """Names, constants and cells, beyond 256 of them too, in every function of some large modules."""
    if isinstance(module, pkgutil.ModuleInfo):
        module = importlib.import_module(f"pykittens.kernels.{module.name}")
    text = inspect.getsource(module)  # type: ignore[arg-type]
    many = "\n".join(f" name_{i} = other_{i}.attribute_{i} + {i + 1000}" for i in range(300))
    text += f"\ndef many():\n{many}\n def inner(): return name_299, name_0\n"
    for code in codes(compile(text, "<text>", "exec")):
        theirs = [i for i in dis.get_instructions(code) if i.opname not in ("CACHE", "EXTENDED_ARG")]
        ours = [i for i in operations(code) if i.opname not in ("CACHE", "EXTENDED_ARG")]
        assert [i.opname for i in ours] == [i.opname for i in theirs]
        for a, b in zip(ours, theirs, strict=True):
            if (
                b.opcode in (*dis.hasname, *dis.hasconst, *dis.hasfree) and b.opname != "KW_NAMES"
            ):  # which dis leaves out
                assert a.argval == b.argval or a.argval is b.argval
