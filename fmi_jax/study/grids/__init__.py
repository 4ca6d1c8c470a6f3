"""Grids of experiments: one file per table and figure of the paper, and per study of our own."""
