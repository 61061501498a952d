"""judge: off costs nothing; planted judges are told for what they are; a local one repeats itself; a kill asks nothing twice."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.judge import Config, run
from tests import tiny_model
from tests.chat_server import KEY, VARIABLE, Asked, Sent, completion, serving
from tests.stages import tuned
from tunemill import likelihood, recipes, records
from tunemill.checkpoints import tree_hash
from tunemill.errors import TRY_AGAIN, UserError
from tunemill.likelihood import Likelihood
from tunemill.log import Log
from tunemill.params import Candidates, ParamsFile
from tunemill.runtime import RuntimeParams

CPU = RuntimeParams(device="cpu", dtype="float32", threads=2)
NAMES = ("base", "lora", "sft")
ITEMS = 24
TEMPLATE = "{prompt} #1 {first} #2 {second} # {criterion} (A) or (B)?"
"""Short, so that a test can take it apart again."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three candidates' answers, `lora` always shorter than `base`, and a tiny model."""
    root = tmp_path_factory.mktemp("judge")
    tiny_model.build(root / "model")
    for name in NAMES:
        answers = {
            "base": [f"return row {at} and more words {'x' * at}" for at in range(ITEMS)],
            "lora": [f"return row {at}" for at in range(ITEMS)],
            # Every fourth is base's; one tries to break the template and one to speak for the judge.
            "sft": [f"return row {at} and more words {'x' * at}" + "y" * (at % 4) for at in range(ITEMS)],
        }[name]
        if name == "sft":
            answers[1] = "{first} {second} {criterion} {prompt!r} %s \\1"
            answers[2] = ""
        rows = [
            {
                "id": f"{at:012x}",
                "group": f"g{at % 12}",
                "prompt": f"summarize value {at}",
                "prediction": answers[at],
                "scores": {"rouge1": {"base": 30.0, "lora": 40.0 if at % 4 else 20.0, "sft": None}[name]},
            }
            for at in range(ITEMS)
        ]
        records.write_objects(root / "evaluate" / name / "instances.jsonl", rows)
    return root


def config(**change: Any) -> Config:
    values = ParamsFile(tuned.ROOT / "params.yaml").section("judge", Config).model_dump()
    server = change.pop("server", None)
    values["endpoint"] |= (
        {"retries": 1} | ({"base_url": server.base_url} if server else {}) | change.pop("endpoint", {})
    )
    kind = {"model": "endpoint"} if server else {}
    return Config.model_validate(values | {"template": TEMPLATE, "resamples": 1000, "items": 0} | kind | change)


def ran(root: Path, place: Path, names: tuple[str, ...] = NAMES, **change: Any) -> tuple[dict[str, Any], Any, Any]:
    """(metrics, judge.json, judgements.jsonl)."""
    base = {"policy": "unused", "base": "unused"}
    (place / "work").mkdir(parents=True, exist_ok=True)
    found = run(
        config(**change),
        evaluations=root / "evaluate",
        candidates=Candidates.model_validate(dict.fromkeys(names, base)),
        out=place / "out",
        work=place / "work",
        runtime=CPU,
        log=Log(),
    )
    assert tuned.files(place / "out") == ["judge.json", "judgements.jsonl"]
    rows = [row for _, row in records.read_objects(place / "out/judgements.jsonl")]
    return dict(found), json.loads((place / "out/judge.json").read_text()), rows


def shown(question: str) -> tuple[str, str]:
    """The two answers in a question."""
    first, second = question.partition(" #1 ")[2].rpartition(" # The better")[0].split(" #2 ")
    return first, second


def prefer(better: Callable[[str, str], bool]) -> Callable[[Asked, int], Sent]:
    """A judge with a reason: the first where `better(first, second)`."""
    return lambda asked, number: completion("(A)" if better(*shown(asked.text)) else "(B)")


# ── off ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_off_writes_null_and_imports_nothing_heavy(root: Path, tmp_path: Path) -> None:
    metrics, written, rows = ran(root, tmp_path, model="none", against="nobody")
    assert (metrics, written, rows) == ({}, {"model": None}, [])
    code = (
        "import sys; from pathlib import Path; sys.argv = ['judge', '--params', sys.argv[1], '--evaluations', sys.argv[2]]\n"
        "from tunemill.stage import main; from stages import judge\n"
        "try: main(judge.run, sys.argv[1:])\n"
        "except SystemExit as done: assert not done.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'scipy', 'httpx', 'mlflow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    command = [sys.executable, "-c", code, str(tuned.ROOT / "params.yaml"), str(root / "evaluate")]
    subprocess.run(command, cwd=tmp_path, env=tuned.environment(), check=True, timeout=60)
    assert json.loads((tmp_path / "artifacts/judge/judge.json").read_text()) == {"model": None}
    assert json.loads((tmp_path / "metrics/judge.json").read_text()) == {}


# ── planted judges ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_judge_that_always_says_a_is_told_for_it(root: Path, tmp_path: Path) -> None:
    with serving(lambda *_: completion("(A)")) as server:
        metrics, written, rows = ran(root, tmp_path, ("base", "lora"), server=server)
    assert metrics["position_bias"] == metrics["lora/position_bias"] == 0.5
    # Twelve items that are all alike leave a quarter of all open, as the exact binomial interval does.
    bounds = (metrics["position_bias_low"], metrics["position_bias_high"])
    assert bounds == pytest.approx((0.5 - 0.2646, 0.5), abs=1e-4)
    assert metrics["contradictory"] == metrics["lora/contradictory"] == 1.0
    rates = [metrics[f"lora/win_rate{end}"] for end in ("_low", "", "_high")]
    assert rates == pytest.approx([0.5 - 0.2646 / 2, 0.5, 0.5 + 0.2646 / 2], abs=1e-4)
    assert (metrics["lora/ties"], metrics["lora/n"], metrics["unusable"]) == (ITEMS, ITEMS, 0.0)
    assert metrics["lora/agreement"] is None and metrics["lora/agreement_n"] == 0
    assert written["pairs"][0]["verdict"] == "not shown to be better"
    assert {(row["p"], row["outcome"], row["contradictory"]) for row in rows} == {(0.5, "tie", True)}


def test_a_judge_that_prefers_the_shorter_finds_the_candidate_that_is(root: Path, tmp_path: Path) -> None:
    with serving(prefer(lambda first, second: len(first) < len(second))) as server:
        metrics, written, rows = ran(root, tmp_path, server=server)
    assert metrics["position_bias"] == metrics["contradictory"] == metrics["unusable"] == 0.0
    assert metrics["lora/win_rate"] == 1.0 and metrics["lora/wins"] == ITEMS
    assert (metrics["lora/agreement"], metrics["lora/agreement_n"]) == (0.75, ITEMS)
    # sft: every fourth answer is base's; of the two odd ones that at 1 is longer, and that at 2 is empty.
    assert metrics["sft/identical"] == metrics["sft/ties"] == ITEMS // 4
    assert (metrics["sft/wins"], metrics["sft/losses"]) == (1, ITEMS * 3 // 4 - 1)
    assert metrics["sft/agreement"] is None  # it has no scores
    verdicts = {pair["a"]: pair["verdict"] for pair in written["pairs"]}
    assert verdicts == {"lora": "better", "sft": "worse"}
    assert written["model"] == {"kind": "endpoint", "name": "name-of-the-model", "base_url": server.base_url}
    assert (written["method"], written["groups"], written["items"]) == ("cluster", 12, ITEMS)
    assert written["questions"] == len(server.asked) == 2 * (ITEMS + ITEMS * 3 // 4)
    assert all(pair["p_holm"] >= pair["p"] for pair in written["pairs"])
    assert [(row["a"], row["b"]) for row in rows] == [("lora", "base")] * ITEMS + [("sft", "base")] * ITEMS
    # What an answer says is shown as it stands, whatever it looks like.
    broken = [each.text for each in server.asked if "prompt!r" in each.text]
    assert len(broken) == 2 and all("{first} {second} {criterion} {prompt!r} %s \\1" in each for each in broken)


def test_nonsense_is_counted_and_left_out(root: Path, tmp_path: Path) -> None:
    def moody(asked: Asked, number: int) -> Sent:
        at = int(re.findall(r"\d+", asked.text)[0])
        if at % 4 == 0 or (at % 4 == 1 and len(shown(asked.text)[0]) < len(shown(asked.text)[1])):
            return completion("As a language model I like both.")  # in both orders, and in one of them
        return completion("(A)" if len(shown(asked.text)[0]) < len(shown(asked.text)[1]) else "(B)")

    with serving(moody) as server:
        metrics, _, rows = ran(root, tmp_path, ("base", "lora"), server=server)
    assert metrics["lora/n"] == ITEMS // 2 and metrics["lora/win_rate"] == 1.0
    assert metrics["unusable"] == metrics["lora/unusable"] == 3 / 8
    out = [row for row in rows if row["outcome"] is None]
    assert len(out) == ITEMS // 2 and all("As a language model I like both." in row["said"] for row in out)


def test_nothing_but_nonsense_is_undefined_with_a_reason(root: Path, tmp_path: Path) -> None:
    with serving(lambda *_: completion("hm")) as server:
        metrics, written, _ = ran(root, tmp_path, ("base", "lora"), server=server)
    assert metrics["lora/win_rate"] is metrics["position_bias"] is metrics["contradictory"] is None
    assert metrics["unusable"] == 1.0
    [pair] = written["pairs"]
    assert pair["reason"] == "no item has two usable answers of the judge" and pair["p"] is None
    assert pair["verdict"] == "not shown to be better"


def test_log_probabilities_make_soft_preferences(root: Path, tmp_path: Path) -> None:
    def unsure(asked: Asked, number: int) -> Sent:
        # 0.8 for the shorter where it stands first, 0.6 where it stands second: p = 0.7, and 0.1 for what stands first.
        first, second = shown(asked.text)
        a = 0.8 if len(first) < len(second) else 0.4
        said = "A" if a > 0.5 else "B"
        told = [{"token": "A", "logprob": math.log(a)}, {"token": "B", "logprob": math.log(1 - a)}]
        return completion(said, [{"token": said, "logprob": math.log(max(a, 1 - a)), "top_logprobs": told}])

    with serving(unsure) as server:
        metrics, _, rows = ran(root, tmp_path, ("base", "lora"), server=server)
    assert {(round(row["a_first"], 9), round(row["b_first"], 9), round(row["p"], 9)) for row in rows} == {
        (0.8, 0.4, 0.7)
    }
    assert metrics["lora/win_rate"] == 1.0 and metrics["position_bias"] == pytest.approx(0.1)


# ── items and names ───────────────────────────────────────────────────────────────────────────────────────────────


def test_fewer_items_are_a_fixed_subset_and_few_groups_are_said(root: Path, tmp_path: Path) -> None:
    with serving(lambda *_: completion("(B)")) as server:
        _, written, rows = ran(root, tmp_path / "one", ("base", "lora"), server=server, items=6)
        _, _, others = ran(root, tmp_path / "two", ("lora", "sft", "base"), server=server, items=6)
    assert len(rows) == written["items"] == 6 and written["method"] == "item"
    assert [row["id"] for row in rows] == [row["id"] for row in others if row["a"] == "lora"]


def test_who_is_no_candidate_and_items_that_differ_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"judge\.against: 'bse' is no candidate"):
        ran(root, tmp_path, model="folder", against="bse")
    with pytest.raises(UserError, match="no candidate to compare it with"):
        ran(root, tmp_path, ("base",), model="folder")
    rows = [row for _, row in records.read_objects(root / "evaluate/lora/instances.jsonl")]
    for name, kept in (("base", rows), ("lora", rows[1:])):
        records.write_objects(tmp_path / "other/evaluate" / name / "instances.jsonl", kept)
    with pytest.raises(UserError, match="answered different test items"):
        ran(tmp_path / "other", tmp_path, ("base", "lora"), model="folder")


# ── a judge at hand ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_local_judge_scores_whole_labels_and_repeats_itself(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change: dict[str, Any] = {"model": "folder", "folder": str(root / "model"), "batch_rows": 6, "items": 8}
    metrics, written, rows = ran(root, tmp_path / "one", **change)
    assert written["model"] == {"kind": "folder", "name": str(root / "model"), "hash": tree_hash(root / "model")}
    assert metrics["unusable"] == 0.0 and 0 < metrics["label_mass"] < 1
    # By plain transformers: both labels behind one question, token by token.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(root / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(root / "model")
    base, lora = (
        [row for _, row in records.read_objects(root / "evaluate" / name / "instances.jsonl")]
        for name in ("base", "lora")
    )
    at = next(number for number, row in enumerate(lora) if row["id"] == rows[5]["id"])
    question = TEMPLATE
    for name, text in (
        ("prompt", lora[at]["prompt"]),
        ("first", lora[at]["prediction"]),
        ("second", base[at]["prediction"]),
        ("criterion", config().criterion),
    ):
        question = question.replace(f"{{{name}}}", text)
    start = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    total = {}
    for label in ("(A)", "(B)"):
        ids = tokenizer(label, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logprobs = model(torch.tensor([start + ids])).logits[0].log_softmax(-1)
        total[label] = sum(float(logprobs[len(start) - 1 + place, token]) for place, token in enumerate(ids))
    expected = 1 / (1 + torch.tensor(total["(B)"] - total["(A)"]).exp().item())
    assert rows[5]["a_first"] == pytest.approx(expected, abs=1e-4)

    # Killed after two batches: the journal's are not scored again, and the bytes are those of a run at one go.
    scored: list[int] = []
    kills = iter([KeyboardInterrupt])
    keep = likelihood._keep

    def counted(kept: Path, new: Any) -> None:
        if len(scored) == 2 and (kill := next(kills, None)):
            raise kill
        scored.append(len(new))
        keep(kept, new)

    monkeypatch.setattr(likelihood, "_keep", counted)
    with pytest.raises(KeyboardInterrupt):
        ran(root, tmp_path / "two", **change)
    [journal] = (tmp_path / "two/work").glob("answers-*.jsonl")
    with journal.open("a") as file:
        file.write('{"batch": "cut sho')
    ran(root, tmp_path / "two", **change)
    assert tree_hash(tmp_path / "one/out") == tree_hash(tmp_path / "two/out")
    assert sum(scored) == 2 * written["questions"]


def test_a_model_that_always_answers_a_and_one_that_is_no_number(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def always(model: Any, tokenizer: Any, pairs: Any, **_: Any) -> list[Likelihood]:
        return [Likelihood(-1.0 if label == "(A)" else -50.0, 3) for _, label in pairs]

    monkeypatch.setattr(likelihood, "score", always)
    metrics, _, _ = ran(root, tmp_path / "a", ("base", "lora"), model="folder", folder=str(root / "model"))
    assert metrics["position_bias"] == pytest.approx(0.5) and metrics["lora/win_rate"] == 0.5
    assert metrics["contradictory"] == 1.0
    monkeypatch.setattr(likelihood, "score", lambda m, t, pairs, **_: [Likelihood(float("nan"), 3) for _ in pairs])
    metrics, _, _ = ran(root, tmp_path / "b", ("base", "lora"), model="folder", folder=str(root / "model"))
    assert metrics["lora/win_rate"] is None and metrics["unusable"] == 1.0


def test_what_is_longer_than_the_judges_context_is_unusable(root: Path, tmp_path: Path) -> None:
    change = {"criterion": "more " * 1100, "template": TEMPLATE, "items": 2}
    metrics, _, _ = ran(root, tmp_path, ("base", "lora"), model="folder", folder=str(root / "model"), **change)
    assert metrics["unusable"] == 1.0 and metrics["lora/n"] == 0


def test_a_folder_without_a_whole_model_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    for folder, told in ((tmp_path / "nowhere", "no whole model in"), (tmp_path / "adapter", "once it is merged")):
        with pytest.raises(UserError, match=told) as caught:
            ran(root, tmp_path, model="folder", folder=str(folder))
        assert caught.value.exit_code == 2


# ── an endpoint that fails, and a run that is killed ──────────────────────────────────────────────────────────────


def as_command(root: Path, place: Path, base_url: str, **change: Any) -> list[str]:
    """The stage as dvc runs it, in `place`."""
    values = {
        "model": "endpoint",
        "template": TEMPLATE,
        "items": 0,
        "resamples": 1000,
        "endpoint": {"base_url": base_url, "key_variable": VARIABLE, "retries": 0, "concurrency": 2} | change,
    }
    (place / "params.yaml").write_text(
        recipes.merged(tuned.ROOT / "params.yaml", [(Path("overrides"), {"judge": values})])
    )
    for name in ParamsFile(place / "params.yaml").section("candidates", Candidates).root:
        if not (root / "evaluate" / name).exists():
            (root / "evaluate" / name).symlink_to(root / "evaluate/lora")
    return [sys.executable, "-m", "stages.judge", "--evaluations", str(root / "evaluate"), "--json"]


def start(command: list[str], place: Path) -> subprocess.Popen[str]:
    environment = tuned.environment() | {VARIABLE: KEY}
    return subprocess.Popen(
        command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def key_is_nowhere(place: Path, said: str) -> None:
    assert KEY not in said
    for path in place.rglob("*"):
        assert not (path.is_file() and KEY.encode() in path.read_bytes()), path


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_goes_on_and_asks_nothing_twice(root: Path, tmp_path: Path, number: signal.Signals) -> None:
    halt, go = threading.Event(), threading.Event()

    def stopping(asked: Asked, count: int) -> Sent:
        assert asked.headers["authorization"] == f"Bearer {KEY}"
        if count >= 20 and not go.is_set():  # from here on the first run waits for answers that do not come
            halt.set()
            go.wait(30)
            return Sent(b"", 503)
        return prefer(lambda first, second: len(first) < len(second))(asked, count)

    with serving(stopping) as server:
        command = as_command(root, tmp_path, server.base_url)
        first = start(command, tmp_path)
        assert halt.wait(30)
        [journal] = tmp_path.glob("work/judge/*/state/answers.jsonl")
        while len(journal.read_text().splitlines()) < 20:
            time.sleep(0.01)
        began = time.monotonic()
        first.send_signal(number)
        said, _ = first.communicate(timeout=20)
        assert time.monotonic() - began < 5 and first.returncode == (130 if number == signal.SIGTERM else -9)
        assert number == signal.SIGKILL or "interrupted" in said
        go.set()
        second = start(command, tmp_path)
        more, _ = second.communicate(timeout=60)
        assert second.returncode == 0, more
        assert server.busiest <= 4  # two of each run
    assert len(server.answered) == len(set(server.answered)) == ITEMS * 2 + (ITEMS * 3 // 4) * 2
    metrics = json.loads((tmp_path / "metrics/judge.json").read_text())
    assert metrics["lora/win_rate"] == 1.0
    assert not list((tmp_path / "work").glob("judge/*"))
    key_is_nowhere(tmp_path, said + more)


@pytest.mark.parametrize(
    ("answer", "code", "told"),
    [
        (lambda *_: Sent({"error": {"message": f"overloaded, {KEY}"}}, 503), TRY_AGAIN, "status 503"),
        (lambda *_: Sent({"error": {"message": f"no model for {KEY}"}}, 404), 1, "no model for [key]"),
    ],
)
def test_a_failing_endpoint_ends_the_run_without_telling_the_key(
    root: Path, tmp_path: Path, answer: Callable[[Asked, int], Sent], code: int, told: str
) -> None:
    with serving(answer) as server:
        ended = start(as_command(root, tmp_path, server.base_url), tmp_path)
        said, _ = ended.communicate(timeout=60)
    assert ended.returncode == code and told in said and "Traceback" not in said
    key_is_nowhere(tmp_path, said)


def test_a_key_that_is_not_set_is_told_before_anything_is_sent(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with serving(lambda *_: completion("(A)")) as server:
        with pytest.raises(UserError, match=f"the environment variable {VARIABLE} is not set"):
            ran(root, tmp_path, server=server, endpoint={"key_variable": VARIABLE})
        assert server.asked == []
