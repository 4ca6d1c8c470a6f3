"""Tasks: losses and metrics by the meaning of labels."""
