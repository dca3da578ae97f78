"""What users see of an error: their own lines, and not ours between them."""

import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import pykittens as pk
from pykittens import f32, warp
from pykittens.errors import is_user_file

X = np.zeros((16, 64), np.float32)


def body(tile: Any) -> Any:
    return tile + "a"


@pk.kernel(warps=1)
def wrong(x: pk.gl(f32, "N", 64), y: pk.gl(f32, "N", 64), *, work: Any = body) -> None:
    warp.store(y, work(warp.load(x, (0, 0), rows=16)), (0, 0))


def divided(tile: Any) -> Any:
    return tile * pk.cast(8 // pk.block_index.x, f32)


WRONG: dict[str, tuple[Callable[[], Any], str, int]] = {  # a call, the last line of the user's, frames of ours after it
    "an operation": (lambda: wrong(X, X.copy()), "body", 0),
    "without running": (lambda: wrong.cuda(X, X), "body", 0),
    "an error of the user's own": (lambda: wrong(X, X, work=lambda tile: {}["no"]), "<lambda>", 0),
    "a word that is not there": (lambda: wrong(X, X, work=lambda tile: tile.flaot()), "<lambda>", 0),
    "an argument": (lambda: wrong(X, X.astype(np.float64)), "<lambda>", 1),
    "what only the simulator finds": (lambda: wrong(X, X.copy(), work=divided), "<lambda>", 1),
    "a public function": (lambda: pk.softmax(3), "<lambda>", 3),
    "another": (lambda: pk.attention(X, X, X), "<lambda>", 3),
}


@pytest.mark.parametrize("name", WRONG)
def test_tracebacks_show_the_users_lines(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call, last, ours = WRONG[name]
    seen = {}
    for full in (False, True):
        with monkeypatch.context() as patch:
            if not full:
                patch.delenv("PYKITTENS_TRACEBACK")
            with pytest.raises(Exception) as caught:
                call()
        seen[full] = traceback.extract_tb(caught.value.__traceback__)
    inner = [is_user_file(frame.filename) for frame in seen[False]]
    assert inner[-1 - ours] and inner[:1] == [True] and inner.count(False) <= max(ours, 1)
    assert seen[False][-1 - ours].name == last
    assert len(seen[True]) >= len(seen[False])


def test_what_goes_wrong_in_the_package_is_shown_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYKITTENS_TRACEBACK")
    monkeypatch.setattr("pykittens.call.kernel.specialise", None)
    with pytest.raises(TypeError) as caught:
        wrong(X, X)
    assert len([f for f in traceback.extract_tb(caught.value.__traceback__) if not is_user_file(f.filename)]) > 1
