"""The conformance tests of operations: NumPy, the simulated GPU and a GPU agree on what an operation does.

    from pykittens.testing.conformance import cases, conform

    conform(MyOp)                       # everything this machine can check, for every sample of MyOp

Each sample (`Op.samples`) becomes a kernel: operands are loaded from global tensors, the operation is recorded, results
and changed operands are stored. Two units of the sample's scope do so at once, each with its own elements.

* `Case.simulate` against the sample's formula, in float64;
* `Case.compile` for an architecture, without a GPU;
* `Case.launch` on a GPU against `Case.simulate`: bit for bit for what moves, converts or counts, else within a
  tolerance.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..call.arguments import spec
from ..call.kernel import Kernel
from ..gpu import driver
from ..gpu.memory import DeviceArray
from ..ops import element, load, scalars
from ..ops.samples import Rectangle, Sample, rounded
from ..program import Access, Op, Place, Program, Scope, Value
from ..trace import elementwise, scopes
from ..trace.memory import At, Tensor, place, shared
from ..trace.recorder import record, result
from ..trace.rings import barrier
from ..trace.scalar import cast, var
from ..trace.signature import GlobalPattern
from ..types import (
    BarrierType,
    DType,
    Global,
    RegisterTile,
    RegisterVector,
    ScalarType,
    SharedTile,
    SharedVector,
    bool_,
    i32,
    with_dtype,
)

UNITS = 2  # units of the scope that run a sample together, each on its own elements
TOLERANCE = {"bf16": 2.0**-7, "f16": 2.0**-10, "f32": 1e-5, "f64": 1e-12, "e4m3": 2.0**-3, "e5m2": 2.0**-2}
Arrays = dict[str, np.ndarray]


class Case:
    """One sample of an operation, as a kernel."""

    def __init__(self, op: type[Op], sample: Sample, number: int = 0):
        self.op, self.sample = op, sample
        self.name = f"{op.__name__}[{number}]: {sample}"
        self.fields = {n: x if n in _operands(op) else Static(x) for n, x in sample.fields.items()}
        self.warps = max(
            [
                t.warps
                for t in (*_leaves(self.fields), sample.fields.get("type"))
                if isinstance(t, (RegisterTile, RegisterVector))
            ]
            + [sample.warps]
        )
        self.tensors: dict[str, tuple[DType, tuple[int, ...]]] = {}  # parameters: dtype and shape, the units first
        self.patterns: dict[str, GlobalPattern] = {}
        self.rectangles: dict[str, Rectangle] = {}
        for name, x in self.fields.items():
            self._declare(name, x)
        probe = self.probe()
        self.results = probe.types()
        self.changed = [n for n in probe.writes if _is_operand(self.fields[n])]
        written = [id(e.target) for e in probe.effects() if isinstance(e, Access) and e.mode != "read"]
        self.changed += [
            n
            for n in self.fields
            if id(getattr(probe, n)) in written and isinstance(self.fields[n], (SharedTile, SharedVector))
        ]
        self.written = [
            n for n in self.fields if id(getattr(probe, n)) in written and isinstance(self.fields[n], Rectangle)
        ]
        self.outputs: list[str] = []
        self.masks: set[str] = set()  # outputs that are masks
        for i, type in enumerate(self.results):
            self._output(f"result{i}", type)
        for name in self.changed:
            self._output(f"{name}_after", self.fields[name])
        self.kernel = self._kernel()

    def __repr__(self) -> str:
        return self.name

    # Parameters -------------------------------------------------------------------------------------------

    def _parameter(
        self, name: str, dtype: DType, shape: tuple[int, ...], pattern: tuple[Any, ...] | None = None
    ) -> None:
        self.tensors[name] = dtype, shape
        self.patterns[name] = GlobalPattern((dtype,), pattern or shape)

    def _declare(self, name: str, x: Any) -> None:
        if isinstance(x, tuple):
            for i, part in enumerate(x):
                self._declare(f"{name}{i}", part)
        elif isinstance(x, Rectangle):
            self.rectangles[name] = x
            dims = x.size if x.static else (f"{name}_rows", f"{name}_cols")
            self._parameter(name, x.dtype, (UNITS, x.size[0], x.pitch or x.size[1]), (UNITS, *dims))
            if not x.known:
                self._parameter(f"{name}_at", i32, (2,))
            if x.rows:
                self._parameter(f"{name}_index", i32, (len(x.rows),))
        elif isinstance(x, RegisterVector) and x.partial:
            self._parameter(name, _memory(x.dtype), (UNITS, x.length, 16))
        elif isinstance(x, (RegisterTile, SharedTile)):
            self._parameter(name, _memory(x.dtype), (UNITS, *x.shape))
        elif isinstance(x, (RegisterVector, SharedVector)):
            self._parameter(name, _memory(x.dtype), (UNITS, x.length))
        elif isinstance(x, ScalarType):
            self._parameter(name, _memory(x.dtype), (UNITS,))

    def _output(self, name: str, type: Any) -> None:
        shape = (
            ()
            if isinstance(type, ScalarType)
            else (type.length,)
            if isinstance(type, (RegisterVector, SharedVector))
            else type.shape
        )
        self._parameter(name, _memory(type.dtype), (UNITS, *shape))
        self.outputs.append(name)
        if type.dtype is bool_:
            self.masks.add(name)

    # The kernel -------------------------------------------------------------------------------------------

    def probe(self) -> Op:
        """The operation on stand-ins, to ask it for its types and effects."""
        scope, number = self._scope(), iter(range(1000))

        def stand_in(x: Any) -> Any:
            if isinstance(x, tuple):
                return tuple(map(stand_in, x))
            if isinstance(x, Rectangle):
                tensor = Value(Global(x.dtype, (UNITS, *(x.size if x.static else ("R", "C")))), f"tensor{next(number)}")
                at: Any = x.at if x.known else (Value(ScalarType(i32)), Value(ScalarType(i32)))
                at = (Value(x.vector, f"x{next(number)}"), at[1]) if x.rows else at
                return Place(tensor, (0, 0, *at), x.shape, x.within, x.columns)
            if isinstance(x, Static):
                return x.value
            return Value(x, f"x{next(number)}") if _is_operand(x) else x

        return self.op(scope, **{name: stand_in(x) for name, x in self.fields.items()})  # type: ignore[call-arg]

    def _scope(self) -> Scope:
        return Scope({1: "warp", 4: "warpgroup"}.get(self.warps, f"group({self.warps})"), self.warps)

    def _kernel(self) -> Kernel:
        def conformance(**tensors: Tensor) -> None:
            handle = scopes.group(self.warps)
            unit = handle.index
            fields = {name: self._operand(name, x, tensors, handle, unit) for name, x in self.fields.items()}
            scopes.block.sync()
            for more in self.sample.before(self._scope(), fields):
                record(more)
            op = record(self.op(self._scope(), **fields))  # type: ignore[call-arg]
            for more in self.sample.after(self._scope(), fields):
                record(more)
            scopes.block.sync()
            made = [*op.results, *(fields[name] for name in self.changed)]
            for name, value in zip(self.outputs, made, strict=True):
                self._store(tensors[name], value, handle, unit)

        parameters = [
            inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=p)
            for n, p in self.patterns.items()
        ]
        conformance.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return Kernel(conformance, {"warps": UNITS * self.warps, "grid": (1, 1, 1), "cluster": (1, 1, 1)})

    def _operand(self, name: str, x: Any, tensors: dict[str, Tensor], handle: scopes.ScopeHandle, unit: Any) -> Any:
        scope = self._scope()
        if isinstance(x, tuple):
            return tuple(self._operand(f"{name}{i}", part, tensors, handle, unit) for i, part in enumerate(x))
        if isinstance(x, Rectangle):
            at = (
                x.at
                if x.known
                else tuple(
                    result(element.LoadScalar(scalars.THREAD, place(tensors[f"{name}_at"], At((i,)), (1,))))
                    for i in (0, 1)
                )
            )
            if x.rows:
                index = place(tensors[f"{name}_index"], At((0,)), (len(x.rows),))
                at = (result(load.Load(scope, index, x.vector)), at[1])
            return place(tensors[name], At((0, unit, *at)), x.shape, x.within, x.columns)
        if not _is_operand(x):
            return x.value if isinstance(x, Static) else x
        if isinstance(x, BarrierType):
            return barrier(x.count, UNITS, name)[unit]
        tensor = tensors[name]
        if isinstance(x, ScalarType):
            loaded = tensor[unit]
            loaded = loaded != 0 if x.dtype is bool_ else cast(loaded, x.dtype) if loaded.dtype != x.dtype else loaded
            return var(x.dtype, loaded) if x.mutable else loaded
        if isinstance(x, (SharedTile, SharedVector)):
            item = shared(x, count=UNITS, name=name)[unit]
            handle.load_into(item, tensor, At(_corner(x, unit)))
            return item
        if isinstance(x, RegisterVector) and x.partial:
            tile = RegisterTile(x.dtype, x.length, 16, "row", x.warps)
            return result(load.Load(scope, place(tensor, At((0, unit, 0, 0)), tile.shape), tile)).row_sum(partial=True)
        stored = with_dtype(x, i32) if x.dtype is bool_ else x
        loaded = result(load.Load(scope, place(tensor, At(_corner(x, unit)), _shape(x)), stored))
        return loaded != 0 if x.dtype is bool_ else loaded

    def _store(self, tensor: Tensor, value: Any, handle: scopes.ScopeHandle, unit: Any) -> None:
        type, scope = value.type, self._scope()
        if isinstance(type, ScalarType):
            number = elementwise.where(value, 1, 0) if type.dtype is bool_ else value
            record(element.StoreScalar(scope, place(tensor, At((unit,)), (1,)), number))
            return
        if isinstance(type, RegisterVector) and type.partial:
            value = value.total()
        if isinstance(type, (RegisterTile, RegisterVector)) and type.dtype is bool_:
            value = value.to(i32)
        handle.store(tensor, value, At(_corner(type, unit)))

    # Running ----------------------------------------------------------------------------------------------

    def arrays(self) -> Arrays:
        """Elements for the operands, the same every time; outputs are filled with garbage."""
        chance = np.random.default_rng(zlib.crc32(self.name.encode()))
        found: Arrays = {}
        for name, (dtype, shape) in self.tensors.items():
            if name in self.outputs:
                found[name] = np.full(shape, 77, dtype.numpy)
            elif name.endswith("_at") and name[:-3] in self.rectangles:
                found[name] = np.array(self.rectangles[name[:-3]].at, np.int32)
            elif name.endswith("_index") and name[:-6] in self.rectangles:
                found[name] = np.array(self.rectangles[name[:-6]].rows, np.int32)
            else:
                field = next(f for f in sorted(self.fields, key=len, reverse=True) if name.startswith(f))
                mask = any(getattr(t, "dtype", None) is bool_ for t in _leaves({field: self.fields[field]}))
                kind = self.sample.inputs.get(field) or (
                    "mask" if mask else "normal" if dtype.kind == "f" else "bits100"
                )
                found[name] = elements(kind, dtype, shape, chance)
        return found

    def _views(self, arrays: Arrays) -> dict[str, Any]:
        """What the kernel is given: a rectangle's tensor without the padding of its rows."""
        return {n: a[:, :, : self.rectangles[n].size[1]] if n in self.rectangles else a for n, a in arrays.items()}

    def simulate(self) -> Arrays:
        """What comes out of the simulated GPU."""
        arrays = self.arrays()
        self.kernel.simulate(**self._views(arrays))
        return {name: arrays[name] for name in self.outputs + self.written}

    def launch(self) -> Arrays:
        """What comes out of the GPU."""
        arrays = {name: DeviceArray(a) for name, a in self.arrays().items()}
        self.kernel(
            **{n: Narrowed(a, self.rectangles[n].size[1]) if n in self.rectangles else a for n, a in arrays.items()}
        )
        return {name: arrays[name].numpy() for name in self.outputs + self.written}

    def program(self) -> Program:
        """The kernel's program."""
        return self.kernel.program(**self._specs())

    def text(self, arch: str) -> str:
        """The CUDA C."""
        return self.kernel.cuda(**self._specs(), arch=arch)

    def compile(self, arch: str) -> Any:
        """The cubin."""
        return self.kernel.compile(**self._specs(), arch=arch)

    def _specs(self) -> dict[str, Any]:
        found = {}
        for name, (dtype, shape) in self.tensors.items():
            x = self.rectangles.get(name)
            strides = (x.size[0] * x.pitch, x.pitch, 1) if x is not None and x.pitch else None
            found[name] = spec(dtype, (*shape[:-1], x.size[1]) if x is not None else shape, strides)
        return found

    # Comparing --------------------------------------------------------------------------------------------

    def expected(self) -> Arrays | None:
        """What the sample's formula gives, in float64 (None where it has none)."""
        if self.sample.expected is None:
            return None
        arrays = self._views(self.arrays())
        wanted = [
            p.name
            for p in inspect.signature(self.sample.expected).parameters.values()
            if p.default is inspect.Parameter.empty
        ]
        found: dict[str, list[np.ndarray]] = {name: [] for name in self.outputs + self.written}
        for unit in range(UNITS):
            known = {"unit": unit, **{name: self._plain(name, x, arrays, unit) for name, x in self.fields.items()}}
            with np.errstate(all="ignore"):
                out = self.sample.expected(**{n: known[n] for n in wanted})
            for name, array in zip(found, out if isinstance(out, tuple) else (out,), strict=True):
                found[name].append(np.asarray(array) != 0 if name in self.masks else np.asarray(array))
        return {name: np.stack(parts) for name, parts in found.items()}

    def _plain(self, name: str, x: Any, arrays: Arrays, unit: int) -> Any:
        """An operand of one unit as the formula sees it."""
        if isinstance(x, tuple):
            return tuple(self._plain(f"{name}{i}", part, arrays, unit) for i, part in enumerate(x))
        if name not in arrays:
            return x.value if isinstance(x, Static) else x
        array = arrays[name][unit]
        if isinstance(x, RegisterVector) and x.partial:
            array = array.astype(np.float32).reshape(x.length, 2, 4, 2).sum((1, 3))
        wide = array != 0 if x.dtype is bool_ else array.astype(np.float64 if x.dtype.kind == "f" else np.int64)
        return wide[()] if isinstance(x, ScalarType) else wide

    def exact(self, name: str) -> bool:
        """Whether an output must agree bit for bit."""
        return self.sample.exact or self.tensors[name][0].kind in "iub"

    def tolerance(self, name: str) -> float:
        return self.sample.tolerance or TOLERANCE[self.tensors[name][0].name]

    def differences(self, got: Arrays, want: Arrays, *, bits: bool) -> list[str]:
        """What differs, in words; `bits`: exact outputs are compared bit for bit, else as numbers of the output's
        dtype.
        """
        found = []
        for name, w in want.items():
            g, dtype = got[name], self.tensors[name][0]
            if name in self.rectangles:
                g, w = (a[:, :, : self.rectangles[name].size[1]] for a in (g, w))
            if self.exact(name):
                w = rounded(dtype, w)
                same = (
                    g == w if not bits else (g.view(f"u{dtype.size}") == np.ascontiguousarray(w).view(f"u{dtype.size}"))
                )
                same |= (g != g) & (w != w)
            else:
                same = close(g, w, self.tolerance(name), dtype)
            if not same.all():
                spot = tuple(int(i) for i in np.argwhere(~same)[0])
                found.append(
                    f"{name}: {int((~same).sum())} of {same.size} elements differ, first at {spot}: "
                    f"{g[spot]!s}, not {w[spot]!s}"
                )
        return found


@dataclass(frozen=True)
class Static:
    """An attribute of an operation, as it is: a type there stands for itself."""

    value: Any


def _operands(op: type[Op]) -> set[str]:
    """The fields of an operation that hold operands."""
    return {f.name for f in dataclasses.fields(op) if re.search(r"\b(Value|Operand|Place)\b", str(f.type))}  # type: ignore[arg-type]


def _leaves(x: Any) -> Iterator[Any]:
    if isinstance(x, (tuple, dict)) or hasattr(x, "values"):
        for part in x.values() if hasattr(x, "values") else x:
            yield from _leaves(part)
    else:
        yield x


def _is_operand(x: Any) -> bool:
    return isinstance(x, (RegisterTile, RegisterVector, SharedTile, SharedVector, ScalarType, BarrierType))


def _memory(dtype: DType) -> DType:
    """How elements are passed to and from the kernel: masks as integers."""
    return i32 if dtype is bool_ else dtype


def _shape(x: Any) -> tuple[int, ...]:
    return (x.length,) if isinstance(x, (RegisterVector, SharedVector)) else x.shape


def _corner(x: Any, unit: Any) -> tuple[Any, ...]:
    """Where a unit's elements begin in a tensor of (units, rows, cols), or (units, length)."""
    return (0, unit, 0, 0) if isinstance(x, (RegisterTile, SharedTile)) else (0, 0, unit, 0)


@dataclass(frozen=True)
class Narrowed:
    """A device array without the padding of its rows."""

    whole: Any
    cols: int

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.whole.dtype)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        _, rows, pitch = self.whole.shape
        strides = tuple(n * self.dtype.itemsize for n in (rows * pitch, pitch, 1))
        return {**self.whole.__cuda_array_interface__, "shape": (*self.whole.shape[:-1], self.cols), "strides": strides}


def elements(kind: str, dtype: DType, shape: tuple[int, ...], chance: np.random.Generator) -> np.ndarray:
    """Elements of a tensor, chosen as a sample says."""
    n = int(np.prod(shape))
    if kind == "bits" and dtype.kind in "iu":
        return chance.integers(0, 256, n * dtype.size, dtype=np.uint8).view(dtype.numpy).reshape(shape)
    numbers: dict[str, Callable[[], Any]] = {
        "normal": lambda: chance.standard_normal(n),
        "positive": lambda: np.exp(2 * chance.standard_normal(n)),
        "unit": lambda: chance.uniform(-1, 1, n),
        "small": lambda: chance.uniform(-0.2, 0.2, n),
        "integers": lambda: chance.integers(-8, 9, n),
        "counts": lambda: chance.integers(0, 9, n),
        "between": lambda: chance.integers(-8, 9, n) + chance.uniform(0.1, 0.4, n),  # whole numbers and halves
        "nonzero": lambda: chance.integers(1, 9, n) * (chance.choice([-1, 1], n) if dtype.kind != "u" else 1),
        "bits100": lambda: chance.integers(0 if dtype.kind == "u" else -100, 101, n),
        "special": lambda: chance.choice(
            np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 0.5, 3.0, -2.5, 1e4, -1e4, 1e-4]), n
        ),
        "hundreds": lambda: chance.uniform(-300, 300, n),
        "large": lambda: chance.integers(1, 10**6, n) * (chance.choice([-1, 1], n) if dtype.kind != "u" else 1),
        "huge": lambda: chance.integers(2**31, 2**32, n),
        "steps": lambda: np.arange(n) % 509,
        "places": lambda: chance.permutation(n),
        "ones": lambda: np.where(chance.random(n) < 0.7, 1.0, chance.standard_normal(n)),
        "mask": lambda: chance.integers(0, 2, n),
        "wide": lambda: chance.standard_normal(n) * np.exp(12 * chance.standard_normal(n)),
    }
    with np.errstate(all="ignore"):
        return (
            np.asarray(numbers[kind](), np.float32 if dtype.kind == "f" else np.int64)
            .astype(dtype.numpy)
            .reshape(shape)
        )


def close(got: np.ndarray, want: np.ndarray, tolerance: float, dtype: DType) -> np.ndarray:
    """Which elements agree: NaN with NaN, infinity with itself, others relative to their size and that of all."""
    with np.errstate(all="ignore"):
        g, w = (
            np.asarray(got, np.float64),
            np.asarray(rounded(dtype, want) if np.asarray(want).dtype.kind == "f" else want, np.float64),
        )
        w = np.where(np.isfinite(w), np.asarray(want, np.float64), w)  # what overflows the dtype is infinite
        finite = np.abs(w[np.isfinite(w)])
        size = np.abs(w) + (finite.mean() if finite.size else 0.0)
        return (g == w) | ((g != g) & (w != w)) | (np.isfinite(w) & (np.abs(g - w) <= tolerance * size))


def cases(*ops: type[Op], keep: Callable[[Sample], bool] = lambda sample: True) -> Iterator[Case]:
    """The cases of operations."""
    for op in ops:
        for number, sample in enumerate(op.samples()):
            if keep(sample):
                yield Case(op, sample, number)


def operations() -> list[type[Op]]:
    """Every operation that the package defines and that can be sampled, and the user's own."""
    found: dict[type[Op], None] = {}
    todo = [Op]
    while todo:
        for sub in todo.pop().__subclasses__():
            todo.append(sub)
            if sub.cuda is not Op.cuda:  # what only others are made from has no text
                found[sub] = None
    return sorted(found, key=lambda op: (op.__module__, op.__qualname__))


def conform(*ops: type[Op], arch: str = "sm_80") -> None:
    """Raises an AssertionError that lists what does not agree, among everything that this machine can check."""
    wrong = []
    for case in cases(*ops):
        simulated, expected = case.simulate(), case.expected()
        if expected is not None:
            wrong += [f"{case}, simulated: {d}" for d in case.differences(simulated, expected, bits=False)]
        if driver.available():
            wrong += [f"{case}, on the GPU: {d}" for d in case.differences(case.launch(), simulated, bits=True)]
        else:
            case.compile(arch)
    assert not wrong, "\n".join(wrong)


__all__ = ["Case", "Rectangle", "Sample", "cases", "conform", "elements", "operations"]
