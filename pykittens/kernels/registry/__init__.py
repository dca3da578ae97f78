"""The table of shipped kernels: what `list`, `inspect`, `compile` and the tests go through.

Each file of this folder is a family's: `ROWS` says how to make an instance of each of its kernels for each
configuration. An instance is small enough to simulate (a few laps of every loop), and compiles to the very code that
larger operands use: lengths are known at launch. A new file is found, and need be named nowhere.
"""

from importlib import import_module
from pkgutil import iter_modules

from ..catalog import Shipped

KERNELS: dict[str, Shipped] = {
    row.name: row for module in iter_modules(__path__) for row in import_module(f"{__name__}.{module.name}").ROWS
}
