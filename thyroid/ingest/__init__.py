"""The first step of the pipeline, which turns scans into a data version."""
