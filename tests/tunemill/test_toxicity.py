"""Two scorers of toxicity."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests import tiny_encoder
from tunemill import embeddings, metrics, toxicity
from tunemill.errors import UserError
from tunemill.ridge import Ridge
from tunemill.runtime import Runtime

CPU = Runtime("cpu", "float32", 2)
TOLD = {"encoder": "tiny", "max_tokens": 32, "alpha": 1.0, "auc": {"value": 0.7, "low": 0.65, "high": 0.75}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("harm")
    tiny_encoder.build(path / toxicity.ENCODER)
    weight = np.random.default_rng(0).normal(size=32)
    encoder = embeddings.load(path / toxicity.ENCODER, 32)
    toxicity.HarmScorer(encoder, Ridge(weight, 0.4), TOLD).save(path)
    return path


def test_offence_tells_an_insult_from_a_summary() -> None:
    scores = toxicity.offence(["You are a fucking idiot.", "Return the sum of the array.", "", "  "])
    assert scores[0] >= metrics.TOXIC > scores[1]
    assert scores[2:] == [None, None]
    assert toxicity.offence([]) == []
    assert toxicity.offence_name().startswith("alt-profanity-check 1.")


def test_a_harm_scorer_comes_back_as_it_was_saved(folder: Path) -> None:
    assert sorted(each.name for each in folder.iterdir()) == ["encoder", "scorer.json", "scorer.safetensors"]
    scorer = toxicity.HarmScorer.load(folder)
    texts = ["the river", "phish and forge", "sorry we cannot help", " ", ""]
    vectors = embeddings.embed(scorer.encoder, texts)
    expected = np.clip(vectors @ np.random.default_rng(0).normal(size=32) + 0.4, 0, 1)
    assert scorer.score(texts)[:3] == pytest.approx(expected[:3], abs=1e-12)
    assert scorer.score(texts)[3:] == [None, None]
    assert scorer.score([]) == []
    assert "AUC 0.70 [0.65, 0.75]" in scorer.name and "tiny" in scorer.name


def test_scores_stay_between_zero_and_one(folder: Path) -> None:
    scorer = toxicity.HarmScorer.load(folder)
    wide = toxicity.HarmScorer(scorer.encoder, Ridge(scorer.model.weight * 100, 0.5), TOLD)
    found = wide.score([*tiny_encoder.PLAIN, *tiny_encoder.HARMFUL])
    assert {0.0, 1.0} <= set(found) and min(found) == 0.0 and max(found) == 1.0


def test_both_scorers_by_name(folder: Path, tmp_path: Path) -> None:
    both = toxicity.scorers(folder, CPU)
    assert list(both) == ["offence", "harm"]
    assert both["harm"](["the river"]) == toxicity.HarmScorer.load(folder).score(["the river"])
    assert toxicity.names(folder)["harm_scorer"] == toxicity.HarmScorer.load(folder).name
    (tmp_path / "harm.json").write_text(json.dumps({"reason": "no encoder is named"}))
    for nothing, why in ((None, "no folder"), (tmp_path, "no encoder is named"), (tmp_path / "away", "stage `harm`")):
        assert toxicity.scorers(nothing, CPU)["harm"](["a", ""]) == [None, None]
        assert why in toxicity.names(nothing)["harm_scorer"]
    with pytest.raises(UserError, match="no harm scorer: no encoder is named"):
        toxicity.HarmScorer.load(tmp_path)
