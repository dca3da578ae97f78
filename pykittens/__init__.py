"""PyKittens: ThunderKittens' tile vocabulary in Python, for NVIDIA GPUs and for a simulated GPU on any CPU.

Everything is loaded when it is first asked for: the words of kernels (`vocabulary.py`) all together, the functions on
arrays (`functions/`) a family at a time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .functions import PUBLIC

if TYPE_CHECKING:
    from .bench.timing import do_bench
    from .bench.tuning import autotune
    from .functions.attention import attention, attention_backward
    from .functions.attention_cached import attention_cached
    from .functions.cache_append import cache_append
    from .functions.convolution import causal_conv1d, causal_conv1d_step
    from .functions.delta_rule import (
        gated_delta_rule,
        gated_delta_rule_step,
        kimi_delta_attention,
        kimi_delta_attention_step,
    )
    from .functions.gated import gated_linear_attention, gated_linear_attention_step
    from .functions.gates import geglu, swiglu
    from .functions.gradients import gradients
    from .functions.linear import linear
    from .functions.loss import cross_entropy, linear_cross_entropy
    from .functions.norms import layernorm, rmsnorm
    from .functions.product import addmm_, matmul
    from .functions.rotary import rotary
    from .functions.sequences import based, linear_attention, linear_attention_backward
    from .functions.softmax import softmax
    from .vocabulary import *

__version__ = "0.1.0"

_TOOLS = {"autotune": "bench.tuning", "do_bench": "bench.timing"}  # what measures, by its file
_PARTS = ("nn", "integrations", "testing", "bench")  # what `import pykittens.nn` loads, too


def __getattr__(name: str) -> Any:
    if file := f"functions.{PUBLIC[name]}" if name in PUBLIC else _TOOLS.get(name):
        found = globals()[name] = getattr(import_module(f".{file}", __name__), name)
        return found
    if name in _PARTS:
        return import_module(f".{name}", __name__)
    if "__all__" not in globals() and (name == "__all__" or not name.startswith("__")) and name != "vocabulary":
        from .loading import uncollected

        with uncollected():
            words = import_module(".vocabulary", __name__)
        globals().update(
            {word: getattr(words, word) for word in words.__all__}, __all__=[*words.__all__, *PUBLIC, *_TOOLS]
        )
        if name in globals():
            return globals()[name]
    hint = ""
    if not name.startswith("_"):
        from .suggestions import meant

        hint = meant(name, globals().get("__all__", ()))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}", name=name)


def __dir__() -> list[str]:
    return sorted({*globals(), *import_module(".vocabulary", __name__).__all__, *PUBLIC, *_TOOLS})
