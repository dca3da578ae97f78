"""A traced kernel as data: values, operations, regions, and the program that holds them.

An operation is an instance of an `Op` subclass; its dataclass fields are its operands (`Value`s, or
tuples and `Place`s that contain them), its regions (`Block`s) and its static attributes. Passes and back ends
never know operations by name: they read an operation's four faces, which are the methods of `Op`.
"""

from .effects import Access, Effect, MemoryScope, Order, Sync
from .interfaces import CudaWriter, Derivation, NumpyMachine
from .kernel_program import Buffer, Parameter, Printer, Program
from .op import BLOCK, CLUSTER, Block, Op, Shares
from .tensor_map import TensorMapSpec
from .values import Operand, Place, Scope, Value, is_scalar, mapped, values_in

__all__ = [
    "Access",
    "BLOCK",
    "Block",
    "Buffer",
    "CLUSTER",
    "CudaWriter",
    "Derivation",
    "Effect",
    "MemoryScope",
    "NumpyMachine",
    "Op",
    "Operand",
    "Order",
    "Parameter",
    "Place",
    "Printer",
    "Program",
    "Scope",
    "Shares",
    "Sync",
    "TensorMapSpec",
    "Value",
    "is_scalar",
    "mapped",
    "values_in",
]
