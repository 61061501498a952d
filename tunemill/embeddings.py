"""Sentences as vectors: an encoder-only model's last hidden states, averaged over the tokens of the text, at length one.

Mean pooling and normalisation are those of Sentence-BERT (Reimers and Gurevych 2019) and of the models trained that way, such as
all-MiniLM-L6-v2. Computed in float32 whatever the runtime's number format is: on a CPU the model is small enough for it, and
what is learnt from the vectors should not depend on the machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tunemill.errors import UserError
from tunemill.log import Log

if TYPE_CHECKING:
    import numpy as np

BATCH_TOKENS = 4096
"""Most tokens of a batch, padding included: on a CPU larger ones are no faster."""


class Encoder(NamedTuple):
    """A model that turns texts into vectors."""

    model: Any
    tokenizer: Any
    max_tokens: int
    """Tokens of a text that are read, marks of beginning and end included."""
    device: str


def load(folder: Path, max_tokens: int, device: str = "cpu") -> Encoder:
    """The encoder in a folder, ready to read.

    Args:
        folder: config.json, safetensors weights and a tokenizer.
        max_tokens: tokens of a text to read at most; the model's context may allow fewer.
        device: where to compute.

    Raises:
        UserError: there is no model that transformers can load, or it is no encoder.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        model = AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no encoder in {folder}: {str(error).strip().partition(chr(10))[0]}",
            expected="config.json, safetensors weights and a tokenizer",
            fix="name another under collect.encoder in params.yaml, or run the stage that writes it: dvc repro",
        ) from None
    if model.config.is_encoder_decoder or tokenizer.pad_token_id is None:
        raise UserError(
            f"the {model.config.model_type} in {folder} is no encoder of sentences",
            expected="an encoder-only model whose tokenizer can pad",
            fix="name another under collect.encoder in params.yaml",
        )
    context = getattr(model.config, "max_position_embeddings", max_tokens)
    return Encoder(model.to(device).eval(), tokenizer, min(max_tokens, context), device)


def embed(
    encoder: Encoder, texts: Sequence[str], batch_tokens: int = BATCH_TOKENS, log: Log | None = None
) -> np.ndarray:
    """One vector of length one for each text; longest first, so that a batch has little padding.

    Args:
        encoder: the model.
        texts: n of them; what is beyond the encoder's `max_tokens` is not read.
        batch_tokens: most tokens of a batch, padding included.
        log: told how many texts are done.

    Returns:
        (n, width) float64.
    """
    import numpy as np
    import torch

    model, tokenizer = encoder.model, encoder.tokenizer
    vectors = np.zeros((len(texts), model.config.hidden_size))
    if not texts:
        return vectors
    ids = tokenizer(list(texts), truncation=True, max_length=encoder.max_tokens)["input_ids"]
    order = sorted(range(len(ids)), key=lambda index: (-len(ids[index]), index))
    done = 0
    while done < len(order):
        longest = max(1, len(ids[order[done]]))
        batch = order[done : done + max(1, batch_tokens // longest)]
        rows = [ids[index] for index in batch]
        tokens = torch.tensor([[*row, *[tokenizer.pad_token_id] * (longest - len(row))] for row in rows])  # (B, T)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])  # (B, T), 1: of the text
        with torch.inference_mode():
            found = model(input_ids=tokens.to(encoder.device), attention_mask=mask.to(encoder.device))
            weight = mask.to(encoder.device)[..., None].float()  # (B, T, 1)
            mean = (found.last_hidden_state * weight).sum(1) / weight.sum(1).clamp(min=1)  # (B, width)
            vectors[batch] = torch.nn.functional.normalize(mean, dim=1).cpu().numpy()
        done += len(batch)
        if log is not None:
            log(done)
    return vectors
