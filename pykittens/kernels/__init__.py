"""The shipped kernels: one file per family, each readable on its own. `registry` names them all."""

from .based import based
from .gates import geglu, swiglu
from .linear_attention import linear_attention
from .norms import layernorm, rmsnorm
from .rotary import rotary
from .softmax import softmax

__all__ = ["based", "geglu", "layernorm", "linear_attention", "rmsnorm", "rotary", "softmax", "swiglu"]
