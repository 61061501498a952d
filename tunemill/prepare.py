"""What set-up prepares once, so that no run has to: both files lie in the environment's `share/` folder.

    python tunemill/prepare.py

- `vega.js`: Vega, Vega-Lite and Vega-Embed in one file. The page that `dvc plots show` fills (`.dvc/plots/page.html`) loads it
  from there; DVC's own page would load Vega from a content delivery network.
- `prefect.db`: Prefect's database with all its tables and nothing in them. Making the tables takes longer (some seconds) than
  starting the server; a server's first start copies the file instead.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SHARE = Path(sys.prefix) / "share"
VEGA = SHARE / "vega.js"
PREFECT_DATABASE = SHARE / "prefect.db"


def vega() -> None:
    """Write `VEGA`."""
    import vl_convert

    VEGA.write_text(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"), encoding="utf-8")


def prefect_database() -> None:
    """Write `PREFECT_DATABASE`.

    Raises:
        subprocess.CalledProcessError: Prefect could not make it; its output has been shown.
    """
    with tempfile.TemporaryDirectory(dir=SHARE) as home:
        environment = {
            **os.environ,
            "PREFECT_HOME": home,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
        }
        environment.pop("PREFECT_API_DATABASE_CONNECTION_URL", None)
        command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
        done = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
        if done.returncode != 0:
            print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
            done.check_returncode()
        Path(home, "prefect.db").replace(PREFECT_DATABASE)


def seed_prefect(home: Path) -> None:
    """Give a home that has none a database whose tables are made already, as set-up left it: saves a first start 7 seconds."""
    place = home / "prefect.db"
    if place.exists() or not PREFECT_DATABASE.is_file():
        return
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=home, suffix=".db", delete=False) as copy:
        copy.write(PREFECT_DATABASE.read_bytes())
    with contextlib.suppress(FileExistsError):  # another server was first
        os.link(copy.name, place)
    Path(copy.name).unlink()


if __name__ == "__main__":
    SHARE.mkdir(exist_ok=True)
    vega()
    prefect_database()
