"""Data sets as they are published: one file for each."""
