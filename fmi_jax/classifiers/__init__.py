"""Backbones with a head."""
