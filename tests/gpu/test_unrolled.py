"""Loops that are written out do what the loops did."""

import re
from itertools import product

import pytest

from pykittens.gpu.compiler import compile
from pykittens.gpu.unrolled import LONGEST, MANY, prepared, written_out

COMMENT, STRING = "/* PK_UNROLL for (int i = 0; i < 2; i++) x; */", '"PK_UNROLL for (int i = 0; i < 2; i++) x;"'


def seen(source: str) -> list[object]:
    """What a text of braces and of calls of `see` would see, one after another."""
    found: list[object] = []
    text = written_out(source)
    assert "for" not in text, text
    for call in filter(str.strip, re.sub(r"[{}]", " ", text).split(";")):
        exec(call.strip(), {"see": found.append})
    return found


@pytest.mark.parametrize("braces", [False, True])
def test_every_pass_in_order(braces: bool) -> None:
    inner = "PK_UNROLL for (int j = 1; j < 4; j++) see((i, j, i * 10 + j));"
    outer = f"PK_UNROLL for (int i = 0; i < 5; i++) {f'{{ {inner} }}' if braces else inner}"
    assert seen(outer) == [(i, j, 10 * i + j) for i, j in product(range(5), range(1, 4))]


def test_only_the_variable_is_replaced() -> None:
    text = "PK_UNROLL for (int i = 0; i < 2; i++) { f(\"i %i\", x.i, i, ii, i_1, 'i'); }  // i"
    assert written_out(text) == (
        "{ { f(\"i %i\", x.i, 0, ii, i_1, 'i'); } { f(\"i %i\", x.i, 1, ii, i_1, 'i'); } }  // i"
    )


@pytest.mark.parametrize(
    "statement",
    [
        "if (a) x[i] = 1; else if (b) x[i] = 2; else { x[i] = 3; }",
        "while (a(i)) { x[i]--; }",
        "switch (i) { case 0: f(); }",
        "u = pk_u32x2{i, 1};",
        "do { a(i); } while (b[i]);",
        'asm volatile("{ .reg .pred p; }" :: "r"(i));',
        "{ const int r = i; x[r] = r; }",
    ],
)
def test_a_whole_statement_is_repeated(statement: str) -> None:
    text = f"if (c) PK_UNROLL for (int i = 0; i < 2; i++) {statement} g(i);"
    both = " ".join(re.sub(r"\bi\b", number, statement) for number in "01")
    assert written_out(text) == f"if (c) {{ {both} }} g(i);"


@pytest.mark.parametrize(
    "text",
    [
        "PK_UNROLL for (int i = 0; i < N; i++) x[i] = 0;",
        "PK_UNROLL for (int i = j / 8; i < 2; i++) x[i] = 0;",
        "PK_UNROLL for (int i = 0; i < 4; i += 2) x[i] = 0;",
        f"PK_UNROLL for (int i = 0; i < {LONGEST + 1}; i++) x[i] = 0;",
        "PK_UNROLL for (int i = 0; i < 4; i++) { if (x[i]) break; }",
        "PK_UNROLL for (int i = 0; i < 4; i++) { if (x[i]) continue; f(); }",
        "PK_UNROLL for (int i = 0; i < 4; i++) { int i = 2; f(i); }",
        '_Pragma("unroll 1") for (int i = 0; i < 4; i++) x[i] = 0;',
        COMMENT,
        STRING,
        f'R"(a " {COMMENT} PK_UNROLL for (int i = 0; i < 2; i++) x;)"',
        "// PK_UNROLL for (int i = 0; i < 2; i++) x;\nf();",
    ],
)
def test_what_stays(text: str) -> None:
    assert written_out(text) == text


def test_within_what_stays() -> None:
    text = "PK_UNROLL for (int i = 0; i < N; i++) PK_UNROLL for (int j = 0; j < 2; j++) x[i][j] = 0;"
    assert written_out(text) == "PK_UNROLL for (int i = 0; i < N; i++) { x[i][0] = 0; x[i][1] = 0; }"


def test_lines_of_directives_and_comments_stay_lines() -> None:
    text = "PK_UNROLL for (int i = 0; i < 2; i++) {\n#line 3\nx[i] = 0;  // i\n}\n"
    once = "{\n#line 3\nx[%d] = 0;  // i\n}"
    assert written_out(text) == f"{{ {once % 0} {once % 1} }}\n"


def test_the_code_is_the_same() -> None:
    """A straight text compiles to the instructions of its loops."""
    head = '#define PK_UNROLL _Pragma("unroll")\nextern "C" __global__ void f(float* x) { float v[4];\n'
    loops = "".join(f"PK_UNROLL for (int i = 0; i < 4; i++) {text}\n" for text in ("v[i] = x[i];", "x[i] = v[i] * 2;"))
    straight = " ".join(f"x[{i}] = v[{i}] * 2;" for i in range(4))
    first = " ".join(f"v[{i}] = x[{i}];" for i in range(4))
    images = [compile(f"{head}{text}\n}}", "sm_90").image for text in (loops, first + "\n" + straight)]
    assert images[0] == images[1]


def test_a_text_of_few_loops_is_compiled_as_it_is() -> None:
    loop = "PK_UNROLL for (int i = 0; i < 2; i++) x[i] = 0;\n"
    assert prepared(loop * MANY) == loop * MANY
    assert prepared(loop * (MANY + 1)) == "{ x[0] = 0; x[1] = 0; }\n" * (MANY + 1)
