"""The training example: a few steps of a tiny model on the simulated GPU, beside torch's functions."""

from pathlib import Path

import pytest

pytest.importorskip("torch")

from benchmarks.record import read
from examples import text, train


def test_a_tiny_model_learns_as_torchs_does(tmp_path: Path) -> None:
    ours, theirs = train.main(["--steps", "5", "--out", str(tmp_path / "results.json")])
    assert ours["losses"][-1] < ours["losses"][0]
    assert ours["losses"] == pytest.approx(theirs["losses"], rel=2e-2)
    assert [row["losses"] for row in read(tmp_path / "results.json")] == [ours["losses"], theirs["losses"]]


@pytest.mark.whole
def test_gated_delta_net_in_place_of_attention_learns(tmp_path: Path) -> None:
    (row,) = train.main(["--layer", "gated_delta_net", "--steps", "4", "--out", str(tmp_path / "results.json")])
    assert row["losses"][-1] < row["losses"][0]
    assert [kept["table"] for kept in read(tmp_path / "results.json")] == ["training_gated_delta_net"]


def test_the_encoding_keeps_the_text() -> None:
    texts = list(text.files(20_000))
    tokenizer = text.learn(texts, 400)
    tokens = text.encode(tokenizer, texts)
    assert tokenizer.decode(tokens.tolist(), skip_special_tokens=True) == "".join(texts)
    assert tokenizer.get_vocab_size() == 400 and len(tokens) < len("".join(texts).encode())
    first, second = ([*text.batches(tokens, 2, 3, 20)] for _ in range(2))
    assert first[0].shape == (3, 21) and first[0].equal(second[0]) and not first[0].equal(first[1])
    assert tokenizer.decode(first[1][0].tolist(), skip_special_tokens=True) in "".join(texts)
