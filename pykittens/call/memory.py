"""All that is remembered of calls.

A kernel's `Memory` has what was worked out on the way of its calls: identities, programs, what was built of them,
launchers with everything in place, and calls as a whole (`again.py`). Whoever does more than to call a kernel, such as
the public functions, has `Plans` of his own. All calls are found in `Plans`, by what their arguments look like; what
they find launches by a `Launch`, which asks first whether the kernel still is what it was. What is compiled is kept on
disk (`gpu/cache.py`), and so is what a launch needs to know of it (`entry_points.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from operator import itemgetter
from typing import Any, Generic, NamedTuple, TypeVar

from ..interop import arrays as interop
from .bounded import Bounded
from .identity import Identities

ALIGNED = 16  # bytes: what the pointers of remembered arrays are multiples of
_MOST, _MOST_ALIKE = 1024, 8  # looks that are known, and plans of one

T = TypeVar("T")


class Memory:
    """What one kernel remembers."""

    def __init__(self) -> None:
        self.identity = Identities(1)  # the kernel's own
        self.identities = Identities()  # those of static values
        self.programs: Bounded[Hashable, Any] = Bounded(256)
        self.built: Bounded[Hashable, Any] = Bounded(256)  # for an architecture
        self.launchers: Bounded[Hashable, Any] = Bounded(1024)
        self.calls: Plans[Any] = Plans()


class Kept(NamedTuple):  # which Python 3.10 cannot make generic
    same: Callable[..., bool]
    address: Callable[[Any], int]
    arrays_of: Callable[[Sequence[Any]], Sequence[Any]]
    nones: tuple[int, ...]
    plan: Any


class Plans(Generic[T]):
    """Plans by what arrays (or Nones) look like, and by anything else that is hashable: `looks`, with the arrays'
    shapes, or some, so that few are to be compared.
    """

    def __init__(self, alike: Callable[[Sequence[Any]], interop.Alike | None] = interop.alike) -> None:
        self._alike = alike
        self._kept: Bounded[Any, list[Kept]] = Bounded(_MOST)

    def find(self, arrays: Sequence[Any], looks: Hashable) -> tuple[T, list[int]] | None:
        """The plan that was kept for arrays like these, and their pointers; None where there is none, or one is not
        aligned.
        """
        try:
            kept = self._kept.get(looks, ())
        except TypeError:  # nothing that could have been kept
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

    def keep(self, arrays: Sequence[Any], looks: Hashable, plan: T) -> Kept | None:
        """Keeps a plan for arrays like these, in the place of what was kept for such; nothing for arrays that are not
        aligned, or that nothing tells from others, or where `looks` has no hash.
        """
        places = [i for i, x in enumerate(arrays) if x is not None]
        given = [arrays[i] for i in places]
        alike = self._alike(given)
        try:
            before = self._kept.get(looks, ())
        except TypeError:
            return None
        if alike is None or any(alike.address(x) % ALIGNED for x in given):
            return None
        nones = tuple(i for i, x in enumerate(arrays) if x is None)
        kept = Kept(*alike, picker(places), nones, plan)
        others = [other for other in before if other.nones != nones or not other.same(*given)]
        self._kept.keep(looks, [kept, *others][:_MOST_ALIKE])
        return kept

    def clear(self) -> None:
        self._kept.clear()


def picker(indices: Sequence[int]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """A function from a tuple to its members at some places."""
    if not indices:
        return itemgetter(slice(0, 0))
    first, end = indices[0], indices[-1] + 1
    return itemgetter(slice(first, end)) if list(indices) == [*range(first, end)] else itemgetter(*indices)
