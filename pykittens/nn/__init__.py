"""Modules for torch in place of its own and of others', on PyKittens' kernels: norms, a gated MLP, attention with
rotary embedding, and the recurrences that take attention's place.

Parameters have the names of torch's modules (norms), of transformers' (`gate_proj`, `q_proj`, ...) and, in recurrences,
of flash-linear-attention's, so that state dicts of either load as they are.
"""

from .recurrent import GatedDeltaNet, Mamba2
from .transformer import Attention, GatedMLP, LayerNorm, RMSNorm, rotary_tables

__all__ = ["Attention", "GatedDeltaNet", "GatedMLP", "LayerNorm", "Mamba2", "RMSNorm", "rotary_tables"]
