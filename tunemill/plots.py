"""What `dvc plots show` needs to draw without a network: Vega, Vega-Lite and Vega-Embed as one file, `.venv/share/vega.js`.

    python tunemill/plots.py

Set-up runs it. The page that DVC fills (`.dvc/plots/page.html`) loads the file from there; DVC's own page would load Vega
from a content delivery network.
"""

from __future__ import annotations

import sys
from pathlib import Path


def bundle() -> Path:
    """Write the file into the environment that runs this.

    Returns:
        Where it is.
    """
    import vl_convert

    place = Path(sys.prefix) / "share" / "vega.js"
    place.parent.mkdir(exist_ok=True)
    place.write_text(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"), encoding="utf-8")
    return place


if __name__ == "__main__":
    bundle()
