"""Starts runs on Kubeflow when scans arrive: the server that takes events, and the batches that they make up."""
