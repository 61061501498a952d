"""`dvc repro` of one stage, as a process that ends with the flow that started it: python -m flows.dvc_process NAME [WORKSPACE …]

What one of the other workspaces has made already is restored (`flows.sharing`). Not called dvc.py: Prefect puts the folder of the
flow's file first on Python's path, where it would hide DVC itself.
"""

from __future__ import annotations

import sys
from pathlib import Path

from flows import locking, sharing
from flows.processes import bind_to_owner

RESTORED = "is cached - skipping run"
"""What DVC says where its own run cache has a stage, and so does this."""


def main() -> int:
    """DVC's own command line, watched."""
    bind_to_owner()
    name, *others = sys.argv[1:]
    locking.install()  # first: what is restored is written into dvc.lock as well
    if sharing.adopt(Path.cwd(), name, [Path(each) for each in others]) is not None:
        print(f"Stage '{name}' {RESTORED}, checking out outputs", flush=True)
    from dvc.cli import main as dvc

    return int(dvc(["--wait-for-lock", "repro", "--single-item", name]))


if __name__ == "__main__":
    sys.exit(main())
