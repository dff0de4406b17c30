"""Trains one backbone on one domain (the training step)."""
