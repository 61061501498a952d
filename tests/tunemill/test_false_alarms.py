"""How often "better" is said where nothing differs, and where something does: the steps of `stages.compare` on a sampling model.

A tiny model, trained for a moment so that its words are those of the references, answers the same prompts with fifty sampling
seeds: fifty candidates between which there is no difference. The effect of a known size is added to their scores.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests import tiny_model
from tunemill import losses, metrics, models, sampling, statistics
from tunemill.runtime import Runtime

SEEDS, CLUSTERS, ITEMS, RESAMPLES = 50, 16, 3, 2000
PAIRS = [(seed, (seed + step) % SEEDS) for seed in range(SEEDS) for step in (1, 2, 3, 4)]
"""Two hundred; every seed is the first in four and the second in four, so that no lucky one decides the count."""
TOKENS = 8


class Task(NamedTuple):
    prompts: list[list[int]]
    references: list[str]
    groups: list[int]


@pytest.fixture(scope="module")
def single_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model is faster on one, and its result the same on every machine
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def scores(decoder: Path, single_thread: None) -> tuple[np.ndarray, list[int]]:
    """ROUGE-1 of every item for each sampling seed, (SEEDS, n), and the items' groups."""
    model, tokenizer = models.load_policy(decoder, decoder, Runtime("cpu", "float32", 1))
    task = trained_on_topics(model, tokenizer)
    plan = sampling.plan([len(prompt) for prompt in task.prompts], TOKENS, 100_000, 96)
    rows = []
    for seed in range(SEEDS):
        said = {}
        for batch in sampling.generate(
            model, tokenizer, task.prompts, max_new_tokens=TOKENS, temperature=1.0, batches=plan, seed=seed
        ):
            said.update(zip(batch.items, (each.text for each in batch.generations), strict=True))
        found = metrics.rouge(task.references, [said[index] for index in range(len(task.prompts))])
        rows.append([each["rouge1"].f1 for each in found if each is not None])
    return np.array(rows), task.groups


def trained_on_topics(model: Any, tokenizer: Any) -> Task:
    """Train a little on texts of the topics' words; a topic is a cluster of items whose references have words in common."""
    import torch

    rng = random.Random(0)
    words = sorted({word for line in tiny_model.corpus()[:100] for word in line.lower().split() if word.isalpha()})[
        :150
    ]
    topics = [rng.sample(words, 10) for _ in range(CLUSTERS)]

    def text(topic: int, length: int) -> str:
        return " ".join(rng.sample(topics[topic], length))

    items = [(text(topic, 4), text(topic, 7), topic) for topic in range(CLUSTERS) for _ in range(ITEMS)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(50):
        pairs = [
            losses.Encoded(
                models.render_prompt(tokenizer, text(topic, 4)), models.render_completion(tokenizer, text(topic, 7))
            )
            for topic in range(CLUSTERS)
        ]
        losses.completion_loss(model, losses.collate(pairs, tokenizer.pad_token_id, None)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return Task(
        [models.render_prompt(tokenizer, prompt) for prompt, _, _ in items],
        [reference for _, reference, _ in items],
        [topic for _, _, topic in items],
    )


def compared(scores: np.ndarray, groups: list[int], pairs: list[tuple[int, int]], effect: float = 0.0) -> list[Any]:
    """(comparison, minimum detectable effect) of every pair of systems, as `stages.compare` compares them.

    Args:
        scores: (systems, n).
        groups: n labels.
        pairs: of systems.
        effect: what is added to each first one's scores.
    """
    table = np.stack([*scores, np.ones(scores.shape[1])], axis=1)
    sums = statistics.cluster_sums(table, groups)
    draws, total = statistics.resampled_sums(sums, RESAMPLES, 0), table.sum(axis=0)
    found = []
    for a, b in pairs:
        values = statistics.ratio(a, -1), statistics.ratio(b, -1)
        gaps = values[0](draws) + effect - values[1](draws)
        gap = float(values[0](total) + effect - values[1](total))
        detectable = statistics.minimum_detectable(gaps, len(sums))
        found.append((statistics.compare(gap, gaps, len(sums)), detectable))
    return found


def share_better(found: list[Any]) -> float:
    return float(np.mean([statistics.verdict(comparison) == "better" for comparison, _ in found]))


def test_the_model_samples(scores: tuple[np.ndarray, list[int]]) -> None:
    table, groups = scores
    assert table.shape == (SEEDS, CLUSTERS * ITEMS) and len(set(groups)) == CLUSTERS
    assert len({tuple(row) for row in table}) == SEEDS
    assert table.mean() > 2 and (table > 0).mean() > 0.1  # words do meet their references
    # Some clusters are easier than others, by more than sampling explains.
    means = table.mean(axis=0).reshape(CLUSTERS, ITEMS).mean(axis=1)
    assert means.std() > 2 * table.std() / (SEEDS * ITEMS) ** 0.5


def test_sampling_seeds_of_one_model_are_hardly_ever_better(scores: tuple[np.ndarray, list[int]]) -> None:
    table, groups = scores
    found = compared(table, groups, PAIRS)
    assert len(found) == 200
    better = round(200 * share_better(found))
    worse = sum(statistics.verdict(comparison) == "worse" for comparison, _ in found)
    print(f"of 200 pairs of sampling seeds {better} were called better, {worse} worse")
    assert better <= 18  # 5 are expected: 2.5% of 200
    # The reading without intervals that this replaces.
    assert sum(comparison.diff > 0 for comparison, _ in found) > 70


def test_an_effect_added_to_a_models_scores_is_found_as_promised(scores: tuple[np.ndarray, list[int]]) -> None:
    table, groups = scores
    effect = float(np.mean([detectable for _, detectable in compared(table, groups, PAIRS)]))
    rate = share_better(compared(table, groups, PAIRS, effect))
    print(f"ROUGE-1 {effect:+.2f} was found in {rate:.0%} of 200 pairs")
    assert 0.68 <= rate <= 0.92


@pytest.mark.parametrize(("clusters", "items"), [(12, 5), (36, 4)])
def test_an_effect_of_the_minimum_detectable_size_is_found_four_times_in_five(clusters: int, items: int) -> None:
    rng = np.random.default_rng(clusters)
    groups = np.repeat(np.arange(clusters), items)

    def test_set(effect: float) -> Any:
        """Two systems' scores, clusters of unequal difficulty, the first better by the effect, which varies by cluster."""
        base = rng.normal(30, 10, size=clusters)[groups]
        both = base + rng.normal(0, 12, size=(2, len(groups)))
        both[0] += effect + rng.normal(0, 4, size=clusters)[groups]
        return compared(both, groups.tolist(), [(0, 1)])[0]

    # What one test set says is detectable differs from another's as their spreads do: the mean is what is promised.
    effect = float(np.mean([test_set(0.0)[1] for _ in range(100)]))
    rate = share_better([test_set(effect) for _ in range(400)])
    alarms = share_better([test_set(0.0) for _ in range(400)])
    print(f"{clusters} clusters: {effect:+.2f} found in {rate:.1%} of 400 test sets, nothing in {alarms:.1%}")
    assert 0.7 <= rate <= 0.9
    assert alarms <= 0.05
    assert share_better([test_set(effect / 2) for _ in range(200)]) < 0.5
