"""Ingest as a pipeline step."""

from kfp.dsl import HTML, Dataset, Metrics, Output, OutputPath

from components.step import step


@step(image="data")
def ingest(
    scans: str,
    rois: str,
    crops: str,
    given_splits: str,
    previous: str,
    seed: int,
    data: Output[Dataset],
    metrics: Output[Metrics],
    version: OutputPath(str),  # type: ignore[valid-type]
    statistics: Output[HTML],
):
    """Parse, check, hash, group and split the scans."""
    from pathlib import Path

    from components.pages import picture_page
    from thyroid import tables
    from thyroid.ingest import ingest as run

    done = run(
        Path(scans),
        Path(data.path),
        rois=Path(rois) if rois else None,
        crops=Path(crops) if crops else None,
        given_splits=given_splits,
        previous=Path(previous) if previous else None,
        seed=seed,
    )
    data.metadata["digest"] = done.facts["digest"]
    Path(version).write_text(tables.fingerprint(done.folder))
    for name in ("scans", "quarantined", "patients", "duplicate_groups", "regions"):
        metrics.log_metric(name, done.facts[name])
    picture_page(statistics.path, "Data", done.folder / "statistics.png")
