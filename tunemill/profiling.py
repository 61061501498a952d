"""Speed and memory of generation, measured: prefill, decoding, peak memory of a process that does nothing else."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tunemill import models, sampling
from tunemill.runtime import Runtime


class Speed(NamedTuple):
    """One measurement."""

    prefill_tokens_per_second: float
    """Prompt tokens read in a second, one prompt at a time."""
    decode_tokens_per_second: float
    """Tokens written in a second for one prompt."""
    batch_decode_tokens_per_second: float
    """Tokens written in a second for all prompts together."""


def speed(model: Any, prompts: Sequence[Sequence[int]], steps: int) -> Speed:
    """Measure once.

    Args:
        model: in evaluation mode.
        prompts: token ids; each is read alone. The first is answered alone, then as often as there are prompts in one batch.
        steps: tokens decoded for each, whether or not a text would have ended.
    """
    import copy

    read, seconds, first = 0, 0.0, None
    for prompt in prompts:
        ids, mask = sampling.padded([prompt], 0, 0, model.device)
        found, took = _prefill(model, ids, mask)
        read, seconds = read + len(prompt), seconds + took
        first = first or (found, mask)
    assert first is not None, "at least one prompt"
    alone, mask = first
    together = copy.deepcopy(alone)
    together.past_key_values.batch_repeat_interleave(len(prompts))
    together.logits = together.logits.repeat_interleave(len(prompts), dim=0)
    return Speed(
        read / seconds,
        steps / _decode(model, alone, mask, steps),
        len(prompts) * steps / _decode(model, together, mask.repeat_interleave(len(prompts), dim=0), steps),
    )


def peak_memory(policy: Path, base: Path, runtime: Runtime, prompts: Sequence[Sequence[int]], steps: int) -> int:
    """Peak bytes of a fresh process that loads one policy and answers the prompts in one batch.

    Resident memory of the process, interpreter and libraries included; on CUDA the device memory allocated. Call it in a
    process of its own: what was in memory before would be counted.
    """
    import torch

    torch.set_num_threads(runtime.threads)
    model, tokenizer = models.load_policy(policy, base, runtime)
    ids, mask = sampling.padded(prompts, tokenizer.pad_token_id, 0, model.device)
    _decode(model, _prefill(model, ids, mask)[0], mask, steps)
    return int(torch.cuda.max_memory_allocated()) if runtime.device == "cuda" else _high_water()


def _prefill(model: Any, ids: Any, mask: Any) -> tuple[Any, float]:
    """(what the model returned for the prompts, seconds)."""
    import torch

    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    began = _now(model)
    with torch.inference_mode():
        found = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
    return found, _now(model) - began


def _decode(model: Any, found: Any, mask: Any, steps: int) -> float:
    """Seconds that `steps` greedy tokens take after the prompts were read; `found` is what `_prefill` returned."""
    import torch

    position = mask.sum(dim=1, keepdim=True)
    began = _now(model)
    with torch.inference_mode():
        for _ in range(steps):
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            found = model(
                input_ids=found.logits[:, -1:].argmax(dim=-1),
                attention_mask=mask,
                position_ids=position,
                past_key_values=found.past_key_values,
                use_cache=True,
            )
            position = position + 1
    return _now(model) - began


def _now(model: Any) -> float:
    import torch

    if model.device.type == "cuda":
        torch.cuda.synchronize()
    elif model.device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def _high_water() -> int:
    # ru_maxrss of a spawned process starts at its parent's size on Linux; VmHWM is its own.
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except FileNotFoundError:
        pass  # not Linux
    from tunemill.runtime import peak_memory_bytes

    return peak_memory_bytes()
