"""A model as it is built, run, explained and kept: backbones, engines, operating point, artefact."""
