"""Whatever is killed, nothing stays running, and the next run completes the work."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import psutil
import pytest

from tests.flows.conftest import Toy

pytestmark = pytest.mark.slow


def working(toy: Toy) -> subprocess.Popen[str]:
    """`make run` that has got to a stage that takes long."""
    toy.set("  seconds: 0 # of sleep", "  seconds: 300 # of sleep")
    make = toy.start("make", "run")
    toy.wait(lambda: "lora       │ working" in toy.log, 90, "the stage is at work")
    return make


def ends(toy: Toy, make: subprocess.Popen[str], seconds: float = 15.0) -> None:
    """Everything is gone within seconds; then the work can be completed."""
    toy.wait(lambda: make.poll() is not None and not toy.processes(), seconds, f"gone: {toy.processes()}")
    toy.set("  seconds: 300 # of sleep", "  seconds: 0 # of sleep")
    again = toy.run()
    assert again.returncode == 0, again.stdout + again.stderr
    assert (toy.root / "reports" / "report.html").is_file()


@pytest.mark.parametrize("victim", ["make", "python -m flows", "flows.dvc_process", "stages.toy"])
def test_kill_9_of_one_process_ends_all(toy: Toy, victim: str) -> None:
    make = working(toy)
    process = psutil.Process(make.pid) if victim == "make" else toy.find(victim)
    process.kill()
    ends(toy, make)


def test_interrupt_at_the_terminal_ends_all(toy: Toy) -> None:
    make = working(toy)
    os.killpg(make.pid, signal.SIGINT)
    ends(toy, make)
    assert make.returncode in (-signal.SIGINT, 2, 130)


def test_an_impatient_second_interrupt_breaks_nothing_off(toy: Toy) -> None:
    make = working(toy)
    driver = toy.find("python -m flows")
    for _ in range(20):
        driver.send_signal(signal.SIGINT)
        time.sleep(0.01)
    ends(toy, make)


def test_requests_to_end_break_nothing_off(toy: Toy) -> None:
    toy.set("  exit: 0\nevaluate", "  exit: 0\n  deaf: true\nevaluate")
    make = working(toy)
    for _ in range(2):  # `timeout make run`: one to each of the group, and make sends its recipe another one
        os.killpg(make.pid, signal.SIGTERM)
        time.sleep(1.0)
    ends(toy, make)


def test_interrupt_of_make_alone_ends_all(toy: Toy) -> None:
    make = working(toy)
    make.send_signal(signal.SIGINT)
    ends(toy, make)


def test_terminating_the_driver_ends_all(toy: Toy) -> None:
    driver = toy.start("python", "-m", "flows")
    toy.wait(lambda: bool(toy.ran), 90, "a stage has begun")
    driver.terminate()
    toy.wait(lambda: driver.poll() is not None and not toy.processes(), 15, "gone")
    assert driver.returncode == 130


def test_the_second_run_in_a_checkout_says_who_is_at_work(toy: Toy) -> None:
    make = working(toy)
    second = toy.run()
    assert second.returncode == 1
    assert f"this checkout is held by process {toy.find('python -m flows').pid}" in second.stderr
    assert make.poll() is None
    os.killpg(make.pid, signal.SIGINT)
    ends(toy, make)


def test_a_table_of_locks_that_a_kill_cut_short_is_mended(toy: Toy) -> None:
    for text, old, new in (("", "seconds: 0,", "seconds: 0.1,"), ('{"read": {', "seconds: 0.1,", "seconds: 0.2,")):
        table = toy.root / ".dvc" / "tmp" / "rwlock"
        table.parent.mkdir(exist_ok=True)
        table.write_text(text, encoding="utf-8")
        toy.set(f"collect: {{{old}", f"collect: {{{new}")
        done = toy.run("--until", "collect")
        assert done.returncode == 0, done.stdout + done.stderr
