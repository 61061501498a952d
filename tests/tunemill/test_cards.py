"""Model cards: what is made from a model says which, and under what licence."""

from __future__ import annotations

from pathlib import Path

from ruamel.yaml import YAML

from tunemill import cards


def head(card: Path) -> dict[str, str]:
    return dict(YAML(typ="safe", pure=True).load(card.read_text().split("---\n")[1]))


def test_a_tuned_model_inherits_name_and_licence(tmp_path: Path) -> None:
    for name in ("base", "tuned", "adapter"):
        (tmp_path / name).mkdir()
    cards.write_base(
        tmp_path / "base", "small", "small==1.0: small.gguf", "Apache-2.0", "A model.", {"layers": 2}, False
    )
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    for name in ("tuned", "adapter"):
        cards.write(tmp_path / name, "Tuned", tmp_path / "base", "Tuned.", {"steps": 3}, False)
    told = head(tmp_path / "tuned/README.md")
    assert told == {
        "license": "Apache-2.0",
        "base_model": "small==1.0: small.gguf",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
    }
    assert head(tmp_path / "adapter/README.md") == told | {"library_name": "peft"}
    text = (tmp_path / "adapter/README.md").read_text()
    assert "PeftModel.from_pretrained" in text and "| steps | 3 |" in text


def test_a_base_without_a_card_is_named_by_its_folder(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    cards.write(tmp_path / "tuned", "Tuned", tmp_path / "mine", "Tuned.", {}, True)
    told = head(tmp_path / "tuned/README.md")
    assert (told["license"], told["base_model"]) == ("unknown", "mine")
    assert told["pipeline_tag"] == "text2text-generation"
    assert "AutoModelForSeq2SeqLM" in (tmp_path / "tuned/README.md").read_text()
