"""NVRTC, NVIDIA's run-time compiler, as three Python functions over its C interface.

Called through ctypes rather than through a binding package: eight C functions are needed, and torch
constrains the bindings as well as the compiler. The library comes from its wheel (`nvidia-cuda-nvrtc`),
found by cuda-pathfinder; where that one is older than `SOUND`, a newer one in $CUDA_HOME is preferred.
"""

import ctypes
import functools
import glob
import os
from collections.abc import Sequence
from typing import Any

SOUND = (13, 3)  # ptxas before this can overwrite the registers of a WGMMA's A operand before it reads them
INSTALL = "pip install nvidia-cuda-nvrtc cuda-pathfinder"


class CompilerMissing(RuntimeError):
    """NVRTC is not installed, or cannot be loaded."""


class NvrtcError(RuntimeError):
    """A call into NVRTC failed. `log` is what the compiler said, possibly nothing."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


def version() -> tuple[int, int]:
    """(major, minor) of the NVRTC in use, which is also that of the ptxas inside it."""
    return _version(_library())


def compile_cubin(source: str, options: Sequence[str]) -> tuple[bytes, str]:
    """Compiles CUDA C to (cubin, log). Raises `NvrtcError`, with the log, where the compiler objects."""
    library, program = _library(), ctypes.c_void_p()
    flags = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    _check(library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None))
    try:
        status = library.nvrtcCompileProgram(program, len(options), flags)
        log = _output(library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog, program)
        text = log.rstrip(b"\0").decode(errors="replace").strip()
        _check(status, text)
        return _output(library.nvrtcGetCUBINSize, library.nvrtcGetCUBIN, program), text
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def path() -> str:
    """The file NVRTC was loaded from."""
    return str(_library()._name)


@functools.cache
def _library() -> ctypes.CDLL:
    """The loaded compiler: $PYKITTENS_NVRTC if set, else the newest of the wheel's and the toolkit's."""
    if override := os.environ.get("PYKITTENS_NVRTC"):
        return _load(override)
    errors: list[str] = []
    found: list[str] = []
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        found.append(str(load_nvidia_dynamic_lib("nvrtc").abs_path))
    except ImportError as error:
        errors.append(str(error))
    except RuntimeError as error:  # pathfinder's own "not found", which lists where it looked
        errors.append(str(error).splitlines()[0])
    libraries = [_load(name) for name in found]
    if not libraries or _version(libraries[0]) < SOUND:
        libraries += [_load(name) for name in _toolkit()]
    if not libraries:
        raise CompilerMissing(
            f"compiling a kernel needs NVRTC, which is not here ({'; '.join(errors)}). Fix: {INSTALL}"
        )
    return max(libraries, key=_version)


def _toolkit() -> list[str]:
    """The NVRTC of an installed CUDA toolkit of the same major version, if any."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    return sorted(glob.glob(os.path.join(home, "lib*", "libnvrtc.so.13")))[:1]


def _load(name: str) -> ctypes.CDLL:
    try:
        for builtins in glob.glob(os.path.join(os.path.dirname(name), "libnvrtc-builtins.so.*")):
            ctypes.CDLL(builtins)  # NVRTC looks for this one on the system's path, unless it is loaded already
        library = ctypes.CDLL(name)
    except OSError as error:
        raise CompilerMissing(f"NVRTC cannot be loaded from {name} ({error}). Fix: {INSTALL}") from error
    handle, text, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(ctypes.c_size_t)
    many = ctypes.POINTER(ctypes.c_char_p)
    signatures: dict[str, list[Any]] = {
        "nvrtcCreateProgram": [ctypes.POINTER(handle), text, text, ctypes.c_int, many, many],
        "nvrtcCompileProgram": [handle, ctypes.c_int, many],
        "nvrtcDestroyProgram": [ctypes.POINTER(handle)],
        "nvrtcGetProgramLogSize": [handle, size],
        "nvrtcGetProgramLog": [handle, text],
        "nvrtcGetCUBINSize": [handle, size],
        "nvrtcGetCUBIN": [handle, text],
        "nvrtcVersion": [ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int)],
    }
    for function, arguments in signatures.items():
        getattr(library, function).argtypes = arguments
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


def _version(library: ctypes.CDLL) -> tuple[int, int]:
    major, minor = ctypes.c_int(), ctypes.c_int()
    library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


def _output(size: Any, fill: Any, program: ctypes.c_void_p) -> bytes:
    """One of NVRTC's results: a call for its size in bytes, then one to copy it out."""
    count = ctypes.c_size_t()
    _check(size(program, ctypes.byref(count)))
    buffer = ctypes.create_string_buffer(count.value)
    _check(fill(program, buffer))
    return buffer.raw


def _check(status: int, log: str = "") -> None:
    if status:
        raise NvrtcError(_library().nvrtcGetErrorString(status).decode(), log)
