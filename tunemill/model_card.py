"""The card of the model that ships (Mitchell et al. 2019, "Model cards for model reporting"), in the hub's layout.

Every statement comes out of an artifact: the scope, the decision, the comparison with its intervals, the efficiency, the splits with
their hashes, the plan, the training, dvc.lock and the timings. What is not known is said to be unknown, or left out. No clock is read.

Pure, no I/O.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tunemill import cards, lineage, promotion
from tunemill.findings import METRICS, Json, difference, estimate, metric
from tunemill.wording import brief, duration, number, plural, size, tick, visible

TAGS = {
    "summarisation": "summarization",
    "translation": "translation",
    "text-generation": "text-generation",
    "classification": "text-classification",
    "token-classification": "token-classification",
}
"""Kind of task → what the hub calls it (`pipeline_tag`)."""
RELATIONS = {"adapter": "adapter", "model": "finetune", "gguf": "quantized"}
"""What a policy is → how the hub says that it comes from its base model."""
GGUF = """from llama_cpp import Llama

model = Llama("<this folder>/model.gguf", n_ctx=2048)
answer = model.create_chat_completion([{{"role": "user", "content": "<the prompt>"}}], temperature=0.0)
print(answer["choices"][0]["message"]["content"])"""
SPEEDS = (
    ("decode_tokens_per_second", "decode_ratio", "Written, one prompt at a time (tokens/s)"),
    ("batch_decode_tokens_per_second", "batch_decode_ratio", "Written, prompts in one batch (tokens/s)"),
    ("prefill_tokens_per_second", "prefill_ratio", "Read (tokens/s)"),
)
NAMED = 8
"""Packages of a corpus that are named; dvc.lock has all of them."""
KEPT = 12
"""Characters of a hash that are enough to compare it by eye; decision.json has whole ones."""


@dataclass(frozen=True)
class Facts:
    """The artifacts that a card is made of."""

    scope: Json
    decision: Json
    criteria: Sequence[promotion.Criterion]
    comparison: Json
    efficiency: Json | None
    compress: Json | None
    splits: Json
    plan: Json
    scores: Json
    training: Json | None
    """training.json of what tuned it; None where nothing did."""
    lock: Json
    """dvc.lock; empty where it was not given."""
    timings: Mapping[str, Json]
    kind: Literal["adapter", "model", "gguf"]
    language: Sequence[str]


def card(facts: Facts) -> str:
    """The whole card, in Markdown with its YAML front matter."""
    decision, scope = facts.decision, facts.scope
    parts = (
        f"# {scope['title']}",
        f"{scope['task']}\n\n**{decision['sentence']}**",
        _section("Criteria", criteria(facts)),
        _section("Intended use", intended(facts)),
        _section("Out of scope, harms and limits", limits(facts)),
        _section("Training data", data(facts)),
        _section("How it was made", made(facts)),
        _section("Evaluation", evaluation(facts)),
        _section("Seven categories (HELM)", categories(facts)),
        _section("Speed, memory and size", efficiency(facts)),
        _section("Compression", compression(facts)) if facts.compress else "",
        _section("Time and energy", cost(facts)),
        _section("How to load it", loading(facts)),
        _section("How to make it again", reproduction(facts)),
    )
    return front_matter(facts) + "\n" + "\n\n".join(each for each in parts if each) + "\n"


def front_matter(facts: Facts) -> str:
    """The YAML block that the hub reads, `model-index` with the scores among it."""
    from ruamel.yaml import YAML

    decision, scope = facts.decision, facts.scope
    task = TAGS[scope["kind"]]
    license = str(decision["license"])
    known = license.lower() not in ("none", "unknown")
    head: dict[str, Any] = {
        "license": license.lower() if known else "other",
        **({} if known else {"license_name": license}),
        "base_model": decision["base_model"],
        **({"base_model_relation": relation(facts)} if decision["policy"] != decision["base"] else {}),
        "library_name": cards.LIBRARIES[facts.kind],
        "pipeline_tag": task,
        "language": list(facts.language),
        "tags": [task, decision["candidate"], decision["verdict"], "tunemill"],
        "datasets": [name for name, _ in sources(facts)],
        "model-index": [
            {
                "name": decision["model"],
                "results": [
                    {
                        "task": {"type": task, "name": scope["title"]},
                        "dataset": {
                            "name": scope["title"],
                            "type": scope["name"],
                            "split": "test",
                            "revision": decision["test_hash"],
                        },
                        "metrics": [
                            {"type": name, "name": metric(name).label, "value": round(entry["value"], 4)} | _ends(entry)
                            for name, entry in facts.comparison["candidates"][decision["candidate"]].items()
                            if entry["value"] is not None
                        ],
                    }
                ],
            }
        ],
    }
    text = io.StringIO()
    yaml = YAML()
    yaml.width = 4096
    yaml.dump(head, text)
    return f"---\n{text.getvalue()}---\n"


def _ends(entry: Json) -> dict[str, Any]:
    """The hub has no field for an interval: it stands among a metric's arguments."""
    if entry["ci_low"] is None:
        return {}
    return {"args": {"ci_low": round(entry["ci_low"], 4), "ci_high": round(entry["ci_high"], 4), "n": entry["n"]}}


# ── the sections ──────────────────────────────────────────────────────────────────────────────────────────────────


def criteria(facts: Facts) -> str:
    """The verdict, criterion by criterion."""
    rows = [
        (
            f"`{each.metric}` of {each.candidate}" + (f" against {each.against}" if each.against else ""),
            promotion.asked(each.written()),
            _measured(each),
            each.outcome
            + ("" if each.shortfall is None else f" by {promotion.with_unit(brief(each.shortfall), each.unit)}"),
            each.why,
        )
        for each in facts.criteria
    ]
    told = (
        "Written down before anything was tried. At least: the lower end of the 95% interval reaches it; at most: the upper end "
        "does not exceed it."
    )
    return f"{told}\n\n{_table(('Criterion', 'Asked', 'Measured', 'Outcome', 'Why'), rows)}"


def _measured(each: promotion.Criterion) -> str:
    sign = each.against is not None and each.metric not in promotion.RATIOS
    if each.value is None:
        return each.reason
    span = "" if each.ci_low is None else f" [{brief(each.ci_low, sign=sign)}, {brief(each.ci_high, sign=sign)}]"
    why = f" ({each.reason})" if each.reason else ""
    return promotion.with_unit(brief(each.value, sign=sign) + span, each.unit) + why


def intended(facts: Facts) -> str:
    """What it is for, and what it may cost."""
    scope, most = facts.scope, facts.scope["constraints"]
    return _bullets(
        (
            f"Task: {scope['task']}",
            f"Kind: {scope['kind']}",
            f"Users: {scope['audience']}",
            f"Languages: {', '.join(facts.language)}",
            f"Within {tick(most['memory_gib'])} GiB of memory and {tick(most['disk_gib'])} GiB of disk, writing at least "
            f"{tick(most['decode_ratio'])} times as fast as {facts.comparison['reference']}",
        )
    )


def limits(facts: Facts) -> str:
    """What it was not made for, and what is known to be weak."""
    scope = facts.scope
    parts = ["Everything but the task above is out of scope: nothing else was asked for or checked by the criteria."]
    if scope["harms"]:
        parts.append(f"It must not do these, and whoever uses it should watch for them:\n\n{_bullets(scope['harms'])}")
    if scope["limits"]:
        parts.append(f"Known limits:\n\n{_bullets(scope['limits'])}")
    if facts.decision["verdict"] == "refused":
        parts.append("**It does not meet the criteria it was made for (above): it should not be used for the task.**")
    return "\n\n".join(parts)


def sources(facts: Facts) -> list[tuple[str, str]]:
    """Name and pin of what it was trained and tested on, as `collect` was told; empty without dvc.lock."""
    asked = _params(facts.lock, "collect").get("examples")
    if not asked:
        return []
    kind = asked["source"]
    if kind == "hub":
        return [(str(asked["repo"]), f"revision {asked['revision']}")]
    if kind == "docs":
        packages = list(asked["packages"])
        more = f" and {len(packages) - NAMED} more" if len(packages) > NAMED else ""
        return [(f"documentation of {plural(len(packages), 'Python package')}", ", ".join(packages[:NAMED]) + more)]
    name = f"{asked['package']}=={asked['version']}" if kind == "wheel" else str(asked["path"]).rpartition("/")[2]
    return [(name, f"SHA-256 {asked['sha256']}")]


def data(facts: Facts) -> str:
    """Sources with their pins, splits with the hashes of their ids, and what was refused."""
    splits = facts.splits
    lines = [f"Source: {name} ({pin})" for name, pin in sources(facts)]
    for name in ("train", "validation", "test"):
        if name in splits.get("rows", {}):
            own = f", SHA-256 of the ids `{splits[key][:KEPT]}`" if (key := f"{name}_ids_sha256") in splits else ""
            groups = splits.get("groups", {}).get(name)
            of = f" of {plural(len(groups), 'group')}" if groups else ""
            lines.append(f"{name.capitalize()}: {plural(splits['rows'][name], 'row')}{of}{own}")
    refused = sum(splits.get("quarantine", {}).get("examples", {}).values())
    lines.append(f"Refused by the checks, each with its reason: {plural(refused, 'row')}")
    if splits.get("by") == "group":
        lines.append(
            "Whole groups are in one split, so that nothing in the test was written by the authors of what was learnt"
        )
    made_by = lineage.step(facts.lock, "validate") if "validate" in facts.lock.get("stages", {}) else None
    if made_by:
        lines += [
            f"DVC's MD5 of `{each.path}`: `{each.hash}`"
            for each in made_by.outputs
            if each.path.startswith("artifacts/")
        ]
    return _bullets(lines)


def made(facts: Facts) -> str:
    """Base model, training, and every stage that led to it."""
    decision, plan, told = facts.decision, facts.plan, facts.training
    lines = [
        f"Base model: {decision['base_model']}, {decision['license']}, {number(plan['parameters'], 0)} parameters, "
        f"{plan['model'].get('family', 'family unknown')}",
    ]
    if told:
        trained, total = told.get("trainable_parameters"), told.get("total_parameters")
        if trained and total:
            lines.append(
                f"Trained parameters: {number(trained, 0)} of {number(total, 0)} ({100 * trained / total:.3g}%)"
            )
        fields = (
            ("method", "Method"), ("examples", "Examples"), ("steps", "Optimizer steps"), ("batch_size", "Batch"),
            ("learning_rate", "Peak learning rate"), ("dtype", "Number format of the training"),
        )  # fmt: skip
        lines += [f"{label}: {told[key]}" for key, label in fields if told.get(key) is not None]
        if told.get("seeds"):
            lines.append(f"Training seeds: {', '.join(map(str, told['seeds']))}")
    text = _bullets(lines)
    names = chain(facts)
    if not names:
        return f"{text}\n\nNo dvc.lock was given, so the stages that led to it are not known."
    rows = [
        (
            f"`{step.name}`",
            ", ".join(
                f"`{each.path}` {each.hash[:KEPT]}" for each in step.outputs if each.path.startswith("artifacts/")
            ),
            f"`{step.params[:KEPT]}`" if step.params else "—",
            f"`{step.code[:KEPT]}`" if step.code else "—",
        )
        for step in (lineage.step(facts.lock, name) for name in names)
    ]
    head = ("Stage", "What it made, MD5", "Parameters", "Code")
    return f"{text}\n\nThe stages that led to it, by hash (dvc.lock):\n\n{_table(head, rows)}"


def chain(facts: Facts) -> list[str]:
    """The stages that made the policy and its base."""
    return lineage.chain(facts.lock, [facts.decision["policy"], facts.decision["base"]])


def relation(facts: Facts) -> str:
    """How the hub says that the policy comes from its base model."""
    chosen = facts.compress["variants"][facts.compress["advice"]["variant"]] if facts.compress else {}
    shrunk = facts.decision["policy"].startswith("artifacts/compress/") and chosen.get("made_by") == "quantize"
    return "quantized" if shrunk else RELATIONS[facts.kind]


def evaluation(facts: Facts) -> str:
    """Scores of the test items beside the reference's and the baselines', with intervals and paired differences."""
    compared, name = facts.comparison, facts.decision["candidate"]
    systems = compared["candidates"]
    others = [each for each in systems if each == compared["reference"] or "rouge1" in systems[each]]
    baselines = [each for each in others if each not in compared.get("details", {})]
    order = list(dict.fromkeys([name, compared["reference"], *baselines]))
    metrics = [each for each in METRICS if each in systems[name]]
    rows = [
        (f"**{each}**" if each == name else each, *(_span(systems[each][one]) for one in metrics)) for each in order
    ]
    gaps = [
        (f"{name} − {each}", *(_gap(compared, name, each, one) for one in metrics)) for each in order if each != name
    ]
    unit = "groups" if compared["method"] == "cluster" else "items"
    told = (
        f"{plural(compared['items'], 'test item')} of {plural(compared['groups'], 'group')}, points, 95% intervals by the paired "
        f"bootstrap ({number(compared['resamples'], 0)} resamples of {unit}). SHA-256 of the items' ids: "
        f"`{facts.decision['test_hash'][:KEPT]}`."
    )
    if facts.kind == "gguf":
        told += " The answers are those of the weights that the file expands to, computed with in transformers."
    scorer = facts.scores.get("rouge_scorer")
    how = f"\n\nROUGE: {scorer}. BLEU: {facts.scores.get('bleu_signature')}." if scorer else ""
    head = ("", *(metric(one).label for one in metrics))
    return f"{told}\n\n{_table(head, [*rows, *gaps])}{how}"


def _span(entry: Json, digits: int = 1) -> str:
    found = estimate(entry)
    if found.value is None:
        return found.reason
    span = "" if found.low is None else f" [{number(found.low, digits)}, {number(found.high, digits)}]"
    return number(found.value, digits) + span


def _gap(compared: Json, a: str, b: str, name: str) -> str:
    found = difference(compared, a, b, name).estimate
    if found.value is None:
        return "—"
    span = "" if found.low is None else f" [{brief(found.low, sign=True)}, {brief(found.high, sign=True)}]"
    return brief(found.value, sign=True) + span


def categories(facts: Facts) -> str:
    """Each category's figure beside the reference's."""
    compared, name = facts.comparison, facts.decision["candidate"]
    own = compared.get("categories", {}).get(name)
    if not own:
        return "They were not measured."
    reference = compared["reference"]
    verdicts = {each["category"]: each["verdict"] for each in compared.get("category_pairs", ()) if each["a"] == name}
    rows = [
        (
            f"{category} ({'lower' if entry['lower_is_better'] else 'higher'} is better)",
            f"`{entry['metric']}`",
            _brief(entry),
            *(() if name == reference else (_brief(compared["categories"][reference][category]),)),
            *(() if name == reference else (verdicts.get(category, "—"),)),
        )
        for category, entry in own.items()
    ]
    head = ("Category", "Figure", name, *(() if name == reference else (reference, f"Against {reference}")))
    scorers = [
        f"{key.removesuffix('_scorer')}: {text}"
        for key, text in sorted(facts.scores.items())
        if key.endswith("_scorer") and key != "rouge_scorer"
    ]
    return _table(head, rows) + (f"\n\nScorers:\n\n{_bullets(scorers)}" if scorers else "")


def _brief(entry: Json) -> str:
    found = estimate(entry)
    if found.value is None:
        return found.reason
    return brief(found.value) + ("" if found.low is None else f" [{brief(found.low)}, {brief(found.high)}]")


def efficiency(facts: Facts) -> str:
    """Speed, peak memory and size on disk, and their ratios to the reference with intervals."""
    told, name = facts.efficiency, facts.decision["candidate"]
    if told is None or name not in told["candidates"]:
        return "They were not measured."
    own, reference = told["candidates"][name], told["reference"]

    def ratio(key: str) -> str:
        rule = {"metric": key, "candidate": name, "against": reference}
        found = promotion.measured(rule, facts.comparison, told)
        if found.value is None:
            return "—"
        span = "" if found.low is None else f" [{brief(found.low)}, {brief(found.high)}]"
        return f"{brief(found.value)}{span}×"

    rows = [(label, number(own[key], 1), ratio(of)) for key, of, label in SPEEDS]
    rows.append(("Peak memory of a process", size(own["memory_bytes"]), ratio("memory_ratio")))
    if "disk_bytes" in own:
        rows.append(("Size on disk, with an adapter's base", size(own["disk_bytes"]), ratio("disk_ratio")))
    joules = own.get("joules_per_token")
    rows.append(("Energy for a token (J)", "the machine does not tell" if joules is None else brief(joules), "—"))
    how = (
        f"On {told['device']}, {told['dtype']}, {plural(told['threads'], 'thread')}; {plural(told['rounds'], 'round')}, "
        f"candidates taking turns."
    )
    return f"{how}\n\n{_table(('', name, f'Ratio to {reference}'), rows)}"


def compression(facts: Facts) -> str:
    """The variants that were compared before one of them was chosen, on validation items."""
    told = facts.compress or {}
    rows = [
        (
            f"**{name}**" if name == told["advice"]["variant"] else name,
            each["method"],
            size(each["bytes"]),
            _brief(each["decode_ratio"]),
            _brief(each["perplexity"]),
            _brief(each["quality"]),
            _signed(each["difference"]),
        )
        for name, each in told["variants"].items()
    ]
    head = (
        "Variant",
        "Method",
        "Bytes",
        "Decode speed, ratio",
        "Perplexity",
        told["metric"],
        f"Against {told['parent']}",
    )
    return f"{told['advice']['reason']}\n\nOn {plural(told['items'], 'validation item')}:\n\n{_table(head, rows)}"


def _signed(entry: Json | None) -> str:
    found = estimate(entry, "diff")
    if found.value is None:
        return "—"
    span = "" if found.low is None else f" [{brief(found.low, sign=True)}, {brief(found.high, sign=True)}]"
    return brief(found.value, sign=True) + span


def cost(facts: Facts) -> str:
    """What the stages that led to it took, as measured."""
    names = [name for name in chain(facts) if name in facts.timings]
    if not names:
        return "No timings were kept."
    own = [facts.timings[name] for name in names]
    memory = max((each.get("peak_memory_bytes") or 0 for each in own), default=0)
    machines = sorted({str(each["device"]) for each in own if each.get("device")})
    lines = [
        f"Stages that led to it: {duration(sum(each['seconds'] for each in own))} on {', '.join(machines) or 'one machine'}",
        f"Peak memory of any of them: {size(memory)}",
        "Energy and emissions of the training were not measured.",
    ]
    slowest = sorted(zip(names, own, strict=True), key=lambda each: -each[1]["seconds"])[:3]
    lines.insert(1, "Longest: " + ", ".join(f"`{name}` {duration(each['seconds'])}" for name, each in slowest))
    return _bullets(lines)


def loading(facts: Facts) -> str:
    """Code that loads it."""
    if facts.kind == "gguf":
        return f"```python\n{GGUF.format()}\n```"
    kind = "Seq2SeqLM" if facts.plan["model"].get("family") == "encoder-decoder" else "CausalLM"
    code = cards.LOADING[facts.kind].format(kind=kind)
    code = code.replace("<this folder>", facts.decision["policy"]).replace("<the base model>", facts.decision["base"])
    note = "The folders are those of a checkout in which the pipeline has run; in the registry a version has its files in `model/`."
    return f"```python\n{code}\n```\n\n{note}"


def reproduction(facts: Facts) -> str:
    """Commands and hashes."""
    decision = facts.decision
    rows = [
        ("policy", f"`{decision['policy']}`", decision["policy_hash"]),
        ("base", f"`{decision['base']}`", decision["base_hash"]),
        ("test items", f"{number(decision['test_items'], 0)} ids", decision["test_hash"]),
    ]
    steps = (
        "The same code, parameters and sources give the same hashes (measured times aside). The registry names the commit.\n\n"
        "```sh\ngit checkout <commit>\nmake run\n```"
    )
    return f"{steps}\n\n{_table(('What', 'Where', 'Hash'), rows)}"


# ── Markdown ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}"


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {_line(each)}" for each in lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_line(str(cell)).replace("|", "\\|") for cell in row) + " |" for row in lines)


def _line(text: str) -> str:
    """Text in one line, with nothing hidden in it."""
    return visible(" ".join(text.split()))


def _params(lock: Json, stage: str) -> Json:
    """A stage's own section of params.yaml, as dvc.lock has it."""
    found = lock.get("stages", {}).get(stage, {}).get("params", {}).get("params.yaml", {})
    own = found.get(stage, {})
    return own if isinstance(own, Mapping) else {}
