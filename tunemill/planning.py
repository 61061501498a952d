"""What a model costs before it is loaded: parameters and bytes, from its configuration alone (meta device, no weights).

Bytes per value: FP32 4, FP16 2, BF16 2, INT8 1. The rule of thumb for full training in FP32 with Adam is 4 (weights)
+ 8 (two moments) + 4 (gradients) + about 8 (activations, temporaries) = 24 bytes per parameter, against 4 to store.
"""

from __future__ import annotations

from typing import Any, NamedTuple

BYTES_PER_VALUE = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}

RULE_OF_THUMB_BYTES = {"weights": 4, "adam_moments": 8, "gradients": 4, "activations_and_temporaries": 8}
"""Per parameter, full training in FP32 with Adam."""


class Parameters(NamedTuple):
    """Parameter counts of a model; tied weights count once."""

    total: int
    parts: dict[str, int]


def count_parameters(config: Any) -> Parameters:
    """Count a model's parameters from its configuration.

    Args:
        config: a transformers configuration.

    Returns:
        The total, and its parts: embedding, attention, mlp, norm, other.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    model.tie_weights()
    parts = dict.fromkeys(("embedding", "attention", "mlp", "norm", "other"), 0)
    for name, parameter in model.named_parameters():  # shared tensors are named once
        parts[_part(name)] += parameter.numel()
    return Parameters(sum(parts.values()), parts)


def _part(name: str) -> str:
    for part, marks in (
        ("norm", ("norm", "ln_")),
        ("embedding", ("embed", "wte", "wpe", "lm_head")),
        ("attention", ("attn", "attention")),
        ("mlp", ("mlp", "feed_forward", "ffn")),
    ):
        if any(mark in name for mark in marks):
            return part
    return "other"


def lora_parameters(shapes: list[tuple[int, int]], rank: int) -> int:
    """Trainable parameters of LoRA (Hu et al. 2021): rank x (in + out) for each adapted weight of shape (out, in)."""
    return sum(rank * (inputs + outputs) for outputs, inputs in shapes)


def store_bytes(parameters: int) -> dict[str, int]:
    """Bytes to store a model, for each number format."""
    return {name: parameters * size for name, size in BYTES_PER_VALUE.items()}


def full_training_bytes(parameters: int) -> dict[str, int]:
    """The rule of thumb for full FP32 training with Adam, by purpose, and its total (24 bytes per parameter)."""
    table = {name: parameters * size for name, size in RULE_OF_THUMB_BYTES.items()}
    return {**table, "total": sum(table.values())}


def adapter_training_bytes(parameters: int, trainable: int, weight_bytes: int) -> dict[str, int]:
    """Weights, gradients and Adam moments of adapter training: the frozen weights keep neither gradient nor moment.

    Args:
        parameters: of the frozen model.
        trainable: of the adapter, in FP32.
        weight_bytes: bytes per value of the frozen weights while computing.
    """
    table = {
        "frozen_weights": parameters * weight_bytes,
        "adapter": 4 * trainable,
        "gradients": 4 * trainable,
        "adam_moments": 8 * trainable,
    }
    return {**table, "total": sum(table.values())}
