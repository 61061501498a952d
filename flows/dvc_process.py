"""`dvc`, as a process that ends with the flow that started it: python -m flows.dvc_process --wait-for-lock repro --single-item NAME

Not called dvc.py: Prefect puts the folder of the flow's file first on Python's path, where it would hide DVC itself.
"""

from __future__ import annotations

import sys

from flows.processes import bind_to_owner


def main() -> int:
    """DVC's own command line, watched."""
    bind_to_owner()
    from dvc.cli import main as dvc

    return int(dvc(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
