"""What people said of answers: rankings in plain files, `labels/<labeler>.jsonl`, one JSON object a line.

    python -m tunemill.labels import FILE --labeler ada     rankings or ratings, from JSONL or CSV; a model's: --ranked-by model
    python -m tunemill.labels export --pairs pairs.jsonl    what a reward model learns, and how far people agree

A line is what one person, or one model, said of the answers to one prompt: `id` (a hash of prompt and answers), `prompt`,
`completions`, `ranks` (of each answer, 1 is best, equal ones are ties, null is nonsense), `labeler`, `ranked_by` (`person` or `model`;
where it is not there, a person), `criterion`; or `skipped: true` instead of `ranks`. What came out of another file has a `source`. A
later line of the same id replaces the earlier one, so that nothing that was written is ever rewritten; the files may be read and
edited with anything.

A line that was refused is left where it is, and told with its reason: an answer of people is never lost. Only a last line that
a kill has cut short is cut off, by whoever writes the next one: the page had not said that it was saved.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import io
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from tunemill import records
from tunemill.errors import UserError
from tunemill.preferences import Ranker, Ranking
from tunemill.records import Completions, Quarantined, row_id
from tunemill.wording import plural

CRITERION = "Which answer is the most helpful to the person who asks, honest, and harmless?"

REASONS = {
    "cut_short": "the last line ends in the middle: it was being written when its writer was killed",
    "not_utf8": "bytes that are no UTF-8",
    "not_json": "the line is no JSON object",
    "not_csv": "the row does not fit the header",
    "missing_field": "a field is not there or null",
    "wrong_type": "a field has the wrong type",
    "empty": "a prompt is empty or blank",
    "bad_ranks": "not one rank for each answer, a rank that is no number, or two ranks of one text",
    "bad_score": "a score is no number",
    "bad_ranker": "ranked by neither a person nor a model",
    "changed": "the id is not that of this prompt and these answers",
    "other_labeler": "it is by somebody else than the file",
    "unknown_prompt": "the prompt and its answers are none of those to be ranked",
    "nothing_to_compare": "fewer than two different answers to the prompt",
    "duplicate": "the same answers to the same prompt again",
}
"""Why a line of a file of labels, or a row of an imported file, is refused."""

RANKERS: tuple[Ranker, ...] = get_args(Ranker)

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


class Label(NamedTuple):
    """What one person, or one model, said of the answers to one prompt."""

    id: str
    prompt: str
    completions: tuple[str, ...]
    ranks: tuple[float | None, ...] | None
    """Of each completion, 1 is best, equal ones are ties, None is nonsense. None instead of all: skipped."""
    labeler: str
    criterion: str
    source: str | None = None
    """`file:line` of an imported one; None of what was said on the page."""
    ranked_by: Ranker = "person"
    """What the labeler is. Said in each label, and never taken from a name: a person may be called anything."""


class Labels(NamedTuple):
    """What everybody said."""

    said: dict[str, dict[str, Label]]
    """Labeler → id → what that labeler said last, in the order in which it was said."""
    refused: list[Quarantined]

    @property
    def rankings(self) -> list[Ranking]:
        """Without what was skipped; labelers by name, prompts in the order of `said`.

        Of one labeler's rankings of the same answers, shown in another order perhaps, the last counts: nobody has two opinions.
        """
        found: list[Ranking] = []
        for name in sorted(self.said):
            last: dict[tuple[str, frozenset[str]], Ranking] = {}
            for each in self.said[name].values():
                if each.ranks is not None:
                    same = (each.prompt, frozenset(each.completions))
                    last.pop(same, None)
                    last[same] = Ranking(each.prompt, each.completions, each.ranks, name, each.ranked_by)
            found += last.values()
        return found

    @property
    def skipped(self) -> int:
        """How many prompts were skipped, all labelers together."""
        return sum(each.ranks is None for own in self.said.values() for each in own.values())


class _Refused(Exception):
    """One of `REASONS`, and what exactly."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


# --- files of labels -------------------------------------------------------------------------------------------------


def check_name(name: str) -> str:
    """A labeler's name as it is used everywhere, in lower case: `Ada` and `ada` are one file on some systems.

    Raises:
        UserError: it could not be the name of a file, or would be one elsewhere.
    """
    lower = name.strip().lower()
    if not NAME.fullmatch(lower):
        raise UserError(
            f"'{name}' is no name of a labeler",
            expected="up to 64 of the letters a-z, digits, hyphen and underscore, a letter or digit first",
            exit_code=2,
        )
    return lower


def path_of(folder: Path, labeler: str) -> Path:
    """Where a labeler's labels are."""
    return folder / f"{check_name(labeler)}.jsonl"


def to_rank(path: Path) -> list[Completions]:
    """The prompts of a file of `Completions` that there is something to rank of: with two different answers or more.

    Raises:
        UserError: there is no such file, it cannot be read, or there is nothing to rank in it.
    """
    try:
        rows = records.read(path, Completions)
    except FileNotFoundError:
        raise UserError("there are no answers to rank", where=str(path), fix="dvc repro feedback") from None
    found = [each for each in rows if len(set(each.completions)) > 1]
    if not found:
        raise UserError(
            f"nothing to rank: none of {len(rows)} prompts has two different answers",
            where=str(path),
            fix="sample more answers to each prompt, or at a higher temperature",
        )
    return found


def read(folder: Path, known: Sequence[Completions] | None = None) -> Labels:
    """Everybody's labels.

    Args:
        folder: the files; there may be none.
        known: the prompts and answers that are to be ranked. A label of others that was made on the page is refused: those
            answers have been replaced. None: of any. An imported one is about the answers that it brings with it.

    Raises:
        UserError: a line is broken, or a file's name is none of a labeler.
    """
    ids = None if known is None else {each.id for each in known}
    said: dict[str, dict[str, Label]] = {}
    refused: list[Quarantined] = []
    for path in sorted(folder.glob("*.jsonl")):
        if check_name(path.stem) != path.stem:
            raise UserError(f"'{path.stem}' is no name of a labeler", where=str(path), fix="write it in lower case")
        said[path.stem], own = _read_file(path, ids)
        refused += own
    return Labels(said, refused)


def read_own(folder: Path, labeler: str, known: Sequence[Completions] | None = None) -> Labels:
    """One person's labels; see `read`."""
    path = path_of(folder, labeler)
    own, refused = _read_file(path, None if known is None else {each.id for each in known})
    return Labels({path.stem: own}, refused)


def append(folder: Path, labels: Sequence[Label]) -> None:
    """Add labels to their labelers' files; they are on disk when this returns.

    Raises:
        OSError: they could not be written; what was written of them before does no harm.
    """
    by_file: dict[Path, list[Label]] = {}
    for each in labels:
        by_file.setdefault(path_of(folder, each.labeler), []).append(each)
    folder.mkdir(parents=True, exist_ok=True)
    for path, own in by_file.items():
        with path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # two pages, or a page and an import
            end = _mend(file)
            file.write(end + "".join(f"{line_of(each)}\n" for each in own).encode())
            file.flush()
            os.fsync(file.fileno())
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)  # a new file's name
    finally:
        os.close(directory)


def line_of(label: Label) -> str:
    """A label as a line of its file."""
    fields: dict[str, Any] = {"id": label.id, "prompt": label.prompt, "completions": label.completions}
    if label.ranks is None:
        fields["skipped"] = True
    else:
        fields["ranks"] = [int(each) if each is not None and each == int(each) else each for each in label.ranks]
    fields |= {"labeler": label.labeler, "ranked_by": label.ranked_by, "criterion": label.criterion}
    if label.source is not None:
        fields["source"] = label.source
    return json.dumps(fields, ensure_ascii=False, allow_nan=False)


def _mend(file: Any) -> bytes:
    """Cut off a line that was cut short; what to write before the next one: a line break where somebody's editor left none."""
    file.seek(0)
    content = file.read()
    last = content[content.rfind(b"\n") + 1 :]
    if not last:
        return b""
    try:
        json.loads(last)
    except ValueError:
        file.truncate(len(content) - len(last))
        return b""
    return b"\n"


def _read_file(path: Path, ids: set[str] | None) -> tuple[dict[str, Label], list[Quarantined]]:
    """Of each id the last label, in the order of the lines; and the lines that were refused."""
    found: dict[str, Label] = {}
    refused: list[Quarantined] = []
    content = path.read_bytes() if path.exists() else b""
    lines = content.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        fields: Any = {}
        try:
            try:
                fields = json.loads(line)
            except ValueError as error:
                if number < len(lines):
                    raise UserError(
                        f"broken line: {error}", where=f"{path}:{number}", fix=f"mend {path.name}"
                    ) from None
                raise _Refused("cut_short", "it was not saved yet") from None
            if not isinstance(fields, dict):
                raise UserError("broken line: not a JSON object", where=f"{path}:{number}", fix=f"mend {path.name}")
            label = _label(fields, path.stem)
            if ids is not None and label.source is None and label.id not in ids:
                raise _Refused("unknown_prompt", f"{label.id} is none of the {len(ids)} to be ranked")
            # Answers in another order have another id, and of rankings of the same answers the last counts: the lines' order is kept.
            found.pop(label.id, None)
            found[label.id] = label
        except _Refused as refusal:
            refused.append(Quarantined(path.name, number, refusal.reason, refusal.detail, fields))
    return found, refused


def _label(fields: Mapping[str, Any], labeler: str) -> Label:
    prompt, completions = _text(fields, "prompt"), _texts(fields, "completions")
    if _text(fields, "labeler") != labeler:
        raise _Refused("other_labeler", f"it says {fields['labeler']}")
    if _text(fields, "id") != row_id(prompt, *completions):
        raise _Refused("changed", f"{fields['id']} is not {row_id(prompt, *completions)}")
    ranks = None if fields.get("skipped") is True else _ranks(fields.get("ranks"), completions)
    criterion = _text(fields, "criterion") if "criterion" in fields else ""
    source = _text(fields, "source") if "source" in fields else None
    return Label(fields["id"], prompt, completions, ranks, labeler, criterion, source, _ranker(fields))


def _ranker(fields: Mapping[str, Any]) -> Ranker:
    for each in RANKERS:
        if fields.get("ranked_by", "person") == each:
            return each
    raise _Refused("bad_ranker", f"ranked_by is {fields['ranked_by']!r}")


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if value is None:
        raise _Refused("missing_field", name)
    if not isinstance(value, str):
        raise _Refused("wrong_type", f"{name} is {type(value).__name__}, not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _Refused("not_utf8", f"half of a surrogate pair in {name}") from None
    return value


def _texts(fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = fields.get(name)
    if value is None:
        raise _Refused("missing_field", name)
    if not isinstance(value, list):
        raise _Refused("wrong_type", f"{name} is {type(value).__name__}, not a list")
    return tuple(_text({name: each}, name) for each in value)


def _ranks(value: object, completions: Sequence[str]) -> tuple[float | None, ...]:
    if value is None:
        raise _Refused("missing_field", "ranks")
    if not isinstance(value, list):
        raise _Refused("wrong_type", f"ranks is {type(value).__name__}, not a list")
    if len(value) != len(completions):
        raise _Refused("bad_ranks", f"{len(value)} ranks of {len(completions)} answers")
    ranks = tuple(None if each is None else _number(each, "bad_ranks") for each in value)
    if len(set(zip(completions, ranks, strict=True))) > len(set(completions)):
        raise _Refused("bad_ranks", "two ranks of one text")
    return ranks


def _number(value: object, reason: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _Refused(reason, f"{value!r} is no number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise _Refused(reason, f"{value!r} is no number") from None
    if not math.isfinite(number):
        raise _Refused(reason, f"{value!r} is no number that could be compared")
    return number


# --- other people's files --------------------------------------------------------------------------------------------


Kind = Literal["rankings", "ranks", "ratings"]

SHAPES: dict[Kind, tuple[str, ...]] = {
    "rankings": ("prompt", "completions", "ranks"),
    "ranks": ("prompt", "completion", "rank"),
    "ratings": ("prompt", "response", "score"),
}
"""What a file of labels may hold: all answers to a prompt in a row (JSONL only), or a row for each answer."""


class Imported(NamedTuple):
    """What a file of other people's says."""

    kind: Kind
    rows: int
    labels: list[Label]
    refused: list[Quarantined]


class _Row(NamedTuple):
    line: int
    fields: dict[str, Any]


def read_foreign(
    path: Path, labeler: str, criterion: str, *, lower_is_better: bool = False, ranked_by: Ranker = "person"
) -> Imported:
    """Rankings or ratings from JSONL or CSV.

    Args:
        path: .jsonl, or .csv with a header, of one of `SHAPES`. The rows of a prompt may stand anywhere.
        labeler: whose they are; a row that names somebody else is refused.
        criterion: what they were made by, where a row does not say.
        lower_is_better: a low score is a good one. Ranks are always 1 for the best.
        ranked_by: what the labeler is; a row that says otherwise is refused.

    Returns:
        A label for each prompt. A score is how far it is from the prompt's best one, plus 1: pairs can still be asked to be
        a gap apart.

    Raises:
        UserError: there is no such file, or it is of no shape.
    """
    labeler = check_name(labeler)
    try:
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise UserError((error.strerror or str(error)).lower(), where=str(path), exit_code=2) from None
    readers = {".jsonl": _jsonl_rows, ".ndjson": _jsonl_rows, ".csv": _csv_rows}
    if path.suffix.lower() not in readers:
        raise UserError("neither JSONL nor CSV", where=str(path), expected=", ".join(readers), exit_code=2)
    rows, refused = readers[path.suffix.lower()](content, path.name)
    kind = next(
        (kind for kind, names in SHAPES.items() if any(set(names) <= row.fields.keys() for row in rows)),
        None,
    )
    if kind is None:
        raise UserError(
            "no row has the fields of a ranking or a rating",
            where=str(path),
            expected="; or ".join(", ".join(names) for names in SHAPES.values()),
        )
    labels: dict[str, Label] = {}
    count = len(rows) + len(refused)
    if kind == "rankings":
        ranked = _whole(rows, labeler, ranked_by, path.name, refused)
    else:
        ranked = _gathered(rows, kind, labeler, ranked_by, lower_is_better, path.name, refused)
    for line, fields, prompt, completions, ranks in ranked:
        try:
            if len(set(completions)) < 2:
                raise _Refused("nothing_to_compare", f"{len(set(completions))} answer to this prompt")
            said = _text(fields, "criterion") if fields.get("criterion") else criterion
            place = f"{path.name}:{line}"
            own = Label(row_id(prompt, *completions), prompt, completions, ranks, labeler, said, place, ranked_by)
            if own.id in labels:
                raise _Refused("duplicate", f"as in line {str(labels[own.id].source).rpartition(':')[2]}")
            labels[own.id] = own
        except _Refused as refusal:
            refused.append(Quarantined(path.name, line, refusal.reason, refusal.detail, fields))
    return Imported(kind, count, list(labels.values()), sorted(refused, key=lambda each: each.line))


_Ranked = tuple[int, dict[str, Any], str, tuple[str, ...], tuple[float | None, ...]]


def _whole(
    rows: Sequence[_Row], labeler: str, ranked_by: Ranker, place: str, refused: list[Quarantined]
) -> Iterator[_Ranked]:
    """Rows that hold all answers to a prompt."""
    for line, fields in rows:
        try:
            prompt = _prompt(fields, labeler, ranked_by)
            completions = _texts(fields, "completions")
            yield line, fields, prompt, completions, _ranks(fields.get("ranks"), completions)
        except _Refused as refusal:
            refused.append(Quarantined(place, line, refusal.reason, refusal.detail, fields))


def _gathered(
    rows: Sequence[_Row],
    kind: Kind,
    labeler: str,
    ranked_by: Ranker,
    lower_is_better: bool,
    place: str,
    refused: list[Quarantined],
) -> Iterator[_Ranked]:
    """Rows of one answer each, gathered by prompt; a prompt stands at its first row."""
    _, answer, value = SHAPES[kind]
    gathered: dict[str, dict[str, tuple[int, float | None]]] = {}
    first: dict[str, _Row] = {}
    for line, fields in rows:
        try:
            prompt, text = _prompt(fields, labeler, ranked_by), _text(fields, answer)
            given = fields.get(value)
            if kind == "ranks":
                # Nonsense is said by an empty cell or null; a column that is not there says nothing.
                if value not in fields:
                    raise _Refused("missing_field", value)
                number = None if given is None or given == "" else _number(given, "bad_ranks")
            else:
                if given is None or given == "":
                    raise _Refused("missing_field", value)
                number = _number(given, "bad_score") * (1 if lower_is_better else -1)
            own = gathered.setdefault(prompt, {})
            if text in own:
                raise _Refused("duplicate", f"as in line {own[text][0]}")
            own[text] = (line, number)
            first.setdefault(prompt, _Row(line, fields))
        except _Refused as refusal:
            refused.append(Quarantined(place, line, refusal.reason, refusal.detail, fields))
    for prompt, own in gathered.items():
        numbers = [number for _, number in own.values()]
        if kind == "ratings":
            best = min(number for number in numbers if number is not None)
            numbers = [None if number is None else round(1.0 + number - best, 9) for number in numbers]
        yield first[prompt].line, first[prompt].fields, prompt, tuple(own), tuple(numbers)


def _prompt(fields: Mapping[str, Any], labeler: str, ranked_by: Ranker) -> str:
    prompt = _text(fields, "prompt")
    if not prompt.strip():
        raise _Refused("empty", "prompt")
    if fields.get("labeler") and str(fields["labeler"]).strip().lower() != labeler:
        raise _Refused("other_labeler", f"it says {fields['labeler']}")
    if fields.get("ranked_by") and _ranker(fields) != ranked_by:
        raise _Refused("other_labeler", f"it says that a {fields['ranked_by']} ranked")
    return prompt


def _jsonl_rows(content: bytes, place: str) -> tuple[list[_Row], list[Quarantined]]:
    rows: list[_Row] = []
    refused: list[Quarantined] = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line.decode())
        except UnicodeDecodeError as error:
            refused.append(Quarantined(place, number, "not_utf8", f"byte {error.start + 1} of the line", {}))
            continue
        except json.JSONDecodeError as error:
            refused.append(Quarantined(place, number, "not_json", f"{error.msg} at column {error.colno}", {}))
            continue
        if isinstance(fields, dict):
            rows.append(_Row(number, fields))
        else:
            refused.append(Quarantined(place, number, "not_json", "not an object", {}))
    return rows, refused


def _csv_rows(content: bytes, place: str) -> tuple[list[_Row], list[Quarantined]]:
    # Bytes that are not UTF-8 become lone surrogates: the file can be cut into rows, and `_text` finds the row with them.
    text = content.decode("utf-8", errors="surrogateescape")
    csv.field_size_limit(1 << 24)
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey=None, strict=True)
    rows: list[_Row] = []
    refused: list[Quarantined] = []
    while True:
        # A quoted field may hold line breaks: a row is known by the line it begins in.
        number = reader.line_num + 1 if reader.line_num else 2
        try:
            fields: dict[Any, Any] = next(reader)
        except StopIteration:
            return rows, refused
        except csv.Error as error:
            refused.append(Quarantined(place, number, "not_csv", str(error), {}))
            continue
        if None in fields or None in fields.values():
            found = "more" if None in fields else "fewer"
            refused.append(Quarantined(place, number, "not_csv", f"{found} fields than the header has", {}))
        else:
            rows.append(_Row(number, fields))


# --- the command line ------------------------------------------------------------------------------------------------


def _import(path: Path, folder: Path, labeler: str, criterion: str, lower_is_better: bool, ranked_by: Ranker) -> int:
    found = read_foreign(path, labeler, criterion, lower_is_better=lower_is_better, ranked_by=ranked_by)
    target = path_of(folder, labeler)
    before = read_own(folder, labeler).said[target.stem]
    # A later line replaces an earlier one of the same labeler: a model's must not replace what a person said.
    if others := {each.ranked_by for each in before.values()} - {ranked_by}:
        raise UserError(
            f"'{target.stem}' is the name of a {others.pop()}, whose rankings are there already",
            where=str(target),
            expected=f"a {ranked_by}",
            fix="import under another --labeler",
            exit_code=2,
        )
    new = [each for each in found.labels if each.id not in before or before[each.id].ranks != each.ranks]
    if new:
        append(folder, new)
    for each in found.refused:
        print(f"{each.source}:{each.line}: {each.detail}: {REASONS[each.reason]}")
    replaced = sum(each.id in before for each in new)
    print(
        f"{found.rows} rows of {path.name} ({found.kind}): {len(found.labels)} prompts ranked, {len(found.refused)} rows refused\n"
        f"{target}: {len(new) - replaced} added, {replaced} replaced, {len(found.labels) - len(new)} were there already"
    )
    return 0 if found.labels else 1


def _export(folder: Path, to: Path | None, to_pairs: Path | None, gap: float, cap: int, seed: int) -> int:
    from tunemill import agreement, preferences

    if to is None and to_pairs is None:
        raise UserError("nothing to write", expected="--rankings FILE, --pairs FILE, or both", exit_code=2)
    found = read(folder)
    for each in found.refused:
        print(f"{folder / each.source}:{each.line}: {each.detail}: {REASONS[each.reason]}")
    rankings = found.rankings
    if not rankings:
        raise UserError("no rankings", where=str(folder), fix="make label")
    people, models = (len({each.labeler for each in rankings if each.ranked_by == who}) for who in RANKERS)
    by = plural(people, "labeler") + (f" and {plural(models, 'model')}" if models else "")
    print(f"{plural(len(rankings), 'ranking')} by {by}; {found.skipped} skipped, {len(found.refused)} lines left out")
    if to is not None:
        records.write_objects(
            to,
            (
                json.loads(line_of(each))
                for name in sorted(found.said)
                for each in found.said[name].values()
                if each.ranks is not None
            ),
        )
        print(f"{to}: {len(rankings)} rankings")
    if to_pairs is not None:
        pairs, left_out = preferences.pairs(rankings, gap=gap, cap=cap, seed=seed)
        records.write_objects(
            to_pairs, ({"prompt": each.prompt, "chosen": each.chosen, "rejected": each.rejected} for each in pairs)
        )
        told = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
        print(f"{to_pairs}: {len(pairs)} pairs; left out: {told or 'none'}")
    print(agreement.told(agreement.among(rankings)))
    return 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tunemill.labels", description="What people said of answers.")
    commands: Any = parser.add_subparsers(dest="command", required=True)
    importing = commands.add_parser("import", help="take rankings or ratings out of a JSONL or CSV file")
    importing.add_argument("file", type=Path, help="; or ".join(", ".join(names) for names in SHAPES.values()))
    importing.add_argument("--labeler", required=True, metavar="NAME", help="whose they are")
    importing.add_argument("--ranked-by", default="person", choices=RANKERS, help="what NAME is (person)")
    importing.add_argument("--criterion", default=CRITERION, metavar="TEXT", help="what they were made by")
    importing.add_argument("--lower-is-better", action="store_true", help="of ratings: a low score is a good one")
    exporting = commands.add_parser("export", help="write everybody's rankings, and pairs in TRL's format")
    exporting.add_argument("--rankings", type=Path, metavar="FILE", help="JSON Lines to write all rankings to")
    exporting.add_argument("--pairs", type=Path, metavar="FILE", help="JSON Lines of prompt, chosen, rejected")
    exporting.add_argument("--gap", type=float, default=0.0, help="ranks at most this far apart are a tie (0)")
    exporting.add_argument("--cap", type=int, default=10, help="most pairs of one prompt (10)")
    exporting.add_argument("--seed", type=int, default=42, help="of the choice among more (42)")
    for each in (importing, exporting):
        each.add_argument("--labels", type=Path, default=Path("labels"), metavar="FOLDER", help="the files (labels)")
    told = parser.parse_args()
    try:
        if told.command == "import":
            return _import(told.file, told.labels, told.labeler, told.criterion, told.lower_is_better, told.ranked_by)
        return _export(told.labels, told.rankings, told.pairs, told.gap, told.cap, told.seed)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
