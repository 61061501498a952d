"""Speed and memory of generation, measured: prefill, decoding, peak memory of a process that does nothing else.

HELM's (src/helm/benchmark/metrics/efficiency_metrics.py) are estimates; how these measurements differ is told in `tunemill.helm.timed`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tunemill import losses, models, sampling


class Speed(NamedTuple):
    """One measurement."""

    prefill_tokens_per_second: float
    """Positions read in a second, one prompt at a time: its tokens, those of its template and shots, and a soft prompt's."""
    first_token_seconds: float
    """Mean seconds from a prompt to the first token of its answer."""
    decode_tokens_per_second: float
    """Tokens written in a second for one prompt."""
    batch_decode_tokens_per_second: float
    """Tokens written in a second for all prompts together."""
    joules_per_token: float | None
    """Energy of the processor (or GPU) for each token written for one prompt; None where the machine does not tell."""


LOADED = (
    *("*.safetensors", "*.safetensors.index.json", "*.gguf", "*.bin", "*.model"),
    *("config.json", "generation_config.json", "adapter_config.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "chat_template*"),
)
"""Files of a checkpoint that are needed to load it; what else lies there tells of its training."""


class _Read(NamedTuple):
    """Prompts that were read, ready for the next token."""

    logits: Any
    """Of the next token, (B, 1, V)."""
    cache: Any
    given: dict[str, Any]
    """What every further call is given: the mask, and for an encoder-decoder what the encoder made of the prompts."""


def speed(model: Any, prompts: Sequence[Sequence[int]], steps: int) -> Speed:
    """Measure once. An encoder-decoder's reading is the encoder's and the decoder's first token.

    Args:
        model: of either family, in evaluation mode; with a soft prompt too.
        prompts: token ids; each is read alone. The first is answered alone, then as often as there are prompts in one batch.
        steps: tokens decoded for each, whether or not a text would have ended.
    """
    virtual = losses.virtual_tokens(model)
    count, seconds, first = 0, 0.0, None
    for prompt in prompts:
        read, took = _prefill(model, [prompt], 0)
        count, seconds = count + virtual + len(prompt), seconds + took
        first = first or read
    assert first is not None, "at least one prompt"
    together = _repeated(first, len(prompts))
    before = energy(model.device.type)
    alone = _decode(model, first, steps)
    after = energy(model.device.type)
    return Speed(
        count / seconds,
        seconds / len(prompts),
        steps / alone,
        len(prompts) * steps / _decode(model, together, steps),
        # A counter that has begun anew in between tells nothing.
        None if before is None or after is None or after < before else (after - before) / steps,
    )


def energy(device: str, counters: Path = Path("/sys/class/powercap")) -> float | None:
    """Joules that the processors, or the first GPU, have used since some moment; None where the machine does not tell.

    Args:
        device: cuda asks NVML, where its Python package is there; everything else Linux's counters of Intel and AMD processors
            (RAPL), which only root may read on many machines.
        counters: where these are.
    """
    if device == "cuda":
        from importlib.util import find_spec

        if find_spec("pynvml") is None:
            return None
        import pynvml

        try:
            pynvml.nvmlInit()
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByIndex(0))) / 1e3
        except pynvml.NVMLError:
            return None  # a GPU older than Volta, or a part of one
    total, found = 0.0, False
    for package in sorted(counters.glob("intel-rapl:[0-9]*")):
        if package.name.count(":") != 1:
            continue  # a part of a processor, counted in the whole
        try:
            total += int((package / "energy_uj").read_text()) / 1e6
            found = True
        except (OSError, ValueError):
            return None
    return total if found else None


def answer(model: Any, prompts: Sequence[Sequence[int]], pad: int, steps: int) -> None:
    """Read prompts in one batch and write `steps` tokens for each: what memory is measured of."""
    _decode(model, _prefill(model, prompts, pad)[0], steps)


def disk_bytes(policy: Path, base: Path) -> int:
    """Bytes of the files that a deployment needs: the policy's, and of an adapter those of its base too.

    Args:
        policy: folder of a whole model or of an adapter.
        base: folder of the model that an adapter sits on.
    """
    folders = [policy, base] if models.is_adapter(policy) else [policy]
    files = {file for folder in folders for pattern in LOADED for file in folder.glob(pattern) if file.is_file()}
    return sum(file.stat().st_size for file in files)


def _prefill(model: Any, prompts: Sequence[Sequence[int]], pad: int) -> tuple[_Read, float]:
    """(the prompts as read, seconds)."""
    import torch

    model, soft = sampling.bare(model)
    start = losses.start_token(model)
    given: dict[str, Any]
    if start is None:
        ids, mask = sampling.padded(prompts, pad, 0, model.device)
        began = _now(model)
        if soft is not None:
            mask = torch.cat([mask.new_ones(len(ids), len(soft)), mask], dim=1)
        given = {"input_ids": ids} if soft is None else {"inputs_embeds": sampling.embedded(model, soft, ids)}
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        given |= {"attention_mask": mask, "position_ids": positions, "logits_to_keep": 1}
    else:
        began = _now(model)
        given = sampling.encoder_inputs(model, prompts, pad, soft)
        given["decoder_input_ids"] = torch.full((len(prompts), 1), start, device=model.device)
    with torch.inference_mode():
        found = model(**given, use_cache=True)
    kept = {"attention_mask": given["attention_mask"]}
    if start is not None:
        kept["encoder_outputs"] = (found.encoder_last_hidden_state,)
    return _Read(found.logits, found.past_key_values, kept), _now(model) - began


def _repeated(read: _Read, rows: int) -> _Read:
    """The one prompt that was read, as often as asked for."""
    import copy

    cache = copy.deepcopy(read.cache)
    cache.batch_repeat_interleave(rows)
    given = {"attention_mask": read.given["attention_mask"].repeat_interleave(rows, dim=0)}
    if "encoder_outputs" in read.given:
        given["encoder_outputs"] = (read.given["encoder_outputs"][0].repeat_interleave(rows, dim=0),)
    return _Read(read.logits.repeat_interleave(rows, dim=0), cache, given)


def _decode(model: Any, read: _Read, steps: int) -> float:
    """Seconds that `steps` greedy tokens take after the prompts were read."""
    import torch

    model, _ = sampling.bare(model)
    logits, cache, given = read.logits, read.cache, dict(read.given)
    decoder_only = "encoder_outputs" not in given
    mask = given["attention_mask"]
    position = mask.sum(dim=1, keepdim=True)
    began = _now(model)
    with torch.inference_mode():
        for _ in range(steps):
            token = logits[:, -1:].argmax(dim=-1)
            if decoder_only:
                mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
                given = {"input_ids": token, "attention_mask": mask, "position_ids": position}
                position = position + 1
            else:
                given["decoder_input_ids"] = token
            found = model(**given, past_key_values=cache, use_cache=True)
            logits, cache = found.logits, found.past_key_values
    return _now(model) - began


def _now(model: Any) -> float:
    import torch

    if model.device.type == "cuda":
        torch.cuda.synchronize()
    elif model.device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def high_water() -> int:
    """Most bytes that this process has had in memory so far."""
    # ru_maxrss of a spawned process starts at its parent's size on Linux; VmHWM is its own.
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except FileNotFoundError:
        pass  # not Linux
    from tunemill.runtime import peak_memory_bytes

    return peak_memory_bytes()
