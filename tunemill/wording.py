"""Values as a person reads them: numbers, bytes, durations, and text from strangers with nothing hidden in it.

No I/O and no language but English; undefined is always —.
"""

from __future__ import annotations

import math
import unicodedata


def number(value: float | None, digits: int = 1) -> str:
    """A number for reading: thousands set apart, a true minus sign, — for undefined."""
    if value is None:
        return "—"
    text = f"{value:,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("-")
    return text.replace("-", "−")


def signed(value: float | None, digits: int = 1) -> str:
    """A difference: always with its sign."""
    text = number(value, digits)
    return text if value is None or text.startswith("−") or float(text.replace(",", "")) == 0 else f"+{text}"


def tick(value: float) -> str:
    """A number at an axis: no more digits than it needs."""
    return f"{value:,.6f}".rstrip("0").rstrip(".").replace("-", "−")


def brief(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """A number of unknown size: so many digits that say something, and always with its sign if asked for."""
    if value is None:
        return "—"
    magnitude = math.floor(math.log10(abs(value))) if value else 0
    places = max(0, digits - 1 - magnitude)
    text = signed(value, places) if sign else number(value, places)
    return text.rstrip("0").rstrip(".") if places and "." in text else text


def size(count: float | None) -> str:
    """Bytes in the binary unit that keeps one to three digits before the point."""
    if count is None:
        return "—"
    for unit, digits in (("B", 0), ("KiB", 0), ("MiB", 0), ("GiB", 2)):
        if count < 1024 or unit == "GiB":
            return f"{count:,.{digits}f} {unit}"
        count /= 1024
    raise AssertionError


def duration(seconds: float | None) -> str:
    """Seconds as a person says them."""
    if seconds is None:
        return "—"
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def share(percent: float | None) -> str:
    """A percentage with two digits that say something, however small it is."""
    if percent is None or percent == 0 or percent >= 10:
        return number(percent, 0 if percent in (0, 100) else 1) + ("" if percent is None else "%")
    return f"{percent:.2g}%" if percent >= 0.001 else "<0.001%"


def p_value(value: float | None) -> str:
    """A p-value; below a thousandth only that."""
    if value is None:
        return ""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def plural(count: int | float | None, noun: str) -> str:
    """A count and its noun."""
    if count is None:
        return f"— {noun}s"
    if noun.endswith("criterion"):
        return f"{number(count, 0)} {noun if count == 1 else noun[:-2] + 'a'}"
    if noun.endswith("y") and not noun.endswith(("ay", "ey", "oy", "uy")):
        return f"{number(count, 0)} {noun if count == 1 else noun[:-1] + 'ies'}"
    return f"{number(count, 0)} {noun if count == 1 else noun + 's'}"


def visible(text: str) -> str:
    """Text from data or a model with nothing hidden in it.

    Control characters become their pictures (␀, ␛), and what turns the direction of writing, has no width or is half a
    surrogate pair becomes �: a report must not let a model's output rearrange the page or vanish in it.
    """
    shown = []
    for character in text:
        category = unicodedata.category(character)
        if category == "Cc" and character not in "\n\t":
            code = ord(character)
            shown.append(chr(0x2400 + code) if code < 32 else "␡" if code == 127 else "�")
        # A zero-width joiner belongs to ordinary emoji and to Indic scripts, a soft hyphen to ordinary text.
        elif category in ("Cs", "Co", "Cn") or (category == "Cf" and character not in "\u200d\u200c\u00ad"):
            shown.append("�")
        else:
            shown.append(character)
    return "".join(shown)
