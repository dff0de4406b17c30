"""Starts the pipelines on a Kubeflow Pipelines host: one run at once, or runs on a schedule."""
