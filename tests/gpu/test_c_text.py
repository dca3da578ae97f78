"""People's texts and names in the written C: any text, of any language, arrives as it was."""

import ast
import keyword
import random
import re
import sys

import numpy as np
import pytest

import pykittens as pk
from pykittens import f32, i32, u32, warp
from pykittens.gpu import c_text, cache, compiler

X = pk.spec(f32, (16, 16))
ODD = [
    '"',
    "\\",
    "%d %s %n",
    "??/",
    "??=",
    "a\nb",
    "\0",
    "\x7f",
    "\t",
    "α größe 猫 🐈",
    "*/",
    "//",
    "/*",
    "{",
    "\\\n",
    "\udc80",
    "",
]


@pytest.mark.parametrize("text", ODD)
def test_a_string_literal_holds_the_text(text: str) -> None:
    """Python's bytes literals have C's octal escapes, so that `ast` reads what a C compiler would."""
    literal = c_text.string(text)
    assert literal.isascii() and literal.isprintable() and "?" not in literal
    assert ast.literal_eval(f"b{literal}") == text.replace("\0", "\\x00").encode("utf-8", "backslashreplace")


def test_random_texts() -> None:
    dice = random.Random(0)
    for _ in range(300):
        text = "".join(
            chr(dice.choice((dice.randrange(128), dice.randrange(0xD800)))) for _ in range(dice.randrange(9))
        )
        assert ast.literal_eval(f"b{c_text.string(text)}") == text.replace("\0", "\\x00").encode()
        shown = c_text.comment(text)
        assert "\n" not in shown and "\\" not in shown and shown.count("{") == shown.count("}") == 0
        assert re.fullmatch(r"\w*", c_text.ascii_name(text), re.ASCII)


def made(source: str, name: str, file: str = "<made>"):
    """The kernel `name` of a source text."""
    scope = {"pk": pk, "f32": f32, "i32": i32, "u32": u32, "warp": warp}
    exec(compile(source, file, "exec"), scope)
    return scope[name]


def named(kernel: str = "k", tensor: str = "x", shared: str = "t", tile: str = "a", number: str = "n"):
    """A kernel whose names are the author's choice."""
    return made(
        f"""
@pk.kernel(warps=1)
def {kernel}({tensor}: pk.gl(f32, 16, 16), {number}: u32):
    {shared} = pk.shared(pk.st(f32, 16, 16))
    for i in pk.range(2):
        {tile} = pk.rcp(warp.load({tensor}, (0, 0), rows=16) / 3.0) * pk.cast({number} // 3, f32)
        warp.store({shared}, {tile}); warp.sync()
        {tile} = warp.load({shared}); warp.sync()
        warp.store({tensor}, pk.where(pk.random_bits({tile}, ({number}, 0)) > 5, {tile}, 0.0), (0, 0))
""",
        kernel,
    )


def words() -> list[str]:
    """Names that mean something somewhere: to C++, to CUDA, in the text of a kernel, to nobody."""
    text = named().cuda(X, 3, arch="sm_90a")
    c = (
        "int class template asm restrict alignas constexpr co_await typename export NULL INT_MAX main printf erf rcp "
        "threadIdx __global__"
    )
    found = {*re.findall(r"[A-Za-z_]\w*", text), *c.split(), *"α größe 变量 v1 s w i j k r u8 Global".split()}
    return sorted(w for w in found if w.isidentifier() and w not in "pk f32 i32 u32 warp i k x t a n".split())


def test_no_name_changes_the_code() -> None:
    """The text is the same, but for comments, whatever tensors, tiles and numbers are called."""
    want = cache.key(named().cuda(X, 3, arch="sm_90a"), "sm_90a")
    taken = [word for word in words() if not keyword.iskeyword(word)]
    for i in range(len(taken)):  # each word in each place
        tensor, shared, tile, number = (taken[(i + k) % len(taken)] for k in range(4))
        text = named(tensor=tensor, shared=shared, tile=tile, number=number).cuda(X, 3, arch="sm_90a")
        assert cache.key(text, "sm_90a") == want, (tensor, shared, tile, number)


@pytest.mark.parametrize("name", ["main", "printf", "größe", "export", "rcp", "pk_rcp", "kernel", "v_1", "__global__"])
def test_a_kernel_may_have_any_name(name: str) -> None:
    text = named(kernel=name).cuda(X, 3, arch="sm_80")
    assert compiler.compile(text, "sm_80").entry == f"pk_kernel_{c_text.ascii_name(name)}"


def test_names_are_shown_as_comments() -> None:
    text = named(tensor="größe", shared="kept").cuda(X, 3, arch="sm_80")
    assert "// größe\n" in text and "// kept: 1 x " in text


def test_texts_compile() -> None:
    """Printed and asserted texts, labels of roles and barriers, and the file's own name."""

    @pk.kernel(warps=len(ODD), debug=True)
    def speaks(x: pk.gl(f32, 16, 16), n: i32) -> None:
        t = warp.load(x, (0, 0), rows=16)
        for text in ODD:
            pk.print(text, n, text, n > 3, 0.5, t.row_sum(), t > 0.0)
            pk.assert_(n > 0, text)
        for text in ODD:
            with pk.role(text, warps=1):
                pk.wait(pk.barrier(1), 0)

    assert compiler.compile(speaks.cuda(X, 3, arch="sm_90a"), "sm_90a").warnings == ()


@pytest.mark.parametrize(
    "file", ['a "b".py', "a\nb.py", "α.py", "C:\\new\\x.py", "??/.py", "<ipython-input-1>", "a%d.py"]
)
def test_errors_name_the_file(file: str) -> None:
    name = f"k{abs(hash(file))}"  # equal code in another file is the same kernel
    k = made(f"@pk.kernel(warps=1)\ndef {name}(x: pk.gl(f32, 16, 16)):\n    pk.cuda('syntax')\n", name, file)
    with pytest.raises(compiler.CompileError) as error:
        compiler.compile(k.cuda(X, arch="sm_80"), "sm_80")
    assert f"{file}(" in str(error.value)


def test_operands_of_inline_text() -> None:
    """Each operand is put in once; numbers are literals; braces of C stay."""

    @pk.kernel(warps=1)
    def k(x: pk.gl(f32, 16, 16), n: i32) -> None:
        t = warp.load(x, (0, 0), rows=16)
        pk.cuda(
            "const float half[1] = {{b}}; int n = {n}; UNROLLED: if ({yes}) {t}[0] = half[0] + n + (float){big};",
            writes={"t": t},
            reads={"b": 0.5, "n": n, "yes": True, "big": 2**40},
            numpy=lambda t, **_: t,
        )
        warp.store(x, t, (0, 0))

    text = k.cuda(X, 3, arch="sm_80")
    assert re.search(
        r"half\[1\] = \{0\.5f\}; int n = v_\d+; .* if \(true\) v_\d+\[0\] = .*\(float\)1099511627776ll;", text
    )
    assert compiler.compile(text, "sm_80").image


@pytest.mark.parametrize("text", ["int pk_rcp = 3;", "float v_3;"])
def test_inline_text_may_not_take_the_compiler_s_names(text: str) -> None:
    def kernel(inline: str, support: str):
        @pk.kernel(warps=1)
        def k(x: pk.gl(f32, 16, 16)) -> None:
            pk.cuda(inline, support=support)

        return k

    for inline, support in ((text, ""), ("", text)):
        with pytest.raises(pk.TypeRuleError, match="is a name of the compiler's") as error:
            kernel(inline, support).program(X)
        mended = text.replace(error.value.fix.split()[-1].replace("pk", "pk_", 1).replace("v", "v_", 1), "x")
        fixed = re.sub(r"\bpk_|\bv_", lambda found: found[0][:-1], text)  # what the fix says
        assert mended != text and kernel(fixed if inline else "", fixed if support else "").program(X)


def test_writing_is_linear() -> None:
    """Work grows with the operations: counted in Python's own steps, not in seconds."""

    @pk.kernel(warps=1)
    def long(x: pk.gl(f32, 16, 16), *, n: int) -> None:
        t = warp.load(x, (0, 0), rows=16)
        for _ in range(n):
            t = t * 1.5
        warp.store(x, t, (0, 0))

    def steps(n: int) -> int:
        count = 0

        def step(frame, event, arg):
            nonlocal count
            count += 1
            return step

        program = long.program(X, n=n)
        sys.settrace(step)
        try:
            long.cuda(X, n=n, arch="sm_80")
        finally:
            sys.settrace(None)
        assert program is not None
        return count

    a, b = steps(100), steps(400)
    assert b < 4.5 * a, (a, b)


def test_prints_on_both_back_ends(capsys: pytest.CaptureFixture[str]) -> None:
    @pk.kernel(warps=1)
    def k(x: pk.gl(f32, "M", 16)) -> None:
        t = warp.load(x, (0, 0), rows=16)
        pk.print("rows", x.rows, "and", x.rows > 3, 0.5, t.row_sum())
        pk.assert_(x.rows < 10, "too many rows")

    x = np.ones((16, 16), np.float32)
    with pytest.raises(pk.KernelAssertionError, match="too many rows"):
        k(x)
    assert capsys.readouterr().out.startswith("[block 0,0,0 warp 0] rows 16 and True 0.5 [16. 16.")
    text = k.cuda(X, arch="sm_80")
    assert r"rows %lld and %s %g <" in text and '? "True" : "False"' in text
