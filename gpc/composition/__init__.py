"""Several policies as one: alignment, composers, steering."""
