"""The deployment step, which serves the champion with KServe."""
