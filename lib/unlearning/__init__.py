"""Terms, methods, steps, train: the paper."""
