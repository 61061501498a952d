"""Processes that cannot outlive who started them, however that one ends.

A child watches its owner from inside itself, so even `kill -9` of the owner leaves nothing running after a second or two.
Children get a session of their own: Ctrl-C at a terminal reaches the flow alone, which then ends them in good order.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from tunemill import runtime

OWNER = "TUNEMILL_OWNER"
"""Environment variable that names the process a child must not outlive."""


def spawn(
    module: str, *arguments: str, cwd: Path, output: int | IO[Any] | None, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start `python -m module` as a process that ends with this one; the module calls `bind_to_owner`.

    `python` in a stage's command is the one that runs the flow, activated environment or not.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "PATH": path, **(environment or {}), OWNER: str(os.getpid())},
    )


def bind_to_owner() -> None:
    """End this process, and everything below it, as soon as the one that spawned it is gone."""
    import psutil

    owner = os.environ.pop(OWNER, None)
    if owner is None:
        return
    if os.getppid() != int(owner):  # it went before we could look
        os._exit(143)
    runtime.die_with([psutil.Process(int(owner))])


def end(process: subprocess.Popen[str], *, patience: float = 4.0) -> None:
    """End a running `dvc`: its stage first, so that DVC itself can put its locks away; then whatever is left."""
    if process.poll() is not None:
        return
    runtime.end_tree(process.pid, itself=False, grace=patience)
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=patience)
    except subprocess.TimeoutExpired:
        runtime.end_tree(process.pid, grace=1.0)
        process.wait(timeout=patience)


def interrupt_once() -> None:
    """Let the first Ctrl-C (or polite request to end) end this process in good order: stages first, then the server.

    A second one would break off just that, and leave stages behind: under make it comes by itself, from the terminal and from
    the make that was interrupted too. What `end` does takes seconds at most.
    """

    def interrupt(*_: object) -> None:
        heed_no_more()
        raise KeyboardInterrupt

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, interrupt)


def heed_no_more() -> None:
    """From here on this process ends by itself, and no request to end breaks that off.

    Prefect puts a handler of its own in the place of `interrupt_once`'s while a flow runs, which raises at every SIGTERM; `timeout make
    run` sends one to the whole group, and make another one. (Handlers are the main thread's business.)
    """
    if threading.current_thread() is threading.main_thread():
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, lambda *_: None)


def die_with_make() -> None:
    """Under make: end when make (or anything between) is gone, and treat an interrupted make as Ctrl-C here.

    make that is interrupted alone (not its whole group) waits for its recipe and tells it nothing. On Linux it shows: make
    has put its own handler away. The Makefile says in TUNEMILL_MAKE which process it is; MAKELEVEL would not do, since a
    terminal opened from some make hands it on to everything typed there.
    """
    import psutil

    make = os.environ.pop("TUNEMILL_MAKE", "")
    if not make:
        return
    chain: list[psutil.Process] = []
    for each in psutil.Process().parents():
        chain.append(each)
        if each.pid == int(make):
            break
    else:
        print("the make that started this is gone: ending", file=sys.stderr)
        os._exit(143)
    runtime.die_with(chain)
    status = Path(f"/proc/{chain[-1].pid}/status")
    if not _handles_interrupt(status):
        return  # not Linux, or a make that lets go of signals

    def watch() -> None:
        while _handles_interrupt(status):
            time.sleep(0.3)
        if status.exists():
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, name="interrupted-make", daemon=True).start()


def _handles_interrupt(status: Path) -> bool:
    """Whether a process catches SIGINT, from its /proc/…/status."""
    try:
        lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines() if ":" in line)
    except OSError:
        return False
    return bool(int(lines["SigCgt"], 16) >> (signal.SIGINT - 1) & 1)


def describe(status: int) -> str:
    """An exit status in words."""
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with exit status {status}"
