"""`@pk.kernel`: a Python function that runs on a GPU for CUDA arrays and on the simulated GPU for NumPy arrays.

A kernel is traced once per specialisation: dtypes, static dimensions, alignment and static values. The same
program then goes to the simulator or, as CUDA C, to the compiler and its cache.
"""

from __future__ import annotations

import dis
import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from types import FunctionType
from typing import Any

import numpy as np

from .errors import ArgumentError, TraceError
from .gpu import cache, writer
from .gpu.again import Again
from .gpu.compiler import Cubin
from .gpu.debug_waits import debugging
from .gpu.run import Launch, bind, launch_once
from .interop.arrays import ArrayInfo, as_numpy, describe
from .passes import prepare
from .passes.shared_plan import check_shared
from .program import Program
from .trace.fingerprint import fingerprint
from .trace.operands import check_outputs, misaligned
from .trace.signature import GlobalPattern, Signature, global_type, read_signature, static
from .trace.tracer import trace
from .types import DTYPES, DType, Global, ScalarType

Dim3 = tuple[int, int, int]


@dataclass(frozen=True)
class spec:
    """Stands for an array when a kernel is traced or compiled without one: dtype, shape, and strides if not contiguous."""

    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    align: int = 16


@dataclass(frozen=True)
class Argument:
    """What `grid=` and `cluster=` functions see of a tensor: its four dimensions, missing leading ones 1."""

    batch: int
    depth: int
    rows: int
    cols: int
    dtype: DType


@dataclass(frozen=True)
class Specialisation:
    """What a program depends on: parameter types and static values."""

    types: tuple[tuple[str, Global | ScalarType | None], ...]  # None: an operand that was not given
    statics: tuple[tuple[str, Any], ...]


class Kernel:
    """A kernel function and its programs, one per specialisation. Made by `@pk.kernel`."""

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]):
        self.function, self.options = function, options
        self.name = function.__name__
        self.__doc__, self.__name__, self.__wrapped__ = function.__doc__, function.__name__, function
        self.signature: Signature = read_signature(function)
        self._programs: dict[Any, Program] = {}
        self._loaded: dict[Any, Any] = {}  # `Call`s
        self._functions: dict[Any, Any] = {}  # what is loaded on GPUs
        self._again: Again | None = None  # calls that can be made again: there are none before the first on a GPU
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"<kernel {self.name}({', '.join(name for name, _ in self.signature.runtime)})>"

    # From arguments to a specialisation -----------------------------------------------------------------

    def arguments(self, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Run-time arguments by name, and static values by name (defaults filled in)."""
        names = [name for name, _ in self.signature.runtime]
        if len(args) > len(names):
            raise ArgumentError(
                f"{self.name} takes {len(names)} operands ({', '.join(names)}), not {len(args)}",
                fix="pass static values by name",
            )
        given = dict(zip(names, args, strict=False))
        statics = {name: default for name, default in self.signature.static}
        for name, value in named.items():
            if name in given:
                raise ArgumentError(f"{self.name} got {name!r} twice", fix="pass it once")
            if name in names:
                given[name] = value
            elif name in statics:
                statics[name] = value
            else:
                raise ArgumentError(
                    f"{self.name} has no parameter {name!r}", fix=f"it takes {', '.join(names + list(statics))}"
                )
        empty = inspect.Parameter.empty
        given = dict.fromkeys(self.signature.optional) | given
        missing = [n for n in names if n not in given] + [n for n, v in statics.items() if v is empty]
        if missing:
            raise ArgumentError(
                f"{self.name} misses {', '.join(map(repr, missing))}",
                fix="pass every operand and every static value without a default",
            )
        return {n: given[n] for n in names}, statics

    def specialise(
        self, given: dict[str, Any], statics: dict[str, Any]
    ) -> tuple[Specialisation, dict[str, ArrayInfo | spec | Any]]:
        """The specialisation for arguments, and what is known of each; raises `ArgumentError` for what the kernel does not take."""
        types: list[tuple[str, Global | ScalarType | None]] = []
        known: dict[str, Any] = {}
        lengths: dict[str, tuple[int, str]] = {}
        for name, pattern in self.signature.runtime:
            value = given[name]
            if value is None and not isinstance(pattern, DType):
                types.append((name, None))  # the kernel sees None
                known[name] = None
                continue
            if isinstance(pattern, DType):
                types.append((name, ScalarType(pattern)))
                known[name] = self._scalar(name, pattern, value)
                continue
            info = value if isinstance(value, spec) else self._describe(name, value)
            known[name] = info
            types.append((name, self._tensor(name, pattern, info, lengths)))
        return Specialisation(tuple(types), tuple(sorted(statics.items()))), known

    def _describe(self, name: str, value: Any) -> ArrayInfo:
        try:
            return describe(value)
        except TypeError as error:
            raise ArgumentError(
                f"{self.name}: operand {name!r} is {type(value).__name__}: {error}",
                fix="pass a NumPy, torch, CuPy or JAX array",
            ) from None

    def _scalar(self, name: str, dtype: DType, value: Any) -> Any:
        if dtype.kind in "iu" and not isinstance(value, (int, np.integer)):
            raise ArgumentError(f"{self.name}: {name!r} is {value!r}, where {dtype} is needed", fix="pass a Python int")
        if not isinstance(value, (bool, int, float, np.number, np.bool_)):
            raise ArgumentError(
                f"{self.name}: {name!r} is {type(value).__name__}, where {dtype} is needed", fix="pass a Python number"
            )
        low, high = {"i": (-(2 ** (dtype.bits - 1)), 2 ** (dtype.bits - 1)), "u": (0, 2**dtype.bits)}.get(
            dtype.kind, (0, 0)
        )
        if dtype.kind in "iu" and not low <= value < high:
            raise ArgumentError(
                f"{self.name}: {name!r} is {value}, which {dtype} cannot hold",
                fix=f"pass {low} to {high - 1}, or make the parameter pk.i64",
            )
        return float(value) if dtype.kind == "f" else int(value)

    def _tensor(
        self, name: str, pattern: GlobalPattern, info: ArrayInfo | spec, lengths: dict[str, tuple[int, str]]
    ) -> Global:
        where = f"{self.name}: operand {name!r}"
        shape = tuple(info.shape)
        dtype = info.dtype if isinstance(info.dtype, DType) else DTYPES.get(info.dtype)
        if dtype is None or dtype not in pattern.dtypes:
            raise ArgumentError(
                f"{where} is {info.dtype}", fix=f"it takes {' or '.join(d.name for d in pattern.dtypes)}"
            )
        if len(shape) != len(pattern.dims):
            raise ArgumentError(f"{where} has shape {shape}", fix=f"it takes {len(pattern.dims)} dimensions: {pattern}")
        if 0 in shape:
            raise ArgumentError(f"{where} is empty: shape {shape}", fix="every dimension is at least 1")
        if max(shape) >= 2**31:
            raise ArgumentError(
                f"{where} has a dimension of {max(shape)}: shape {shape}",
                fix="a dimension is less than 2**31 long: split it in two",
            )
        for dim, length in zip(pattern.dims, shape, strict=True):
            if isinstance(dim, int):
                if dim != length:
                    raise ArgumentError(f"{where} has shape {shape}", fix=f"it takes {pattern}")
                continue
            key = dim.name if isinstance(dim, static) else dim
            first = lengths.setdefault(key, (length, name))
            if first[0] != length:
                raise ArgumentError(
                    f"{where} has {key} = {length}, operand {first[1]!r} has {key} = {first[0]}",
                    fix=f"dimension {key} must agree: {pattern}",
                )
        strides = info.strides
        if strides is not None and shape[-1] > 1 and strides[-1] != 1:
            raise ArgumentError(
                f"{where} has strides {tuple(strides)} for shape {shape}",
                fix="the last dimension must be contiguous: pass x.contiguous()",
            )
        if strides is not None and any(s < 0 for s in strides):
            raise ArgumentError(f"{where} has negative strides {tuple(strides)}", fix="pass a copy")
        return global_type(pattern, dtype, shape, _alignment(info, dtype))

    # From a specialisation to a program -----------------------------------------------------------------

    def program(self, *args: Any, **named: Any) -> Program:
        """The program for arguments (arrays, or `pk.spec`s that stand for them)."""
        given, statics = self.arguments(args, named)
        specialisation, known = self.specialise(given, statics)
        return self._program(specialisation, known)

    def _program(self, specialisation: Specialisation, known: dict[str, Any]) -> Program:
        statics = dict(specialisation.statics)
        warps, cluster = self._option("warps", known, statics, 4), self._dims("cluster", known, statics)
        extra = {
            k: self._option(k, known, statics, None)
            for k in ("blocks_per_sm", "registers", "debug")
            if k in self.options
        }
        if debugging():
            extra["debug"] = True
        key = (self.key(specialisation), warps, cluster, *extra.values())
        with self._lock:
            if key not in self._programs:
                notes = {n: _misaligned(x) for n, x in known.items() if isinstance(x, (ArrayInfo, spec))}
                program = trace(
                    self.function, dict(specialisation.types), statics, notes, warps=warps, cluster=cluster, **extra
                )
                prepare(program)
                self._programs[key] = program
            return self._programs[key]

    def _option(self, name: str, known: dict[str, Any], statics: dict[str, Any], default: Any) -> Any:
        """An option of the decorator: a value, or a function of the arguments and static values."""
        value = self.options.get(name, default)
        return value(**{n: _argument(x) for n, x in known.items()}, **statics) if callable(value) else value

    def _dims(self, option: str, known: dict[str, Any], statics: dict[str, Any]) -> Dim3:
        value = self._option(option, known, statics, (1, 1, 1))
        dims = tuple(int(x) for x in (value if isinstance(value, (tuple, list)) else (value,)))
        dims = (*dims, 1, 1, 1)[:3]
        if any(d < 1 for d in dims):
            raise ArgumentError(
                f"{self.name}: {option} is {dims}", fix="every grid dimension is at least 1: are the arguments empty?"
            )
        return dims  # type: ignore[return-value]

    def cuda(self, *args: Any, arch: str = "sm_90a", **named: Any) -> str:
        """The CUDA C for arguments or specs."""
        return self._text(self.program(*args, **named), arch)

    def _text(self, program: Program, arch: str) -> str:
        check_shared(program, int(arch[3:5]))
        return writer.write(program, arch)

    def compile(self, *args: Any, arch: str = "sm_90a", **named: Any) -> Cubin:
        """The cubin for arguments or specs, from the cache or the compiler. Needs no GPU."""
        return cache.load_or_compile(self.cuda(*args, arch=arch, **named), arch, ())

    def key(self, specialisation: Specialisation) -> Any:
        """What a program depends on: the specialisation, what the function refers to, and static functions by what they do."""
        statics = tuple(
            (name, fingerprint(x) if isinstance(x, FunctionType) else (type(x), x))
            for name, x in specialisation.statics
        )
        return specialisation.types, statics, fingerprint(self.function)

    @cached_property
    def by_value(self) -> bool:
        """Whether an option, such as the grid, is a function of a scalar operand's value."""
        scalars = {name for name, pattern in self.signature.runtime if isinstance(pattern, DType)}
        return any(
            mentions(option, scalars) if isinstance(option, FunctionType) else True
            for option in self.options.values()
            if callable(option)
        )

    # Running --------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **named: Any) -> None:
        """Runs the kernel: on the GPU of its CUDA arrays, on the simulated GPU for NumPy (and CPU) arrays."""
        if self._again is None or not self._again.repeat(args, named):
            self._run(args, named)

    def launcher(self, *args: Any, **named: Any) -> Launch | None:
        """What launches the kernel for the pointers and the numbers of arguments that look like these, in their order.

        Only after a call with such arguments on a GPU, else None. It returns False, and has done nothing, where the
        kernel is no longer what it was; who calls it knows that the arrays look like these, and that they are aligned.
        """
        return None if self._again is None else self._again.launcher(args, named)

    def _run(self, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        given, statics = self.arguments(args, named)
        specialisation, known = self.specialise(given, statics)
        devices = {name: x.device for name, x in known.items() if isinstance(x, ArrayInfo)}
        if len(set(devices.values())) > 1:
            listed = ", ".join(f"{n} on {'the CPU' if d is None else f'GPU {d}'}" for n, d in devices.items())
            raise ArgumentError(
                f"{self.name}: operands lie on different devices: {listed}", fix="move them to one device"
            )
        if any(isinstance(x, spec) for x in known.values()):
            raise ArgumentError(
                f"{self.name}: a pk.spec has no elements to run on", fix="use .program, .cuda or .compile with specs"
            )
        if not devices or next(iter(devices.values())) is None:
            self.simulate(*args, **named)
            return
        call = launch_once(self, specialisation, known, statics)
        with self._lock:
            self._again = self._again or Again(self)
            self._again.remember(args, named, call)

    def simulate(
        self, *args: Any, seed: int | None = None, progress: Callable[[float], None] | None = None, **named: Any
    ) -> Any:
        """Runs on the simulated GPU with all hazard checks; returns its report. Outputs are written in place.

        A `seed` shuffles what may happen in any order; `progress` is told which fraction of the blocks has run.
        """
        from .sim import simulate

        given, statics = self.arguments(args, named)
        specialisation, known = self.specialise(given, statics)
        program = self._program(specialisation, known)
        check_shared(program, 90)  # the most that any GPU has
        check_outputs(program, known)
        arrays = {
            n: as_numpy(value, n, writable=x.kind == "jax") if isinstance(x := known[n], ArrayInfo) else x
            for n, value in given.items()
        }
        return simulate(program, arrays, self._dims("grid", known, statics), seed=seed, progress=progress)

    def bind(self, *args: Any, **named: Any) -> Callable[[], None]:
        """A launcher for these arguments with everything checked: calling it only launches."""
        given, statics = self.arguments(args, named)
        specialisation, known = self.specialise(given, statics)
        return bind(self, specialisation, known, given, statics)


def mentions(function: FunctionType, names: set[str]) -> bool:
    """Whether a function with the arguments of a kernel by name reads any of `names`: one it names, or all that are left."""
    code = function.__code__
    count = code.co_argcount + code.co_kwonlyargcount
    rest = count + bool(code.co_flags & inspect.CO_VARARGS)
    left = code.co_varnames[rest : rest + bool(code.co_flags & inspect.CO_VARKEYWORDS)]
    return bool(names & set(code.co_varnames[:count])) or any(i.argval in left for i in dis.get_instructions(code))


def _argument(x: Any) -> Any:
    if isinstance(x, (ArrayInfo, spec)):
        dtype = x.dtype if isinstance(x.dtype, DType) else DTYPES[x.dtype]
        batch, depth, rows, cols = (1,) * (4 - len(x.shape)) + tuple(x.shape)
        return Argument(batch, depth, rows, cols, dtype)
    return x


def _alignment(info: ArrayInfo | spec, dtype: DType) -> int:
    """What the pointer and all strides but the last are multiples of, in bytes, at most 16."""
    if isinstance(info, spec):
        bits = info.align
        shape, strides = info.shape, info.strides
        if strides is None:
            strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    else:
        bits, shape, strides = info.pointer | 16, info.shape, info.strides
    for length, stride in zip(shape[:-1], strides[:-1], strict=True):
        if length > 1:
            bits |= stride * dtype.size
    return min(16, bits & -bits)


def _misaligned(x: ArrayInfo | spec) -> str:
    """Why TMA could not take a tensor; nothing where it could."""
    dtype = x.dtype if isinstance(x.dtype, DType) else DTYPES.get(x.dtype)
    return misaligned(x.shape, x.strides, dtype.size if dtype else 1, None if isinstance(x, spec) else x.pointer)


def kernel(
    function: Callable[..., Any] | None = None,
    *,
    warps: Any = 4,
    grid: Any = (1, 1, 1),
    cluster: Any = (1, 1, 1),
    **options: Any,
) -> Any:
    """Makes a kernel of a function: `@pk.kernel(warps=8, grid=lambda q, **_: (q.rows // 64, q.batch))`.

    `grid` and `cluster` are up to three ints, or a function of the arguments by name (tensors as `Argument`s, scalars,
    static values). `warps` is an int or a function of the static values. Options: `blocks_per_sm` (how many blocks
    share a multiprocessor: bounds registers), `registers` (at most, a thread), `debug` (bounded waits, assertions on
    the GPU, see `gpu/debug_waits.py`), `pdl` (may begin before the kernel ahead of it has ended:
    `pk.wait_for_previous`).
    """
    unknown = set(options) - {"blocks_per_sm", "registers", "debug", "pdl"}
    if unknown:
        raise TraceError(
            f"@pk.kernel has no option {', '.join(sorted(unknown))}",
            fix="options: warps, grid, cluster, blocks_per_sm, registers, debug, pdl",
        )
    settings = {"warps": warps, "grid": grid, "cluster": cluster, **options}
    if function is not None:
        return Kernel(function, settings)
    return lambda f: Kernel(f, settings)
