"""Tables, figures and statistics of whole studies, from the files that their cells left.

Nothing here computes with a network, and nothing imports jax.
"""
