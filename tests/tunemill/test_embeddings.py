"""Vectors against a loop over single texts, whatever else is in the batch; and against sentence-transformers' definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests import tiny_encoder
from tunemill import embeddings
from tunemill.errors import UserError

TEXTS = ["the river", "we help you to the garden and the river", "", "forge", "sorry we cannot help " * 30, "the river"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder")
    tiny_encoder.build(path)
    return path


def test_a_vector_is_the_mean_of_the_texts_own_last_states(folder: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    found = embeddings.embed(embeddings.load(folder, 16), TEXTS, batch_tokens=40)
    assert found.shape == (6, 32)
    for text, vector in zip(TEXTS, found, strict=True):
        ids = torch.tensor([[*tokenizer(text)["input_ids"][:15], 3]]) if len(text) > 60 else None
        given = {"input_ids": ids} if ids is not None else tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            states = model(**given).last_hidden_state[0]
        mean = states.mean(0).numpy()
        assert vector == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 17, 10_000])
def test_batches_change_nothing(folder: Path, batch_tokens: int) -> None:
    encoder = embeddings.load(folder, 64)
    once = embeddings.embed(encoder, TEXTS)
    assert embeddings.embed(encoder, TEXTS, batch_tokens=batch_tokens) == pytest.approx(once, abs=1e-5)
    assert np.array_equal(once[0], once[5])
    assert embeddings.embed(encoder, []).shape == (0, 32)


def test_no_more_is_read_than_the_model_has_positions_for(folder: Path) -> None:
    assert embeddings.load(folder, 1000).max_tokens == 64
    assert np.isfinite(embeddings.embed(embeddings.load(folder, 1000), ["the river " * 100])).all()


def test_what_is_no_encoder_is_refused(tmp_path: Path, encoder_decoder: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)no encoder in .*name another under collect\.encoder"):
        embeddings.load(tmp_path, 16)
    with pytest.raises(UserError, match=r"the t5 in .* is no encoder of sentences"):
        embeddings.load(encoder_decoder, 16)
