"""Judges of what a model says: words and embeddings, saved and loaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests import tiny_encoder
from tunemill import embeddings, metrics, tfidf, toxicity
from tunemill.errors import UserError
from tunemill.logistic import Logistic
from tunemill.ridge import Ridge
from tunemill.runtime import Runtime

CPU = Runtime("cpu", "float32", 2)
TOLD = {"encoder": "tiny", "alpha": 1.0, "auc": {"value": 0.7, "low": 0.65, "high": 0.75}}
TEXTS = ["the river", "phish and forge", "sorry we cannot help", "nothing known", " ", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every judge, with weights drawn at random."""
    path = tmp_path_factory.mktemp("harm")
    tiny_encoder.build(path / toxicity.ENCODER)
    rng = np.random.default_rng(0)
    encoder = embeddings.load(path / toxicity.ENCODER, 32)
    words = tfidf.learn([*TEXTS, "the river forge", "sorry the river"], 2, 1)
    toxicity.Judge(encoder, Ridge(rng.normal(size=32), 0.4), TOLD).save(path / "harm_embedding")
    toxicity.Judge(encoder, Ridge(rng.normal(size=32), 0.6), TOLD).save(path / "monitor")
    toxicity.Judge(words, Ridge(rng.normal(size=len(words.terms)), 0.5), TOLD).save(path / "harm")
    toxicity.Judge(words, Logistic(rng.normal(size=len(words.terms)), -1.0), TOLD).save(path / "refusal")
    return path


def test_offence_tells_an_insult_from_a_summary() -> None:
    scores = toxicity.offence(["You are a fucking idiot.", "Return the sum of the array.", "", "  "])
    assert scores[0] >= metrics.TOXIC > scores[1]
    assert scores[2:] == [None, None]
    assert toxicity.offence([]) == []
    assert toxicity.offence_name().startswith("alt-profanity-check 1.")


def test_a_judge_that_reads_embeddings_comes_back_as_it_was_saved(folder: Path) -> None:
    place = folder / "harm_embedding"
    assert sorted(each.name for each in place.iterdir()) == ["judge.json", "judge.safetensors"]
    judge = toxicity.Judge.load(place)
    assert isinstance(judge.reader, embeddings.Encoder)
    vectors = embeddings.embed(judge.reader, TEXTS)
    expected = np.clip(vectors @ np.random.default_rng(0).normal(size=32) + 0.4, 0, 1)
    assert judge.score(TEXTS)[:4] == pytest.approx(expected[:4], abs=1e-12)
    assert judge.score(TEXTS)[4:] == [None, None]
    assert judge.score([]) == []
    assert "AUC 0.70 [0.65, 0.75]" in judge.name and "embeddings of tiny" in judge.name


def test_a_judge_that_reads_words_comes_back_to_the_last_bit(folder: Path, tmp_path: Path) -> None:
    for name, word in (("harm", "ridge"), ("refusal", "logistic")):
        assert sorted(each.name for each in (folder / name).iterdir()) == [
            "judge.json",
            "judge.safetensors",
            "vocabulary.json",
        ]
        judge = toxicity.Judge.load(folder / name)
        assert json.loads((folder / name / "judge.json").read_text())["model"] == word
        judge.save(tmp_path / name)
        again = toxicity.Judge.load(tmp_path / name)
        assert again.score(TEXTS) == judge.score(TEXTS) and again.name == judge.name
        for file in (folder / name).iterdir():
            assert (tmp_path / name / file.name).read_bytes() == file.read_bytes()
        assert judge.score(TEXTS)[4:] == [None, None] and judge.score([]) == []
    # Without a known word there is what the model says of none; a logistic one gives a probability.
    judge = toxicity.Judge.load(folder / "harm")
    assert judge.score(["unheard of"]) == [pytest.approx(0.5)]
    assert toxicity.Judge.load(folder / "refusal").score(["unheard of"]) == [pytest.approx(1 / (1 + np.e))]
    assert "ridge on words" in judge.name and "refusal" in toxicity.Judge.load(folder / "refusal").name


def test_scores_stay_between_zero_and_one(folder: Path) -> None:
    judge = toxicity.Judge.load(folder / "harm_embedding")
    wide = toxicity.Judge(judge.reader, Ridge(judge.model.weight * 100, 0.5), TOLD)
    found = [each or 0.0 for each in wide.score([*tiny_encoder.PLAIN, *tiny_encoder.HARMFUL])]
    assert min(found) == 0.0 and max(found) == 1.0


def test_judges_by_name(folder: Path, tmp_path: Path) -> None:
    found = toxicity.judges(folder, CPU)
    assert tuple(found) == toxicity.JUDGES == ("offence", "harm", "harm_embedding", "refusal", "refusal_phrases")
    names = toxicity.names(folder)
    assert list(names) == ["offence_scorer", "harm_scorer", "harm_embedding_scorer", "refusal_scorer"]
    for name in toxicity.JUDGES[1:-1]:
        judge = toxicity.Judge.load(folder / name)
        assert found[name](TEXTS) == judge.score(TEXTS) and names[f"{name}_scorer"] == judge.name
    assert found["refusal_phrases"](["I'm sorry.", "the river"]) == [1.0, 0.0]
    watching = toxicity.monitor(folder, CPU)
    assert watching is not None and watching(TEXTS) == toxicity.Judge.load(folder / "monitor").score(TEXTS)
    told = {"judges": {name: {"reason": "too few ratings"} for name in toxicity.LEARNT}}
    (tmp_path / "harm.json").write_text(json.dumps(told))
    for nothing, why in ((None, "no folder"), (tmp_path, "too few ratings"), (tmp_path / "away", "stage `harm`")):
        assert toxicity.monitor(nothing, CPU) is None
        for name in toxicity.JUDGES[1:-1]:
            assert toxicity.judges(nothing, CPU)[name](["a", ""]) == [None, None]
            assert why in toxicity.names(nothing)[f"{name}_scorer"]
    with pytest.raises(UserError, match="no judge 'harm': too few ratings"):
        toxicity.Judge.load(tmp_path / "harm")
