"""After release: the log of decisions, drift, and outcomes."""
