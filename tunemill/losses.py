"""What a completion costs a language model, decoder-only or encoder-decoder: batches, logits, cross-entropy, log-probabilities.

Decoder-only: prompt and completion are one sequence, padded on the right. A causal model never looks to the right, so no mask
is needed, and logits are computed for the window that the batch's completions lie in, not for every position: of 8 x 190
tokens the output layer then sees some 8 x 30, which is most of a small model's memory and a third of its time.

Encoder-decoder: the encoder reads the prompt (with a mask), the decoder reads the start token and the completion but its last
token; logits at position t are those of the completion's token t (Raffel et al. 2020, T5).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

IGNORED = -100
"""Label of a position that carries no loss."""


class Encoded(NamedTuple):
    """One prompt-completion pair as token ids; the loss is on the completion, its end token included."""

    prompt: list[int]
    completion: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


def collate(pairs: Sequence[Encoded], pad: int, start: int | None) -> dict[str, torch.Tensor]:
    """Pad a batch on the right.

    Args:
        pairs: prompts and completions, no completion empty.
        pad: id to pad with.
        start: the decoder's first token; None for a decoder-only model.

    Returns:
        Decoder-only: `input_ids` and `labels`, both (B, T). Encoder-decoder: `input_ids` and `attention_mask` (1 is a token),
        both (B, S), `decoder_input_ids` and `labels`, both (B, K). Labels are `IGNORED` where there is no loss.
    """
    prompts, completions = [pair.prompt for pair in pairs], [pair.completion for pair in pairs]
    if start is None:
        return {
            "input_ids": right_padded([[*prompt, *rest] for prompt, rest in pairs], pad),
            "labels": right_padded([[IGNORED] * len(prompt) + rest for prompt, rest in pairs], IGNORED),
        }
    return {
        "input_ids": right_padded(prompts, pad),
        "attention_mask": right_padded([[1] * len(prompt) for prompt in prompts], 0),
        "decoder_input_ids": right_padded([[start, *completion[:-1]] for completion in completions], pad),
        "labels": right_padded(completions, IGNORED),
    }


def completion_outputs(
    model: Any, inputs: dict[str, Any], virtual_tokens: int = 0, **asked: Any
) -> tuple[Any, torch.Tensor]:
    """What a model makes of a batch, its logits those of the positions that predict completions.

    Args:
        model: a language model that fits the batch; a decoder-only one takes `logits_to_keep`.
        inputs: what `collate` gives.
        virtual_tokens: soft prompt tokens that the (PEFT) model puts before a decoder-only model's input.
        asked: what else the model is to give: `output_hidden_states`.

    Returns:
        The model's output, with `logits` (B, K, V), and the labels they stand for, (B, K), `IGNORED` where there is no loss.
    """
    import torch

    labels = inputs["labels"]
    if "decoder_input_ids" in inputs:
        found = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            decoder_input_ids=inputs["decoder_input_ids"],
            use_cache=False,
            **asked,
        )
        return found, labels
    # The window from the first position with loss in any row to the last; a token's logits stand one position before it.
    carries = labels.ne(IGNORED).any(dim=0).nonzero()  # positions with loss
    first, last = int(carries[0]), int(carries[-1])
    window = torch.arange(first - 1, last, device=labels.device) + virtual_tokens  # (K,)
    found = model(input_ids=inputs["input_ids"], logits_to_keep=window, use_cache=False, **asked)
    return found, labels[:, first : last + 1]


def completion_logits(model: Any, inputs: dict[str, Any], virtual_tokens: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the positions that predict completions, (B, K, V), and the labels they stand for: see `completion_outputs`."""
    found, labels = completion_outputs(model, inputs, virtual_tokens)
    return found.logits, labels


def completion_loss(model: Any, inputs: dict[str, Any], items: Any = None, virtual_tokens: int = 0) -> Any:
    """Cross-entropy of the completions: a scalar.

    Args:
        model: see `completion_outputs`.
        inputs: what `collate` gives.
        items: number to divide the sum by; the batch's completion tokens by default.
        virtual_tokens: see `completion_outputs`.
    """
    import torch

    logits, targets = completion_logits(model, inputs, virtual_tokens)
    wanted = targets.ne(IGNORED)
    total = torch.nn.functional.cross_entropy(logits[wanted].float(), targets[wanted], reduction="sum")
    return total / (wanted.sum() if items is None else items)


def completion_logprobs(model: Any, inputs: dict[str, Any], virtual_tokens: int = 0) -> torch.Tensor:
    """Log-probability of each row's completion, the sum over its tokens: (B,), in float32.

    Args:
        model: see `completion_outputs`; wrap the call in `torch.inference_mode()` where no gradient is wanted.
        inputs: what `collate` gives.
        virtual_tokens: see `completion_outputs`.
    """
    import torch

    logits, targets = completion_logits(model, inputs, virtual_tokens)
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )  # (B·K,), 0 where ignored
    return -losses.view(targets.shape).sum(dim=1)


def start_token(model: Any) -> int | None:
    """The token an encoder-decoder's decoder starts from; None for a decoder-only model.

    Raises:
        ValueError: an encoder-decoder without one.
    """
    if not model.config.is_encoder_decoder:
        return None
    start = model.config.decoder_start_token_id
    if start is None:
        raise ValueError(f"{type(model).__name__}: its configuration names no decoder_start_token_id")
    return int(start)


def virtual_tokens(model: Any) -> int:
    """Soft prompt tokens before a decoder-only model's input; 0 where there are none."""
    configs = getattr(model, "peft_config", {})
    return max((getattr(each, "num_virtual_tokens", None) or 0 for each in configs.values()), default=0)


def right_padded(rows: Sequence[Sequence[int]], pad: int) -> torch.Tensor:
    """Rows of ids as one tensor, (B, T), padded on the right."""
    import torch

    padded = torch.full((len(rows), max(map(len, rows))), pad, dtype=torch.long)
    for at, row in enumerate(rows):
        padded[at, : len(row)] = torch.tensor(row, dtype=torch.long)
    return padded
