"""Helpfulness by vectors that can be reckoned by hand, and what is only a question back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests import tiny_encoder
from tunemill import embeddings, helpfulness
from tunemill.runtime import Runtime

CPU = Runtime("cpu", "float32", 2)
VECTORS = {
    "east": (1.0, 0.0),
    "north": (0.0, 1.0),
    "west": (-1.0, 0.0),
    "between": (0.6, 0.8),
    "I have no comment": (0.6, 0.8),
}


def embed(texts: Sequence[str]) -> np.ndarray:
    assert len(set(texts)) == len(texts)  # none is embedded twice
    return np.array([VECTORS[each] for each in texts])


def test_the_nearest_right_answer_counts() -> None:
    answers = ["between", "between", "east", "east", "west"]
    right = [["east"], ["east", "north"], ["east"], ["north"], ["east"]]
    # By hand: 0.6, then 0.8 of the nearer one, itself, at right angles, and the opposite, which is no less than nothing.
    assert helpfulness.nearest(answers, right, embed) == pytest.approx([0.6, 0.8, 1.0, 0.0, 0.0])


def test_without_a_right_answer_nobody_can_say_and_silence_helps_nobody() -> None:
    found = helpfulness.nearest(["east", " ", "between", ""], [[], ["east"], ["east"], []], embed)
    assert found == [None, 0.0, pytest.approx(0.6), None]
    assert helpfulness.nearest([], [], lambda texts: pytest.fail("nothing to embed")) == []
    assert helpfulness.nearest([""], [["east"]], lambda texts: pytest.fail("nothing to embed")) == [0.0]


def test_a_right_answer_that_says_nothing_is_no_help() -> None:
    assert helpfulness.speaking(["East.", "I have no comment", "I have no comment. "]) == ["East."]
    found = helpfulness.nearest(["between", "between"], [["east", "I have no comment"], ["I have no comment"]], embed)
    assert found == [pytest.approx(0.6), None]


@pytest.mark.parametrize(
    "text",
    [
        "What can I help you with?",
        " What would you like to know?\n",
        "Hi, I'm here to help. What can I help you with?",
        "Hello! How are you? What do you need?",
        "Why do you ask? What for?",
    ],
)
def test_what_only_asks_back(text: str) -> None:
    assert helpfulness.asks_back([text]) == [1.0]


@pytest.mark.parametrize(
    "text",
    [
        "Nothing happens.",
        "Nothing happens. Is there anything else?",  # it has answered
        "What happens? Nothing does.",
        "The seeds pass through. What can I help you with?",
        "What can I help you wi",  # cut off by the limit
        "This is shipped to you. Why?",  # "hi" is no word of it
    ],
)
def test_what_does_not_only_ask_back(text: str) -> None:
    assert helpfulness.asks_back([text]) == [0.0]


def test_silence_asks_nothing() -> None:
    assert helpfulness.asks_back(["", "  ", "Why?"]) == [None, None, 1.0]


def test_the_encoder_of_the_judges_reads(tmp_path: Path) -> None:
    assert helpfulness.reader(None, CPU) is None and helpfulness.reader(tmp_path, CPU) is None
    tiny_encoder.build(tmp_path / "encoder")
    reads = helpfulness.reader(tmp_path, CPU)
    assert reads is not None
    right = ["the water of the river", "bread and water"]
    found = helpfulness.nearest(["the water of the river", "phish siphon"], [right, right], reads)
    assert found[0] == pytest.approx(1.0) and found[1] is not None and found[1] < 0.999
    encoder = embeddings.load(tmp_path / "encoder", 128)
    one, *others = embeddings.embed(encoder, ["phish siphon", *right])
    assert found[1] == pytest.approx(max(0.0, *(float(one @ each) for each in others)), abs=1e-6)
