"""Ingest as a pipeline step."""

from kfp.dsl import HTML, Dataset, Metrics, Output, OutputPath

from components.step import step


@step(image="data")
def ingest(
    scans: str,
    rois: str,
    crops: str,
    labels: str,
    classes: str,
    given_splits: str,
    site: str,
    store: str,
    registry: str,
    minimum: int,
    train_on: str,
    recipe: str,
    settings: str,
    seed: int,
    data: Output[Dataset],
    metrics: Output[Metrics],
    version: OutputPath(str),  # type: ignore[valid-type]
    verdict: OutputPath(str),  # type: ignore[valid-type]
    champion: OutputPath(int),  # type: ignore[valid-type]
    statistics: Output[HTML],
):
    """Parse, check, hash, group and split the scans, and decide whether enough is new for a training."""
    from pathlib import Path

    from components.pages import picture_page
    from thyroid.data.version import DataVersion
    from thyroid.ingest.ingest import ingest as run
    from thyroid.ingest.options import IngestOptions
    from thyroid.registry import changes
    from thyroid.registry.registry import Registry

    alarmed = changes.alarm(registry, train_on)
    options = IngestOptions(scans, rois, crops, labels, classes, given_splits, site, store, seed)
    done = run(options, Path(data.path))
    data.metadata["digest"] = done.facts.digest
    written = DataVersion.read(done.folder)
    changed = changes.since_last(written, registry)
    decided = changes.verdict(changed, minimum, alarmed)
    print(f"{changed.describe()}: {decided}", flush=True)
    if alarmed is not None:
        print(f"the watch on the night of {alarmed.night}: {alarmed.verdict}: {alarmed.summary}", flush=True)
    Path(version).write_text(written.fingerprint)
    Path(verdict).write_text(decided)
    # The trainings take this as a parameter: the cache would not notice another champion in the same registry.
    Path(champion).write_text(str(Registry(registry).read_aliases().get("champion", 0) if recipe == "warm" else 0))
    for name in ("scans", "quarantined", "patients", "duplicate_groups", "regions"):
        metrics.log_metric(name, getattr(done.facts, name))
    for name in ("new", "changed", "removed"):
        metrics.log_metric(name, len(getattr(changed, name)))
    picture_page(statistics.path, "Data", done.folder / "statistics.png")
