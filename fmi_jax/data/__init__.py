"""Data sets: preparation and loading."""
