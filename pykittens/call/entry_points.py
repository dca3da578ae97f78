"""What a launch needs to know of a program: its entry point. Of cached kernels it is kept on disk, so that a new
process launches them without tracing.

An entry point is filed beside the kernels (`gpu/store.py`) under the name of all that the program depends on
(`content.py`) and its architecture; it says under which key the kernel is. Without either, the kernel is traced.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Hashable
from typing import Any, NamedTuple

from ..errors import Frame
from ..gpu import cache
from ..gpu.compiler import Cubin
from ..gpu.store import FileStore, user_directory
from ..loading import dataclass
from ..program import Program, TensorMapSpec
from ..trace.operands import written
from ..types import Global
from . import content

FORMAT = b"pykittens-entry-1"


@dataclass(frozen=True)
class EntryPoint:
    """`parameters`: names, each with "tensor" or a scalar's dtype, such as "f32"; `outputs`: the tensors that are
    written. `threads` of a block, `cluster` in blocks, `shared_bytes` of a block; the rest as in `Program`.
    """

    name: str
    parameters: tuple[tuple[str, str], ...]
    outputs: tuple[str, ...]
    maps: tuple[TensorMapSpec, ...]
    threads: int
    cluster: tuple[int, int, int]
    shared_bytes: int
    cooperative: bool
    pdl: bool
    debug: bool
    location: tuple[Frame, ...]  # for errors


class Built(NamedTuple):
    """A program ready to be loaded on GPUs of one architecture."""

    entry: EntryPoint
    cubin: Cubin


def entry_point(program: Program) -> EntryPoint:
    """That of a program."""
    types = [(p.name, p.value.type) for p in program.parameters]
    return EntryPoint(
        program.name,
        tuple((name, "tensor" if isinstance(type, Global) else type.dtype.name) for name, type in types),  # type: ignore[union-attr]
        tuple(sorted(written(program))),
        tuple(program.maps),
        program.threads,
        program.cluster,
        program.shared_bytes,
        program.cooperative,
        program.pdl,
        program.debug,
        program.location,
    )


def kept_as(arch: str, *key: Hashable) -> str:
    """The name under which the entry point of a program that depends on `key` is kept; empty where it is not kept."""
    try:
        return content.name(arch, *key)
    except content.Unnamed:
        return ""


def find(name: str) -> Built | None:
    """What is kept under a name, with its kernel; None where either is missing."""
    if not name or (directory := user_directory()) is None:
        return None
    if (kept := FileStore(directory).read(f"{name}.entry", FORMAT)) is None:
        return None
    try:
        entry, key = _decode(kept, name)
    except (ValueError, TypeError, KeyError):
        return None
    cubin = cache.find(key)
    return Built(entry, cubin) if cubin else None


def keep(name: str, built: Built) -> None:
    """Keeps an entry point of a kernel that is kept."""
    if name and built.cubin.key and not built.entry.debug and (directory := user_directory()):
        with contextlib.suppress(OSError):  # a full or read-only disk costs time, not correctness
            FileStore(directory).write(f"{name}.entry", FORMAT, _encode(built, name))


def _encode(built: Built, name: str) -> bytes:
    entry = {**vars(built.entry), "maps": [vars(m) for m in built.entry.maps]}
    entry["location"] = [vars(frame) for frame in built.entry.location]
    return json.dumps({"name": name, "kernel": built.cubin.key, "entry": entry}).encode()


def _decode(kept: bytes, name: str) -> tuple[EntryPoint, str]:
    """Inverse of `_encode`. ValueError, TypeError or KeyError for anything that it did not write under this name."""
    found = json.loads(kept)
    if found["name"] != name:
        raise ValueError("filed under another name")
    entry: dict[str, Any] = found["entry"]
    entry["maps"] = tuple(TensorMapSpec(**{**m, "box": tuple(m["box"])}) for m in entry["maps"])
    entry["location"] = tuple(Frame(**frame) for frame in entry["location"])
    entry["parameters"] = tuple((name, kind) for name, kind in entry["parameters"])
    for field in ("outputs", "cluster"):
        entry[field] = tuple(entry[field])
    return EntryPoint(**entry), found["kernel"]
