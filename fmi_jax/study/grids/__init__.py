"""One file per table and figure, and one per study of our own."""
