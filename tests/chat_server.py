"""A chat endpoint on a free port of this machine, whose answers a test decides."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-0123456789-do-not-tell"
VARIABLE = "TUNEMILL_TEST_JUDGE_KEY"


@dataclass
class Asked:
    """One request as it arrived."""

    at: float
    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def text(self) -> str:
        return str(self.body["messages"][0]["content"])


@dataclass
class Sent:
    """One response to be."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def completion(text: str | None, tokens: list[dict[str, Any]] | None = None) -> Sent:
    """A chat completion; `tokens` as the endpoint tells them with their log-probabilities."""
    logprobs = None if tokens is None else {"content": tokens}
    return Sent(
        {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": logprobs}]},
    )


@dataclass
class Server:
    """Where it is, and what it was asked."""

    base_url: str
    asked: list[Asked] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)
    """Texts of the questions whose response was sent in full."""
    busy: int = 0
    busiest: int = 0
    """Most requests there were at a time."""


@contextlib.contextmanager
def serving(answer: Callable[[Asked, int], Sent]) -> Iterator[Server]:
    """A server that gives `answer(request, how many came before)`, while the body runs."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            asked = Asked(time.monotonic(), self.path, {k.lower(): v for k, v in self.headers.items()}, body)
            with lock:
                number = len(server.asked)
                server.asked.append(asked)
                server.busy += 1
                server.busiest = max(server.busiest, server.busy)
            try:
                sent = answer(asked, number)
                content = sent.body if isinstance(sent.body, bytes) else json.dumps(sent.body).encode()
                with contextlib.suppress(ConnectionError):  # who asked has gone
                    self.send_response(sent.status)
                    for name, value in {"content-length": str(len(content)), **sent.headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(content)
                    if sent.status == 200:
                        with lock:
                            server.answered.append(asked.text)
            finally:
                with lock:
                    server.busy -= 1

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = Server(f"http://127.0.0.1:{http.server_address[1]}/v1")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
