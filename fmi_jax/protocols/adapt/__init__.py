"""Adaptations of a backbone: what of it learns."""
