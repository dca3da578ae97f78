"""flash-linear-attention (fla, 0.6) on PyKittens' kernels.

    from pykittens.integrations import fla

    fla.enable()            # fla's layers, models and functions use our kernels where these apply
    print(fla.replaced())   # which functions, and by what
    fla.disable()

fla has a registry, `fla.backends`, which some of its functions ask for who is to run a call: ours is a backend there,
of a type and a priority of its own. The other functions are replaced by name, in every module that has the name. Either
way a call that ours does not take (a dtype, a dimension, an option, a gradient that ours has not, another GPU) is
fla's own, with the reason in the log of this module, or of fla's registry, at level INFO. Operands are read where they
lie: fla's (batch, time, heads, d) and its states with keys or values first are strides to our kernels.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from ...errors import ArgumentError
from . import mamba2, rows, sequences  # noqa: F401  (they fill REPLACEMENTS)
from .plan import REPLACEMENTS, Replacement

log = logging.getLogger(__name__)
TYPE = "pykittens"
PRIORITY = 1  # fla tries lower ones first: before those that it ships for NVIDIA's GPUs (3 and more)

_enabled = False
_registered: set[Replacement] = set()
_by_name: dict[Any, Any] = {}  # fla's function: ours
_mamba2: dict[str, Any] = {}  # what fla's layer had before
_said: set[tuple[str, str]] = set()


def enable() -> None:
    """Makes fla's functions use our kernels. Again: nothing happens.

    Raises `ArgumentError` where fla is not a version with a registry, or its registry is switched off.
    """
    global _enabled
    backends = _backends()
    for replacement in REPLACEMENTS:
        if not replacement.registry:
            _by_name.setdefault(replacement.original, _wrapped(replacement, replacement.original))
        elif replacement not in _registered:
            _register(backends, replacement)
            _registered.add(replacement)
    _exchange(_by_name)
    _enabled = True
    _enable_mamba2()


def disable() -> None:
    """Gives fla back its own functions, in modules too that have imported ours since. Again: nothing happens."""
    global _enabled
    _enabled = False  # fla's registry asks for this at each call
    _exchange({ours: original for original, ours in _by_name.items()})
    layer = sys.modules.get("fla.layers.mamba2")
    for name, value in _mamba2.items():
        setattr(layer.Mamba2 if name == "cuda_kernels_forward" else layer, name, value)  # type: ignore[union-attr]
    _mamba2.clear()


def replaced() -> dict[str, str]:
    """fla's functions, by their full names, and what of ours runs their calls, whether or not that is enabled now."""
    found = {f"{x.module}.{x.name}": f"pykittens.{x.ours}" for x in REPLACEMENTS}
    ours = {"selective_state_update": "mamba2_step"}
    return found | {f"fla.layers.mamba2.{name}": f"pykittens.{ours.get(name, 'mamba2')}" for name in mamba2.FUNCTIONS}


def _backends() -> Any:
    try:
        backends = import_module("fla.backends")
    except ModuleNotFoundError as error:
        raise ArgumentError(f"fla's registry: {error}", fix="install flash-linear-attention>=0.6,<0.7") from None
    if backends._DISPATCH_DISABLED:
        fix = "unset FLA_DISABLE_BACKEND_DISPATCH before fla is imported"
        raise ArgumentError("fla asks no registry in this process", fix=fix)
    return backends


def _register(backends: Any, replacement: Replacement) -> None:
    """A backend for one function. A family of operations has one backend for all its functions, by their names."""

    def verifier(*args: Any, **kwargs: Any) -> tuple[bool, str | None]:
        try:
            replacement.planned(*args, **kwargs)
        except ArgumentError as error:
            return False, str(error)
        return True, None

    def run(*args: Any, **kwargs: Any) -> Any:
        return replacement.planned(*args, **kwargs).run()

    body = {
        "backend_type": TYPE,
        "priority": PRIORITY,
        "is_enabled": lambda self: _enabled,
        replacement.name: staticmethod(run),
        f"{replacement.name}_verifier": staticmethod(verifier),
    }
    entry = replacement.original if replacement.registry == "function" else replacement.registry
    backends.register(entry)(type("PyKittens", (backends.BaseBackend,), body))


def _wrapped(replacement: Replacement, original: Any) -> Callable[..., Any]:
    """Ours where it applies, else fla's. torch.compile does not look inside, as it does not look inside of fla's."""

    @functools.wraps(original)
    def function(*args: Any, **kwargs: Any) -> Any:
        try:
            plan = replacement.planned(*args, **kwargs)
        except ArgumentError as error:
            _say(replacement.name, str(error))
            return original(*args, **kwargs)
        return plan.run()

    return torch.compiler.disable(function)


def _say(name: str, reason: str) -> None:
    if (name, reason) not in _said:
        _said.add((name, reason))
        log.info("%s: %s", name, reason)


def _exchange(pairs: dict[Any, Any]) -> None:
    """Puts each value in the place of its key, in every module that has it under some name."""
    others = {id(key): value for key, value in pairs.items()}
    for module in [x for x in sys.modules.values() if x is not None]:
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if id(value) in others:
                setattr(module, name, others[id(value)])


def _enable_mamba2() -> None:
    layer: Any = import_module("fla.layers.mamba2")
    if _mamba2:
        return
    here = layer.mamba_chunk_scan_combined is not None  # mamba_ssm is installed
    for name, function in mamba2.FUNCTIONS.items():
        _mamba2[name] = original = getattr(layer, name)
        setattr(layer, name, _falling_back(name, function, original) if here else function)
    if not here:
        _mamba2["is_fast_path_available"], layer.is_fast_path_available = layer.is_fast_path_available, True
        own = layer.Mamba2.cuda_kernels_forward
        _mamba2["cuda_kernels_forward"], layer.Mamba2.cuda_kernels_forward = own, mamba2.fast_path(own)


def _falling_back(name: str, ours: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """Ours of mamba_ssm's functions where it applies, else mamba_ssm's."""

    @functools.wraps(original)
    def function(*args: Any, **kwargs: Any) -> Any:
        try:
            return ours(*args, **kwargs)
        except (ArgumentError, TypeError) as error:
            _say(name, str(error))
            return original(*args, **kwargs)

    return function
