"""registered model + its decision log, new scans and outcomes -> does it still hold: the watch as a pipeline."""

from collections.abc import Callable
from typing import Any

from kfp import dsl

from components.watch import watch
from pipelines.cluster import Cluster, limits, place
from thyroid.watch.options import WatchOptions


def watch_pipeline(cluster: Cluster | None = None) -> Callable[..., Any]:
    """Return the pipeline that watches a registered model after its release.

    Args:
        cluster: Cluster to run on; None for this machine.
    """

    @dsl.pipeline(
        name="thyroid-watch",
        display_name="Thyroid nodules: a released model since its release",
        description="Drift, and decisions beside their outcomes. Nothing is trained. Research use only.",
        pipeline_config=limits(cluster, "watch"),
    )
    def thyroid_watch(
        registry: str,
        log: str = "",
        archive: str = "",
        scans: str = "",
        rois: str = "",
        outcomes: str = "",
        model: str = WatchOptions.model,
        site: str = WatchOptions.site,
        sensitivity: float = WatchOptions.sensitivity,
        specificity: float = WatchOptions.specificity,
        fall: float = WatchOptions.fall,
        cancers: int = WatchOptions.cancers,
        night: str = WatchOptions.night,
        seed: int = WatchOptions.seed,
    ) -> None:
        """Drift, and decisions beside their outcomes. Nothing is trained. Research use only.

        Args:
            registry: Root of the registry with the model: a folder on the volume, or a gs:// or s3:// prefix.
            log: Folder of the decision log on the volume, which the endpoint writes with --log; empty for none.
            archive: Folder, gs:// or s3:// prefix that keeps the log as Parquet, a file a day; empty for none.
            scans: Folder, gs:// or s3:// prefix of new scans, which the model judges beside the log; empty for none.
            rois: CSV with filename, x, y, width, height of the nodules of these scans; empty for none.
            outcomes: CSV with file or patient, pathology and date; empty for none.
            model: Version number, champion or candidate; empty for the champion, or else the candidate.
            site: Name of the cohort within which the patients' numbers are known, as the endpoint's --site.
            sensitivity: Sensitivity that the model is held to; 0 for that of its internal test by patient.
            specificity: Specificity that the model is held to; 0 for that of its internal test by patient.
            fall: How much lower a sensitivity or specificity the alarm is tuned to detect.
            cancers: Number of malignant outcomes expected in a year, for which the yearly false alarms are limited.
            night: Last night to look at, such as 2026-11-29; empty for today (UTC).
            seed: Seed of the bootstrap.
        """
        watched = watch(
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
        # The cache knows paths only, and the log below them grows.
        place(watched, "watch", cluster).set_caching_options(False)

    pipeline: Callable[..., Any] = thyroid_watch
    return pipeline
