"""Arrays in a GPU's memory and times on its clock, for machines that have no array framework."""

from __future__ import annotations

import ctypes
import itertools
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from . import driver
from .libcuda import ask, check, library


class DeviceArray:
    """A dense copy of a NumPy array in a GPU's memory, freed with the object. Kernels take it like any CUDA array."""

    def __init__(self, array: np.ndarray[Any, Any], device: int = 0) -> None:
        self.shape, self.dtype, self.nbytes, self.device = array.shape, array.dtype, array.nbytes, device
        context = driver.primary_context(device)
        with driver.using(context):
            self.pointer = ask("cuMemAlloc_v2", f"allocating {self.nbytes:,} bytes", self.nbytes, of=ctypes.c_size_t)
            weakref.finalize(self, _free, self.pointer, context).atexit = False  # the driver frees it with the process
            dense = np.ascontiguousarray(array)
            check(library().cuMemcpyHtoD_v2(self.pointer, dense.ctypes.data, self.nbytes), "copying to the GPU")

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "version": 3,
            "strides": None,
        }

    def numpy(self) -> np.ndarray[Any, Any]:
        """A copy on the CPU, after all the work that the GPU was given before."""
        array = np.empty(self.shape, self.dtype)
        driver.synchronize(0, self.device)
        with driver.using(driver.primary_context(self.device)):
            check(library().cuMemcpyDtoH_v2(array.ctypes.data, self.pointer, self.nbytes), "copying from the GPU")
        return array


def seconds(work: Callable[[], None], repeats: int = 10, device: int = 0) -> float:
    """The median time that work given to the default stream takes the GPU, by its own clock; first it is warmed up."""
    work()
    with driver.using(driver.primary_context(device)):
        events = [ask("cuEventCreate", "making an event", 0, of=ctypes.c_size_t) for _ in range(repeats + 1)]
        try:
            for event in events[:-1]:
                check(library().cuEventRecord(event, 0), "recording an event")
                work()
            check(library().cuEventRecord(events[-1], 0), "recording an event")
            check(library().cuEventSynchronize(events[-1]), "waiting for the GPU")
            return float(np.median([_between(a, b) for a, b in itertools.pairwise(events)]))
        finally:
            for event in events:
                library().cuEventDestroy_v2(event)


def _between(first: int, second: int) -> float:
    milliseconds = ctypes.c_float()
    check(library().cuEventElapsedTime(ctypes.byref(milliseconds), first, second), "reading the GPU's clock")
    return milliseconds.value / 1000


def _free(pointer: int, context: int) -> None:
    with driver.using(context):
        library().cuMemFree_v2(pointer)
