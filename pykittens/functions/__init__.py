"""The public functions on arrays: one declaration each, from which every face of it follows.

A file is a family. It holds, for each function, a `Function` (see `declaration.py`) and the Python function of that
name with its documentation, which orders the arguments and calls the declaration. From the declaration come

* the torch operator `torch.ops.pykittens.<name>`, its fake, its gradient or the refusal of one, autocast, vmap
  (`operators.py`), so that it works in eager code, `torch.compile`, export, `make_fx`, on meta tensors;
* the call on NumPy, CuPy and JAX arrays, and the checks of both, by one rule.

A new function is one more file (or one more declaration in one), its name in `PUBLIC`. A gradient is the `backward=` of
the declaration, and a kernel for it one more `Function` that no one exports: see `declaration.Backward`.
"""

from importlib import import_module

# The file of each public function: loaded when `pk.name` is first asked for.
PUBLIC = {
    "addmm_": "product",
    "attention": "attention",
    "attention_backward": "attention",
    "attention_cached": "attention_cached",
    "attention_varlen": "attention_varlen",
    "based": "sequences",
    "cache_append": "cache_append",
    "causal_conv1d": "convolution",
    "causal_conv1d_step": "convolution",
    "cross_entropy": "loss",
    "gated_delta_rule": "delta_rule",
    "gated_delta_rule_step": "delta_rule",
    "gated_linear_attention": "gated",
    "gated_linear_attention_step": "gated",
    "geglu": "gates",
    "gradients": "gradients",
    "kimi_delta_attention": "delta_rule",
    "kimi_delta_attention_step": "delta_rule",
    "layernorm": "norms",
    "linear": "linear",
    "linear_attention": "sequences",
    "linear_attention_backward": "sequences",
    "linear_cross_entropy": "loss",
    "mamba2": "mamba2",
    "mamba2_step": "mamba2",
    "matmul": "product",
    "rmsnorm": "norms",
    "rotary": "rotary",
    "softmax": "softmax",
    "swiglu": "gates",
}


def load() -> None:
    """Loads all of them, so that all operators are there: for `torch.ops.pykittens`, and before `torch.export.load`
    in a new process.
    """
    for file in sorted({*PUBLIC.values()}):
        import_module(f"{__name__}.{file}")
