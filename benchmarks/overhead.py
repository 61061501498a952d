"""What the pipeline costs beyond its stages: `make run` against the sum of the same stages run by hand.

    python benchmarks/overhead.py [--recipe tiny] [--pipeline-only] [--limit 1500]

Two fresh copies of the checkout share nothing but the environment. In the first every stage runs as
`python -m stages.<name> …`, in order; in the second `python -m flows` runs the pipeline. Both wall times and their ratio are
printed. On a machine that others use, take the median of several calls. With `--limit` the command fails where `make run`
takes more seconds; with `--pipeline-only` nothing is run by hand.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def commands(place: Path) -> list[tuple[str, str]]:
    """Stage and command, in order, as DVC would run them."""
    told = subprocess.run(
        [
            sys.executable,
            "-c",
            "import json\nfrom dvc.repo import Repo\nrepo = Repo('.')\nimport networkx\n"
            "order = list(reversed(list(networkx.topological_sort(repo.index.graph))))\n"
            "print(json.dumps([(stage.name, stage.cmd) for stage in order]))",
        ],
        cwd=place,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    # By hand there is no dvc.lock for the report to show the lineage of.
    return [(name, command.replace(" --lock dvc.lock", "")) for name, command in json.loads(told)]


def main() -> int:
    """Measure and print one JSON object."""
    from tests.e2e import checkout

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--recipe", help="overlay of params.yaml; the default run without it")
    parser.add_argument("--pipeline-only", action="store_true", help="run no stage by hand")
    parser.add_argument("--limit", type=float, help="fail where the pipeline takes more seconds")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=ROOT / "work") as folder:
        places = [Path(folder) / name for name in ("by-hand", "pipeline")]
        for place in places:
            place.mkdir()
            checkout.make(place, arguments.recipe)
        by_hand: dict[str, float] = {}
        # The stages' commands say `python`: this one.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        environment = {**checkout.environment(), "PATH": path}
        for name, command in [] if arguments.pipeline_only else commands(places[0]):
            began = time.perf_counter()
            done = subprocess.run(
                shlex.split(command), cwd=places[0], env=environment, text=True, capture_output=True, check=False
            )
            if done.returncode != 0:
                raise SystemExit(f"{command} ended with {done.returncode}:\n{done.stderr}")
            by_hand[name] = round(time.perf_counter() - began, 1)
            print(f"{name}: {by_hand[name]} s", file=sys.stderr, flush=True)
        began = time.perf_counter()
        checkout.run(places[1], sys.executable, "-m", "flows", timeout=7200)
        pipeline = time.perf_counter() - began
    total = sum(by_hand.values())
    print(
        json.dumps(
            {
                "stages": by_hand,
                "by_hand_seconds": round(total, 1),
                "pipeline_seconds": round(pipeline, 1),
                "ratio": round(pipeline / total, 3) if total else None,
            }
        )
    )
    return 1 if pipeline > (arguments.limit or float("inf")) else 0


if __name__ == "__main__":
    sys.exit(main())
