"""The registry of models, retention in stores and registries, and the erasure of a patient."""
