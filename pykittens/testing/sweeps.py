"""Every elementwise operation over many numbers at once: kernels, what NumPy says of them, and how they are compared.

A sweep is a kernel that loads operands, applies each operation and stores each result. `meaning` runs the operations'
NumPy faces over the whole arrays: what the simulator would give, without simulating threads. `disagreements` compares
bit for bit, or within the bound that the operation promises.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import pykittens as pk

from ..numerics import Numerics
from ..ops.arithmetic import COMPARISONS, arithmetic_numerics
from ..ops.load import Load
from ..ops.scalar_arithmetic import BITS
from ..ops.scalar_functions import SCALAR_FUNCTIONS
from ..ops.unary import UNARY, flushed
from ..program import Op, Place, Program, Value
from ..types import DType, bf16, bool_, e4m3, e5m2, f16, f32, i8, i32, i64, u8, u32
from .number_reference import bits_of
from .program_kernel import apply

ROWS, COLS = 8, 256  # of a tile
HELD = (f32, bf16, f16, i32, u32, i64)
MEMORY = (f32, bf16, f16, e4m3, e5m2, i8, u8, i32, u32, i64)
Arrays = dict[str, np.ndarray]
Truth = Callable[..., np.ndarray]  # of float64 operands


@dataclass
class Sweep:
    """One kernel: `inputs` and `outputs` by name with their memory dtypes; `close` has the outputs that are
    approximate.
    """

    name: str
    inputs: dict[str, DType]
    outputs: dict[str, DType] = field(default_factory=dict)
    close: dict[str, tuple[Numerics, Truth]] = field(default_factory=dict)
    scalar: bool = False  # one number a block, rather than a tile
    held: DType | None = None  # what tiles are loaded as, if not as they lie in memory
    body: Callable[..., dict[str, Any]] = lambda: {}

    @property
    def eight_bit_floats(self) -> bool:
        return any(d in (e4m3, e5m2) for d in (*self.inputs.values(), *self.outputs.values()))

    def kernel(self, count: int) -> pk.Kernel:
        """The kernel for arrays of `count` numbers, a multiple of `ROWS * COLS` for tiles."""
        shape = (count,) if self.scalar else (count // COLS, COLS)

        def sweep(**given: Any) -> None:
            at = pk.block_index.x
            loaded = {n: given[n][at] if self.scalar else load(given[n], at, self.held) for n in self.inputs}
            for name, value in self.body(**loaded).items():
                value = pk.where(value, 1, 0) if value.dtype is bool_ else value
                if self.scalar:
                    pk.warp.set(given[name], at, value)
                else:
                    pk.warp.store(given[name], value, (at, 0))

        keyword, all = inspect.Parameter.POSITIONAL_OR_KEYWORD, {**self.inputs, **self.outputs}
        sweep.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [inspect.Parameter(n, keyword, annotation=pk.gl(d, *shape)) for n, d in all.items()]
        )
        return pk.kernel(warps=1, grid=(count if self.scalar else count // (ROWS * COLS), 1, 1))(sweep)

    def arrays(self, operands: Arrays) -> Arrays:
        """The kernel's arguments: operands, and room for results."""
        count = len(next(iter(operands.values())))
        shape = (count,) if self.scalar else (count // COLS, COLS)
        room = {n: np.full(shape, 77).astype(d.numpy) for n, d in self.outputs.items()}
        return {**{n: x.reshape(shape) for n, x in operands.items()}, **room}


def load(tensor: Any, at: Any, dtype: DType | None = None) -> Any:
    return pk.warp.load(tensor, (at, 0), rows=ROWS, cols=COLS, dtype=dtype, layout=pk.coalesced(32, 8))


class Whole:
    """A machine for the NumPy faces of a straight line of elementwise operations: every block of the grid is a unit."""

    def __init__(self, program: Program, arrays: Arrays):
        self.arrays, self.values = arrays, dict[Value, Any]()
        self.tensors = {p.value: p.name for p in program.parameters}
        self.units = 1
        with np.errstate(all="ignore"):
            for op in program.walk():
                self.run(op)

    def run(self, op: Op) -> None:
        if isinstance(op, Load):
            self.units = self.arrays[self.tensors[op.source.tensor]].size // (ROWS * COLS)  # type: ignore[union-attr]
        out = op.numpy(self)  # type: ignore[arg-type]
        if op.results:
            self.values[op.result] = out

    def __getitem__(self, value: Value) -> Any:
        return self.values[value]

    def scalar(self, x: Any) -> Any:
        return self.values[x] if isinstance(x, Value) else x

    unit_scalar = scalar

    def index(self, kind: str, scope: Any) -> int:
        return 0

    def read(self, place: Place) -> np.ndarray:
        return self.arrays[self.tensors[place.tensor]].reshape(self.units, ROWS, COLS)

    def write(self, place: Place, array: np.ndarray) -> None:
        name = self.tensors[place.tensor]
        self.arrays[name] = np.broadcast_to(array, (self.units, ROWS, COLS)).reshape(self.arrays[name].shape)

    def read_element(self, place: Place, at: Any) -> np.ndarray:
        return self.arrays[self.tensors[place.tensor]]

    def write_element(self, place: Place, at: Any, value: Any) -> None:
        name = self.tensors[place.tensor]
        self.arrays[name] = np.broadcast_to(value, self.arrays[name].shape)


def meaning(program: Program, arrays: Arrays) -> Arrays:
    """The arrays after the program's NumPy meaning."""
    return Whole(program, dict(arrays)).arrays


# The sweeps
# ------------------------------------------------------------------------------------------------------------


def unary_sweeps() -> list[Sweep]:
    """Every function of one operand, for each dtype that it takes."""
    found = []
    for dtype in HELD:
        floats = dtype.kind == "f"
        names = [n for n in UNARY if n not in (("not", "invert") if floats else ())]
        names = names if floats else ["neg", "abs", "invert"]
        sweep = Sweep(f"unary {dtype}", {"x": dtype}, {n: dtype for n in names})
        sweep.body = _each_unary(names)
        sweep.close = {
            n: (UNARY[n].numerics, UNARY[n].formula) for n in names if UNARY[n].numerics.kind == "approximate"
        }
        found.append(sweep)
    return found


def _each_unary(names: list[str]) -> Callable[..., dict[str, Any]]:
    words = {"neg": lambda x: -x, "abs": abs, "invert": lambda x: ~x}
    return lambda x: {n: (words.get(n) or getattr(pk, n))(x) for n in names}


def conversion_sweeps() -> list[Sweep]:
    """From each dtype in memory to each that registers hold, from there to each other one, and back to each in
    memory.
    """
    found = []
    for source in MEMORY:
        for held in HELD:
            outputs = {f"to_{d}": d for d in HELD if d is not held} | {f"stored_{d}": d for d in MEMORY} | {"mask": i32}
            found.append(
                Sweep(f"{source} held as {held}", {"x": source}, outputs, body=_each_conversion(held), held=held)
            )
    return found


def _each_conversion(held: DType) -> Callable[..., dict[str, Any]]:
    def body(x: Any) -> dict[str, Any]:
        registers = {f"to_{d}": x.to(d) for d in HELD if d is not held}
        return {**registers, **{f"stored_{d}": x for d in MEMORY}, "mask": x.to(bool_)}

    return body


def binary_sweeps(memory: tuple[DType, ...] = (*HELD, e4m3, e5m2, i8, u8)) -> list[Sweep]:
    """Every operation on two operands, and the fused one on three, for each dtype in memory."""
    found = []
    for dtype in memory:
        held = dtype if dtype in HELD else f32 if dtype.kind == "f" else i32
        floats = held.kind == "f"
        names = ["add", "sub", "mul", "max", "min", "floordiv", "mod", *COMPARISONS]
        names += ("div", "fma", "pow") if floats else BITS
        outputs = {f"{n}_ab": u8 if n in COMPARISONS else held for n in names}
        sweep = Sweep(f"binary {dtype}", dict.fromkeys(("a", "b", "c"), dtype), outputs, body=_each_binary(names))
        if floats:
            sweep.close = {
                "div_ab": (arithmetic_numerics("div", held), np.divide),
                "pow_ab": (arithmetic_numerics("pow", held), np.power),
            }
        found.append(sweep)
    return found


def _each_binary(names: list[str]) -> Callable[..., dict[str, Any]]:
    def body(a: Any, b: Any, c: Any) -> dict[str, Any]:
        words = {"fma": lambda a, b: pk.fma(a, b, c), "div": lambda a, b: a / b}
        return {f"{n}_ab": words[n](a, b) if n in words else apply(n, a, b) for n in names}

    return body


def scalar_sweeps() -> list[Sweep]:
    """Every operation on scalars of two dtypes, functions of one, and casts to all."""
    found = []
    for a, b in ((i32, i32), (u32, u32), (i64, i64), (f32, f32), (i32, u32), (i32, f32), (u32, f32), (i64, f32)):
        dtype = f32 if f32 in (a, b) else i64 if a is not b else a
        names = ["add", "sub", "mul", "max", "min", *COMPARISONS, *(("div",) if f32 in (a, b) else BITS)]
        outputs = {f"{n}_ab": i32 if n in COMPARISONS else dtype for n in names}
        outputs |= {f"cast_{d}": d for d in (i32, u32, i64, f32)} | {f"set_{d}": d for d in (bf16, f16, i8, u8)}
        functions = [n for n in SCALAR_FUNCTIONS if n != "not" and (n != "invert" or a is not f32)] if a is b else []
        outputs |= {f"f_{n}": a if n in ("neg", "abs", "invert") else f32 for n in functions}
        sweep = Sweep(
            f"scalars {a} and {b}", {"a": a, "b": b}, outputs, scalar=True, body=_each_scalar(names, functions)
        )
        for n in functions:
            promise = SCALAR_FUNCTIONS[n][2]
            if promise.kind == "approximate":
                sweep.close[f"f_{n}"] = promise, UNARY[n].formula
        found.append(sweep)
    return found


def _each_scalar(names: list[str], functions: list[str]) -> Callable[..., dict[str, Any]]:
    words = {"neg": lambda x: -x, "abs": abs, "invert": lambda x: ~x}

    def body(a: Any, b: Any) -> dict[str, Any]:
        found = {f"{n}_ab": a / b if n == "div" else apply(n, a, b) for n in names}
        found |= {f"cast_{d}": pk.cast(a, d) for d in (i32, u32, i64, f32)} | {
            f"set_{d}": a for d in (bf16, f16, i8, u8)
        }
        return found | {f"f_{n}": (words.get(n) or getattr(pk, n))(a) for n in functions}

    return body


# Comparing
# -------------------------------------------------------------------------------------------------------------


@dataclass
class Comparison:
    """How one output compares: numbers checked, and those that disagree, with examples."""

    checked: int
    wrong: int
    examples: list[str]
    share: float = 0.0  # the largest error of an approximation, as a share of its bound


def different(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Where bits differ. Of a float32 NaN they do not count: signs are changed as the compiler likes."""
    bad = bits_of(got) != bits_of(want)
    return bad & ~(np.isnan(got) & np.isnan(want)) if got.dtype == np.float32 else bad


def disagreements(sweep: Sweep, name: str, got: np.ndarray, want: np.ndarray, operands: Arrays) -> Comparison:
    """An output of a GPU beside its meaning."""
    bad, share = different(got, want), 0.0
    if name in sweep.close:
        bad, share = _far(*sweep.close[name], got, want, [x.reshape(got.shape) for x in operands.values()])
    places = np.flatnonzero(bad.ravel())[:3]
    values = [x.ravel() for x in operands.values()]
    examples = [
        f"{name}({', '.join(str(v[i]) for v in values)}) = {got.ravel()[i]}, not {want.ravel()[i]}" for i in places
    ]
    return Comparison(got.size, int(bad.sum()), examples, share)


def _far(
    promise: Numerics, truth: Truth, got: np.ndarray, want: np.ndarray, operands: list[np.ndarray]
) -> tuple[Any, float]:
    """Which results are further from the truth than promised, and the largest error as a share of what is allowed."""
    with np.errstate(all="ignore"):
        arity = len(inspect.signature(truth).parameters) if not isinstance(truth, np.ufunc) else truth.nin
        x = [v.astype(np.float32) for v in operands[:arity]]
        wide = [(flushed(v) if promise.flushes else v).astype(np.float64) for v in x]
        true, g = np.asarray(truth(*wide), np.float64), got.astype(np.float64)
        allowed = promise.allowed(true, wide[0])
        if got.dtype != np.float32:  # and one rounding, to 11 or 8 bits
            half, least = (2.0**-11, 2.0**-25) if got.dtype == np.float16 else (2.0**-8, 2.0**-134)
            allowed = allowed + np.maximum(np.abs(true) * half, least)
        most = (
            float(np.finfo(np.float32).max)
            if got.dtype == np.float32
            else 65504.0
            if got.dtype == np.float16
            else 3.3895e38
        )
        edge = (np.abs(true) + allowed >= most) & (np.abs(g) >= most * (1 - 2.0**-7)) & (np.sign(g) == np.sign(true))
        domain = np.abs(wide[0]) > 1e5 if "1e5" in promise.special else np.zeros(g.shape, bool)
        right = ~different(got, want) | (np.abs(g - true) <= allowed) | edge | (domain & (np.abs(g) <= 1))
        share = np.abs(g - true) / allowed
        counted = np.isfinite(share) & ~domain & ~edge
    return ~right, float(share[counted].max()) if counted.any() else 0.0
