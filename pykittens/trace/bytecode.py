"""The bytecode of Python functions, decoded once: both who looks for early exits and who looks for reads ask for it."""

import dis
from functools import lru_cache
from types import CodeType


@lru_cache(maxsize=256)
def instructions(code: CodeType) -> tuple[dis.Instruction, ...]:
    """The instructions of a code object, without those of the functions inside it."""
    return tuple(dis.get_instructions(code))
