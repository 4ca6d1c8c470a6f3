"""What labels mean, and what a network is measured by."""
