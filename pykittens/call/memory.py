"""All that is remembered of calls.

A kernel's `Memory` has what was worked out on the way of its calls: identities, programs, what is loaded on GPUs,
launchers with everything in place, and calls as a whole (`again.py`). `Plans` are for those who do more than to call a
kernel, such as the public functions. Both find a call by what its arguments look like, and both only hand out a
`Launch`
that asks, before it launches, whether the kernel still is what it was. What is compiled is kept on disk
(`gpu/cache.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from operator import itemgetter
from typing import Any, Generic, NamedTuple, TypeVar

from ..interop import arrays as interop
from .bounded import Bounded
from .identity import Identities

ALIGNED = 16  # bytes: what the pointers of remembered arrays are multiples of
_MOST, _MOST_ALIKE = 1024, 8  # plans that are kept in all, and of arrays whose first has one shape

T = TypeVar("T")


class Memory:
    """What one kernel remembers."""

    def __init__(self) -> None:
        self.identity = Identities(1)  # the kernel's own
        self.identities = Identities()  # those of static values
        self.programs: Bounded[Hashable, Any] = Bounded(256)
        self.functions: Bounded[Hashable, Any] = Bounded(
            256
        )  # on a GPU; each beside its program, by whose id it is found
        self.launchers: Bounded[Hashable, Any] = Bounded(1024)


class _Kept(NamedTuple):  # which Python 3.10 cannot make generic
    same: Callable[..., bool]
    address: Callable[[Any], int]
    arrays_of: Callable[[Sequence[Any]], Sequence[Any]]
    nones: tuple[int, ...]
    plan: Any


class Plans(Generic[T]):
    """Plans by what arrays (or Nones) look like, and by anything else that is hashable."""

    def __init__(self) -> None:
        self._kept: Bounded[Any, list[_Kept]] = Bounded(_MOST)

    def find(self, arrays: Sequence[Any], rest: Hashable) -> tuple[T, list[int]] | None:
        """The plan that was kept for arrays like these, and their pointers; None where there is none, or one is not
        aligned.
        """
        try:
            kept = self._kept.get((arrays[0].shape, rest), ())
        except (AttributeError, TypeError):  # no array, or nothing that could have been kept
            return None
        for same, address, arrays_of, nones, plan in kept:
            given = arrays_of(arrays)
            if same(*given):
                for i in nones:
                    if arrays[i] is not None:
                        break
                else:
                    pointers, bits = [*map(address, given)], 0
                    for pointer in pointers:
                        bits |= pointer
                    return None if bits % ALIGNED else (plan, pointers)
        return None

    def keep(self, arrays: Sequence[Any], rest: Hashable, plan: T) -> None:
        """Keeps a plan for arrays like these, in the place of what was kept for such; nothing where no quick test
        tells them from others.
        """
        places = [i for i, x in enumerate(arrays) if x is not None]
        given = [arrays[i] for i in places]
        alike = interop.alike(given)
        if alike is None or any(alike.address(x) % ALIGNED for x in given):
            return
        nones = tuple(i for i, x in enumerate(arrays) if x is None)
        others = [
            kept for kept in self._kept.get((arrays[0].shape, rest), ()) if kept.nones != nones or not kept.same(*given)
        ]
        kept = [_Kept(*alike, picker(places), nones, plan), *others][:_MOST_ALIKE]
        self._kept.keep((arrays[0].shape, rest), kept)

    def clear(self) -> None:
        self._kept.clear()


def picker(indices: Sequence[int]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """A function from a tuple to its members at some places."""
    if not indices:
        return itemgetter(slice(0, 0))
    first, end = indices[0], indices[-1] + 1
    return itemgetter(slice(first, end)) if list(indices) == [*range(first, end)] else itemgetter(*indices)
