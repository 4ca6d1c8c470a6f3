"""Tables, figures and statistics of whole studies, from the result files of their cells.

Nothing here computes with a network, and nothing imports jax.
"""
