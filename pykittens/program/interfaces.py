"""What an operation's faces may ask of the two back ends: the writer of CUDA C, and the machine that runs NumPy.

The back ends stand after the operations in the pipeline; these are the only words operations know them by.
`gpu/writer.py` and `sim/machine.py` implement them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np

from ..architectures import Architecture
from ..errors import Frame
from ..layouts import Sym
from ..types import DType, Type
from .tensor_map import TensorMapSpec
from .values import Operand, Place, Scope, Value


class Statement(Protocol):
    """What both back ends read of the operation that calls them: who does it, and the line that made it."""

    scope: Scope
    location: tuple[Frame, ...]

    @property
    def name(self) -> str:
        """What a diagnosis calls it."""

    def operands(self) -> Iterable[Value]:
        """Every value it mentions."""


class CudaWriter(Protocol):
    """Collects the CUDA C of one kernel for one architecture. Strings it takes and gives are C."""

    arch: Architecture
    debug: bool
    elected: bool  # inside a role that one thread runs alone

    @property
    def lane(self) -> Sym:
        """The running thread's place in its warp."""

    def warp(self, scope: Scope) -> Any:
        """Index of this warp in its unit of the scope: 0 when the unit is one warp, else a `Sym`."""

    def thread(self, scope: Scope) -> str:
        """Index of this thread in its unit of the scope."""

    def unit(self, scope: Scope) -> str:
        """Which unit of the scope this thread belongs to, counted in its role."""

    def __getitem__(self, value: Value) -> str:
        """The C identifier of a value."""

    def fresh(self, base: str) -> str:
        """A C identifier not used yet: the base and a number."""

    def string(self, text: str) -> str:
        """A text as a C string literal."""

    def line(self, text: str) -> None:
        """Adds a line."""

    def prelude(self, text: str, authored: bool = False) -> None:
        """Adds text that stands once before the kernel; `authored`: the kernel's author wrote it."""

    def used(self, value: Value) -> bool:
        """Whether any operation takes a value."""

    def scalar(self, x: Operand, dtype: DType | None = None) -> str:
        """A scalar operand as an expression; a Python number as a literal of `dtype`."""

    def define(self, value: Value, text: str, mutable: bool = False, ctype: str = "") -> None:
        """Declares a scalar (or address) with its value."""

    def declare(self, value: Value) -> str:
        """Declares the registers of a tile or vector; returns their name."""

    def element(self, x: Value, register: Any) -> str:
        """The element in register number `register` of this thread."""

    def map(self, value: Value, text: Callable[[Sym], str], declare: bool = True) -> None:
        """Sets every register of a tile or vector to `text(register)`."""

    def copy(self, target: Value, source: Value) -> None:
        """Copies all registers of a tile or vector."""

    def store_pair(self, value: Value, pair: str, low: str, high: str) -> None:
        """Sets registers 2 * pair and 2 * pair + 1."""

    def from_memory(self, text: str, memory: DType, held: DType) -> str:
        """An element as it lies in memory, as an element of `held`: what `map` and `store_pair` take."""

    def pair_from_memory(self, text: str, memory: DType, held: DType) -> str:
        """Two 8-bit floats, as they lie in memory, as a word of two 16-bit floats: both converted at once."""

    def pairs_from_memory(self, text: str, memory: DType, low: str, high: str) -> str:
        """A statement: two words of two f16 become the four 8-bit floats of a word."""

    def moved(self, x: Value, register: Any) -> str:
        """The element in register number `register`, to be moved as it is: a 16-bit float as u16."""

    def zero(self, memory: DType, held: DType) -> str:
        """What `from_memory` gives of a zero."""

    def to_memory(self, text: str, memory: DType, held: DType) -> str:
        """An element of `held`, such as `element` gives, as it lies in memory."""

    def stored(self, x: Value, register: Any, memory: DType) -> str:
        """The element in register number `register` as it lies in memory; 16-bit floats of one dtype are moved."""

    def bits(self, text: str, dtype: DType) -> str:
        """Unsigned bits as the memory type of `dtype`."""

    def raw(self, text: str, dtype: DType) -> str:
        """The memory type of `dtype` as unsigned bits."""

    def elect(self, scope: Scope) -> str:
        """C that lets one thread of each unit of the scope run the next statement; empty where only one runs anyway."""

    def one(self) -> str:
        """C that holds in one thread of a warp, always the same."""

    def has(self, feature: str) -> bool:
        """Whether the architecture has a feature, one of `architectures.FEATURES`."""

    def require(self, feature: str, op: Statement) -> None:
        """Refuses an operation that this architecture lacks: `ResourceError`."""

    def barrier(self, op: Statement) -> str:
        """The statement in which the threads of the operation's scope meet."""

    def named(self, barrier: Value, index: Operand) -> str:
        """The number of a named barrier."""

    def bounded(self, op: Statement, condition: str, phase: str, barrier: Value) -> None:
        """Waits until the condition holds, in a debug build: not for ever."""

    def map_name(self, spec: TensorMapSpec) -> str:
        """The name of a tensor map parameter."""


class NumpyMachine(Protocol):
    """A gang of warps in lockstep. An array's first axis counts the units of the scope that run the operation
    together.
    """

    warps: int
    units: int

    def __getitem__(self, value: Value) -> np.ndarray:
        """The elements of a register value."""

    def scalar(self, x: Any) -> Any:
        """A scalar operand: a number, or one for each warp."""

    def unit_scalar(self, x: Any) -> Any:
        """A scalar operand: a number, or one for each unit."""

    def per_warp(self, array: np.ndarray) -> Any:
        """One item a unit as one a warp."""

    def assign(self, value: Value, new: Any) -> None:
        """Changes a register value in place."""

    def choose(self, condition: Any, a: Any, b: Any) -> Any:
        """a where the condition holds, else b."""

    def check_index(self, index: Any, count: int, op: Statement) -> None:
        """Refuses an index out of range: `OutOfBoundsError`."""

    def index(self, kind: str, scope: Scope) -> Any:
        """block_x/y/z, grid_x/y/z, cluster_rank, cluster_x, or which unit of the scope each warp belongs to."""

    def block_label(self) -> str:
        """What a diagnosis calls the block."""

    def unit_label(self, unit: int) -> str:
        """What a diagnosis calls a unit."""

    def print(self, text: str) -> None:
        """Adds a line to the report."""

    def shape(self, tensor: Value) -> tuple[int, ...]:
        """The four dimensions of a global tensor."""

    def address(self, value: Value) -> Any:
        """The byte a shared value begins at: a number, or one for each unit."""

    def column(self, value: Value) -> Any:
        """The first column of a view inside a panel."""

    def shared(self, base: Any, column: Any = 0) -> Any:
        """A shared value for the active units."""

    def read(self, source: Value | Place) -> np.ndarray:
        """The elements of shared or global memory: (units, *shape), or (1, *shape) where all units read the same."""

    def write(self, target: Value | Place, array: np.ndarray) -> None:
        """Sets the elements of shared or global memory."""

    def reduce(self, target: Value | Place, array: np.ndarray, kind: str) -> None:
        """Combines (add, min, max) shared memory, or a rectangle of global memory, with an array."""

    def gather(self, source: Value | Place, row: np.ndarray, col: np.ndarray) -> np.ndarray:
        """The elements at rows and columns of a shared tile or vector, or of the matrix in which a place lies, for each
        unit; 0 where there is none.
        """

    def scatter(
        self, target: Value | Place, row: np.ndarray, col: np.ndarray, array: np.ndarray, kind: str = ""
    ) -> None:
        """Sets such elements, or combines them (add, min, max), with an array's, each unit in turn."""

    def read_element(self, source: Value | Place, at: Any = 0) -> Any:
        """One element of a tensor (the first of the place) or shared vector, for each active warp."""

    def write_element(self, target: Value | Place, at: Any, value: Any) -> None:
        """Sets one element of a tensor or shared vector, for each active unit."""

    def atomic_element(self, target: Value | Place, kind: str, value: Any, expected: Any, at: Any = 0) -> Any:
        """Changes one element of a tensor or shared vector, each unit in turn (`kind` as in `ops/atomics.py`); what
        each found there, for its warps.
        """


class Derivation(Protocol):
    """The words in which an operation's derivative is written (`Op.vjp`): they record operations on tiles of float32.

    Values have the operators of the language; a cotangent covers the value that it belongs to, and what it has beyond
    that one's shape is still to be summed over.
    """

    def wide(self, x: Any) -> Any:
        """A value or number to compute with: 16-bit floats as float32."""

    def unary(self, kind: str, x: Any) -> Any:
        """An elementwise function of a tile, vector or scalar, such as "exp"."""

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        """a where the condition holds, else b; of a scalar condition too."""

    def full(self, type: Type, x: Any) -> Any:
        """A tile or vector of a type's shape, of float32: a number everywhere, or a vector broadcast."""

    def summed(self, cotangent: Any, type: Type) -> Any:
        """A cotangent with the shape of a value of this type: what it has beyond it is summed."""

    def reduced(self, kind: str, x: Any, like: Type) -> Any:
        """`kind` ("max", "sum", "prod") of a tile or vector over what a value of type `like` does not have."""

    def converted(self, x: Any, layout: Any, transpose: bool) -> Any:
        """A tile in another register layout, or transposed."""

    def recorded(self, op: Any) -> Any:
        """The result of an operation, recorded."""
