"""The options of the evaluation step."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from thyroid.command import SEVERAL, one_of
from thyroid.data.tables import DOMAINS
from thyroid.errors import InputError
from thyroid.storage import Location

_LIVE = 50_000  # the watch compares the newest 100,000 answers, and pictures that were sent repeatedly count once


@dataclass(frozen=True)
class EvaluateOptions:
    """How models are evaluated. An empty text means "none".

    Attributes:
        serving_domain: Domain in which the models are compared, normal or cropped; empty for the first trained domain.
        sensitivity: Sensitivity that the threshold must reach on validation, above 0, at most 1. A missed cancer costs
            more than a biopsy.
        abstain: Share of validation images to leave undecided, 0 to below 1.
        prevalence: Share of malignant nodules where the model would be used, between 0 and 1. It is 7 to 15 % of
            nodules (Haugen et al. 2016, 10.1089/thy.2015.0020).
        clinical: CSV with filename or patient, whose columns are explored and define subgroups. clinical.csv#age,sex
            names the columns that the model may use.
        descriptors: CSV with filename or patient and the features of ACR TI-RADS, which the model is taught to tell as
            far as the data can show them. labels.csv#shape,margin=margins names the columns; without names, all known
            ones are read.
        registry: Root of the registry whose champion the winner is compared with.
        locate: Folder of thyroid.locate, whose boxes show what automatic boxes cost; None for none.
        waive: Audits whose failure the gate ignores: shortcut, leakage, clinical.
        shadow: Number of live pictures that a candidate must have judged behind the champion before the gate releases
            it; 0 releases it on the stored test images alone.
        seed: Seed of the bootstrap, 0 to 4294967295.

    Raises:
        InputError: A value is out of range.
    """

    serving_domain: Annotated[str, one_of(DOMAINS)] = ""
    sensitivity: float = 0.95
    abstain: float = 0.0
    prevalence: float = 0.1
    clinical: Location = ""
    descriptors: Location = ""
    registry: Location = ""
    locate: Path | None = None
    waive: Annotated[Sequence[str], SEVERAL] = ()
    shadow: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 < self.sensitivity <= 1:
            raise InputError(f"sensitivity {self.sensitivity}: must be above 0 and at most 1")
        if not 0 <= self.abstain < 1:
            raise InputError(f"abstain {self.abstain}: must be at least 0 and below 1")
        if not 0 < self.prevalence < 1:
            raise InputError(f"prevalence {self.prevalence}: must lie between 0 and 1")
        if not 0 <= self.shadow <= _LIVE:
            raise InputError(f"shadow {self.shadow}: must be a number of pictures up to {_LIVE:,}, or 0")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed {self.seed}: must be between 0 and 4294967295")
