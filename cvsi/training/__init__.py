"""Training of the mapping network phi on captions alone."""
