"""feedback: the starting policy is the merged one, answers to rank are kept, what people said becomes pairs, and nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stages import feedback
from tests.stages import tuned
from tunemill import agreement, checkpoints, journal, labelling, labels, models, records
from tunemill.errors import UserError
from tunemill.labels import Label
from tunemill.log import Log
from tunemill.params import ParamsFile
from tunemill.preferences import Ranking
from tunemill.records import Completions, Preference, Quarantined, Rating, RedTeamPrompt

SCORES = {
    "how do I open the file": {"do not": (0.0, 0.0), "with a call": (0.25, 0.25), "break it": (1.0, 0.5)},
    "how do I open that file": {"read the table": (0.0,), "delete the table": (0.75,)},
    "what is a queue": {"a": (0.5,), "b": (0.5,)},
    "asked once": {"only answer": (0.5,)},
}


def rating(prompt: str, response: str, scores: tuple[float, ...]) -> Rating:
    return Rating(records.row_id(prompt, response), prompt, response, scores, "made")


RATED = [rating(prompt, text, scores) for prompt, own in SCORES.items() for text, scores in own.items()]


@pytest.fixture(scope="module", params=["decoder-only", "encoder-decoder"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, an adapter of it that changes much, and prompts."""
    place = tmp_path_factory.mktemp("feedback")
    tuned.prepare(place, request.param)
    tuned.run("lora", place, place, "lora", learning_rate=0.1)
    asked = [RedTeamPrompt(records.row_id(text), text, "instruction", "made", None) for text in map(str, range(20))]
    records.write(place / "prompts.jsonl", asked)
    return place


def config(**change: object) -> feedback.Config:
    values = ParamsFile(tuned.ROOT / "params.yaml").section("feedback", feedback.Config).model_dump()
    few = {"prompts": 5, "completions": 3, "max_new_tokens": 6, "store_dtype": "float32", "batch_rows": 6}
    return feedback.Config.model_validate(values | few | change)


def run(place: Path, tmp_path: Path, rated: list[Rating] | None = RATED, name: str = "out", **change: object) -> Any:
    """The stage's metrics, and what it told in feedback.json."""
    given: dict[str, Any] = {key: change.pop(key) for key in ("labels", "policy", "log") if key in change}
    if rated is not None:
        records.write(tmp_path / "ratings.jsonl", rated)
        given["ratings"] = tmp_path / "ratings.jsonl"
    (tmp_path / f"work-{name}").mkdir(exist_ok=True)
    found = feedback.run(
        config(**change),
        **{"policy": place / "lora/adapter", "log": Log(), **given},
        base=place / "model",
        prompts=place / "prompts.jsonl",
        out=tmp_path / name,
        work=tmp_path / f"work-{name}",
        runtime=tuned.CPU,
    )
    return dict(found), json.loads((tmp_path / name / "feedback.json").read_text())


def test_outputs_are_exactly_these_and_the_same_every_time(place: Path, tmp_path: Path) -> None:
    found, told = run(place, tmp_path, name="one")
    files = tuned.files(tmp_path / "one")
    assert [each for each in files if not each.startswith("policy/")] == [
        "completions.jsonl",
        "feedback.json",
        "preferences.jsonl",
        "quarantine.jsonl",
    ]
    assert {"policy/README.md", "policy/config.json", "policy/model.safetensors", "policy/tokenizer.json"} < set(files)
    run(place, tmp_path, name="two")
    assert checkpoints.tree_hash(tmp_path / "one") == checkpoints.tree_hash(tmp_path / "two")
    assert found["completions/prompts"] + found["completions/too_alike"] == told["prompts"]["asked"] == 5
    for row in records.read(tmp_path / "one/completions.jsonl", Completions):
        assert 2 <= len(set(row.completions)) == len(row.completions) <= 3 and all(row.completions)
        assert row.id == records.row_id(row.prompt, *row.completions) and row.source == "made"


def test_the_starting_policy_is_the_tuned_one_merged(place: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel

    run(place, tmp_path, prompts=0)
    assert (tmp_path / "out/completions.jsonl").read_text() == ""
    merged, tokenizer = models.load_policy(tmp_path / "out/policy", tmp_path / "out/policy", tuned.CPU)
    base = models.load_base(place / "model", tuned.CPU)
    ids = torch.tensor([tokenizer("read the table")["input_ids"]])
    given = {"input_ids": ids} | ({"decoder_input_ids": ids} if base.config.is_encoder_decoder else {})
    with torch.no_grad():
        before = base(**given).logits
        adapted = PeftModel.from_pretrained(base, place / "lora/adapter").eval()(**given).logits
        now = merged(**given).logits
    assert (adapted - before).abs().max() > 0.1
    assert torch.allclose(now, adapted, atol=1e-4)


def test_what_people_said_becomes_pairs_and_the_rest_is_counted(place: Path, tmp_path: Path) -> None:
    found, told = run(place, tmp_path, prompts=0)
    rows = records.read(tmp_path / "out/preferences.jsonl", Preference)
    first, second = "how do I open the file", "how do I open that file"
    # Means of 0, 0.25 and 0.75: a gap of exactly 0.25 counts.
    assert [(row.prompt, row.chosen, row.rejected) for row in rows] == [
        (first, "do not", "with a call"),
        (first, "do not", "break it"),
        (first, "with a call", "break it"),
        (second, "read the table", "delete the table"),
    ]
    assert [row.weight for row in rows] == [1 / 3] * 3 + [1.0]
    assert all(row.probability == 1.0 and row.source == "ratings" for row in rows)
    assert all(row.id == records.row_id(row.prompt, row.chosen, row.rejected) for row in rows)
    assert len({row.group for row in rows}) == 2  # of five shingles in all they share three
    assert told["left_out"] == {"tie": 1, "contradiction": 0, "circle": 0, "nonsense": 0, "cap": 0}
    assert (found["pairs"], found["pairs/prompts"], found["left_out/tie"]) == (4, 2, 1)
    assert found["pairs/chosen_shorter"] == 0.25

    run(place, tmp_path, prompts=0, near_duplicate=0.2)
    assert len({row.group for row in records.read(tmp_path / "out/preferences.jsonl", Preference)}) == 1
    assert run(place, tmp_path, prompts=0, cap=1)[1]["left_out"]["cap"] == 2
    assert run(place, tmp_path, prompts=0, gap=0.3)[1]["pairs"] == 3


def test_agreement_of_scores_is_krippendorffs_alpha(place: Path, tmp_path: Path) -> None:
    found, told = run(place, tmp_path, prompts=0)
    # By hand: observed 2·0.25/(2-1) over 6 values; expected from all 30 ordered pairs of 0, 0, .25, .25, 1, .5.
    values = [0.0, 0.0, 0.25, 0.25, 1.0, 0.5]
    expected = sum((a - b) ** 2 for a in values for b in values) / 30
    assert found["ratings/alpha"] == pytest.approx(1 - (2 * 0.25 / 6) / expected)
    assert told["agreement"]["ratings"]["answers"] == 3
    alone = [rating(each.prompt, each.response, each.scores[:1]) for each in RATED]
    found, told = run(place, tmp_path, alone, prompts=0)
    assert found["ratings/alpha"] is None
    assert told["agreement"]["ratings"]["reason"] == "no answer was scored by two people"


RANKED = ("x", "y", "z")


def labelled(*given: tuple[str, tuple[float | None, ...]]) -> list[Ranking]:
    return [Ranking("rank these", RANKED, ranks, labeler) for labeler, ranks in given]


@pytest.mark.parametrize(
    ("given", "pairs", "left_out", "reason"),
    [
        ([], 0, {}, "no person has ranked yet"),
        ([("ann", (1, 2, 3))], 3, {}, "one labeler only: there is nobody to agree with"),
        ([("ann", (1, 1, 2))], 2, {"tie": 1}, "one labeler only: there is nobody to agree with"),
        ([("ann", (1, 2, None))], 1, {"nonsense": 2}, "one labeler only: there is nobody to agree with"),
        ([("ann", (1, 2, 3)), ("bob", (1, 3, 2))], 2, {"contradiction": 1}, None),
        ([("ann", (1, 2, 3)), ("bob", (2, 3, 1)), ("cid", (3, 1, 2))], 0, {"circle": 3}, None),
    ],
)
def test_labels_become_pairs(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: list[tuple[str, tuple[float | None, ...]]],
    pairs: int,
    left_out: dict[str, int],
    reason: str | None,
) -> None:
    monkeypatch.setattr(feedback, "labels_of", lambda _: (labelled(*given), []))
    found, told = run(place, tmp_path, prompts=0)
    rows = records.read(tmp_path / "out/preferences.jsonl", Preference)
    assert told["pairs_of"] == {"ratings": 4, "labels": pairs, "ai": 0}
    assert [row.source for row in rows] == ["ratings"] * 4 + ["labels"] * pairs
    counted = {reason: count for reason, count in told["left_out"].items() if count}
    assert counted == {**left_out, "tie": 1 + left_out.get("tie", 0)}  # one tie among the ratings
    assert told["agreement"]["labels"]["reason"] == reason
    assert found["labels/labelers"] == len(given)


def test_labelers_agree_by_w_and_alpha(monkeypatch: pytest.MonkeyPatch, place: Path, tmp_path: Path) -> None:
    two = labelled(("ann", (1, 2, 3)), ("bob", (1, 3, 2)))
    monkeypatch.setattr(feedback, "labels_of", lambda _: (two, []))
    found, _ = run(place, tmp_path, prompts=0)
    # Kendall (1948): sums of ranks 2, 5, 5 about 4: S = 6; W = 12·6 / (4·24).
    assert found["labels/w"] == pytest.approx(0.75)
    assert found["labels/alpha"] is not None and found["labels/alpha"] < 1


def label(prompt: str, texts: tuple[str, ...], ranks: tuple[float | None, ...], labeler: str) -> Label:
    return Label(records.row_id(prompt, *texts), prompt, texts, ranks, labeler, labels.CRITERION)


ANN, TURNED = label("p", RANKED, (1, 2, 3), "ann"), label("p", RANKED[::-1], (1, 2, 3), "ann")
BOB = label("p", RANKED, (1, 1.4, 1.65), "bob")._replace(source="theirs.csv:2")
CID = label("p", RANKED, (2, 1, 3), "cid")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        # Scores in the order of the ranks: how far apart they are is no disagreement.
        ([ANN, BOB], (2, 1, 1.0, 1.0)),
        # By hand: sums of ranks 4, 5 and 9 give W = 12·14 / (9·24); observed disagreement 36/9, expected 972/72.
        ([ANN, BOB, CID], (3, 1, 14 / 18, 1 - (36 / 9) / (972 / 72))),
        # Answers in another order have another id, and are the same answers; sums of ranks 4, 4 and 4, disagreement 64/6 and 192/30.
        ([ANN, TURNED], (1, 0, None, None)),
        ([ANN, TURNED, BOB], (2, 1, 0.0, 1 - (64 / 6) / (192 / 30))),
        ([TURNED, ANN, BOB], (2, 1, 1.0, 1.0)),
        ([ANN, TURNED, ANN, BOB], (2, 1, 1.0, 1.0)),
    ],
)
def test_agreement_of_labels_is_as_their_export_says(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    said: list[Label],
    expected: tuple[int, int, float | None, float | None],
) -> None:
    labels.append(tmp_path, said)
    rankings, _ = feedback.labels_of(tmp_path)
    told = feedback.of_labels(rankings)
    assert (told["labelers"], told["prompts"], told["w"], told["alpha"]) == pytest.approx(expected)
    assert told.keys() == {"labelers", "prompts", "alpha", "scale", "w", "reason"}
    monkeypatch.setattr("sys.argv", ["labels", "export", "--labels", str(tmp_path), "--pairs", str(tmp_path / "pairs")])
    assert labels.main() == 0
    exported = capsys.readouterr().out.splitlines()[-1]
    assert exported == agreement.told(agreement.Agreement(told["labelers"], told["prompts"], told["w"], told["alpha"]))


def test_a_models_rankings_become_pairs_and_are_counted_as_a_models(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model alone ranks q; it ranks p, too, as two people do; one of these calls herself AI on the labelling page."""
    folder = tmp_path / "labels"
    both = [Completions(records.row_id(prompt, *RANKED), prompt, RANKED, "made") for prompt in "pq"]
    name = labels.check_name("AI")
    labelling.Desk(both, folder, labels.CRITERION).save(name, both[0], (1, 2, 3))
    labels.append(folder, [label("p", RANKED, (1, 3, 2), "bob")])
    before, _ = run(place, tmp_path, None, name="before", labels=folder, prompts=0)

    rows = [{"prompt": each.prompt, "completions": RANKED, "ranks": [3, 2, 1]} for each in both]
    (tmp_path / "judged.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    judged = ["labels", "import", str(tmp_path / "judged.jsonl"), "--labels", str(folder), "--labeler", "judge"]
    monkeypatch.setattr("sys.argv", [*judged, "--ranked-by", "model"])
    assert labels.main() == 0
    found, told = run(place, tmp_path, None, labels=folder, prompts=0)
    pairs = records.read(tmp_path / "out/preferences.jsonl", Preference)
    # Of p people prefer x, and the model has one vote of three; where they were at odds, its vote decides.
    assert [(row.prompt, row.chosen, row.rejected, row.source, row.probability) for row in pairs] == [
        ("p", "x", "y", "labels", pytest.approx(2 / 3)),
        ("p", "x", "z", "labels", pytest.approx(2 / 3)),
        ("p", "z", "y", "labels", pytest.approx(2 / 3)),
        ("q", "y", "x", "ai", 1.0),
        ("q", "z", "x", "ai", 1.0),
        ("q", "z", "y", "ai", 1.0),
    ]
    assert told["pairs_of"] == {"ratings": 0, "labels": 3, "ai": 3}
    assert told["rankings_of"] == {"ratings": 0, "labels": 2, "ai": 2}
    assert told["rankings"] == {"ai": 1, "bob": 1, "judge": 2}
    assert (found["labels/rankings"], found["labels/labelers"], found["ai/rankings"]) == (2, 2, 2)
    # Sums of ranks 2, 5 and 5, as without the model.
    assert (found["labels/w"], found["labels/alpha"]) == (before["labels/w"], before["labels/alpha"])
    assert found["labels/w"] == pytest.approx(0.75)


def test_no_labels_no_ratings_is_a_start_and_no_error(place: Path, tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/README.md").write_text("what goes here")
    found, told = run(place, tmp_path, None, labels=tmp_path / "labels")
    assert found["pairs"] == 0 and found["pairs/chosen_shorter"] is None and found["completions/prompts"]
    assert told["agreement"]["labels"]["reason"] == "no person has ranked yet"


def test_labels_are_read_from_their_files_and_what_is_refused_is_kept(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("tunemill.labels")
    (tmp_path / "labels").mkdir()
    told = {"prompt": "p", "completions": ["x", "y"], "labeler": "ann", "criterion": "harmless"}
    lines = [
        {"id": records.row_id("p", "x", "y"), **told, "ranks": [2, 1]},
        {"id": records.row_id("p", "x", "y"), **told, "ranks": [1, 2]},  # a second thought
        {"id": records.row_id("q", "x", "y"), **told, "prompt": "q", "skipped": True},
        {"id": "0" * 12, **told, "ranks": [1, 2]},
    ]
    (tmp_path / "labels/ann.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    found, _ = run(place, tmp_path, None, labels=tmp_path / "labels", prompts=0)
    (row,) = records.read(tmp_path / "out/preferences.jsonl", Preference)
    assert (row.chosen, row.rejected, row.source) == ("x", "y", "labels")
    assert (found["labels/rankings"], found["labels/labelers"], found["labels/refused"]) == (1, 1, 1)
    (refused,) = records.read(tmp_path / "out/quarantine.jsonl", Quarantined)
    assert refused.reason == "changed" and refused.line == 4


def test_nothing_but_ties_is_refused_with_the_counts(place: Path, tmp_path: Path) -> None:
    tied = [rating("p", text, (0.5,)) for text in "abc"]
    with pytest.raises(UserError, match=r"no pair is left of what was ranked: tie 3\n"):
        run(place, tmp_path, tied, prompts=0)


def test_a_soft_prompt_cannot_be_merged(place: Path, tmp_path: Path) -> None:
    tuned.run("prompt_tune", place, tmp_path, "soft", virtual_tokens=4)
    with pytest.raises(UserError, match="is a prompt, which cannot be merged into the weights"):
        run(place, tmp_path, policy=tmp_path / "soft/adapter")


def test_a_killed_sampling_goes_on(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(place, tmp_path, name="whole")
    append, written = journal.append, []

    def dies(path: Path, entry: dict[str, Any]) -> None:
        append(path, entry)
        written.append(entry["number"])
        if len(written) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(journal, "append", dies)
    with pytest.raises(KeyboardInterrupt):
        run(place, tmp_path, name="killed")
    run(place, tmp_path, name="killed")
    assert written == list(range(3))  # 15 prompts in batches of 6; none was asked twice
    assert checkpoints.tree_hash(tmp_path / "whole") == checkpoints.tree_hash(tmp_path / "killed")
