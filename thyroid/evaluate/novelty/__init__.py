"""Novelty in the evaluation: its reference, the foreign images that it detects, and what answers are usual."""
