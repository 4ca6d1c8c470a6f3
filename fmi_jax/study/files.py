"""Names of the files of a cell beside those of its run, and the format of a study's plan."""

CELL = "cell.json"
"""The config it is run with."""

FAILED = "failed.json"
"""Why it failed, if it did."""

LOG = "log.txt"
"""What its process said."""

CLAIM = ".claim"
"""What is locked while it runs."""

FORMAT = 2
"""Format number of `<study>.json`; in format 1 settings lacked `shows` and `label`."""
