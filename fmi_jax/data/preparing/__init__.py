"""Preparation: reads a raw data set and writes prepared ones."""
