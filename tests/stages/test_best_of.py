"""best_of: of n answers the reward's favourite, for both families; evaluated like any other candidate, and a kill costs nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from stages import best_of as stage
from tests.stages import aligned, tuned
from tests.tunemill.test_backbone import reward_folder
from tunemill import best_of, journal, models, rewards
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.losses import Encoded
from tunemill.sampling import Generation

PROMPTS = ["read the file", "write the key"]
REPLIES = [
    [Generation(text, len(text.split()) + 1, ended) for text, ended in texts]
    for texts in (
        [("a", True), ("a a a", True), ("a a", True), ("b", True), ("", True), ("b b b b", False)],
        [("c c c", True), ("c", True), ("d d d", True), ("e", True), ("e e", True), ("f f", True)],
    )
]


@pytest.fixture(scope="module", params=["decoder-only", "encoder-decoder"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    aligned.prepare(folder, request.param)
    reward_folder(folder / "model", folder / "reward")
    return folder


def picked(policy: Path, shelf: Path, log: Log | None = None) -> list[list[str]]:
    tokenizer = models.load_tokenizer(policy)
    found = best_of.pick(policy, tokenizer, PROMPTS, REPLIES, journal.Shelf(shelf), tuned.CPU, log or Log())
    return [[each.text for each in answers] for answers in found]


def test_a_policy_of_another_kind_gives_what_it_wrote(place: Path, tmp_path: Path) -> None:
    assert best_of.number(place / "model") == 1
    assert picked(place / "model", tmp_path) == [[each.text for each in answers] for answers in REPLIES]
    assert not list(tmp_path.iterdir())


def test_of_every_n_in_a_row_the_rewards_favourite_is_given(place: Path, tmp_path: Path) -> None:
    length = aligned.reward(tmp_path / "length", kind="length")
    metrics = aligned.run("best_of", place, tmp_path / "out", reward=length, n=3)
    assert metrics == {"n": 3, "kl_bound": pytest.approx(math.log(3) - 2 / 3)}
    assert best_of.number(tmp_path / "out/model") == 3
    longest = [["a a a", "b b b b"], ["c c c", "e e"]]  # of equals the first
    assert picked(tmp_path / "out/model", tmp_path / "shelf") == longest


def test_a_reward_model_chooses_by_its_own_scores(place: Path, tmp_path: Path) -> None:
    aligned.run("best_of", place, tmp_path / "out", reward=place / "reward", n=2)
    tokenizer = models.load_tokenizer(place / "model")
    read = rewards.reader(place / "reward", place / "model", tuned.CPU)

    def score(prompt: str, reply: Generation) -> float:
        ids = models.render_completion(tokenizer, reply.text)
        return read([Encoded(models.render_prompt(tokenizer, prompt), ids if reply.finished else ids[:-1])])[0]

    wanted = [
        [max(answers[at : at + 2], key=lambda each: score(prompt, each)).text for at in range(0, 6, 2)]
        for prompt, answers in zip(PROMPTS, REPLIES, strict=True)
    ]
    assert picked(tmp_path / "out/model", tmp_path / "shelf") == wanted


def test_it_is_the_model_with_best_of_json_and_a_reward_that_is_its_own(place: Path, tmp_path: Path) -> None:
    import torch

    aligned.run("best_of", place, tmp_path / "out", reward=place / "reward", n=4)
    folder = tmp_path / "out/model"
    assert set(tuned.files(place / "model")) | {
        "README.md",
        "best_of.json",
        "reward/adapter/adapter_config.json",
        "reward/adapter/adapter_model.safetensors",
        "reward/adapter/head.safetensors",
        "reward/reward.json",
    } == set(tuned.files(folder))
    assert json.loads((folder / "best_of.json").read_text()) == {"n": 4}
    own, _ = models.load_policy(folder, place / "model", tuned.CPU)
    start = models.load_base(place / "model", tuned.CPU)
    for one, other in zip(own.parameters(), start.parameters(), strict=True):
        assert torch.equal(one, other)
    assert "best of n" in (folder / "README.md").read_text()


def test_scores_that_were_found_before_a_kill_are_not_computed_again(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aligned.run("best_of", place, tmp_path / "out", reward=aligned.reward(tmp_path / "r", kind="length"), n=3)
    append, seen = journal.append, []

    def dies(path: Path, entry: dict[str, Any]) -> None:
        append(path, entry)
        seen.append(entry)
        if len(seen) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(journal, "append", dies)
    with pytest.raises(KeyboardInterrupt):
        picked(tmp_path / "out/model", tmp_path / "shelf")
    assert picked(tmp_path / "out/model", tmp_path / "shelf") == [["a a a", "b b b b"], ["c c c", "e e"]]
    assert len(seen) == 2  # one for each prompt


def test_a_shuffled_reward_and_one_of_another_tokenizer_are_refused(place: Path, tmp_path: Path) -> None:
    control = aligned.reward(tmp_path / "control", kind="shuffled", model=str(place / "reward"))
    with pytest.raises(UserError, match="shuffled scores choose at random"):
        aligned.run("best_of", place, tmp_path / "out", reward=control)
    other = reward_folder(place / "model", tmp_path / "other")
    (other / "reward.json").write_text('{"kind": "model", "vocabulary": "0123456789ab"}')
    with pytest.raises(UserError, match="another tokenizer"):
        aligned.run("best_of", place, tmp_path / "out", reward=other)
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        stage.Config(n=1)
