"""The derivatives of operations (`Op.vjp`) against differences of their samples' formulas in float64.

    from pykittens.testing.derivatives import check_derivatives

    check_derivatives(MyOp)

A sample becomes a kernel that stores the operands' cotangents for random cotangents of the results. Along random
directions they must give what the formula's central difference gives, to what float32 (or the operands' dtype) holds.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..call.kernel import Kernel
from ..errors import TypeRuleError
from ..ops.samples import Sample
from ..program import Op
from ..trace import scopes
from ..trace.derivatives import vjp
from ..trace.memory import Tensor
from ..trace.recorder import record
from ..types import Coalesced, RegisterTile, RegisterVector, ScalarType, f32
from .conformance import UNITS, Arrays, Case

STEP = 1e-6  # of a central difference, in float64
DIRECTIONS = 3
TOLERANCE = {"f32": 2e-5, "bf16": 4e-3, "f16": 1e-3}  # of the sum of magnitudes


def differentiable(op: type[Op], sample: Sample) -> bool:
    """Whether floats in registers become floats in registers: what must have a derivative, or a reason to have none."""
    if sample.expected is None or {"special", "wide"} & set(sample.inputs.values()):  # differences need room
        return False
    case = Case(op, sample)
    effects = case.probe().effects()
    made = [*case.results, *(case.fields[name] for name in case.changed)]
    return not effects and bool(_floats(case)) and any(_float(type) for type in made)


def _float(x: Any) -> bool:
    return isinstance(x, (RegisterTile, RegisterVector, ScalarType)) and x.dtype.kind == "f"


def _floats(case: Case) -> list[str]:
    """The tensors that operands of floats are loaded from; no scalars beside coalesced tiles, which have no sum."""
    found, tile = [], next((x for x in (*case.fields.values(), *case.results) if isinstance(x, RegisterTile)), None)
    for name, x in case.fields.items():
        parts = {f"{name}{i}": part for i, part in enumerate(x)} if isinstance(x, tuple) else {name: x}
        for n, part in parts.items():
            whole = isinstance(part, ScalarType) and isinstance(getattr(tile, "layout", None), Coalesced)
            if _float(part) and not whole and not (name == "target" and case.changed):
                found.append(n)
    return found


class DerivativeCase(Case):
    """One sample of an operation, as a kernel that stores its operands' cotangents."""

    def _kernel(self) -> Kernel:
        self.inputs = _floats(self)
        for name in self.outputs:
            del self.tensors[name], self.patterns[name]
        self.made = [x for x in (*self.results, *(self.fields[name] for name in self.changed))]
        self.outputs = []
        for i, type in enumerate(self.made):
            shape = getattr(type, "shape", ())[: 1 if isinstance(type, RegisterVector) else 2]
            self._parameter(f"cotangent{i}", f32, (UNITS, *shape))
        for name in self.inputs:
            dtype, shape = self.tensors[name]
            partial = getattr(self.fields.get(name), "partial", False)
            self._parameter(f"d_{name}", dtype, shape[:-1] if partial else shape)
            self.outputs.append(f"d_{name}")

        def derivatives(**tensors: Tensor) -> None:
            handle = scopes.group(self.warps)
            unit, scope = handle.index, self._scope()
            fields = {name: self._operand(name, x, tensors, handle, unit) for name, x in self.fields.items()}
            flat = {k: v for name, x in fields.items() for k, v in _named(name, x)}
            scopes.block.sync()
            total: list[Any] = []
            for i, type in enumerate(self.made):  # each result by itself, its cotangents added
                wide = type if isinstance(type, ScalarType) else dataclasses.replace(type, dtype=f32)
                complete = dataclasses.replace(wide, partial=False) if getattr(wide, "partial", False) else wide
                seed = self._operand(f"cotangent{i}", complete, tensors, handle, unit)

                def function(*inputs: Any, i: int = i) -> Any:
                    op = record(self.op(scope, **fields))  # type: ignore[call-arg]
                    return [*op.results, *(fields[name] for name in self.changed)][i]

                _, pullback = vjp(function, *(flat[name] for name in self.inputs))
                found = pullback(seed)
                total = [a + b for a, b in zip(total, found, strict=True)] if total else [*found]
            for name, value in zip(self.outputs, total, strict=True):
                self._store(tensors[name], value, handle, unit)

        parameters = [
            inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=p)
            for n, p in self.patterns.items()
        ]
        derivatives.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return Kernel(derivatives, {"warps": UNITS * self.warps, "grid": (1, 1, 1), "cluster": (1, 1, 1)})

    def arrays(self) -> Arrays:
        """Elements for the operands, and for the results' cotangents."""
        chance = np.random.default_rng(len(self.name))
        given = {n: x for n, x in self.tensors.items() if n.startswith("cotangent")}
        held, self.tensors = self.tensors, {n: x for n, x in self.tensors.items() if n not in given}
        try:
            found = super().arrays()
        finally:
            self.tensors = held
        for name in self.inputs:  # differences have no room next to a pole
            x = found[name]
            found[name] = np.where(np.abs(x) < 0.1, np.copysign(0.1, x.astype(np.float32)), x).astype(x.dtype)
        return found | {n: chance.standard_normal(shape).astype(np.float32) for n, (_, shape) in given.items()}

    def wrong(self) -> list[str] | None:
        """What does not agree with differences of the formula, in words; None where there is nothing to compare."""
        try:
            arrays, cotangents = self.arrays(), self.simulate()
        except TypeRuleError as error:
            if str(error).startswith("the derivative of"):
                return None  # refused in words
            raise
        chance, found = np.random.default_rng(0), []
        for unit in range(UNITS):
            known = {"unit": unit, **{name: self._plain(name, x, arrays, unit) for name, x in self.fields.items()}}
            flat = {k: v for name, x in known.items() for k, v in _named(name, x)}
            if any(np.asarray(x).dtype == np.float32 for x in self._formula(known, {}, 0.0)):
                return None  # the formula rounds
            for _ in range(DIRECTIONS):
                turned = {name: chance.standard_normal(np.shape(flat[name])) for name in self.inputs}
                up, down = (self._formula(known, turned, step) for step in (STEP, -STEP))
                seeds = [np.asarray(arrays[f"cotangent{i}"][unit], np.float64) for i in range(len(up))]
                wanted = sum(_product(s, _slope(u, d)) for s, u, d in zip(seeds, up, down, strict=True))
                terms = [_outer(cotangents[f"d_{n}"][unit].astype(np.float64), v) for n, v in turned.items()]
                got, size = sum(float(x.sum()) for x in terms), sum(float(np.abs(x).sum()) for x in terms)
                allowed = max(TOLERANCE[self.tensors[name][0].name] for name in self.inputs)
                if not abs(got - wanted) <= allowed * (size + 1e-3):
                    found.append(f"{self}: the cotangents give {got}, differences {wanted}")
        return found

    def _formula(self, known: dict[str, Any], turned: dict[str, Any], step: float) -> list[np.ndarray]:
        def moved(name: str, x: Any) -> Any:
            if isinstance(x, tuple):
                return tuple(moved(f"{name}{i}", part) for i, part in enumerate(x))
            return np.asarray(x, np.float64) + step * turned[name] if name in turned else x

        expected = self.sample.expected
        assert expected is not None
        parameters = inspect.signature(expected).parameters.values()
        wanted = [p.name for p in parameters if p.default is inspect.Parameter.empty]
        with np.errstate(all="ignore"):
            out = expected(**{name: moved(name, known[name]) for name in wanted})
        return [np.asarray(x) for x in (out if isinstance(out, tuple) else (out,))]


def _slope(up: np.ndarray, down: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.where(up == down, 0.0, (up - down) / (2 * STEP))  # infinities that stay as they are


def _product(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum())


def _outer(cotangent: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Their products; each term of a partial vector has the cotangent of the sum."""
    return (cotangent[:, None] if direction.ndim > cotangent.ndim else cotangent) * direction


def _named(name: str, x: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(x, tuple):
        for i, part in enumerate(x):
            yield f"{name}{i}", part
    else:
        yield name, x


def check_derivatives(*ops: type[Op]) -> int:
    """Raises an AssertionError that lists what does not agree; returns how many samples were checked."""
    wrong, count = [], 0
    for op in ops:
        for number, sample in enumerate(op.samples()):
            if differentiable(op, sample):
                found = DerivativeCase(op, sample, number).wrong()
                wrong += found or []
                count += found is not None
    assert not wrong, "\n".join(wrong)
    return count
