"""Layers shared by the backbone families."""
