"""Faults of a raw data set, collected so that one message names them all."""

from pathlib import Path

from fmi_jax.errors import UserError

SHOWN = 5
"""Number of places that a message names for each kind of fault; the rest is counted."""


class Problems:
    """Collection of faults by kind, in the order in which the kinds were met.

    Args:
      source: faulty table or folder, named in the message.
    """

    def __init__(self, source: Path):
        self.source = source
        self._places: dict[str, list[str]] = {}

    def add(self, kind: str, *where: str) -> None:
        """Add a fault of `kind` ("image file is missing") at each `where` ("row 7 ('a.png')")."""
        if where:
            self._places.setdefault(kind, []).extend(where)

    def lines(self) -> list[str]:
        """One line per kind of fault."""
        return [
            f"{kind} ({len(places)}): {'; '.join(places[:SHOWN])}"
            + (f"; and {len(places) - SHOWN} more" if len(places) > SHOWN else "")
            for kind, places in self._places.items()
        ]

    def raise_if_any(self, advice: str = "") -> None:
        """Raise one `UserError` that lists every kind of fault, if there is one."""
        if lines := self.lines():
            lines += [advice] if advice else []
            raise UserError(f"{self.source} cannot be used:\n  " + "\n  ".join(lines))
