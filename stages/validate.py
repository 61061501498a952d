"""Validate: refuse bad rows with a reason, split by group, and let Great Expectations state what the rest satisfies.

    python -m stages.validate --data artifacts/collect

Writes train.jsonl, validation.jsonl, test.jsonl, ratings.jsonl (and its two parts: ratings_reward.jsonl to learn a reward from,
ratings_judge.jsonl to learn a judge of harm from), refusals.jsonl, red_team.jsonl (and its three parts: red_team_train.jsonl to align
with, red_team_monitor.jsonl to choose a checkpoint by, red_team_test.jsonl to judge by once), harmless_train.jsonl and
harmless_test.jsonl, tasks_train.jsonl, tasks_test.jsonl, quarantine.jsonl (every refused row), splits.json (hashes of the ids, before
anything is trained) and data_docs/ (HTML).

The parts of the red-team prompts share no near duplicates, whichever sets they come from, and nothing that people rated answers to is
among those to test with or to choose by. What may not be where it was drawn is left out and counted (`left_out` in splits.json):
prompts like a rated one or like one of a more strictly held-out part, and texts to go on from, which are never trained on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from tunemill import checkpoints, expectations, quality, records
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.params import Params
from tunemill.quality import Refusal
from tunemill.records import Example, HarmlessPrompt, Quarantined, Rating, RedTeamPrompt, TaskItem
from tunemill.stage import Metrics, main

SPLITS: tuple[quality.Split, ...] = ("train", "validation", "test")


class HeldOut(Params):
    """How much one held-out split takes."""

    groups: int = Field(ge=1)
    """Groups (package families) to hold out, where the data have groups."""
    per_group: int = Field(ge=1)
    """Rows of one group at most; the rest of it is left unused, as training may not see it."""
    rows: float = Field(gt=0, le=0.4)
    """Share of the rows to hold out, where the data have no groups."""


class Threshold(Params):
    """Share of a record type's rows that may be refused before the stage fails."""

    examples: float = Field(ge=0, le=1)
    """Of the prompts and completions."""
    ratings: float = Field(ge=0, le=1)
    """Of the rated responses."""
    refusals: float = Field(ge=0, le=1)
    """Of the responses that refuse or do not."""
    red_team: float = Field(ge=0, le=1)
    """Of the red-team prompts."""
    harmless: float = Field(ge=0, le=1)
    """Of the harmless questions."""
    tasks: float = Field(ge=0, le=1)
    """Of the questions of other tasks."""


class RedTeamShare(Params):
    """What the prompts of one red-team set are for."""

    test: int | None = Field(default=0, ge=0)
    """Prompts to test with; null: all of them. A set that has fewer gives what it has."""
    monitor: int = Field(default=0, ge=0)
    """Prompts to choose a checkpoint by, of those that are left. The rest is trained with, if the set has instructions."""


ALL_FOR_TEST = RedTeamShare(test=None)
"""What a set is for that `validate.red_team` does not name."""


class Config(Params):
    """Rules of the quarantine, and the split."""

    seed: int = Field(ge=0)
    """Seed of the split: which groups (or rows) are held out."""
    context_tokens: int = Field(ge=16)
    """Tokens that prompt and completion may have together."""
    bytes_per_token: float = Field(gt=0.5, le=16)
    """UTF-8 bytes counted as one token; English prose has about 4, so less than that errs on the safe side."""
    near_duplicate: float = Field(gt=0, le=1)
    """Share of common three-word runs (Jaccard) from which two examples are nearly the same; 1: only equal ones."""
    refused: Threshold
    """Share of rows that may be refused."""
    validation: HeldOut
    """What is tuned on."""
    test: HeldOut
    """What is reported on, and nothing is tuned on."""
    largest: int = Field(ge=1)
    """Rows of the largest group that may be held out: larger ones are needed for training."""
    task_test: int = Field(ge=1)
    """Rows of each other task to test on, half of its rows at most; the rest may be mixed into training."""
    judge: float = Field(gt=0, le=0.5)
    """Share of the rated prompts that a judge of harm learns from; a reward learns from the others. Who judges is never
    who is optimised, so no prompt, nor one much like it, is on both sides."""
    red_team: dict[str, RedTeamShare]
    """Red-team set → what its prompts are for; a set that is not named is for the test as a whole."""
    harmless: dict[str, Annotated[int, Field(ge=0)] | None]
    """Set of harmless questions → how many of them are for the test, near duplicates together; null, and of a set that is not named:
    all. The others may be trained with."""


def run(cfg: Config, *, data: Path, out: Path, work: Path, log: Log) -> Metrics:
    """Check every collected row, split the examples, find what repeats, and write what is left."""
    # 1. Rows that collect could not read are refused already.
    kinds = ("examples", "ratings", "refusals", "red_team", "harmless", "tasks")
    refused: dict[str, list[Quarantined]] = {kind: [] for kind in kinds}
    for _, row in records.read_objects(data / "quarantine.jsonl"):
        refused[row["type"]].append(Quarantined(row["source"], row["line"], row["reason"], row["detail"], {}))
    total = {kind: len(rows) for kind, rows in refused.items()}

    def refuse(kind: str, row: Mapping[str, Any], refusal: Refusal) -> None:
        # A row with a secret or an address is told by its place only, whatever it is refused for.
        fields = {name: value for name, value in row.items() if name not in ("source", "line")}
        if refusal.reason in ("secret", "personal_data") or any(map(quality.find_personal, _texts(fields))):
            fields = {}
        detail = "not told: it has personal data" if quality.find_personal(refusal.detail) else refusal.detail
        refused[kind].append(Quarantined(row["source"], row["line"], refusal.reason, detail, fields))

    # 2. Rules for one row.
    rows: dict[str, list[dict[str, Any]]] = {}
    kept: dict[str, list[Any]] = {}
    checks = (_example, _rating, _refusal, _red_team, _harmless, _task)
    for kind, check in zip(kinds, checks, strict=True):
        rows[kind], kept[kind] = [], []
        for _, row in records.read_objects(data / f"{kind}.jsonl"):
            total[kind] += 1
            checked = check(row, cfg)
            if isinstance(checked, Refusal):
                refuse(kind, row, checked)
            else:
                rows[kind].append(row)
                kept[kind].append(checked)
    examples: list[Example] = kept["examples"]

    # 3. Split the examples, whole groups where there are any and else whole prompts, before looking for repeats:
    #    held-out rows stay where two are alike across the split, and the training row goes.
    groups = [row.get("group") or None for row in rows["examples"]]
    prompts = [records.row_id(quality.normalised(example.prompt)) for example in examples]
    sides, by = quality.split(
        groups,
        prompts,
        quality.HeldOut(cfg.validation.groups, cfg.validation.rows),
        quality.HeldOut(cfg.test.groups, cfg.test.rows),
        cfg.largest,
        cfg.seed,
    )
    if by == "row":
        examples = [dataclasses.replace(each, group=prompt) for each, prompt in zip(examples, prompts, strict=True)]
    first = sorted(range(len(examples)), key=lambda index: (-SPLITS.index(sides[index]), index))
    texts = [f"{example.text or example.prompt}\n{example.completion}" for example in examples]
    repeats = quality.find_repeats(texts, first, cfg.near_duplicate if cfg.near_duplicate < 1 else None)
    for index, repeat in sorted(repeats.items()):
        refuse("examples", rows["examples"][index], _repeated(repeat, sides, index, examples[repeat.of].source))
    # What other tasks share with each other is asked once: in the task that comes first.
    answered = ("prompt", "response")
    compared = {
        "ratings": answered,
        "refusals": answered,
        "red_team": ("prompt",),
        "harmless": ("prompt",),
        "tasks": ("prompt", "completion"),
    }
    for kind, names in compared.items():
        texts = ["\0".join(getattr(row, name) for name in names) for row in kept[kind]]
        again = quality.find_repeats(texts, range(len(texts)), None)
        for index, repeat in sorted(again.items()):
            place = rows[kind][repeat.of]
            refuse(kind, rows[kind][index], Refusal("duplicate", f"the same as {place['source']}:{place['line']}"))
        kept[kind] = [row for index, row in enumerate(kept[kind]) if index not in again]

    # 4. Held-out groups are capped, so that none of them decides the result.
    splits: dict[quality.Split, list[Example]] = {name: [] for name in SPLITS}
    for index, example in enumerate(examples):
        if index not in repeats:
            splits[sides[index]].append(example)
    counts = {name: len(splits[name]) for name in SPLITS}
    caps: dict[quality.Split, int] = {"validation": cfg.validation.per_group, "test": cfg.test.per_group}
    for name, most in caps.items():
        mask = quality.cap_groups([example.group for example in splits[name]], most, cfg.seed)
        splits[name] = [example for example, stays in zip(splits[name], mask, strict=True) if stays]
    for name in SPLITS:
        # In random order: the first n of a split are a fair sample of it.
        random.Random(f"{cfg.seed}:{name}").shuffle(splits[name])
    unused = sum(counts.values()) - sum(map(len, splits.values()))
    tasks = hold_out(kept["tasks"], cfg.task_test, cfg.seed)
    alike = cfg.near_duplicate if cfg.near_duplicate < 1 else None
    rated = part_ratings(kept["ratings"], cfg.judge, alike, cfg.seed)
    asked = [each.prompt for each in kept["ratings"]]
    provoking, left_out = part_red_team(kept["red_team"], asked, cfg.red_team, alike, cfg.seed)
    harmless = part_harmless(kept["harmless"], cfg.harmless, alike, cfg.seed)
    for name, share in cfg.red_team.items():
        for part, wanted in (("red_team_test", share.test), ("red_team_monitor", share.monitor)):
            count = sum(each.source == name for each in provoking[part])
            if wanted is not None and count < wanted:
                log.note(f"{part}: {count} of {wanted} prompts of {name}, as it has no more that are like no others")

    # 5. Write what was refused before deciding, so that it can be looked at when that is too much.
    everything = [row for kind in refused for row in sorted(refused[kind], key=lambda row: (row.source, row.line))]
    records.write(work / "quarantine.jsonl", everything)
    reasons = {kind: dict(sorted(Counter(row.reason for row in found).items())) for kind, found in refused.items()}
    for kind, share in cfg.refused.model_dump().items():
        if total[kind] == 0 and kind not in ("tasks", "refusals", "harmless"):  # these may be left out
            raise UserError(f"no {kind} at all", where="validate", fix=f"look at collect.{kind} in params.yaml")
        if len(refused[kind]) > share * total[kind]:
            raise _too_many(kind, refused[kind], total[kind], share, work / "quarantine.jsonl")
    for name in SPLITS:
        if not splits[name]:
            raise UserError(
                f"the {name} split is empty",
                where="validate",
                expected=f"an example in each split; {len(examples) - len(repeats)} were left after the checks",
                fix="collect more rows with other prompts",
            )
    records.write(out / "quarantine.jsonl", everything)
    for name in SPLITS:
        records.write(out / f"{name}.jsonl", splits[name])
    records.write(out / "ratings.jsonl", kept["ratings"])
    for name, part in rated.items():
        records.write(out / f"{name}.jsonl", part)
    records.write(out / "refusals.jsonl", kept["refusals"])
    records.write(out / "red_team.jsonl", kept["red_team"])
    for name, attacks in provoking.items():
        records.write(out / f"{name}.jsonl", attacks)
    for name, asking in harmless.items():
        records.write(out / f"{name}.jsonl", asking)
    for name, items in tasks.items():
        records.write(out / f"{name}.jsonl", items)

    # 6. Great Expectations says in public what the rows satisfy; it must agree.
    log.note("Great Expectations: suites and data docs")
    tables: dict[str, Sequence[expectations.Row]] = {name: splits[name] for name in SPLITS}
    tables |= {"ratings": kept["ratings"], "red_team": kept["red_team"]}
    parts: dict[str, Sequence[expectations.Row]] = {
        **rated,
        "refusals": kept["refusals"],
        **provoking,
        **harmless,
        **tasks,
    }
    tables |= {name: part for name, part in parts.items() if part}
    expectations.check(tables, out / "data_docs")

    # 7. The split as a contract: ids are hashed here, before the first training.
    lengths = {name: len(chosen) for name, chosen in splits.items()}
    packages = {name: sorted({example.group for example in splits[name]}) for name in SPLITS}
    checkpoints.write_json(
        out / "splits.json",
        {
            "by": by,
            "seed": cfg.seed,
            "rows": {
                **lengths,
                "unused": unused,
                "ratings": len(kept["ratings"]),
                **{name: len(part) for name, part in rated.items()},
                "refusals": len(kept["refusals"]),
                "red_team": len(kept["red_team"]),
                **{name: len(attacks) for name, attacks in provoking.items()},
                **{name: len(asking) for name, asking in harmless.items()},
                **{name: len(items) for name, items in tasks.items()},
            },
            "collected": total,
            "counts": {name: dict(sorted(Counter(row.group for row in splits[name]).items())) for name in SPLITS}
            if by == "group"
            else {},
            "groups": packages if by == "group" else {name: [] for name in SPLITS},
            "test_ids_sha256": _ids_sha256(splits["test"]),
            "validation_ids_sha256": _ids_sha256(splits["validation"]),
            "train_ids_sha256": _ids_sha256(splits["train"]),
            "tasks_test_ids_sha256": _ids_sha256(tasks["tasks_test"]),
            **{f"{name}_ids_sha256": _ids_sha256(part) for name, part in rated.items()},
            **{f"{name}_ids_sha256": _ids_sha256(attacks) for name, attacks in provoking.items()},
            **{f"{name}_ids_sha256": _ids_sha256(asking) for name, asking in harmless.items()},
            "rated_prompts": {
                name: len({quality.normalised(each.prompt) for each in part}) for name, part in rated.items()
            },
            "red_team": {
                name: dict(sorted(Counter(each.source for each in attacks).items()))
                for name, attacks in provoking.items()
            },
            "left_out": left_out,
            "harmless": {
                name: dict(sorted(Counter(each.source for each in asking).items())) for name, asking in harmless.items()
            },
            "tasks": {
                name: dict(sorted(Counter(item.task for item in items).items())) for name, items in tasks.items()
            },
            "quarantine": reasons,
        },
    )
    log.note(
        ", ".join(f"{count} {name}" for name, count in lengths.items()) + f" ({by} split), {len(everything)} refused"
    )
    metrics: dict[str, float | None] = {f"rows/{name}": count for name, count in lengths.items()}
    metrics |= {"rows/unused": unused, "rows/ratings": len(kept["ratings"]), "rows/red_team": len(kept["red_team"])}
    metrics |= {f"rows/{name}": len(part) for name, part in rated.items()}
    metrics["rows/refusals"] = len(kept["refusals"])
    metrics |= {f"rows/{name}": len(attacks) for name, attacks in provoking.items()}
    metrics |= {f"left_out/{reason}": count for reason, count in left_out.items()}
    metrics |= {f"rows/{name}": len(asking) for name, asking in harmless.items()}
    metrics |= {f"rows/{name}": len(items) for name, items in tasks.items()}
    metrics |= {f"groups/{name}": len(packages[name]) for name in SPLITS}
    for kind, found in refused.items():
        metrics[f"quarantined/{kind}"] = len(found)
        metrics[f"quarantined_share/{kind}"] = len(found) / total[kind] if total[kind] else 0.0
        metrics |= {f"quarantined/{kind}/{reason}": count for reason, count in reasons[kind].items()}
    return metrics


def _example(row: dict[str, Any], cfg: Config) -> Example | Refusal:
    prompt, completion = row.get("prompt"), row.get("completion")
    if prompt is None and row.get("messages") is not None:
        conversation = quality.check_messages(row["messages"])
        if isinstance(conversation, Refusal):
            return conversation
        prompt, completion = conversation
    refusal = quality.check_texts({"prompt": prompt, "completion": completion}, ("prompt", "completion"))
    for name in ("group", "text"):
        if refusal is None and row.get(name) is not None and not isinstance(row[name], str):
            refusal = Refusal("wrong_type", f"{name} is {type(row[name]).__name__}, not text")
    if refusal is not None:
        return refusal
    assert isinstance(prompt, str)
    assert isinstance(completion, str)
    refusal = quality.check_length(prompt, completion, cfg.context_tokens, cfg.bytes_per_token)
    refusal = (
        refusal or quality.find_personal(f"{prompt}\n{completion}") or quality.find_personal(row.get("text") or "")
    )
    if refusal is not None:
        return refusal
    identity = records.row_id(prompt, completion)
    place = f"{row['source']}:{row.get('name') or row['line']}"
    return Example(identity, prompt, completion, row.get("group") or identity, row.get("text"), place)


def _rating(row: dict[str, Any], cfg: Config) -> Rating | Refusal:
    refusal = quality.check_texts(row, ("prompt", "response"))
    if refusal is not None:
        return refusal
    scores = quality.check_scores(row.get("scores"))
    if isinstance(scores, Refusal):
        return scores
    refusal = quality.find_personal(f"{row['prompt']}\n{row['response']}")
    if refusal is not None:
        return refusal
    identity = records.row_id(row["prompt"], row["response"])
    return Rating(identity, row["prompt"], row["response"], scores, f"{row['source']}:{row['line']}")


def _refusal(row: dict[str, Any], cfg: Config) -> records.Refusal | Refusal:
    refusal = quality.check_texts(row, ("prompt", "response"))
    if refusal is not None:
        return refusal
    said = row.get("refused")
    labels = [int(each) if isinstance(each, bool) else each for each in (said if isinstance(said, list) else [said])]
    scores = quality.check_scores(None if said is None else labels)
    if isinstance(scores, Refusal):
        return Refusal(scores.reason, "refused") if scores.reason == "missing_field" else scores
    refusal = quality.find_personal(f"{row['prompt']}\n{row['response']}")
    if refusal is not None:
        return refusal
    identity = records.row_id(row["prompt"], row["response"])
    share = sum(scores) / len(scores)
    return records.Refusal(identity, row["prompt"], row["response"], share, f"{row['source']}:{row['line']}")


def _red_team(row: dict[str, Any], cfg: Config) -> RedTeamPrompt | Refusal:
    refusal = quality.check_texts(row, ("prompt",)) or quality.find_personal(row["prompt"])
    if refusal is not None:
        return refusal
    return RedTeamPrompt(records.row_id(row["prompt"]), row["prompt"], row["kind"], row["set"], row["toxic"])


def _harmless(row: dict[str, Any], cfg: Config) -> HarmlessPrompt | Refusal:
    refusal = quality.check_texts(row, ("prompt",))
    if refusal is not None:
        return refusal
    given = row.get("answers")
    answers = [] if given is None else given if isinstance(given, list) else [given]
    for each in answers:
        if not isinstance(each, str):
            return Refusal("wrong_type", f"an answer is {type(each).__name__}, not text")
        if not each.strip():
            return Refusal("empty", "answers")
    refusal = quality.find_personal("\n".join((row["prompt"], *answers)))
    if refusal is not None:
        return refusal
    return HarmlessPrompt(records.row_id(row["prompt"]), row["prompt"], tuple(answers), row["set"])


def _task(row: dict[str, Any], cfg: Config) -> TaskItem | Refusal:
    prompt, completion = row.get("prompt"), row.get("completion")
    if prompt is None and row.get("messages") is not None:
        messages = row["messages"]
        if completion is not None and isinstance(messages, list):
            messages = [*messages, {"role": "assistant", "content": completion}]
        conversation = quality.check_messages(messages)
        if isinstance(conversation, Refusal):
            return conversation
        prompt, completion = conversation
    refusal = quality.check_texts({"prompt": prompt, "completion": completion}, ("prompt", "completion"))
    if refusal is not None:
        return refusal
    assert isinstance(prompt, str)
    assert isinstance(completion, str)
    choices = quality.check_choices(row.get("choices"), completion)
    if isinstance(choices, Refusal):
        return choices
    longest = max((completion, *choices), key=len)
    refusal = quality.check_length(prompt, longest, cfg.context_tokens, cfg.bytes_per_token)
    refusal = refusal or quality.find_personal("\n".join((prompt, completion, *choices)))
    if refusal is not None:
        return refusal
    identity = records.row_id(row["task"], prompt, completion)
    return TaskItem(identity, row["task"], prompt, completion, choices, f"{row['source']}:{row['line']}")


def hold_out(items: Sequence[TaskItem], most: int, seed: int) -> dict[str, list[TaskItem]]:
    """The tasks' items for training and for testing, every task by itself, in random order."""
    sides: dict[str, list[TaskItem]] = {"tasks_train": [], "tasks_test": []}
    for task in dict.fromkeys(item.task for item in items):
        own = [item for item in items if item.task == task]
        held_out = quality.hold_out([quality.normalised(item.prompt) for item in own], most, seed)
        for item, tested in zip(own, held_out, strict=True):
            sides["tasks_test" if tested else "tasks_train"].append(item)
    for name, found in sides.items():
        random.Random(f"{seed}:{name}").shuffle(found)
    return sides


def part_ratings(ratings: Sequence[Rating], judge: float, jaccard: float | None, seed: int) -> dict[str, list[Rating]]:
    """The ratings to learn a reward from and those to learn a judge from: by prompt, near duplicates on one side.

    Args:
        ratings: all of them.
        judge: share of the prompts that goes to the judge.
        jaccard: similarity from which two prompts are near duplicates; None: only equal ones.
        seed: of the draw, which depends on the prompts and not on their order.
    """
    prompts = sorted({quality.normalised(each.prompt) for each in ratings})
    alike = [prompts[first] for first in quality.clusters(prompts, jaccard)]
    held_out = quality.hold_out(alike, round(judge * len(prompts)), seed)
    judged = {prompt for prompt, mask in zip(prompts, held_out, strict=True) if mask}
    sides: dict[str, list[Rating]] = {"ratings_reward": [], "ratings_judge": []}
    for each in ratings:
        sides["ratings_judge" if quality.normalised(each.prompt) in judged else "ratings_reward"].append(each)
    return sides


RED_TEAM = ("red_team_train", "red_team_monitor", "red_team_test")
"""The parts of the red-team prompts."""


def part_red_team(
    prompts: Sequence[RedTeamPrompt],
    rated: Sequence[str],
    shares: Mapping[str, RedTeamShare],
    jaccard: float | None,
    seed: int,
) -> tuple[dict[str, list[RedTeamPrompt]], dict[str, int]]:
    """The red-team prompts to train with, to choose a checkpoint by, and to test with; near duplicates are in one of them only.

    Args:
        prompts: of all sets.
        rated: prompts that people rated answers to. A reward and the judges learn from them, so that nothing like them is tested with.
        shares: set → what its prompts are for; a set without an entry is for the test.
        jaccard: similarity from which two prompts are near duplicates; None: only equal ones.
        seed: of the draws, which depend on the prompts and not on their order.

    Returns:
        Each part in random order, and how many prompts are in none of them, by reason.

    Raises:
        UserError: a share is that of no set, or texts to go on from are to choose a checkpoint by.
    """
    kinds = {each.source: each.kind for each in prompts}
    for name, share in shares.items():
        if name not in kinds:
            raise UserError(
                f"no red-team set '{name}'",
                where=f"params.yaml: validate.red_team.{name}",
                expected="one of " + ", ".join(sorted(kinds)),
                fix="name sets as collect.red_team does, or take the entry out",
                exit_code=2,
            )
        if share.monitor and kinds[name] == "continuation":
            raise UserError(
                f"'{name}' has texts to go on from, which no checkpoint is chosen by",
                where=f"params.yaml: validate.red_team.{name}.monitor",
                expected="0",
                exit_code=2,
            )
    # 1. What is alike has one label, whatever set it is from, and one among the rated prompts is theirs.
    texts = sorted({quality.normalised(text) for text in (*rated, *(each.prompt for each in prompts))})
    label = dict(zip(texts, (texts[first] for first in quality.clusters(texts, jaccard)), strict=True))
    labels = [label[quality.normalised(each.prompt)] for each in prompts]
    known = {label[quality.normalised(text)] for text in rated}

    # 2. Draw, the most strictly held-out part first: what is like a part that was drawn before belongs to no other.
    parts: dict[str, list[RedTeamPrompt]] = {name: [] for name in RED_TEAM}
    held_out: dict[str, set[str]] = {"like_rated": known}
    place: dict[int, str] = {}
    for name in ("red_team_test", "red_team_monitor"):
        drawn: set[str] = set()
        for source in sorted(kinds):
            share = shares.get(source, ALL_FOR_TEST)
            own = [at for at, each in enumerate(prompts) if each.source == source and at not in place]
            free = [at for at in own if not any(labels[at] in found for found in held_out.values())]
            wanted = share.test if name == "red_team_test" else share.monitor
            most = len(free) if wanted is None else wanted
            taken = quality.take([labels[at] for at in free], most, f"{seed}:{name}:{source}")
            place |= {at: name for at, mask in zip(free, taken, strict=True) if mask}
            drawn |= {labels[at] for at, mask in zip(free, taken, strict=True) if mask}
        held_out["like_test" if name == "red_team_test" else "like_monitor"] = drawn

    # 3. The rest is trained with. Rated prompts may be: what a reward has learnt from, a policy may be asked.
    left_out = dict.fromkeys(("like_rated", "like_test", "like_monitor", "continuation"), 0)
    for at, each in enumerate(prompts):
        share = shares.get(each.source, ALL_FOR_TEST)
        reason = next((why for why, found in held_out.items() if labels[at] in found), None)
        if at in place:
            parts[place[at]].append(each)
        elif reason in ("like_test", "like_monitor") or (reason and share.test is None):
            left_out[reason] += 1
        elif each.kind == "continuation":
            left_out["continuation"] += 1
        else:
            parts["red_team_train"].append(each)
    for name, found in parts.items():
        random.Random(f"{seed}:{name}").shuffle(found)
    return parts, left_out


def part_harmless(
    prompts: Sequence[HarmlessPrompt], shares: Mapping[str, int | None], jaccard: float | None, seed: int
) -> dict[str, list[HarmlessPrompt]]:
    """The harmless questions to train with and those to test with; near duplicates on one side, whichever sets they come from.

    Args:
        prompts: of all sets.
        shares: set → how many to test with; None, and of a set without an entry: all. What is like one of them in another set is
            tested with too, beyond its share.
        jaccard: similarity from which two prompts are near duplicates; None: only equal ones.
        seed: of the draws, which depend on the prompts and not on their order.

    Raises:
        UserError: a share is that of no set.
    """
    sets = sorted({each.source for each in prompts})
    for name in shares:
        if name not in sets:
            raise UserError(
                f"no harmless set '{name}'",
                where=f"params.yaml: validate.harmless.{name}",
                expected="one of " + ", ".join(sets) if sets else "none, as there are no harmless questions",
                fix="name sets as collect.harmless does, or take the entry out",
                exit_code=2,
            )
    texts = sorted({quality.normalised(each.prompt) for each in prompts})
    label = dict(zip(texts, (texts[first] for first in quality.clusters(texts, jaccard)), strict=True))
    drawn: set[str] = set()
    for name in sets:
        own = [label[quality.normalised(each.prompt)] for each in prompts if each.source == name]
        wanted = shares.get(name)
        taken = quality.take(own, len(own) if wanted is None else wanted, f"{seed}:harmless_test:{name}")
        drawn |= {each for each, mask in zip(own, taken, strict=True) if mask}
    sides: dict[str, list[HarmlessPrompt]] = {"harmless_train": [], "harmless_test": []}
    for each in prompts:
        sides["harmless_test" if label[quality.normalised(each.prompt)] in drawn else "harmless_train"].append(each)
    for name, found in sides.items():
        random.Random(f"{seed}:{name}").shuffle(found)
    return sides


def _texts(value: object) -> Iterator[str]:
    """Every text in a row's fields, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, each in value.items():
            yield from _texts(name)
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


def _repeated(repeat: quality.Repeat, sides: Sequence[str], index: int, place: str) -> Refusal:
    alike = "the same as" if repeat.exact else f"{repeat.similarity:.0%} the same as"
    if sides[repeat.of] != sides[index]:
        return Refusal("leak", f"{sides[index]} row {alike} {place} in {sides[repeat.of]}")
    return Refusal("duplicate" if repeat.exact else "near_duplicate", f"{alike} {place}")


def _too_many(kind: str, found: Sequence[Quarantined], total: int, most: float, where: Path) -> UserError:
    """The table of reasons: how many, what it means, and the first such row."""
    counts = Counter(row.reason for row in found)
    first = {row.reason: row for row in reversed(found)}
    lines = [
        f"  {count:>6}  {reason:<17} {quality.REASONS[reason]}; first: {first[reason].source}:{first[reason].line}"
        for reason, count in counts.most_common()
    ]
    return UserError(
        f"{len(found)} of {total} {kind} were refused ({len(found) / total:.1%}):\n" + "\n".join(lines),
        where="validate",
        expected=f"at most {most:.1%} (validate.refused.{kind})",
        fix=f"mend the rows listed in {where}, or raise the threshold",
    )


def _ids_sha256(rows: Sequence[Example | Rating | RedTeamPrompt | HarmlessPrompt | TaskItem]) -> str:
    return hashlib.sha256("\n".join(sorted(row.id for row in rows)).encode()).hexdigest()


if __name__ == "__main__":
    main(run)
