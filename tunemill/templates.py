"""Templates: text around every prompt, `{prompt}` in its place; other braces stand for themselves."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

FIELD = "{prompt}"
"""What a template has in the prompt's place."""
PLAIN = FIELD
"""The template that adds nothing."""


def fill(template: str, prompt: str) -> str:
    """The template with the prompt in its place, wherever that is.

    Raises:
        ValueError: the template has no place for it.
    """
    return checked(template).replace(FIELD, prompt)


def checked(template: str) -> str:
    """The template itself.

    Raises:
        ValueError: it has no place for a prompt.
    """
    if FIELD not in template:
        raise ValueError(f"a text with {FIELD} in the prompt's place")
    return template


Template = Annotated[str, AfterValidator(checked)]
"""A template in params.yaml."""
