"""Heads on a backbone, and what adapts it."""
