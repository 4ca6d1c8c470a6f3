"""Saliency: where a network looks, and how well that agrees with where something is."""
