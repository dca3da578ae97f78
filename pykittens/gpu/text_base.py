"""What all parts of the writer share: the lines written so far, identifiers, and what the architecture has."""

from __future__ import annotations

import itertools
from functools import cached_property
from typing import Any

from ..architectures import FEATURES, Architecture, having
from ..errors import Frame, ResourceError
from ..ops.scalars import literal
from ..program import Operand, Program, TensorMapSpec, Value
from ..program.interfaces import Statement
from ..types import DType, i32
from . import c_text


class TextBase:
    """The text of one kernel for one architecture, as far as it is written."""

    def __init__(self, program: Program, arch: Architecture):
        self.program, self.arch, self.debug = program, arch, program.debug
        self.required: set[str] = set()  # features that the kernel cannot do without
        self.lacking: tuple[str, Statement] | None = None  # the first that the architecture has not, and who wants it
        self.out: list[str] = []
        self.support: dict[str, str] = {}  # texts before the kernel by first use, and the line of the author's own
        self.names: dict[Value, str] = {}
        self.maps: dict[TensorMapSpec, str] = {}
        self.numbers = itertools.count(1)
        self.frame: Frame | None = None  # the Python line that makes what is written now

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

    def map_name(self, spec: Any) -> str:
        """C identifier of a tensor map parameter."""
        if spec not in self.maps:
            self.maps[spec] = self.fresh("map")
        return self.maps[spec]

    def scalar(self, x: Operand, dtype: DType | None = None) -> str:
        """A scalar operand as a C expression; a Python number as a literal of `dtype`."""
        return self[x] if isinstance(x, Value) else literal(x, dtype or i32)

    @cached_property
    def _mentioned(self) -> set[Value]:
        return {value for op in self.program.walk() for value in op.operands()}

    def used(self, value: Value) -> bool:
        """Whether any operation takes a value."""
        return value in self._mentioned

    def has(self, feature: str) -> bool:
        """Whether the architecture has a feature, one of `architectures.FEATURES`."""
        assert feature in FEATURES, feature
        return feature in self.arch.features

    def require(self, feature: str, op: Statement) -> None:
        """Notes what an operation cannot do without; where the architecture lacks it, `refuse_lacking` follows."""
        self.required.add(feature)
        if not self.has(feature):
            self.lacking = self.lacking or (feature, op)

    def refuse_lacking(self) -> None:
        """Raises for the first feature that is missing, when all that the kernel needs are known: the fix names the
        architectures that have them together.
        """
        if self.lacking is None:
            return
        feature, op = self.lacking
        named = having(*self.required) or having(feature)
        fix = f"compile for {' or '.join(named)}"
        raise ResourceError(f"{FEATURES[feature]}: {self.arch} has none", fix=fix, location=op.location)
