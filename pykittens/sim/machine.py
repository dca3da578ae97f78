"""The machine as an operation's NumPy face sees it: a gang's registers, where it is, and the memory it reaches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import OutOfBoundsError
from ..ops.atomics import FORMULAS, shared_formula
from ..ops.red import combine
from ..program import Access, Place, Scope, Sync, Value
from ..types import SharedTile, SharedVector
from .block import BlockState
from .memory import Address, GlobalArray, each_row, element_places
from .registers import GangRegisters


class Machine(GangRegisters):
    """Registers that can reach memory. Operands of memory name all active units, or each of them."""

    # Where the warps are ------------------------------------------------------------------------------

    def index(self, kind: str, scope: Scope) -> Any:
        """block_x/y/z, grid_x/y/z, cluster_rank, cluster_x, or which unit of the scope each warp belongs to, counted
        within the role.
        """
        if kind == "unit":
            units = (self.first - self.role_first + np.arange(self.warps)) // scope.warps
            if units[0] == units[-1]:
                return int(units[0])
            return units if self.mask is None else units[self.mask.warps]
        if kind == "cluster_rank":
            return self.block.rank
        if kind == "cluster_x":
            return self.block.index[0] // self.block.cluster.grid_state.program.cluster[0]
        return (self.block.index if kind.startswith("block") else self.block.cluster.grid)["xyz".index(kind[-1])]

    def block_label(self) -> str:
        return ",".join(map(str, self.block.index))

    def unit_label(self, unit: int) -> str:
        number = unit if self.chosen is None else int(self.chosen[unit])
        return str((self.first - self.role_first) // self.span + number)

    def print(self, text: str) -> None:
        """A line of `pk.print`: shown at once, so that it stands before a diagnosis, and kept in the report."""
        self.block.cluster.report.lines.append(text)
        print(text)

    def blocks_of(self, effect: Access | Sync | None) -> list[BlockState]:
        """The blocks of the cluster whose shared memory or barrier an effect means."""
        mask, rank = getattr(effect, "mask", None), getattr(effect, "rank", None)
        blocks = self.block.cluster.blocks
        if mask is not None:
            return self.blocks_in(mask)
        if rank is None:
            return [self.block]
        number = int(_one(self.unit_scalar(rank)))
        if not 0 <= number < len(blocks):
            self._no_block(
                f"rank {number}", f"ranks are 0 to {len(blocks) - 1}; wrap them, as in (rank + 1) % {len(blocks)}"
            )
        return [blocks[number]]

    def blocks_in(self, mask: Any) -> list[BlockState]:
        """The blocks of the cluster that a mask has bits for."""
        blocks, bits = self.block.cluster.blocks, int(_one(self.unit_scalar(mask)))
        if not 0 < bits < 1 << len(blocks):
            self._no_block(f"the multicast mask {bits:#x}", "set bits of blocks that are there, at least one")
        return [b for b in blocks if bits >> b.rank & 1]

    def _no_block(self, which: str, fix: str) -> None:
        op = self.step.op
        raise OutOfBoundsError(
            f"{op.spelled}: {which}, in a cluster of {len(self.block.cluster.blocks)} blocks",
            fix=fix,
            location=op.location,
        )

    # Memory -------------------------------------------------------------------------------------------

    def shape(self, tensor: Value) -> tuple[int, ...]:
        """The four dimensions of a global tensor."""
        return self.tensor(tensor).shape

    def tensor(self, value: Value) -> GlobalArray:
        return self.block.cluster.tensors[value]

    def address(self, value: Value) -> Any:
        """The byte a shared value begins at: a number, or one for each active unit."""
        return self._per_unit(self._value(value).base, value)

    def column(self, value: Value) -> Any:
        """The first column of a view inside a panel."""
        return self._per_unit(self._value(value).column, value)

    def shared(self, base: Any, column: Any = 0) -> Address:
        """A shared value for the active units."""
        base, column = (np.repeat(x, self.span) if isinstance(x, np.ndarray) else x for x in (base, column))
        return Address(self._scatter(base, None), self._scatter(column, None))

    def spots(self, value: Value) -> tuple[list[int], list[int]]:
        """Base and column of a shared operand: one for all units, or for each."""
        base, column = self.address(value), self.column(value)
        if not isinstance(base, np.ndarray) and not isinstance(column, np.ndarray):
            return [int(base)], [int(column)]
        return self._of_units(base), self._of_units(column)

    def _of_units(self, x: Any) -> list[Any]:
        """A scalar of the active units, one for each of them."""
        return x.tolist() if isinstance(x, np.ndarray) else [x] * self.units

    def corners(self, place: Place) -> list[tuple[Any, ...]]:
        """First element of a rectangle, and the rows and columns that it is kept to: one for all units, or for each.
        In place of the row stands a tuple of rows where they are gathered.
        """
        all_rows = (0, 2**31 - 1)
        if len(place.shape) == 1:  # a run has columns only
            kept = place.columns or place.within or ()
        else:
            kept = (*(place.within or all_rows), *place.columns) if place.columns else place.within or ()
        if place.gathered is not None:
            return self._gathered_corners(place, place.gathered)
        first = [self.unit_scalar(x) for x in (*place.first, *kept)]
        if not any(isinstance(x, np.ndarray) for x in first):
            return [tuple(int(x) for x in first)]
        return list(zip(*map(self._of_units, first), strict=True))

    def _gathered_corners(self, place: Place, vector: Value) -> list[Any]:
        b, d, _, c = (0 if x is vector else self.unit_scalar(x) for x in place.first)
        each = zip(*map(self._of_units, (b, d, c)), strict=True)
        rows = np.broadcast_to(self[vector], (self.units, place.rows)).tolist()
        return [(b, d, tuple(row), c) for (b, d, c), row in zip(each, rows, strict=True)]

    def read(self, source: Value | Place) -> np.ndarray:
        """The elements of shared or global memory: (units, *shape), or (1, *shape) where all units read the same."""
        if isinstance(source, Place):
            tensor, corners = self.tensor(source.tensor), self.corners(source)
            if len(corners) == 1:
                return tensor.read(corners[0], source.shape)[None]
            return np.stack([tensor.read(corner, source.shape) for corner in corners])
        type = source.type
        assert isinstance(type, (SharedTile, SharedVector))
        return self._blocks(source)[0].memory.read(type, *self.spots(source))

    def write(self, target: Value | Place, array: np.ndarray) -> None:
        """Sets the elements of shared or global memory."""
        self.change()
        if isinstance(target, Place):
            tensor = self.tensor(target.tensor)
            corners = self.corners(target)
            corners = corners if len(corners) > 1 else corners * len(array)
            for corner, values in zip(corners, np.broadcast_to(array, (len(corners), *target.shape)), strict=True):
                tensor.write(corner, target.shape, values)
            return
        type = target.type
        assert isinstance(type, (SharedTile, SharedVector))
        for block in self._blocks(target):
            bases, columns = self.spots(target)
            if len(array) > len(bases):  # several units write the same bytes: a race, or equal values
                array = array[-1:]
            block.memory.write(type, bases, columns, array)

    def reduce(self, target: Value | Place, array: np.ndarray, kind: str) -> None:
        """Combines (add, min, max) a shared tile or vector, or a rectangle of global memory, with an array, each unit
        in turn.
        """
        self.change()
        if not isinstance(target, Place):
            for bases, columns, values in self._each(target, array):
                memory, type = self._blocks(target)[0].memory, target.type
                assert isinstance(type, (SharedTile, SharedVector))
                memory.write(type, bases, columns, combine(kind, memory.read(type, bases, columns), values[None]))
            return
        corners, tensor = self.corners(target), self.tensor(target.tensor)
        shape, pairs = target.shape, [*zip(corners * (len(array) if len(corners) == 1 else 1), array, strict=True)]
        if target.gathered is not None:  # row by row: one may come twice
            shape = (1, target.cols)
            pairs = [pair for corner, rows in pairs for pair in zip(each_row(corner), rows, strict=True)]
        for corner, values in pairs:
            tensor.write(corner, shape, combine(kind, tensor.read(corner, shape), values))

    def _each(self, memory: Value, array: np.ndarray) -> Iterator[tuple[list[int], list[int], np.ndarray]]:
        """Base, column and elements of each unit, for a shared operand."""
        bases, columns = (x * self.units if len(x) == 1 else x for x in self.spots(memory))
        whole = np.broadcast_to(array, (self.units, *array.shape[1:]))
        return (([b], [c], values) for b, c, values in zip(bases, columns, whole, strict=True))

    def gather(self, source: Value | Place, row: np.ndarray, col: np.ndarray) -> np.ndarray:
        """The elements at rows and columns of a shared tile or vector, or of the matrix in which a place lies, for each
        unit; 0 where there is none.
        """
        return np.stack([np.where(inside, x[at], 0) for x, at, inside in self._matrices(source, row, col)])

    def scatter(
        self, target: Value | Place, row: np.ndarray, col: np.ndarray, array: np.ndarray, kind: str = ""
    ) -> None:
        """Sets such elements, or combines them (add, min, max), with an array's, each unit in turn."""
        self.change()
        for (x, at, inside), values in zip(self._matrices(target, row, col), array, strict=True):
            for spot, value in zip(zip(*(i[inside] for i in at), strict=True), values[inside], strict=True):
                x[spot] = combine(kind, x[spot], value) if kind else value

    def _matrices(self, memory: Value | Place, row: np.ndarray, col: np.ndarray) -> Iterator[tuple[Any, Any, Any]]:
        """For each unit the elements, where in these those lie that are meant (the first one of what is outside), and
        which exist.
        """
        corners = self.corners(memory) if isinstance(memory, Place) else list(zip(*self.spots(memory), strict=True))
        corners = corners * (self.units if len(corners) == 1 else 1)
        type = memory.type
        size = self.shape(memory.tensor)[2:] if isinstance(memory, Place) else (1, *type.shape)[-2:]  # type: ignore[union-attr]
        for corner, rows, cols in zip(corners, row, col, strict=True):
            inside = (rows >= 0) & (rows < size[0]) & (cols >= 0) & (cols < size[1])
            rows, cols = np.where(inside, rows, 0), np.where(inside, cols, 0)
            if isinstance(memory, Place):
                yield self.tensor(memory.tensor).array[corner[0], corner[1]], (rows, cols), inside
            else:
                assert isinstance(type, (SharedTile, SharedVector))
                elements, base = self._blocks(memory)[0].memory.bytes.view(type.dtype.numpy), corner[0]
                yield elements, (element_places(type, base, rows, corner[1] + cols) // type.dtype.size,), inside

    def _blocks(self, value: Value) -> list[BlockState]:
        """The blocks of the cluster whose shared memory an operand of this operation means."""
        return self.blocks_of(self.step.targets.get(value))

    def read_element(self, source: Value | Place, at: Any = 0) -> Any:
        """One element of a tensor (the first of the place) or shared vector, for each active warp."""
        spots = self._elements(source, at)
        found = [self._element(source, spot) for spot in spots]
        self.look(source, spots[-1], found[-1])
        if len(found) == 1:
            return found[0]
        return np.array(found)

    def write_element(self, target: Value | Place, at: Any, value: Any) -> None:
        """Sets one element of a tensor or shared vector, for each active unit."""
        spots = self._elements(target, at)
        for i, spot in enumerate(spots if len(spots) > 1 else spots * self.units):
            new = value[i] if np.ndim(value) else value
            if isinstance(target, Place):
                array = self.tensor(target.tensor).array
                if array[spot] != new:
                    self.change()
                array[spot] = new
            else:
                self.change()
                type = target.type
                assert isinstance(type, SharedVector)
                for block in self._blocks(target):
                    block.memory.bytes[spot[0] : spot[0] + type.dtype.size].view(type.dtype.numpy)[:] = new

    def atomic_element(self, target: Value | Place, kind: str, value: Any, expected: Any, at: Any = 0) -> Any:
        """Changes one element of a tensor or shared vector, each active unit in turn; what each found, for its
        warps.
        """
        found: list[Any] = []
        if isinstance(target, Place):
            spots: list[Any] = self.spots_of(target)
            array, added = self.tensor(target.tensor).array, FORMULAS[kind if kind != "cas" else "exch"]
        else:
            dtype, each = target.type.dtype, self._elements(target, at)  # type: ignore[union-attr]
            spots = [x[0] // dtype.size for x in (each if len(each) > 1 else each * self.units)]
            array = self._blocks(target)[0].memory.bytes.view(dtype.numpy)
            added = shared_formula(kind)
        self.wrote = []
        for i, spot in enumerate(spots):
            old, new, wanted = (array[spot], *(x[i] if np.ndim(x) else x for x in (value, expected)))
            self.wrote.append(kind != "cas" or old.tobytes() == np.asarray(wanted).tobytes())
            if self.wrote[-1]:
                new = added(old, new)
                if np.asarray(new).tobytes() != old.tobytes():
                    self.change()
                    array[spot] = new
            found.append(old)
        self.look(target, spots[-1] if isinstance(target, Place) else each[-1], found[-1])
        return self.per_warp(np.array(found)) if len(found) > 1 else found[0].item()

    def spots_of(self, place: Place) -> list[tuple[int, ...]]:
        """The coordinates of the element of each active unit."""
        spots = self._elements(place, 0)
        return spots if len(spots) > 1 else spots * self.units

    def addresses(self, place: Place) -> list[int]:
        """Where the element of each active unit lies."""
        tensor = self.tensor(place.tensor)
        return [
            tensor.start + sum(i * s for i, s in zip(spot, tensor.strides, strict=True))
            for spot in self.spots_of(place)
        ]

    def change(self) -> None:
        """Memory is changed, which others may look at."""
        self.changes += 1
        self.block.cluster.grid_state.changes += 1

    def look(self, memory: Value | Place, spot: tuple[int, ...], value: Any) -> None:
        """Notes what a loop that does nothing else looks at."""
        name = f"{memory.tensor.label}[{', '.join(map(str, spot))}]" if isinstance(memory, Place) else memory.label
        self.looked[name] = value

    def _element(self, source: Value | Place, spot: tuple[int, ...]) -> Any:
        if isinstance(source, Place):
            return _widened(self.tensor(source.tensor).array[spot])
        type = source.type
        assert isinstance(type, SharedVector)
        memory = self._blocks(source)[0].memory
        return _widened(memory.bytes[spot[0] : spot[0] + type.dtype.size].view(type.dtype.numpy)[0])

    def element_index(self, vector: Value, at: Any) -> Any:
        """An index into a shared vector, for each active unit."""
        index, type = self.unit_scalar(at), vector.type
        assert isinstance(type, SharedVector)
        low, high = (index.min(), index.max()) if isinstance(index, np.ndarray) else (index, index)
        if low < 0 or high >= type.length:
            raise OutOfBoundsError(
                f"{vector.label}: element {int(low if low < 0 else high)} of {type.length}",
                fix=f"keep the index within 0 to {type.length - 1}",
                location=self.step.op.location,
            )
        return index

    def _elements(self, memory: Value | Place, at: Any) -> list[tuple[int, ...]]:
        op = self.step.op
        if isinstance(memory, Place):
            tensor, corners = self.tensor(memory.tensor), self.corners(memory)
            for corner in corners:
                tensor.check(corner, op.location)
                if not all(part.stop for part in tensor.clip(corner, (1, 1))):
                    raise OutOfBoundsError(
                        f"{tensor.name}: element {corner} is outside of its shape {tensor.shape}",
                        fix="bound the coordinate",
                        location=op.location,
                    )
            return corners
        type = memory.type
        assert isinstance(type, SharedVector)
        spots = self.address(memory) + self.element_index(memory, at) * type.dtype.size
        return [(int(x),) for x in spots] if isinstance(spots, np.ndarray) else [(int(spots),)]


def _widened(x: Any) -> Any:
    """An element of memory as a scalar: ints, or float32."""
    return int(x) if np.asarray(x).dtype.kind in "iu" else bool(x) if np.asarray(x).dtype.kind == "b" else np.float32(x)


def _one(x: Any) -> Any:
    return x.flat[0] if isinstance(x, np.ndarray) else x
