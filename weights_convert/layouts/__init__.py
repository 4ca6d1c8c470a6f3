"""Published key layouts: one file per family, and their registry."""
