"""Prefect, worker and MLflow, really started, on whatever ports are free."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.flows.conftest import Toy, toy  # noqa: F401 - the fixture
from tunemill import servers

REPOSITORY = Path(__file__).resolve().parents[2]


def command(toy: Toy, *arguments: str) -> subprocess.CompletedProcess[str]:  # noqa: F811
    return subprocess.run(
        [sys.executable, "-m", "tunemill.servers", *arguments],
        cwd=toy.root,
        env=toy.environment,
        text=True,
        capture_output=True,
        timeout=300,
    )


def test_a_port_that_is_taken_is_left_alone() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert servers.free_port(port) != port
    assert servers.free_port(port) == port


def test_a_note_of_a_process_that_is_gone_is_not_believed(tmp_path: Path) -> None:
    folder = tmp_path / "work" / "servers"
    folder.mkdir(parents=True)
    # This very process's number, but begun at another time: the number was given out again.
    note = {"name": "mlflow", "pid": os.getpid(), "began": 1.0, "url": "http://127.0.0.1:5000", "log": "x"}
    (folder / "mlflow.json").write_text(json.dumps(note))
    (folder / "prefect.json").write_text("{")
    assert servers._running(tmp_path) == {}
    assert servers.down(tmp_path) == []
    assert psutil.pid_exists(os.getpid()) and list(folder.iterdir()) == []


def test_deploy_run_without_servers_says_what_to_do(toy: Toy) -> None:  # noqa: F811
    done = command(toy, "deploy-run")
    assert (done.returncode, done.stderr) == (
        1,
        "error: work/servers: Prefect and its worker are not running\n  fix: make up\n",
    )


@pytest.mark.e2e
def test_up_deploy_run_down(toy: Toy) -> None:  # noqa: F811
    shutil.copytree(REPOSITORY / "flows", toy.root / "flows")
    shutil.copy(REPOSITORY / "prefect.yaml", toy.root)
    try:
        first = command(toy, "up")
        assert first.returncode == 0, first.stdout + first.stderr
        running = {each.name for each in (toy.root / "work" / "servers").iterdir()}
        assert running == {"prefect.json", "worker.json", "mlflow.json"}
        again = command(toy, "up")
        assert again.stdout == first.stdout  # idempotent: the same servers

        done = command(toy, "deploy-run", "--param", 'until="evaluate"')
        assert done.returncode == 0, done.stdout + done.stderr
        assert sorted(toy.ran) == ["collect", "evaluate@base", "evaluate@lora", "lora"]
        prefect = json.loads((toy.root / "work" / "servers" / "prefect.json").read_text())["url"]
        tasks = json.loads(servers.fetch(f"{prefect}/api/task_runs/filter", b"{}") or b"[]")
        assert {each["name"]: each["state_name"] for each in tasks} == {
            "collect": "Ran",
            "lora": "Ran",
            "evaluate@base": "Ran",
            "evaluate@lora": "Ran",
        }
        logs = json.loads(servers.fetch(f"{prefect}/api/logs/filter", b"{}") or b"[]")
        assert "lora       │ working" in {each["message"] for each in logs}
        artifacts = json.loads(servers.fetch(f"{prefect}/api/artifacts/filter", b"{}") or b"[]")
        assert "| score | 1.5 | 1.5 |" in next(each["data"] for each in artifacts if each["key"] == "metrics")

        # A stage that fails fails the deployment's run, and the exit status says so.
        failed = command(toy, "deploy-run", "--param", 'overrides={"lora.exit": 1}')
        assert failed.returncode == 1
        # `make run` uses the server that is up.
        assert toy.run().returncode == 0
        flows = json.loads(servers.fetch(f"{prefect}/api/flow_runs/filter", b"{}") or b"[]")
        assert sorted(each["state_type"] for each in flows) == ["COMPLETED", "COMPLETED", "FAILED"]
    finally:
        ended = command(toy, "down")
    assert ended.stdout == "ended mlflow, prefect, worker\n"
    assert toy.processes() == []
    assert command(toy, "down").stdout == "nothing was running\n"
