"""The structure is what docs/design.md says: a file imports from the rows of the table above its own, and never in a
circle."""

import ast
import functools
import importlib
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

import pykittens
import pykittens.kernels

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pykittens"

# (file, what it imports from below its row or in a circle), and why. Imports inside functions count.
EXCEPTIONS = {
    ("interop.frameworks", "gpu"): "only the driver knows which device a pointer belongs to",
    ("interop.views", "interop.arrays"): "a view shows an array of any framework, and is one",
}


def modules() -> dict[str, Path]:
    """Every module by its name within the package, but the package itself: it is the vocabulary, which kernels import
    as users do."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if name := ".".join(parts[:-1] if parts[-1] == "__init__" else parts):
            found[name] = path
    del found["__main__"]
    return found


MODULES = modules()


@functools.cache
def tree(name: str) -> ast.Module:
    """A module, parsed."""
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


@functools.cache
def nodes_of(name: str) -> list[ast.AST]:
    """All nodes of a module."""
    return [*ast.walk(tree(name))]


def run_time(node: ast.AST) -> Iterator[ast.AST]:
    """A tree's nodes, but for what only a type checker reads: types may name one another in a circle."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from run_time(child)


def imports(name: str, nodes: Callable[[str], Iterable[ast.AST]] = nodes_of) -> set[str]:
    """The modules of the package that a module imports anywhere."""
    path, found = MODULES[name], set()
    for node in nodes(name):
        if isinstance(node, ast.ImportFrom):
            package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
            if node.level:
                base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
            elif (node.module or "").split(".")[0] == "pykittens":
                base = (node.module or "").split(".")[1:]
            else:
                continue
            for alias in node.names:
                full, short = ".".join([*base, alias.name]), ".".join(base)
                found |= {full if full in MODULES else short} & set(MODULES)
    return {
        target
        for target in found - {name}
        if not any(n == name and f"{target}.".startswith(f"{t}.") for n, t in EXCEPTIONS)
    }


def private_names(name: str) -> list[str]:
    """What begins with an underscore and belongs to a module of another folder, where `name` reads it: imported by
    name, or an attribute of an imported module or of what was imported from it."""
    found, foreign = [], set()
    for node in nodes_of(name):
        if isinstance(node, ast.ImportFrom) and (node.level > 1 or (node.module or "").startswith("pykittens")):
            foreign |= {alias.asname or alias.name for alias in node.names}
            found += [alias.name for alias in node.names if re.match(r"_(?!_)", alias.name)]
    for node in nodes_of(name):
        if isinstance(node, ast.Attribute) and re.match(r"_(?!_)", node.attr):
            owner = node.value
            while isinstance(owner, ast.Attribute):
                owner = owner.value
            if isinstance(owner, ast.Name) and owner.id in foreign:
                found.append(ast.unparse(node))
    return found


def test_every_file_is_in_the_grammar_of_the_oldest_python() -> None:
    oldest = re.search(r'requires-python = ">=3\.(\d+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert oldest
    for path in MODULES.values():
        ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, int(oldest[1])))


def test_no_folder_reads_private_names_of_another() -> None:
    found = {name: names for name in MODULES if (names := private_names(name))}
    assert not found, found


# What a family of kernels has of its own: how it is configured, its launches, how its work is divided.
OF_A_FAMILY = {"Config", "Steps", "ForwardSteps", "BackwardSteps", "Cut", "Divided"}


def test_two_classes_never_share_a_name() -> None:
    places: dict[str, list[str]] = {}
    for name in MODULES:
        for node in tree(name).body:
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(name)
    shared = {name: where for name, where in places.items() if len(where) > 1}
    family = {name for name in shared if all(module.startswith("kernels.") for module in shared[name])}
    assert set(shared) == family & OF_A_FAMILY, shared


def test_files_import_from_the_rows_above() -> None:
    table = re.findall(r"^\| (`.*?) \|", (ROOT / "docs/design.md").read_text(encoding="utf-8"), re.M)
    rows = {
        name.removesuffix(".py").rstrip("/"): i
        for i, cell in enumerate(table)
        for name in re.findall(r"`(\w+(?:\.py|/))`", cell)
    }
    assert {name.split(".")[0] for name in MODULES} == set(rows)
    upward = [
        f"{name} imports {target}"
        for name in MODULES
        for target in imports(name)
        if rows[target.split(".")[0]] > rows[name.split(".")[0]]
    ]
    assert not upward, upward


def test_no_files_import_one_another_in_a_circle() -> None:
    left = {name: imports(name, lambda name: run_time(tree(name))) for name in MODULES}
    while free := [name for name, needs in left.items() if not needs & set(left)]:
        for name in free:
            del left[name]
    assert not left, left


def test_exceptions_are_needed() -> None:
    for name, target in EXCEPTIONS:
        text = MODULES[name].read_text(encoding="utf-8")
        assert re.search(rf"from \.+{target.removeprefix('interop.')}\b", text), (name, target)


def test_no_public_name_hides_a_folder() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert not folders & set(pykittens.__all__)


def test_who_looks_for_a_function_among_kernels_is_told_where_it_is() -> None:
    for name in pykittens.PUBLIC:
        if (PACKAGE / "kernels" / f"{name}.py").exists():  # the module of its kernels, whoever imported what before
            assert importlib.import_module(f"pykittens.kernels.{name}") is getattr(pykittens.kernels, name)
        else:
            with pytest.raises(ImportError, match=rf"the function {name} is pykittens\.{name}"):
                getattr(pykittens.kernels, name)
    assert not hasattr(pykittens.kernels, "nobody")
