"""The reference image of an artefact, which a model must answer as it was evaluated."""
