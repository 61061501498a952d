"""Mixing tasks for training: how often each is drawn, and which of its rows.

Examples-proportional mixing with a cap, tempered (Raffel et al. 2020, section 3.5.2; FLAN, Wei et al. 2021, mixes the same
way with a cap of 3,000): a task of n rows is drawn with a rate proportional to min(n, cap)^(1/T). T = 1 follows the sizes, so
that a large task drowns the small ones; T → ∞ draws all tasks equally often, so that a small one is learnt by heart.
"""

from __future__ import annotations

import random
from collections.abc import Mapping


def rates(sizes: Mapping[str, int], temperature: float, cap: int) -> dict[str, float]:
    """How often each task is drawn.

    Args:
        sizes: task → rows it has.
        temperature: T, above 0.
        cap: rows that a task counts with at most.

    Returns:
        Task → share of the draws, in the order given; the shares sum to 1.

    Raises:
        ValueError: there is no task, one has no row, or temperature or cap are not positive.
    """
    if not sizes or min(sizes.values()) < 1:
        raise ValueError(f"every task of a mixture needs a row: {dict(sizes)}")
    if temperature <= 0 or cap < 1:
        raise ValueError(f"temperature and cap must be positive: {temperature}, {cap}")
    # Relative to the largest: a small temperature's large power would overflow otherwise.
    counted = {task: min(size, cap) for task, size in sizes.items()}
    largest = max(counted.values())
    weights = {task: (size / largest) ** (1 / temperature) for task, size in counted.items()}
    total = sum(weights.values())
    return {task: weight / total for task, weight in weights.items()}


def draw(sizes: Mapping[str, int], rates: Mapping[str, float], count: int, seed: int) -> list[tuple[str, int]]:
    """Which rows to train on, in order.

    Every draw picks a task by its rate and then the next row of that task. Its rows come in random order, each once before
    any comes again.

    Args:
        sizes: task → rows it has.
        rates: task → how often it is drawn, of `rates`.
        count: rows to draw.
        seed: of the draws. A larger `count` continues a smaller one.

    Returns:
        (task, row from 0) for each draw.
    """
    names = sorted(rates)
    picks = random.Random(seed).choices(names, weights=[rates[name] for name in names], k=count)
    orders: dict[str, list[int]] = {}
    taken = dict.fromkeys(names, 0)
    drawn = []
    for name in picks:
        again, at = divmod(taken[name], sizes[name])
        if at == 0:
            orders[name] = list(range(sizes[name]))
            random.Random(f"{seed}:{name}:{again}").shuffle(orders[name])
        drawn.append((name, orders[name][at]))
        taken[name] += 1
    return drawn
