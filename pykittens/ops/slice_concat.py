"""Parts of register tiles: copies that a compiler turns into nothing, since each thread keeps what it holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import TypeRuleError
from ..layouts import coalesced_thread
from ..loading import dataclass
from ..numerics import MOVES
from ..program import CudaWriter, Derivation, NumpyMachine, Op, Scope, Shares, Value
from ..types import Coalesced, RegisterTile, Type, bf16, f32
from .broadcast import register_type
from .samples import Sample


@dataclass(eq=False)
class TilePart(Op):
    """The rows x cols part of a tile that begins at (row, col), in elements, as a new tile.

    Of a tensor-core tile rows go in blocks of 16 for each warp (a block of a warpgroup's tile is 64 rows), columns in
    steps of 16. Of a coalesced tile rows go in as many as its threads hold at a time, and columns stay together.
    """

    scope: Scope
    tile: Value
    row: int
    col: int
    rows: int
    cols: int

    numerics = MOVES

    def types(self) -> tuple[Type, ...]:
        tile = register_type(self.tile, "a part")
        if not isinstance(tile, RegisterTile) or tile.layout == "col":
            fix = "parts are of row-layout and coalesced tiles; store others to shared memory and load a part"
            raise TypeRuleError(f"a part of {tile}", fix=fix)
        for first, extent, limit, step, what in (
            (self.row, self.rows, tile.rows, rows_together(tile), "rows"),
            (self.col, self.cols, tile.cols, tile.cols if isinstance(tile.layout, Coalesced) else 16, "columns"),
        ):
            if first < 0 or extent <= 0 or first + extent > limit:
                raise TypeRuleError(
                    f"{what} {first} to {first + extent} of {tile}", fix=f"stay within its {limit} {what}"
                )
            if first % step or extent % step:
                raise TypeRuleError(
                    f"{what} {first} to {first + extent} of {tile}",
                    fix=f"parts begin and end at multiples of {step} {what}",
                )
        return (replace(tile, rows=self.rows, cols=self.cols),)

    def numpy(self, m: NumpyMachine) -> Any:
        return m[self.tile][:, self.row : self.row + self.rows, self.col : self.col + self.cols]

    def cuda(self, c: CudaWriter) -> None:
        tile, part = self.tile.type, self.result.type
        assert isinstance(tile, RegisterTile) and isinstance(part, RegisterTile)
        together, packed = rows_together(tile), 2 if tile.dtype.packed else 1
        blocks = self.rows // together
        a_block = tile.registers // (tile.rows // together) // packed  # words of a thread in such rows, of both tiles
        p_block, first = part.registers // blocks // packed, self.col * a_block // tile.cols
        to, name = c.declare(self.result), c[self.tile]
        for block in range(blocks):
            source = (self.row // together + block) * a_block + first
            c.line(f"PK_UNROLL for (int i = 0; i < {p_block}; i++) {to}[{block * p_block} + i] = {name}[{source} + i];")

    def vjp(self, d: Derivation, *cotangents: Any) -> Shares:
        tile = self.tile.type
        assert isinstance(tile, RegisterTile)
        if self.rows != tile.rows:
            raise TypeRuleError(f"the derivative of rows taken of {tile}", fix="take columns: x[:, 0:64]")
        widths = (self.col, tile.cols - self.col - self.cols)
        before, after = (d.full(replace(tile, cols=n), 0.0) if n else None for n in widths)

        def padded() -> Any:
            parts = tuple(x for x in (before, cotangents[0], after) if x is not None)
            return d.recorded(TileJoin(self.scope, parts))

        return ((self.tile, padded),)

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for tile, row, col, rows, cols in (
            (RegisterTile(bf16, 32, 64), 16, 16, 16, 32),
            (RegisterTile(f32, 48, 48), 0, 32, 48, 16),
            (RegisterTile(f32, 128, 32, "row", 4), 64, 16, 64, 16),
            (RegisterTile(f32, 11, 64, Coalesced(32, 2)), 3, 0, 8, 64),
            (RegisterTile(bf16, 12, 32, Coalesced(8, 4)), 4, 0, 8, 32),
            (RegisterTile(bf16, 5, 512, Coalesced(128, 4), 4), 1, 0, 3, 512),
        ):
            fields = {"tile": tile, "row": row, "col": col, "rows": rows, "cols": cols}
            yield Sample(
                fields, lambda tile, row, col, rows, cols: tile[row : row + rows, col : col + cols], exact=True
            )


def rows_together(tile: RegisterTile) -> int:
    """How many rows the threads of a tile's scope hold at a time: parts begin and end between such."""
    return coalesced_thread(tile.layout, tile.warps, 0, 0)[0] if isinstance(tile.layout, Coalesced) else 16 * tile.warps


@dataclass(eq=False)
class TileJoin(Op):
    """Tensor-core tiles side by side, from left to right, as one new tile."""

    scope: Scope
    tiles: tuple[Value, ...]

    numerics = MOVES

    def types(self) -> tuple[Type, ...]:
        types = [register_type(x, "join") for x in self.tiles]
        tiles = [t for t in types if isinstance(t, RegisterTile) and t.layout == "row"]
        said = f"join of {' and '.join(map(str, types))}"
        if len(tiles) < len(types):
            raise TypeRuleError(
                said, fix="row-layout tiles stand side by side; store others to shared memory and load all"
            )
        if len({(t.dtype, t.rows, t.warps) for t in tiles}) > 1:
            raise TypeRuleError(said, fix="tiles side by side have the same rows, dtype and scope")
        return (replace(tiles[0], cols=sum(t.cols for t in tiles)),)

    def numpy(self, m: NumpyMachine) -> Any:
        return np.concatenate([m[x] for x in self.tiles], axis=2)

    def cuda(self, c: CudaWriter) -> None:
        joined = self.result.type
        assert isinstance(joined, RegisterTile)
        word = 4 if joined.dtype.packed else 2
        to, first = c.declare(self.result), 0
        for tile in self.tiles:
            type = tile.type
            assert isinstance(type, RegisterTile)
            width = type.cols // word
            for block in range(joined.rows // (16 * joined.warps)):
                c.line(
                    f"PK_UNROLL for (int i = 0; i < {width}; i++) {to}[{block * (joined.cols // word) + first} + i] = "
                    f"{c[tile]}[{block * width} + i];"
                )
            first += width

    def vjp(self, d: Derivation, *cotangents: Any) -> Shares:
        first = 0
        for tile in self.tiles:
            type = tile.type
            assert isinstance(type, RegisterTile)
            part = TilePart(self.scope, cotangents[0], 0, first, type.rows, type.cols)
            yield tile, lambda part=part: d.recorded(part)  # type: ignore[misc]
            first += type.cols

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        for dtype, rows, warps in ((bf16, 32, 1), (f32, 32, 1), (bf16, 128, 4)):
            tiles = tuple(RegisterTile(dtype, rows, cols, "row", warps) for cols in (16, 32, 16))
            yield Sample({"tiles": tiles}, lambda tiles: np.concatenate(tiles, axis=1), exact=True)


@dataclass(eq=False)
class TileStack(Op):
    """Tensor-core tiles, or coalesced ones, one below the other, from the top, as one new tile."""

    scope: Scope
    tiles: tuple[Value, ...]

    numerics = MOVES

    def types(self) -> tuple[Type, ...]:
        types = [register_type(x, "stack") for x in self.tiles]
        tiles = [t for t in types if isinstance(t, RegisterTile) and t.layout != "col"]
        said = f"stack of {' and '.join(map(str, types))}"
        if len(tiles) < len(types):
            fix = "row-layout and coalesced tiles are stacked; store others to shared memory and load all"
            raise TypeRuleError(said, fix=fix)
        if len({(t.dtype, t.cols, t.warps, t.layout) for t in tiles}) > 1:
            raise TypeRuleError(said, fix="tiles below one another have the same columns, dtype, layout and scope")
        return (replace(tiles[0], rows=sum(t.rows for t in tiles)),)

    def numpy(self, m: NumpyMachine) -> Any:
        return np.concatenate([m[x] for x in self.tiles], axis=1)

    def cuda(self, c: CudaWriter) -> None:
        to, first = c.declare(self.result), 0
        for tile in self.tiles:
            type = tile.type
            assert isinstance(type, RegisterTile)
            words = type.registers // (2 if type.dtype.packed else 1)
            c.line(f"PK_UNROLL for (int i = 0; i < {words}; i++) {to}[{first} + i] = {c[tile]}[i];")
            first += words

    def vjp(self, d: Derivation, *cotangents: Any) -> Shares:
        first = 0
        for tile in self.tiles:
            type = tile.type
            assert isinstance(type, RegisterTile)
            part = TilePart(self.scope, cotangents[0], first, 0, type.rows, type.cols)
            yield tile, lambda part=part: d.recorded(part)  # type: ignore[misc]
            first += type.rows

    @classmethod
    def samples(cls) -> Iterable[Sample]:
        kinds = [
            tuple(RegisterTile(d, rows * warps, cols, "row", warps) for rows in (16, 32, 16))
            for d, cols, warps in ((bf16, 32, 1), (f32, 48, 1), (bf16, 32, 4))
        ]
        kinds += [
            tuple(RegisterTile(d, rows, 64, layout) for rows in some)
            for d, some, layout in ((bf16, (3, 1, 4), Coalesced(32, 2)), (f32, (8, 4), Coalesced(8, 2)))
        ]
        for tiles in kinds:
            yield Sample({"tiles": tiles}, lambda tiles: np.concatenate(tiles, axis=0), exact=True)
