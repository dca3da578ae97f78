"""What the tests of errors share: a kernel that must be refused marks the offending line with `#!`."""

import inspect
from collections.abc import Callable
from typing import Any

import pykittens as pk

X = pk.gl(pk.f32, "N", 64)
BF = pk.gl(pk.bf16, "N", 64)
x = pk.spec(pk.f32, (64, 64))


def line_of(function: Callable[..., Any]) -> str:
    """`file:line` of the line of `function` that ends in `#!`."""
    lines, first = inspect.getsourcelines(function)
    (number,) = [first + i for i, text in enumerate(lines) if text.rstrip().endswith("#!")]
    return f"{inspect.getsourcefile(function)}:{number}"


def refused(
    function: Callable[..., Any], *operands: Any, warps: int = 4, arch: str = "", **fixed: Any
) -> pk.KernelError:
    """The error of tracing (or, for an `arch`, of writing) a kernel; it must name the line marked `#!`."""
    kernel = pk.kernel(warps=warps)(function)
    try:
        if arch:
            kernel.cuda(*(operands or (x,)), arch=arch, **fixed)
        else:
            kernel.program(*(operands or (x,)), **fixed)
    except pk.KernelError as error:
        text = str(error)
        assert f"at {line_of(function)} in {function.__name__}" in text, text
        assert "fix: " in text, text
        return error
    raise AssertionError(f"{function.__name__} was not refused")


def says(error: pk.KernelError, fact: str, fix: str = "") -> None:
    """The error states the fact, and offers the fix."""
    assert fact in error.fact, error.fact
    assert fix in error.fix, error.fix
