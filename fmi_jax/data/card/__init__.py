"""Card of a prepared data set: a page and a picture."""
