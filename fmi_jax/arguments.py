"""Command lines: a parser whose errors are `UsageError`, and types of arguments."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from fmi_jax.errors import UsageError, is_plain

_MOST = 10**9  # more than any number of images, pixels, seeds or processes


class Parser(argparse.ArgumentParser):
    """Argument parser that raises `UsageError` for a wrong command line."""

    def error(self, message: str) -> NoReturn:
        """Raise the error."""
        raise UsageError(f"{message}. See: {self.prog} --help")


def whole(least: int, most: int = _MOST) -> Callable[[str], int]:
    """Type of a whole number in a range: `type=whole(1)`."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(
                f"expected a whole number from {least} to {most}, not {text!r}"
            )
        return number

    return parse


def positive(text: str) -> float:
    """Type of a number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, not {text!r}")
    return number


def place(text: str) -> Path:
    """Type of a file or a folder: a path that is not empty and can be shown."""
    if not text or not is_plain(text):
        raise argparse.ArgumentTypeError(f"expected the name of a file or a folder, not {text!r}")
    return Path(text)
