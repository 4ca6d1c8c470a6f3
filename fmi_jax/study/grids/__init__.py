"""Grids of experiments: one file per table or figure of the paper, and per study of our own."""
