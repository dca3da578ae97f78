"""The shipped kernels: one file per family, each readable on its own. `registry` names them all; `functions/` calls
them."""
