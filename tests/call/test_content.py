"""The names of what programs depend on: the same in every process for the same content, another for any other, and none
for what no name can stand for."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from pykittens import loading
from pykittens.call import content
from pykittens.call.content import Unnamed
from pykittens.call.identity import Identity
from tests.call.test_identity import CASES, reading

START = "import pykittens as pk\nimport functools, math, time\nfrom collections import namedtuple\nimport numpy as np\n"


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own source is nobody's subject here; it may just have been written."""
    monkeypatch.setattr(content, "_source", lambda: "source")


def name_of(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of what `f` depends on in a module of a text, as another process would find it."""
    module = types.ModuleType("users")
    module.__file__ = str(folder / "users.py")
    monkeypatch.setitem(sys.modules, "users", module)
    exec(compile(START + text, module.__file__, "exec"), vars(module))
    return content.name(Identity((module.f,)))


@pytest.mark.parametrize("case", CASES)
def test_what_changes_has_another_name(settled: None, case: str) -> None:
    """Of all that an identity sees: a name is another one, or there is none."""
    value, change = CASES[case]()
    run, names = reading(value), []
    for _ in range(2):
        try:
            names.append(content.name(run.identity))
        except Unnamed:
            names.append("")
        change()
    assert names[0] != names[1] or names == ["", ""]


CLASS = "class B: x = 1\nclass A{}:\n  y = {}\n  def g(self): return {}\ndef f(): return A().g()"
DIFFER = [
    [f"A = {x}\ndef f(): return A" for x in ("2", "2.0", "True", "-2.0", "0.0", "-0.0", "'2'", "b'2'", "2j", "None")],
    [f"A = {x}\ndef f(): return A" for x in ("...", "NotImplemented", "(1, 2)", "[1, 2]", "(1, (2,))", "((1, 2),)")],
    [f"A = {x}\ndef f(): return A" for x in ("'unbounded'", "('a', 'b')", "'ab'", "{'a', 'b'}", "np.float32(2)")],
    [f"def f(x): return {x}" for x in ("x * 2", "x * 2.0", "x + 2", "x * True", "x < 0.0", "x < -0.0", "x.a", "x.b")],
    [f"A = {x}\ndef f(): return A" for x in ("pk.f32", "pk.bf16", "pk.coalesced(8, 4)", "pk.coalesced(16, 4)")],
    [f"A = {x}\ndef f(): return A.load" for x in ("pk.warp", "pk.warpgroup", "pk", "math")],
    [f"A = {x}\ndef f(): return A(1, 2)" for x in ("max", "min", "math.pow", "np.add", "np.multiply", "np.float32")],
    [CLASS.format(*x) for x in (("", 2, "self.y"), ("(B)", 2, "self.y"), ("", 3, "self.y"), ("", 2, "self.y + 1"))],
    [f"T = namedtuple('T', {x})\nA = T({y})\ndef f(): return A.x" for x, y in (("'x y'", "1, 2"), ("'y x'", "1, 2"))],
    [f"T = namedtuple('T', 'x y')\nA = T({x})\ndef f(): return A._replace(y=2).x" for x in ("1, 2", "2, 1")],
    [f"def f(x={x}, *, y={y}): return x" for x, y in ((1, 2), (2, 1), ("(1, 2)", 2), ("[1, 2]", 2))],
    [f"A = functools.partial({x})\ndef f(): return A(3)" for x in ("pow, 2", "pow, 3", "divmod, 2", "pow, 2, mod=5")],
    [f"def g(): return {x}\ndef f(): return g()" for x in (1, 2, "g")],
    [f"def f(x):\n  from math import {x} as g\n  return g(x)" for x in ("sin", "cos")],
    ["def f(): return 1", "\ndef f(): return 1"],  # its line, which errors name
    [
        f"from pykittens.program import Op\nclass A(Op):\n  def cuda(self, c): return {x}\ndef f(): return A()"
        for x in ("'a'", "'b'")
    ],
]


@pytest.mark.parametrize("texts", DIFFER, ids=lambda texts: texts[0])
def test_texts(settled: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str]) -> None:
    """Modules of different texts have different names, and each the same again when it is loaded anew."""
    names = [name_of(text, tmp_path, monkeypatch) for text in texts]
    assert len(set(names)) == len(texts)
    assert [name_of(text, tmp_path, monkeypatch) for text in texts] == names


UNNAMED = [
    "def f(): return open('scale').read()",
    "def f(): return time.time()",
    "def f(): return np.load('scale.npy')",
    "def f(): print('traced')",
    "def f(): return eval('A')",
    "def f(): return id(f)",
    "def f(): return hash('a')",
    "A = object()\ndef f(): return A",
    "@functools.cache\ndef g(): return 1\ndef f(): return g()",
    "def f(): return pk.gpu.driver.capability()",
    "def f(): return pk.kernels.softmax.soften",
    "from pykittens.functions.product import _sum\ndef f(): return _sum",  # whose source is not looked at
    "from pykittens.gpu import driver\ndef f(): return driver.capability()",
    "from pykittens.gpu.driver import capability as g\ndef f(): return g()",
    "def f():\n  import never_loaded\n  return never_loaded.A",
    "def f(): return A",  # which may be bound when it is called
    "import enum\nclass E(enum.Enum):\n  A = 1\nE = E.A\ndef f(): return E",
    "class M(type): pass\nclass A(metaclass=M): pass\ndef f(): return A.x",
    "def g():\n  class A: pass\n  return A\nA = g()\ndef f(): return A.x",
    "import pathlib\ndef f(): return pathlib.Path('a').read_text()",
    "import pytest\ndef f(): return pytest.approx(1)",
    "import decimal\nA = decimal.Decimal(1)\ndef f(): return A",
    "A = pk.kernel(lambda: None)\ndef f(): return A",
    "import string\nclass A(string.Formatter):\n  def get_value(self, *_): return 2\ndef f(): return A().format('{0}')",
]


@pytest.mark.parametrize("text", UNNAMED)
def test_what_has_no_name(settled: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """What may read a file, a clock or a device, keeps results, or is known by where it lies."""
    with pytest.raises(Unnamed):
        name_of(text, tmp_path, monkeypatch)


SHIPPED = """
from pykittens.call import content
from pykittens.kernels import attention_hopper, softmax
content._source = lambda: "source"
print(content.name(attention_hopper.attend.identity), content.name(softmax.soften.identity))
"""


def test_another_process_gives_the_same_names(settled: None) -> None:
    """Of shipped kernels, whatever the hashes of strings are."""
    from pykittens.kernels import attention_hopper, softmax

    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", SHIPPED], capture_output=True, text=True, check=True, env=environment)
    names = [content.name(kernel.identity) for kernel in (attention_hopper.attend, softmax.soften)]
    assert done.stdout.split() == names


def test_source_that_is_newer_than_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was loaded may be another text."""
    monkeypatch.setattr(loading, "BEGAN", 0.0)
    with pytest.raises(Unnamed, match="new"):
        content._source.__wrapped__()


def test_every_folder_is_looked_at_or_has_no_names() -> None:
    package = Path(loading.__file__).parent
    folders = {file.parent.name for file in package.glob("*/__init__.py")} | {"gpu"}
    assert folders - content._OTHER_PARTS <= set(content._TRACED_BY)


def test_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any file of the folders that make programs counts, by its content and its name."""
    monkeypatch.setattr(loading, "BEGAN", float("inf"))
    monkeypatch.setattr(loading, "__file__", str(tmp_path / "loading.py"))
    found: set[str] = set()
    with pytest.raises(Unnamed):
        content._source.__wrapped__()
    for folder in ("", "program", "ops", "trace", "passes", "gpu", "call"):
        (tmp_path / folder).mkdir(exist_ok=True)
    for folder in ("ops", "gpu"):
        for change in (
            lambda file: file.write_text("a"),
            lambda file: file.write_text("b"),
            lambda file: file.rename(file.with_name("c.py")),
        ):
            change(tmp_path / folder / "a.py")
            found.add(content._source.__wrapped__())
    assert len(found) == 6
