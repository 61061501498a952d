"""Rewards: every kind scores what it says, by text or by token, for both families; what a reward.json gets wrong is told."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.tunemill.test_backbone import adapter, reward_folder
from tunemill import backbone, checkpoints, losses, models, rewards
from tunemill.errors import UserError
from tunemill.losses import Encoded
from tunemill.runtime import Runtime

CPU = Runtime("cpu", "float32", 1)
ASKED = ["read the file", "return the value", "read the file", "write", "delete the key now"]
ANSWERED = ["return the name", "", "the value of the key is read from the file", "x", "no"]


def described(folder: Path, **told: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "reward.json").write_text(json.dumps(told))
    return folder


def classifier(folder: Path, seed: int = 0) -> Path:
    """A text classifier with a tokenizer of its own, which has other words than the policies' have."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from tests import tiny_model

    tiny_model.build(folder / "other")
    tokenizer = models.load_tokenizer(folder / "other")
    tokenizer.padding_side = "right"
    torch.manual_seed(seed)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            initializer_range=0.5,
            id2label={0: "nothate", 1: "hate"},
            label2id={"nothate": 0, "hate": 1},
        )
    ).eval()
    model.save_pretrained(folder / "classifier")
    tokenizer.save_pretrained(folder / "classifier")
    return folder / "classifier"


# ── reward.json ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["model", "shuffled", "length", "offence"])
def test_each_kind_says_who_scores(kind: str, tmp_path: Path) -> None:
    described(tmp_path / "learnt", kind="model")
    found = rewards.load(described(tmp_path / "own", kind=kind, model="../learnt", accuracy=0.7), CPU)
    assert found.kind == kind
    assert found.model == (tmp_path / "learnt" if kind in ("model", "shuffled") else None)
    assert (found.texts is not None) == (kind == "offence")
    assert found.shuffled == (kind == "shuffled")
    assert rewards.told(found) == {"kind": kind, "shuffled": kind == "shuffled"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "no reward in .*\n  expected: a reward.json with its kind"),
        ("{}", r"reward\.json: kind: field required"),
        ('{"kind": "lenght"}', r"reward\.json: kind: input should be 'model', 'classifier'"),
        (
            '{"kind": "length", "sign": -1}',
            r"reward\.json: label and sign are of a text classifier alone",
        ),
        ('{"kind": "offence", "label": "hate"}', r"label and sign are of a text classifier alone"),
        ('{"kind": "classifier", "sign": 2}', r"reward\.json: sign: input should be 1 or -1"),
        ('{"kind": "length",', r"reward\.json: invalid json"),
    ],
)
def test_a_mistake_in_it_is_told(text: str | None, told: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "reward.json").write_text(text)
    with pytest.raises(UserError, match=told):
        rewards.load(tmp_path, CPU)


def test_the_rewards_of_the_recipes_are_in_order(tmp_path: Path) -> None:
    root = tmp_path.resolve()
    shutil.copytree(Path(__file__).resolve().parents[2] / "recipes/rewards", root / "recipes/rewards")
    described(root / "artifacts/reward/harm", kind="model")
    folders = sorted((root / "recipes/rewards").iterdir())
    assert [each.name for each in folders] == ["length", "offence", "shuffled"]
    found = {each.name: rewards.load(each, CPU) for each in folders}
    assert {name: each.kind for name, each in found.items()} == {name: name for name in found}
    assert found["shuffled"].model == root / "artifacts/reward/harm"


# ── texts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_classifier_has_a_tokenizer_of_its_own(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = classifier(tmp_path)
    told = {"kind": "classifier", "model": "../classifier"}
    liked = rewards.load(described(tmp_path / "liked", **told, label="nothate"), CPU)
    unwanted = rewards.load(described(tmp_path / "unwanted", **told, label="nothate", sign=-1), CPU)
    assert liked.texts is not None and unwanted.texts is not None
    scores = liked.texts(ASKED, ANSWERED)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():  # one at a time: padding changes nothing, the prompt neither
        alone = [float(model(**tokenizer(each or " ", return_tensors="pt")).logits[0, 0]) for each in ANSWERED if each]
    assert [each for each, text in zip(scores, ANSWERED, strict=True) if text] == pytest.approx(alone, abs=1e-5)
    assert unwanted.texts(ASKED, ANSWERED) == pytest.approx([-float(each or 0.0) for each in scores], abs=1e-6)
    assert len({round(float(each or 0.0), 4) for each in scores}) == len(ANSWERED)


def test_a_label_or_a_classifier_that_is_not_there_is_told(tmp_path: Path) -> None:
    classifier(tmp_path)
    told = {"kind": "classifier", "model": "../classifier"}
    with pytest.raises(UserError, match="no label 'toxic'\n  expected: one of nothate, hate"):
        rewards.load(described(tmp_path / "own", **told, label="toxic"), CPU)
    with pytest.raises(UserError, match="no text classifier in"):
        rewards.load(described(tmp_path / "own", kind="classifier", model="../nowhere", label="hate"), CPU)


def test_silence_offends_nobody_and_pleases_nobody() -> None:
    nice, rude, nothing = rewards.inoffensive(["a"] * 3, ["have a nice day", "you stupid fucking idiot", " "])
    assert nice > 0.9 > 0.5 > 0.2 > rude
    assert nothing == 0.5


def test_a_score_that_is_no_number_is_refused(tmp_path: Path) -> None:
    assert rewards.checked([1, 0.5], ["a", "b"], tmp_path) == [1.0, 0.5]
    for wrong in (None, float("nan"), float("inf")):
        with pytest.raises(UserError, match="the reward of 1 of 2 responses is no number; the first: 'b'"):
            rewards.checked([1.0, wrong], ["a", "b"], tmp_path)


# ── tokens ────────────────────────────────────────────────────────────────────────────────────────────────────────


def rows(start: Path) -> list[Encoded]:
    tokenizer = models.load_tokenizer(start)
    return [
        Encoded(models.render_prompt(tokenizer, one), models.render_completion(tokenizer, other))
        for one, other in zip(ASKED, ANSWERED, strict=True)
    ]


def test_a_reward_model_by_itself_scores_as_it_does_among_the_actors(either: Path, tmp_path: Path) -> None:
    import torch

    folder = reward_folder(either, tmp_path / "reward")
    read = rewards.reader(folder, either, CPU)
    found = read(rows(either))
    actors = backbone.share(either, folder, adapter(), CPU, detached=True)
    assert actors.reward_head is not None
    with torch.no_grad(), actors.role("reward") as model:
        batch = backbone.collate(rows(either), 0, losses.start_token(actors))
        wanted = backbone.linear(backbone.end_states(model, batch), actors.reward_head).tolist()
    assert found == pytest.approx(wanted, rel=1e-3, abs=1e-3)
    assert len({round(each, 3) for each in found}) == len(found)
    assert read(rows(either)[::-1]) == found[::-1]  # each row's own, in its order
    # As texts: responses that ended.
    score = rewards.scorer(rewards.load(folder, CPU), either, CPU)
    assert score(ASKED, ANSWERED) == pytest.approx(found, abs=1e-6)
    cut = [Encoded(each.prompt, each.completion[:-1] or each.completion) for each in rows(either)]
    assert cut[0] != rows(either)[0] and read(cut) == pytest.approx(found, abs=1e-6)  # read as if they ended there


def test_what_a_reward_says_of_length_is_taken_off_wherever_it_is_read(either: Path, tmp_path: Path) -> None:
    folder = reward_folder(either, tmp_path / "model")
    plain = rewards.scorer(rewards.load(folder, CPU), either, CPU)(ASKED, ANSWERED)
    said = json.loads((folder / "reward.json").read_text())
    checkpoints.write_json(folder / "reward.json", said | {"length": {"slope": -2.0, "log_tokens": 1.0}})
    shuffled = described(tmp_path / "shuffled", kind="shuffled", model="../model")
    pointer = described(tmp_path / "pointer", kind="model", model="../model")
    rewards.carry(folder, tmp_path / "elsewhere")
    rewards.carry(pointer, tmp_path / "by/pointer")
    tokens = [len(each.completion) for each in rows(either)]
    wanted = [
        score + 2.0 * (math.log1p(each) - 1.0) for score, each in zip(plain, tokens, strict=True) if score is not None
    ]
    for place in (folder, shuffled, pointer, tmp_path / "elsewhere", tmp_path / "by/pointer"):
        reward = rewards.load(place, CPU)
        assert reward.line is not None and reward.line[:2] == (-2.0, 1.0)
        assert rewards.scorer(reward, either, CPU)(ASKED, ANSWERED) == pytest.approx(wanted, abs=1e-6)
        # What was cut off counts as it is read: with an end.
        cut = [Encoded(each.prompt, each.completion[:-1] or each.completion) for each in rows(either)]
        assert rewards.drawn(reward, either, CPU)(cut, ASKED, ANSWERED) == pytest.approx(wanted, abs=1e-6)
    assert rewards.told(rewards.load(folder, CPU))["length"] == {"slope": -2.0, "log_tokens": 1.0}
    described(tmp_path / "offence", kind="offence")
    with pytest.raises(UserError, match="a reward of kind offence where a reward model should be"):
        rewards.load(described(tmp_path / "wrong", kind="shuffled", model="../offence"), CPU)
    with pytest.raises(UserError, match="of a reward model alone"):
        rewards.load(described(tmp_path / "wrong", kind="offence", length={"slope": 1.0, "log_tokens": 0.0}), CPU)


@pytest.mark.parametrize("length", ['"short"', '{"slope": 1.0}', '{"slope": NaN, "log_tokens": 1.0}'])
def test_a_line_that_is_none_is_told(length: str, tmp_path: Path) -> None:
    (tmp_path / "reward.json").write_text(f'{{"kind": "model", "length": {length}}}')
    with pytest.raises(UserError, match="length"):
        rewards.load(tmp_path, CPU)


def test_more_rows_than_are_read_at_once_are_all_scored(decoder: Path, tmp_path: Path) -> None:
    read = rewards.reader(reward_folder(decoder, tmp_path), decoder, CPU)
    many = rows(decoder) * 7
    assert len(many) > 2 * rewards.ROWS
    assert read(many) == pytest.approx(read(rows(decoder)) * 7, abs=1e-3)


def test_length_counts_the_policys_tokens(either: Path, tmp_path: Path) -> None:
    reward = rewards.load(described(tmp_path, kind="length"), CPU)
    lengths = [float(len(each.completion)) for each in rows(either)]
    assert rewards.scorer(reward, either, CPU)(ASKED, ANSWERED) == lengths
    assert lengths[1] == 1.0  # the end alone
    assert rewards.drawn(reward, either, CPU)(rows(either), ASKED, ANSWERED) == lengths


def test_texts_are_scored_as_texts_however_they_were_drawn(decoder: Path, tmp_path: Path) -> None:
    reward = rewards.load(described(tmp_path, kind="offence"), CPU)
    told = rewards.inoffensive(ASKED, ANSWERED)
    assert rewards.scorer(reward, decoder, CPU)(ASKED, ANSWERED) == told
    assert rewards.drawn(reward, decoder, CPU)(rows(decoder), ASKED, ANSWERED) == told


def test_a_reward_model_with_another_tokenizer_is_refused(decoder: Path, tmp_path: Path) -> None:
    folder = reward_folder(decoder, tmp_path / "reward")
    (folder / "reward.json").write_text('{"kind": "model", "vocabulary": "0123456789ab"}')
    with pytest.raises(UserError, match="another tokenizer"):
        rewards.reader(folder, decoder, CPU)


# ── elsewhere ─────────────────────────────────────────────────────────────────────────────────────────────────────


def scored(folder: Path, start: Path) -> Sequence[float | None]:
    return rewards.scorer(rewards.load(folder, CPU), start, CPU)(ASKED, ANSWERED)


def test_a_reward_model_on_other_weights_is_refused(decoder: Path, tmp_path: Path) -> None:
    """Same tokenizer, same width: nothing but the weights tells that its scores would be noise."""
    folder = reward_folder(decoder, tmp_path / "reward")
    (folder / "reward.json").write_text(json.dumps({"kind": "model", "weights": backbone.weights(decoder)}))
    rewards.reader(folder, decoder, CPU)
    models.make_random(tmp_path / "other", 2, 64, 1, "float32", "decoder-only")
    with pytest.raises(UserError, match="the reward model was trained on other weights than those of") as caught:
        rewards.reader(folder, tmp_path / "other", CPU)
    assert "another entry of extra.reward" in str(caught.value)


@pytest.mark.parametrize("kind", ["model", "classifier", "length"])
def test_a_reward_that_was_carried_elsewhere_scores_the_same(kind: str, decoder: Path, tmp_path: Path) -> None:
    import shutil

    own = tmp_path / "own"
    if kind == "model":
        reward_folder(decoder, own)
        (own / "reward.json").write_text('{"kind": "model", "accuracy": 0.75}')
    elif kind == "classifier":
        classifier(tmp_path)
        described(own, kind=kind, model="../classifier", label="hate", sign=-1)
    else:
        described(own, kind=kind)
    before = scored(own, decoder)
    rewards.carry(own, tmp_path / "deep/er/copy")
    for folder in (own, tmp_path / "classifier"):
        shutil.rmtree(folder, ignore_errors=True)
    assert scored(tmp_path / "deep/er/copy", decoder) == before
    if kind == "model":
        assert json.loads((tmp_path / "deep/er/copy/reward.json").read_text())["accuracy"] == 0.75
