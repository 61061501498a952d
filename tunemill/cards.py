"""Model cards (Mitchell et al. 2019) in the hub's layout: what a folder holds, where it came from, how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tunemill.checkpoints import write_text

LOADING = {
    "model": """from transformers import AutoModelFor{kind}, AutoTokenizer

model = AutoModelFor{kind}.from_pretrained("<this folder>")
tokenizer = AutoTokenizer.from_pretrained("<this folder>")""",
    "adapter": """from peft import PeftModel
from transformers import AutoModelFor{kind}, AutoTokenizer

base = AutoModelFor{kind}.from_pretrained("<the base model>")
model = PeftModel.from_pretrained(base, "<this folder>")
tokenizer = AutoTokenizer.from_pretrained("<the base model>")""",
}


def write(folder: Path, title: str, base: Path, text: str, facts: Mapping[str, object], encoder_decoder: bool) -> None:
    """Write README.md into a checkpoint's or an adapter's folder.

    Args:
        folder: the card's place; an adapter_config.json in it makes it an adapter's.
        title: of the card.
        base: folder of the model it was made from, whose card tells name and licence.
        text: what it is, in a few sentences.
        facts: rows of the table.
        encoder_decoder: the model's family.
    """
    known = front_matter(base / "README.md")
    adapter = (folder / "adapter_config.json").is_file()
    kind = "Seq2SeqLM" if encoder_decoder else "CausalLM"
    head = {
        "license": known.get("license", "unknown"),
        "base_model": known.get("base_model", base.name),
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    write_text(
        folder / "README.md",
        "---\n"
        + "".join(f"{name}: {value}\n" for name, value in head.items())
        + f"---\n\n# {title}\n\n{text}\n\n"
        + (f"| | |\n|---|---|\n{rows}\n\n" if rows else "")
        + f"## How to load it\n\n```python\n{LOADING['adapter' if adapter else 'model'].format(kind=kind)}\n```\n",
    )


def front_matter(card: Path) -> dict[str, str]:
    """The `name: value` lines between a card's `---` lines; empty without a card."""
    if not card.is_file():
        return {}
    parts = card.read_text(encoding="utf-8").split("---\n")
    lines = parts[1].splitlines() if len(parts) > 2 else []
    return {name: value.strip() for name, mark, value in (line.partition(":") for line in lines) if mark}
