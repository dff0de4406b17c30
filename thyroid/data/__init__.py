"""Data versions: their tables, splits, classes and the store that keeps them from run to run."""
