"""# 7. Debugging: every kind of mistake, provoked and read

On a GPU a wrong kernel gives wrong numbers, sometimes. On the simulated GPU it stops, with the lines and a fix.
"""

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np

import pykittens as pk
from pykittens import Tensor, f32, warp

X = Annotated[Tensor, f32, 64, 64]
x, y = np.ones((64, 64), np.float32), np.empty((64, 64), np.float32)


def refused(kernel: Callable[..., Any]) -> str:
    """What a kernel is refused with, printed as a traceback would end."""
    try:
        kernel(x, y)
    except pk.KernelError as error:
        print(error)
        return str(error)
    raise AssertionError(f"{kernel} was not refused")


# **A race.** Two warps exchange tiles through shared memory, and one reads before the other has written. Whether it
# goes wrong on a GPU depends on the day. Here it is found whatever the order was, since what a barrier tells is kept in
# clocks: both lines are named.


@pk.kernel(warps=2)
def race(x: X, y: X) -> None:
    """Each warp stores 16 rows, and reads those of the other."""
    room = pk.shared(pk.st(f32, 16, 64), count=2)
    warp.store(room[warp.index], warp.load(x, (warp.index, 0), rows=16))
    warp.store(y, warp.load(room[1 - warp.index]), (warp.index, 0))


said = refused(race)
assert "pk.block.sync()" in said and said.count("07_debugging.py") == 2

# **A copy that is still under way.** `load_async` returns at once; what is read before `wait_loads` is whatever lay
# there.


@pk.kernel(warps=1)
def hurried(x: X, y: X) -> None:
    """Reads a tile that is still being copied."""
    room = pk.shared(pk.st(f32, 16, 64))
    warp.load_async(room, x, (0, 0))
    warp.commit()
    warp.store(y, warp.load(room), (0, 0))


assert "wait_loads" in refused(hurried)

# **Memory that nobody has written.**


@pk.kernel(warps=1)
def empty(x: X, y: X) -> None:
    """Reads a tile that nobody has filled."""
    warp.store(y, warp.load(pk.shared(pk.st(f32, 16, 64))), (0, 0))


assert "nothing wrote" in refused(empty)

# **A hang.** A barrier in a branch that only some warps take waits for ever. The compiler knows which warps may differ,
# and refuses it before it runs:


@pk.kernel(warps=2)
def hang(x: X, y: X) -> None:
    """Only the first warp comes to the block's barrier."""
    with pk.when(warp.index == 0):
        pk.block.sync()


assert "block barrier inside a branch on warp.index == 0" in refused(hang)

# And where only the run can tell, it says who waits for what, and why nobody will come:


@pk.kernel(warps=2)
def waits(x: X, y: X) -> None:
    """Both warps wait for an arrival that nobody makes."""
    pk.wait(pk.barrier(), 0)


assert "deadlock" in refused(waits)

# **Tiles that do not fit.** An error while tracing names the rule, the sizes, and what to write instead.


@pk.kernel(warps=1)
def shapes(x: X, y: X) -> None:
    """A row of 32 columns is added to a tile of 64."""
    warp.store(y, warp.load(x, (0, 0), rows=16) + warp.zeros_row(f32, 32), (0, 0))


assert "rv<f32, 32, row_vec> does not fit rt<f32, 16x64>" in refused(shapes)

# **Python that would be frozen.** The kernel is traced: `pk.range` runs its body once for all passes. A Python variable
# that changes in it would keep its first value on the GPU. Every loop is recorded twice, and compared.


@pk.kernel(warps=1)
def frozen(x: X, y: X) -> None:
    """Counts in Python what a loop of the GPU does."""
    row = 0
    for _ in pk.range(x.rows // 16):
        warp.store(y, warp.load(x, (row, 0), rows=16), (row, 0))
        row += 1  # noqa: SIM113


said = refused(frozen)
assert "row" in said and "pk.var" in said

# **A Python `if` on a value of the GPU.**


@pk.kernel(warps=1)
def condition(x: X, y: X) -> None:
    """Asks now for what is known later."""
    if x[0, 0] > 0:
        warp.store(y, warp.load(x, (0, 0), rows=16), (0, 0))


assert "pk.when" in refused(condition)

# **Out of bounds.** What is past the end of a tensor reads as zero, which is meant. A single element that does not
# exist is not:


@pk.kernel(warps=1)
def outside(x: X, y: X) -> None:
    """Reads an element of row 64."""
    warp.set(y, (0, 0), x[64 + pk.block_index.x, 0])


assert "64" in refused(outside)

# **Looking inside.** `pk.print` shows scalars and tiles, in order, also before a mistake; `pk.assert_` stops.


@pk.kernel(warps=1)
def look(x: X, y: X) -> None:
    """Prints the sum of the first row."""
    total = warp.load(x, (0, 0), rows=16).row_sum().max()
    pk.print("the largest sum is", total)
    pk.assert_(total == 64.0, "rows of ones")


assert look.simulate(x, y).lines == ["[block 0,0,0 warp 0] the largest sum is 64.0"]

# On a GPU none of this is checked, and nothing is slower for it. `@pk.kernel(debug=True)` bounds every wait, so that a
# hang becomes an error with the barrier's name, and evaluates assertions there.
