"""A tiny untrained BERT with a tokenizer of whole words: its averages tell which words a text has, enough to learn from."""

from __future__ import annotations

import json
from pathlib import Path

PLAIN = [
    "the",
    "a",
    "of",
    "and",
    "to",
    "in",
    "it",
    "we",
    "you",
    "this",
    "that",
    "water",
    "bread",
    "house",
    "garden",
    "river",
]
HARMFUL = ["phish", "siphon", "forge", "smuggle", "bribe", "stalk"]
HARMLESS = ["sorry", "cannot", "help", "kindly", "safe", "please"]


def build(folder: Path, seed: int = 0, name: str | None = "tiny-encoder==1.0") -> None:
    """Write what collect keeps of an encoder into `folder`: config, weights, tokenizer and source.json.

    Args:
        folder: made if it is not there.
        seed: of the weights.
        name: of the encoder; None writes what stands for "no encoder".
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "source.json").write_text(json.dumps({"name": name}))
    if name is None:
        return
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *PLAIN, *HARMFUL, *HARMLESS]
    raw = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BertModel(config)
    model.eval().save_pretrained(folder)
