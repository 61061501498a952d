"""The flow and its command line on a toy pipeline."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flows import graph, processes
from flows.lifecycle import allowed, default_jobs, metrics_table
from flows.run import Outcome, Run, _failure, prepare, reproduce, tidy
from tests.flows.conftest import REPOSITORY, Toy
from tunemill.errors import UserError

EVERY = ["collect", "evaluate@base", "lora", "evaluate@lora", "efficiency", "report"]


@pytest.mark.slow
def test_runs_every_stage_once_then_has_nothing_to_do_then_only_what_changed(toy: Toy) -> None:
    first = toy.run("--jobs", "3")
    assert first.returncode == 0, first.stdout + first.stderr
    assert sorted(toy.ran) == sorted(EVERY)
    assert (
        toy.ran.index("lora") < toy.ran.index("evaluate@lora") < toy.ran.index("efficiency") < toy.ran.index("report")
    )
    assert "report     reports/report.html" in first.stdout
    assert not toy.processes()

    second = toy.run()
    assert second.stdout == "nothing to do: all 6 stages are up to date; the report is reports/report.html\n"
    assert second.returncode == 0 and second.stderr == ""

    toy.set("  exit: 0", "  exit: 0\n  extra: 1")
    third = toy.run("--until", "lora")
    assert third.returncode == 0, third.stdout + third.stderr
    assert toy.ran[len(EVERY) :] == ["lora"]


@pytest.mark.slow
def test_a_failed_stage_is_told_in_its_own_words_and_what_needs_it_is_not_run(toy: Toy) -> None:
    toy.set("  exit: 0", "  exit: 1")
    done = toy.run()
    assert done.returncode == 1
    assert done.stderr == (
        "error: lora failed: data.jsonl:3: empty prompt\n  fix: write one\n"
        "what is finished is kept: mend it, and the same command continues\n"
    )
    table = {
        line.split()[0]: line.split(maxsplit=1)[1]
        for line in done.stdout.splitlines()
        if line.split()[:1] != [] and "│" not in line
    }
    assert table["lora"].startswith("failed")
    assert [table[name].strip() for name in ("evaluate@lora", "efficiency", "report")] == ["not run"] * 3
    assert sorted(toy.ran) == ["collect", "evaluate@base", "lora"]
    assert "Traceback" not in done.stdout


@pytest.mark.slow
def test_what_may_pass_is_tried_again(toy: Toy) -> None:
    (toy.root / "stages" / "toy.py").write_text(
        "import sys\nfrom pathlib import Path\n"
        "again = Path('work/tries'); again.touch()\n"
        "again.write_text(again.read_text() + 'x')\n"
        "if again.read_text() == 'x':\n    sys.exit('error: the hub did not answer') if False else sys.exit(75)\n"
        "out = Path(sys.argv[2]); out.parent.mkdir(parents=True, exist_ok=True); out.write_text('')\n"
        "Path('metrics').mkdir(exist_ok=True); Path('metrics/collect.json').write_text('{}')\n"
    )
    done = toy.run("--until", "collect")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (toy.root / "work" / "tries").read_text() == "xx"
    assert "this may pass" in done.stdout


@pytest.mark.slow
def test_a_recipe_runs_in_a_workspace_and_shares_the_cache(toy: Toy) -> None:
    assert toy.run("--until", "collect").returncode == 0
    done = toy.run("--recipe", "slow", "--set", "lora.seconds=0", "--until", "lora")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "collect    │ restored from the cache" in done.stdout
    workspaces = list((toy.root / "work" / "recipes").iterdir())
    assert [each.name.partition("-")[0] for each in workspaces] == ["slow"]
    assert (workspaces[0] / "artifacts" / "lora").is_file()
    assert not (toy.root / "artifacts" / "lora").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--until", "evalute"],
            "error: until: no stage 'evalute'\n  expected: one of collect, efficiency, evaluate, "
            "evaluate@base, evaluate@lora, lora, report\n  fix: did you mean 'evaluate'?\n",
        ),
        (
            ["--recipe", "slov"],
            "error: recipes/: no recipe 'slov'\n  expected: one of slow\n  fix: did you mean 'slow'?\n",
        ),
        (
            ["--set", "lora.second=1"],
            "error: overrides: lora.second: params.yaml has no such key\n"
            "  expected: one of seconds, exit\n  fix: did you mean 'seconds'?\n",
        ),
        (["--set", "lora.seconds"], "error: --set: 'lora.seconds' sets nothing\n  expected: section.key=value\n"),
    ],
)
def test_a_mistake_on_the_command_line_is_told_before_anything_starts(
    toy: Toy, arguments: list[str], message: str
) -> None:
    done = toy.run(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)
    assert toy.ran == []


def test_a_mistake_in_params_is_told_before_anything_starts(toy: Toy) -> None:
    (toy.root / "stages" / "__main__.py").write_text(
        "import sys\nprint('error: params.yaml:2: collect.wrong: unknown key', file=sys.stderr)\nsys.exit(2)\n"
    )
    done = toy.run()
    assert (done.returncode, done.stderr) == (2, "error: params.yaml:2: collect.wrong: unknown key\n")
    assert toy.ran == []


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        (
            "params.yaml",
            "  lora: {policy: artifacts/lora/adapter, base: artifacts/select/model}",
            "  lora: {policy: artifacts/lora/adapter}",
            r"params\.yaml:\d+: variants\.lora\.base: missing",
        ),
        ("params.yaml", "launch: python\n", "", r"params\.yaml: section 'launch' is missing"),
        ("params.yaml", "lora:\n", "lora: [\n", r"params\.yaml:\d+: not valid YAML"),
        ("dvc.yaml", "  prompt:\n", "  prompt: [\n", r"dvc\.yaml:\d+: not valid YAML"),
        ("dvc.yaml", "cmd: python -m stages.scope", "cnd: python -m stages.scope", "scope"),
    ],
)
def test_the_checks_answer_comes_before_dvcs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, old: str, new: str, told: str
) -> None:
    for name in ("dvc.yaml", "params.yaml"):
        text = (REPOSITORY / name).read_text(encoding="utf-8")
        if name == file:
            assert old in text
            text = text.replace(old, new, 1)
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    with pytest.raises(UserError, match=told) as caught:
        prepare(tmp_path, None, None, None)
    assert caught.value.exit_code == 2
    assert "Traceback" not in str(caught.value) and "${" not in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            ["error: a.jsonl:3: bad", "  fix: this", "ERROR: failed to reproduce 'x': failed to run: y, exited with 2"],
            Outcome("failed", 1.0, "a.jsonl:3: bad\n  fix: this", 2),
        ),
        (
            [
                "error: an old one",
                "then",
                "error: a",
                "  fix: b",
                "error: c",
                "error: c",
                "that is all",
                "ERROR: exited with 2",
            ],
            Outcome("failed", 1.0, "a\n  fix: b\nerror: c", 2),
        ),
        (
            ["ERROR: failed to reproduce 'x': failed to run: y, exited with -9"],
            Outcome("failed", 1.0, "the stage was killed by SIGKILL", 1),
        ),
        (
            [
                "Traceback (most recent call last):",
                "ValueError: 3",
                "ERROR: failed to reproduce 'x': failed to run: y, exited with 1",
            ],
            Outcome("failed", 1.0, "ValueError: 3", 1),
        ),
        (
            ["error: the hub did not answer", "ERROR: failed to reproduce 'x': failed to run: y, exited with 75"],
            Outcome("failed", 1.0, "the hub did not answer", 1, temporary=True),
        ),
        (
            ["ERROR: Unable to acquire lock. Most likely another DVC process is running"],
            Outcome(
                "failed", 1.0, "Unable to acquire lock. Most likely another DVC process is running", 1, temporary=True
            ),
        ),
    ],
)
def test_the_reason_of_a_failure(lines: list[str], expected: Outcome) -> None:
    assert _failure(255, lines, 1.0) == expected


def test_lines_are_marked_with_their_stage_and_chatter_is_left_out() -> None:
    assert tidy("lora", "a library's warning") == "lora       │ a library's warning"
    assert tidy("lora", "lora       │ step 3") == "lora       │ step 3"
    assert tidy("lora", "Stage 'lora' didn't change, skipping") == "lora       │ unchanged"
    assert tidy("lora", "Use `dvc push` to send your updates to remote storage.") is None


def test_what_dvc_says_of_being_ended_is_no_news(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "Exception ignored in: <function Tqdm>\\nlora       │ interrupted; what was done is kept\\n"
    command = [sys.executable, "-c", f"print('{said}', end='')"]
    monkeypatch.setattr(
        processes, "spawn", lambda *_, **__: subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    )
    for stopping, shown in ((False, 2), (True, 1)):
        run = Run(tmp_path, tmp_path, graph.Graph({}), frozenset(), stopping=stopping)
        told: list[str] = []
        reproduce(run, "lora", told.append)
        assert told[-1] == "lora       │ interrupted; what was done is kept"
        assert len(told) == shown


def test_metrics_table_puts_candidates_side_by_side(tmp_path) -> None:
    for name, value in (("evaluate/base", 24.7), ("evaluate/lora", 35.71234), ("lora", None), ("lora.timing", 3)):
        path = tmp_path / "metrics" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"test/rouge1": value}))
    assert metrics_table(tmp_path).splitlines() == [
        "### lora",
        "",
        "| metric | value |",
        "|---|---:|",
        "| test/rouge1 | – |",
        "",
        "### evaluate",
        "",
        "| metric | base | lora |",
        "|---|---:|---:|",
        "| test/rouge1 | 24.7 | 35.71 |",
    ]


def test_a_containers_memory_counts(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    whole = allowed(limit)
    assert whole[0] >= 1 and whole[1] > 1 << 28
    for text, memory in (("max\n", whole[1]), (f"{1 << 28}\n", 1 << 28), (f"{1 << 60}\n", whole[1])):
        limit.write_text(text)
        assert allowed(limit) == (whole[0], memory)


@pytest.mark.parametrize(
    ("cores", "gib", "jobs"),
    [(1, 24, 1), (2, 24, 2), (2, 8, 1), (2, 4, 1), (3, 24, 2), (4, 24, 2), (8, 15, 2), (64, 256, 4)],
)
def test_concurrency_by_cores_and_memory(cores: int, gib: int, jobs: int) -> None:
    assert default_jobs(cores, gib << 30) == jobs
