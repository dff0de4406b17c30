"""JSON files in a version's folder of the registry that were written after the version was published.

model.json has no hash of them, so the version stays valid.
"""
