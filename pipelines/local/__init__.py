"""Runs the pipelines on this machine: steps as processes or containers, in parallel, with an estimate of the time."""
