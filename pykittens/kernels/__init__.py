"""The shipped kernels: one file per family, each readable on its own. `registry` names them all; `functions/` calls
them."""

from importlib.util import find_spec
from typing import NoReturn

import pykittens


def __getattr__(name: str) -> NoReturn:
    if name in pykittens.PUBLIC and not find_spec(f"{__name__}.{name}"):
        said = f"pykittens.kernels has the modules of kernels; the function {name} is pykittens.{name}"
        raise ImportError(said, name=name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
