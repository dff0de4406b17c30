"""The log of decisions, which holds no pixels."""
