"""Formatting of numbers, words and links for a reader."""

import math
import os
import urllib.parse
from pathlib import Path

MINUS = "\N{MINUS SIGN}"


def number(value: float, digits: int = 3) -> str:
    """Format a number: "0.912"; "undefined" for NaN."""
    return "undefined" if math.isnan(value) else f"{value:.{digits}f}".replace("-", MINUS)


def percent(share: float) -> str:
    """A share of 0..1 as a reader wants it: never 0% of something, nor 100% of not quite all."""
    for bound, text in ((0.001, "<0.1%"), (0.1, f"{share:.1%}"), (0.995, f"{share:.0%}")):
        if 0 < share < bound:
            return text
    return ">99%" if 0 < share < 1 else f"{share:.0%}"


def signed(value: float, digits: int = 3) -> str:
    """Format with a sign: "+0.012", with a real minus; never a signed zero."""
    text = f"{value:+.{digits}f}".replace("-", MINUS)
    return text[1:] if float(f"{value:.{digits}f}") == 0 else text


def spread(mean: float, std: float | None) -> str:
    """Format a mean and deviation: "0.912 ± 0.004"; the mean alone if there is no deviation."""
    if std is None or math.isnan(std):
        return number(mean)
    return f"{number(mean)} \N{PLUS-MINUS SIGN} {number(std)}"


def between(bounds: tuple[float, float], digits: int = 3) -> str:
    """Format an interval: "0.90 to 0.93"; empty if there is none."""
    low, high = bounds
    return "" if math.isnan(low) else f"{number(low, digits)} to {number(high, digits)}"


def p_value(p: float) -> str:
    """Format a p-value: "p = 0.012", "p < 0.001"; empty for NaN."""
    if math.isnan(p):
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def count(number: int, name: str) -> str:
    """Format a count: "1 cell", "2 cells"."""
    return f"{number:,} {name}" if number == 1 else f"{number:,} {name}s"


def listed(names: list[str], shown: int = 8) -> str:
    """Join names: "a, b and c"; only the first `shown` if there are more."""
    if len(names) > shown:
        return f"{', '.join(names[:shown])} and {len(names) - shown} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def sentence(text: str) -> str:
    """Make a sentence with a capital letter and a full stop."""
    if "/" not in text.partition(" ")[0]:  # a path stays as it is
        text = text[:1].upper() + text[1:]
    return text + ("" if text.endswith((".", "?", "!")) else ".")


def link(path: Path, out: Path) -> str:
    """Make a relative link to a file as seen from the folder `out`."""
    return urllib.parse.quote(Path(os.path.relpath(path, out)).as_posix())
