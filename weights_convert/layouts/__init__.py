"""Published key layouts: one file each, and their registry."""
