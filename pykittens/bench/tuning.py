"""`pk.autotune`: a kernel's static values chosen by trying them, once for each device and shape, and remembered.

    @pk.autotune([{"rows": 4}, {"rows": 1}])
    @pk.kernel(...)
    def softmax(x, y, *, rows): ...

Candidates are compiled before any runs: those that cannot be, and those that spill registers where others do not, are
left out. What is left takes turns on the GPU. On the simulated GPU nothing is timed.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..architectures import REGISTERS, architecture
from ..call.kernel import Kernel
from ..errors import ArgumentError, KernelError
from ..gpu import cache, driver
from ..gpu.compiler import CompileError
from ..interop.arrays import describe
from ..trace.operands import written
from .timing import in_turn

Config = Mapping[str, Any]


class Candidate(NamedTuple):
    """What is known of a configuration before it runs."""

    number: int
    config: Config
    spilled: int  # bytes a thread
    residents: int  # threads that fit into the registers and the shared memory of a multiprocessor


class Tuned:
    """A kernel whose static values are chosen from `configs`; made by `pk.autotune`."""

    def __init__(self, kernel: Kernel, configs: Iterable[Config], key: tuple[str, ...] | None, table: Path | None):
        self.kernel, self.configs, self.table = kernel, [dict(c) for c in configs], table
        self.key = key
        self.chosen: dict[str, int] = {}
        functools.update_wrapper(self, kernel.function)
        self._check()

    def _check(self) -> None:
        statics = {name for name, _ in self.kernel.signature.static}
        for config in self.configs:
            if unknown := set(config) - statics:
                raise ArgumentError(
                    f"autotune of {self.kernel.name}: {', '.join(sorted(unknown))} is no static value of it",
                    fix=f"its static values are {', '.join(sorted(statics)) or 'none: make them keyword-only'}",
                )
        parameters = {name for name, _ in self.kernel.signature.runtime}
        if unknown := set(self.key or ()) - parameters - statics:
            raise ArgumentError(
                f"autotune of {self.kernel.name}: key names {', '.join(sorted(unknown))}",
                fix=f"name parameters: {', '.join(sorted(parameters | statics))}",
            )
        if not self.configs:
            raise ArgumentError(f"autotune of {self.kernel.name} without candidates", fix="pass at least one")

    def __call__(self, /, *args: Any, **named: Any) -> None:
        """Runs the kernel with the configuration that is best for such arguments."""
        self.kernel(*args, **named, **self.best(*args, **named))

    def best(self, /, *args: Any, **named: Any) -> Config:
        """The configuration for such arguments: remembered, or else found by trying."""
        given = dict(zip((name for name, _ in self.kernel.signature.runtime), args, strict=False)) | named
        arrays = {name: describe(x) for name, x in given.items() if hasattr(x, "shape") and hasattr(x, "dtype")}
        device = next((x.device for x in arrays.values()), None)
        shown = {n: f"{x.dtype}{list(x.shape)}" for n, x in arrays.items()}
        shown |= {n: repr(x) for n, x in given.items() if n not in arrays}
        key = " ".join(f"{n}={x}" for n, x in sorted(shown.items()) if self.key is None or n in self.key)
        if device is None:
            return self._first(key, args, named)
        key = f"{driver.device_name(device)}: {self.kernel.name}: {key}"
        if key not in self.chosen:
            known = self._read()
            text = self._texts(args, named, driver.architecture(device).name)
            if known.get(key, {}).get("of") != text:  # never tried, or the kernel has changed since
                number = self._try(args, named, driver.architecture(device).name)
                known[key] = {"of": text, "config": number}
                self._write(known)
            self.chosen[key] = known[key]["config"]
        return self.configs[self.chosen[key]]

    def _first(self, key: str, args: tuple[Any, ...], named: dict[str, Any]) -> Config:
        """The first that can be traced: the simulated GPU has no speed."""
        if key not in self.chosen:
            reasons = []
            for number, config in enumerate(self.configs):
                try:
                    self.kernel.program(*args, **named, **config)
                except KernelError as error:
                    reasons.append(f"{config}: {error}")
                    continue
                self.chosen[key] = number
                break
            else:
                self._none(reasons)
        return self.configs[self.chosen[key]]

    def candidates(self, *args: Any, arch: str, **named: Any) -> list[Candidate]:
        """What can be compiled for an architecture `arch` and does not spill where others do not, the fullest
        multiprocessor first. Needs no GPU; arguments may be `pk.spec`s, and `args` and `named` are the kernel's.
        """
        found, reasons = [], []
        for number, config in enumerate(self.configs):
            try:
                program = self.kernel.program(*args, **named, **config)
                cubin = self.kernel.compile_program(program, arch)
            except (KernelError, CompileError) as error:
                reasons.append(f"{config}: {error}")
                continue
            threads = program.threads
            by_registers = REGISTERS // max(1, cubin.registers * threads)
            by_memory = architecture(arch).shared_bytes // max(1, program.shared_bytes)
            residents = min(2048, threads * min(by_registers, by_memory))
            spilled = cubin.spill_store_bytes + cubin.spill_load_bytes
            found.append(Candidate(number, config, spilled, residents))
        if not found:
            self._none(reasons)
        least = min(c.spilled for c in found)
        return sorted((c for c in found if c.spilled == least), key=lambda c: (-c.residents, c.number))

    def _none(self, reasons: list[str]) -> None:
        raise ArgumentError(
            f"autotune of {self.kernel.name}: no candidate can be compiled for these arguments:\n" + "\n".join(reasons),
            fix="add one that can",
        )

    def _try(self, args: tuple[Any, ...], named: dict[str, Any], arch: str) -> int:
        """The number of the fastest. What the kernel writes is copied for the trials."""
        found = self.candidates(*args, arch=arch, **named)
        if len(found) == 1:
            return found[0].number
        names = [name for name, _ in self.kernel.signature.runtime]
        given = dict(zip(names, args, strict=False)) | named
        runs: dict[str, Callable[[], Any]] = {}
        for candidate in found:
            program = self.kernel.program(*args, **named, **candidate.config)
            trial = given | {name: _copy(given[name]) for name in written(program)}
            runs[str(candidate.number)] = self.kernel.bind(**trial, **candidate.config)
        times = in_turn(runs)
        return int(min(times, key=lambda number: times[number].median))

    # What is remembered on disk --------------------------------------------------------------------------

    def _texts(self, args: tuple[Any, ...], named: dict[str, Any], arch: str) -> str:
        """What the candidates are, by their content: a change of the kernel is tried anew."""
        texts = []
        for config in self.configs:
            try:
                texts.append(self.kernel.cuda(*args, **named, **config, arch=arch))
            except KernelError:
                texts.append("")
        return cache.key("\0".join(texts), arch)[:16]

    def _file(self) -> Path | None:
        directory = cache.user_directory()
        return self.table or (directory / "tuned.json" if directory else None)

    def _read(self) -> dict[str, Any]:
        file = self._file()
        if file is None or not file.exists():
            return {}
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}  # what reads badly counts as missing
        return found if isinstance(found, dict) else {}

    def _write(self, known: dict[str, Any]) -> None:
        """Whole or not at all: written aside, then renamed. Where nothing can be kept, the process remembers."""
        file = self._file()
        if file is None:
            return
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handle, aside = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}")
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                json.dump(self._read() | known, out, indent=1)
            os.replace(aside, file)
        except OSError:
            return


def _copy(x: Any) -> Any:
    return x.detach().clone() if hasattr(x, "detach") else x.copy()


def autotune(
    configs: Iterable[Config], *, key: tuple[str, ...] | None = None, table: str | Path | None = None
) -> Callable[[Kernel], Tuned]:
    """Makes a kernel whose static values are those of `configs` that are fastest for the arguments of a call.

    `configs`: dictionaries of static values. `key`: names of the arguments whose dtypes, shapes and values decide;
    all, unless given. `table`: a JSON file to read what was found before, and to add to; unless given, one beside the
    compiled kernels. The first call with new arguments tries the candidates on the GPU, on copies of what the kernel
    writes; with NumPy arrays the first that can be traced runs.

    Raises `ArgumentError` for what is no static value of the kernel, and where no candidate can be compiled.
    """
    return lambda kernel: Tuned(kernel, configs, key, None if table is None else Path(table))
