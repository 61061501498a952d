"""Mistakes that a user can mend: what was wrong, where, what was expected, how to fix it. Never a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

TRY_AGAIN = 75
"""Exit code (EX_TEMPFAIL of sysexits.h) of what may pass by itself, a network that is away: the flow tries again."""


class UserError(Exception):
    """A mistake in configuration, data or set-up.

    Args:
        what: what is wrong, with the value found.
        where: file and line, or file and key.
        expected: what is allowed there.
        fix: what to do about it.
        exit_code: 2 for a mistake in `params.yaml` or on the command line, 1 for bad data and everything else.
    """

    def __init__(self, what: str, *, where: str = "", expected: str = "", fix: str = "", exit_code: int = 1) -> None:
        self.what, self.where, self.expected, self.fix, self.exit_code = what, where, expected, fix, exit_code
        super().__init__(str(self))

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.expected:
            lines.append(f"  expected: {self.expected}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None where nothing is close."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return found[0] if found else None
