"""File names of a cell, beside those of its run, and the format of a study's plan."""

CELL = "cell.json"
"""Config of the cell."""

FAILED = "failed.json"
"""Reason of its failure, if it failed."""

LOG = "log.txt"
"""Output of its process."""

CLAIM = ".claim"
"""File that is locked while the cell runs."""

CELL_FORMAT = 1
"""Format number of `cell.json` and `failed.json`."""

FORMAT = 2
"""Format number of `<study>.json`; in format 1 settings lacked `shows` and `label`."""
