"""Audits of a model: what it could know without looking at the nodule, and what leaked into the test set."""
