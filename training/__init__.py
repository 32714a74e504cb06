"""A training step, which parameters train, and a run on disk."""
