"""Checkpoints: those of a run (`run`) and converted backbone weights (`weights`)."""

from fmi_jax.checkpoints.weights import load_backbone, save_backbone

__all__ = ["load_backbone", "save_backbone"]
