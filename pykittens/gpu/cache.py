"""Compiled kernels on disk, found by their content.

The key is the generated text without its `#line` directives and comments, the architecture and the options: moving
a kernel in its Python file, or renaming its variables, does not compile it again. The compiler's version is not part of it, so that a
machine without a compiler finds what another one made; the entry records it.

An entry is one file: a line with the format and a SHA-256 of the rest, a line of JSON, the cubin. It appears
whole or not at all (written aside, then renamed), so processes share a directory without a lock, and what
reads badly counts as missing. Two sorts of directory are looked in:

* `PYKITTENS_AOT`, a list of directories as PATH is one: kernels compiled ahead of time, only read;
* `PYKITTENS_CACHE`, or else `pykittens` in the user's cache directory: read and written.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import secrets
import sys
from pathlib import Path

from .compiler import CompilerMissing, Cubin, compile

FORMAT = b"pykittens-cubin-1"


compilers: set[str] = set()  # that made the kernels this process has got, for the records of measurements


_LINE = re.compile(r"(?m)^[ \t]*#[ \t]*line\b.*\n?")
# A comment, or what only looks like one: a raw string, a string, a character.
_COMMENT = re.compile(
    r"""R"([^()\s]*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|[ \t]*//[^\n]*|/\*.*?\*/""", re.DOTALL
)


def key(source: str, arch: str, options: tuple[str, ...] = ()) -> str:
    """What a kernel is filed under: 64 hexadecimal digits."""
    text = _COMMENT.sub(lambda found: "" if found[0].lstrip().startswith("/") else found[0], _LINE.sub("", source))
    return hashlib.sha256("\0".join((FORMAT.decode(), arch, *options, text)).encode()).hexdigest()


def load_or_compile(source: str, arch: str, options: tuple[str, ...] = ()) -> Cubin:
    """The kernel from the first directory that has it, else compiled and kept for the next time.

    Raises `CompileError`, or `CompilerMissing` where it is in no directory and there is no compiler.
    """
    name, own = key(source, arch, options), Cache(user_directory())
    for cache in (*map(Cache, ahead_of_time()), own):
        if cubin := cache.get(name):
            compilers.add(cubin.compiler)
            return cubin
    try:
        cubin = compile(source, arch, options=options)
    except CompilerMissing as error:
        places = ", ".join(map(str, (*ahead_of_time(), own.path)))
        raise CompilerMissing(f"{error}\n(nor is the kernel compiled for {arch} in {places})") from None
    compilers.add(cubin.compiler)
    with contextlib.suppress(OSError):  # a full or read-only disk costs time, not correctness
        own.put(name, cubin)
    return cubin


@dataclasses.dataclass(frozen=True)
class Cache:
    """One directory of compiled kernels, made when first written to."""

    path: Path

    def file(self, name: str) -> Path:
        """Where the entry of a key is, or would be."""
        return self.path / f"{name}.kernel"

    def get(self, name: str) -> Cubin | None:
        """The kernel filed under a key; None where there is none or its file is damaged."""
        try:
            return _decode(self.file(name).read_bytes(), name)
        except (OSError, ValueError, TypeError):
            return None

    def put(self, name: str, cubin: Cubin) -> Path:
        """Files a kernel under its key and returns where. OSError where the directory cannot be written."""
        self.path.mkdir(parents=True, exist_ok=True)
        aside = self.path / f".{name}.{secrets.token_hex(8)}"
        try:
            aside.write_bytes(_encode(cubin, name))
            os.replace(aside, self.file(name))  # atomic: a reader sees the old file, the new one or none
        finally:
            aside.unlink(missing_ok=True)
        return self.file(name)


def user_directory() -> Path:
    """The directory that this user's kernels are kept in."""
    if chosen := os.environ.get("PYKITTENS_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "pykittens"


def ahead_of_time() -> tuple[Path, ...]:
    """The directories of kernels compiled ahead of time."""
    return tuple(Path(part) for part in os.environ.get("PYKITTENS_AOT", "").split(os.pathsep) if part)


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
