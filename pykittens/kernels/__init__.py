"""The shipped kernels: one file per family, each readable on its own. `registry` names them all."""

from .gates import geglu, swiglu
from .norms import layernorm, rmsnorm
from .rotary import rotary
from .softmax import softmax

__all__ = ["geglu", "layernorm", "rmsnorm", "rotary", "softmax", "swiglu"]
