"""Random programs of exact operations: drawn as data, then played by a kernel and, independently, by NumPy.

    steps = draw(seed)                  # what a program does, and the kind of every value it makes
    outputs = evaluate(steps, inputs)   # its results by `number_reference`, which shares nothing with the operations
    kernel = programs(seeds)            # a kernel whose block i plays the program of seeds[i]

Both sides must agree bit for bit: nothing in a program is approximate, and no sum depends on its order.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..types import Coalesced, DType, Layout, bf16, bool_, e4m3, e5m2, f16, f32, i8, i32, i64, u8, u32

ROWS, COLS, LENGTH = 16, 32, 14  # of the tiles that are loaded; steps of a program
TILES, SCALARS = (f32, bf16, f16, i32, u32, i64), (i32, u32, i64, f32)  # dtypes of inputs
SHARED, GLOBAL = (f32, bf16, f16, i32, i64, i8, u8, e4m3, e5m2), (f32, bf16, f16, i32, u32, i64, u8, e5m2)
COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
BITS = ("and", "or", "xor", "shl", "shr")


@dataclass(frozen=True)
class Kind:
    """The kind of a value: a tile, a column or row vector of such a tile, or a scalar."""

    form: str  # "tile", "col", "row", "scalar"
    dtype: DType
    rows: int = 0
    cols: int = 0
    layout: Layout = "row"

    def of(self, dtype: DType, form: str = "") -> Kind:
        """The same place with another dtype, or form."""
        return Kind(form or self.form, dtype, self.rows, self.cols, self.layout)

    def fits(self, other: Kind) -> bool:
        """Whether it goes together with a value of the other kind, elementwise."""
        place = (self.rows, self.cols, self.layout) == (other.rows, other.cols, other.layout)
        return self.form == "scalar" or (place and self.form in ("col", "row", other.form))


class ProgramStep(NamedTuple):
    """One operation: its name, the numbers of the values it takes, what it makes, and what else there is to know."""

    name: str
    args: tuple[int, ...]
    makes: Kind
    more: dict[str, Any]


class Draw:
    """Draws the steps of one program."""

    def __init__(self, seed: int, eight_bit_floats: bool):
        self.rng, self.steps = random.Random(seed), list[ProgramStep]()
        self.memory = {d for d in SHARED + GLOBAL if eight_bit_floats or d not in (e4m3, e5m2)}
        layouts: list[Layout] = ["row", "col", Coalesced(8, 4), Coalesced(16, 2)]
        self.layouts = self.rng.sample(layouts, 2)
        self.every_layout = layouts
        for dtype in self.rng.sample(TILES, 4):
            self.put("load", Kind("tile", dtype, ROWS, COLS, self.layouts[0]), which=self.rng.randrange(2))
        for dtype in SCALARS:
            self.put("argument", Kind("scalar", dtype), which=self.rng.randrange(4))

    def put(self, name: str, makes: Kind, *args: int, **more: Any) -> int:
        self.steps.append(ProgramStep(name, args, makes, more))
        return len(self.steps) - 1

    def pick(self, *wanted: Callable[[Kind], bool]) -> int | None:
        """A value that fits, recent ones more often."""
        found = [i for i, step in enumerate(self.steps) if all(f(step.makes) for f in wanted)]
        return self.rng.choice(found[-4:] if self.rng.random() < 0.6 else found) if found else None

    def two(self, *wanted: Callable[[Kind], bool]) -> tuple[int, int] | None:
        """A tile (now and then a vector), and something of its dtype that fits it; in either order."""
        a = self.pick(lambda k: k.form == "tile" or (k.form != "scalar" and self.rng.random() < 0.3), *wanted)
        if a is None:
            return None
        kind = self.steps[a].makes
        b = self.pick(lambda k: k.fits(kind) and k.dtype is kind.dtype)
        return None if b is None else (a, b) if self.rng.random() < 0.5 else (b, a)

    # Steps: each makes a value if it finds operands -----------------------------------------------------------

    def unary(self) -> None:
        if (a := self.pick(lambda k: k.form != "scalar")) is not None:
            kind = self.steps[a].makes
            floats = ("neg", "abs", "relu", "sqrt", "round", "floor", "ceil", "trunc")
            numbers = ("neg", "abs", "invert")
            names = ("not",) if kind.dtype is bool_ else floats if kind.dtype.kind == "f" else numbers
            self.put(self.rng.choice(names), kind, a)

    def binary(self) -> None:
        if (ab := self.two()) is not None:
            a, b = (self.steps[i].makes for i in ab)
            shape = a if a.form == "tile" or b.form == "scalar" else b
            if {a.form, b.form} == {"col", "row"}:  # one element a row and one a column meet in a tile
                shape = a.of(a.dtype, "tile")
            comparing = self.rng.random() < 0.2
            names = ["and", "or", "xor"] if a.dtype is bool_ else ["add", "sub", "mul", "max", "min"]
            names += BITS if a.dtype.kind in "iu" else ()
            names += ("floordiv", "mod") if a.dtype is not bool_ else ()
            name = self.rng.choice(list(COMPARISONS) if comparing and a.dtype is not bool_ else names)
            self.put(name, shape.of(bool_) if name in COMPARISONS else shape, *ab)

    def number(self) -> None:
        """A tile and a number of Python."""
        if (a := self.pick(lambda k: k.form != "scalar" and k.dtype is not bool_)) is not None:
            kind = self.steps[a].makes
            numbers = [-3, -1, 0, 1, 2, 7, 31] if kind.dtype.kind == "i" else [0, 1, 3, 32]
            number = self.rng.choice([-2.5, -1, 0.1, 0.5, 3, 65504.0] if kind.dtype.kind == "f" else numbers)
            name = self.rng.choice(("add", "mul", "max", "lt", "eq"))
            self.put("with_number", kind.of(bool_) if name in COMPARISONS else kind, a, what=name, number=number)

    def fma(self) -> None:
        if (ab := self.two(lambda k: k.dtype.kind == "f" and k.form == "tile")) is not None:
            kind = next(self.steps[i].makes for i in ab if self.steps[i].makes.form == "tile")
            if (c := self.pick(lambda k: k.fits(kind) and k.dtype is kind.dtype)) is not None:
                self.put("fma", kind, *ab, c)

    def where(self) -> None:
        if (mask := self.pick(lambda k: k.form == "tile" and k.dtype is bool_)) is not None:
            kind = self.steps[mask].makes
            if (a := self.pick(lambda k: k.fits(kind) and k.form != "scalar" and k.dtype is not bool_)) is not None:
                dtype = self.steps[a].makes.dtype
                if (b := self.pick(lambda k: k.fits(kind) and k.dtype is dtype)) is not None:
                    self.put("where", kind.of(dtype), mask, *((a, b) if self.rng.random() < 0.5 else (b, a)))

    def to(self) -> None:
        if (a := self.pick(lambda k: k.form != "scalar")) is not None:
            kind = self.steps[a].makes
            self.put("to", kind.of(self.rng.choice([d for d in TILES if d is not kind.dtype])), a)

    def reduce(self) -> None:
        if (a := self.pick(lambda k: k.form == "tile" and k.dtype is not bool_)) is not None:
            kind, to = self.steps[a].makes, self.rng.choice(("col", "row"))
            name = self.rng.choice(("max", "min") if kind.dtype.kind == "f" else ("max", "min", "sum", "prod"))
            self.put("reduce", kind.of(kind.dtype, to), a, what=name, to=to)

    def count(self) -> None:
        if (a := self.pick(lambda k: k.form == "tile" and k.dtype is bool_)) is not None:
            name = self.rng.choice(("row_sum", "col_sum", "row_any", "row_all", "col_any", "col_all"))
            dtype = i32 if name.endswith("sum") else bool_
            self.put("count", self.steps[a].makes.of(dtype, "col" if name.startswith("row") else "row"), a, what=name)

    def best(self) -> None:
        if (a := self.pick(lambda k: k.form == "tile" and k.dtype not in (bool_, i64))) is not None:
            kind, to = self.steps[a].makes, self.rng.choice(("col", "row"))
            self.put("best", kind.of(i32, to), a, what=self.rng.choice(("argmax", "argmin")), to=to)

    def second(self) -> None:
        """The second largest of each row."""
        if (a := self.pick(lambda k: k.form == "tile" and k.dtype not in (bool_, i64))) is not None:
            self.put("second", self.steps[a].makes.of(self.steps[a].makes.dtype, "col"), a)

    def scan(self) -> None:
        if (a := self.pick(lambda k: k.form == "tile" and k.dtype is not bool_)) is not None:
            kind, along = self.steps[a].makes, self.rng.choice(("row", "col"))
            name = self.rng.choice(("max", "min") if kind.dtype.kind == "f" else ("max", "min", "sum", "prod"))
            self.put("scan", kind, a, what=name, along=along, reverse=self.rng.random() < 0.5)

    def form(self) -> None:
        """A vector as one of another kind, or of another layout."""
        if (a := self.pick(lambda k: k.form in ("col", "row"))) is not None:
            kind, form = self.steps[a].makes, self.rng.choice(("col", "row"))
            rows, cols = (kind.rows, kind.cols) if form == kind.form else (kind.cols, kind.rows)
            layout: Layout = self.rng.choice(("row", "col"))
            self.put("form", Kind(form, kind.dtype, rows, cols, layout), a, through=self.rng.choice((0, 1, 4)))

    def rows(self) -> None:
        """A tile of the rows of another, any of them, some maybe twice."""
        if (a := self.pick(lambda k: k.form == "tile" and k.dtype is not bool_)) is not None:
            kind = self.steps[a].makes
            self.put("rows", kind, a, rows=[self.rng.randrange(kind.rows) for _ in range(kind.rows)])

    def triangle(self) -> None:
        if (a := self.pick(lambda k: k.form == "tile" and k.dtype is not bool_)) is not None:
            what, diagonal = self.rng.choice(("tril", "triu")), self.rng.randrange(-3, 4)
            self.put("triangle", self.steps[a].makes, a, what=what, diagonal=diagonal)

    def to_scalar(self) -> None:
        wanted = (
            lambda k: k.form in ("col", "row"),
            lambda k: k.dtype.bits >= 32,
        )
        if (a := self.pick(*wanted)) is not None:
            dtype = self.steps[a].makes.dtype
            name = self.rng.choice(("max", "min") if dtype.kind == "f" else ("max", "min", "sum"))
            self.put("to_scalar", Kind("scalar", dtype), a, what=name)

    def transpose(self) -> None:
        if (a := self.pick(lambda k: k.form == "tile" and k.layout in ("row", "col"))) is not None:
            kind = self.steps[a].makes
            other: Layout = "col" if kind.layout == "row" else "row"
            self.put("transpose", Kind("tile", kind.dtype, kind.cols, kind.rows, other), a)

    def swap_layout(self) -> None:
        if (a := self.pick(lambda k: k.form == "tile")) is not None:
            kind = self.steps[a].makes
            known = self.every_layout if (kind.rows, kind.cols) == (ROWS, COLS) else self.every_layout[:2]
            layout = self.rng.choice([x for x in known if x != kind.layout])
            self.put("swap_layout", Kind("tile", kind.dtype, kind.rows, kind.cols, layout), a)

    def memory_step(self, name: str, dtypes: tuple[DType, ...]) -> None:
        """Through memory and back: into another dtype, and maybe another layout."""
        if (
            a := self.pick(lambda k: k.form == "tile" and k.dtype is not bool_ and (k.rows, k.cols) == (ROWS, COLS))
        ) is None:
            return
        kind, memory = self.steps[a].makes, self.rng.choice([d for d in dtypes if d in self.memory])
        held = memory if memory.bits > 8 else f32 if memory.kind == "f" else i32
        if self.rng.random() < 0.3:
            held = self.rng.choice(TILES)
        layout = self.rng.choice((kind.layout, *self.layouts))
        self.put(name, Kind("tile", held, kind.rows, kind.cols, layout), a, memory=memory)

    def shared(self) -> None:
        self.memory_step("shared", SHARED)

    def scratch(self) -> None:
        self.memory_step("global", GLOBAL)

    def product(self) -> None:
        wanted = (lambda k: k.form == "tile" and k.dtype is i32, lambda k: k.layout == "row" and k.cols == COLS)
        a, b = self.pick(*wanted), self.pick(*wanted)
        if a is not None and b is not None:
            self.put("product", Kind("tile", f32, ROWS, ROWS), a, b, dtype=self.rng.choice((bf16, f16)))

    def scalar(self) -> None:
        a, b = (self.pick(lambda k: k.form == "scalar" and k.dtype is not bool_) for _ in range(2))
        assert a is not None and b is not None
        dtypes = {self.steps[i].makes.dtype for i in (a, b)}
        dtype = f32 if f32 in dtypes else i64 if i64 in dtypes or len(dtypes) == 2 else next(iter(dtypes))
        names = ("add", "sub", "mul", "max", "min", *COMPARISONS) + (BITS if dtype is not f32 else ())
        name = self.rng.choice(names)
        self.put("scalars", Kind("scalar", bool_ if name in COMPARISONS else dtype), a, b, what=name, dtype=dtype)

    def cast(self) -> None:
        if (a := self.pick(lambda k: k.form == "scalar")) is not None:
            self.put("cast", Kind("scalar", self.rng.choice(SCALARS)), a)

    def changed(self) -> tuple[int, int, str] | None:
        """A tile to be changed in place, with what, and how."""
        if (a := self.pick(lambda k: k.form == "tile" and k.dtype is not bool_)) is None:
            return None
        kind = self.steps[a].makes
        b = self.pick(lambda k: k.fits(kind) and k.dtype is kind.dtype)
        return None if b is None else (a, b, self.rng.choice(("add", "sub", "mul", "max", "min")))

    def when(self) -> None:
        c = self.pick(lambda k: k.form == "scalar" and k.dtype is bool_)
        if c is not None and (found := self.changed()) is not None:
            a, b, name = found
            self.put("when", self.steps[a].makes, c, a, b, what=name, other=self.rng.choice(("add", "min")))

    def repeat(self) -> None:
        n = self.pick(lambda k: k.form == "scalar" and k.dtype is i32)
        if n is not None and (found := self.changed()) is not None:
            a, b, name = found
            self.put("repeat", self.steps[a].makes, n, a, b, what=name)


STEPS = {
    **{Draw.unary: 2, Draw.binary: 5, Draw.number: 2, Draw.fma: 1, Draw.where: 2, Draw.to: 2, Draw.reduce: 2},
    **{
        Draw.to_scalar: 1,
        Draw.transpose: 1,
        Draw.swap_layout: 1,
        Draw.shared: 1,
        Draw.scratch: 1,
        Draw.product: 1,
        Draw.scalar: 2,
    },
    **{Draw.cast: 1, Draw.when: 1, Draw.repeat: 1},
    **{Draw.count: 1, Draw.best: 1, Draw.second: 1, Draw.triangle: 1, Draw.scan: 1, Draw.form: 1, Draw.rows: 1},
}


def draw(seed: int, eight_bit_floats: bool = True) -> list[ProgramStep]:
    """The steps of the program of a seed; `eight_bit_floats`: where the GPU converts them (sm_89 and newer)."""
    found = Draw(seed, eight_bit_floats)
    steps, weights = list(STEPS), list(STEPS.values())
    while len(found.steps) < 8 + LENGTH:
        found.rng.choices(steps, weights)[0](found)
    return found.steps


def outputs(steps: list[ProgramStep]) -> dict[DType, int]:
    """For each dtype the last tile of it, by its number: what a program stores. Masks are stored as int32."""
    return {step.makes.dtype: i for i, step in enumerate(steps) if step.makes.form == "tile"}
