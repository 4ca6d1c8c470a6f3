"""Layers shared by the backbone families; each is named for the file that holds it."""
