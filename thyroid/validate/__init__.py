"""A registered model on another hospital's scans: figures beside the internal test, and sites pooled from counts."""
