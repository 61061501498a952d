"""The servers a person looks at: Prefect with its worker, and MLflow, all on 127.0.0.1 and all state in this checkout.

    python -m tunemill.servers up|down|status|ui|deploy-run

`up` returns when all of them answer; they stay until `down`. What runs is noted in work/servers/<name>.json (process, port,
URL), and a note is believed only while that very process lives.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunemill import runtime
from tunemill.checkpoints import write_json
from tunemill.errors import UserError
from tunemill.prepare import seed_prefect

POOL = "local"
DEPLOYMENT = "lifecycle/local"
PREFECT_PORT, MLFLOW_PORT = 4200, 5000
PATIENCE = 180.0
"""Seconds a server may take until it answers; the first start on a slow machine migrates a database."""

NOT_INHERITED = (
    "MAKELEVEL",
    "MAKEFLAGS",
    "MFLAGS",
    "MAKE_TERMOUT",
    "MAKE_TERMERR",
    "TUNEMILL_LIFECYCLE",
    "TUNEMILL_OWNER",
)
"""A server outlives the make that starts it."""


@dataclass(frozen=True)
class Server:
    """A process that was started, as noted in work/servers/."""

    name: str
    pid: int
    began: float
    """Start time of the process: with its number it names one process for ever."""
    url: str
    log: str

    @property
    def alive(self) -> bool:
        """Whether that very process runs."""
        import psutil

        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.began) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


def environment(root: Path) -> dict[str, str]:
    """What every server is told: state in the checkout, nothing phoned home."""
    inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    packages = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    fixed = {
        "PATH": path,
        "PYTHONPATH": packages,
        "TUNEMILL_ROOT": str(root),
        "PREFECT_HOME": str(root / "work" / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "DVC_NO_ANALYTICS": "1",
        "GX_ANALYTICS_ENABLED": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    return {**inherited, **fixed, "HF_HUB_OFFLINE": inherited.get("HF_HUB_OFFLINE", "1")}


def up(root: Path) -> dict[str, Server]:
    """Start what does not run yet, and wait until all answer.

    Raises:
        UserError: one of them ended, or does not answer; those that this call started are stopped again.
    """
    running = _running(root)
    told = environment(root)
    started: list[Server] = []
    try:
        with runtime.ownership(root / "work" / "servers.lock", "starting servers", patience=5.0):
            if "prefect" not in running:
                port = free_port(PREFECT_PORT)
                seed_prefect(Path(told["PREFECT_HOME"]))
                api = f"http://127.0.0.1:{port}/api"
                told_prefect = {
                    **told,
                    "PREFECT_API_URL": api,
                    "PREFECT_UI_API_URL": api,
                    # Prefect answers every web page by default; a page elsewhere must not be able to start work here.
                    "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": api.removesuffix("/api"),
                }
                started.append(
                    _start(
                        root,
                        "prefect",
                        f"http://127.0.0.1:{port}",
                        told_prefect,
                        "-m",
                        "uvicorn",
                        "--factory",
                        "prefect.server.api.server:create_app",
                        "--host",
                        "127.0.0.1",
                        "--port",
                        str(port),
                        "--log-level",
                        "warning",
                        "--timeout-graceful-shutdown",
                        "2",
                    )
                )
                running["prefect"] = started[-1]
            if "mlflow" not in running:
                port = free_port(MLFLOW_PORT)
                started.append(_start(root, "mlflow", f"http://127.0.0.1:{port}", told, *_mlflow(root, port)))
                running["mlflow"] = started[-1]
            prefect, mlflow = running["prefect"], running["mlflow"]
            _until_answers(prefect, f"{prefect.url}/api/health")
            if "worker" not in running:
                told_worker = {**told, "PREFECT_API_URL": f"{prefect.url}/api"}
                _prefect(root, told_worker, "work-pool", "create", POOL, "--type", "process", "--overwrite")
                started.append(
                    _start(
                        root,
                        "worker",
                        f"{prefect.url}/work-pools/work-pool/{POOL}",
                        told_worker,
                        "-m",
                        "prefect",
                        "worker",
                        "start",
                        "--pool",
                        POOL,
                        "--type",
                        "process",
                        "--name",
                        "local",
                        "--limit",
                        "1",
                    )
                )
                running["worker"] = started[-1]
            _until(running["worker"], lambda: _worker_is_online(prefect.url), "the worker did not report to Prefect")
            _until_answers(mlflow, f"{mlflow.url}/health")
    except BaseException:
        for server in reversed(started):
            _stop(root, server)
        raise
    return running


def down(root: Path) -> list[str]:
    """End everything that `up` started, and wait until it is gone.

    Returns:
        The names of what was running.
    """
    running = _running(root)
    # The worker first: it ends the flow it runs while Prefect can still be told.
    for name in ("worker", "mlflow", "prefect"):
        if name in running:
            _stop(root, running[name])
    for note in _notes(root):
        note.unlink(missing_ok=True)
    return sorted(running)


def ui(root: Path) -> int:
    """MLflow alone, in the foreground, until Ctrl-C."""
    running = _running(root)
    if "mlflow" in running:
        print(f"MLflow is running already: {running['mlflow'].url}")
        return 0
    port = free_port(MLFLOW_PORT)
    log = _log(root, "mlflow")
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, *_mlflow(root, port)],
            cwd=root,
            env=environment(root),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        server = _noted(root, "mlflow", process.pid, f"http://127.0.0.1:{port}", log)
        _until_answers(server, f"{server.url}/health")
        print(f"MLflow: {server.url}\nselect the runs `base` and `lora`, then Compare. Ctrl-C ends it.", flush=True)
        return process.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        runtime.end_tree(process.pid)
        process.wait()
        (root / "work" / "servers" / "mlflow.json").unlink(missing_ok=True)


def deploy_run(root: Path, parameters: list[str]) -> int:
    """Deploy prefect.yaml to the running server, run `lifecycle/local` and watch it.

    Args:
        root: the checkout.
        parameters: `name=value` of the flow, value as JSON.

    Returns:
        0 when the run completed.

    Raises:
        UserError: nothing is running, or the deployment is refused.
    """
    running = _running(root)
    if not {"prefect", "worker"} <= running.keys():
        raise UserError("Prefect and its worker are not running", where="work/servers", fix="make up")
    told = {**environment(root), "PREFECT_API_URL": f"{running['prefect'].url}/api"}
    _prefect(root, told, "--no-prompt", "deploy", "--name", DEPLOYMENT)
    print(f"deployed {DEPLOYMENT}; its runs: {running['prefect'].url}/runs", flush=True)
    options = [part for each in parameters for part in ("--param", each)]
    return subprocess.call(
        [sys.executable, "-m", "prefect", "--no-prompt", "deployment", "run", DEPLOYMENT, "--watch", *options],
        cwd=root,
        env=told,
    )


def free_port(usual: int) -> int:
    """The usual port of 127.0.0.1 if nobody has it, any free one otherwise."""
    for port in (usual, 0):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            # A server that has just ended leaves connections behind that forbid nothing.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise UserError("no free port on 127.0.0.1")


def _mlflow(root: Path, port: int) -> list[str]:
    return [
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        f"sqlite:///{root / 'mlflow.db'}",
        "--artifacts-destination",
        str(root / "mlartifacts"),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]


def _prefect(root: Path, told: dict[str, str], *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", *arguments],
        cwd=root,
        env=told,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise UserError(
            f"prefect {' '.join(arguments)} ended with {done.returncode}",
            expected="0",
            fix=(done.stdout + done.stderr).strip(),
        )


def _start(root: Path, name: str, url: str, told: dict[str, str], *command: str) -> Server:
    log = _log(root, name)
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=root,
            env=told,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return _noted(root, name, process.pid, url, log)


def _noted(root: Path, name: str, pid: int, url: str, log: Path) -> Server:
    import psutil

    server = Server(name, pid, psutil.Process(pid).create_time(), url, str(log.relative_to(root)))
    write_json(root / "work" / "servers" / f"{name}.json", asdict(server))
    return server


def _stop(root: Path, server: Server) -> None:
    if server.alive:
        runtime.end_tree(server.pid, grace=8.0)
        with contextlib.suppress(ChildProcessError):  # reaps it, where it is our own child
            os.waitpid(server.pid, os.WNOHANG)
    (root / "work" / "servers" / f"{server.name}.json").unlink(missing_ok=True)


def _running(root: Path) -> dict[str, Server]:
    found: dict[str, Server] = {}
    for note in _notes(root):
        try:
            server = Server(**json.loads(note.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            continue  # cut short while it was written by hand or another version: nobody can say what it names
        if server.alive:
            found[server.name] = server
    return found


def _notes(root: Path) -> list[Path]:
    return sorted((root / "work" / "servers").glob("*.json"))


def _log(root: Path, name: str) -> Path:
    folder = root / "work" / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.log"


def _until_answers(server: Server, url: str) -> None:
    _until(server, lambda: fetch(url) is not None, f"{server.name} does not answer at {url}")


def _until(server: Server, ready: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not ready():
        if not server.alive:
            raise UserError(
                f"{server.name} ended while starting", where=server.url, fix=f"what it said is in {server.log}"
            )
        if time.monotonic() > deadline:
            raise UserError(f"{otherwise} ({PATIENCE:.0f} s)", where=server.url, fix=f"what it said is in {server.log}")
        time.sleep(0.2)


def _worker_is_online(prefect: str) -> bool:
    answer = fetch(f"{prefect}/api/work_pools/{POOL}/workers/filter", b"{}")
    return answer is not None and any(each["status"] == "ONLINE" for each in json.loads(answer))


def fetch(url: str, body: bytes | None = None) -> bytes | None:
    """What a server of this machine answers (POST where there is a body), or None where it does not, or says no."""
    # No proxy: it is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
    try:
        with opener.open(request, timeout=5) as response:
            return bytes(response.read())
    except (OSError, urllib.error.URLError):
        return None


def _show(running: dict[str, Server]) -> None:
    for name, note in (
        ("prefect", "runs, logs, artifacts"),
        ("worker", "runs the deployment"),
        ("mlflow", "compare candidates"),
    ):
        if name in running:
            print(f"{name:<10} {running[name].url:<55} {note}")
        else:
            print(f"{name:<10} not running")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tunemill.servers", description="Prefect, its worker and MLflow on 127.0.0.1."
    )
    commands: Any = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="start what does not run yet, and wait until all answer")
    commands.add_parser("down", help="end all of it")
    commands.add_parser("status", help="what runs")
    commands.add_parser("ui", help="MLflow alone, in the foreground")
    deploy = commands.add_parser("deploy-run", help="deploy, run and watch lifecycle/local")
    deploy.add_argument("--param", metavar="NAME=JSON", action="append", default=[], help="a parameter of the flow")
    arguments = parser.parse_args()
    root = Path.cwd()
    try:
        if arguments.command == "up":
            _show(up(root))
            print("next       make deploy-run; make down ends them")
        elif arguments.command == "down":
            ended = down(root)
            print("ended " + ", ".join(ended) if ended else "nothing was running")
        elif arguments.command == "status":
            _show(_running(root))
        elif arguments.command == "ui":
            return ui(root)
        else:
            return deploy_run(root, arguments.param)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
