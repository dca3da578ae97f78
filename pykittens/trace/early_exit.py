"""Whether a `with` block ran to its end, or was left by `return`, `break` or `continue`.

Python calls `__exit__` in the same way for both. But the compiler gives every way out of the block its own call, and
what follows that call tells them apart: after the end of the block, Python goes on where it would also go on after an
exception that `__exit__` swallowed. So the bytecode after the running call is compared with the bytecode after the
block's exception handler. Nothing is found (and nothing refused) where the bytecode looks unlike that of Python 3.10 to
3.13.
"""

from __future__ import annotations

import dis
import linecache
import re
import sys
from functools import lru_cache
from types import CodeType, FrameType

from ..errors import Frame
from ..loading import dataclass
from .bytecode import instructions

_SKIPPED = {"NOP", "POP_TOP", "POP_BLOCK", "POP_EXCEPT", "EXTENDED_ARG", "CACHE"}
_JUMPS = {"JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_ABSOLUTE", "JUMP_BACKWARD_NO_INTERRUPT", "JUMP"}
_RETURNS = {"RETURN_VALUE", "RETURN_CONST"}
_ENDS = _JUMPS | _RETURNS | {"RAISE_VARARGS", "RERAISE"}  # behind which Python does not go on
_LEAVES = re.compile(r"\s*(return|break|continue)\b")


@dataclass(frozen=True)
class Site:
    """A `with` block being run: its frame, and the offset of the handler that sees the exceptions of its body."""

    frame: FrameType
    entered: int
    handler: int


class _Code:
    """The instructions of a code object, by offset."""

    def __init__(self, code: CodeType):
        self.list: list[dis.Instruction] = []
        self.index: dict[int, int] = {}
        self.lines: dict[int, int] = {}
        line, starts = code.co_firstlineno, dict(dis.findlinestarts(code))
        for i in instructions(code):
            line = self.lines[i.offset] = starts.get(i.offset) or line
            self.index[i.offset] = len(self.list)  # a jump to a prefix is one to the instruction behind it
            if i.opname not in ("CACHE", "EXTENDED_ARG"):
                self.list.append(i)
        table = getattr(dis, "_parse_exception_table", None)
        self.protected = list(table(code)) if table is not None else []  # Python 3.11 and newer

    def running(self, offset: int) -> int:
        """The number of the instruction that a frame is at; `offset` may be that of a cache behind it."""
        while offset not in self.index and offset > 0:
            offset -= 2
        return self.index.get(offset, 0)

    def handler(self, entered: int) -> int | None:
        """The handler of the `with` block that the instruction at `entered` enters."""
        n = self.running(entered)
        if n + 1 >= len(self.list):
            return None
        offset = self.list[n + 1].offset
        target = next((e.target for e in self.protected if e.start <= offset < e.end), None)
        if sys.version_info < (3, 11):  # no table: the innermost block that is begun before, and whose handler follows
            begun = [i for i in self.list[: n + 1] if i.opname in ("SETUP_WITH", "SETUP_FINALLY") and i.argval > offset]
            target = begun[-1].argval if begun else None
        if target is None or target not in self.index:
            return None
        first = self.list[self.index[target] : self.index[target] + 2]
        return target if any(i.opname == "WITH_EXCEPT_START" for i in first) else None

    def after_handler(self, handler: int) -> int | None:
        """Where Python goes on after the handler when `__exit__` swallows the exception."""
        for i in self.list[self.index[handler] : self.index[handler] + 6]:
            if i.opname.startswith("POP_JUMP") and "TRUE" in i.opname:
                return self.index.get(i.argval)
        return None

    def exit_call(self, offset: int) -> int | None:
        """The number of the instruction at `offset`, if it is the call `__exit__(None, None, None)`."""
        n = self.running(offset)
        if not self.list[n].opname.startswith("CALL"):
            return None
        before = [i for i in self.list[max(0, n - 4) : n] if i.opname != "PRECALL"][-3:]
        nones = [i.opname == "DUP_TOP" or (i.opname == "LOAD_CONST" and i.argval is None) for i in before]
        return n if len(nones) == 3 and all(nones) else None

    def _next(self, n: int) -> int:
        """The first instruction from number `n` on that does something: jumps and clean-up left out."""
        for _ in range(64):
            op = self.list[n]
            if op.opname in _JUMPS and op.argval in self.index:
                n = self.index[op.argval]
            elif op.opname in _SKIPPED and n + 1 < len(self.list):
                n += 1
            else:
                break
        return n

    def same(self, a: int, b: int) -> bool:
        """Whether Python does the same from instruction number `a` as from `b`."""
        for _ in range(64):
            a, b = self._next(a), self._next(b)
            if a == b:
                return True
            x, y = self.list[a], self.list[b]
            if (x.opname, x.argval) != (y.opname, y.argval):
                return False
            if x.opname in _RETURNS:
                return True
            a, b = a + 1, b + 1
        return False

    def last_line(self, call: int) -> int:
        """The line on which the body was left: that of the last instruction before the call of `__exit__`."""
        own = self.lines[self.list[call].offset]
        n = self._before(call)
        while (
            n > 0
            and self.lines[self.list[n].offset] == own
            and (
                self.list[n].opname in _JUMPS
                or self.list[n].opname in ("LOAD_CONST", "DUP_TOP", "PRECALL", "POP_BLOCK", "SWAP", "ROT_TWO", "NOP")
                or self.exit_call(self.list[n].offset)
                or (self.list[n].opname == "POP_TOP" and self.exit_call(self.list[n - 1].offset))
            )
        ):
            n = self._before(n)
        return self.lines[self.list[n].offset]

    def _before(self, n: int) -> int:
        """The instruction that Python comes from to number n: the one before, or a jump."""
        if n and self.list[n - 1].opname not in _ENDS:
            return n - 1
        jumps = (m for m, i in enumerate(self.list) if "JUMP" in i.opname and self.index.get(i.argval) == n)
        return next(jumps, n - 1)


_codes = lru_cache(maxsize=256)(_Code)


def entered(frames: list[FrameType]) -> list[Site]:
    """The `with` blocks that these frames are entering now."""
    found = []
    for frame in frames:
        handler = _codes(frame.f_code).handler(frame.f_lasti)
        if handler is not None:
            found.append(Site(frame, frame.f_lasti, handler))
    return found


def left_early(sites: list[Site]) -> Frame | None:
    """The line at which one of these blocks, whose `__exit__` runs now, was left before its end; None if all ended."""
    for site in sites:
        frame, code = site.frame, _codes(site.frame.f_code)
        call = code.exit_call(frame.f_lasti)
        after = code.after_handler(site.handler)
        if call is None or after is None:
            continue
        line = code.last_line(call)
        where = Frame(frame.f_code.co_filename, line, frame.f_code.co_name)
        if not code.same(call + 1, after):
            return where
        if line != frame.f_lineno and _LEAVES.match(linecache.getline(where.file, line)):
            return where  # nothing would be skipped here, but what is meant is not what happens
    return None
