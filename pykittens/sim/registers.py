"""The registers of one gang, as an operation's NumPy face sees them.

A gang is a run of warps in lockstep. A register value is one array whose first axis counts the units of its scope;
a scalar is a Python number where all warps agree, else an array with one item per warp. Under a divergent branch
a `Mask` chooses warps: operands come cut down to those, results are put back among the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import Diagnosis, OutOfBoundsError, UninitializedError
from ..program import Value
from ..program.interfaces import Statement
from ..types import RegisterTile, RegisterVector, ScalarType
from .block import BlockState
from .engines import Queue
from .memory import Address
from .steps import Step


class WarpMask:
    """The warps of a gang that run a divergent branch."""

    def __init__(self, warps: np.ndarray):
        self.warps, self.key, self.count = warps, warps.tobytes(), int(warps.sum())
        self._units: dict[tuple[int, bool], tuple[np.ndarray, bool]] = {}

    def units(self, span: int, single: bool = False) -> tuple[np.ndarray, bool]:
        """The units that are wholly here, and whether some are here in part. Of a `single` one only the first warp
        counts.
        """
        found = self._units.get((span, single))
        if found is None:
            found = self._units[span, single] = self._find(span, single)
        return found

    def _find(self, span: int, single: bool) -> tuple[np.ndarray, bool]:
        whole = self.warps.reshape(-1, span)
        if single:
            return np.flatnonzero(whole[:, 0]), False
        full = whole.all(axis=1)
        return np.flatnonzero(full), bool((whole.any(axis=1) != full).any())


@dataclass(frozen=True)
class Flying:
    """A register value that an engine reads or writes until `group` of `queue` is joined."""

    mode: str
    done: str
    queue: Queue
    group: int
    step: Step


class GangRegisters:
    """`env` holds the values of a gang of `warps` warps of `block`, the first of which is `first`, in a role that
    begins at `role_first`.
    """

    def __init__(self, block: BlockState, first: int, warps: int, role_first: int, env: dict[Value, Any]):
        self.block, self.first, self.warps, self.role_first, self.env = block, first, warps, role_first, env
        self.agents = block.first_agent + first + np.arange(warps)
        self.mask: WarpMask | None = None
        self.given: dict[Value, Any] = {}  # what it began with
        self.flying: dict[Value, Flying] = {}
        self.alone = False  # one thread of the warp runs it
        self.changes = 0  # how often these warps have changed something that others may look at
        self.looked: dict[str, Any] = {}  # elements of memory, by name, and what they last held
        self.wrote: list[bool] = []  # of the last atomic: which units have written
        self.step: Step
        self.span, self.units = 1, warps  # of the operation that runs: warps of a unit, and active units
        self.chosen: np.ndarray | None = None  # the active units, where they are not all

    def begin(self, step: Step) -> None:
        """Turns to an operation: which units of its scope take part."""
        self.step = step
        span = self.span = min(step.span, self.warps)
        if self.mask is None:
            self.units, self.chosen = self.warps // span, None
            return
        self.chosen, partial = self.mask.units(span, step.single)
        self.units = len(self.chosen)
        if partial or (step.span > self.warps and not step.single):
            raise Diagnosis(
                f"{step.op.spelled} is a collective under a divergent branch: only {self.mask.count} of "
                f"the warps of its {step.op.scope} come to it",
                fix="let all warps of the scope take the branch (a condition that is the same for all), or move the "
                "operation out of it",
                location=step.op.location,
            )

    # Registers and scalars ----------------------------------------------------------------------------

    def _value(self, value: Value) -> Any:
        try:
            return self.env[value]
        except KeyError:
            op = self.step.op
            raise UninitializedError(
                f"{op.spelled} uses {value.label}, which these warps never made",
                fix="make it before the branch or role that uses it",
                location=op.location,
                also={"it is made at": value.location},
            ) from None

    def __getitem__(self, value: Value) -> np.ndarray:
        """A register operand: (units, *shape)."""
        array: np.ndarray = self._value(value)
        return array if self.chosen is None else array[self.chosen]

    def scalar(self, x: Any) -> Any:
        """A scalar operand: a number, or one for each active warp."""
        if not isinstance(x, Value):
            return x
        value = self._value(x)
        return value[self.mask.warps] if self.mask is not None and isinstance(value, np.ndarray) else value

    def unit_scalar(self, x: Any) -> Any:
        """A scalar operand: a number, or one for each active unit."""
        return self._per_unit(self._value(x), x) if isinstance(x, Value) else x

    def _per_unit(self, value: Any, of: Value) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        if self.span == 1:
            return value if self.chosen is None else value[self.chosen]
        rows = value.reshape(-1, self.span)
        rows = rows if self.chosen is None else rows[self.chosen]
        first = rows[:, :1]
        if ((rows != first) & ((rows == rows) | (first == first))).any():  # NaN is the same as NaN
            op = self.step.op
            raise Diagnosis(
                f"{op.spelled}: {of.label} differs between the warps of one {op.scope}: {rows[0].tolist()}",
                fix=f"use a value that is the same for the whole {op.scope}, or do the operation on a warp",
                location=op.location,
                also={"it is made at": of.location},
            )
        return rows[0, 0].item() if len(rows) == 1 else rows[:, 0]

    def per_warp(self, array: np.ndarray) -> Any:
        """One value per active unit, as a scalar of its warps."""
        return array[0] if len(array) == 1 else np.repeat(array, self.span)

    def finish(self, step: Step, out: Any) -> None:
        """Stores what an operation returned: one array per result, or one, or nothing."""
        if step.result is not None:
            self.bind(step.result, out)
        elif step.results:
            for value, array in zip(step.results, out, strict=True):
                self.bind(value, array)

    def poison(self, value: Value) -> None:
        """The result of an operation that has not finished: no number at all."""
        type = value.type
        assert isinstance(type, (RegisterTile, RegisterVector))
        bits = np.full((self.units, *type.shape, type.dtype.size), 0xFF, np.uint8)
        self.bind(value, bits.view(type.dtype.numpy)[..., 0])

    def bind(self, value: Value, new: Any) -> None:
        """Stores a result."""
        type = value.type
        if isinstance(type, (RegisterTile, RegisterVector)):
            self.env[value] = new if self.chosen is None else self._among(None, new, type)
        elif isinstance(new, Address):
            self.env[value] = new
        else:
            self.env[value] = self._scatter(_plain(new), None)

    def assign(self, value: Value, new: Any) -> None:
        """Changes a register value or variable in place."""
        type = value.type
        if isinstance(type, ScalarType):
            new = _plain(new)
            if type.dtype.kind == "f":
                new = new.astype(np.float32) if isinstance(new, np.ndarray) else np.float32(new)
            self.env[value] = (
                new if self.mask is None else self._scatter(np.broadcast_to(new, self.mask.count), self._value(value))
            )
            return
        assert isinstance(type, (RegisterTile, RegisterVector))
        if self.chosen is not None:
            new = self._among(self._value(value), new, type)
        self.env[value] = (
            new
            if new.shape[0] == self.warps // self.span
            else np.broadcast_to(new, (self.warps // self.span, *type.shape))
        )

    def _among(self, old: np.ndarray | None, new: np.ndarray, type: RegisterTile | RegisterVector) -> np.ndarray:
        full = np.zeros((self.warps // self.span, *type.shape), type.dtype.numpy) if old is None else old.copy()
        full[self.chosen] = new
        return full

    def _scatter(self, new: Any, old: Any) -> Any:
        if self.mask is None or not isinstance(new, np.ndarray):
            return new
        full = np.zeros(self.warps, new.dtype) if old is None else np.array(np.broadcast_to(old, self.warps))
        full[self.mask.warps] = new
        return full

    def choose(self, condition: Any, a: Any, b: Any) -> Any:
        """a where the scalar condition holds, else b."""
        return np.where(condition, a, b) if isinstance(condition, np.ndarray) else (a if condition else b)

    def check_index(self, index: Any, count: int, op: Statement) -> None:
        """Raises `OutOfBoundsError` for an index outside of `count` items."""
        low, high = (index.min(), index.max()) if isinstance(index, np.ndarray) else (index, index)
        if low < 0 or high >= count:
            name = next((v.label for v in op.operands()), op.name)
            raise OutOfBoundsError(
                f"index {int(low if low < 0 else high)} of {name}, which has {count}",
                fix=f"keep it within 0 to {count - 1}",
                location=op.location,
            )


def _plain(x: Any) -> Any:
    """A scalar result in the form scalars are kept in: Python ints and bools, float32; arrays int64, bool, float32."""
    if isinstance(x, np.ndarray) and x.ndim:
        return x.astype(np.int64) if x.dtype.kind in "iu" and x.dtype != np.int64 else x
    kind = np.asarray(x).dtype.kind
    return int(x) if kind in "iu" else bool(x) if kind == "b" else np.float32(x)
