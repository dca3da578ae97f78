"""`@pk.kernel`: a Python function that runs on a GPU for CUDA arrays and on the simulated GPU for NumPy arrays.

A kernel is traced once per specialisation: dtypes, static dimensions, alignment and static values. The same
program then goes to the simulator or, as CUDA C, to the compiler and its cache.
"""

from __future__ import annotations

import inspect
import os
import sys
import threading
from collections.abc import Callable, Hashable
from functools import cached_property
from importlib import import_module
from threading import get_ident
from types import FunctionType
from typing import Any, NoReturn, overload
from weakref import WeakSet

from ..architectures import SIMULATED, architecture
from ..errors import ArgumentError, TraceError, public, shortened
from ..gpu import cache, writer
from ..gpu.compiler import Cubin
from ..gpu.debug_waits import debugging
from ..interop.arrays import ArrayInfo, as_numpy
from ..loading import uncollected
from ..passes import prepare
from ..passes.shared_plan import check_shared
from ..program import Program
from ..trace.bytecode import instructions
from ..trace.operands import check_outputs
from ..trace.signature import Signature, read_signature
from ..trace.tracer import trace
from ..types import DType
from .again import Again
from .arguments import Specialisation, bind_arguments, seen_by_options, spec, specialise, why_misaligned
from .dimensions import RESIDENT, SWITCHES, Dim3, dimensions, resident, switch, whole
from .dimensions import warps as block_warps
from .entry_points import Built, entry_point, find, keep, kept_as
from .gradients import check_gradients, overwritten
from .identity import Identity, leaf_of
from .launch import Launch, bind, call_for, launch_once
from .memory import Memory
from .recording import watchers

_kernels: WeakSet[Kernel] = WeakSet()


def _after_fork() -> None:
    """The threads that held locks are not in the child."""
    for known in _kernels:
        known._lock = threading.RLock()


def _before_fork() -> None:
    """A module that another thread is loading would stay half loaded, and locked, in the child: this waits for it."""
    for name, module in list(sys.modules.items()):
        if name.startswith("pykittens.") and getattr(module.__spec__, "_initializing", False):
            import_module(name)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)


class Kernel:
    """A kernel function and its programs, one per specialisation. Made by `@pk.kernel`."""

    @public
    def __init__(self, function: Callable[..., Any], options: dict[str, Any]):
        if not isinstance(function, FunctionType):
            fact = f"pk.kernel of {function!r}, which is no Python function"
            raise TraceError(fact, fix="decorate a `def`: what else there is may be called in it")
        self.function, self.options = function, options
        self.name = function.__name__
        self.__doc__, self.__name__, self.__wrapped__ = function.__doc__, function.__name__, function
        self.signature: Signature = read_signature(function)
        self.forget()
        self.__module__, self.__qualname__ = function.__module__, function.__qualname__
        self._lock = threading.RLock()
        _kernels.add(self)

    def __repr__(self) -> str:
        return f"<kernel {self.name}({', '.join(name for name, _ in self.signature.runtime)})>"

    # From a specialisation to a program -----------------------------------------------------------------

    def forget(self) -> None:
        """As if it had never been called."""
        self.memory = Memory()
        self._again = Again(self)

    def __reduce__(self) -> str:
        """By name, as functions: copies are the kernel itself, and another process finds it in its module."""
        return self.__qualname__

    @public
    def program(self, /, *args: Any, **named: Any) -> Program:
        """The program for arguments (arrays, or `pk.spec`s that stand for them)."""
        given, statics = bind_arguments(self.signature, args, named, self.function.__kwdefaults__)
        specialisation, known = specialise(self.signature, given, statics)
        return self.program_for(specialisation, known)

    def program_for(self, specialisation: Specialisation, known: dict[str, Any]) -> Program:
        """The program for a `specialisation`, traced once; `known`: what is known of each argument."""
        options = self._block_options(specialisation, known)
        key = (self.key(specialisation), *options.items())
        with self._lock:
            if (program := self.memory.programs.get(key)) is None:
                notes = {n: why_misaligned(x) for n, x in known.items() if isinstance(x, (ArrayInfo, spec))}
                types, statics = dict(specialisation.types), dict(specialisation.statics)
                with uncollected():
                    program = trace(self.function, types, statics, notes, **options)
                    prepare(program)
                self.memory.programs.keep(key, program)
            return program

    def built_for(self, specialisation: Specialisation, known: dict[str, Any], arch: str) -> Built:
        """The program for a `specialisation` (`known`: what is known of each argument), ready to be loaded on GPUs of
        an architecture, `arch`: what an earlier process kept, else traced and compiled.
        """
        options = self._block_options(specialisation, known)
        key = (self.key(specialisation), *options.items())
        if (built := self.memory.built.get((key, arch))) is None:
            name = "" if options.get("debug") else kept_as(arch, self.name, *key)
            if (built := find(name)) is None:
                program = self.program_for(specialisation, known)
                built = Built(entry_point(program), self.compile_program(program, arch))
                if name and name == kept_as(arch, self.name, self.key(specialisation), *options.items()):
                    keep(name, built)  # tracing has changed nothing that it reads, nor has another thread meanwhile
            self.memory.built.keep((key, arch), built)
        return built

    def _block_options(self, specialisation: Specialisation, known: dict[str, Any]) -> dict[str, Any]:
        """What the decorator's options say of a block: a part of what a program depends on."""
        statics = dict(specialisation.statics)
        cluster = self.dims("cluster", known, statics)
        warps = block_warps(self.name, self._option("warps", known, statics, 4))
        options: dict[str, Any] = {"warps": warps, "cluster": cluster}
        for name in (*RESIDENT, *SWITCHES):
            if name in self.options:
                value = self._option(name, known, statics, None)
                if value is not None:
                    options[name] = (resident if name in RESIDENT else switch)(self.name, name, value)
        if debugging():
            options["debug"] = True
        return options

    def _option(self, name: str, known: dict[str, Any], statics: dict[str, Any], default: Any) -> Any:
        """An option of the decorator: a value, or a function of the arguments and static values."""
        value = self.options.get(name, default)
        if not callable(value):
            return value
        arguments = {**{n: seen_by_options(x) for n, x in known.items()}, **statics}
        taken = inspect.signature(value).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
            arguments = {n: x for n, x in arguments.items() if n in taken}
        try:
            inspect.signature(value).bind(**arguments)
        except TypeError as error:
            fix = f"take the kernel's arguments by name: lambda {next(iter(known), 'x')}: ..."
            fact = f"{self.name}: the function for {name} does not take the kernel's arguments: {error}"
            raise ArgumentError(fact, fix=fix) from None
        return value(**arguments)

    def __getitem__(self, grid: Any) -> NoReturn:
        """Triton's spelling of a launch."""
        fix = f"give the grid to the decorator, @pk.kernel(grid=...), and call {self.name}(...)"
        raise ArgumentError(f"{self.name}[...], where a kernel has no items", fix=fix)

    def dims(self, option: str, known: dict[str, Any], statics: dict[str, Any]) -> Dim3:
        """The `option` "grid" or "cluster" for arguments (what is `known` of them, and `statics`), along x, y, z."""
        return dimensions(self.name, option, self._option(option, known, statics, (1, 1, 1)))

    @public
    def cuda(self, /, *args: Any, **named: Any) -> str:
        """The CUDA C for arguments or specs, and for `arch="sm_90a"` or another."""
        own = self._own(named, arch=SIMULATED.name)
        return self.text(self.program(*args, **named), **own)

    def text(self, program: Program, arch: str) -> str:
        """A `program`'s CUDA C. `ResourceError` where a block of the architecture `arch` cannot hold it."""
        check_shared(program, architecture(arch))
        return writer.write(program, arch)

    @public
    def compile(self, /, *args: Any, **named: Any) -> Cubin:
        """The cubin for arguments or specs, and for `arch="sm_90a"` or another, from the cache or the compiler.
        Needs no GPU.
        """
        own = self._own(named, arch=SIMULATED.name)
        return self.compile_program(self.program(*args, **named), **own)

    def compile_program(self, program: Program, arch: str) -> Cubin:
        """The cubin of a `program` for an architecture, `arch`."""
        return cache.load_or_compile(self.text(program, arch), architecture(arch).name, ())

    def _own(self, named: dict[str, Any], **settings: Any) -> dict[str, Any]:
        """A method's own settings, taken out of what it was called with. A kernel's parameter of such a name is the
        kernel's.
        """
        theirs = {name for name, _ in (*self.signature.runtime, *self.signature.static)}
        return {name: default if name in theirs else named.pop(name, default) for name, default in settings.items()}

    @property
    def identity(self) -> Identity:
        """That of the function and of what the options call, as they are now."""
        return self.memory.identity.of(self.function, *(x for x in self.options.values() if callable(x)))

    def key(self, specialisation: Specialisation) -> Hashable:
        """What a program depends on: the specialisation, and the content of the function and of static values."""
        leaves = tuple((name, leaf_of(x)) for name, x in specialisation.statics)
        own, others = self.beside({name: x for name, x in specialisation.statics if leaf_of(x) is None})
        return specialisation.types, leaves, own, *others

    def beside(self, statics: dict[str, Any]) -> tuple[Identity, list[Identity]]:
        """The kernel's identity beside `statics`, those of its static values that are objects, and theirs."""
        if not statics:
            return self.identity, []
        try:
            own = self.identity
        except TraceError:
            for name, x in statics.items():  # a default is named as what it is passed as
                self.memory.identities.of(x, static=True, label=name)
            raise
        return self.memory.identities.beside(own, statics)

    @cached_property
    def by_value(self) -> frozenset[str]:
        """The scalar operands of which an option, such as the grid, may read the value."""
        scalars = {name for name, pattern in self.signature.runtime if isinstance(pattern, DType)}
        options = [option for option in self.options.values() if callable(option)]
        found = [mentioned(x, scalars) if isinstance(x, FunctionType) else scalars for x in options]
        return frozenset[str]().union(*found)

    # Running --------------------------------------------------------------------------------------------

    def __call__(self, /, *args: Any, **named: Any) -> None:
        """Runs the kernel: on the GPU of its CUDA arrays, on the simulated GPU for NumPy (and CPU) arrays."""
        try:
            if watchers and (watcher := watchers.get(get_ident())):
                watcher(self, args, named)
            elif not self._again.repeat(args, named):
                self._run(args, named)
        except Exception as error:  # as `public` does, which costs a call
            raise shortened(error)  # noqa: B904

    def launcher(self, /, *args: Any, **named: Any) -> Launch | None:
        """What launches the kernel for the pointers and the numbers of arguments that look like these, in their order.

        Only after a call with such arguments on a GPU, else None. It returns False, and has done nothing, where the
        kernel is no longer what it was; who calls it knows that the arrays look like these, and that they are aligned.
        """
        return self._again.launcher(args, named)

    def _run(self, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        given, statics = bind_arguments(self.signature, args, named, self.function.__kwdefaults__)
        specialisation, known = specialise(self.signature, given, statics)
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
            self.simulate_with(args, named)
            return
        call = call_for(self, specialisation, known, statics)
        check_gradients(call.entry, given)
        launch_once(call, known)
        outputs = [given[name] for name in call.entry.outputs]
        if tell := overwritten(outputs):
            tell(outputs)
        with self._lock:
            self._again.remember(args, named, call)

    @public
    def simulate(self, /, *args: Any, **named: Any) -> Any:
        """Runs on the simulated GPU with all hazard checks; returns its report. Outputs are written in place.

        A `seed=` shuffles what may happen in any order; `progress=` is told which fraction of the blocks has run. A
        kernel with parameters of these names gets them itself: see `simulate_with`.
        """
        return self.simulate_with(args, named, **self._own(named, seed=None, progress=None))

    def simulate_with(
        self,
        args: tuple[Any, ...],
        named: dict[str, Any],
        *,
        seed: int | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> Any:
        """`simulate(*args, **named)` with `seed` and `progress`, whatever the kernel's parameters are called."""
        from ..sim import simulate

        if seed is not None:
            seed = whole(self.name, "seed", seed)
        given, statics = bind_arguments(self.signature, args, named, self.function.__kwdefaults__)
        specialisation, known = specialise(self.signature, given, statics)
        program = self.program_for(specialisation, known)
        entry = entry_point(program)
        check_shared(program, SIMULATED)
        check_outputs(entry.name, entry.outputs, known, entry.location)
        check_gradients(entry, given)
        arrays = {
            n: as_numpy(value, n, writable=x.kind == "jax") if isinstance(x := known[n], ArrayInfo) else x
            for n, value in given.items()
        }
        report = simulate(program, arrays, self.dims("grid", known, statics), seed=seed, progress=progress)
        outputs = [given[name] for name in entry.outputs]
        if tell := overwritten(outputs):
            tell(outputs)
        return report

    @public
    def bind(self, /, *args: Any, **named: Any) -> Callable[[], None]:
        """A launcher for these arguments with everything checked: calling it only launches, on the current stream.

        It is frozen at binding: the arrays' memory, the numbers and static values, and all that the kernel's function
        reaches are those of now, whatever changes later. The arrays are kept alive; their elements are read when it is
        called. Several threads may call it at once, each on its stream.

        Raises what a call would raise, and `ArgumentError` for arrays that are not on a GPU.
        """
        given, statics = bind_arguments(self.signature, args, named, self.function.__kwdefaults__)
        specialisation, known = specialise(self.signature, given, statics)
        return bind(self, specialisation, known, given, statics)


def mentioned(function: FunctionType, names: set[str]) -> set[str]:
    """Which of `names` a function with the arguments of a kernel by name may read: those it names, or all that are
    left.
    """
    code = function.__code__
    count = code.co_argcount + code.co_kwonlyargcount
    rest = count + bool(code.co_flags & inspect.CO_VARARGS)
    left = code.co_varnames[rest : rest + bool(code.co_flags & inspect.CO_VARKEYWORDS)]
    if left and any(i.argval in left for i in instructions(code)):
        return names
    return names & set(code.co_varnames[:count])


@overload
def kernel(function: Callable[..., Any], /) -> Kernel: ...


@overload
def kernel(
    *, warps: Any = 4, grid: Any = (1, 1, 1), cluster: Any = (1, 1, 1), **options: Any
) -> Callable[[Callable[..., Any]], Kernel]: ...


def kernel(
    function: Callable[..., Any] | None = None,
    *,
    warps: Any = 4,
    grid: Any = (1, 1, 1),
    cluster: Any = (1, 1, 1),
    **options: Any,
) -> Any:
    """Makes a kernel of a `function`: `@pk.kernel(warps=8, grid=lambda q, **_: (q.rows // 64, q.batch))`.

    `grid` and `cluster` are up to three ints, or a function of the arguments by name (tensors as `Argument`s, scalars,
    static values). `warps` is an int or a function of the static values. `options`: `blocks_per_sm` (how many blocks
    share a multiprocessor: bounds registers), `registers` (at most, a thread), `debug` (assertions on the GPU, and
    waits that end after 5 seconds, PYKITTENS_PATIENCE, saying where and for whom), `pdl` (may begin before the kernel
    ahead of it has ended: `pk.wait_for_previous`), `cooperative` (all blocks of the grid run at once, so that they may
    wait for one another; a grid that does not fit is refused when it is launched).

    Raises `TraceError` for an option that there is not; values are looked at when the kernel is called.
    """
    unknown = set(options) - {"blocks_per_sm", "registers", "debug", "pdl", "cooperative"}
    if unknown:
        raise TraceError(
            f"@pk.kernel has no option {', '.join(sorted(unknown))}",
            fix="options: warps, grid, cluster, blocks_per_sm, registers, debug, pdl, cooperative",
        )
    settings = {"warps": warps, "grid": grid, "cluster": cluster, **options}
    if function is not None:
        return Kernel(function, settings)
    return lambda f: Kernel(f, settings)
