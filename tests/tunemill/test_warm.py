"""A forked stage is to whoever started it what a process of its own would be."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tunemill import warm

REPOSITORY = Path(__file__).resolve().parents[2]

STAGE = """\
import json, os, signal, sys, time
from pathlib import Path
from tunemill import runtime, warm

if __name__ == "__main__":
    warm.hand_over("toy")
    Path("pid").write_text(f"{os.getpid()} {warm.client or 0}")
    runtime.die_with(runtime.owners())
    print(json.dumps({"arguments": sys.argv[1:], "folder": os.getcwd(), "word": os.environ.get("WORD"),
                      "left": os.environ.get("TUNEMILL_WARM"), "name": __name__, "client": warm.client}), flush=True)
    print("told on standard error", file=sys.stderr, flush=True)
    print(sys.stdin.readline(), end="", flush=True)
    if "wait" in sys.argv:
        def stop(*_):
            sys.exit(7)
        signal.signal(signal.SIGTERM, stop)
        Path("at work").touch()
        time.sleep(60)
    if "die" in sys.argv:
        os.kill(os.getpid(), signal.SIGKILL)
    if "fail" in sys.argv:
        raise ValueError("no use")
    sys.exit(int(sys.argv[-1]))
"""

SERVER = "from tunemill import warm; warm.PRELOADED = ('json.tool',); warm.main()"
PARAMS = "runtime: {device: cpu, dtype: float32, threads: 1}\n"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "toy.py").write_text(STAGE)
    (tmp_path / "params.yaml").write_text(PARAMS)
    return tmp_path


@pytest.fixture
def address(place: Path) -> Iterator[Path]:
    """A warm process that is ready."""
    address = Path(tempfile.mkdtemp(prefix="tunemill-")) / "warm"
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(address)], cwd=place, env=environment(), stdin=subprocess.PIPE
    ) as server:
        wait_for(address)
        yield address
        server.communicate()
        assert server.returncode == 0
    assert not address.parent.exists()


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("TUNEMILL_WARM", "DVC_STAGE")}
    return {**kept, "PYTHONPATH": str(REPOSITORY), **more}


def wait_for(path: Path, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.02)


def start(place: Path, address: Path | str, *arguments: str, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "toy", *arguments],
        cwd=place,
        env=environment(TUNEMILL_WARM=str(address), **more),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def at_work(process: subprocess.Popen[str], place: Path) -> None:
    """Type the line that the stage asks for, and wait until it works."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    wait_for(place / "at work")


def pids(place: Path) -> tuple[int, int]:
    """(the process that does the work, the one that asked for it; 0 where it is the same)."""
    work, asked = map(int, (place / "pid").read_text().split())
    return work, asked


def gone(pid: int, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def test_a_fork_has_the_arguments_the_folder_the_environment_and_the_terminal(place: Path, address: Path) -> None:
    process = start(place, address, "--one", "two words", "4", WORD="é")
    out, err = process.communicate("typed\n")
    first, second = out.splitlines()
    assert process.returncode == 4
    assert eval(first.replace("null", "None")) == {
        "arguments": ["--one", "two words", "4"],
        "folder": str(place),
        "word": "é",
        "left": None,  # what it starts itself is not to ask again
        "name": "__main__",
        "client": process.pid,
    }
    assert second == "typed" and err == "told on standard error\n"
    work, asked = pids(place)
    assert work != process.pid and asked == process.pid


@pytest.mark.parametrize("left", ["off", "/nowhere/warm"])
def test_without_one_it_does_the_work_itself(place: Path, left: str) -> None:
    process = start(place, left, "0")
    out, _ = process.communicate("")
    assert process.returncode == 0 and '"client": null' in out
    assert pids(place) == (process.pid, 0)


def test_torchruns_processes_start_by_themselves(place: Path, address: Path) -> None:
    process = start(place, address, "0", RANK="1")
    process.communicate("")
    assert process.returncode == 0 and pids(place) == (process.pid, 0)


def test_how_a_fork_ends_is_how_the_one_that_asked_ends(place: Path, address: Path) -> None:
    process = start(place, address, "die", "0")
    process.communicate("")
    assert process.returncode == -signal.SIGKILL
    process = start(place, address, "fail", "0")
    _, err = process.communicate("")
    assert process.returncode == 1 and "ValueError: no use" in err


def test_two_at_once(place: Path, address: Path) -> None:
    slow, quick = start(place, address, "wait", "0"), start(place, address, "5")
    quick.communicate("")
    assert quick.returncode == 5 and slow.poll() is None
    at_work(slow, place)
    slow.terminate()
    slow.communicate()
    assert slow.returncode == 7  # its own handler's answer


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_what_ends_the_one_ends_the_other(place: Path, address: Path, number: signal.Signals) -> None:
    process = start(place, address, "wait", "0")
    assert process.stdin is not None
    process.stdin.close()
    deadline = time.monotonic() + 20
    while not (place / "at work").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    work, _ = pids(place)
    if process.poll() is None:
        process.send_signal(number)
    process.wait(timeout=20)
    assert gone(work)


def test_a_fork_runs_what_was_edited_since(place: Path, address: Path) -> None:
    (place / "toy.py").write_text(STAGE.replace("told on", "said on"))
    _, err = start(place, address, "0").communicate("")
    assert err == "said on standard error\n"


def test_a_warm_process_that_is_killed_ends_what_it_forked(place: Path) -> None:
    address = Path(tempfile.mkdtemp(prefix="tunemill-")) / "warm"
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(address)], cwd=place, env=environment(), stdin=subprocess.PIPE
    )
    wait_for(address)
    process = start(place, address, "wait", "0")
    at_work(process, place)
    server.kill()
    server.communicate()
    _, err = process.communicate()
    assert process.returncode == 1 and err.splitlines()[-2:] == [
        "error: the process that stages are forked from is gone",
        "  fix: the same command continues; with TUNEMILL_WARM=off each stage is a process of its own",
    ]
    assert gone(pids(place)[0])


def test_where_it_is_possible(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(warm, "GPUS", (tmp_path / "nvidiactl",))
    monkeypatch.setattr(sys, "platform", "linux")
    assert warm.possible("/tmp/tunemill-x/warm") and not warm.possible("/tmp/" + "x" * 96)
    (tmp_path / "nvidiactl").touch()
    assert not warm.possible("/tmp/tunemill-x/warm")
    (tmp_path / "nvidiactl").unlink()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not warm.possible("/tmp/tunemill-x/warm")


def test_a_warm_process_that_is_asked_to_end_leaves_nothing(place: Path) -> None:
    address = Path(tempfile.mkdtemp(prefix="tunemill-")) / "warm"
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(address)], cwd=place, env=environment(), stdin=subprocess.PIPE
    ) as server:
        wait_for(address)
        server.terminate()
    assert server.returncode == 143 and not address.parent.exists()


def test_one_that_stops_while_it_asks_stops_nobody_else(place: Path, address: Path) -> None:
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(address))
        line.send(b"\0\0")  # and nothing more
        process = start(place, address, "3")
        process.communicate("")
        assert process.returncode == 3 and pids(place)[1] == process.pid
