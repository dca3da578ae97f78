"""The C of registers: how tiles, vectors and scalars are declared, and how an element is read, stored and converted.

A float or int tile is an array of its thread's elements in fragment order; bf16 and f16 tiles hold pairs in 32-bit
words.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..architectures import having
from ..errors import ResourceError
from ..layouts import Sym
from ..ops.conversion import convert_c
from ..program import Value
from ..types import DType, RegisterTile, RegisterVector, ScalarType
from . import c_text
from .prelude import FP8
from .text_base import TextBase


class RegisterText(TextBase):
    """C for what registers hold, and for the same elements in memory."""

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
            both = f"{text(Sym('(2 * i)'))}, {text(Sym('(2 * i + 1)'))}"
            self.line(f"PK_UNROLL for (int i = 0; i < {n // 2}; i++) {name}[i] = pk_pack_{type.dtype}({both});")
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

    # In memory

    def _need_fp8(self) -> None:
        self.required.add("fp8 conversions")
        if not self.has("fp8 conversions"):
            self.refuse_lacking()
            where = (self.frame,) if self.frame is not None else None
            raise ResourceError(
                f"8-bit floats: {self.arch} cannot convert them",
                fix=f"compile for {' or '.join(having('fp8 conversions'))}, or copy them without converting",
                location=where,
            )
        self.prelude(FP8)

    def from_memory(self, text: str, memory: DType, held: DType) -> str:
        """An element as it lies in memory, as an element of `held`, such as `element` gives.

        16-bit floats of one dtype are moved, not converted: they stay u16, which `pk_pack_bf16` takes as well as
        floats.
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

    def pair_from_memory(self, text: str, memory: DType, held: DType) -> str:
        """Two 8-bit floats, as they lie in memory, as a word of two 16-bit floats: both converted at once."""
        self._need_fp8()
        both = f"pk_f16_of_{memory}x2({text})"
        return both if held.name == "f16" else f"pk_bf16_of_f16({both})"

    def pairs_from_memory(self, text: str, memory: DType, low: str, high: str) -> str:
        """A statement: two words of two f16 become the four 8-bit floats of a word. The compiler takes its upper half
        without a shift."""
        self._need_fp8()
        return f"pk_f16_of_{memory}x4({text}, {low}, {high});"

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
        if dtype.bits == 64:
            return f"__longlong_as_double(pk_bits({text}))" if dtype.kind == "f" else f"({dtype.c})pk_bits({text})"
        return f"({dtype.c})({text})" if dtype.bits == 8 and dtype.kind in "iu" else text

    def raw(self, text: str, dtype: DType) -> str:
        """The memory type of `dtype` as unsigned bits."""
        if dtype.bits == 32:
            return f"__float_as_uint({text})" if dtype.kind == "f" else f"(u32)({text})"
        if dtype.bits == 64:
            return f"pk_words({f'__double_as_longlong({text})' if dtype.kind == 'f' else text})"
        return f"(u8)({text})" if dtype.bits == 8 else text
