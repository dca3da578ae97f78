"""Compiled kernels on disk, found by their content.

The key is the generated text without its `#line` directives and comments, the architecture and the options: moving a
kernel in its Python file, or renaming its variables, does not compile it again. The compiler's version is not part of
it, so that a machine without a compiler finds what another one made; the entry records it.

An entry is one file (`store.py`): a line of JSON, then the cubin. Two sorts of directory are looked in:

* `PYKITTENS_AOT`, a list of directories as PATH is one: kernels compiled ahead of time, only read;
* `PYKITTENS_CACHE`, or else `pykittens` in the user's cache directory: read and written, and kept below a limit.

What a compiler with a known fault made is not loaded, unless this machine's compiler has one too.
"""

import contextlib
import dataclasses
import hashlib
import json
import re
from pathlib import Path

from .compiler import CompilerMissing, Cubin, compile, known_faults
from .store import FileStore, ahead_of_time, unsealed, user_directory

FORMAT = b"pykittens-cubin-1"

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
    name, refused = key(source, arch, options), list[str]()
    if cubin := find(name, refused):
        return cubin
    try:
        cubin = dataclasses.replace(compile(source, arch, options=options), key=name)
    except CompilerMissing as error:
        looked = f"(nor is the kernel compiled for {arch} in {', '.join(map(str, _places()))})"
        raise CompilerMissing("\n".join((str(error), looked, *refused))) from None
    compilers.add(cubin.compiler)
    if own := user_directory():
        with contextlib.suppress(OSError):  # a full or read-only disk costs time, not correctness
            Cache(own).put(name, cubin)
    return cubin


def find(name: str, refused: list[str] | None = None) -> Cubin | None:
    """The kernel that is filed under a key, from the first directory that has it; None where none has. `refused` is
    told which have it by a faulty compiler.
    """
    for place in _places():
        if cubin := Cache(place).get(name):
            if not (faults := known_faults(cubin.compiler)) or _faulty_here():
                compilers.add(cubin.compiler)
                return cubin
            if refused is not None:
                refused.append(f"{place} has it by {cubin.compiler}: {faults[0]}")
    return None


def _places() -> list[Path]:
    own = user_directory()
    return [*ahead_of_time(), *([own] if own else [])]


def _faulty_here() -> bool:
    """Whether this machine's compiler could do no better than a faulty one."""
    try:
        return bool(known_faults())
    except CompilerMissing:
        return False


@dataclasses.dataclass(frozen=True)
class Cache(FileStore):
    """One directory of compiled kernels."""

    def file(self, name: str) -> Path:
        """Where the entry of a key is, or would be."""
        return self.path / f"{name}.kernel"

    def get(self, name: str) -> Cubin | None:
        """The kernel filed under a key; None where there is none that can be read."""
        content = self.read(f"{name}.kernel", FORMAT)
        try:
            return None if content is None else _decode(content, name)
        except (ValueError, TypeError):
            return None

    def put(self, name: str, cubin: Cubin) -> Path:
        """Files a kernel under its key and returns where. OSError where the directory cannot be written."""
        return self.write(f"{name}.kernel", FORMAT, _encode(cubin, name))


def about(file: Path) -> Cubin | None:
    """What an entry holds; None where it is damaged."""
    try:
        return _decode(unsealed(file.read_bytes(), FORMAT), file.stem)
    except (OSError, ValueError, TypeError):
        return None


def _encode(cubin: Cubin, name: str) -> bytes:
    header = {f.name: getattr(cubin, f.name) for f in dataclasses.fields(cubin) if f.name != "image"}
    return json.dumps({**header, "key": name}).encode() + b"\n" + cubin.image


def _decode(entry: bytes, name: str) -> Cubin:
    """Inverse of `_encode`. Raises ValueError or TypeError for anything it did not write under this key."""
    header, _, image = entry.partition(b"\n")
    fields = json.loads(header)
    if fields.get("key") != name:
        raise ValueError("filed under another key")
    return Cubin(image=image, **{**fields, "warnings": tuple(fields["warnings"])})
