"""One training loop for every method, and the directory in which a run lives."""
