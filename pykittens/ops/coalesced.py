"""Loads and stores of coalesced tiles and row vectors: runs of neighbours a thread, as wide as the memory's alignment
allows.

Elements of a run move in accesses of up to 16 bytes; where registers hold what memory holds, nothing is converted.
Accesses to global memory are predicated and may carry a hint: "stream" for what is touched once and should displace
nothing in L1.
"""

from __future__ import annotations

from typing import Any

from ..errors import TypeRuleError
from ..layouts import Sym, fragment, vector_element
from ..program import CudaWriter, Place, Value
from ..types import Coalesced, RegisterTile, RegisterVector, SharedVector
from .addressing import MEMORY, VECTOR, GlobalText, memory_c, row_c, shared_address, vector_address, vector_bytes
from .conversion import convert_c

# hint: (load, store), PTX "Cache Eviction Priority Hints" and "Cache Operators"
HINTS = {
    "": ("ld.global", "st.global"),
    "stream": ("ld.global.L1::no_allocate", "st.global.cs"),
    "once": ("ld.global.cs", "st.global.wt"),
}
_REGISTERS = {
    16: ("v4.b32", ("x", "y", "z", "w")),
    8: ("v2.b32", ("x", "y")),
    4: ("b32", ("",)),
    2: ("b16", ("",)),
    1: ("b8", ("",)),
}


def check_hint(hint: str, register: RegisterTile | RegisterVector, memory: Value | Place) -> None:
    """Refuses a hint that does not exist, or where the access cannot carry one."""
    if hint not in HINTS:
        raise TypeRuleError(f"there is no cache hint {hint!r}", fix="use " + " or ".join(map(repr, HINTS)))
    if hint and not (isinstance(memory, Place) and isinstance(register.layout, Coalesced)):
        where = "global memory" if isinstance(memory, Place) else "shared memory"
        fix = "leave the hint out, or move a tile with layout=pk.coalesced(lanes, width) to or from a tensor"
        raise TypeRuleError(f"hint={hint!r} for a {register} and {where}", fix=fix)


def accesses(hint: str) -> str:
    """CUDA C of `ld_HINT<V>(address, inside)` and `st_HINT(address, value, inside)` for every width."""
    load, store = HINTS[hint]
    text = f"template<class V> __device__ __forceinline__ V pk_ld_{hint or 'plain'}(const void* a, bool inside);\n"
    for bytes_, (suffix, parts) in _REGISTERS.items():
        v, kind, n = VECTOR[bytes_], "h" if bytes_ <= 2 else "r", len(parts)
        word = "u16" if bytes_ <= 2 else "u32"
        names = [f"v{i}" for i in range(n)]
        registers = ", ".join(f"%{i}" for i in range(n))
        registers = f"{{{registers}}}" if n > 1 else registers
        clear = " ".join(f"mov.b{16 if bytes_ <= 2 else 32} %{i}, 0;" for i in range(n))
        outputs = ", ".join(f'"={kind}"({x})' for x in names)
        inputs = ", ".join(f'"{kind}"({x})' for x in names)
        unpack = " ".join(
            f"const {word} {x} = ({word})v{'.' + p if p else ''};" for x, p in zip(names, parts, strict=True)
        )
        pack = f"{v}{{{', '.join(names)}}}" if n > 1 else f"({v})v0"
        test = f"{{ .reg .pred p; setp.ne.b32 p, %{n + 1}, 0;"
        text += f"""
template<> __device__ __forceinline__ {v} pk_ld_{hint or "plain"}<{v}>(const void* a, bool inside) {{
  {word} {", ".join(names)};
  asm volatile("{test} {clear} @p {load}.{suffix} {registers}, [%{n}]; }}"
    : {outputs} : "l"(a), "r"((int)inside) : "memory");
  return {pack};
}}
__device__ __forceinline__ void pk_st_{hint or "plain"}(void* a, {v} v, bool inside) {{
  {unpack}
  asm volatile("{test} @p {store}.{suffix} [%{n}], {registers}; }}" :: {inputs}, "l"(a), "r"((int)inside) : "memory");
}}
"""
    return text


class Runs:
    """C for the runs of a coalesced tile or row vector that lies at `memory`: loop over them, their address and
    guard.
    """

    def __init__(
        self,
        c: CudaWriter,
        scope: Any,
        type: RegisterTile | RegisterVector,
        memory: Value | Place,
        hint: str,
        const: bool,
    ):
        assert isinstance(type.layout, Coalesced)
        c.prelude(MEMORY)
        self.c, self.memory, self.type, self.layout = c, memory, type, type.layout
        self.dtype = memory.type.dtype  # type: ignore[union-attr]
        width, size = self.layout.width, self.dtype.size
        self.g = GlobalText(c, memory, const) if isinstance(memory, Place) else None
        self.piece = min(width, (vector_bytes(memory) if isinstance(memory, Place) else 16) // size)
        self.bytes = self.piece * size
        self.count, self.pieces = type.registers // width, width // self.piece
        self.each = (type.cols if isinstance(type, RegisterTile) else type.length) // (self.layout.lanes * width)
        self.hint = hint or "plain"
        if self.g:
            c.prelude(accesses(hint))
        register = Sym("i") * width
        if isinstance(type, RegisterTile):
            self.row, self.col = fragment(type, c.warp(scope), c.lane, register)
            self.row = row_c(c, memory, type, self.row, register)
        else:
            self.row, self.col = Sym("0"), vector_element(type, c.warp(scope), c.lane, register)

    def open(self) -> None:
        self.c.line(f"PK_UNROLL for (int i = 0; i < {self.count}; i++) {{ const int r = {self.row}, x = {self.col};")

    def column(self, piece: int) -> str:
        return f"(x + {piece * self.piece})" if piece else "x"

    def inside(self, piece: int) -> str:
        """Whether all of a piece exists."""
        assert self.g is not None and isinstance(self.memory, Place)
        tests = self.g.row_tests("r")
        if self.g.cols_left:
            test = f"{self.column(piece)} + {self.piece} <= {self.g.cols_left}"
            dim, first = self.memory.type.padded[3], self.memory.first[3]
            if self.g.cols_before:
                test = f"{self.column(piece)} >= {self.g.cols_before} && {test}"
            elif isinstance(dim, int) and isinstance(first, int):  # only the last runs of a row can be outside
                test = f"(i % {self.each} < {(dim - first) // (self.layout.lanes * self.layout.width)} || {test})"
            if self.each == 1 and self.g.rows_left and not self.g.cols_before:  # one test a row instead of two
                tests[-1] = f"r < ({test} ? {self.g.rows_left} : (int)0x80000000)"
            else:
                tests.append(test)
        return " && ".join(tests) or "true"

    def ragged(self) -> bool:
        """Whether the end of the rows may cut a piece."""
        assert isinstance(self.memory, Place)
        dim = self.memory.type.padded[3]
        if self.memory.columns is not None:
            return self.piece > 1
        return (
            self.piece > 1 and not self.memory.inside_columns() and not (isinstance(dim, int) and dim % self.piece == 0)
        )

    def at(self, piece: int) -> str:
        assert self.g is not None
        return self.g.at("r", self.column(piece))

    def shared(self, piece: int) -> str:
        assert isinstance(self.memory, Value)
        if isinstance(self.memory.type, SharedVector):
            return vector_address(self.c, self.memory, self.column(piece))
        return shared_address(self.c, self.memory, "r", self.column(piece))

    def left(self, piece: int) -> str:
        assert self.g is not None
        tests = " && ".join(self.g.row_tests("r"))
        rows = f"({tests}) ? " if tests else ""
        return f"{rows}{self.g.cols_left} - {self.column(piece)}{' : 0' if rows else ''}"

    def before(self, piece: int) -> str:
        """How many elements of a piece lie before the columns that it is kept to."""
        assert self.g is not None
        return f"{self.g.cols_before} - {self.column(piece)}" if self.g.cols_before else "0"

    @property
    def whole_words(self) -> bool:
        """Whether 32-bit words move between registers and memory as they are."""
        return self.type.dtype == self.dtype and self.dtype.packed and self.piece > 1


def load_runs(c: CudaWriter, scope: Any, result: Value, source: Value | Place, hint: str) -> None:
    """Fills a coalesced tile or row vector from memory."""
    type = result.type
    assert isinstance(type, (RegisterTile, RegisterVector))
    runs = Runs(c, scope, type, source, hint, const=True)
    vector, t, width = VECTOR[runs.bytes], memory_c(runs.dtype), runs.layout.width
    runs.open()
    for p in range(runs.pieces):
        if runs.g is None:
            load = f"pk_ld_shared<{vector}>({runs.shared(p)})"
        else:
            load = f"pk_ld_{runs.hint}<{vector}>({runs.at(p)}, {runs.inside(p)})"
            if runs.ragged():
                load = (
                    f"({runs.inside(p)}) ? pk_ld_{runs.hint}<{vector}>({runs.at(p)}, true) : "
                    f"pk_load_tail<{vector}>({runs.at(p)}, {runs.left(p)})"
                )
        words = f"u16 h[{max(1, runs.bytes // 2)}]; u32 w[{max(1, runs.bytes // 4)}];"
        c.line(f"{{ union {{ {vector} v; {t} e[{runs.piece}]; {words} }} u; u.v = {load};")
        first = f"i * {width} + {p * runs.piece}"
        if runs.whole_words:
            c.line(f"PK_UNROLL for (int j = 0; j < {runs.piece // 2}; j++) {c[result]}[({first}) / 2 + j] = u.w[j]; }}")
        elif type.dtype.packed and runs.piece > 1 and runs.dtype.bits == 8 and runs.dtype.kind == "f":
            pair = c.pair_from_memory("u.h[j]", runs.dtype, type.dtype)
            c.line(f"PK_UNROLL for (int j = 0; j < {runs.piece // 2}; j++) {c[result]}[({first}) / 2 + j] = {pair}; }}")
        elif type.dtype.packed and runs.piece > 1:
            c.line(f"PK_UNROLL for (int j = 0; j < {runs.piece // 2}; j++) {{")
            c.store_pair(
                result,
                f"(({first}) / 2 + j)",
                c.from_memory("u.e[2 * j]", runs.dtype, type.dtype),
                c.from_memory("u.e[2 * j + 1]", runs.dtype, type.dtype),
            )
            c.line("} }")
        elif type.dtype.packed:  # single elements into halves of words: even ones first
            word, value = f"{c[result]}[({first}) / 2]", c.from_memory("u.e[0]", runs.dtype, type.dtype)
            pair = f"pk_pack_{type.dtype}({value}, {value})"
            c.line(f"{word} = {pair if p % 2 == 0 else f'({word} & 0xffffu) | ({pair} & 0xffff0000u)'}; }}")
        else:
            c.line(
                f"PK_UNROLL for (int j = 0; j < {runs.piece}; j++) {c[result]}[{first} + j] = "
                f"{c.from_memory('u.e[j]', runs.dtype, type.dtype)}; }}"
            )
    c.line("}")


def store_runs(c: CudaWriter, scope: Any, target: Value | Place, source: Value, hint: str) -> None:
    """A coalesced tile or row vector into memory."""
    type = source.type
    assert isinstance(type, (RegisterTile, RegisterVector))
    runs = Runs(c, scope, type, target, hint, const=False)
    vector, t, width = VECTOR[runs.bytes], memory_c(runs.dtype), runs.layout.width
    runs.open()
    for p in range(runs.pieces):
        first = f"i * {width} + {p * runs.piece}"
        c.line(f"{{ union {{ {vector} v; {t} e[{runs.piece}]; u32 w[{max(1, runs.bytes // 4)}]; }} u;")
        if runs.whole_words:
            c.line(f"PK_UNROLL for (int j = 0; j < {runs.piece // 2}; j++) u.w[j] = {c[source]}[({first}) / 2 + j];")
        elif runs.dtype.packed and runs.piece > 1:
            pair = (c.element(source, f"({first} + 2 * j{' + 1' if k else ''})") for k in (0, 1))
            low, high = (convert_c(x, type.dtype, runs.dtype) for x in pair)
            c.line(
                f"PK_UNROLL for (int j = 0; j < {runs.piece // 2}; j++) u.w[j] = pk_pack_{runs.dtype}({low}, {high});"
            )
        else:
            value = c.stored(source, f"({first} + j)", runs.dtype)
            c.line(f"PK_UNROLL for (int j = 0; j < {runs.piece}; j++) u.e[j] = {value};")
        if runs.g is None:
            c.line(f"pk_st_shared({runs.shared(p)}, u.v); }}")
        elif runs.ragged():
            c.line(
                f"if ({runs.inside(p)}) pk_st_{runs.hint}({runs.at(p)}, u.v, true); else pk_store_tail({runs.at(p)}, "
                f"u.v, {runs.left(p)}, {runs.before(p)}); }}"
            )
        else:
            c.line(f"pk_st_{runs.hint}({runs.at(p)}, u.v, {runs.inside(p)}); }}")
    c.line("}")
