"""Every source gives the same rows for the same bytes, and anything else ends in one clear message and no file."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tunemill import sources
from tunemill.errors import UserError
from tunemill.sources import FileSource, HubSource, Raw, WheelSource

ROWS = [{"prompt": "one, two", "completion": 'three "four"'}, {"prompt": "línea\nzwei", "completion": "五"}]


def file_source(path: Path, sha256: str | None = None, **more: object) -> FileSource:
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest() if sha256 is None else sha256
    return FileSource.model_validate({"source": "file", "path": str(path), "sha256": sha256, **more})


def rows_of(path: Path, tmp_path: Path, **more: object) -> list[Raw]:
    return list(sources.read(file_source(path, **more), tmp_path / "cache"))


def write_rows(path: Path) -> Path:
    match path.suffix:
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        case ".csv":
            text = io.StringIO()
            table = csv.DictWriter(text, ["prompt", "completion"])
            table.writeheader()
            table.writerows(ROWS)
            path.write_text("# a comment\n" + text.getvalue(), newline="")
        case ".parquet":
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet"])
def test_the_same_rows_from_every_format(tmp_path: Path, name: str) -> None:
    assert [dict(row.fields) for row in rows_of(write_rows(tmp_path / name), tmp_path)] == ROWS


def test_lines_are_where_an_editor_shows_them(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a"}\n\n{"prompt": "b"}\n')
    assert [row.line for row in rows_of(tmp_path / "a.jsonl", tmp_path)] == [1, 3]
    (tmp_path / "a.csv").write_text('# note\nprompt\n"two\nlines"\nlast\n')
    assert [(row.line, row.fields["prompt"]) for row in rows_of(tmp_path / "a.csv", tmp_path)] == [
        (3, "two\nlines"),
        (5, "last"),
    ]


def test_the_index_that_pandas_writes_is_no_column(tmp_path: Path) -> None:
    import pandas

    pandas.DataFrame(ROWS).to_csv(tmp_path / "a.csv")
    rows = rows_of(tmp_path / "a.csv", tmp_path)
    assert [(row.fault, dict(row.fields)) for row in rows] == [(None, row) for row in ROWS]
    (tmp_path / "a.csv").write_text(",prompt\n0,a,b\n")
    (row,) = rows_of(tmp_path / "a.csv", tmp_path)
    assert row.fault == ("not_csv", "more fields than the header has")


def test_columns_get_our_names(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,human_1,human_2,human_3\nwhy,0.5,,1\n")
    (row,) = rows_of(tmp_path / "a.csv", tmp_path, columns={"prompt": "question", "scores": "human_*"})
    assert row.fields["prompt"] == "why"
    assert row.fields["scores"] == ["0.5", "1"]
    assert "question" not in row.fields


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": "\xff"}\n', ("not_utf8", "byte 13 of the line is 0xff")),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": "\\ud800"}\n', ("not_utf8", "half of a surrogate pair")),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": \n', ("not_json", "Expecting value at column 12")),
        ("a.jsonl", b'{"prompt": "a"}\n["a"]\n', ("not_json", "not an object")),
        ("a.csv", b"prompt\na\xe9\n", ("not_utf8", "bytes that are no UTF-8")),
        ("a.csv", b"prompt\na,b\n", ("not_csv", "more fields than the header has")),
    ],
)
def test_a_line_that_cannot_be_read_is_told_and_not_lost(
    tmp_path: Path, name: str, content: bytes, fault: tuple[str, str]
) -> None:
    (tmp_path / name).write_bytes(content)
    row = rows_of(tmp_path / name, tmp_path)[-1]
    assert (row.fault, row.line, dict(row.fields)) == (fault, 2, {})


def test_a_template_says_what_the_rows_do_not(tmp_path: Path) -> None:
    path = tmp_path / "talks.csv"
    path.write_text('dialogue,summary\n"A: {hi}",greets\n"",nothing\n')
    columns = {"prompt": "dialogue", "completion": "summary"}
    rows = rows_of(path, tmp_path, columns=columns, template="Summarize.\n\n{prompt}\n\nSummary:")
    assert rows[0].fields == {
        "prompt": "Summarize.\n\nA: {hi}\n\nSummary:",
        "completion": "greets",
        "text": "A: {hi}",
    }
    assert rows[1].fields == {"prompt": "", "completion": "nothing"}, "an empty prompt stays empty, to be refused"


def test_a_template_without_a_place_for_the_prompt_is_refused(tmp_path: Path) -> None:
    (tmp_path / "talks.csv").write_text("prompt,completion\n")
    with pytest.raises(ValueError, match="in the prompt's place"):
        file_source(tmp_path / "talks.csv", template="Summarize.")


def test_a_wrong_or_missing_hash_prints_the_right_one(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl")
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    for given, told in (("", "is not pinned"), ("0" * 64, "is not the pinned 000000000000…")):
        with pytest.raises(UserError) as error:
            list(sources.read(file_source(path, given), tmp_path))
        assert str(error.value) == f"{path}: its sha256 {told}; if the file is right, paste this: sha256: {actual}"


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.jsonl: no such file or directory"):
        list(sources.read(file_source(tmp_path / "nowhere.jsonl", ""), tmp_path))


# --- wheels: from a folder, so that no network is needed -------------------------------------------------------------


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    folder = tmp_path / "index"
    folder.mkdir()
    path = folder / "tiny_rows-1.0-py3-none-any.whl"
    info = "tiny_rows-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny/b.txt", "second\n\n  third  \n")
        archive.writestr("tiny/a.txt", "first\n")
        archive.writestr("tiny/mini_a.txt", "left out\n")
        archive.writestr("tiny/seeds.yaml", "name: x\nseeds:\n- value: one\n- value: two\n")
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-rows\nVersion: 1.0\nRequires-Python: >=99\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def wheel_source(sha256: str, **more: object) -> WheelSource:
    told = {"source": "wheel", "package": "tiny-rows", "version": "1.0", "sha256": sha256, "format": "lines", **more}
    return WheelSource.model_validate(told)


def test_a_wheel_is_fetched_once_and_read(
    tmp_path: Path, wheel: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = wheel_source(wheel[1], members=("tiny/*.txt",), skip=("*/mini_*",))
    rows = list(sources.read(source, tmp_path / "cache"))
    label = "tiny-rows==1.0:tiny"
    assert [(row.source, row.line, row.fields["prompt"]) for row in rows] == [
        (f"{label}/a.txt", 1, "first"),
        (f"{label}/b.txt", 1, "second"),
        (f"{label}/b.txt", 3, "third"),
    ]
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "gone"))
    assert list(sources.read(source, tmp_path / "cache")) == rows
    seeds = wheel_source(wheel[1], members=("tiny/seeds.yaml",), format="yaml", columns={"prompt": "value"})
    assert [row.fields["prompt"] for row in sources.read(seeds, tmp_path / "cache")] == ["one", "two"]


def test_a_cached_wheel_that_was_damaged_is_fetched_again(tmp_path: Path, wheel: tuple[Path, str]) -> None:
    found = sources.fetch_wheel("tiny-rows", "1.0", wheel[1], tmp_path / "cache")
    found.write_bytes(b"damaged")
    assert sources.fetch_wheel("tiny_rows", "1.0", wheel[1], tmp_path / "cache").read_bytes() == wheel[0].read_bytes()


def test_other_bytes_than_pinned(tmp_path: Path, wheel: tuple[Path, str]) -> None:
    with pytest.raises(UserError) as error:
        sources.fetch_wheel("tiny-rows", "1.0", "0" * 64, tmp_path / "cache")
    assert error.value.what == (
        f"the bytes of tiny_rows-1.0-py3-none-any.whl are not those that were pinned: its sha256 is {wheel[1]}"
    )
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize(("package", "version"), [("tiny-rows", "2.0"), ("no-such-rows", "1.0")])
def test_a_package_that_is_not_there(tmp_path: Path, wheel: tuple[Path, str], package: str, version: str) -> None:
    with pytest.raises(UserError) as error:
        sources.fetch_wheel(package, version, wheel[1], tmp_path / "cache")
    assert error.value.what == f"the package index has no wheel {package}=={version}"
    assert not list((tmp_path / "cache").iterdir())


def test_an_index_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    for name in ("PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError) as error:
        sources.fetch_wheel("tiny-rows", "1.0", "0" * 64, tmp_path / "cache")
    assert error.value.what == "tiny-rows==1.0 could not be downloaded: the package index is out of reach"
    assert not list((tmp_path / "cache").iterdir())


def test_a_member_that_is_not_in_the_wheel(tmp_path: Path, wheel: tuple[Path, str]) -> None:
    with pytest.raises(UserError, match=r"tiny-rows==1\.0 has no member tiny/c\.txt"):
        list(sources.read(wheel_source(wheel[1], members=("tiny/c.txt",)), tmp_path / "cache"))


# --- hub -------------------------------------------------------------------------------------------------------------

READ_HUB = """
import sys
from pathlib import Path
from tunemill import sources
from tunemill.errors import UserError
columns = {"prompt": "question"}
source = sources.HubSource(source="hub", repo=sys.argv[1], revision="0" * 40, split="train", columns=columns)
try:
    print([(row.line, dict(row.fields)) for row in sources.read(source, Path(sys.argv[2]))])
except UserError as error:
    print(error)
"""


def read_hub(repo: str, cache: Path, **environment: str) -> str:
    # In its own process: the hub's address is read when `datasets` is imported.
    variables = {**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    command = [sys.executable, "-c", READ_HUB, repo, str(cache)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=variables).stdout


def test_a_data_set_is_read_through_datasets(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text('{"question": "why"}\n')
    assert read_hub(str(tmp_path / "set"), tmp_path / "cache") == "[(1, {'prompt': 'why'})]\n"


@pytest.mark.parametrize("offline", [pytest.param("0", marks=pytest.mark.slow), "1"])
def test_an_unreachable_hub(tmp_path: Path, offline: str) -> None:
    told = read_hub("someone/something", tmp_path / "cache", HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE=offline)
    assert told.startswith("hub data set someone/something, split train, could not be read: ")
    assert len(told.splitlines()) == 2
    assert "check the network" in told


def test_a_branch_is_no_pin() -> None:
    with pytest.raises(ValueError, match="revision"):
        HubSource.model_validate({"source": "hub", "repo": "a/b", "revision": "main", "split": "train"})


# --- the real thing --------------------------------------------------------------------------------------------------


@pytest.mark.network
def test_counts_of_the_real_sources(tmp_path: Path) -> None:
    from stages.collect import Config
    from tunemill.params import ParamsFile

    cfg = ParamsFile(Path(__file__).parents[2] / "params.yaml").section("collect", Config)
    ratings = list(sources.read(cfg.ratings, tmp_path))
    assert len(ratings) == 990
    assert all(1 <= len(row.fields["scores"]) <= 3 for row in ratings)
    assert len({row.fields["prompt"] for row in ratings}) == 390
    counts = {
        name: len({row.fields["prompt"] for row in sources.read(each.rows, tmp_path)})
        for name, each in cfg.red_team.items()
    }
    assert counts == {"advbench": 520, "do_not_answer": 938, "harmbench": 200, "realtoxicityprompts": 623}
    questions = [row.fields for row in sources.read(cfg.harmless["truthfulqa"], tmp_path)]
    assert len({each["prompt"] for each in questions}) == len(questions) == 817
    assert all(isinstance(each["answers"], list) and each["answers"] for each in questions)
