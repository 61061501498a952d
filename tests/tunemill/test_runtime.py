"""The machine: malloc's settings for large tensors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tunemill import runtime

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import os, sys
from tunemill import runtime
print(os.getpid(), sys.argv[1:], os.environ.get("GLIBC_TUNABLES"))
runtime.tighten_malloc()
"""


@pytest.mark.skipif("glibc" not in runtime._c_library(), reason="a setting of glibc")
def test_the_process_starts_again_once_as_the_same_process(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    env.pop("GLIBC_TUNABLES", None)

    def lines(**given: str) -> list[list[str]]:
        done = subprocess.run(
            [sys.executable, "-u", "program.py", "--out", "a b"],
            cwd=tmp_path,
            env={**env, **given},
            text=True,
            capture_output=True,
            check=True,
        )
        return [line.rsplit(" ", 1) for line in done.stdout.splitlines()]

    first, second = lines()
    assert first[0] == second[0] and "['--out', 'a b']" in first[0]  # process and flags
    assert (first[1], second[1]) == ("None", runtime.TIGHT_MALLOC)
    # What the user has set is left alone.
    assert [each[1] for each in lines(GLIBC_TUNABLES="glibc.malloc.perturb=0")] == ["glibc.malloc.perturb=0"]
