"""From a raw data set to prepared ones."""
