"""Compiled kernels on disk, found by their content.

The key is the generated text without its `#line` directives and comments, the architecture and the options: moving a
kernel in its Python file, or renaming its variables, does not compile it again. The compiler's version is not part of
it, so that a machine without a compiler finds what another one made; the entry records it.

An entry is one file: a line with the format and a SHA-256 of the rest, a line of JSON, the cubin. It appears
whole or not at all (written aside, then renamed), so processes share a directory without a lock, and what
reads badly counts as missing. Two sorts of directory are looked in:

* `PYKITTENS_AOT`, a list of directories as PATH is one: kernels compiled ahead of time, only read;
* `PYKITTENS_CACHE`, or else `pykittens` in the user's cache directory: read and written, and kept below a limit by
  removing what was not used for longest.

An entry is only loaded from where nobody but this user and root can write (`trust.py`), and if no fault is known of the
compiler that made it, unless this machine's compiler has one too.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
import sys
import time
import warnings
from pathlib import Path

from .compiler import CompilerMissing, Cubin, compile, known_faults
from .trust import distrusted, distrusted_file

FORMAT = b"pykittens-cubin-1"
LIMIT = 1 << 30  # bytes, unless `pykittens cache limit` has set another
_LIMIT = "limit"  # the file that says so
_RECENT = 3600  # seconds: a use is noted once in so long


compilers: set[str] = set()  # that made the kernels this process has got, for the records of measurements


_LINE = re.compile(r"(?m)^[ \t]*#[ \t]*line\b.*\n?")
# A comment, or (group 1) what only looks like one: a raw string, a string, a character.
_COMMENT = re.compile(
    r"""(R"([^()\s]*)\(.*?\)\2"|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')|[ \t]*//[^\n]*|/\*.*?\*/""", re.DOTALL
)


def key(source: str, arch: str, options: tuple[str, ...] = ()) -> str:
    """What a kernel is filed under: 64 hexadecimal digits."""
    text = _without_comments(_LINE.sub("", source))
    return hashlib.sha256("\0".join((FORMAT.decode(), arch, *options, text)).encode()).hexdigest()


def _without_comments(text: str) -> str:
    if any(sign in text for sign in ('R"', "/*", "\\\n")):  # which go on from line to line
        return _COMMENT.sub(lambda found: found[1] or "", text)
    lines = text.split("\n")
    for i, line in enumerate(lines):
        if "//" in line:
            quoted = '"' in line or "'" in line
            lines[i] = _COMMENT.sub(lambda found: found[1] or "", line) if quoted else line.split("//")[0].rstrip(" \t")
    return "\n".join(lines)


def load_or_compile(source: str, arch: str, options: tuple[str, ...] = ()) -> Cubin:
    """The kernel from the first directory that has it, else compiled and kept for the next time.

    Raises `CompileError`, or `CompilerMissing` where it is in no directory and there is no compiler.
    """
    name, own = key(source, arch, options), user_directory()
    places = [*ahead_of_time(), *([own] if own else [])]
    refused = []
    for place in places:
        if cubin := Cache(place).get(name):
            if not (faults := known_faults(cubin.compiler)) or _faulty_here():
                compilers.add(cubin.compiler)
                return cubin
            refused.append(f"{place} has it by {cubin.compiler}: {faults[0]}")
    try:
        cubin = compile(source, arch, options=options)
    except CompilerMissing as error:
        looked = "\n".join((f"(nor is the kernel compiled for {arch} in {', '.join(map(str, places))})", *refused))
        raise CompilerMissing(f"{error}\n{looked}") from None
    compilers.add(cubin.compiler)
    if own:
        with contextlib.suppress(OSError):  # a full or read-only disk costs time, not correctness
            Cache(own).put(name, cubin)
    return cubin


def _faulty_here() -> bool:
    """Whether this machine's compiler could do no better than a faulty one."""
    try:
        return bool(known_faults())
    except CompilerMissing:
        return False


@dataclasses.dataclass(frozen=True)
class Cache:
    """One directory of compiled kernels, made when first written to."""

    path: Path

    def file(self, name: str) -> Path:
        """Where the entry of a key is, or would be."""
        return self.path / f"{name}.kernel"

    def get(self, name: str) -> Cubin | None:
        """The kernel filed under a key; None where there is none, its file is damaged, or others could have written
        it.
        """
        try:
            with open(self.file(name), "rb") as file:
                if why := distrusted(self.path) or distrusted_file(file.fileno()):
                    _warn(f"compiled kernels in {self.path} are not used: {why}")
                    return None
                cubin = _decode(file.read(), name)
        except (OSError, ValueError, TypeError):
            return None
        with contextlib.suppress(OSError):
            if time.time() - self.file(name).stat().st_mtime > _RECENT:
                os.utime(self.file(name))  # used: the last to be removed
        return cubin

    def put(self, name: str, cubin: Cubin) -> Path:
        """Files a kernel under its key and returns where. OSError where the directory cannot be written."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            self.path.mkdir(mode=0o700)
        aside = self.path / f".{name}.{os.urandom(8).hex()}"
        try:
            with open(
                os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o644), "wb"
            ) as file:
                file.write(_encode(cubin, name))
            if sys.platform != "win32":
                aside.chmod(0o644)  # whatever the umask: what others may write is not read again
            os.replace(aside, self.file(name))  # atomic: a reader sees the old file, the new one or none
        finally:
            aside.unlink(missing_ok=True)
        self.shrink(self.limit)
        return self.file(name)

    def entries(self) -> list[tuple[Path, os.stat_result]]:
        """The files of all entries, the one that was not used for longest first."""
        found = []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for file in self.path.glob("*.kernel"):
                with contextlib.suppress(FileNotFoundError):
                    found.append((file, file.stat()))
        return sorted(found, key=lambda entry: (entry[1].st_mtime_ns, entry[0].name))

    def shrink(self, most: int) -> int:
        """Removes what was not used for longest until the rest takes at most `most` bytes. How many entries went."""
        entries = self.entries()
        total, gone = sum(about.st_size for _, about in entries), 0
        for file, about in entries:
            if total <= most:
                break
            file.unlink(missing_ok=True)
            total, gone = total - about.st_size, gone + 1
        return gone

    @property
    def limit(self) -> int:
        """Bytes that the entries may take."""
        try:
            return int((self.path / _LIMIT).read_text())
        except (OSError, ValueError):
            return LIMIT

    def set_limit(self, most: int) -> None:
        """Sets the limit for all processes that use the directory, and keeps to it."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.path / _LIMIT).write_text(str(most))
        self.shrink(most)


def about(file: Path) -> Cubin | None:
    """What an entry holds; None where it is damaged."""
    try:
        return _decode(file.read_bytes(), file.stem)
    except (OSError, ValueError, TypeError):
        return None


def user_directory() -> Path | None:
    """The directory that this user's kernels are kept in; None for a user without a home, whose kernels are not
    kept.
    """
    if chosen := os.environ.get("PYKITTENS_CACHE"):
        return _expanded(chosen)
    if sys.platform == "linux" and (chosen := os.environ.get("XDG_CACHE_HOME")):
        return Path(chosen) / "pykittens"
    if sys.platform == "win32" and (chosen := os.environ.get("LOCALAPPDATA")):
        return Path(chosen) / "pykittens"
    try:
        home = Path.home()
    except (RuntimeError, KeyError):  # neither HOME nor an entry in the list of users, as in many containers
        return None
    below = {"win32": ("AppData", "Local"), "darwin": ("Library", "Caches")}.get(sys.platform, (".cache",))
    return home.joinpath(*below, "pykittens")


def _expanded(given: str) -> Path:
    """A directory that a variable names; what sets them is not always a shell, which knows what ~ means."""
    try:
        return Path(given).expanduser()
    except RuntimeError:  # nobody's home
        return Path(given)


@functools.cache
def _warn(text: str) -> None:
    """Once for each fact."""
    warnings.warn(text, RuntimeWarning, stacklevel=2)


def ahead_of_time() -> tuple[Path, ...]:
    """The directories of kernels compiled ahead of time."""
    return tuple(_expanded(part) for part in os.environ.get("PYKITTENS_AOT", "").split(os.pathsep) if part)


def _encode(cubin: Cubin, name: str) -> bytes:
    header = {f.name: getattr(cubin, f.name) for f in dataclasses.fields(cubin) if f.name != "image"}
    rest = json.dumps({"key": name, **header}).encode() + b"\n" + cubin.image
    return FORMAT + b" " + hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest


def _decode(entry: bytes, name: str) -> Cubin:
    """Inverse of `_encode`. Raises ValueError or TypeError for anything it did not write under this key."""
    seal, _, rest = entry.partition(b"\n")
    if seal != FORMAT + b" " + hashlib.sha256(rest).hexdigest().encode():
        raise ValueError("damaged")
    header, _, image = rest.partition(b"\n")
    fields = json.loads(header)
    if fields.pop("key", None) != name:
        raise ValueError("filed under another key")
    return Cubin(image=image, **{**fields, "warnings": tuple(fields["warnings"])})
