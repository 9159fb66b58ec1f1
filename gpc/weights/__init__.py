"""Which weights: the searches."""
