"""One shard of ingest as a pipeline step."""

from components.step import step


@step(image="data")
def ingest_shard(
    scans: str,
    rois: str,
    crops: str,
    labels: str,
    classes: str,
    store: str,
    shard: int,
    shards: int,
):
    """Download, decode and hash a share of the new scans, beside the other shards, for the ingest that follows."""
    from thyroid.ingest.options import IngestOptions
    from thyroid.ingest.shards.shard import examine_shard
    from thyroid.shards import Shard

    examine_shard(IngestOptions(scans, rois, crops, labels, classes, store=store), Shard(shard, shards))
