"""Text that comes with Python, and a byte-pair encoding learned from it."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<end of file>"


def files(most: int | None = None) -> Iterator[str]:
    """The texts of the standard library in the order of their paths (.py, .txt, .rst): all, or about the first `most`
    characters.
    """
    count, root = 0, Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*")):
        installed = {"site-packages", "dist-packages"} & set(path.parts)
        if path.suffix in (".py", ".txt", ".rst") and path.is_file() and not installed:
            text = path.read_text(encoding="utf-8", errors="replace")
            yield text
            count += len(text)
            if most is not None and count >= most:
                return


def learn(texts: list[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE of at most so many tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    bytes_ = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=bytes_, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> torch.Tensor:
    """All texts one after the other, each followed by the token that ends it: int64 (tokens,)."""
    end = tokenizer.token_to_id(END)
    return torch.tensor([token for found in tokenizer.encode_batch(texts) for token in (*found.ids, end)])


def batches(tokens: torch.Tensor, steps: int, size: int, length: int) -> Iterator[torch.Tensor]:
    """For each step windows of `length` + 1 tokens, the same in every run, made where the tokens are: nobody waits."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(len(tokens) - length, (steps, size, 1), generator=generator).to(tokens.device)
    within = torch.arange(length + 1, device=tokens.device)
    for step in first:
        yield tokens[step + within]
