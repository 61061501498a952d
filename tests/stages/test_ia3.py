"""ia3: another of PEFT's methods by the same stage shape, for both families; it merges into the weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages import ia3
from tests.stages import tuned
from tunemill import models
from tunemill.params import ParamsFile


@pytest.mark.parametrize("family", ["decoder-only", "encoder-decoder"])
def test_it_trains_few_factors_and_merged_equals_unmerged(family: str, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel

    tuned.prepare(tmp_path, family)
    metrics = tuned.run("ia3", tmp_path, tmp_path, "one", max_tokens=120, learning_rate=0.3)
    assert 0 < (metrics["parameters/share"] or 0) < 0.01
    folder = tmp_path / "one/adapter"
    given = {"input_ids": torch.arange(20, 60)[None]}
    if family == "encoder-decoder":
        given["decoder_input_ids"] = torch.arange(20, 30)[None]
    base = models.load_base(tmp_path / "model", tuned.CPU)
    with torch.no_grad():
        before = base(**given).logits
        unmerged = PeftModel.from_pretrained(base, folder)(**given).logits
        merged, _ = models.load_policy(folder, tmp_path / "model", tuned.CPU)
        assert not isinstance(merged, PeftModel)
        assert torch.allclose(merged(**given).logits, unmerged, atol=1e-4)
    assert (unmerged - before).abs().max() > 1e-3


def test_a_feed_forward_layer_that_is_no_target_is_refused() -> None:
    values = ParamsFile(tuned.ROOT / "params.yaml").section("ia3", ia3.Config).model_dump()
    for targets in ([], ["k_proj", "v_proj"]):
        with pytest.raises(ValueError, match="down_proj is not among them"):
            ia3.Config.model_validate(values | {"targets": targets, "feedforward": ["down_proj"]})
