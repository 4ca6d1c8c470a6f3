"""Small raw data sets drawn by programs, one file per raw layout, for demos and tests."""
