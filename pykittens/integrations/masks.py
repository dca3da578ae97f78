"""What a mask of transformers says, where that is who attends to which run of keys.

transformers describes masks by functions of positions (`transformers.masking_utils`): "causal", "within the window",
"of the same packed sequence", "not padding", and what joins them. `mask` recognises those functions by their code and
says the same in numbers, `Visible`, from which the kernels know what they need not visit. Functions that it does not
know (an image's tokens, chunks, a user's own) give the mask of "sdpa", one boolean for each row and key.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, masking_utils
from transformers.masking_utils import eager_mask, prepare_padding_mask, sdpa_mask
from transformers.utils.import_utils import is_tracing


class MaskKind(NamedTuple):
    """What a function of positions says of each row and key, next to its padding."""

    causal: bool = False
    left: int | None = None
    right: int | None = None
    packed: Tensor | None = None  # of each row, which sequence it is in: (batch, n)
    moved: bool = False  # positions are those within packed sequences

    def __and__(self, other: MaskKind) -> MaskKind:
        """Both are the case; at most one of them is about packed sequences."""
        return MaskKind(
            self.causal or other.causal,
            _least(self.left, other.left),
            _least(self.right, other.right),
            other.packed if self.packed is None else self.packed,
            self.moved or other.moved,
        )


def _least(*sides: int | None) -> int | None:
    return min((x for x in sides if x is not None), default=None)


class Visible(NamedTuple):
    """Who sees what. Of batch entry i the rows from first[i] to last[i] - 1 see the keys from begin[i] to end[i] - 1,
    the last row the last key, causal and within the window if so; its other rows, which are padding, see nothing.
    `packed`: offsets of sequences in the rows of all entries, which see themselves alone, instead.
    """

    causal: bool
    window: tuple[int | None, int | None] | None
    first: tuple[int, ...] = ()
    last: tuple[int, ...] = ()
    begin: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    packed: tuple[int, ...] = ()

    def keys(self, n: int) -> slice | None:
        """The keys that all n rows of all entries have in common; None where entries differ."""
        one = {*zip(self.first, self.last, self.begin, self.end, strict=True)}
        if self.packed or len(one) != 1:
            return None
        ((first, last, begin, end),) = one
        return slice(begin, end) if (first, last) == (0, n) else None

    def said_by_none(self, n: int, m: int) -> bool:
        """Whether it is what no mask means: one row, or rows of a layer that is not causal, see all keys; others are
        causal and see as many keys as there are rows.
        """
        keys = None if self.window else self.keys(n)
        return keys == slice(0, n if self.causal else m)

    def repeated(self, times: int, rows: int) -> Visible:
        """Of one row that sees some keys: as many entries of `rows` such rows for each."""
        begin, end = (tuple(x for x in some for _ in range(times)) for some in (self.begin, self.end))
        return Visible(False, None, (0,) * len(begin), (rows,) * len(begin), begin, end)

    def offsets(self, n: int, m: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """For `attention_varlen`, of n rows and m keys an entry, one entry after another. Padded rows are sequences
        without keys, and keys that nobody sees are sequences without rows.
        """
        return _offsets(self, n, m, device)


@lru_cache(16)  # each layer of a model asks
def _offsets(seen: Visible, n: int, m: int, device: torch.device) -> tuple[Tensor, Tensor]:
    rows, keys = [*seen.packed], [*seen.packed]
    if not rows:
        rows, keys = [0], [0]
        for i, (first, last, begin, end) in enumerate(zip(*seen[2:6], strict=True)):
            rows += [i * n + x for x in (first, first, last, n, n)]
            keys += [i * m + x for x in (0, begin, end, end, m)]
    made = torch.tensor([rows, keys], dtype=torch.int32, device=device)
    return made[0], made[1]


class Mask(Tensor):  # type: ignore[misc]
    """A mask (batch, 1, n, m) of booleans that is made when something looks at it; `visible` says the same."""

    visible: Visible
    dense: Callable[[], Tensor]

    @staticmethod
    def __new__(cls, visible: Visible, shape: tuple[int, ...], device: Any, dense: Callable[[], Tensor]) -> Mask:
        made = Tensor._make_wrapper_subclass(cls, shape, dtype=torch.bool, device=device)
        made.visible, made.dense = visible, dense
        return made

    def __repr__(self, **_: Any) -> str:
        return f"Mask{tuple(self.shape)}: {self.visible}"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in _SAME:
            return args[0]
        made = torch.utils._pytree.tree_map_only(Mask, lambda x: x.dense(), (args, kwargs or {}))
        return function(*made[0], **made[1])


_SAME = (torch.ops.aten.detach.default, torch.ops.aten.alias.default)


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: Any = 0,
    mask_function: Callable[..., Any] = masking_utils.causal_mask_function,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    device: Any = "cpu",
    **others: Any,
) -> Tensor | None:
    """As transformers' `sdpa_mask`, called with the same: None where "causal" or "every key" says it all, a `Mask`
    where a `Visible` does, else its tensor of booleans; models that do not ask for our attention get what they add to
    their scores. While something traces (torch.compile, a CUDA graph), nobody can look at padding and positions, and
    what is not plainly causal is a tensor.
    """
    config = others.get("config")
    if config is not None and not asks(type(config)):
        own = {"mask_function": mask_function, "attention_mask": attention_mask, "device": device, **others}
        skip = {"allow_is_bidirectional_skip": allow_is_bidirectional_skip}
        return eager_mask(batch_size, q_length, kv_length, q_offset, kv_offset, **own, **skip)
    given: dict[str, Any] = {
        "batch_size": batch_size,
        "q_length": q_length,
        "kv_length": kv_length,
        "q_offset": q_offset,
        "kv_offset": kv_offset,
        "mask_function": mask_function,
        "attention_mask": attention_mask,
        "device": device,
        **others,
    }
    skips = {"allow_is_causal_skip": allow_is_causal_skip, "allow_is_bidirectional_skip": allow_is_bidirectional_skip}
    if is_tracing(attention_mask):
        causal = mask_function is masking_utils.causal_mask_function and allow_is_causal_skip and attention_mask is None
        alone = causal and isinstance(q_offset, int) and q_offset == kv_offset and q_length == kv_length
        return None if alone else sdpa_mask(**given, **skips)
    kind = kind_of(mask_function) if isinstance(kv_offset, int) else None
    if kind is None:
        return sdpa_mask(**given, **skips)
    given["q_offset"] = int(q_offset)  # a cache counts in a tensor, in place
    padding = prepare_padding_mask(attention_mask, kv_length, kv_offset)
    padding = None if padding is None else padding[:, kv_offset : kv_offset + kv_length]
    seen = visible(kind, padding, batch_size, q_length, kv_length, given["q_offset"] - kv_offset)
    if seen is None:
        return sdpa_mask(**given, **skips)
    if (allow_is_causal_skip if kind.causal else allow_is_bidirectional_skip) and seen.said_by_none(
        q_length, kv_length
    ):
        return None
    if q_length == 1 and not allow_is_causal_skip:  # this may become an argument of a compiled step of decoding
        made = sdpa_mask(**given, allow_is_causal_skip=False)
        made.visible = seen
        return made
    shape = (batch_size, 1, q_length, kv_length)
    return Mask(seen, shape, device, lambda: sdpa_mask(**given, allow_is_causal_skip=False))


def asks(config: Any) -> bool:
    """Whether models of a configuration (its class) ask transformers' tables for their attention, as those do that
    have more than one. Others (BLOOM, MPT) compute it themselves, and add the mask to their scores, whatever it is.
    """
    return _asks(config)


# What torch.compiler.assume_constant_result does: torch.compile runs it, and does not look inside.
asks._dynamo_marked_constant = True  # type: ignore[attr-defined]


@lru_cache
def _asks(config: Any) -> bool:
    models, found = [PreTrainedModel], list[type]()
    for model in models:  # it grows
        models += model.__subclasses__()
        if getattr(model, "config_class", None) is config:
            found.append(model)
    flags = ("_supports_attention_backend", "_supports_sdpa")
    if not found or any(getattr(model, flag, False) for model in found for flag in flags):
        return True
    warnings.warn(f"models of a {config.__name__} compute their attention themselves, not by PyKittens", stacklevel=4)
    return False


def visible(kind: MaskKind, padding: Tensor | None, batch: int, n: int, m: int, place: int) -> Visible | None:
    """In numbers, where row i of n is at key `place` + i of m, and `padding` (batch, m) is False for keys that nobody
    sees. None where an entry's rows see no run of keys, so that there is no `Visible`.
    """
    window = None if kind.left is None and kind.right is None else (kind.left, kind.right)
    if kind.packed is not None:
        if padding is not None or (n, place) != (m, 0):
            return None
        begins = torch.ones((batch, n), dtype=torch.bool, device=kind.packed.device)
        begins[:, 1:] = kind.packed[:, 1:] != kind.packed[:, :-1]
        return Visible(kind.causal, window, packed=(*begins.flatten().nonzero().flatten().tolist(), batch * n))
    if kind.moved or place < 0 or place + n > m or (kind.right is not None and (n, place) != (m, 0)):
        return None
    begin, end = [0] * batch, [m] * batch
    if padding is not None:
        places = torch.arange(m, device=padding.device)
        bounds = (torch.where(padding, places, m).amin(1), torch.where(padding, places + 1, 0).amax(1), padding.sum(1))
        begin, end, count = torch.stack(bounds).tolist()
        if any(y - x != z for x, y, z in zip(begin, end, count, strict=True) if z):
            return None
    stop = place + n if kind.causal else m
    end = [min(y, stop) for y in end]
    begin = [min(x, y) for x, y in zip(begin, end, strict=True)]
    if n == 1 and kind.right is None:
        least = 0 if kind.left is None else place - kind.left
        begin = [min(max(x, least), y) for x, y in zip(begin, end, strict=True)]
        return Visible(False, None, (0,) * batch, (1,) * batch, (*begin,), (*end,))
    if not kind.causal and window is None:
        return Visible(False, None, (0,) * batch, (n,) * batch, (*begin,), (*end,))
    first = [min(max(x - place, 0), n) for x in begin]
    last = [max(y - place, x) for x, y in zip(first, end, strict=True)]
    if kind.left is not None and kind.left >= max(end, default=0) - 1 and kind.causal:
        window = None
    return Visible(kind.causal, window, (*first,), (*last,), (*begin,), (*end,))


def kind_of(function: Any) -> MaskKind | None:
    """What a function of transformers' `masking_utils` says; None for any other."""
    code: Any = getattr(function, "__code__", None)
    if code not in _KINDS:
        return None
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    return _KINDS[code](**dict(zip(code.co_freevars, cells, strict=True)))


def _all(mask_functions: Any) -> MaskKind | None:
    found = MaskKind()
    for function in mask_functions:
        kind = kind_of(function)
        if kind is None or (kind.packed is not None and found.packed is not None):
            return None
        found &= kind
    return found


def _moved(mask_function: Any, position_ids: Any) -> MaskKind | None:
    kind = kind_of(mask_function)
    return None if kind is None else kind._replace(moved=True)


_KINDS: dict[Any, Callable[..., MaskKind | None]] = {
    masking_utils.causal_mask_function.__code__: lambda: MaskKind(causal=True),
    masking_utils.bidirectional_mask_function.__code__: lambda: MaskKind(),
}
_MADE: tuple[tuple[str, tuple[Any, ...], Callable[..., MaskKind | None]], ...] = (
    ("and_masks", (), _all),
    ("sliding_window_overlay", (1,), lambda sliding_window: MaskKind(left=sliding_window - 1)),
    (
        "sliding_window_bidirectional_overlay",
        (1,),
        lambda sliding_window: MaskKind(False, sliding_window, sliding_window),
    ),
    ("packed_sequence_mask_function", (None,), lambda packed_sequence_mask: MaskKind(packed=packed_sequence_mask)),
    ("remap_positions_for_packed_sequence", (None, None), _moved),
)
for _name, _arguments, _meaning in _MADE:
    if hasattr(masking_utils, _name):  # not every version has each
        _KINDS[getattr(masking_utils, _name)(*_arguments).__code__] = _meaning
