"""Files that a run leaves on disk: written, read again, upgraded from earlier formats."""
