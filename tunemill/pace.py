"""How long tuning will take on the machine found: a short measurement of two small models, and the line through both.

What is found depends on the machine and on what else it does: it is told beside a stage's time, never part of a result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from tunemill import losses, planning
from tunemill.log import Log
from tunemill.runtime import Runtime, free_bytes, out_of_memory, release

PROBED_LAYERS = (1, 3)
"""Layers of the two models that are timed; what all layers take lies on the line through both."""


def seconds(
    config: Any,
    methods: Mapping[str, planning.Method],
    batch: planning.Batch,
    runtime: Runtime,
    log: Log,
    rounds: int = 1,
) -> dict[str, float]:
    """Seconds of one step of each method, and of answering one batch (`generation`), found out with two small models.

    Both have the model's width and vocabulary and few layers, with random weights: what the layers take grows with their
    number, embedding and logits are there once. The best of the rounds counts, after one that warms up. What does not fit into
    the memory that is free is left out: three layers of a large model may be too much for a device that can tune it otherwise.

    Args:
        config: a transformers configuration.
        methods: what to plan, by name.
        batch: the batch of a step; its prompts are what is answered, with as many tokens as a completion has.
        runtime: the machine.
        log: told what is left out.
        rounds: measurements of each.
    """
    import torch

    found: dict[str, float] = {}
    with torch.random.fork_rng(devices=[]):
        sizes = {each: planning.with_layers(config, each) for each in PROBED_LAYERS}
        largest = sizes[max(sizes)]
        probes: dict[str, tuple[int, Callable[[Any], float]]] = {}
        for name, method in methods.items():
            step = planning.step_memory(largest, method, batch, runtime.dtype)
            probes[name] = (
                step.total,
                partial(_step_seconds, method=method, batch=batch, runtime=runtime, rounds=rounds),
            )
        answering = planning.serving_bytes(largest, planning.count_parameters(largest).total, batch, runtime.dtype)
        probes["generation"] = (answering, partial(_answer_seconds, batch=batch, runtime=runtime, rounds=rounds))
        for name, (planned, probe) in probes.items():
            free = free_bytes(runtime.device)
            if planned > free:
                log.note(f"{name} is not timed: it takes {planned / 2**30:.1f} GiB, {free / 2**30:.1f} are free")
                continue
            try:
                times = {each: probe(shape) for each, shape in sizes.items()}
                found[name] = _on_the_line(times, _half(config))
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                log.note(f"{name} is not timed: memory ran out")
            release()
    return found


def _half(config: Any) -> float:
    """Layers of a decoder; of an encoder-decoder, whose probes have as many layers in each half, their mean."""
    encoder, decoder = planning.layers(config)
    return (encoder + decoder) / 2 if encoder else decoder


def _on_the_line(times: Mapping[int, float], layers: float) -> float:
    (few, short), (some, long) = sorted(times.items())
    # On a busy machine the larger model may happen to be the faster one; a layer takes no negative time.
    return short + max(0.0, long - short) / (some - few) * (layers - few)


def _step_seconds(config: Any, method: planning.Method, batch: planning.Batch, runtime: Runtime, rounds: int) -> float:
    import torch

    whole = method.name == "full"  # weights that are trained stay in float32
    policy = planning.build(config, method, "float32" if whole else runtime.dtype).to(runtime.device).train()
    pairs = [losses.Encoded([0] * (batch.tokens - batch.completion), [0] * batch.completion)] * batch.rows
    start = int(config.decoder_start_token_id or 0) if config.is_encoder_decoder else None
    inputs = {name: each.to(runtime.device) for name, each in losses.collate(pairs, 0, start).items()}
    soft = losses.virtual_tokens(policy)
    optimizer = torch.optim.AdamW([each for each in policy.parameters() if each.requires_grad], lr=1e-6)
    times = []
    for _ in range(rounds + 1):
        began = _now(policy)
        with torch.autocast(runtime.device, runtime.torch_dtype, enabled=whole and runtime.dtype != "float32"):
            loss = losses.completion_loss(policy, inputs, None, soft)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(_now(policy) - began)
    return min(times[1:])


def _answer_seconds(config: Any, batch: planning.Batch, runtime: Runtime, rounds: int) -> float:
    import torch

    model = planning.skeleton(config, runtime.dtype).to(runtime.device).eval()
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


def _now(model: Any) -> float:
    import torch

    device = next(model.parameters()).device.type
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()
    return time.perf_counter()
