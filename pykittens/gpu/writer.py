"""A program as CUDA C: one statement after another, each under the Python line that made it.

Operations write their own text (`Op.cuda`); the writer gives them identifiers (`text_base.py`), the elements of tiles
(`text_registers.py`) and the numbers of the running thread (`text_threads.py`). A shared tile is its 32-bit address.
"""

from __future__ import annotations

from ..architectures import architecture
from ..ops import control
from ..ops.mbarrier import MBARRIER
from ..passes.registers import at_launch
from ..program import Block, Op, Program, Value
from ..program.interfaces import Statement
from ..types import BarrierType, Global, ScalarType, bool_
from . import c_text
from .debug_waits import array_of, line_text, role_text, spins, support
from .prelude import PRELUDE
from .text_registers import RegisterText
from .text_threads import ThreadText


class Writer(RegisterText, ThreadText):
    """Collects the text of one kernel for one architecture."""

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
        if isinstance(op.step, int):
            more, then = "<" if op.step > 0 else ">", f"{i} += {op.step}"
        else:  # never past the largest number
            step = self.scalar(op.step, c)
            more, then = "<", f"{i} = {step} < {stop} - {i} ? {i} + {step} : {stop}"
        self.line(f'_Pragma("unroll 1") for ({c.c} {i} = {start}; {i} {more} {stop}; {then}) {{')
        self.block(op.body)
        self.line("}")

    def _role(self, op: control.Role) -> None:
        saved = self.first_warp, self.role_warps, self.role
        self.first_warp, self.role_warps, self.role = op.first, op.scope.warps, op.label
        self.line(
            f"if (warp_id >= {op.first} && warp_id < {op.first + op.scope.warps}) "
            f"{{{c_text.comment(f'role {op.label}')}"
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

    def bounded(self, op: Statement, condition: str, phase: str, barrier: Value) -> None:
        """Waits until the condition holds, in a debug build: not for ever, see `bounded.py`."""
        self.prelude(support())
        array, several = array_of(barrier)
        index = f"({self[barrier]} - {self[array]}) / {array.type.bytes}" if several else "-1"  # type: ignore[union-attr]
        role, line = role_text(self.program, self.role), line_text(op.location)
        about = f"{c_text.string(array.label)}, {index}, {phase}, {role}, {line}"
        self.line(f"for (const u64 since = pk_nanoseconds(); !{condition};) pk_bounded(since, {about});")

    @property
    def clustered(self) -> bool:
        """Whether blocks come in clusters."""
        return self.program.cluster != (1, 1, 1)

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
        self.refuse_lacking()
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
            item, count = f"{self[b.value]} + i * {b.item_bytes}", b.value.type.count
            self.line(f"for (int i = 0; i < {b.count}; i++) pk_mbarrier_init({item}, {count});")
        self.line('asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");')
        self.line("}")
        if self.clustered:
            # The fence has released the barriers: an arrival that releases again waits for all of the GPU's memory.
            meet = "barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.aligned;"
            self.line(f'asm volatile("{meet}" ::: "memory");')
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
