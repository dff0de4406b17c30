"""The start of a search as a pipeline step."""

from kfp.dsl import Artifact, Dataset, Input, Output

from components.step import step


@step(image="train")
def sweep_prepare(
    images: Input[Dataset],
    fingerprint: str,
    backbone: str,
    weights: str,
    image_size: int,
    epochs: int,
    batch_size: int,
    folds: int,
    store: str,
    seed: int,
    study: Output[Artifact],
):
    """Create or find the study in the store, and compute the features of every tap."""
    from pathlib import Path

    from thyroid import storage
    from thyroid.data.version import DataVersion
    from thyroid.errors import InputError
    from thyroid.sweep.options import SweepOptions
    from thyroid.sweep.prepare import prepare

    if not store:
        raise InputError("store: a search needs a place that all workers see, a folder on the volume or a bucket")
    DataVersion.read(Path(images.path)).require_fingerprint(fingerprint)
    options = SweepOptions(weights, image_size, epochs, batch_size, folds=folds, seed=seed)
    plan = prepare(Path(images.path), storage.below(store, "sweeps"), backbone, options=options)
    Path(study.path).write_text(plan.address)
    study.metadata |= {"folder": plan.address}
