"""ppo: exactly these files, the same bytes every time; kill -9 costs nothing; two processes give what one gives; mistakes are told."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from stages import ppo
from tests.stages import tuned
from tests.tunemill import test_rewards
from tests.tunemill.test_backbone import reward_folder
from tunemill import models, records
from tunemill.checkpoints import tree_hash
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.params import ParamsFile
from tunemill.records import RedTeamPrompt

SHORT = {
    "prompts": 4,
    "response_tokens": 6,
    "updates": 3,
    "learning_rate": 1e-3,
    "micro_batch": 2,
    "monitor_items": 4,
    "monitor_updates": 2,
    "max_prompt_tokens": 200,
}
FILES = [
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "monitor.csv",
    "ppo.json",
    "samples.jsonl",
    "tokenizer.json",
    "tokenizer_config.json",
    "training.json",
    "updates.csv",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A starting policy, a reward model on it, and prompts; one of them is far too long, one no instruction."""
    place = tmp_path_factory.mktemp("ppo")
    tuned.prepare(place)
    reward_folder(place / "model", place / "reward")
    for name, count in (("train", 12), ("monitor", 6)):
        texts = [f"{name} the value {at} " + "again " * (at % 3) for at in range(count)]
        rows = [RedTeamPrompt(records.row_id(text), text, "instruction", "made", None) for text in texts]
        rows.append(RedTeamPrompt("f" * 12, "long " * 300, "instruction", "made", None))
        rows.append(RedTeamPrompt("e" * 12, "a text to go on from", "continuation", "made", None))
        records.write(place / f"{name}_prompts.jsonl", rows)
    return place


def config(**change: Any) -> ppo.Config:
    values = ParamsFile(tuned.ROOT / "params.yaml").section("ppo", ppo.Config).model_dump()
    return ppo.Config.model_validate(values | SHORT | change)


def run(place: Path, tmp_path: Path, name: str, reward: Path | None = None, **change: Any) -> dict[str, float | None]:
    (tmp_path / f"work-{name}").mkdir()
    return dict(
        ppo.run(
            config(**change),
            policy=place / "model",
            reward=reward or place / "reward",
            prompts=place / "train_prompts.jsonl",
            monitored=place / "monitor_prompts.jsonl",
            train=place / "train.jsonl",
            out=tmp_path / name,
            work=tmp_path / f"work-{name}",
            runtime=tuned.CPU,
            log=Log(),
        )
    )


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_outputs_are_exactly_these_and_the_same_every_time(place: Path, tmp_path: Path) -> None:
    metrics = run(place, tmp_path, "one", seeds=[3, 4])
    assert {name.removeprefix("seed_4/") for name in metrics if name.startswith("seed_4/")} == {
        name for name in metrics if not name.startswith("seed_4/")
    } - {"prompts/left_out"}
    assert metrics["seed_4/reward/last"] != metrics["reward/last"]
    assert tuned.files(tmp_path / "one") == sorted(
        f"{folder}/{name}" for folder in ("adapter", "adapter-4") for name in FILES
    )
    run(place, tmp_path, "two", seeds=[3, 4])
    assert tree_hash(tmp_path / "one") == tree_hash(tmp_path / "two")
    assert tree_hash(tmp_path / "one/adapter") != tree_hash(tmp_path / "one/adapter-4")
    rows = table(tmp_path / "one/adapter/updates.csv")
    assert [row["update"] for row in rows] == ["1", "2", "3"]
    assert float(rows[0]["kl"]) == 0.0
    assert [row["update"] for row in table(tmp_path / "one/adapter/monitor.csv")] == ["0", "2", "3"]
    told = json.loads((tmp_path / "one/adapter/ppo.json").read_text())
    assert told["kept"] == metrics["kept_update"]
    assert told["reward"] == {"kind": "model", "shuffled": False}
    assert metrics["prompts/left_out"] == 1
    samples = [each for _, each in records.read_objects(tmp_path / "one/adapter/samples.jsonl")]
    assert [each["prompt"] for each in samples] == [f"monitor the value {at} " + "again " * (at % 3) for at in range(4)]


def test_what_is_written_is_the_policy_that_was_kept(place: Path, tmp_path: Path) -> None:
    """Its answers, drawn with the monitor's numbers, are those in samples.jsonl."""
    from tunemill import ppo as loop
    from tunemill import sampling

    run(place, tmp_path, "out", learning_rate=3e-2, updates=2, monitor_updates=2, kl=KL | {"limit": 1e6})
    folder = tmp_path / "out/adapter"
    assert json.loads((folder / "ppo.json").read_text())["kept"] == 2
    policy, tokenizer = models.load_policy(folder, place / "model", tuned.CPU)
    samples = [each for _, each in records.read_objects(folder / "samples.jsonl")]
    asked = [models.render_prompt(tokenizer, each["prompt"]) for each in samples]
    drawn = sampling.rollouts(
        policy, tokenizer, asked, decoding=sampling.Decoding(6, 1.0), batches=[(0, 1, 2, 3)], seed=[17, loop.MONITOR]
    )
    texts = {item: tokenizer.decode(ids, skip_special_tokens=True) for item, ids, _ in drawn}
    assert [texts[at] for at in range(4)] == [each["after"] for each in samples]
    assert any(each["before"] != each["after"] for each in samples)


KL: dict[str, Any] = {"coef": 0.05, "target": None, "horizon": 1000}


def test_the_task_may_be_kept_in_mind_and_all_weights_trained(place: Path, tmp_path: Path) -> None:
    metrics = run(place, tmp_path, "out", mode="full", ptx_coef=0.5, updates=2, value="adapter", store_dtype="float32")
    assert metrics["updates"] == 2
    names = tuned.files(tmp_path / "out")
    assert {"model/model.safetensors", "model/config.json", "model/ppo.json"} <= set(names)
    policy, _ = models.load_policy(tmp_path / "out/model", place / "model", tuned.CPU)
    assert policy.num_parameters() > 0


@pytest.mark.parametrize("kind", ["offence", "shuffled"])
def test_controls_and_other_rewards(place: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "reward").mkdir()
    told = {"kind": kind} | ({"model": str(place / "reward")} if kind == "shuffled" else {})
    (tmp_path / "reward/reward.json").write_text(json.dumps(told))
    run(place, tmp_path, "out", reward=tmp_path / "reward", updates=1, response_tokens=12)
    found = json.loads((tmp_path / "out/adapter/ppo.json").read_text())["reward"]
    assert found == {"kind": kind, "shuffled": kind == "shuffled"}


def test_a_classifier_beside_its_reward_json_is_a_reward(place: Path, tmp_path: Path) -> None:
    """As recipe `toxicity-reward` says: one folder, which DVC watches whole."""
    folder = test_rewards.classifier(tmp_path)
    (folder / "reward.json").write_text('{"kind": "classifier", "label": "nothate"}')
    run(place, tmp_path, "out", reward=folder, updates=1, response_tokens=12)
    told = json.loads((tmp_path / "out/adapter/ppo.json").read_text())
    assert told["reward"] == {"kind": "classifier", "shuffled": False} and told["reward_change"] is not None


def test_a_reward_that_cannot_tell_the_responses_apart_is_refused(place: Path, tmp_path: Path) -> None:
    """The untrained policy never ends by itself: all its responses are as long as they may be."""
    (tmp_path / "reward").mkdir()
    (tmp_path / "reward/reward.json").write_text('{"kind": "length"}')
    with pytest.raises(UserError, match="nothing can be learnt from this reward: all 4 scores are 6"):
        run(place, tmp_path, "out", reward=tmp_path / "reward")


def test_mistakes_are_told(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no reward in"):
        run(place, tmp_path, "none", reward=tmp_path)
    with pytest.raises(UserError, match="0 prompts to train on and 0 to be monitored on, of at most 1 tokens"):
        run(place, tmp_path, "short", max_prompt_tokens=1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/reward.json").write_text('{"kind": "model", "vocabulary": "0123456789ab"}')
    with pytest.raises(UserError, match="trained with another tokenizer"):
        run(place, tmp_path, "other-tokenizer", reward=tmp_path / "other")
    with pytest.raises(UserError, match="no layer called nowhere"):
        run(place, tmp_path, "nowhere", targets=["nowhere"])
    half = tuned.CPU.__class__("cpu", "float16", 1)
    with pytest.raises(UserError, match="float16 cannot be trained in"):
        ppo.run(
            config(),
            policy=place / "model",
            reward=place / "reward",
            prompts=place / "train_prompts.jsonl",
            out=tmp_path / "half",
            work=tmp_path,
            runtime=half,
            log=Log(),
        )


# ── as commands ───────────────────────────────────────────────────────────────────────────────────────────────────


def command(place: Path, folder: Path, processes: int = 1, **change: Any) -> tuple[list[str], dict[str, str]]:
    """The stage as a command in a folder of its own, under torchrun where there are several processes."""
    folder.mkdir(exist_ok=True)
    sections = {
        "ppo": config(**change).model_dump(mode="json"),
        "runtime": {"device": "cpu", "dtype": "float32", "threads": 1},
        "scope": {"name": "test"},
    }
    (folder / "params.yaml").write_text(json.dumps(sections))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    words = [
        sys.executable,
        *(torchrun if processes > 1 else []),
        "-m",
        "stages.ppo",
        f"--policy={place / 'model'}",
        f"--reward={place / 'reward'}",
        f"--prompts={place / 'train_prompts.jsonl'}",
        f"--monitored={place / 'monitor_prompts.jsonl'}",
        "--out=out",
    ]
    return words, {**os.environ, "PYTHONPATH": str(tuned.ROOT), "OMP_NUM_THREADS": "1", "TUNEMILL_TRACKING": "off"}


@pytest.mark.slow
def test_kill_9_in_the_middle_resumes_with_identical_metrics(place: Path, tmp_path: Path) -> None:
    adaptive = {"updates": 6, "value": "adapter", "kl": KL | {"target": 0.5, "horizon": 20, "limit": 1e6}}
    words, env = command(place, tmp_path / "whole", **adaptive)
    subprocess.run(words, cwd=tmp_path / "whole", env=env, check=True, capture_output=True, timeout=280)
    words, env = command(place, tmp_path / "killed", **adaptive)
    process = subprocess.Popen(
        words, cwd=tmp_path / "killed", env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 200
    while not list((tmp_path / "killed").glob("work/ppo/*/state/adapter/checkpoint-2")):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed/out").exists()
    done = subprocess.run(
        words, cwd=tmp_path / "killed", env=env, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "continuing at" in done.stderr
    assert tree_hash(tmp_path / "whole/out") == tree_hash(tmp_path / "killed/out")
    whole, killed = ((tmp_path / name / "metrics/ppo.json").read_text() for name in ("whole", "killed"))
    assert whole == killed


@pytest.mark.slow
def test_two_processes_give_what_one_gives(place: Path, tmp_path: Path) -> None:
    found = {}
    for count in (1, 2):
        folder = tmp_path / str(count)
        words, env = command(place, folder, count, updates=2, value="adapter", minibatches=1, ptx_coef=0.0)
        done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=280, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        found[count] = table(folder / "out/adapter/updates.csv")
    # With several minibatches each process deals its own responses: other steps, and as many of them for both.
    words, env = command(place, tmp_path / "dealt", 2, updates=2, value="adapter", minibatches=2, ptx_coef=0.0)
    done = subprocess.run(
        words, cwd=tmp_path / "dealt", env=env, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    dealt = table(tmp_path / "dealt/out/adapter/updates.csv")
    assert [float(row["first_step_kl"]) for row in dealt] == [0.0, 0.0]
    assert float(dealt[0]["reward"]) == pytest.approx(float(found[2][0]["reward"]), rel=1e-4)  # of the same responses
    assert float(dealt[0]["policy_loss"]) != pytest.approx(float(found[2][0]["policy_loss"]), rel=1e-3)
    assert tuned.files(tmp_path / "1/out") == tuned.files(tmp_path / "2/out")
    for one, two in zip(found[1], found[2], strict=True):
        for name in ("reward", "kl", "entropy", "tokens", "policy_loss", "value_loss", "gradient", "explained"):
            assert float(one[name]) == pytest.approx(float(two[name]), rel=5e-3, abs=1e-4), name
