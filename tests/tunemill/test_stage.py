"""The edge: contract, flags, atomic outputs, metrics, locks, resuming work folders, logs for people and machines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tunemill import runtime, stage
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.params import Candidates, Params

ROOT = Path(__file__).resolve().parents[2]

TOY = '''
"""A stage to test the edge with."""
import os, sys, time
from pathlib import Path
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.params import Params
from tunemill.stage import Metrics, main

class Config(Params):
    text: str
    """What to write."""
    fail: bool = False
    """Whether to fail half-way."""
    sleep: float = 0
    """Seconds to dawdle."""

def run(cfg: Config, *, data: Path, extra: Path | None, out: Path, work: Path, log: Log) -> Metrics:
    """Write the text."""
    visits = work / "visits"
    seen = int(visits.read_text()) if visits.exists() else 0
    visits.write_text(str(seen + 1))
    out.mkdir()
    (out / "text").write_text(cfg.text + data.read_text())
    log.start("toying", 2)
    log(1, loss=0.5)
    time.sleep(cfg.sleep)
    if cfg.fail:
        raise UserError("this cannot work", where="here", expected="luck", fix="try again")
    log(2, loss=0.25)
    return {"visits": seen + 1, "half": 0.5, "undefined": None}

if __name__ == "__main__":
    main(run)
'''


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "__init__.py").write_text("")
    (tmp_path / "stages" / "toy.py").write_text(TOY)
    (tmp_path / "params.yaml").write_text("toy: {text: hello}\n")
    (tmp_path / "data").write_text(" world")
    return tmp_path


def toy(place: Path, *flags: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stages.toy", "--data", "data", *flags],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": f"{place}:{ROOT}", "TUNEMILL_TRACKING": "off", **(env or {})},
    )


def test_a_stage_writes_output_metrics_and_timing_and_leaves_no_work(place: Path) -> None:
    done = toy(place)
    assert done.returncode == 0, done.stderr
    assert (place / "artifacts/toy/text").read_text() == "hello world"
    assert json.loads((place / "metrics/toy.json").read_text()) == {"visits": 1, "half": 0.5, "undefined": None}
    timing = json.loads((place / "metrics/toy.timing.json").read_text())
    assert timing["seconds"] > 0 and abs(timing["began"] + timing["seconds"] - time.time()) < 60
    assert timing["peak_memory_bytes"] > 1e6
    assert [each.name for each in (place / "work").iterdir()] == ["toy.lock"]
    assert "toying: 2 steps" in done.stderr


def test_a_candidate_has_its_own_place(place: Path) -> None:
    assert toy(place, "--candidate", "a").returncode == 0
    assert (place / "artifacts/toy/a/text").is_file()
    assert (place / "metrics/toy/a.json").is_file()


def test_a_failing_stage_leaves_the_old_output_and_its_work(place: Path) -> None:
    assert toy(place).returncode == 0
    (place / "params.yaml").write_text("toy: {text: bad, fail: true}\n")
    for _ in range(2):
        done = toy(place)
        assert done.returncode == 1
        assert done.stderr.endswith("error: here: this cannot work\n  expected: luck\n  fix: try again\n")
        assert "Traceback" not in done.stderr
        assert (place / "artifacts/toy/text").read_text() == "hello world"
    # The same parameters and inputs find the same work folder.
    visits = list((place / "work/toy").glob("*/state/visits"))
    assert [each.read_text() for each in visits] == ["2"]


def test_a_cache_outlives_the_run_until_the_code_changes_that_it_depends_on(place: Path) -> None:
    caching = TOY.replace("work: Path,", "work: Path, cache: Path | None = None,").replace(
        "    out.mkdir()\n",
        "    cache.mkdir(parents=True, exist_ok=True)\n    (cache / cfg.text).touch()\n    out.mkdir()\n",
    )
    (place / "stages/toy.py").write_text(caching.replace("main(run)", 'main(run, cached_by=["stages.maker"])'))
    (place / "stages/maker.py").write_text("HOW = 1\n")

    def kept() -> list[list[str]]:
        return [sorted(each.name for each in folder.iterdir()) for folder in (place / "work/cache/toy").iterdir()]

    for text in ("hello", "again"):
        (place / "params.yaml").write_text(f"toy: {{text: {text}}}\n")
        done = toy(place)
        assert done.returncode == 0, done.stderr
    assert kept() == [["again", "hello"]]  # other parameters: what is in it has names of its own
    with (place / "stages/toy.py").open("a") as file:
        file.write("# another metric\n")
    (place / "stages/maker.py").write_text("HOW = 2\n")
    (place / "params.yaml").write_text("toy: {text: bad, fail: true}\n")
    assert toy(place).returncode == 1
    assert sorted(kept()) == [["again", "hello"], ["bad"]]  # of a run that failed nothing is thrown away
    (place / "params.yaml").write_text("toy: {text: good}\n")
    assert toy(place).returncode == 0
    assert kept() == [["bad", "good"]]
    assert sorted(each.name for each in (place / "work").iterdir()) == ["cache", "toy.lock"]


def test_another_parameter_or_input_gets_another_work_folder(place: Path) -> None:
    (place / "params.yaml").write_text("toy: {text: bad, fail: true}\n")
    toy(place)
    (place / "data").write_text(" other")
    toy(place)
    (place / "params.yaml").write_text("toy: {text: worse, fail: true}\n")
    toy(place)
    assert len(list((place / "work/toy").iterdir())) == 3


def test_json_logs_are_one_object_a_line(place: Path) -> None:
    lines = [json.loads(line) for line in toy(place, "--json").stderr.splitlines()]
    assert {"note", "start", "progress"} == {line["event"] for line in lines}
    last = [line for line in lines if line["event"] == "progress"][-1]
    assert (last["step"], last["total"], last["loss"], last["stage"]) == (2, 2, 0.25, "toy")


def test_a_missing_input_names_its_flag(place: Path) -> None:
    done = toy(place, "--extra", "nowhere")
    assert done.returncode == 2
    assert "--extra: no such input: nowhere" in done.stderr


def test_two_at_once_the_second_says_who_holds_it(place: Path) -> None:
    with runtime.ownership(place / "work/toy.lock", "stage toy"):
        began = time.monotonic()
        with (
            pytest.raises(UserError, match=f"stage toy is held by process {os.getpid()}"),
            runtime.ownership(place / "work/toy.lock", "stage toy", patience=0.5),
        ):
            pass
        assert time.monotonic() - began < 5


def test_a_killed_owner_leaves_no_lock(place: Path) -> None:
    (place / "params.yaml").write_text("toy: {text: hello, sleep: 60}\n")
    env = {**os.environ, "PYTHONPATH": f"{place}:{ROOT}", "TUNEMILL_TRACKING": "off"}
    process = subprocess.Popen([sys.executable, "-m", "stages.toy", "--data", "data"], cwd=place, env=env)
    deadline = time.monotonic() + 60
    while not list((place / "work").glob("toy/*/state/visits")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    with runtime.ownership(place / "work/toy.lock", "stage toy", patience=2):
        pass


def test_a_stage_ends_with_the_dvc_that_started_it(place: Path) -> None:
    (place / "params.yaml").write_text("toy: {text: hello, sleep: 60}\n")
    # A process whose command line says dvc, with a shell between it and the stage, as DVC has it.
    parent = place / "dvc"
    parent.write_text(
        textwrap.dedent(f"""
        import os, subprocess
        os.environ['DVC_STAGE'] = 'toy'
        child = subprocess.Popen(['/bin/sh', '-c', '{sys.executable} -m stages.toy --data data; true'])
        print(child.pid, flush=True)
        child.wait()
    """)
    )
    env = {**os.environ, "PYTHONPATH": f"{place}:{ROOT}", "TUNEMILL_TRACKING": "off"}
    process = subprocess.Popen([sys.executable, str(parent)], cwd=place, env=env)
    deadline = time.monotonic() + 60
    while not list((place / "work").glob("toy/*/state/visits")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    with runtime.ownership(place / "work/toy.lock", "stage toy", patience=15):
        pass  # free within seconds although only "dvc" was killed


class Config(Params):
    """Nothing."""


def test_contracts_that_no_stage_may_have() -> None:
    def positional(cfg: Config, data: Path) -> stage.Metrics:
        return {}

    def strange(cfg: Config, *, data: str) -> stage.Metrics:
        return {}

    def unconfigured(data: Path) -> stage.Metrics:
        return {}

    for run in (positional, strange, unconfigured):
        with pytest.raises((TypeError, KeyError)):
            stage.contract(run)


def test_contract_reads_inputs_outputs_and_sections() -> None:
    def run(
        cfg: Config,
        *,
        data: Path,
        more: tuple[Path, ...],
        maybe: Path | None,
        candidates: Candidates,
        out: Path,
        out_scores: Path,
        work: Path,
        log: Log,
        machine: runtime.Runtime,
    ) -> stage.Metrics:
        return {}

    told = stage.contract(run, "some")
    assert told.inputs == {"data": "one", "more": "many", "maybe": "optional"}
    assert told.outputs == ("out", "out_scores")
    assert told.wants == {"work", "log", "runtime"}
    assert list(told.params) == ["some", "candidates", "runtime"]


def test_not_a_number_is_refused_as_a_metric() -> None:
    with pytest.raises(RuntimeError, match="metric 'x' is nan; an undefined metric is None"):
        stage._checked("toy", {"x": float("nan")})


@pytest.mark.parametrize(("given", "offline"), [({}, True), ({"HF_HUB_OFFLINE": "0"}, False)])
def test_a_stage_started_by_hand_reaches_no_hub_unless_that_is_allowed(given: dict[str, str], offline: bool) -> None:
    code = (
        "import importlib, sys\n"
        "from tunemill import stage\n"
        "for name in 'select prompt sft lora prompt_tune ia3 pretrain evaluate'.split():\n"
        "    importlib.import_module('stages.' + name)\n"
        "assert 'huggingface_hub' not in sys.modules\n"
        "try:\n"
        "    stage.main(sys.modules['stages.select'].run, ['--help'])\n"
        "except SystemExit:\n"
        "    from huggingface_hub import constants\n"
        "    print(constants.HF_HUB_OFFLINE)\n"
    )
    inherited = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=inherited | given, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == str(offline)


def test_a_stage_that_asks_which_run_it_is_gets_the_name(place: Path) -> None:
    text = TOY.replace("data: Path, extra", "candidate: str, data: Path, extra")
    (place / "stages" / "toy.py").write_text(text.replace("cfg.text + data.read_text()", "cfg.text + candidate"))
    done = toy(place, "--candidate", "small")
    assert done.returncode == 0, done.stderr
    assert (place / "artifacts/toy/small/text").read_text() == "hellosmall"
    without = toy(place)
    assert without.returncode == 2
    assert "--candidate" in without.stderr
