"""Raw data sets drawn by programs, small, for demos and tests; one file per raw layout."""
