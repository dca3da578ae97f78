"""Passes over a program, one per file; `prepare` runs them in order."""

from ..program import Program
from .shared_plan import plan_shared


def prepare(program: Program) -> None:
    """All that a traced program needs before a back end takes it."""
    plan_shared(program)
