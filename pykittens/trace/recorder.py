"""The recording of a kernel: what program is being traced, in which region, by which threads.

Operations are recorded by `record`, the only door into a program: it notes the user's line, checks
that operands are visible here, applies the type rule, and makes the results.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import CodeType, FrameType
from typing import Any, NoReturn, ParamSpec

from ..errors import Frame, KernelError, TraceError, TypeRuleError, errors_made, user_frame_objects
from ..ops.addressing import check_place
from ..program import Block, Buffer, Op, Place, Program, Scope, Value
from ..types import BarrierType, Global, ScalarType, SharedTile, SharedVector, Type
from .loop_driver import collected

P = ParamSpec("P")
_state = threading.local()
# By code object and instruction, which Python has at hand; a line it looks up. The code is kept, so that its id is its.
_frames: dict[tuple[int, int], tuple[Frame, CodeType]] = {}
make_value: Callable[[Any], Value] = Value  # replaced by handle_types.py: the handle with operators for each type


def here() -> tuple[Frame, ...]:
    """The user's line now, innermost frame first (cached: tracing asks for every operation)."""
    found = []
    for frame in user_frame_objects(4):
        code = frame.f_code
        known = _frames.get((id(code), frame.f_lasti))
        if known is None:
            line = Frame(code.co_filename, frame.f_lineno, code.co_name)
            known = _frames[id(code), frame.f_lasti] = (line, code)
        found.append(known[0])
    return tuple(found)


class Recorder:
    """A trace in progress. `block` is the open region, `warps` the size of the current role (or block)."""

    def __init__(self, program: Program):
        self.program = program
        self.entry: FrameType | None = None  # which called the kernel function: what is outside of it is no part of it
        self.block = program.body
        self.warps = program.warps
        self.first_warp = 0
        self.role: str | None = None
        self.role_level = 0
        self.error: KernelError | None = None  # found where it could not be raised (a closed generator)
        self.raised: list[
            KernelError
        ] = []  # errors made while tracing: the kernel may not go on as if nothing had happened
        self.verifying: list[
            Block
        ] = []  # in the second recording of a loop, the first: inner loops need not be verified again
        self.cache: dict[Any, Value] = {}
        self.open: list[tuple[str, tuple[Frame, ...]]] = []  # regions begun and not ended, outermost first
        self.hooks: list[Callable[[Op], None]] = []  # called with every operation recorded
        self.finish: list[Callable[[Program], None]] = []  # called when the whole kernel has been recorded
        self.role_blocks: list[Block] = [program.body]  # regions of the open roles, the kernel's first
        self.role_warpgroups = False  # whether the current role was given as warpgroups
        self.waiting: list[Region | Loop] = []  # contexts that were made and not yet entered

    def role_block(self) -> Block:
        """The region of the current role, or the kernel's."""
        return self.role_blocks[-1]

    def tracing(self) -> bool:
        """Whether this is the trace in progress."""
        return getattr(_state, "recorder", None) is self

    def check(self) -> None:
        """Raises what was found earlier and could not be raised there."""
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        if self.raised:
            raise self.raised[0]

    def visible(self, value: Value) -> bool:
        """Whether a value made in another region can be used here: only in the region that made it, and inside it."""
        block: Block | None = self.block
        while block is not None:
            if value.block is block:
                return True
            block = block.parent
        return value.block is None and not self.foreign(value)

    def foreign(self, value: Value) -> bool:
        """Whether a value was made while another kernel was traced, or this one for other arguments."""
        if value.block is not None:
            block = value.block
            while block.parent is not None:
                block = block.parent
            return block is not self.program.body
        if isinstance(value.type, Global):
            return not any(p.value is value for p in self.program.parameters)
        if isinstance(value.type, (SharedTile, SharedVector, BarrierType)):
            return not any(b.value is value for b in self.program.buffers)
        return False

    def record(self, op: Op) -> Op:
        self.check()
        op.location = here()
        for value in op.operands():
            if not self.visible(value):
                self._invisible(value)
        try:
            for place in vars(op).values():
                if isinstance(place, Place):
                    check_place(place, type(op).__name__.lower(), op.spelled)
            types = op.types()
        except TypeRuleError as error:
            name_locals(user_frame_objects())
            error.also.update(
                {f"{v.name} is {v.type}, made at": v.location for v in op.operands() if v.name and v.location}
            )
            raise
        op.results = tuple(make_value(t) for t in types)
        for result in op.results:
            result.location, result.block, result.producer = op.location, self.block, op
        for hook in self.hooks:
            hook(op)
        self.block.ops.append(op)
        return op

    def _invisible(self, value: Value) -> NoReturn:
        """Raises for a value that is not visible here: made in the pass of a loop before this, or in a region that
        has ended.
        """
        name_locals(user_frame_objects())
        if self.foreign(value):
            raise TraceError(
                f"{value.label} was made while another kernel was traced, or this one for other arguments",
                fix="make it inside the kernel: tiles and tensors do not outlive the trace that made them",
                also={"it was made at": value.location},
            )
        name, block = value.name if value.name.isidentifier() else "x", value.block
        while block is not None and not any(block is first for first in self.verifying):
            block = block.parent
        scalar = isinstance(value.type, ScalarType)
        inside = (
            f"a pk.var: {name} = pk.var(pk.{value.type}, ...) before, {name}[:] = ... inside"
            if scalar
            else f"{name}[:] = ..."
        )
        if block is not None:
            raise TraceError(
                f"{value.label} is rebound in this loop: each pass would use what the pass before it made",
                fix=f"make it before the loop and change it in place, with {inside}",
                also={"it is made at": value.location},
            )
        raise TraceError(
            f"{value.label} is used outside the region that made it",
            fix=f"make it before the loop or branch, and change it inside with {inside}",
            also={"it was made at": value.location},
        )

    @contextmanager
    def region(self, kind: str) -> Iterator[Block]:
        """Opens a new region; operations go there until it ends."""
        inner = Block(parent=self.block)
        outer, self.block = self.block, inner
        self.open.append((kind, here()))
        depth = len(self.open)
        try:
            yield inner
        except BaseException as error:
            if self.error is None and not self.raised and not isinstance(error, GeneratorExit) and self.tracing():
                self.error = TraceError(
                    f"{error!r} left a {kind} and was caught outside of it: what was recorded inside is lost",
                    fix="catch it inside the region, or let it end the kernel",
                )
            raise
        finally:
            if len(self.open) > depth and self.error is None and self.tracing():
                kind_open, where = self.open[-1]
                self.error = TraceError(
                    f"a {kind_open} begun here is still open where its {kind} ends",
                    fix="end inner regions first",
                    location=where,
                )
            del self.open[depth - 1 :]
            self.block = outer

    def check_entered(self) -> None:
        """Refuses a context that was made and never entered: what its author meant to be inside is not."""
        if self.waiting:
            first = self.waiting[0]
            raise TraceError(
                f"{first.what} is never entered, so that it changes nothing",
                fix=f"write `{first.how}:` around what belongs to it",
                location=first.location,
            )

    def buffer(self, type: Type, count: int, align: int, name: str) -> Value:
        """Allocates shared memory: `count` items of a type."""
        value = make_value(type)
        value.name, value.location = name, here()
        self.program.buffers.append(Buffer(value, count, align))
        return value


class Region(AbstractContextManager[Any]):
    """A word that is written `with word(...):`. The trace ends with an error where one was made and not entered."""

    def __init__(self, what: str, inner: AbstractContextManager[Any]) -> None:
        self.what, self.inner, self.location = what, inner, here()
        self.how = f"with {what}(...)"
        current().waiting.append(self)

    def __repr__(self) -> str:
        return f"<{self.how} as x: before it is entered>"

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{self.what} has no attribute {name!r} before it is entered: write `{self.how} as x:`")

    def __enter__(self) -> Any:
        waiting = current().waiting
        if self not in waiting:
            raise TraceError(
                f"{self.what} is entered twice", fix=f"write `with {self.what}(...):` again", location=here()
            )
        waiting.remove(self)
        return self.inner.__enter__()

    def __exit__(self, *error: Any) -> bool | None:
        return self.inner.__exit__(*error)


def region(what: str) -> Callable[[Callable[P, Iterator[Any]]], Callable[P, AbstractContextManager[Any]]]:
    """Makes a context of a generator function, as `contextmanager` does: one that has to be entered."""

    def decorate(function: Callable[P, Iterator[Any]]) -> Callable[P, AbstractContextManager[Any]]:
        make = contextmanager(function)

        @functools.wraps(function)
        def made(*args: P.args, **named: P.kwargs) -> AbstractContextManager[Any]:
            return Region(what, make(*args, **named))

        return made

    return decorate


class Loop(Iterator[Any]):
    """A word that is written `for i in word(...):`. The trace ends with an error where one was made and not begun."""

    def __init__(self, what: str, inner: Iterator[Any]) -> None:
        self.what, self.inner, self.location = what, inner, here()
        self.how = f"for _ in {what}(...)"
        current().waiting.append(self)

    def __next__(self) -> Any:
        waiting = current().waiting
        begins = self in waiting
        if begins:
            waiting.remove(self)
        given = next(self.inner)  # which looks at its own arguments first
        if begins:
            self._check(collected())
        return given

    def __iter__(self) -> Iterator[Any]:
        self._check(collected())
        return self

    def _check(self, found: tuple[Frame, ...]) -> None:
        if found:
            raise TraceError(
                f"{self.what} goes through a function or an expression of Python, which is given one pass, recorded "
                "twice, whatever there are",
                fix=f"write `for ... in {self.what}(...):` as a statement, and change tiles in it in place",
                location=found,
            )

    def __reversed__(self) -> NoReturn:
        fix = "count down, with a step of -1: `for i in pk.range(n - 1, -1, -1):`"
        raise TraceError(f"{self.what} goes one way only", fix=fix, location=here())

    def _only_for(self, *other: Any) -> NoReturn:
        """A loop of the kernel is no sequence, and no context."""
        raise TraceError(
            f"{self.what} is a loop of the kernel, and nothing else",
            fix=f"write `for ... in {self.what}(...):` as a statement",
            location=here(),
        )

    __len__ = __getitem__ = __contains__ = __enter__ = __exit__ = _only_for


def run_time_loop(what: str) -> Callable[[Callable[P, Iterator[Any]]], Callable[P, Iterator[Any]]]:
    """Makes a run-time loop of a generator function: one that has to be begun."""

    def decorate(function: Callable[P, Iterator[Any]]) -> Callable[P, Iterator[Any]]:
        @functools.wraps(function)
        def made(*args: P.args, **named: P.kwargs) -> Iterator[Any]:
            return Loop(what, function(*args, **named))

        return made

    return decorate


def name_locals(frames: list[FrameType]) -> None:
    """Names traced values after the Python variables that hold them, for diagnoses and readable code."""
    for frame in frames:
        for name, value in frame.f_locals.items():
            if isinstance(value, Value) and not value.name and name.isidentifier():
                value.name = name


def current() -> Recorder:
    """The trace in progress; an error outside of a kernel."""
    recorder: Recorder | None = getattr(_state, "recorder", None)
    if recorder is None:
        raise TraceError(
            "tile operations run inside a kernel", fix="call them from a function decorated with @pk.kernel"
        )
    return recorder


def recording() -> bool:
    return getattr(_state, "recorder", None) is not None


def record(op: Op) -> Op:
    """Adds an operation to the kernel being traced."""
    return current().record(op)


def result(op: Op) -> Any:
    """Adds an operation and returns its one result."""
    return record(op).results[0]


@contextmanager
def tracing(program: Program) -> Iterator[Recorder]:
    """Makes `program` the one that operations are recorded into."""
    before = getattr(_state, "recorder", None)
    _state.recorder = recorder = Recorder(program)
    with errors_made(recorder.raised):
        try:
            yield recorder
        finally:
            _state.recorder = before
            recorder.entry = None  # whose locals know the recorder: in a circle all callers' arrays would live on


def scope_of(warps: int) -> Scope:
    """The scope of a tile spread over that many warps."""
    return Scope({1: "warp", 4: "warpgroup"}.get(warps, f"group({warps})"), warps)
