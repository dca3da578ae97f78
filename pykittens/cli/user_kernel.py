"""A kernel of the user's own, `my.py:kernel`, with arguments made up from what its annotations say and `NAME=VALUE`s.

    pykittens inspect my.py:softmax N=4096 D=128 x=bf16

A dimension's name gives its length, a tensor parameter's name its dtype, another parameter's name its value.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..call.arguments import spec
from ..call.kernel import Kernel
from ..errors import KernelError, is_authors
from ..kernels.catalog import Instance, Shipped
from ..trace.operands import written
from ..trace.signature import GlobalPattern, static
from ..types import DTYPES, DType
from .console import Refusal
from .words import assignments


def is_own(name: str) -> bool:
    """Whether a name on the command line means a file's kernel."""
    return ".py:" in name or name.endswith(".py")


def own_kernel(name: str, words: Sequence[str]) -> tuple[Shipped, dict[str, Any], Instance]:
    """The kernel of `FILE.py:NAME`: a row for it, what was chosen by words such as `N=4096`, and the instance."""
    kernel, given = load(name), assignments(words)
    found = made_up(kernel, given)
    row = Shipped(kernel.name, str(kernel.__doc__ or ""), lambda: found, {}, ())
    return row, {n: _value(text) for n, text in given.items()}, found


def load(name: str) -> Kernel:
    """Runs a file, and takes the kernel from it."""
    file, _, word = name.rpartition(":") if ".py:" in name else (name, "", "")
    path = Path(file)
    if not path.exists():
        raise Refusal(f"there is no file {file!r}", fix="name a file and a kernel in it: my.py:softmax")
    loader = importlib.util.spec_from_file_location(path.stem, path)
    assert loader is not None and loader.loader is not None
    module = importlib.util.module_from_spec(loader)
    sys.modules.setdefault(path.stem, module)  # for dataclasses and pickles in it
    sys.path.insert(0, str(path.parent))
    try:
        loader.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise Refusal(f"{file} cannot be run: {_said(error)}", fix="run it with Python first") from error
    finally:
        sys.path.remove(str(path.parent))
    known = {n: x for n, x in vars(module).items() if isinstance(getattr(x, "kernel", x), Kernel)}
    if word not in known:
        listed = ", ".join(f"{file}:{n}" for n in known)
        fact = f"{file} has no kernel {word!r}" if word else f"which kernel of {file}?"
        raise Refusal(fact, fix=f"it has {listed}" if known else "decorate one with @pk.kernel")
    return getattr(known[word], "kernel", known[word])


def _said(error: BaseException) -> str:
    """What Python says of an error, and the line of the user's that it came to."""
    said = traceback.format_exception_only(error)[-1].strip() or type(error).__name__
    if isinstance(error, SyntaxError) and error.filename:
        return f"{said}\n  at {error.filename}:{error.lineno}"
    frames = [x for x in traceback.extract_tb(error.__traceback__) if is_authors(x.filename)]
    return f"{said}\n  at {frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}" if frames else said


def made_up(kernel: Kernel, given: dict[str, str]) -> Instance:
    """Specs and values for all parameters of a kernel."""
    left, missing = dict(given), list[str]()

    def take(name: str) -> str | None:
        left.pop(name, None)
        return given.get(name)

    operands: dict[str, Any] = {}
    for name, pattern in kernel.signature.runtime:
        if isinstance(pattern, DType):
            operands[name] = _value(take(name) or "1")
            continue
        shape = []
        for dim in pattern.dims:
            label = dim.name if isinstance(dim, static) else dim
            length = dim if isinstance(dim, int) else take(str(label))
            if length is None:
                missing.append(f"{label}=...")
                length = "1"
            shape.append(_length(str(label), str(length)))
        operands[name] = spec(_dtype(name, pattern, take(name)), tuple(shape))
    statics = {name: _value(value) for name, _ in kernel.signature.static if (value := take(name)) is not None}
    if left:
        raise Refusal(f"{kernel.name} has no dimension or parameter {', '.join(left)}", fix=_usage(kernel))
    if missing:
        needed = " ".join(dict.fromkeys(missing))
        raise Refusal(f"{kernel.name}: how long are its dimensions?", fix=f"add {needed}")
    outputs: tuple[str, ...] = ()
    try:
        outputs = tuple(sorted(written(kernel.program(**operands, **statics))))
    except KernelError as error:
        raise Refusal(str(error)) from None
    except Exception as error:  # of the kernel's own Python
        raise Refusal(f"{kernel.name} cannot be traced: {_said(error)}", fix="mend that line") from None
    return Instance(kernel, operands, statics, outputs)


def _length(name: str, text: str) -> int:
    if not text.isdecimal():
        raise Refusal(f"{name}={text} is no length", fix="give a whole number from 0 on")
    return int(text)


def _dtype(name: str, pattern: GlobalPattern, given: str | None) -> DType:
    if given is None:
        return pattern.dtypes[0]
    if given not in {d.name for d in pattern.dtypes}:
        raise Refusal(f"{name}={given}", fix=f"{name} is {' or '.join(d.name for d in pattern.dtypes)}")
    return DTYPES[given]


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _usage(kernel: Kernel) -> str:
    dims = {
        str(dim.name if isinstance(dim, static) else dim)
        for _, pattern in kernel.signature.runtime
        if isinstance(pattern, GlobalPattern)
        for dim in pattern.dims
        if not isinstance(dim, int)
    }
    names = [n for n, _ in kernel.signature.runtime] + [n for n, _ in kernel.signature.static]
    return f"its dimensions are {', '.join(sorted(dims)) or 'all known'}, its parameters {', '.join(names)}"
