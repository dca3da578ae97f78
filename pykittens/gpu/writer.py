"""A program as CUDA C: one statement after another, each under the Python line that made it.

Operations write their own text (`Op.cuda`); the writer gives them names, element access, and the numbers of the
running thread. A float or int register tile is an array of its thread's elements in fragment order; bf16 and f16
tiles hold pairs in 32-bit words. A shared tile is its 32-bit address.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from ..architectures import FEATURES, Architecture, architecture, having
from ..errors import Frame, ResourceError
from ..layouts import Sym
from ..ops import control
from ..ops.conversion import convert_c
from ..ops.mbarrier import MBARRIER
from ..ops.scalars import literal
from ..passes.registers import at_launch
from ..program import Block, Op, Operand, Program, Scope, TensorMapSpec, Value
from ..program.interfaces import Statement
from ..types import BarrierType, DType, Global, RegisterTile, RegisterVector, ScalarType, bool_, i32
from . import c_text
from .debug_waits import array_of, line_text, role_text, spins, support
from .prelude import ELECT, FP8, PRELUDE


class Writer:
    """Collects the text of one kernel for one architecture."""

    def __init__(self, program: Program, arch: Architecture):
        self.program, self.arch, self.debug = program, arch, program.debug
        self.elected = False  # inside a role that one thread runs alone
        self.required: set[str] = set()  # features that the kernel cannot do without
        self.out: list[str] = []
        self.support: dict[
            str, str
        ] = {}  # texts before the kernel in the order of first use, and where the author's are
        self.names: dict[Value, str] = {}
        self.maps: dict[TensorMapSpec, str] = {}
        self.numbers = itertools.count(1)
        self.frame: Frame | None = None
        self.first_warp, self.role_warps, self.role = 0, program.warps, ""
        self.barriers: dict[
            Any, int
        ] = {}  # named barriers: first id by (first warp of the role, warps of the scope), or by value
        self.next_barrier = 1  # 0 is __syncthreads

    # Names --------------------------------------------------------------------------------------------

    def fresh(self, base: str) -> str:
        """A C identifier not used yet: the compiler's own base and a number."""
        return f"{base}_{next(self.numbers)}"

    def __getitem__(self, value: Value) -> str:
        """The identifier of a value. Its name is the author's: a comment where it is declared, see `c_text.py`."""
        if value not in self.names:
            self.names[value] = self.fresh("v")
        return self.names[value]

    def string(self, text: str) -> str:
        """A text as a C string literal."""
        return c_text.string(text)

    def line(self, text: str) -> None:
        self.out.append(text)

    def prelude(self, text: str, authored: bool = False) -> None:
        """Text to stand once before the kernel; of the author's own, messages name the line that gives it."""
        self.support.setdefault(text, self._line(self.frame) if authored and self.frame is not None else "")

    @staticmethod
    def _line(frame: Frame) -> str:
        return f"#line {frame.line} {c_text.string(frame.file)}"

    # Values -------------------------------------------------------------------------------------------

    def scalar(self, x: Operand, dtype: DType | None = None) -> str:
        """A scalar operand as a C expression; a Python number as a literal of `dtype`."""
        return self[x] if isinstance(x, Value) else literal(x, dtype or i32)

    def define(self, value: Value, text: str, mutable: bool = False, ctype: str = "") -> None:
        """Declares a scalar (or address) with its value."""
        if not ctype:
            assert isinstance(value.type, ScalarType)
            ctype = value.type.dtype.c
        note = c_text.comment(value.name)
        self.line(f"{'' if mutable else 'const '}{ctype} {self[value]} = {text};{note}")

    def declare(self, value: Value) -> str:
        """Declares the registers of a tile or vector."""
        type = value.type
        assert isinstance(type, (RegisterTile, RegisterVector))
        ctype, words = ("u32", -(-type.registers // 2)) if type.dtype.packed else (type.dtype.c, type.registers)
        self.line(f"{ctype} {self[value]}[{words}];{c_text.comment(value.name)}")
        return self[value]

    def element(self, x: Value, register: Any) -> str:
        """The element in register number `register` of this thread, as float (16-bit floats too), int or bool."""
        type = x.type
        assert isinstance(type, (RegisterTile, RegisterVector))
        return f"pk_get_{type.dtype}({self[x]}, {register})" if type.dtype.packed else f"{self[x]}[{register}]"

    def map(self, value: Value, text: Callable[[Sym], str], declare: bool = True) -> None:
        """Sets every register of a tile or vector to `text(register)`."""
        type = value.type
        assert isinstance(type, (RegisterTile, RegisterVector))
        if declare:
            self.declare(value)
        name, n = self[value], type.registers
        if not type.dtype.packed:
            self.line(f"PK_UNROLL for (int i = 0; i < {n}; i++) {name}[i] = {text(Sym('i'))};")
            return
        if n > 1:
            self.line(
                f"PK_UNROLL for (int i = 0; i < {n // 2}; i++) {name}[i] = pk_pack_{type.dtype}({text(Sym('(2 * i)'))}, {text(Sym('(2 * i + 1)'))});"
            )
        if n % 2:
            last = text(Sym(str(n - 1)))
            self.line(f"{name}[{n // 2}] = pk_pack_{type.dtype}({last}, {last});")

    def copy(self, target: Value, source: Value) -> None:
        """Copies all registers of a tile or vector, as they are."""
        type = target.type
        assert isinstance(type, (RegisterTile, RegisterVector))
        words = -(-type.registers // 2) if type.dtype.packed else type.registers
        self.line(f"PK_UNROLL for (int i = 0; i < {words}; i++) {self[target]}[i] = {self[source]}[i];")

    def store_pair(self, value: Value, pair: str, low: str, high: str) -> None:
        """Sets registers 2 * pair and 2 * pair + 1."""
        type = value.type
        assert isinstance(type, (RegisterTile, RegisterVector))
        name = self[value]
        if type.dtype.packed:
            self.line(f"{name}[{pair}] = pk_pack_{type.dtype}({low}, {high});")
        else:
            self.line(f"{name}[2 * {pair}] = {low}; {name}[2 * {pair} + 1] = {high};")

    # Memory representation ----------------------------------------------------------------------------

    def _need_fp8(self) -> None:
        self.required.add("fp8 conversions")
        if not self.has("fp8 conversions"):
            where = (self.frame,) if self.frame is not None else None
            raise ResourceError(
                f"8-bit floats: {self.arch} cannot convert them",
                fix=f"compile for {' or '.join(having('fp8 conversions'))}, or copy them without converting",
                location=where,
            )
        self.prelude(FP8)

    def from_memory(self, text: str, memory: DType, held: DType) -> str:
        """An element as it lies in memory, as an element of `held`, such as `element` gives.

        16-bit floats of one dtype are moved, not converted: they stay u16, which `pk_pack_bf16` takes as well as floats.
        """
        if memory.packed and memory is held:
            return f"(u16)({text})"
        if memory.bits == 8 and memory.kind == "f":
            self._need_fp8()
        if memory.bits == 8 and memory.kind == "i":  # lies in memory as unsigned bits
            text = f"({memory.c})({text})"
        if memory.kind == "f" and memory.bits < 32:
            text = f"pk_{memory}_float({text})"
        return convert_c(text, memory, held)

    def moved(self, x: Value, register: Any) -> str:
        """The element in register number `register`, to be moved as it is: a 16-bit float as u16."""
        packed = x.type.dtype.packed  # type: ignore[union-attr]
        return f"pk_half({self[x]}, {register})" if packed else self.element(x, register)

    def zero(self, memory: DType, held: DType) -> str:
        """What `from_memory` gives of a zero."""
        return "(u16)0" if memory.packed and memory is held else "0"

    def to_memory(self, text: str, memory: DType, held: DType) -> str:
        """An element of `held`, such as `element` gives, as it lies in memory."""
        if memory.bits == 8 and memory.kind == "f":
            self._need_fp8()
        value = convert_c(text, held, memory)
        return f"pk_float_{memory}({value})" if memory.kind == "f" and memory.bits < 32 else f"({memory.c})({value})"

    def stored(self, x: Value, register: Any, memory: DType) -> str:
        """The element in register number `register` as it lies in memory; 16-bit floats of one dtype are moved."""
        held = x.type.dtype  # type: ignore[union-attr]
        if memory.packed and memory is held:
            return self.moved(x, register)
        return self.to_memory(self.element(x, register), memory, held)

    def bits(self, text: str, dtype: DType) -> str:
        """Unsigned bits as the memory type of `dtype`."""
        if dtype.bits == 32:
            return f"__uint_as_float({text})" if dtype.kind == "f" else f"({dtype.c})({text})"
        return f"({dtype.c})({text})" if dtype.bits == 8 and dtype.kind in "iu" else text

    def raw(self, text: str, dtype: DType) -> str:
        """The memory type of `dtype` as unsigned bits."""
        if dtype.bits == 32:
            return f"__float_as_uint({text})" if dtype.kind == "f" else f"(u32)({text})"
        return f"(u8)({text})" if dtype.bits == 8 else text

    # The running thread -------------------------------------------------------------------------------

    lane = Sym("lane")

    def _relative(self) -> str:
        return f"(warp_id - {self.first_warp})" if self.first_warp else "warp_id"

    def warp(self, scope: Scope) -> Any:
        """Index of this warp in its unit of the scope (0 when the unit is one warp)."""
        if scope.warps == 1:
            return 0
        if scope.warps == self.role_warps:
            return Sym(self._relative())
        return Sym(f"({self._relative()} % {scope.warps})")

    def thread(self, scope: Scope) -> str:
        """Index of this thread in its unit of the scope."""
        if scope.warps == 1:
            return "lane"
        relative = f"(thread - {32 * self.first_warp})" if self.first_warp else "thread"
        return relative if scope.warps == self.role_warps else f"({relative} % {32 * scope.warps})"

    def unit(self, scope: Scope) -> str:
        """Which unit of the scope this thread belongs to, counted in its role."""
        if scope.warps == self.role_warps:
            return "0"
        return self._relative() if scope.warps == 1 else f"{self._relative()} / {scope.warps}"

    def elect(self, scope: Scope) -> str:
        """C that lets one thread of each unit of the scope run the next statement; empty where only one runs anyway."""
        if self.elected:
            return ""
        warp = self.warp(scope)
        return f"if ({self.one()}) " if scope.warps == 1 else f"if ({warp} == 0 && {self.one()}) "

    def one(self) -> str:
        """C that holds in one thread of a warp, always the same."""
        if not self.has("elect"):
            return "lane == 0"
        self.prelude(ELECT)
        return "pk_elect_one()"

    def has(self, feature: str) -> bool:
        """Whether the architecture has a feature, one of `architectures.FEATURES`."""
        assert feature in FEATURES, feature
        return feature in self.arch.features

    def require(self, feature: str, op: Statement) -> None:
        """Refuses an operation that this architecture lacks."""
        self.required.add(feature)
        if not self.has(feature):
            raise ResourceError(
                f"{FEATURES[feature]}: {self.arch} has none",
                fix=f"compile for {' or '.join(having(feature))}",
                location=op.location,
            )

    @property
    def clustered(self) -> bool:
        """Whether blocks come in clusters."""
        return self.program.cluster != (1, 1, 1)

    def barrier(self, op: Statement) -> str:
        """The statement in which the threads of the operation's scope meet."""
        warps = op.scope.warps
        if warps == 1:
            return "__syncwarp();"
        if warps == self.program.warps:
            return "__syncthreads();"
        key = (self.first_warp, self.role_warps, warps)
        if key not in self.barriers:
            self.barriers[key] = self._take_barriers(self.role_warps // warps, op)
        which = self.unit(op.scope)
        name = f"{self.barriers[key]}" if which == "0" else f"{self.barriers[key]} + {which}"
        return f'asm volatile("bar.sync %0, {warps * 32};" :: "r"({name}) : "memory");'

    def named(self, barrier: Value, index: Operand) -> str:
        """The number of a named barrier."""
        if barrier not in self.barriers:
            self.barriers[barrier] = self._take_barriers(getattr(barrier, "count", 1), None, barrier.location)
        return f"{self.barriers[barrier]} + {self.scalar(index, i32)}"

    def _take_barriers(self, count: int, op: Statement | None, where: Any = None) -> int:
        first = self.next_barrier
        self.next_barrier += count
        if self.next_barrier > 16:
            raise ResourceError(
                f"a block has 16 hardware barriers; this kernel uses {self.next_barrier}",
                fix="synchronise larger scopes, or use mbarriers",
                location=op.location if op is not None else where,
            )
        return first

    def bounded(self, op: Statement, condition: str, phase: str, barrier: Value) -> None:
        """Waits until the condition holds, in a debug build: not for ever, see `bounded.py`."""
        self.prelude(support())
        array, several = array_of(barrier)
        index = f"({self[barrier]} - {self[array]}) / {array.type.bytes}" if several else "-1"  # type: ignore[union-attr]
        about = f"{c_text.string(array.label)}, {index}, {phase}, {role_text(self.program, self.role)}, {line_text(op.location)}"
        self.line(f"for (const u64 since = pk_nanoseconds(); !{condition};) pk_bounded(since, {about});")

    # Statements ---------------------------------------------------------------------------------------

    def block(self, block: Block) -> None:
        """All operations of a region."""
        for op in block:
            self.statement(op)

    def statement(self, op: Op) -> None:
        if op.location and op.location[0] != self.frame:
            self.frame = op.location[0]
            self.line(self._line(self.frame))
        if isinstance(op, control.Range):
            self._range(op)
        elif isinstance(op, control.While):
            if self.debug and spins(op):
                self.prelude(support())
                about = f'"a loop to be left", -2, 0, {role_text(self.program, self.role)}, {line_text(op.location)}'
                self.line(f"for (const u64 since = pk_nanoseconds();; pk_bounded(since, {about})) {{")
            else:
                self.line("for (;;) {")
            if op.polls:  # ptxas moves no load past it
                self.line('asm volatile("fence.acq_rel.cta;" ::: "memory");')
            self.block(op.body)
            self.line("}")
        elif isinstance(op, control.BreakIf):
            self.line(f"if ({self.scalar(op.condition, bool_)}) break;")
        elif isinstance(op, control.When):
            self.line(f"if ({self.scalar(op.condition, bool_)}) {{")
            self.block(op.then)
            if op.otherwise.ops:
                self.line("} else {")
                self.block(op.otherwise)
            self.line("}")
        elif isinstance(op, control.Role):
            self._role(op)
        else:
            op.cuda(self)

    def _range(self, op: control.Range) -> None:
        assert isinstance(op.index.type, ScalarType)
        i, c = self[op.index], op.index.type.dtype
        start, stop = self.scalar(op.start, c), self.scalar(op.stop, c)
        self.line(
            f'_Pragma("unroll 1") for ({c.c} {i} = {start}; {i} {"<" if op.step > 0 else ">"} {stop}; {i} += {op.step}) {{'
        )
        self.block(op.body)
        self.line("}")

    def _role(self, op: control.Role) -> None:
        saved = self.first_warp, self.role_warps, self.role
        self.first_warp, self.role_warps, self.role = op.first, op.scope.warps, op.label
        self.line(
            f"if (warp_id >= {op.first} && warp_id < {op.first + op.scope.warps}) {{{c_text.comment(f'role {op.label}')}"
        )
        if op.registers:
            self.require("setmaxnreg", op)
            change = "dec" if op.registers < at_launch(self.program) else "inc"
            self.line(f'asm volatile("setmaxnreg.{change}.sync.aligned.u32 {op.registers};");')
        if op.elected:
            self.line(
                f"if (warp_id == {op.first} && {self.one()}) {{  // only single-thread operations: one thread runs them"
            )
            self.elected = True
        self.block(op.body)
        if op.elected:
            self.elected = False
            self.line("}")
        self.line("}")
        self.first_warp, self.role_warps, self.role = saved

    # The whole ----------------------------------------------------------------------------------------

    def text(self) -> str:
        """The whole source."""
        p = self.program
        parameters: list[tuple[str, str]] = []  # declaration, what people call it
        for q in p.parameters:
            if isinstance(q.value.type, Global):
                parameters.append((f"const __grid_constant__ pk_global {self[q.value]}", q.name))
            else:
                assert isinstance(q.value.type, ScalarType)
                parameters.append((f"const {q.value.type.dtype.c} {self[q.value]}", q.name))
        for spec in p.maps:
            note = f"map of {spec.tensor}, {spec.box[0]} x {spec.box[1]}"
            parameters.append((f"const __grid_constant__ pk_tensor_map {self.map_name(spec)}", note))
        for b in p.buffers:
            self[b.value]
            if isinstance(b.value.type, BarrierType):
                self.prelude(MBARRIER)
        self.block(p.body)
        body, self.out = self.out, []
        bounds = f"{p.threads}, {p.blocks_per_sm}"
        cluster = f" __cluster_dims__({', '.join(map(str, p.cluster))})" if p.cluster != (1, 1, 1) else ""
        name = f"pk_kernel_{c_text.ascii_name(p.name)}"
        self.line(f'extern "C" __global__ void __launch_bounds__({bounds}){cluster} {name}(')
        for i, (declaration, note) in enumerate(parameters):
            self.line(f"  {declaration}{',' * (i + 1 < len(parameters))}{c_text.comment(note)}")
        self.line(") {")
        self.line(
            # never negative
            f"const int thread = threadIdx.x & {(1 << (p.threads - 1).bit_length()) - 1}, lane = thread & 31;"
        )
        # Roles branch on it, and should do so as whole warps. Elsewhere it is cheaper to work out again than to keep.
        uniform = any(isinstance(op, control.Role) for op in p.walk())
        self.line(f"const int warp_id = {'__shfl_sync(0xffffffffu, thread >> 5, 0)' if uniform else 'thread >> 5'};")
        if p.buffers:
            self.line("extern __shared__ __align__(1024) unsigned char shared_memory[];")
            self.line("const u32 shared_base = pk_shared_address(shared_memory);")
            for b in p.buffers:
                note = c_text.comment(f"{b.value.name}: {b.count} x {b.item}, {b.bytes} bytes")
                self.line(f"const u32 {self[b.value]} = shared_base + {b.offset};{note}")
        self.prologue()
        support = "".join(f'{at}\n{text}\n#line 1 "kernel.cu"\n' if at else text for text, at in self.support.items())
        text = PRELUDE + support + "\n".join(self.out) + "\n" + _indented(body) + "\n}\n"
        return text

    def map_name(self, spec: Any) -> str:
        """C identifier of a tensor map parameter."""
        if spec not in self.maps:
            self.maps[spec] = self.fresh("map")
        return self.maps[spec]

    def prologue(self) -> None:
        """What every block does before its body: mbarriers begin to count, and all threads (of the cluster) see it."""
        barriers = [b for b in self.program.buffers if isinstance(b.value.type, BarrierType)]
        if not barriers:
            return
        self.line("if (threadIdx.x == 0) {")
        for spec in self.program.maps:  # on their way while the block sets itself up
            self.line(f'asm volatile("prefetch.tensormap [%0];" :: "l"(&{self.map_name(spec)}) : "memory");')
        for b in barriers:
            assert isinstance(b.value.type, BarrierType)
            self.line(
                f"for (int i = 0; i < {b.count}; i++) pk_mbarrier_init({self[b.value]} + i * {b.item_bytes}, {b.value.type.count});"
            )
        self.line('asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");')
        self.line("}")
        if self.clustered:
            self.line('asm volatile("barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;" ::: "memory");')
        else:
            self.line("__syncthreads();")


def _indented(lines: list[str]) -> str:
    """Lines with two spaces for each open brace; directives stay at the margin."""
    depth, out = 1, []
    for text in lines:
        if text.startswith("#"):
            out.append(text)
            continue
        leading = len(text) - len(text.lstrip("} "))
        closing = text[:leading].count("}")
        out.append("  " * max(depth - closing, 0) + text)
        depth += text.count("{") - text.count("}")
    return "\n".join(out)


def write(program: Program, arch: str) -> str:
    """The CUDA C of a program for an architecture such as "sm_89" or "sm_90a"."""
    return Writer(program, architecture(arch)).text()
