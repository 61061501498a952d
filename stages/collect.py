"""Collect: fetch every source, check it against its pin, and write its rows as they are.

    python -m stages.collect

Writes examples.jsonl, ratings.jsonl, refusals.jsonl, red_team.jsonl, harmless.jsonl and tasks.jsonl (each row with the source and line
it came from), quarantine.jsonl (lines that could not be read at all), encoder/ (a model that turns texts into vectors, if one is named)
and sources.json (what was read).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from tunemill import checkpoints, corpus, model_sources, records, sources
from tunemill.log import Log
from tunemill.params import Params
from tunemill.stage import Metrics, main

FIELDS = {
    "examples": ("prompt", "completion", "messages", "group", "text", "name"),
    "ratings": ("prompt", "response", "scores"),
    "refusals": ("prompt", "response", "refused"),
    "red_team": ("prompt",),
    "harmless": ("prompt", "answers"),
    "tasks": ("prompt", "completion", "messages", "choices"),
}
"""The columns a record type may have."""


class RedTeamSet(Params):
    """One set of prompts that try to bring out harm."""

    kind: Literal["instruction", "continuation"]
    """What the prompts are: instructions to a chat model, or texts to continue."""
    toxic: bool | None = None
    """Whether the prompts are toxic themselves, where that is known."""
    rows: sources.Table
    """Where they come from; the column is `prompt`."""


class TaskSet(Params):
    """One task other than the one being tuned for."""

    choices: tuple[str, ...] = ()
    """The answers to choose among, where all rows have the same; a column `choices` gives a row its own."""
    rows: sources.Table
    """Where the questions come from, columns prompt and completion (or messages), and choices where rows have their own."""


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


class Config(Params):
    """Sources: what the project learns from."""

    examples: sources.Source
    """Prompts and completions, columns prompt and completion (or messages), and group and text where there are any."""
    ratings: sources.Table
    """Responses that people rated for harm, columns prompt, response and scores (0–1, one for each person)."""
    refusals: sources.Table | None = None
    """Responses that people call a refusal or not, columns prompt, response and refused (0 or 1, one for each person), which the
    judge of refusals learns from (stage `harm`). Without them: null."""
    red_team: dict[str, RedTeamSet] = Field(min_length=1)
    """Name of the set → prompts that try to bring out harm."""
    harmless: dict[Name, sources.Table]
    """Name of the set → questions that nothing is wrong with answering, columns prompt and, where there are right answers, answers (a
    list): what shows whether a model that does less harm still helps. None: {}."""
    tasks: dict[Name, TaskSet]
    """Name → another task: what tuning makes of it is measured, and it may be mixed into training. None: {}."""
    encoder: model_sources.ModelFiles | None = None
    """An encoder-only model of sentences, which the harm scorer reads answers with (stage `harm`). Without one: null."""

    @field_validator("examples", "ratings", "refusals", "red_team", "harmless", "tasks")
    @classmethod
    def _columns_are_known(cls, value: Any, info: Any) -> Any:
        given = value.values() if isinstance(value, dict) else [value]
        tables = [each.rows if isinstance(each, RedTeamSet | TaskSet) else each for each in given]
        for table in tables:
            if unknown := sorted(set(getattr(table, "columns", {})) - set(FIELDS[info.field_name])):
                allowed = ", ".join(name for name in FIELDS[info.field_name] if name != "name")
                raise ValueError(f"columns names '{unknown[0]}', allowed are {allowed}")
        return value


def run(cfg: Config, *, out: Path, work: Path, log: Log) -> Metrics:
    """Read the six kinds of rows and write them down with the place each one came from."""
    cache = work / "downloads"
    told: dict[str, Any] = {}
    metrics: dict[str, float | None] = {}
    unreadable: list[dict[str, Any]] = []

    def put(kind: str, found: Iterable[tuple[sources.Raw, dict[str, Any]]]) -> int:
        rows = []
        for raw, constants in found:
            if raw.fault is not None:
                reason, detail = raw.fault
                place = {"type": kind, "source": raw.source, "line": raw.line}
                unreadable.append({**place, "reason": reason, "detail": detail})
                continue
            fields = {name: raw.fields[name] for name in FIELDS[kind] if name in raw.fields}
            rows.append({**fields, **constants, "source": raw.source, "line": raw.line})
        records.write_objects(out / f"{kind}.jsonl", rows)
        metrics[f"rows/{kind}"] = len(rows)
        return len(rows)

    # 1. Examples. The documentation corpus also tells how many pairs each package gave, and what was filtered.
    if isinstance(cfg.examples, corpus.DocsSource):
        log.note(f"parsing the documentation of {len(cfg.examples.packages)} packages")
        found = corpus.read(cfg.examples)
        rows = sources.read_docs(found, cfg.examples)
        told["examples"] = {
            "source": "docs",
            "packages": cfg.examples.versions,
            "pairs": found.packages,
            "filtered": found.filtered,
        }
        metrics |= {f"filtered/{reason.replace(' ', '_').replace(',', '')}": n for reason, n in found.filtered.items()}
        metrics["packages"] = len(found.packages)
    else:
        rows = sources.read(cfg.examples, cache)
        told["examples"] = cfg.examples.model_dump(mode="json")
    count = put("examples", ((raw, {}) for raw in rows))
    log.note(f"{count} examples")

    # 2. Human harm ratings.
    count = put("ratings", ((raw, {}) for raw in sources.read(cfg.ratings, cache)))
    told["ratings"] = cfg.ratings.model_dump(mode="json")
    log.note(f"{count} ratings")

    # 3. What people call a refusal.
    count = put(
        "refusals", ((raw, {}) for raw in sources.read(cfg.refusals, cache)) if cfg.refusals is not None else ()
    )
    told["refusals"] = cfg.refusals.model_dump(mode="json") if cfg.refusals is not None else None
    log.note(f"{count} refusals and other answers")

    # 4. Red-team prompts: every set knows what kind it is.
    prompts = [
        (raw, {"set": name, "kind": each.kind, "toxic": each.toxic})
        for name, each in cfg.red_team.items()
        for raw in sources.read(each.rows, cache)
    ]
    count = put("red_team", prompts)
    for name, each in cfg.red_team.items():
        metrics[f"rows/red_team/{name}"] = sum(
            constants["set"] == name for raw, constants in prompts if raw.fault is None
        )
        told.setdefault("red_team", {})[name] = each.model_dump(mode="json")
    log.note(f"{count} red-team prompts")

    # 5. Harmless questions: every row knows its set.
    harmless = [(raw, {"set": name}) for name, rows in cfg.harmless.items() for raw in sources.read(rows, cache)]
    count = put("harmless", harmless)
    for name, rows in cfg.harmless.items():
        metrics[f"rows/harmless/{name}"] = sum(
            constants["set"] == name for raw, constants in harmless if raw.fault is None
        )
        told.setdefault("harmless", {})[name] = rows.model_dump(mode="json")
    log.note(f"{count} harmless questions")

    # 6. Other tasks: every row knows its task, and the choices it shares with the task's other rows.
    questions = [
        (
            raw,
            {"task": name} | ({"choices": list(each.choices)} if each.choices and "choices" not in raw.fields else {}),
        )
        for name, each in cfg.tasks.items()
        for raw in sources.read(each.rows, cache)
    ]
    count = put("tasks", questions)
    for name, each_task in cfg.tasks.items():
        metrics[f"rows/tasks/{name}"] = sum(
            constants["task"] == name for raw, constants in questions if raw.fault is None
        )
        told.setdefault("tasks", {})[name] = each_task.model_dump(mode="json")
    log.note(f"{count} questions of {len(cfg.tasks)} other tasks")

    # 7. The encoder: its files as they are. Without one the folder says so, as the graph needs it to be there.
    def fill(folder: Path) -> None:
        if cfg.encoder is not None:
            model_sources.fetch_files(cfg.encoder, cache, folder, "params.yaml: collect.encoder")
        name = model_sources.describe(cfg.encoder) if cfg.encoder is not None else None
        checkpoints.write_json(folder / "source.json", {"name": name})

    checkpoints.save(out, "encoder", fill)
    told["encoder"] = cfg.encoder.model_dump(mode="json") if cfg.encoder is not None else None
    log.note(f"encoder: {model_sources.describe(cfg.encoder) if cfg.encoder is not None else 'none'}")

    records.write_objects(out / "quarantine.jsonl", unreadable)
    metrics["unreadable"] = len(unreadable)
    checkpoints.write_json(out / "sources.json", told)
    return metrics


if __name__ == "__main__":
    main(run)
