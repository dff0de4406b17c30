"""The search for a training's settings."""
