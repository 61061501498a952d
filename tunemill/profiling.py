"""Speed and memory, measured: prefill, decoding, peak memory of a process that does nothing else; what tuning will take."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tunemill import losses, models, planning, sampling
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


PROBED_LAYERS = (1, 3)
"""Layers of the two models that are timed; what all layers take lies on the line through both."""


def planned_seconds(
    config: Any, methods: Mapping[str, planning.Method], batch: planning.Batch, runtime: Runtime, rounds: int = 1
) -> dict[str, float]:
    """Seconds of one step of each method, and of answering one batch (`generation`), found out with two small models.

    Both have the model's width and vocabulary and few layers, with random weights: what the layers take grows with their
    number, embedding and logits are there once. The best of the rounds counts, after one that warms up.

    Args:
        config: a transformers configuration.
        methods: what to plan, by name.
        batch: the batch of a step; its prompts are what is answered, with as many tokens as a completion has.
        runtime: the machine.
        rounds: measurements of each.
    """
    import torch

    layers = config.num_hidden_layers
    few, some = PROBED_LAYERS
    found: dict[str, float] = {}
    with torch.random.fork_rng(devices=[]):
        sizes = {each: planning.with_layers(config, each) for each in PROBED_LAYERS}
        for name, method in methods.items():
            times = {
                each: _step_seconds(planning.build(shape, method, runtime.dtype).to(runtime.device), batch, rounds)
                for each, shape in sizes.items()
            }
            found[name] = _on_the_line(times, layers)
        times = {
            each: _answer_seconds(planning.skeleton(shape, runtime.dtype).to(runtime.device).eval(), batch, rounds)
            for each, shape in sizes.items()
        }
        found["generation"] = _on_the_line(times, layers)
    return found


def _on_the_line(times: Mapping[int, float], layers: int) -> float:
    (few, short), (some, long) = sorted(times.items())
    # On a busy machine the larger model may happen to be the faster one; a layer takes no negative time.
    return short + max(0.0, long - short) / (some - few) * (layers - few)


def _step_seconds(policy: Any, batch: planning.Batch, rounds: int) -> float:
    import torch

    device = next(policy.parameters()).device
    pairs = [losses.Encoded([0] * (batch.tokens - batch.completion), [0] * batch.completion)] * batch.rows
    inputs = {name: each.to(device) for name, each in losses.collate(pairs, 0, _start(policy)).items()}
    soft = losses.virtual_tokens(policy)
    optimizer = torch.optim.AdamW([each for each in policy.parameters() if each.requires_grad], lr=1e-6)
    policy.train()
    times = []
    for _ in range(rounds + 1):
        began = _now(policy)
        losses.completion_loss(policy, inputs, None, soft).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(_now(policy) - began)
    return min(times[1:])


def _answer_seconds(model: Any, batch: planning.Batch, rounds: int) -> float:
    import torch

    ids = torch.zeros((batch.rows, batch.tokens - batch.completion), dtype=torch.long, device=model.device)  # (B, T)
    times = []
    for _ in range(rounds + 1):
        began = _now(model)
        with torch.inference_mode():
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                min_new_tokens=batch.completion,
                max_new_tokens=batch.completion,
                do_sample=False,
                pad_token_id=0,
            )
        times.append(_now(model) - began)
    return min(times[1:])


def _start(policy: Any) -> int | None:
    return int(policy.config.decoder_start_token_id or 0) if policy.config.is_encoder_decoder else None


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
