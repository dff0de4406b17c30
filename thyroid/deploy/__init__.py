"""The deployment step: the champion behind KServe."""
