"""The training step: one backbone on one domain."""
