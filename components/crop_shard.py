"""One shard of crop as a pipeline step."""

from kfp.dsl import Dataset, Input

from components.crop import margin_and_jitter
from components.step import step


@step(image="data")
def crop_shard(
    data: Input[Dataset],
    recipe: str,
    settings: str,
    margin: float,
    jitter: float,
    store: str,
    shard: int,
    shards: int,
):
    """Make the images of a share of the scans, beside the other shards, for the crop that follows."""
    from pathlib import Path

    from thyroid.crop import CropOptions, crop_shard
    from thyroid.shards import Shard

    margin, jitter = margin_and_jitter(margin, jitter, recipe, settings)
    crop_shard(Path(data.path), CropOptions(store=store, margin=margin, jitter=jitter), Shard(shard, shards))
