"""The cache: what the key depends on, damage, sharing between processes, ahead-of-time directories."""

import dataclasses
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from pykittens.gpu import cache, trust
from pykittens.gpu import store as stores
from pykittens.gpu.cache import Cache, key, load_or_compile
from pykittens.gpu.compiler import CompileError, CompilerMissing, Cubin

CUBIN = Cubin(
    image=bytes(range(256)) * 200,
    entry="multiply",
    arch="sm_90a",
    log="one\ntwo ü",
    registers=168,
    stack_bytes=0,
    spill_store_bytes=4,
    spill_load_bytes=8,
    shared_bytes=1024,
    warnings=("ptxas info    : (C7510) slow",),
    compiler="NVRTC 13.5",
    seconds=0.25,
)
NAME = key("text", "sm_90a")


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the compiler by one that only counts."""
    calls: list[str] = []

    def count(source: str, arch: str, *, options: tuple[str, ...] = ()) -> Cubin:
        calls.append(arch)
        return CUBIN

    monkeypatch.setattr(cache, "compile", count)
    return calls


def test_key_ignores_lines_and_nothing_else() -> None:
    source = '#line 3 "a.py"\nint x;\n  # line 9 "b.py"\nint y;\n'
    assert key(source, "sm_80") == key("int x;\nint y;\n", "sm_80")
    others = [("int x; int y;\n", "sm_80", ()), (source, "sm_86", ()), (source, "sm_80", ("-lineinfo",))]
    assert len({key(source, "sm_80"), *(key(*other) for other in others)}) == 4
    assert key("#linear", "sm_80") != key("", "sm_80")


def test_round_trip(tmp_path: Path) -> None:
    store = Cache(tmp_path / "deep" / "er")
    assert store.get(NAME) is None
    written = store.put(NAME, CUBIN)
    assert store.get(NAME) == CUBIN
    assert [written] == list(store.path.iterdir())


@pytest.mark.parametrize("where", [0, 20, 90, 200, 2000, -1])
def test_every_flipped_bit_is_noticed(tmp_path: Path, where: int) -> None:
    store = Cache(tmp_path)
    entry = bytearray(store.put(NAME, CUBIN).read_bytes())
    entry[where] ^= 4
    store.file(NAME).write_bytes(entry)
    assert store.get(NAME) is None


@pytest.mark.parametrize("content", [b"", b"\n", b"\n\n", b"\x80\x04K\x01.", b"pykittens-cubin-1"])
def test_foreign_files_are_no_entries(tmp_path: Path, content: bytes) -> None:
    store = Cache(tmp_path)
    store.file(NAME).write_bytes(content)
    assert store.get(NAME) is None


def test_truncated_and_renamed_entries_are_no_entries(tmp_path: Path) -> None:
    store = Cache(tmp_path)
    entry = store.put(NAME, CUBIN).read_bytes()
    store.file("other").write_bytes(entry)
    assert store.get("other") is None
    store.file(NAME).write_bytes(entry[:-1])
    assert store.get(NAME) is None


def test_compiles_once_and_again_after_damage(compilations: list[str], own_cache: Path) -> None:
    assert load_or_compile("text", "sm_90a") == CUBIN
    assert load_or_compile('#line 8 "moved.py"\ntext', "sm_90a") == CUBIN
    assert len(compilations) == 1
    Cache(own_cache).file(NAME).write_bytes(b"damaged")
    assert load_or_compile("text", "sm_90a") == CUBIN
    assert load_or_compile("text", "sm_90a") == CUBIN
    assert len(compilations) == 2


def test_a_directory_that_cannot_be_written_only_costs_time(compilations: list[str], own_cache: Path) -> None:
    own_cache.write_text("a file where the directory should be")
    assert load_or_compile("text", "sm_90a") == load_or_compile("text", "sm_90a") == CUBIN
    assert len(compilations) == 2


def test_ahead_of_time_directories_need_no_compiler(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object, **__: object) -> Cubin:
        raise CompilerMissing("no compiler")

    monkeypatch.setattr(cache, "compile", missing)
    monkeypatch.setenv("PYKITTENS_AOT", os.pathsep.join([str(tmp_path / "none"), str(tmp_path / "shipped")]))
    Cache(tmp_path / "shipped").put(NAME, CUBIN)
    assert load_or_compile("text", "sm_90a") == CUBIN
    assert not own_cache.exists()
    with pytest.raises(CompilerMissing, match=r"nor is the kernel compiled for sm_80 in .*shipped"):
        load_or_compile("text", "sm_80")


def test_a_refused_kernel_is_not_kept(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Cubin:
        raise CompileError("no", "log", "text")

    monkeypatch.setattr(cache, "compile", refuse)
    with pytest.raises(CompileError):
        load_or_compile("text", "sm_90a")
    assert not own_cache.exists()


def test_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.ahead_of_time() == ()
    monkeypatch.delenv("PYKITTENS_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache.user_directory() == Path("/xdg/pykittens")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/kitten")
    assert cache.user_directory() == Path("/home/kitten/.cache/pykittens")
    monkeypatch.setenv("PYKITTENS_CACHE", "~/kernels")
    monkeypatch.setenv("PYKITTENS_AOT", "~/shipped")
    assert (cache.user_directory(), *cache.ahead_of_time()) == (
        Path("/home/kitten/kernels"),
        Path("/home/kitten/shipped"),
    )


def write_and_read(path: Path, rounds: int) -> int:
    """Runs in several processes at once: the same entry over and over. Returns how often it read damage."""
    store = Cache(path)
    store.put(NAME, CUBIN)
    damaged = 0
    for _ in range(rounds):
        store.put(NAME, CUBIN)
        damaged += store.get(NAME) != CUBIN
    return damaged


def test_processes_share_a_directory(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        assert pool.starmap(write_and_read, [(tmp_path, 100)] * 4) == [0] * 4
    assert [file.name for file in tmp_path.iterdir()] == [f"{NAME}.kernel"]


def test_reading_is_fast(tmp_path: Path) -> None:
    store = Cache(tmp_path)
    store.put(NAME, CUBIN)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        store.get(NAME)
        times.append(time.perf_counter() - start)
    assert min(times) < 2e-3


# Trust --------------------------------------------------------------------------------------------------------


def test_what_others_could_write_is_not_loaded(compilations: list[str], own_cache: Path) -> None:
    """The file, its directory, or one above that is not sticky; and with the fix that the warning names it is
    loaded."""
    if os.name == "nt":
        pytest.skip("Windows has no such modes")
    own_cache = own_cache / "deep" / "er"
    os.environ["PYKITTENS_CACHE"] = str(own_cache)  # which the fixture takes back
    load_or_compile("text", "sm_90a")
    for place in (Cache(own_cache).file(NAME), own_cache, own_cache.parent):
        for bits in (0o020, 0o002):
            mode = place.stat().st_mode
            place.chmod(mode | bits)
            before = len(compilations)
            stores._warn.cache_clear()
            with pytest.warns(RuntimeWarning, match="are not used: .*can be written by others: chmod go-w it"):
                assert Cache(own_cache).get(NAME) is None
            with pytest.warns(RuntimeWarning):
                stores._warn.cache_clear()
                load_or_compile("text", "sm_90a")
            assert len(compilations) == before + 1
            place.chmod(place.stat().st_mode & ~0o022)
            assert Cache(own_cache).get(NAME) == CUBIN
    own_cache.parent.chmod(0o1777)  # as /tmp
    assert Cache(own_cache).get(NAME) == CUBIN


@pytest.mark.parametrize("user", [0, 1000])
@pytest.mark.parametrize("owner", [0, 1000, 1001])
def test_owners(monkeypatch: pytest.MonkeyPatch, user: int, owner: int) -> None:
    """One's own and root's; root believes root only."""
    about = os.stat_result((0o100644, 1, 1, 1, owner, 0, 10, 0, 0, 0))
    monkeypatch.setattr("os.getuid", lambda: user, raising=False)
    assert bool(trust._wrong(about, sticky=False)) == (owner not in (0, user))


def test_windows_believes_the_profile_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "me")
    assert not trust.distrusted(tmp_path / "me" / "AppData" / "pykittens")
    assert "outside of the user's profile folder" in trust.distrusted(tmp_path / "pykittens")


def test_entries_are_never_writable_by_others(own_cache: Path) -> None:
    if os.name == "nt":
        pytest.skip("Windows has no such modes")
    before = os.umask(0)
    try:
        Cache(own_cache).put(NAME, CUBIN)
    finally:
        os.umask(before)
    assert own_cache.stat().st_mode & 0o077 == 0
    assert Cache(own_cache).get(NAME) == CUBIN


def test_a_faulty_compilers_kernels_do_not_outlive_it(
    compilations: list[str], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Cache(own_cache).put(NAME, dataclasses.replace(CUBIN, compiler="NVRTC 13.0"))
    monkeypatch.setattr("pykittens.gpu.nvrtc.version", lambda: (13, 0))
    assert load_or_compile("text", "sm_90a").compiler == "NVRTC 13.0"  # this machine's can do no better
    assert not compilations
    monkeypatch.setattr("pykittens.gpu.nvrtc.version", lambda: (13, 5))
    assert load_or_compile("text", "sm_90a") == load_or_compile("text", "sm_90a") == CUBIN
    assert len(compilations) == 1

    def missing(*_: object, **__: object) -> Cubin:
        raise CompilerMissing("no compiler")

    monkeypatch.setattr("pykittens.gpu.nvrtc.version", missing)
    monkeypatch.setattr(cache, "compile", missing)
    Cache(own_cache).put(NAME, dataclasses.replace(CUBIN, compiler="NVRTC 13.0"))
    with pytest.raises(CompilerMissing, match=r"has it by NVRTC 13\.0: ptxas 13\.0 may overwrite"):
        load_or_compile("text", "sm_90a")


# Size ---------------------------------------------------------------------------------------------------------


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    store, names = Cache(tmp_path), [key(str(i), "sm_90a") for i in range(4)]
    for age, name in zip((4, 3, 2, 1), names, strict=True):
        file = store.put(name, CUBIN)
        os.utime(file, (time.time() - 86400 * age,) * 2)
    size = file.stat().st_size
    assert store.get(names[0]) == CUBIN  # which is a use
    store.set_limit(3 * size)
    assert [store.file(name).exists() for name in names] == [True, False, True, True]
    store.put(key("more", "sm_90a"), CUBIN)
    assert [store.file(name).exists() for name in names] == [True, False, False, True]
    store.set_limit(10)
    assert not store.entries() and store.limit == 10
    store.put(NAME, CUBIN)
    assert not store.entries()


def test_no_home(compilations: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither HOME nor an entry in the list of users, as in many containers: nothing is kept."""
    for name in ("PYKITTENS_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for error in (RuntimeError("no home"), KeyError("uid not found")):

        def home(error: Exception = error) -> Path:
            raise error

        monkeypatch.setattr(Path, "home", home)
        for platform in ("linux", "darwin", "win32"):
            monkeypatch.setattr("sys.platform", platform)
            assert cache.user_directory() is None
    monkeypatch.setattr("sys.platform", "linux")
    assert load_or_compile("text", "sm_90a") == CUBIN
