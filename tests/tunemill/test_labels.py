"""Labels come back as they were said, whatever happened to their file; and other people's files become labels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tunemill import labelling, labels
from tunemill.errors import UserError
from tunemill.labels import Label
from tunemill.preferences import Ranking
from tunemill.records import Completions, Quarantined, row_id, write


def item(prompt: str, *texts: str) -> Completions:
    return Completions(row_id(prompt, *texts), prompt, texts, "set")


FIRST, SECOND = item("first?", "a", "b", "c"), item("second?\u2028", "ä", "", "ä")


def label(one: Completions, *ranks: float | None, by: str = "ada") -> Label:
    return Label(one.id, one.prompt, one.completions, ranks or None, by, "which?")


def line(one: Completions, **changed: Any) -> str:
    fields = {"id": one.id, "prompt": one.prompt, "completions": one.completions, "ranks": [1, 2, 3], "labeler": "ada"}
    return json.dumps({name: value for name, value in (fields | changed).items() if value is not ...}) + "\n"


def told(found: list[Quarantined]) -> list[tuple[int, str, str]]:
    assert {each.reason for each in found} <= labels.REASONS.keys()
    return [(each.line, each.reason, each.detail) for each in found]


# --- files of labels -------------------------------------------------------------------------------------------------


def test_what_was_said_comes_back_and_a_later_line_replaces_an_earlier_one(tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    assert labels.read(folder) == ({}, [])
    said = [label(FIRST, 1, 2.5, None), label(SECOND), label(FIRST, 2, 1, 1), label(FIRST, 1, 1, 1, by="grace")]
    for each in said:
        labels.append(folder, [each])
    found = labels.read(folder, [FIRST, SECOND])
    assert found.said == {"ada": {FIRST.id: said[2], SECOND.id: said[1]}, "grace": {FIRST.id: said[3]}}
    assert found.rankings == [
        Ranking("first?", ("a", "b", "c"), (2, 1, 1), "ada"),
        Ranking("first?", ("a", "b", "c"), (1, 1, 1), "grace"),
    ]
    assert (found.skipped, found.refused) == (1, [])
    rows = [json.loads(each) for each in (folder / "ada.jsonl").read_text().split("\n")[:-1]]
    assert rows[0] == {
        "id": FIRST.id,
        "prompt": "first?",
        "completions": ["a", "b", "c"],
        "ranks": [1, 2.5, None],
        "labeler": "ada",
        "ranked_by": "person",
        "criterion": "which?",
    }
    assert rows[1]["skipped"] is True and "ranks" not in rows[1]


def test_nobody_has_two_opinions_of_the_same_answers(tmp_path: Path) -> None:
    turned = item("first?", "c", "b", "a")  # another id, the same answers
    labels.append(tmp_path, [label(FIRST, 1, 2, 3), label(FIRST, 1, 2, 3, by="grace"), label(turned, 1, 2, 3)])
    assert labels.read(tmp_path).rankings == [
        Ranking("first?", ("c", "b", "a"), (1, 2, 3), "ada"),
        Ranking("first?", ("a", "b", "c"), (1, 2, 3), "grace"),
    ]
    labels.append(tmp_path, [label(turned)])  # passed over, this time
    assert labels.read(tmp_path).rankings[0] == Ranking("first?", ("a", "b", "c"), (1, 2, 3), "ada")


def test_a_model_is_nobody_on_the_labelling_page(tmp_path: Path) -> None:
    labels.append(tmp_path, [label(FIRST, 1, 2, 3), label(FIRST, 1, 2, 3, by="judge")._replace(ranked_by="model")])
    desk = labelling.Desk([FIRST], tmp_path, "which?")
    assert list(desk.people()) == ["ada"]
    assert labelling.Page(desk, "ada").said
    with pytest.raises(UserError, match="'judge' is the name of a model whose rankings were imported"):
        labelling.Page(desk, "judge")


def test_what_was_said_last_comes_last_and_who_ranked_is_a_person_unless_it_is_said(tmp_path: Path) -> None:
    turned = item("third?", "c", "b", "a")
    said = [label(FIRST, 1, 2, 3), label(turned, 1, 2, 3)._replace(ranked_by="model"), label(FIRST, 2, 1, 3)]
    labels.append(tmp_path, said)
    assert [*labels.read(tmp_path).said["ada"].values()] == said[1:]
    assert [each.ranked_by for each in labels.read(tmp_path).rankings] == ["model", "person"]
    (tmp_path / "ada.jsonl").write_text(line(FIRST))  # as it was written before there was such a field
    assert labels.read(tmp_path).said["ada"][FIRST.id].ranked_by == "person"


def test_every_cut_gives_the_lines_before_it_and_the_next_line_is_whole(tmp_path: Path) -> None:
    said = [label(FIRST, 1, 2, 3), label(SECOND, 1, 2, 1)]
    labels.append(tmp_path, said)
    path = tmp_path / "ada.jsonl"
    content = path.read_bytes()
    ends = [at + 1 for at, byte in enumerate(content) if byte == ord("\n")]
    for size in range(len(content)):
        path.write_bytes(content[:size])
        # A line that lacks nothing but its end was written by an editor that puts none there.
        whole = [each for each, end in zip(said, ends, strict=True) if size >= end - 1]
        torn = size not in (0, ends[0] - 1, ends[0], ends[1] - 1)
        before = labels.read(tmp_path)
        assert [*before.said["ada"].values()] == whole
        assert [each.reason for each in before.refused] == ["cut_short"] * torn
        assert path.read_bytes() == content[:size]  # reading changes nothing
        labels.append(tmp_path, [label(FIRST, 3, 2, 1)])
        after = labels.read(tmp_path)
        assert after.refused == [] and after.said["ada"][FIRST.id].ranks == (3, 2, 1)
        assert len(after.said["ada"]) == len({FIRST.id, *(each.id for each in whole)})


@pytest.mark.parametrize("broken", ['{"id": "0123', "[1]", "\x00\x00", "null"])
def test_a_broken_line_is_named_wherever_somebody_broke_it(tmp_path: Path, broken: str) -> None:
    for content in (f"{line(FIRST)}{broken}\n{line(SECOND)}", f"{line(FIRST)}{broken}\n"):
        (tmp_path / "ada.jsonl").write_text(content)
        with pytest.raises(UserError, match=r"ada\.jsonl:2: broken line"):
            labels.read(tmp_path)


@pytest.mark.parametrize(
    ("changed", "reason", "detail"),
    [
        ({"ranks": [1, 2]}, "bad_ranks", "2 ranks of 3 answers"),
        ({"ranks": [1, 2, "best"]}, "bad_ranks", "'best' is no number"),
        ({"ranks": [1, 2, True]}, "bad_ranks", "True is no number"),
        ({"ranks": [1, 2, float("nan")]}, "bad_ranks", "nan is no number that could be compared"),
        ({"ranks": "123"}, "wrong_type", "ranks is str, not a list"),
        ({"ranks": None}, "missing_field", "ranks"),
        ({"ranks": ...}, "missing_field", "ranks"),
        ({"prompt": 7}, "wrong_type", "prompt is int, not text"),
        (
            {"completions": ["a", "b", "another"]},
            "changed",
            f"{FIRST.id} is not {row_id('first?', 'a', 'b', 'another')}",
        ),
        ({"completions": "abc"}, "wrong_type", "completions is str, not a list"),
        ({"completions": ["a", "b", "\ud800"]}, "not_utf8", "half of a surrogate pair in completions"),
        ({"labeler": "grace"}, "other_labeler", "it says grace"),
        ({"ranked_by": "robot"}, "bad_ranker", "ranked_by is 'robot'"),
        ({"ranked_by": None}, "bad_ranker", "ranked_by is None"),
        ({"id": ...}, "missing_field", "id"),
    ],
)
def test_a_line_that_cannot_be_used_is_counted_and_the_earlier_one_holds(
    tmp_path: Path, changed: dict[str, Any], reason: str, detail: str
) -> None:
    content = line(FIRST) + line(FIRST, **changed)
    (tmp_path / "ada.jsonl").write_text(content)
    found = labels.read(tmp_path, [FIRST])
    assert found.rankings == [Ranking("first?", ("a", "b", "c"), (1, 2, 3), "ada")]
    assert told(found.refused) == [(2, reason, detail)]
    labels.append(tmp_path, [label(FIRST, 3, 2, 1)])
    assert (tmp_path / "ada.jsonl").read_text().startswith(content)  # it stays where it is


def test_prompts_that_are_not_to_be_ranked_any_more_are_counted_but_imported_ones_count(tmp_path: Path) -> None:
    gone = item("gone?", "a", "b")
    labels.append(tmp_path, [label(gone, 1, 2), label(FIRST, 1, 2, 3), label(gone, 2, 1)._replace(source="f.csv:2")])
    found = labels.read(tmp_path, [FIRST])
    assert told(found.refused) == [(1, "unknown_prompt", f"{gone.id} is none of the 1 to be ranked")]
    assert [each.prompt for each in found.rankings] == ["first?", "gone?"]
    assert len(labels.read(tmp_path).rankings) == 2 and labels.read(tmp_path).refused == []
    assert labels.read_own(tmp_path, "ada", [FIRST]) == found


def test_one_text_twice_has_one_rank(tmp_path: Path) -> None:
    (tmp_path / "ada.jsonl").write_text(line(SECOND, ranks=[1, 2, 1]) + line(SECOND, ranks=[1, 2, 3]))
    found = labels.read(tmp_path)
    assert told(found.refused) == [(2, "bad_ranks", "two ranks of one text")]
    assert found.said["ada"][SECOND.id].ranks == (1, 2, 1)


@pytest.mark.parametrize(
    "name", ["", " ", "../ada", "a/b", "a.b", ".", "-a", "_a", "ädä", "a b", "a\n", "a\0", "a" * 65]
)
def test_a_name_that_is_none_names_no_file(tmp_path: Path, name: str) -> None:
    if name == "a\n":  # what surrounds a name is taken off
        assert labels.check_name(name) == "a"
        return
    with pytest.raises(UserError, match="is no name of a labeler"):
        labels.append(tmp_path / "labels", [label(FIRST, 1, 2, 3, by=name)])
    assert not (tmp_path / "labels").exists()


def test_names_are_told_apart_on_every_system(tmp_path: Path) -> None:
    assert labels.check_name(" Ada_L-1 ") == "ada_l-1"
    (tmp_path / "Ada.jsonl").write_text(line(FIRST))
    with pytest.raises(UserError, match="write it in lower case"):
        labels.read(tmp_path)


def test_what_two_write_at_the_same_time_is_all_there(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tunemill import labels; from tunemill.records import row_id\n"
        "for n in range(60):\n"
        "    p = f'{sys.argv[1]}{n}' + 'x' * 9000\n"
        "    labels.append(Path('labels'), [labels.Label(row_id(p, 'a'), p, ('a',), (1.0,), 'ada', '')])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    both = [
        subprocess.Popen([sys.executable, "-c", code, name], cwd=tmp_path, env=environment) for name in ("one", "two")
    ]
    assert [each.wait(timeout=120) for each in both] == [0, 0]
    found = labels.read(tmp_path / "labels")
    assert len(found.rankings) == 120 and found.refused == []


def test_what_there_is_to_rank(tmp_path: Path) -> None:
    path = tmp_path / "completions.jsonl"
    with pytest.raises(UserError, match="no answers to rank"):
        labels.to_rank(path)
    write(path, [item("p", "", ""), item("q", "same", "same")])
    with pytest.raises(UserError, match="nothing to rank: none of 2 prompts has two different answers"):
        labels.to_rank(path)
    write(path, [item("p", "", ""), FIRST, SECOND])
    assert labels.to_rank(path) == [FIRST, SECOND]


# --- other people's files --------------------------------------------------------------------------------------------


def foreign(tmp_path: Path, name: str, content: str | bytes, **options: Any) -> labels.Imported:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return labels.read_foreign(path, "ada", "which?", **options)


def ranks(found: labels.Imported) -> list[tuple[str, tuple[str, ...], tuple[float | None, ...] | None, str | None]]:
    return [(each.prompt, each.completions, each.ranks, each.source) for each in found.labels]


def test_rankings_of_jsonl(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [2, 1, None], "criterion": "own"},
        {"prompt": "p", "completions": ["a", "b"], "ranks": [1]},
        {"prompt": "p", "completions": ["a", "b"], "ranks": [1, float("inf")]},
        {"prompt": [{"role": "user", "content": "p"}], "completions": ["a", "b"], "ranks": [1, 2]},
        {"prompt": " ", "completions": ["a", "b"], "ranks": [1, 2]},
        {"prompt": "q", "completions": ["a", "a"], "ranks": [1, 1]},
        {"prompt": "q", "completions": ["a", "b"], "ranks": [1, 2], "labeler": "Ada"},
        {"prompt": "q", "completions": ["a", "b"], "ranks": [2, 1]},
        {"prompt": "r", "completions": ["a", "b"], "ranks": [1, 2], "labeler": "grace"},
        {"prompt": "r", "completions": ["a", "b"]},
        [],
    ]
    content = b"\xef\xbb\xbf" + "".join(json.dumps(each) + "\n" for each in rows).encode() + b'\n{"pro\n"\xff"\n'
    found = foreign(tmp_path, "theirs.jsonl", content)
    assert (found.kind, found.rows) == ("rankings", 13)
    assert ranks(found) == [
        ("p", ("a", "b", "c"), (2, 1, None), "theirs.jsonl:1"),
        ("q", ("a", "b"), (1, 2), "theirs.jsonl:7"),
    ]
    assert [each.criterion for each in found.labels] == ["own", "which?"]
    assert told(found.refused) == [
        (2, "bad_ranks", "1 ranks of 2 answers"),
        (3, "bad_ranks", "inf is no number that could be compared"),
        (4, "wrong_type", "prompt is list, not text"),
        (5, "empty", "prompt"),
        (6, "nothing_to_compare", "1 answer to this prompt"),
        (8, "duplicate", "as in line 7"),
        (9, "other_labeler", "it says grace"),
        (10, "missing_field", "ranks"),
        (11, "not_json", "not an object"),
        (13, "not_json", "Unterminated string starting at at column 2"),
        (14, "not_utf8", "byte 2 of the line"),
    ]


def test_rows_that_say_who_ranked_are_not_taken_for_somebody_elses(tmp_path: Path) -> None:
    rows = "".join(
        f"{prompt},{text},{rank},{who}\n"
        for prompt, who in (("p", "model"), ("q", ""), ("r", "person"), ("s", "me"))
        for rank, text in enumerate("ab", 1)
    )
    content = f"prompt,completion,rank,ranked_by\n{rows}"
    found = foreign(tmp_path, "theirs.csv", content, ranked_by="model")
    assert [(each.prompt, each.ranked_by) for each in found.labels] == [("p", "model"), ("q", "model")]
    assert told(found.refused) == [
        (6, "other_labeler", "it says that a person ranked"),
        (7, "other_labeler", "it says that a person ranked"),
        (8, "bad_ranker", "ranked_by is 'me'"),
        (9, "bad_ranker", "ranked_by is 'me'"),
    ]
    assert [each.prompt for each in foreign(tmp_path, "theirs.csv", content).labels] == ["q", "r"]


def test_ranks_of_csv_gathered_by_prompt_wherever_the_rows_stand(tmp_path: Path) -> None:
    content = (
        "prompt,completion,rank\n"
        'p,"a, of two\nlines",1\n'
        "q,a,2\n"
        "p,b,1\n"
        "q,b,1\n"
        "p,nonsense,\n"
        "p,b,3\n"
        "q,c,first\n"
        "q,d\n"
        "q,d,1,2\n"
        "r,a,1\n"
    )
    found = foreign(tmp_path, "theirs.csv", content)
    assert (found.kind, found.rows) == ("ranks", 10)
    assert ranks(found) == [
        ("p", ("a, of two\nlines", "b", "nonsense"), (1, 1, None), "theirs.csv:2"),
        ("q", ("a", "b"), (2, 1), "theirs.csv:4"),
    ]
    assert told(found.refused) == [
        (8, "duplicate", "as in line 5"),
        (9, "bad_ranks", "'first' is no number"),
        (10, "not_csv", "fewer fields than the header has"),
        (11, "not_csv", "more fields than the header has"),
        (12, "nothing_to_compare", "1 answer to this prompt"),
    ]


@pytest.mark.parametrize(("lower", "expected"), [(False, (1.65, 1.0, 1.25, 1.0)), (True, (1.0, 1.65, 1.4, 1.65))])
def test_scores_become_ranks_as_far_apart_as_they_were(
    tmp_path: Path, lower: bool, expected: tuple[float, ...]
) -> None:
    scores = [0.1, 0.75, 0.5, 0.75]
    rows = [{"prompt": "p", "response": name, "score": score} for name, score in zip("abcd", scores, strict=True)]
    bad = [
        {"prompt": "p", "response": "e", "score": None},
        {"prompt": "p", "response": "f", "score": "high"},
        {"prompt": "p", "response": "a", "score": 0.1},
    ]
    content = "".join(json.dumps(each) + "\n" for each in rows + bad)
    found = foreign(tmp_path, "theirs.jsonl", content, lower_is_better=lower)
    assert ranks(found) == [("p", ("a", "b", "c", "d"), expected, "theirs.jsonl:1")]
    assert told(found.refused) == [
        (5, "missing_field", "score"),
        (6, "bad_score", "'high' is no number"),
        (7, "duplicate", "as in line 1"),
    ]


def test_bytes_that_are_no_text_are_found_in_their_row(tmp_path: Path) -> None:
    found = foreign(tmp_path, "theirs.csv", b"prompt,response,score\np,a,1\np,b\xff,2\np,c,3\n")
    assert ranks(found)[0][1:3] == (("a", "c"), (3.0, 1.0))
    assert [(each.line, each.reason) for each in found.refused] == [(3, "not_utf8")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("theirs.txt", "", "neither JSONL nor CSV"),
        ("theirs.csv", "question,answer\n1,2\n", "no row has the fields of a ranking or a rating"),
        ("theirs.jsonl", "", "no row has the fields"),
    ],
)
def test_a_file_of_no_shape_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        foreign(tmp_path, name, content)


def command(folder: Path, *arguments: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-m", "tunemill.labels", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, (done.stdout + done.stderr).splitlines()


def test_import_and_export_by_command(tmp_path: Path) -> None:
    (tmp_path / "theirs.csv").write_text("prompt,response,score\np,good,3\np,bad,1\np,fair,2.5\nq,one,2\nq,two,x\n")
    assert command(tmp_path, "import", "theirs.csv", "--labeler", "Ada") == (
        0,
        [
            "theirs.csv:5: 1 answer to this prompt: fewer than two different answers to the prompt",
            "theirs.csv:6: 'x' is no number: a score is no number",
            "5 rows of theirs.csv (ratings): 1 prompts ranked, 2 rows refused",
            "labels/ada.jsonl: 1 added, 0 replaced, 0 were there already",
        ],
    )
    assert command(tmp_path, "import", "theirs.csv", "--labeler", "ada")[1][-1] == (
        "labels/ada.jsonl: 0 added, 0 replaced, 1 were there already"
    )
    assert command(tmp_path, "export", "--pairs", "pairs.jsonl") == (
        0,
        [
            "1 ranking by 1 labeler; 0 skipped, 0 lines left out",
            "pairs.jsonl: 3 pairs; left out: none",
            "one labeler only: no agreement can be measured",
        ],
    )
    pairs = [json.loads(each) for each in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert pairs == [
        {"prompt": "p", "chosen": "good", "rejected": "bad"},
        {"prompt": "p", "chosen": "good", "rejected": "fair"},
        {"prompt": "p", "chosen": "fair", "rejected": "bad"},
    ]

    other = item("p", "fair", "good", "bad")  # the same answers in another order
    labels.append(tmp_path / "labels", [label(other, 1, 2, 3, by="grace"), label(FIRST, 1, 2, 3, by="grace")])
    status, lines = command(tmp_path, "export", "--rankings", "all.jsonl", "--pairs", "pairs.jsonl", "--gap", "0.5")
    assert (status, lines) == (
        0,
        [
            "3 rankings by 2 labelers; 0 skipped, 0 lines left out",
            "all.jsonl: 3 rankings",
            "pairs.jsonl: 6 pairs; left out: none",
            "1 prompts were ranked by several people: Kendall's W 0.75 on average, Krippendorff's alpha 0.58 (ordinal); "
            "1 is full agreement",
        ],
    )
    both = labels.read_foreign(tmp_path / "all.jsonl", "grace", "")
    assert len(both.labels) == 2 and told(both.refused) == [(1, "other_labeler", "it says ada")]


def test_a_models_rankings_by_command_are_no_persons(tmp_path: Path) -> None:
    (tmp_path / "judged.csv").write_text("prompt,completion,rank\nfirst?,a,3\nfirst?,b,2\nfirst?,c,1\n")
    labels.append(tmp_path / "labels", [label(FIRST, 1, 2, 3), label(FIRST, 1, 2, 3, by="ai")])
    model = ("import", "judged.csv", "--ranked-by", "model", "--labeler")
    assert command(tmp_path, *model, "AI") == (
        2,
        [
            "error: labels/ai.jsonl: 'ai' is the name of a person, whose rankings are there already",
            "  expected: a model",
            "  fix: import under another --labeler",
        ],
    )
    assert command(tmp_path, *model, "judge")[0] == 0
    (row,) = map(json.loads, (tmp_path / "labels/judge.jsonl").read_text().splitlines())
    assert (row["ranked_by"], row["labeler"], row["criterion"]) == ("model", "judge", labels.CRITERION)
    assert command(tmp_path, "export", "--pairs", "pairs.jsonl") == (
        0,
        [
            "3 rankings by 2 labelers and 1 model; 0 skipped, 0 lines left out",
            "pairs.jsonl: 3 pairs; left out: none",
            "1 prompts were ranked by several people: Kendall's W 1.00 on average, Krippendorff's alpha 1.00 (ordinal); "
            "1 is full agreement",
        ],
    )


def test_mistakes_on_the_command_line(tmp_path: Path) -> None:
    assert command(tmp_path, "export")[0] == 2
    assert command(tmp_path, "export", "--pairs", "p.jsonl") == (1, ["error: labels: no rankings", "  fix: make label"])
    assert command(tmp_path, "import", "none.csv", "--labeler", "ada") == (
        2,
        ["error: none.csv: no such file or directory"],
    )
    (tmp_path / "one.csv").write_text("prompt,completion,rank\np,a,1\n")
    assert command(tmp_path, "import", "one.csv", "--labeler", "../ada")[0] == 2
    assert command(tmp_path, "import", "one.csv", "--labeler", "ada")[0] == 1
    assert not (tmp_path / "labels").exists()
