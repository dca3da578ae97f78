"""Dataclasses that are made later are those that Python makes at once."""

import dataclasses
import gc
import inspect
import subprocess
import sys
import threading
from typing import Any

import pytest

from pykittens.loading import dataclass, uncollected


def classes(dataclass: Any) -> tuple[Any, Any]:
    @dataclass(frozen=True)
    class Base:
        a: int
        b: list[int] = dataclasses.field(default_factory=list)

    @dataclass(frozen=True)
    class Derived(Base):
        c: str = "c"

        def __post_init__(self) -> None:
            object.__setattr__(self, "a", self.a + 1)

    return Base, Derived


@pytest.mark.parametrize("ask", ["fields", "make", "is_dataclass", "derive", "plain"])
def test_later_is_the_same(ask: str) -> None:
    now, later = classes(dataclasses.dataclass), classes(dataclass)
    (_, one), (_, other) = now, later
    if ask == "fields":
        assert [f.name for f in dataclasses.fields(other)] == [f.name for f in dataclasses.fields(one)] == [*"abc"]
    if ask == "is_dataclass":
        assert dataclasses.is_dataclass(other)
    if ask == "derive":
        child = dataclasses.make_dataclass("Child", [("d", int, 4)], bases=(other,), frozen=True)
        assert [*vars(child(1))] == [*"abcd"]
    if ask == "plain":
        assert vars(type("Plain", (other,), {})(1)) == {"a": 2, "b": [], "c": "c"}
    x, y = one(1, c="x"), other(1, c="x")
    assert repr(x) == repr(y)
    assert y == other(1, [], "x") != other(2)
    assert dataclasses.replace(y, c="z") == other(2, [], "z")
    with pytest.raises(dataclasses.FrozenInstanceError):
        y.a = 3
    with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'a'"):
        other()


def test_what_never_saw_init_is_one_too() -> None:
    """As an instance that was pickled in another process."""
    now, later = (pair[1].__new__(pair[1]) for pair in (classes(dataclasses.dataclass), classes(dataclass)))
    for x in (now, later):
        vars(x).update(a=1, b=[], c="c")
    assert repr(now) == repr(later)
    assert later == dataclasses.replace(later, a=0)


def test_an_init_of_its_own_stays() -> None:
    @dataclass
    class Own:
        a: int

        def __init__(self) -> None:
            self.a = 5

    assert Own().a == 5 and dataclasses.fields(Own)[0].name == "a"


def compared(dataclass: Any) -> list[Any]:
    @dataclass(frozen=True)
    class Two:
        a: Any
        b: Any = dataclasses.field(default=1, compare=False, repr=False)

    @dataclass(frozen=True)
    class Nothing:
        pass

    @dataclass
    class Changing:
        a: Any

    @dataclass(frozen=True)
    class Own:
        a: Any

        def __eq__(self, other: object) -> bool:
            return True

        def __repr__(self) -> str:
            return "own"

    @dataclass(frozen=True, eq=False)
    class Same:
        a: Any

    @dataclass(frozen=True)
    class Child(Two):
        c: Any = 3

    nan = float("nan")

    @dataclass(frozen=True)
    class Kinds:
        set: Any
        assign: Any = dataclasses.field(default_factory=list, compare=False)
        own: int = dataclasses.field(default=5, init=False)
        word: str = dataclasses.field(default="w", kw_only=True)
        must: str = dataclasses.field(kw_only=True)

    some: list[Any] = [Kinds(1, must="m"), Kinds(1, [2], must="m", word="v")]
    some += [Two(1), Two(1, 2), Two(1.0), Two(2), Two(nan), Nothing(), Changing(1), Changing(1), Own(1), Own(2)]
    some += [Same(1), Same(1), Child(1), Child(1, c=4)]
    found: list[Any] = [repr(x).replace(x.__class__.__qualname__, type(x).__name__) for x in some]
    found += [[x == y for y in some] for x in some]
    found += [str(vars(x)) for x in some]
    for x in some:
        taken = inspect.signature(type(x).__init__).parameters.values()
        found.append([(parameter.name, parameter.kind, parameter.annotation) for parameter in taken])
    for x in some:
        try:
            x.more = 1
            found.append("more")
        except dataclasses.FrozenInstanceError as error:
            found.append(str(error))
        try:
            found.append([hash(x) == hash(y) for y in some if type(y) is type(x)])
        except TypeError as error:
            found.append(str(error).replace(type(x).__qualname__, ""))
    return found


def test_comparison_and_repr_are_pythons() -> None:
    assert compared(dataclass) == compared(dataclasses.dataclass)


def test_several_threads_make_one_class() -> None:
    for _ in range(20):
        _, later = classes(dataclass)
        start, made = threading.Barrier(4), []

        def make(later: Any = later, start: Any = start, made: Any = made) -> None:
            start.wait()
            made.append(later(1))

        threads = [threading.Thread(target=make) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(made) == 4 and all(x == made[0] for x in made)


def test_collection_is_as_it_was() -> None:
    assert gc.isenabled()
    with pytest.raises(ValueError, match="x"), uncollected(), uncollected():
        assert not gc.isenabled()
        raise ValueError("x")
    assert gc.isenabled()
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_words_are_loaded_without_most_dataclasses() -> None:
    """In a new process, the vocabulary's operations are classes that are not made yet, and none is collected for."""
    program = (
        "import dataclasses, gc; made = []; real = dataclasses._process_class\n"
        "dataclasses._process_class = lambda cls, *rest: (made.append(cls.__module__), real(cls, *rest))[1]\n"
        "import numpy, ml_dtypes; import pykittens as pk; pk.kernel\n"
        "print(sum(x.startswith('pykittens.ops') for x in made), gc.isenabled())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    count, enabled = done.stdout.split()
    assert int(count) <= 5 and enabled == "True"
