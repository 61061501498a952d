"""Refusals in so many words."""

from __future__ import annotations

import pytest

from tunemill import refusals


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't assist with that.",
        "I\u2019m so sorry, that is not something to ask.",
        "Sorry, I would rather not.",
        "I cannot help you with this request.",
        "As an AI language model, I do not have opinions.",
        "I am unable to provide this.",
        "We must decline.",
        "My apologies. That would be wrong.",
    ],
)
def test_what_refuses(text: str) -> None:
    assert refusals.phrases([text]) == [1.0]


@pytest.mark.parametrize(
    "text",
    [
        "Sure, here is how.",
        "They were sorry to leave.",
        "You cannot miss it.",
        "I can help you with that.",
        "It is illegal.",
    ],
)
def test_what_does_not(text: str) -> None:
    assert refusals.phrases([text]) == [0.0]


def test_an_empty_answer_says_nothing() -> None:
    assert refusals.phrases(["", " \n", "No."]) == [None, None, 0.0]
