"""A Prefect server for one run, on a free port of 127.0.0.1, that ends with the run: python -m flows.server PORT

Prefect can start such a server by itself, but that one is stopped by an exit handler, so `kill -9` of the run leaves it
behind; this one watches the run instead.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from flows import processes
from tunemill.errors import UserError
from tunemill.prepare import seed_prefect

# A run's own server only keeps its record: no web pages, no schedules, nothing to clean up after others.
SETTINGS = {
    "PREFECT_UI_ENABLED": "false",
    "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": "http://127.0.0.1",  # no web page may start work here
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
}


class Server(NamedTuple):
    """A server that has been started."""

    url: str
    """Of its API."""
    process: subprocess.Popen[str]
    log: Path
    """What it says."""

    def wait(self, patience: float = 120.0) -> None:
        """Return when it answers.

        Raises:
            UserError: it ended, or does not answer.
        """
        deadline = time.monotonic() + patience
        while not answers(f"{self.url}/health"):
            ended = self.process.poll()
            if ended is not None or time.monotonic() > deadline:
                what = f"did not answer within {patience:.0f} s" if ended is None else processes.describe(ended)
                raise UserError(f"the Prefect server {what}", where=self.url, fix=f"what it said is in {self.log}")
            time.sleep(0.1)


@contextlib.contextmanager
def temporary(log: Path) -> Iterator[Server]:
    """A server while the body runs; it may not answer yet when the body begins.

    Args:
        log: file for what the server says.
    """
    port = free_port()
    seed_prefect(Path(os.environ.get("PREFECT_HOME", Path("work", "prefect"))))
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as output:
        process = processes.spawn("flows.server", str(port), cwd=Path.cwd(), output=output, environment=SETTINGS)
    try:
        yield Server(f"http://127.0.0.1:{port}/api", process, log)
    finally:
        process.terminate()
        try:
            process.wait(timeout=3)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=3)


def answers(url: str) -> bool:
    """Whether a server at `url` says yes."""
    try:
        # No proxy: it is on this machine.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Serve until the owner is gone."""
    processes.bind_to_owner()
    import uvicorn

    os.environ.setdefault("PREFECT_HOME", str(Path("work", "prefect").resolve()))
    uvicorn.run(
        "prefect.server.api.server:create_app",
        factory=True,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        log_level="warning",
        timeout_graceful_shutdown=1,
    )


if __name__ == "__main__":
    main()
