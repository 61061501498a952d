"""What a running stage says: lines for people (or JSON for machines), and progress with an estimate of the time left.

Library functions take a `Log` and call it; `Log()` is silent, so nothing here is needed to use the library.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Literal, TextIO

Style = Literal["silent", "text", "json"]
Listener = Callable[[int, dict[str, float]], None]


class Log:
    """Progress and messages of one stage.

    Args:
        style: "silent" prints nothing, "text" is for people, "json" prints one JSON object a line.
        stage: the name put before every line.
        stream: where to write; standard error by default.
        listener: called with (step, values) for every step that carries values (MLflow listens here).
    """

    def __init__(
        self,
        style: Style = "silent",
        stage: str = "",
        stream: TextIO | None = None,
        listener: Listener | None = None,
    ) -> None:
        self.style, self.stage, self.listener = style, stage, listener
        self._stream = stream if stream is not None else sys.stderr
        self._total: int | None = None
        self._unit = "step"
        self._began = self._printed = time.monotonic()
        self._first = 0
        self.measured: dict[str, float] = {}
        """What `measure` was told; the edge writes it beside the stage's time and memory."""

    def note(self, text: str, **fields: object) -> None:
        """Say one thing worth knowing."""
        self._emit({"event": "note", "text": text, **fields}, text)

    def measure(self, **values: float) -> None:
        """Keep what was measured on this machine: no part of the result, which is the same on every machine."""
        self.measured |= values

    def start(self, label: str, total: int, unit: str = "step", first: int = 0) -> None:
        """Begin work of `total` units, `first` of them done already (a resumed run)."""
        self._total, self._unit, self._first = total, unit, first
        self._began, self._printed = time.monotonic(), 0.0
        resumed = f", continuing at {first}" if first else ""
        self._emit(
            {"event": "start", "label": label, "total": total, "first": first}, f"{label}: {total} {unit}s{resumed}"
        )

    def __call__(self, step: int, **values: float) -> None:
        """`step` units are done; `values` are what was measured there."""
        if self.listener is not None and values:
            self.listener(step, values)
        if self.style == "silent":
            return
        now = time.monotonic()
        last = self._total is not None and step >= self._total
        # A line every five seconds is enough for a person, and keeps a log file readable.
        if not last and now - self._printed < 5.0:
            return
        self._printed = now
        done = step - self._first
        eta = (now - self._began) / done * (self._total - step) if self._total is not None and done > 0 else None
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._total is None:
            text = f"{self._unit} {step}  {shown}"
        else:
            filled = round(20 * min(step, self._total) / max(self._total, 1))
            left = "" if eta is None else ("done" if last else f"{_clock(eta)} left")
            text = f"[{'█' * filled}{'·' * (20 - filled)}] {step}/{self._total} {self._unit}s  {left}  {shown}"
        record: dict[str, object] = {"event": "progress", "step": step, "total": self._total, "unit": self._unit}
        if eta is not None:
            record["eta_seconds"] = round(eta, 1)
        self._emit({**record, **values}, text.rstrip())

    def _emit(self, record: dict[str, object], text: str) -> None:
        if self.style == "json":
            line = json.dumps({"time": round(time.time(), 3), "stage": self.stage, **record}, default=str)
        elif self.style == "text":
            line = f"{self.stage:<10} │ {text}" if self.stage else text
        else:
            return
        print(line, file=self._stream, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
