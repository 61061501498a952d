"""Stages that start warm: forked from a process that has imported torch, transformers and MLflow already.

Importing them takes some eight seconds of every stage, more than half of what a stage does to a tiny model. A run of the
lifecycle (`flows.run`) starts one process that imports them once:

    python -m tunemill.warm SOCKET        as long as its standard input stays open

`python -m stages.lora …`, started by DVC as ever, finds SOCKET in the environment (TUNEMILL_WARM), asks for a fork of that
process, lends it its terminal, environment and folder, and waits for it: what ends the one ends the other. The fork
imports this project's own code anew, so that what runs is what DVC has recorded. Nobody there, or another system than
Linux (where forking is safe after these imports): the stage imports everything itself. TUNEMILL_WARM=off asks for that.
"""

from __future__ import annotations

import array
import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VARIABLE = "TUNEMILL_WARM"
"""Environment variable that says where the warm process is to be asked; `off`: there is to be none."""

PRELOADED = (
    "scipy.optimize",
    "torch",
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "torch.distributed.tensor",
    "transformers.generation.utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "peft",
    "datasets",
    "mlflow.tracking.client",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store",
)
"""What most stages import from others, in this order."""

PATIENCE = 5.0
"""Seconds for a stage to say what it asks."""

LONGEST_ADDRESS = 100
"""Bytes; a socket's path has room for 107."""

client: int | None = None
"""In a forked stage: the process that DVC started, which this one must not outlive."""


GPUS = tuple(Path("/dev", name) for name in ("nvidiactl", "nvmap", "nvhost-gpu", "dxg", "kfd"))
"""There where NVIDIA's driver is (on Jetson, in WSL), or AMD's."""


def possible(address: str) -> bool:
    """Whether stages can be forked here, and be asked for at this path.

    Not beside a GPU: some libraries look for one when they are imported, and a fork cannot use a driver that has been woken.
    """
    return sys.platform == "linux" and len(os.fsencode(address)) <= LONGEST_ADDRESS and not any(map(Path.exists, GPUS))


# ── the stage that DVC starts ─────────────────────────────────────────────────────────────────────────────────────────


def hand_over(module: str) -> None:
    """Let the warm process run this one's command line, and end as that ends; return where there is none.

    Args:
        module: what `python -m` was given.
    """
    address = os.environ.pop(VARIABLE, "off")
    if address == "off" or "RANK" in os.environ:  # processes of torchrun and accelerate belong together
        return
    asked = {"module": module, "arguments": sys.argv[1:], "folder": str(Path.cwd()), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX) as line:
        try:
            line.connect(address)
            _send(line, asked, [0, 1, 2])
            pid = _number(line)
        except (OSError, EOFError):
            return  # not there yet, or not any more
        ending: list[int] = []

        def forward(number: int, _: Any) -> None:
            ending.append(number)
            _tell(pid, number)

        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, forward)
        try:
            status = _number(line)
        except (OSError, EOFError):
            if not ending:  # the fork has not been told: this process is the one that it watches
                _tell(pid, signal.SIGTERM)
                print(
                    "error: the process that stages are forked from is gone\n"
                    f"  fix: the same command continues; with {VARIABLE}=off each stage is a process of its own",
                    file=sys.stderr,
                )
            status = 1
    if status < 0:  # as if it had been this one
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status if status >= 0 else 128 - status)


def _tell(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _send(line: socket.socket, asked: Mapping[str, Any], descriptors: list[int]) -> None:
    content = json.dumps(asked).encode()
    line.sendmsg(
        [len(content).to_bytes(8, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
    )
    line.sendall(content)


def _number(line: socket.socket) -> int:
    return int.from_bytes(_read(line, 8), "big", signed=True)


def _read(line: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        more = line.recv(size - len(content))
        if not more:
            raise EOFError
        content += more
    return content


# ── the warm process ──────────────────────────────────────────────────────────────────────────────────────────────────


def serve(address: str) -> dict[str, Any] | None:
    """Fork for whoever asks, until standard input is closed. Returns in each fork too, with what was asked.

    Returns:
        None in the process itself, at its end.
    """
    work: dict[int, socket.socket] = {}
    wake, waker = os.pipe()
    for each in (wake, waker):
        os.set_blocking(each, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    with socket.socket(socket.AF_UNIX) as door, selectors.DefaultSelector() as events:
        door.bind(address)
        door.listen(16)
        events.register(door, selectors.EVENT_READ)
        events.register(wake, selectors.EVENT_READ)
        events.register(0, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in events.select()}
            if wake in ready:
                os.read(wake, 4096)
                _report(work)
            if 0 in ready and not os.read(0, 4096):
                return None
            if door in ready:
                line, _ = door.accept()
                line.settimeout(PATIENCE)  # one that is stopped while it asks must not stop the others
                try:
                    asked, lent = _receive(line)
                except (OSError, EOFError, ValueError):  # killed while it asked
                    line.close()
                    continue
                line.settimeout(None)
                sys.stdout.flush()  # or each fork would say it again
                sys.stderr.flush()
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    for number in (signal.SIGCHLD, signal.SIGTERM):
                        signal.signal(number, signal.SIG_DFL)
                    for each in (wake, waker):
                        os.close(each)
                    asked["client"] = _peer(line)
                    for other in (line, *work.values()):
                        other.close()
                    for at, each in enumerate(lent):
                        os.dup2(each, at)
                        os.close(each)
                    return asked
                for each in lent:
                    os.close(each)
                work[pid] = line
                with contextlib.suppress(OSError):
                    line.sendall(pid.to_bytes(8, "big", signed=True))


def _report(work: dict[int, socket.socket]) -> None:
    """Tell those who wait how their forks have ended."""
    while work:  # each of them is a child, so there is one to wait for
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        line = work.pop(pid, None)
        if line is None:  # a library's helper
            continue
        with line, contextlib.suppress(OSError):
            line.sendall(os.waitstatus_to_exitcode(status).to_bytes(8, "big", signed=True))


def _receive(line: socket.socket) -> tuple[dict[str, Any], list[int]]:
    room = array.array("i")
    head, extra, _, _ = line.recvmsg(8, socket.CMSG_LEN(3 * room.itemsize))
    for level, kind, content in extra:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            room.frombytes(content[: len(content) - len(content) % room.itemsize])
    lent = list(room)
    try:
        asked = json.loads(_read(line, int.from_bytes(head, "big")))
    except BaseException:
        for each in lent:
            os.close(each)
        raise
    return asked, lent


def _peer(line: socket.socket) -> int:
    """The process at the other end, as the kernel knows it."""
    told = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(told[:4], sys.byteorder)


def become(asked: Mapping[str, Any]) -> None:
    """Run the module that was asked for as `python -m` would; this process ends with it."""
    os.setsid()
    os.chdir(asked["folder"])
    sys.path[0] = asked["folder"]
    malloc = os.environ.get("GLIBC_TUNABLES")  # read when this process started, and so true of its forks
    os.environ.clear()
    os.environ.update(asked["environment"])
    if malloc is not None:
        os.environ["GLIBC_TUNABLES"] = malloc
    for name in [each for each in sys.modules if each.partition(".")[0] in ("tunemill", "stages")]:
        del sys.modules[name]  # what was edited since is what runs
    importlib.import_module("tunemill.warm").end_with(asked["client"])
    sys.argv = [asked["module"], *asked["arguments"]]
    runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)


def end_with(asked_by: int) -> None:
    """End this fork as soon as the process that asked for it is gone."""
    import psutil

    from tunemill import runtime

    global client
    client = asked_by
    try:
        asking = psutil.Process(client)
    except psutil.NoSuchProcess:
        os._exit(143)
    runtime.die_with([asking])


def main() -> None:
    """The warm process's own command line: the socket's path."""
    from tunemill import runtime, stage
    from tunemill.params import ParamsFile

    if len(sys.argv) != 2:
        sys.exit("usage: python -m tunemill.warm SOCKET")
    runtime.tighten_malloc()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left of the socket
    # As each stage does for itself, and before what it imports reads it.
    runtime.set_threads(ParamsFile(Path("params.yaml")).section("runtime", runtime.RuntimeParams).threads)
    stage.prepare()
    address = Path(sys.argv[1])
    asked = None
    try:
        for name in PRELOADED:
            importlib.import_module(name)
        if threading.active_count() > 1:
            sys.exit("what was imported has started a thread, which no fork would have: every stage imports for itself")
        gc.freeze()  # what is here stays: a fork that looked through it for garbage would copy all of it
        asked = serve(str(address))
    finally:
        if asked is None:
            with contextlib.suppress(OSError):
                address.unlink()
            with contextlib.suppress(OSError):
                address.parent.rmdir()
    if asked is not None:
        become(asked)


if __name__ == "__main__":
    main()
