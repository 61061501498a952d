"""How often "better" is said where nothing differs, and where something does: `stages.compare` on a sampling model.

A tiny model, trained for a moment so that its words are those of the references, answers the same prompts with fifty sampling
seeds: fifty candidates between which there is no difference. An effect of a known size, larger for some items and packages than
for others, is planted into copies of them. Made-up test sets of other sizes go through the same functions without the stage.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests import tiny_model
from tests.stages import comparing
from tunemill import losses, models, records, sampling, scoring, statistics
from tunemill.records import Example
from tunemill.runtime import Runtime
from tunemill.sampling import Generation

SEEDS, CLUSTERS, ITEMS, RESAMPLES = 50, 16, 3, 1000
PAIRS = [(seed, (seed + step) % SEEDS) for seed in range(SEEDS) for step in (1, 2, 3, 4)]
"""Two hundred; every seed is the first in four and the second in four, so that no lucky one decides the count."""
TOKENS = 8
SPREAD_CLUSTER, SPREAD_ITEM = 3.0, 8.0
"""Points by which a planted effect varies between packages, and between the items of one."""

Rows = Sequence[dict[str, Any]]


class Task(NamedTuple):
    prompts: list[list[int]]
    examples: list[Example]


@pytest.fixture(scope="module")
def single_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model is faster on one, and its result the same on every machine
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def answered(decoder: Path, single_thread: None) -> list[Rows]:
    """The rows of instances.jsonl for each sampling seed, and for one more: the reference, which is in none of the pairs."""
    model, tokenizer = models.load_policy(decoder, decoder, Runtime("cpu", "float32", 1))
    task = trained_on_topics(model, tokenizer)
    plan = sampling.plan([len(prompt) for prompt in task.prompts], TOKENS, 100_000, 96)
    found = []
    for seed in range(SEEDS + 1):
        said: dict[int, Generation] = {}
        for batch in sampling.generate(
            model, tokenizer, task.prompts, max_new_tokens=TOKENS, temperature=1.0, batches=plan, seed=seed
        ):
            said.update(zip(batch.items, batch.generations, strict=True))
        answers = [said[index] for index in range(len(task.prompts))]
        rows = scoring.instances(task.examples, answers, {"offence": lambda texts: [0.0] * len(texts)}, None)
        found.append([row | {"baselines": {}} for row in rows])
    return found


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
        [
            Example(records.row_id(prompt, reference), prompt, reference, f"topic{topic}", None, "made")
            for prompt, reference, topic in items
        ],
    )


def compared(
    root: Path,
    candidates: dict[str, Rows],
    reference: str,
    pairs: Sequence[tuple[str, str]],
    resamples: int = RESAMPLES,
) -> list[Any]:
    """The entries of comparison.json on ROUGE-1 for these pairs, of one run of the stage.

    Args:
        root: a folder to write to.
        candidates: name → its rows of instances.jsonl.
        reference: the candidate that all others are compared with as one family, beside the pairs.
        pairs: of names.
        resamples: of the bootstrap.
    """
    for name, rows in candidates.items():
        records.write_objects(root / "evaluate" / name / "instances.jsonl", rows)
    (root / "scope").mkdir(exist_ok=True)
    (root / "scope/scope.json").write_text(json.dumps({"primary_metric": "rouge1", "criteria": []}))
    further = tuple(pair for pair in pairs if pair[1] != reference)
    cfg = comparing.CONFIG.model_copy(
        update={"resamples": resamples, "reference": reference, "min_groups": 10, "pairs": further}
    )
    written, _ = comparing.compared(root, comparing.named(candidates), cfg)
    assert (written["method"], written["groups"], written["items"]) == ("cluster", CLUSTERS, CLUSTERS * ITEMS)
    found = {(each["a"], each["b"]): each for each in written["pairs"] if each["metric"] == "rouge1"}
    return [found[pair] for pair in pairs]


def planted(rows: Rows, effect: float, seed: int) -> Rows:
    """The rows with more ROUGE-1: the effect on average over all possible test sets, far from the same for each item."""
    rng = np.random.default_rng(seed)
    by_group = {group: rng.normal(effect, SPREAD_CLUSTER) for group in sorted({row["group"] for row in rows})}
    return [
        row | {"scores": row["scores"] | {"rouge1": row["scores"]["rouge1"] + by_group[row["group"]] + more}}
        for row, more in zip(rows, rng.normal(0, SPREAD_ITEM, size=len(rows)), strict=True)
    ]


def count(found: Sequence[Any], verdict: str = "better") -> int:
    return sum(each["verdict"] == verdict for each in found)


def mean_detectable(found: Sequence[Any]) -> float:
    """What one test set says is detectable differs from another's as their spreads do: the mean is what is promised."""
    return float(np.mean([each["minimum_detectable"] for each in found]))


@pytest.fixture(scope="module")
def by_seed(answered: list[Rows]) -> dict[str, Rows]:
    return {f"seed{seed}": rows for seed, rows in enumerate(answered[:SEEDS])} | {"reference": answered[SEEDS]}


def test_the_model_samples(answered: list[Rows]) -> None:
    table = np.array([[row["scores"]["rouge1"] for row in rows] for rows in answered])
    assert table.shape == (SEEDS + 1, CLUSTERS * ITEMS)
    assert len({tuple(row) for row in table}) == SEEDS + 1
    assert table.mean() > 2 and (table > 0).mean() > 0.1  # words do meet their references
    # Some clusters are easier than others, by more than sampling explains.
    means = table.mean(axis=0).reshape(CLUSTERS, ITEMS).mean(axis=1)
    assert means.std() > 2 * table.std() / ((SEEDS + 1) * ITEMS) ** 0.5


def test_sampling_seeds_of_one_model_are_hardly_ever_better(by_seed: dict[str, Rows], tmp_path: Path) -> None:
    found = compared(tmp_path, by_seed, "reference", [(f"seed{a}", f"seed{b}") for a, b in PAIRS])
    assert len(found) == 200
    print(f"of 200 pairs of sampling seeds {count(found)} were called better, {count(found, 'worse')} worse")
    assert count(found) <= 18  # 5 are expected: 2.5% of 200
    # The reading without intervals that this replaces.
    assert sum(each["diff"] > 0 for each in found) > 70


def test_an_uneven_effect_planted_into_a_model_is_found_as_promised(by_seed: dict[str, Rows], tmp_path: Path) -> None:
    def measured(effect: float, pairs: Sequence[tuple[int, int]]) -> list[Any]:
        better = {f"better{n}": planted(by_seed[f"seed{a}"], effect, n) for n, (a, _) in enumerate(pairs)}
        asked = [(f"better{n}", f"seed{b}") for n, (_, b) in enumerate(pairs)]
        return compared(tmp_path, {**by_seed, **better}, "reference", asked)

    nothing = measured(0.0, PAIRS[::4])  # as uneven, and no better on average
    effect = mean_detectable(nothing)
    found = measured(effect, PAIRS[::2])
    assert np.mean([each["diff"] for each in found]) == pytest.approx(effect, rel=0.15)
    print(f"ROUGE-1 {effect:+.2f} was found in {count(found)} of 100 pairs, nothing in {count(nothing)} of 50")
    assert 68 <= count(found) <= 92
    assert count(nothing) <= 5


@pytest.mark.slow
def test_in_a_family_what_holm_leaves_is_found_as_promised_too(by_seed: dict[str, Rows], tmp_path: Path) -> None:
    """Five candidates as in the default run: one of them better, three no better than the reference."""

    def measured(effect: float, families: int) -> list[Any]:
        found = []
        for n in range(families):
            apart = 1 + n // SEEDS
            reference, best, *others = (f"seed{(n + step * apart) % SEEDS}" for step in range(5))
            candidates = {each: by_seed[each] for each in (reference, *others)}
            candidates |= {"best": planted(by_seed[best], effect, 1000 + n)}
            # As many resamples as by default: a p-value that is multiplied by four has to be told from 0.0125.
            found += compared(tmp_path, candidates, reference, [("best", reference)], 10_000)
        return found

    effect = mean_detectable(measured(0.0, 20))
    found = measured(effect, 60)
    print(f"in a family ROUGE-1 {effect:+.2f} was found in {count(found)} of {len(found)}")
    assert all(each["p_holm"] >= each["p"] for each in found)
    assert 36 <= count(found) <= 56


@pytest.mark.parametrize(("clusters", "items"), [(12, 5), (36, 4)])
def test_an_effect_of_the_minimum_detectable_size_is_found_four_times_in_five(clusters: int, items: int) -> None:
    """Of many test sets, which the stage would take minutes for: what it composes, `statistics`, on two sizes of them."""
    rng = np.random.default_rng(clusters)
    groups = np.repeat(np.arange(clusters), items)

    def test_set(effect: float) -> tuple[bool, float]:
        """Whether the first of two systems is called better, by an effect that varies by cluster; what is detectable."""
        base = rng.normal(30, 10, size=clusters)[groups]
        both = base + rng.normal(0, 12, size=(2, len(groups)))
        both[0] += effect + rng.normal(0, 4, size=clusters)[groups]
        sums = statistics.cluster_sums(np.stack([both[0] - both[1], np.ones(len(groups))], axis=1), groups.tolist())
        gaps = statistics.ratio(0, 1)(statistics.resampled_sums(sums, RESAMPLES, 0))
        detectable = statistics.minimum_detectable(gaps, clusters)
        assert detectable is not None
        told = statistics.compare(float(both[0].mean() - both[1].mean()), gaps, clusters)
        return statistics.verdict(told) == "better", detectable

    def share(effect: float, sets: int) -> float:
        return float(np.mean([test_set(effect)[0] for _ in range(sets)]))

    effect = float(np.mean([test_set(0.0)[1] for _ in range(100)]))
    rate, alarms = share(effect, 400), share(0.0, 400)
    print(f"{clusters} clusters: {effect:+.2f} found in {rate:.1%} of 400 test sets, nothing in {alarms:.1%}")
    assert 0.7 <= rate <= 0.9
    assert alarms <= 0.05
    assert share(effect / 2, 200) < 0.5
