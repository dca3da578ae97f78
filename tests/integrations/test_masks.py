"""What our masks say in numbers beside transformers' booleans: each padding, place and window of short sequences."""

from itertools import product
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from transformers import masking_utils as theirs  # noqa: E402

from pykittens.integrations import masks  # noqa: E402

KINDS = {
    "causal": theirs.causal_mask_function,
    "bidirectional": theirs.bidirectional_mask_function,
    "window 1": theirs.sliding_window_causal_mask_function(1),
    "window 3": theirs.sliding_window_causal_mask_function(3),
    "both sides": theirs.sliding_window_bidirectional_mask_function(1),
}
M = 5
PADDING = torch.tensor(list(product((False, True), repeat=M)))


def dense(seen: Any, batch: int, n: int, m: int) -> Any:
    """Who sees whom, by the definition of `attention_varlen` alone."""
    found = torch.zeros(batch * n, batch * m, dtype=torch.bool)
    rows, keys = (x.tolist() for x in seen.offsets(n, m, torch.device("cpu")))
    assert rows[0] == keys[0] == 0 and (rows[-1], keys[-1]) == (batch * n, batch * m)
    for a, b, c, d in zip(rows, rows[1:], keys, keys[1:], strict=False):
        assert a <= b and c <= d
        place = torch.arange(b - a)[:, None] + (d - c) - (b - a)  # of each row's own key
        apart = torch.arange(d - c) - place
        left, right = seen.window or (None, None)
        right = 0 if seen.causal else right
        see = torch.ones_like(apart, dtype=torch.bool)
        see &= True if left is None else apart >= -left
        see &= True if right is None else apart <= right
        found[a:b, c:d] = see
    entries = [found[i * n : i * n + n, i * m : i * m + m] for i in range(batch)]
    assert sum(x.sum() for x in entries) == found.sum()  # nobody sees another entry
    return torch.stack(entries)[:, None]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "offset"), [(M, 0), (2, 3), (1, 4), (2, 1), (1, 2), (3, 0)])
def test_visible_is_what_transformers_masks(kind: str, n: int, offset: int) -> None:
    """All 32 paddings of five keys, n rows at places from `offset`; for rows that are no padding themselves."""
    given = {"q_length": n, "kv_length": M, "q_offset": offset, "mask_function": KINDS[kind], "use_vmap": False}
    known = 0
    for padding in (None, *PADDING[:, None]):
        padding = None if padding is None else padding.expand(2, M)
        both = {**given, "batch_size": 2, "attention_mask": padding}
        expected = theirs.sdpa_mask(**both, allow_is_causal_skip=False)
        made: Any = masks.mask(**both, allow_is_causal_skip=False)
        assert torch.equal(made & True, expected)  # whoever looks at it sees booleans
        seen = getattr(made, "visible", None)
        if seen is None:
            continue
        known += 1
        rows = torch.ones(2, 1, n, dtype=torch.bool)
        if padding is not None and n > 1 and kind not in ("bidirectional",):
            rows = padding[:, None, offset : offset + n]
        assert torch.equal(dense(seen, 2, n, M) & rows[..., None], expected & rows[..., None]), (padding, seen)
        keys = seen.keys(n)
        if keys is not None:
            assert keys.stop - keys.start == M or not expected[..., : keys.start].any()
    runs = 1 + 1 + M * (M + 1) // 2  # no padding, nothing but padding, each run of keys
    assert known == 0 if kind == "both sides" and (n, offset) != (M, 0) else known >= runs


@pytest.mark.parametrize("kind", ["causal", "window 3"])
def test_packed_sequences(kind: str) -> None:
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 0], [0, 1, 2, 3, 4, 5, 6], [2, 3, 0, 1, 2, 3, 4]])
    packed = theirs.find_packed_sequence_indices(positions)
    function = theirs.and_masks(
        theirs.remap_positions_for_packed_sequence(KINDS[kind], positions), theirs.packed_sequence_mask_function(packed)
    )
    given = {"batch_size": 3, "q_length": 7, "kv_length": 7, "mask_function": function, "allow_is_causal_skip": False}
    made: Any = masks.mask(**given)
    assert made.visible.packed == (0, 4, 6, 7, 14, 16, 21)
    assert torch.equal(dense(made.visible, 3, 7, 7), theirs.sdpa_mask(**given))


def test_none_is_said_where_transformers_says_it() -> None:
    """For causal layers; and it is right there."""
    for (n, offset), padding in product(((1, 4), (2, 3), (3, 0), (3, 2), (M, 0)), (None, *PADDING[:, None])):
        given = {"batch_size": 1, "q_length": n, "kv_length": M, "q_offset": offset, "attention_mask": padding}
        expected, made = theirs.sdpa_mask(**given), masks.mask(**given)
        assert made is None or expected is not None
        whole = theirs.sdpa_mask(**given, allow_is_causal_skip=False)
        if made is None:
            stands = torch.ones(n, M).bool() if n == 1 else torch.ones(n, M).bool().tril()
            own = torch.ones(n).bool() if padding is None or n == 1 else padding[0, offset : offset + n]
            assert torch.equal(whole[0, 0][own], stands[own])


@pytest.mark.parametrize(
    "function",
    [
        theirs.chunked_causal_mask_function(2, torch.zeros(1, dtype=torch.long)),
        theirs.or_masks(theirs.causal_mask_function, theirs.bidirectional_mask_function),
        theirs.and_masks(theirs.causal_mask_function, lambda b, h, q, k: k != 1),
        theirs.padding_mask_function(torch.ones(1, M).bool()),
    ],
)
def test_what_is_not_known_stays_booleans(function: Any) -> None:
    assert masks.kind_of(function) is None
    given = {"batch_size": 1, "q_length": M, "kv_length": M, "mask_function": function, "allow_is_causal_skip": False}
    made = masks.mask(**given)
    assert type(made) is torch.Tensor and torch.equal(made, theirs.sdpa_mask(**given))


def test_a_mask_is_made_when_somebody_looks() -> None:
    asked = []

    def made() -> Any:
        asked.append(1)
        return torch.ones(1, 1, 2, 2).bool()

    mask = masks.Mask(masks.Visible(True, None), (1, 1, 2, 2), "cpu", made)
    assert mask.detach() is mask and mask.shape == (1, 1, 2, 2) and "Visible" in repr(mask) and not asked
    assert type(mask[:, :, :1]) is torch.Tensor and asked
