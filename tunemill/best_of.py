"""Best of n: a policy that answers several times, and whose reward chooses (Stiennon et al. 2020; Nakano et al. 2021).

Nothing is trained, so it is what a reward can do without PPO's ways of failing, at n times the price of an answer. How far it is from
the starting policy is known: its divergence is at most log n − (n − 1)/n nats (Beirami et al. 2024).

Such a policy is a whole model's folder with a best_of.json that has n, and a folder reward/ with the reward.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunemill import checkpoints, journal, models, rewards
from tunemill.log import Log
from tunemill.losses import Encoded
from tunemill.runtime import Runtime
from tunemill.sampling import Generation

FILE = "best_of.json"
"""In the policy's folder: n."""
REWARD = "reward"
"""Folder in it, with the reward."""


def divergence(n: int) -> float:
    """How far the best of n answers is from the policy that wrote them: the largest KL divergence that it may have, in nats."""
    return math.log(n) - (n - 1) / n


def write(policy: Path, n: int, reward: Path) -> None:
    """Make a model's folder a best-of-n policy.

    Args:
        policy: folder of the model.
        n: answers to choose among.
        reward: folder of the reward, which is copied.
    """
    rewards.carry(reward, policy / REWARD)
    checkpoints.write_json(policy / FILE, {"n": n})


def number(policy: Path) -> int:
    """How many answers a policy writes for each that it gives: 1 for every policy but these."""
    file = policy / FILE
    return int(json.loads(file.read_text(encoding="utf-8"))["n"]) if file.is_file() else 1


def pick(
    policy: Path,
    tokenizer: Any,
    prompts: Sequence[str],
    replies: Sequence[Sequence[Generation]],
    shelf: journal.Shelf,
    runtime: Runtime,
    log: Log,
) -> list[list[Generation]]:
    """Of every n answers in a row the one that the policy's reward likes best, the first of equals; all of them of another policy.

    Args:
        policy: its folder.
        tokenizer: its tokenizer.
        prompts: what was asked.
        replies: to each prompt, a multiple of `number`.
        shelf: for the scores: a reward model takes as long to read answers as their writing takes.
        runtime: device and number format; the reward model is a second copy of the policy's weights.
        log: progress.

    Raises:
        UserError: a score is no number.
    """
    n = number(policy)
    if n == 1 or not prompts:
        return [list(each) for each in replies]
    kept = shelf.of("best_of", prompts, [[each.text for each in found] for found in replies])
    scores = [entry["scores"] for entry in journal.recover(kept)]
    log.start(f"choose the best of {n}", len(prompts), "prompt", first=len(scores))
    if len(scores) < len(prompts):
        folder = policy / REWARD
        score = rewards.drawn(rewards.load(folder, runtime), policy, runtime)
        for prompt, found in list(zip(prompts, replies, strict=True))[len(scores) :]:
            texts = [each.text for each in found]
            rows = [_row(tokenizer, prompt, each) for each in found]
            told = rewards.checked(score(rows, [prompt] * len(found), texts), texts, folder)
            journal.append(kept, {"scores": told})
            scores.append(told)
            log(len(scores))
    return [
        [found[max(range(first, first + n), key=lambda at: (told[at], -at))] for first in range(0, len(found), n)]
        for found, told in zip(replies, scores, strict=True)
    ]


def _row(tokenizer: Any, prompt: str, reply: Generation) -> Encoded:
    """A reply as token ids; the end only where there is one."""
    ids = models.render_completion(tokenizer, reply.text)
    cut = len(ids) > 1 and not reply.finished
    return Encoded(models.render_prompt(tokenizer, prompt), ids[:-1] if cut else ids)
