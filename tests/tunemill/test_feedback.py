"""Who gives feedback: each source by its own words, what it says kept under all that it depends on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.stages.tuned import CPU
from tunemill import feedback, judging, likelihood, models
from tunemill.endpoints import Endpoint
from tunemill.errors import UserError
from tunemill.journal import Shelf
from tunemill.log import Log
from tunemill.sampling import Decoding

ENDPOINT = Endpoint(
    base_url="http://127.0.0.1:9/v1",
    model="m",
    key_variable="",
    max_tokens=8,
    timeout_seconds=1,
    retries=0,
    concurrency=1,
)
TALK: models.Conversation = (("user", "read the value"), ("assistant", "return the key"), ("user", "which of them"))


@pytest.fixture(scope="module", params=["decoder-only", "encoder-decoder"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp(request.param) / "model"
    models.make_random(place, 2, 64, 0, "float32", request.param)
    return place


def source(**change: Any) -> feedback.Source:
    values = {
        "model": "self",
        "folder": "nowhere",
        "hub": feedback.Hub(repo="a/b", revision="0" * 40),
        "endpoint": ENDPOINT,
    }
    return feedback.Source.model_validate(values | change)


def opened(folder: Path, place: Path, **change: Any) -> feedback.Model:
    return feedback.open_source(
        source(**change),
        folder,
        "sl_cai.critic",
        feedback.Asking(Shelf(place), place, 4000, 8, CPU, Log()),
    )


def test_labels_are_scored_as_they_stand_in_the_examples(folder: Path, tmp_path: Path) -> None:
    """Behind "Assistant:", where there is no chat template, a label has a space before it."""
    model, tokenizer = models.load_policy(folder, folder, CPU)
    before = "" if tokenizer.chat_template else " "
    pairs = [(TALK, f"{before}{label}") for label in judging.LABELS]
    first, second = likelihood.score(model, tokenizer, pairs, batch_tokens=4000, batch_rows=8)
    [found] = opened(folder, tmp_path).choose([TALK], "x")
    assert found.p == pytest.approx(judging.probability(first.logprob, second.logprob))


def test_a_model_without_a_template_stops_before_the_others_turn(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunemill import sampling

    given: list[Any] = []
    generate = sampling.generate

    def listen(*arguments: Any, **named: Any) -> Any:
        given.append(named["until"])
        return generate(*arguments, **named)

    monkeypatch.setattr(sampling, "generate", listen)
    critic = opened(folder, tmp_path)
    critic.write([TALK], Decoding(4, 1.0), 0, "x")
    critic.write(["read the value"], Decoding(4, 1.0), 0, "x")
    template = models.load_tokenizer(folder).chat_template
    assert given == [() if template else (models.NEXT_TURN,), ()]


def test_other_questions_are_another_journal(folder: Path, tmp_path: Path) -> None:
    critic = opened(folder, tmp_path)
    critic.choose([TALK], "x")
    critic.choose([TALK], "x")
    assert len([*tmp_path.glob("labels-*.jsonl")]) == 1
    critic.choose([TALK, (("user", "what"),)], "x")
    assert len([*tmp_path.glob("labels-*.jsonl")]) == 2


def test_a_model_of_a_hub_is_fetched_once_for_each_number_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []

    def convert(repo: str, revision: str, out: Path, dtype: str, where: str) -> None:
        asked.append((repo, revision, dtype, where))
        models.make_random(out, 1, 32, 0, dtype, "decoder-only")

    monkeypatch.setattr(models, "convert_checkpoint", convert)
    for _ in range(2):
        found = opened(tmp_path / "nowhere", tmp_path / "kept", model="hub")
        assert found.told == {"kind": "hub", "name": "a/b@0000000"}
    assert asked == [("a/b", "0" * 40, "float32", "sl_cai.critic.hub")]
    assert [each.name for each in (tmp_path / "kept/hub").iterdir()] == [f"{'0' * 40}-float32"]


def test_a_conversation_that_is_too_long_is_told(tmp_path: Path) -> None:
    models.make_random(tmp_path / "model", 1, 32, 0, "float32", "decoder-only")
    critic = opened(tmp_path / "model", tmp_path)
    with pytest.raises(
        UserError, match=r"round 1: the longest conversation has \d+ tokens, and 4 may follow"
    ) as caught:
        critic.write([(("user", "word " * 9000),)], Decoding(4, 1.0), 0, "round 1")
    assert "shorten the constitution's examples" in str(caught.value)


def test_a_policy_that_is_no_whole_model_is_told_by_its_own_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no whole model in") as caught:
        opened(tmp_path / "policy", tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'policy'}: ") and "critic.folder" not in str(caught.value)
