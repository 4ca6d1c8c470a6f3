"""Public checkpoints into native weights files: `python -m weights_convert --help`."""
