"""PyKittens: ThunderKittens' tile vocabulary in Python, for NVIDIA GPUs and for a simulated GPU on any CPU.

Everything but the two functions on arrays is loaded when it is first asked for: see `vocabulary.py`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .functional import attention, matmul

if TYPE_CHECKING:
    from .vocabulary import *

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if "__all__" not in globals() and (name == "__all__" or not name.startswith("__")) and name != "vocabulary":
        vocabulary = import_module(".vocabulary", __name__)
        globals().update({word: getattr(vocabulary, word) for word in vocabulary.__all__}, __all__=vocabulary.__all__)
        if name in globals():
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *import_module(".vocabulary", __name__).__all__})
