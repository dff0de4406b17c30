"""The watch of a released model as a pipeline step, in an image without TensorFlow."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kfp.dsl import HTML, Dataset, Metrics, Output, OutputPath

from components.step import step

if TYPE_CHECKING:
    from thyroid.records.watch import WatchRecord


@step(image="watch")
def watch(
    registry: str,
    model: str,
    log: str,
    archive: str,
    scans: str,
    rois: str,
    outcomes: str,
    site: str,
    sensitivity: float,
    specificity: float,
    fall: float,
    cancers: int,
    night: str,
    seed: int,
    watched: Output[Dataset],
    report: Output[HTML],
    metrics: Output[Metrics],
    verdict: OutputPath(str),  # type: ignore[valid-type]
):
    """Compare the decisions since the release with what was usual, and with their outcomes."""
    import shutil
    from pathlib import Path

    from thyroid.watch.options import WatchOptions
    from thyroid.watch.watch import watch as run

    options = WatchOptions(
        registry=registry,
        model=model,
        log=log,
        archive=archive,
        scans=scans,
        rois=rois,
        outcomes=outcomes,
        site=site,
        sensitivity=sensitivity,
        specificity=specificity,
        fall=fall,
        cancers=cancers,
        night=night,
        seed=seed,
    )
    done = run(options, Path(watched.path))
    shutil.copy(done.folder / "report.html", report.path)
    watched.metadata |= {"version": done.record.model.version, "verdict": done.record.verdict}
    for name, value in _numbers(done.record):
        metrics.log_metric(name, value)
    print(done.record.summary, flush=True)
    Path(verdict).write_text(done.record.verdict)


def _numbers(record: "WatchRecord") -> Iterator[tuple[str, float]]:
    """Yield names and values of the figures, those of intervals with their bounds."""
    yield "decisions", record.log.decisions
    yield "unlike", record.log.unlike
    yield "drift_alarms", sum(row.alarm for row in record.drift.rows)
    intervals = {f"estimated_auroc_{one.source}": one.auroc for one in record.estimated}
    if record.outcomes is not None:
        yield "outcomes", record.outcomes.patients
        intervals |= {one.name: one.value for one in record.outcomes.tests}
        if record.outcomes.auroc is not None:
            intervals["auroc"] = record.outcomes.auroc
    for name, interval in intervals.items():
        for bound in ("value", "low", "high"):
            # A reader of metrics takes what is not a number for 0.
            if (number := getattr(interval, bound)) is not None:
                yield f"{name}_{bound}", number
