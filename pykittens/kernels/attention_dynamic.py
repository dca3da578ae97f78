"""Causal attention whose blocks take the next tile of queries when they come to need one, the longest first.

    counter = 0, then `attention_hopper.attend`

Tiles of a triangle differ in length. Pairs of a long and a short one are alike (`pk.triangle`), but seldom as many as a
multiple of the multiprocessors. From a counter (`pk.dynamic`) blocks that stay end at about the same time.
"""

from __future__ import annotations

from typing import Any

from . import attention_hopper, counters


class DynamicAttention:
    """Both launches as one, the second of which begins while the first is under way: called as `attend` is."""

    def __call__(self, q: Any, *rest: Any, **static: Any) -> None:
        attention_hopper.attend(q, *rest, counter=counters.zeros(q), **static)


DYNAMIC = DynamicAttention()
