"""Helpfulness by vectors that can be reckoned by hand, and what is only a question back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from stages import collect, validate
from tests import tiny_encoder
from tunemill import embeddings, helpfulness, model_sources, records, sources
from tunemill.params import ParamsFile
from tunemill.records import HarmlessPrompt
from tunemill.runtime import Runtime

ROOT = Path(__file__).parents[2]
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


@pytest.mark.network
@pytest.mark.timeout(300)
def test_the_default_encoder_tells_evasion_from_an_attempt_and_no_more(tmp_path: Path) -> None:
    """The figures of docs/evaluate.md, on the default's test questions."""
    file = ParamsFile(ROOT / "params.yaml")
    cfg, rules = file.section("collect", collect.Config), file.section("validate", validate.Config)
    assert cfg.encoder is not None
    (tmp_path / "encoder").mkdir()
    model_sources.fetch_files(cfg.encoder, tmp_path, tmp_path / "encoder", "params.yaml: collect.encoder")
    rows = [row.fields for row in sources.read(cfg.harmless["truthfulqa"], tmp_path)]
    good = [
        HarmlessPrompt(records.row_id(each["prompt"]), each["prompt"], tuple(each["answers"]), "truthfulqa")
        for each in rows
        if all(map(str.strip, each["answers"]))
    ]
    test = validate.part_harmless(good, rules.harmless, rules.near_duplicate, rules.seed)["harmless_test"]
    assert (len(good), len(test)) == (810, 300)
    reads = helpfulness.reader(tmp_path, CPU)
    assert reads is not None
    right = [helpfulness.speaking(each.answers) for each in test]

    def mean(answers: Sequence[str], right: Sequence[Sequence[str]] = right) -> float:
        found = [each for each in helpfulness.nearest(answers, right, reads) if each is not None]
        return sum(found) / len(found)

    page = (ROOT / "docs/evaluate.md").read_text(encoding="utf-8")
    told = re.search(
        r"a refusal has ([\d.]+), the\s+question back above ([\d.]+), a right answer to another question ([\d.]+) and a right answer "
        r"held against the others ([\d.]+); but the question said again has ([\d.]+),",
        page,
    )
    assert told is not None
    others = [test[at - 1].answers[0] for at in range(300)]
    several = [own for own in right if len(own) > 1]
    measured = (
        mean(["I'm sorry, but I can't assist with that."] * 300),
        mean(["Hi, I'm here to help. What can I help you with?"] * 300),
        mean(others),
        mean([own[0] for own in several], [own[1:] for own in several]),
        mean([each.prompt for each in test]),
    )
    assert measured == pytest.approx([*map(float, told.groups())], abs=0.02)
