"""What one candidate's answers and log-likelihoods come to: the rows that `evaluate` writes, and its flat metrics.

Pure: records and texts in, plain objects out. Every row keeps what it was scored from, so that `compare` can resample items,
prompts and questions without asking the model again. The seven categories that the rows are for are HELM's (Liang et al.
2022, "Holistic Evaluation of Language Models"); `tunemill.helm` makes them out of these rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tunemill import helpfulness, metrics, perturbations
from tunemill.records import Example, HarmlessPrompt, RedTeamPrompt
from tunemill.sampling import Generation

BASELINES: dict[str, Callable[[str], str]] = {
    "lead-10-words": metrics.lead_words,
    "first-sentence": metrics.first_sentence,
}
Scorer = Callable[[Sequence[str]], Sequence[float | None]]
"""Texts → a score from 0 to 1 for each; None where nothing could score it."""


class Variant(NamedTuple):
    """A test item, perturbed."""

    item: int
    """Which test item, by index."""
    name: perturbations.Name
    prompt: str
    reference: str
    changed: bool


def variants(examples: Sequence[Example], items: Sequence[int]) -> list[Variant]:
    """Some test items under every perturbation. The text to work on is perturbed, the instruction around it is not.

    That text is the item's own where its prompt has it, the last time it stands there: what comes before it may quote it. For
    other items it is the whole prompt but for the lines that all prompts begin or end with.

    Args:
        examples: the test items.
        items: which of them, by index.
    """
    found = []
    start, end = metrics.instruction([each.prompt for each in examples])
    for index in items:
        example = examples[index]
        prompt = example.prompt
        at, text = start, prompt[start : len(prompt) - end]
        if example.text and example.text in prompt:
            at, text = prompt.rindex(example.text), example.text
        for name in perturbations.NAMES:
            changed = perturbations.perturb(name, text, [example.completion], example.id)
            whole = prompt[:at] + changed.text + prompt[at + len(text) :]
            found.append(Variant(index, name, whole, changed.references[0], changed.changed))
    return found


def instances(
    examples: Sequence[Example],
    answers: Sequence[Generation],
    scorers: Mapping[str, Scorer],
    known: metrics.TrainingIndex | None,
) -> list[dict[str, Any]]:
    """The rows of instances.jsonl.

    Args:
        examples: the test items.
        answers: one for each.
        scorers: of toxicity, by name.
        known: what the training data say word for word; None where there is none to compare with.
    """
    references = [metrics.one_line(each.completion) for each in examples]
    predictions = [metrics.one_line(each.text) for each in answers]
    scores = metrics.rouge(references, predictions)
    exact = metrics.exact_match(references, predictions)
    quasi = metrics.quasi_exact_match(references, predictions)
    sources = [each.text if each.text is not None else each.prompt for each in examples]
    # The name and signature before the text are part of what a summary may rest on, the instruction is not.
    grounds = metrics.sources([each.prompt for each in examples])
    extracts = {name: [extract(source) for source in sources] for name, extract in BASELINES.items()}
    extracted = {name: metrics.rouge(references, texts) for name, texts in extracts.items()}
    # The harm scorer learnt from answers to provoking prompts and has nothing to say of these.
    offence = scorers["offence"](predictions)
    return [
        {
            "id": example.id,
            "group": example.group,
            "prompt": example.prompt,
            "reference": references[index],
            **answered(answers[index]),
            "prediction": predictions[index],
            "source_words": len(sources[index].split()),
            "scores": points(scores[index]),
            "precision": points(scores[index], "precision"),
            "recall": points(scores[index], "recall"),
            "exact_match": exact[index],
            "quasi_exact_match": quasi[index],
            "faithfulness": metrics.faithfulness(grounds[index], predictions[index]),
            "memorised_words": None if known is None else metrics.memorised(predictions[index], known),
            "offence": offence[index],
            "baselines": {
                name: {"prediction": extracts[name][index], **points(extracted[name][index])} for name in BASELINES
            },
        }
        for index, example in enumerate(examples)
    ]


def perturbed(
    examples: Sequence[Example],
    rows: Sequence[Mapping[str, Any]],
    found: Sequence[Variant],
    answers: Mapping[int, Generation],
) -> list[dict[str, Any]]:
    """The rows of perturbed.jsonl.

    Args:
        examples: the test items.
        rows: of instances.jsonl, one for each test item.
        found: from `variants`.
        answers: index of a variant → its answer; one that changed nothing has the answer of the item itself.
    """
    predictions = [
        metrics.one_line(answers[index].text) if index in answers else rows[each.item]["prediction"]
        for index, each in enumerate(found)
    ]
    references = [metrics.one_line(each.reference) for each in found]
    scores = metrics.rouge(references, predictions)
    return [
        {
            "id": examples[each.item].id,
            "group": examples[each.item].group,
            "perturbation": each.name,
            "changed": each.changed,
            "prompt": each.prompt,
            "reference": reference,
            "prediction": prediction,
            "finished": answers[index].finished if index in answers else rows[each.item]["finished"],
            "scores": points(score),
        }
        for index, (each, reference, prediction, score) in enumerate(
            zip(found, references, predictions, scores, strict=True)
        )
    ]


def provoked(
    attacks: Sequence[RedTeamPrompt],
    samples: Sequence[Sequence[Generation]],
    scorers: Mapping[str, Scorer],
    surprise: Sequence[Sequence[float | None]] | None = None,
    drift: Sequence[float | None] = (),
) -> list[dict[str, Any]]:
    """The rows of red_team.jsonl: every prompt with its samples, each judged by every scorer.

    Args:
        attacks: the prompts.
        samples: for each the same number of answers, k.
        scorers: of toxicity, by name.
        surprise: nats per token of each answer, for the model that all candidates started from; None where it was not asked.
        drift: of the first answer to each of the first prompts, log π − log π_base in nats.
    """
    texts = [each.text for found in samples for each in found]
    judged = {name: iter(scorer(texts)) for name, scorer in scorers.items()}
    # RealToxicityPrompts calls a prompt toxic from 0.5 on; where nobody labelled it the offence scorer says.
    prompts = scorers["offence"]([each.prompt for each in attacks])
    return [
        {
            "id": attack.id,
            "kind": attack.kind,
            "source": attack.source,
            "prompt": attack.prompt,
            "prompt_toxic": attack.toxic if attack.toxic is not None else own is not None and own >= metrics.TOXIC,
            "drift": drift[at] if at < len(drift) else None,
            "samples": [
                {**answered(each), **{name: next(scores) for name, scores in judged.items()}, "surprise": nats}
                for each, nats in zip(found, surprised, strict=True)
            ],
        }
        for at, (attack, found, own, surprised) in enumerate(
            zip(attacks, samples, prompts, surprise or [[None] * len(found) for found in samples], strict=True)
        )
    ]


def harmless(
    prompts: Sequence[HarmlessPrompt],
    samples: Sequence[Sequence[Generation]],
    scorers: Mapping[str, Scorer],
    embed: helpfulness.Embed | None,
) -> list[dict[str, Any]]:
    """The rows of harmless.jsonl: every prompt with the right answers that say something, and its samples, judged for evasion and help.

    Args:
        prompts: what was asked.
        samples: for each the same number of answers, k.
        scorers: of toxicity, by name; those of refusals are asked.
        embed: sentences as vectors; None where there is no encoder, and nobody to say what helps.
    """
    texts = [each.text for found in samples for each in found]
    judged = {name: iter(scorers[name](texts)) for name in ("refusal", "refusal_phrases")}
    judged["asks_back"] = iter(helpfulness.asks_back(texts))
    right = [each.answers for each, found in zip(prompts, samples, strict=True) for _ in found]
    judged["helpful"] = iter([None] * len(texts) if embed is None else helpfulness.nearest(texts, right, embed))
    return [
        {
            "id": each.id,
            "kind": "harmless",
            "source": each.source,
            "prompt": each.prompt,
            "answers": helpfulness.speaking(each.answers),
            "samples": [{**answered(one), **{name: next(scores) for name, scores in judged.items()}} for one in found],
        }
        for each, found in zip(prompts, samples, strict=True)
    ]


def answered(each: Generation) -> dict[str, Any]:
    """An answer as the rows have it."""
    return {"prediction": each.text.strip(), "tokens": each.tokens, "finished": each.finished}


def points(scores: dict[str, metrics.Rouge] | None, part: str = "f1") -> dict[str, float | None]:
    """One part of an item's ROUGE scores; all None where there is no reference."""
    return {name: None if scores is None else getattr(scores[name], part) for name in metrics.ROUGE_TYPES}


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """The metrics of the test items, and of the extractive baselines on them."""
    references = [row["reference"] for row in rows]
    predictions = [row["prediction"] for row in rows]
    flat: dict[str, float | None] = {
        "test/n": len(rows),
        "test/bleu": metrics.corpus_score("bleu", references, predictions),
        "test/exact_match": metrics.mean(row["exact_match"] for row in rows),
        "test/quasi_exact_match": metrics.mean(row["quasi_exact_match"] for row in rows),
        "test/faithfulness": metrics.mean(row["faithfulness"] for row in rows),
        "test/memorised_words": metrics.mean(row["memorised_words"] for row in rows),
        "test/length_words": metrics.mean(len(text.split()) for text in predictions),
        "test/reference_words": metrics.mean(len(text.split()) for text in references),
        "test/tokens": metrics.mean(row["tokens"] for row in rows),
        "test/finished": metrics.share(row["finished"] for row in rows),
        "test/empty": metrics.share(not text for text in predictions),
    }
    for name in metrics.ROUGE_TYPES:
        flat[f"test/{name}"] = metrics.mean(row["scores"][name] for row in rows)
        flat[f"test/{name}_precision"] = metrics.mean(row["precision"][name] for row in rows)
        flat[f"test/{name}_recall"] = metrics.mean(row["recall"][name] for row in rows)
    for baseline in BASELINES:
        own = [row["baselines"][baseline] for row in rows]
        flat |= {f"baseline/{baseline}/{name}": metrics.mean(row[name] for row in own) for name in metrics.ROUGE_TYPES}
        flat[f"baseline/{baseline}/bleu"] = metrics.corpus_score("bleu", references, [row["prediction"] for row in own])
    return flat


def task_summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """The metrics of other tasks: means over their questions; no accuracy where a task has no choices."""
    flat: dict[str, float | None] = {}
    for task in sorted({row["task"] for row in rows}):
        own = [row for row in rows if row["task"] == task]
        flat[f"tasks/{task}/n"] = len(own)
        flat[f"tasks/{task}/nll"] = metrics.mean(row["nll"] for row in own)
        flat[f"tasks/{task}/accuracy"] = metrics.share(row["correct"] for row in own if row["correct"] is not None)
    return flat
