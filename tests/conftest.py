"""What all tests share: no tracking unless a test asks for it, no telemetry, no hub."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

for name, value in {
    "TUNEMILL_TRACKING": "off",
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "2",
    "TQDM_DISABLE": "1",
}.items():
    os.environ.setdefault(name, value)
if "PYTEST_XDIST_WORKER" in os.environ:
    # As many processes as cores run side by side (make test; what starts them has set the above): more threads than cores wait for
    # each other, and those that stages ask for all the same must not spin while they wait, which takes two and a half times as long.
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")

# A test run in the background is told to ignore Ctrl-C, and what the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
# Commands that tests start (`python`, `dvc`, `prefect`) are those of the environment the tests run in.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
