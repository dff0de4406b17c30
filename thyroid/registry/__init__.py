"""The registry of models and what keeps it and a store small and lawful: publication, retention, erasure."""
