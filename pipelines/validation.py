"""registered model + another site's scans -> figures beside the internal test: the validation as a pipeline."""

from collections.abc import Callable
from typing import Any

from kfp import dsl

from components.validate import validate
from pipelines.cluster import Cluster, limits, place
from thyroid.validate.options import ValidateOptions


def validation_pipeline(cluster: Cluster | None = None) -> Callable[..., Any]:
    """Return the pipeline that validates a registered model on the scans of a site.

    Args:
        cluster: Cluster to run on; None for this machine.
    """

    @dsl.pipeline(
        name="thyroid-validate",
        display_name="Thyroid nodules: a registered model at another site",
        description="External validation: nothing is trained or chosen on these scans. Research use only.",
        pipeline_config=limits(cluster, "validate"),
    )
    def thyroid_validate(
        registry: str,
        scans: str,
        site: str,
        model: str = ValidateOptions.model,
        rois: str = "",
        labels: str = "",
        clinical: str = "",
        prevalence: float = ValidateOptions.prevalence,
        wanted: float = ValidateOptions.wanted,
        recalibrate: bool = ValidateOptions.recalibrate,
        by: str = ValidateOptions.by,
        seed: int = ValidateOptions.seed,
    ) -> None:
        """External validation: nothing is trained or chosen on these scans. Research use only.

        Args:
            registry: Root of the registry with the model: a folder on the volume, or a gs:// or s3:// prefix.
            scans: Folder, gs:// or s3:// prefix of the site's frames named B_001-0002-1.0.jpg, or DICOM files that its dicom.csv names.
            site: Name of the site. Equal patient numbers mean the same patient only if the model was trained on a cohort of this name.
            model: Version number, champion or candidate; empty for the champion, or else the candidate.
            rois: CSV with filename, x, y, width, height of the nodules; empty for none.
            labels: CSV with filename and label for the class of every scan, labels.csv#column for another column than label; empty for the file names' class.
            clinical: CSV with a column file and clinical columns, for subgroups and for a model that uses them; empty for none.
            prevalence: Share of malignant nodules for the predictive values; 0 for the one that the model was evaluated at.
            wanted: Sensitivity that the lower bound at the site should pass.
            recalibrate: Register a recalibration for this site as a version of its own; a person has to promote it.
            by: Name of the person who is responsible for the validation; empty for the user's name.
            seed: Seed of the bootstrap and of the folds.
        """  # noqa: E501
        validated = validate(
            registry=registry,
            model=model,
            scans=scans,
            rois=rois,
            labels=labels,
            clinical=clinical,
            site=site,
            prevalence=prevalence,
            wanted=wanted,
            recalibrate=recalibrate,
            by=by,
            seed=seed,
        )
        # The cache knows paths only, and what is below them changes.
        place(validated, "validate", cluster).set_caching_options(False)

    pipeline: Callable[..., Any] = thyroid_validate
    return pipeline
