"""Model cards (Mitchell et al. 2019) in the hub's layout: what a folder holds, where it came from, how to load it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from tunemill.checkpoints import write_text

QUOTED = re.compile(r"[:#'\"\[\]{}]")
"""What YAML would not read as plain text."""

LOADING = {
    "model": """from transformers import AutoModelFor{kind}, AutoTokenizer

model = AutoModelFor{kind}.from_pretrained("<this folder>")
tokenizer = AutoTokenizer.from_pretrained("<this folder>")""",
    "adapter": """from peft import PeftModel
from transformers import AutoModelFor{kind}, AutoTokenizer

base = AutoModelFor{kind}.from_pretrained("<the base model>")
model = PeftModel.from_pretrained(base, "<this folder>")
tokenizer = AutoTokenizer.from_pretrained("<the base model>")""",
    "gguf": """from llama_cpp import Llama  # or any other runtime of llama.cpp

model = Llama("<this folder>/model.gguf")
model.create_chat_completion([{{"role": "user", "content": "…"}}], temperature=0)""",
}

FORMS = {"adapter": "adapter_config.json", "gguf": "model.gguf"}
"""What a folder holds → the file that tells."""
LIBRARIES = {"adapter": "peft", "model": "transformers", "gguf": "llama.cpp"}


def write(
    folder: Path,
    title: str,
    base: Path,
    text: str,
    facts: Mapping[str, object],
    encoder_decoder: bool,
    loading: str | None = None,
) -> None:
    """Write README.md into a tuned checkpoint's or an adapter's folder.

    Args:
        folder: the card's place; an adapter_config.json in it makes it an adapter's.
        title: of the card.
        base: folder of the model it was made from, whose card tells name and licence.
        text: what it is, in a few sentences.
        facts: rows of the table.
        encoder_decoder: the model's family.
        loading: Python that loads it, where that is another than usual.
    """
    _write(folder, title, inherited(base), text, facts, encoder_decoder, loading)


def write_base(
    folder: Path, title: str, source: str, license: str, text: str, facts: Mapping[str, object], encoder_decoder: bool
) -> None:
    """Write README.md into the folder of a model that was made elsewhere; what is tuned from it inherits name and licence.

    Args:
        folder: the card's place.
        title: of the card.
        source: where the model comes from, pinned.
        license: of its weights.
        text: what it is, in a few sentences.
        facts: rows of the table.
        encoder_decoder: the model's family.
    """
    _write(folder, title, {"license": license, "base_model": source}, text, facts, encoder_decoder)


def inherited(base: Path) -> dict[str, str]:
    """Licence and name of what was made from a model: as its card tells."""
    known = front_matter(base / "README.md")
    return {"license": known.get("license", "unknown"), "base_model": known.get("base_model", base.name)}


def tag(encoder_decoder: bool) -> str:
    """The hub's name of what a model does."""
    return "text2text-generation" if encoder_decoder else "text-generation"


def _write(
    folder: Path,
    title: str,
    known: Mapping[str, str],
    text: str,
    facts: Mapping[str, object],
    encoder_decoder: bool,
    loading: str | None = None,
) -> None:
    form = next((name for name, file in FORMS.items() if (folder / file).is_file()), "model")
    kind = "Seq2SeqLM" if encoder_decoder else "CausalLM"
    known = {**known, "library_name": LIBRARIES[form], "pipeline_tag": tag(encoder_decoder)}
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    write_text(
        folder / "README.md",
        head(known)
        + f"\n# {title}\n\n{text}\n\n"
        + (f"| | |\n|---|---|\n{rows}\n\n" if rows else "")
        + f"## How to load it\n\n```python\n{loading or LOADING[form].format(kind=kind)}\n```\n",
    )


def head(values: Mapping[str, str]) -> str:
    """The YAML block that a card begins with."""
    lines = (f"{name}: {json.dumps(value) if QUOTED.search(value) else value}\n" for name, value in values.items())
    return "---\n" + "".join(lines) + "---\n"


def front_matter(card: Path) -> dict[str, str]:
    """The YAML block that a card begins with; empty without a card, or where that is no YAML."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    if not card.is_file():
        return {}
    parts = card.read_text(encoding="utf-8").split("---\n")
    try:
        found = YAML(typ="safe", pure=True).load(parts[1]) if len(parts) > 2 else {}
    except YAMLError:
        return {}
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}
