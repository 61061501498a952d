"""A policy as it is served: by transformers, or by llama.cpp where its weights are a GGUF file; how fast, and in how much memory."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tunemill import gguf_export, llama_cpp, models, planning, profiling
from tunemill.log import Log
from tunemill.runtime import Runtime, free_bytes, release

Folders = Mapping[str, tuple[Path, Path]]
"""Name → policy, and the base that an adapter sits on."""

RUNTIMES = ("transformers", "llama.cpp")


class Served(NamedTuple):
    """A policy, loaded to be asked."""

    model: Any
    """A transformers model, or a `llama_cpp.Llama`."""
    tokenizer: Any

    def encode(self, prompt: models.Prompt) -> list[int]:
        """Token ids of what is asked."""
        return models.render_prompt(self.tokenizer, prompt)

    def speed(self, prompts: Sequence[Sequence[int]], steps: int) -> profiling.Speed:
        """Measure once: see `profiling.speed`."""
        if isinstance(self.model, llama_cpp.Llama):
            return self.model.speed(prompts, steps)
        return profiling.speed(self.model, prompts, steps)


def by(policy: Path) -> str:
    """What serves a policy: one of `RUNTIMES`."""
    return "llama.cpp" if models.is_gguf(policy) else "transformers"


def load(policy: Path, base: Path, runtime: Runtime, prompts: Sequence[models.Prompt], steps: int, rows: int) -> Served:
    """Load a policy to be asked.

    Args:
        policy: folder of a checkpoint, an adapter, or a GGUF file with its tokenizer.
        base: folder of the model that an adapter sits on.
        runtime: device and number format; llama.cpp takes the CPU and the file's formats, and its threads from here.
        prompts: what it will be asked: llama.cpp makes room for the longest.
        steps: most tokens of an answer.
        rows: prompts answered at the same time.
    """
    if models.is_gguf(policy):
        tokenizer = models.load_tokenizer(policy)
        longest = max(len(models.render_prompt(tokenizer, prompt)) for prompt in prompts)
        served = llama_cpp.Llama(policy / gguf_export.FILE, runtime.threads, longest + steps + 1, rows)
        return Served(served, tokenizer)
    return Served(*models.load_policy(policy, base, runtime))


def peak_memory(policy: Path, base: Path, runtime: Runtime, prompts: Sequence[str], steps: int) -> int:
    """Peak bytes of a fresh process that loads one policy and answers the prompts at the same time.

    Resident memory of the process, with what it touches of interpreter and libraries; on CUDA the device memory allocated. Call it
    in a process of its own: what was in memory before would be counted.
    """
    import torch

    torch.set_num_threads(runtime.threads)
    served = load(policy, base, runtime, prompts, steps, len(prompts))
    ids = [served.encode(prompt) for prompt in prompts]
    if isinstance(served.model, llama_cpp.Llama):
        served.model.together(ids, steps)
        return profiling.high_water()
    profiling.answer(served.model, ids, served.tokenizer.pad_token_id, steps)
    return int(torch.cuda.max_memory_allocated()) if runtime.device == "cuda" else profiling.high_water()


def rounds(
    folders: Folders, runtime: Runtime, prompts: Sequence[str], steps: int, count: int, log: Log
) -> tuple[dict[str, list[profiling.Speed]], bool]:
    """Measure all policies in turns: A, B, A, B …

    Args:
        folders: name → policy and base.
        runtime: device, number format, threads.
        prompts: what each reads, and how many it answers at the same time.
        steps: tokens of each answer.
        count: measurements of each, after one that warms up.
        log: progress.

    Returns:
        Measurements in the order of the rounds, and whether all were in memory together. Where not, each is loaded anew for its turn,
        and warmed up before it is measured.
    """
    together = fit_together(folders, runtime, log)

    def opened(folder: tuple[Path, Path]) -> Served:
        return load(*folder, runtime, prompts, steps, len(prompts))

    loaded = {name: opened(folder) for name, folder in folders.items()} if together else {}
    log.start("measure", (1 + count) * len(folders), "turn")
    measured: dict[str, list[profiling.Speed]] = {name: [] for name in folders}
    # The first round warms up all of them; one that is loaded anew for each turn is warmed up in each.
    for turn in range(0 if together else 1, 1 + count):
        for place, (name, folder) in enumerate(folders.items()):
            served = loaded[name] if together else opened(folder)
            ids = [served.encode(prompt) for prompt in prompts]
            if not together:
                served.speed(ids, steps)
            found = served.speed(ids, steps)
            if turn:
                measured[name].append(found)
            log(turn * len(folders) + place + 1)
            if not together:
                del served
                release()
    return measured, together


def fit_together(folders: Folders, runtime: Runtime, log: Log) -> bool:
    """Whether all policies' weights fit into the memory that is free, with a tenth of it to spare for answering."""
    from transformers import AutoConfig

    needed = 0
    for policy, base in folders.values():
        if models.is_quantized(policy):
            needed += models.weight_bytes(policy)
            continue
        config = AutoConfig.from_pretrained(base if models.is_adapter(policy) else policy, trust_remote_code=False)
        needed += planning.store_bytes(planning.count_parameters(config).total)[runtime.dtype]
    free = free_bytes(runtime.device)
    if needed <= 0.9 * free:
        log.note(f"all of them in memory, {needed / 2**30:.1f} GiB, taking turns")
        return True
    log.note(
        f"one in memory at a time, loaded anew for each turn: "
        f"all take {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free"
    )
    return False


def peak_memories(
    folders: Folders,
    runtime: Runtime,
    prompts: Sequence[str],
    steps: int,
    quieten: Callable[[], None],
    log: Log,
) -> dict[str, int]:
    """Peak bytes of each policy, every one in a fresh process, two side by side: nothing is timed here.

    The two share the threads: more threads than cores wait for each other most of the time.

    Args:
        folders: name → policy and base.
        runtime: device, number format, threads.
        prompts: what each answers.
        steps: tokens of each answer.
        quieten: called first in each process.
        log: told of it.
    """
    log.note("memory: one process for each")
    side_by_side = min(2, len(folders))
    share = replace(runtime, threads=max(1, runtime.threads // side_by_side))
    # Each is forked from a process that has imported the libraries and nothing else, which spares every one of them seconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "torch.distributed.tensor", "transformers", "scipy.optimize"])
    # (A multiprocessing.Pool leaves a semaphore behind now and then, and says so on the user's screen.)
    with ProcessPoolExecutor(side_by_side, context, quieten, max_tasks_per_child=1) as pool:
        asked = {
            name: pool.submit(peak_memory, policy, base, share, prompts, steps)
            for name, (policy, base) in folders.items()
        }
        return {name: each.result() for name, each in asked.items()}
