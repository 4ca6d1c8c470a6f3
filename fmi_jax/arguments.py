"""Command lines: a parser whose errors are `UsageError`, and types of arguments."""

import argparse
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

from fmi_jax.errors import UsageError, is_plain

_MOST = 10**9  # more than any number of images, pixels, seeds or processes


class Parser(argparse.ArgumentParser):
    """Argument parser that raises `UsageError` for a wrong command line."""

    def error(self, message: str) -> NoReturn:
        """Raise the error."""
        raise UsageError(f"{message}. See: {self.prog} --help")


def check_plain(arguments: Iterable[str]) -> None:
    """Raise `UsageError` for an argument that no file can be named by and no terminal can show."""
    for argument in arguments:
        if not is_plain(argument):
            raise UsageError(f"{argument!r}: expected text in UTF-8 without control characters.")


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
    """Type of a file or a folder: a path that is not empty, which would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("expected the name of a file or a folder, not nothing")
    return Path(text)
