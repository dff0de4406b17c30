"""Builds, runs, explains and stores a model: backbones, engines, operating point, artefact."""
