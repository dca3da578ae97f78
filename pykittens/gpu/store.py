"""Files that are kept on disk for later processes: sealed, trusted, and of bounded size.

A file begins with a line of its format and a SHA-256 of the rest. It appears whole or not at all (written aside, then
renamed), so processes share a directory without a lock, and what reads badly counts as missing. A file is only read
from where nobody but this user and root can write (`trust.py`). What was not used for longest is removed once all take
more than a limit.
"""

import contextlib
import dataclasses
import functools
import hashlib
import os
import sys
import time
import warnings
from pathlib import Path

from .trust import distrusted, distrusted_file

SUFFIXES = (".kernel", ".entry")  # of compiled kernels (`cache.py`) and of entry points (`call/entry_points.py`)
LIMIT = 1 << 30  # bytes, unless `pykittens cache limit` has set another
_LIMIT = "limit"  # the file that says so
_RECENT = 3600  # seconds: a use is noted once in so long


@dataclasses.dataclass(frozen=True)
class FileStore:
    """One directory of such files, made when first written to."""

    path: Path

    def read(self, name: str, form: bytes) -> bytes | None:
        """What the file `name` of the format `form` holds; None where there is none, it is damaged, or others could
        have written it.
        """
        file = self.path / name
        try:
            with open(file, "rb") as handle:
                if why := distrusted(self.path) or distrusted_file(handle.fileno()):
                    _warn(f"compiled kernels in {self.path} are not used: {why}")
                    return None
                content = unsealed(handle.read(), form)
                used = os.fstat(handle.fileno()).st_mtime
        except (OSError, ValueError):
            return None
        if time.time() - used > _RECENT:
            with contextlib.suppress(OSError):
                os.utime(file)  # the last to be removed
        return content

    def write(self, name: str, form: bytes, content: bytes) -> Path:
        """Makes the file `name` and returns where. OSError where the directory cannot be written."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            self.path.mkdir(mode=0o700)
        file, aside = self.path / name, self.path / f".{name}.{os.urandom(8).hex()}"
        try:
            with open(
                os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o644), "wb"
            ) as handle:
                handle.write(b"".join((form, b" ", hashlib.sha256(content).hexdigest().encode(), b"\n", content)))
            if sys.platform != "win32":
                aside.chmod(0o644)  # whatever the umask: what others may write is not read again
            os.replace(aside, file)  # atomic: a reader sees the old file, the new one or none
        finally:
            aside.unlink(missing_ok=True)
        self.shrink(self.limit)
        return file

    def entries(self) -> list[tuple[Path, os.stat_result]]:
        """All files, the one that was not used for longest first."""
        found = []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for file in self.path.iterdir():
                if file.suffix in SUFFIXES and not file.name.startswith("."):
                    with contextlib.suppress(FileNotFoundError):
                        found.append((file, file.stat()))
        return sorted(found, key=lambda entry: (entry[1].st_mtime_ns, entry[0].name))

    def shrink(self, most: int) -> int:
        """Removes what was not used for longest until the rest takes at most `most` bytes. How many files went."""
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
        """Bytes that the files may take."""
        try:
            return int((self.path / _LIMIT).read_text())
        except (OSError, ValueError):
            return LIMIT

    def set_limit(self, most: int) -> None:
        """Sets the limit for all processes that use the directory, and keeps to it."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.path / _LIMIT).write_text(str(most))
        self.shrink(most)


def unsealed(file: bytes, form: bytes) -> bytes:
    """What a file of the format `form` holds. ValueError for any other, and for one that is damaged."""
    seal, _, content = file.partition(b"\n")
    if seal != form + b" " + hashlib.sha256(content).hexdigest().encode():
        raise ValueError("damaged")
    return content


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


def ahead_of_time() -> tuple[Path, ...]:
    """The directories of kernels compiled ahead of time."""
    return tuple(_expanded(part) for part in os.environ.get("PYKITTENS_AOT", "").split(os.pathsep) if part)


@functools.cache
def _warn(text: str) -> None:
    """Once for each fact."""
    warnings.warn(text, RuntimeWarning, stacklevel=2)
