"""Each fix that an error proposes is applied, and then works.

Every `raise ...(fix=...)` of the folders below is found in the source, and must be reached by the first program of a
row in `programs.py`, whose second program is what the fix says. A new fix needs a row.
"""

import ast
import linecache
import traceback
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest

import pykittens as pk
from pykittens import f32, warp
from pykittens.errors import shortened
from tests.fixes.programs import CALLS, HERE, KERNELS

PACKAGE = Path(pk.__file__).parent
SEARCHED = [*PACKAGE.glob("ops/*.py"), *PACKAGE.glob("trace/*.py"), *PACKAGE.glob("call/*.py"), PACKAGE / "types.py"]
FULL = {  # what kernel lines see of the caller
    **{name: getattr(pk, name) for name in ("bf16", "block", "e4m3", "f16", "f32", "i32", "u8", "warp", "warpgroup")},
    "pk": pk,
    "np": np,
    "Annotated": Annotated,
}


@cache
def sites() -> dict[tuple[str, int], str]:
    """Every fix that is raised, by each line of its statement: the module, the function, and the fact."""
    found = {}
    for path in SEARCHED:
        module = path.relative_to(PACKAGE).as_posix()

        def visit(node: ast.AST, inside: str, path: Path = path, module: str = module) -> None:
            for child in ast.iter_child_nodes(node):
                name = f"{inside}.{child.name}".strip(".") if hasattr(child, "name") and child.name else inside
                if isinstance(child, ast.Raise) and isinstance(child.exc, ast.Call):
                    call = child.exc
                    if any(k.arg == "fix" for k in call.keywords) and call.args:
                        for line in range(child.lineno, (child.end_lineno or child.lineno) + 1):
                            found[str(path), line] = f"{module} {inside}: {ast.unparse(call.args[0])}"
                visit(child, name)

        visit(ast.parse(path.read_text(encoding="utf-8")), "")
    return found


def kernel(lines: str, number: int, options: dict[str, Any]) -> pk.Kernel:
    """A kernel of some lines, whose source errors can show."""
    body = "".join(f"    {line}\n" for line in (HERE + lines).strip().splitlines())
    head = (
        'def made(x: pk.gl(f32, "N", 64), h: pk.gl(bf16, "N", 64), i: pk.gl(i32, "N", 64), w: pk.gl(f32, "N", "W"), '
        'q: pk.gl(f32, "N", "Q"), u: pk.gl(bf16, "N", 64), one: pk.gl(i32, 1), n: i32):\n'
    )
    file, text = f"<fix {number}>", head + body
    linecache.cache[file] = (len(text), None, text.splitlines(True), file)
    space: dict[str, Any] = {**FULL}
    exec(compile(text, file, "exec", dont_inherit=True), space)
    return pk.kernel(**{"warps": 4, **options})(space["made"])


def trace(lines: str, number: int = 0, options: dict[str, Any] | None = None) -> None:
    """Records, and writes as CUDA C, a kernel of some lines."""
    wide, odd = pk.spec(f32, (64, 64)), pk.spec(f32, (64, 66), align=8)
    halves, integers = pk.spec(pk.bf16, (64, 64)), pk.spec(pk.i32, (64, 64))
    made, narrow = kernel(lines, number, options or {}), pk.spec(pk.bf16, (64, 64), strides=(65, 1), align=2)
    made.cuda(wide, halves, integers, wide, odd, narrow, pk.spec(pk.i32, (1,)), 3)


def call(lines: str, number: int = 0, options: dict[str, Any] | None = None) -> None:
    """Runs lines of a program that calls kernels."""

    @pk.kernel(warps=1)
    def k(x: pk.gl(f32, "N", 64), y: pk.gl(f32, "N", 64), *, by: int = 1) -> None:
        warp.store(y, warp.load(x, (0, 0), rows=16), (0, 0))

    @pk.kernel(warps=1)
    def times(x: pk.gl(f32, "N", 64), n: pk.i32) -> None:
        warp.store(x, warp.load(x, (0, 0), rows=16), (0, 0))

    @pk.kernel(warps=1)
    def scaled(x: pk.gl(f32, "N", 64), by: f32) -> None:
        warp.store(x, warp.load(x, (0, 0), rows=16) * by, (0, 0))

    @pk.kernel(warps=1)
    def divided(x: pk.gl(f32, "N", 64), n: pk.i32) -> None:
        warp.set(x, (0, 0), pk.cast(8 // n, f32))

    @pk.kernel(warps=1)
    def guarded(x: pk.gl(f32, "N", 64), n: pk.i32) -> None:
        warp.set(x, (0, 0), pk.cast(8 // pk.maximum(n, 1), f32))

    def idle(x: pk.gl(f32, "N", 64)) -> None:
        pass

    space = {
        **FULL,
        **{f.__name__: f for f in (k, times, scaled, divided, guarded, idle)},
        "A": np.ones((16, 64), np.float32),
    }
    if "torch" in lines:
        space["torch"] = pytest.importorskip("torch")
    file = f"<call {number}>"
    linecache.cache[file] = (len(lines), None, lines.splitlines(True), file)
    exec(compile(lines, file, "exec", dont_inherit=True), space)


ROWS = [
    (run, row[0], row[1], row[2] if len(row) > 2 else {}, row[-1] if len(row) > 2 else {})
    for run, rows in ((trace, KERNELS), (call, CALLS))
    for row in rows
]


@cache
def refusal(number: int) -> tuple[pk.KernelError, str]:
    """The error of a row's first program, and which fix it is."""
    run, fails, _, options, _ = ROWS[number]
    try:
        run(fails, number, options)
    except pk.KernelError as error:
        places = [(f.filename, f.lineno or 0) for f in traceback.extract_tb(error.__traceback__)]
        return error, next((sites()[place] for place in reversed(places) if place in sites()), "")
    raise AssertionError(f"not refused: {fails}")


@pytest.mark.parametrize("number", range(len(ROWS)), ids=[row[1].splitlines()[-1] for row in ROWS])
def test_a_fix_works(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _, works, _, options = ROWS[number]
    error, site = refusal(number)
    monkeypatch.delenv("PYKITTENS_TRACEBACK")
    assert site, f"raised where no fix was looked for: {error}"
    assert error.fix and str(error).endswith(f"fix: {error.fix}")
    frames = traceback.extract_tb(shortened(error).__traceback__)
    assert frames[-1].filename in (f"<fix {number}>", f"<call {number}>", __file__), "the user's line is the last"
    assert not any(frame.filename.startswith(str(PACKAGE)) for frame in frames)
    run(works, 0, options)


def test_every_fix_has_a_row() -> None:
    reached = {refusal(number)[1] for number in range(len(ROWS))}
    missing = {*sites().values()} - reached
    assert not missing, "these fixes need a row in programs.py: " + "\n".join(sorted(missing))
