"""The typed rows that stages hand to each other, as JSON Lines."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from tunemill.checkpoints import write_text
from tunemill.errors import UserError


@dataclass(frozen=True)
class Example:
    """A prompt and what should be answered.

    Attributes:
        id: 12 hexadecimal digits, a hash of prompt and completion.
        prompt: the whole user message, instruction included.
        completion: the answer to learn.
        group: cluster of related rows (a package family): splits and intervals treat it as one. A row that is related
            to no other is its own group.
        text: what is to be summarised, without the instruction; the extractive baselines read it. None: the prompt.
        source: where it came from: `package==version:path:name` or `file:line`.
    """

    id: str
    prompt: str
    completion: str
    group: str
    text: str | None
    source: str


@dataclass(frozen=True)
class Rating:
    """A response and how harmful people found it.

    Attributes:
        id: 12 hexadecimal digits, a hash of prompt and response.
        prompt: what was asked.
        response: what was answered.
        scores: 0 (harmless) to 1, one for each person.
        source: `package==version:member:line` or `file:line`.
    """

    id: str
    prompt: str
    response: str
    scores: tuple[float, ...]
    source: str


@dataclass(frozen=True)
class Refusal:
    """A response, and how many people say that it refuses to do what was asked.

    Attributes:
        id: 12 hexadecimal digits, a hash of prompt and response.
        prompt: what was asked.
        response: what was answered.
        refused: share of the people who were asked that call it a refusal, 0 to 1.
        source: `package==version:member:line` or `file:line`.
    """

    id: str
    prompt: str
    response: str
    refused: float
    source: str


@dataclass(frozen=True)
class RedTeamPrompt:
    """A prompt that tries to bring out harm.

    Attributes:
        id: 12 hexadecimal digits, a hash of the prompt.
        prompt: the instruction, or the text to continue.
        kind: an instruction to a chat model, or a text to continue.
        source: name of the set, like `advbench`.
        toxic: whether the prompt is toxic itself; None where nobody labelled it.
    """

    id: str
    prompt: str
    kind: Literal["instruction", "continuation"]
    source: str
    toxic: bool | None


@dataclass(frozen=True)
class HarmlessPrompt:
    """A question that nothing is wrong with answering.

    Attributes:
        id: 12 hexadecimal digits, a hash of the prompt.
        prompt: what is asked.
        answers: right answers, each by itself; empty where nobody wrote any.
        source: name of the set, like `truthfulqa`.
    """

    id: str
    prompt: str
    answers: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class TaskItem:
    """A question of another task than the one being tuned for, and its right answer.

    Attributes:
        id: 12 hexadecimal digits, a hash of task, prompt and completion.
        task: name of the task.
        prompt: the whole user message, instruction included.
        completion: the right answer.
        choices: the answers to choose among, `completion` one of them; empty where the answer is free.
        source: `package==version:member:line` or `file:line`.
    """

    id: str
    task: str
    prompt: str
    completion: str
    choices: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class Completions:
    """Answers to one prompt, to be ranked.

    Attributes:
        id: 12 hexadecimal digits, a hash of the prompt and its answers.
        prompt: what was asked.
        completions: what was answered; two may be the same text.
        source: name of the set the prompt is from.
    """

    id: str
    prompt: str
    completions: tuple[str, ...]
    source: str


def by_task(path: Path) -> dict[str, list[tuple[str, str]]]:
    """Prompts and completions of a file of `TaskItem` rows, task by task."""
    found: dict[str, list[tuple[str, str]]] = {}
    for row in read(path, TaskItem):
        found.setdefault(row.task, []).append((row.prompt, row.completion))
    return found


@dataclass(frozen=True)
class Preference:
    """Two answers to one prompt, the better one first.

    Attributes:
        id: 12 hexadecimal digits, a hash of prompt and both answers.
        prompt: what was asked.
        chosen: the better answer.
        rejected: the other one.
        probability: share of those with an opinion who prefer the chosen one, more than one half.
        weight: one over the number of the prompt's pairs: all prompts weigh the same.
        group: cluster of near-duplicate prompts; folds and intervals keep it whole.
        source: what the pair was made of: `ratings`, `labels` or `ai`.
    """

    id: str
    prompt: str
    chosen: str
    rejected: str
    probability: float
    weight: float
    group: str
    source: str


@dataclass(frozen=True)
class Quarantined:
    """A row that was refused, and why.

    Attributes:
        source: file, `package==version:member`, or the like.
        line: line (or row number) there, from 1.
        reason: one of `quality.REASONS`, or of `labels.REASONS`.
        detail: what exactly, in words.
        row: the row's fields; empty where it could not be read.
    """

    source: str
    line: int
    reason: str
    detail: str
    row: dict[str, Any]


Record = TypeVar(
    "Record", Example, Rating, Refusal, RedTeamPrompt, HarmlessPrompt, TaskItem, Completions, Preference, Quarantined
)


def row_id(*texts: str) -> str:
    """12 hexadecimal digits that depend on the texts and on where one ends and the next begins."""
    return hashlib.sha256(json.dumps(texts, ensure_ascii=False).encode()).hexdigest()[:12]


Asked = TypeVar("Asked", Example, RedTeamPrompt, HarmlessPrompt)


def draw(rows: Sequence[Asked], count: int, seed: int) -> list[Asked]:
    """So many rows, each of a prompt of its own; the choice depends on seed and rows, and not on their order."""
    distinct = {each.prompt: each for each in rows}.values()

    def place(each: Asked) -> str:
        return hashlib.sha256(f"{seed}\0{each.id}".encode()).hexdigest()

    return sorted(distinct, key=place)[:count]


def write(
    path: Path,
    rows: Iterable[
        Example | Rating | Refusal | RedTeamPrompt | HarmlessPrompt | TaskItem | Completions | Preference | Quarantined
    ],
) -> None:
    """Write rows as JSON Lines, the whole file or nothing."""
    write_objects(path, (dataclasses.asdict(row) for row in rows))


def write_objects(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write plain objects as JSON Lines, the whole file or nothing; what JSON has no type for (a date) becomes text."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False, default=str) + "\n" for row in rows))


def read(path: Path, kind: type[Record]) -> list[Record]:
    """Read rows of one type.

    Raises:
        UserError: a line is no JSON object, or a field is missing, unknown or of the wrong type.
    """
    from pydantic import TypeAdapter, ValidationError

    names = {field.name for field in dataclasses.fields(kind)}
    adapter: TypeAdapter[Record] = TypeAdapter(kind)
    rows = []
    for line, fields in read_objects(path):
        if unknown := sorted(fields.keys() - names):
            raise UserError(f"unknown field '{unknown[0]}'", where=f"{path}:{line}", expected=", ".join(sorted(names)))
        try:
            rows.append(adapter.validate_json(json.dumps(fields), strict=True))
        except ValidationError as error:
            first = error.errors()[0]
            at = ".".join(map(str, first["loc"]))
            raise UserError(
                f"{at}: {first['msg'].lower()}", where=f"{path}:{line}", expected=f"a {kind.__name__}"
            ) from None
    return rows


def read_objects(path: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    """(line from 1, object) of every line that is not blank.

    Raises:
        UserError: the file is not UTF-8, or a line is no JSON object.
    """
    # Only "\n" ends a line: str.splitlines would also cut at U+2028, which JSON allows inside a string.
    with path.open(encoding="utf-8", newline="\n") as file:
        try:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                fields = json.loads(line)
                if not isinstance(fields, dict):
                    raise UserError("not a JSON object", where=f"{path}:{number}")
                yield number, fields
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"not JSON Lines: {error}", where=str(path)) from None
