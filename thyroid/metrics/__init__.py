"""Metrics with confidence intervals that resample patients: patients, not images, are the independent units.

`Draws` holds the bootstrap draws of one set of patients. Every metric function takes it and returns the metric on the
sample itself and on every draw, so that metrics on the same draws can be subtracted. `interval` turns such an array
into an `Interval`.
"""

from thyroid.interval import LEVEL, Interval, format_interval
from thyroid.metrics.calibration import (
    BINS,
    brier_draws,
    calibration_in_the_large,
    calibration_slope,
    ece_draws,
    ece_if_calibrated,
    observed_to_expected,
    reliability,
)
from thyroid.metrics.comparison import Comparison, auroc_covariance, auroc_difference, delong, specificity_difference
from thyroid.metrics.correlation import rank_correlation, rank_correlation_draws
from thyroid.metrics.decisions import accuracy, at_prevalence, at_threshold, kappa_draws, majority, net_benefit
from thyroid.metrics.independent import independent_difference, predictive_values
from thyroid.metrics.intervals import DRAWS, FEW, Draws, clopper_pearson, interval, newcombe, patient_mean
from thyroid.metrics.roc import (
    auprc_draws,
    auroc,
    auroc_draws,
    auroc_interval,
    macro_auroc,
    macro_auroc_draws,
    roc_band,
)

__all__ = [
    "BINS",
    "DRAWS",
    "FEW",
    "LEVEL",
    "Comparison",
    "Draws",
    "Interval",
    "accuracy",
    "at_prevalence",
    "at_threshold",
    "auprc_draws",
    "auroc",
    "auroc_covariance",
    "auroc_difference",
    "auroc_draws",
    "auroc_interval",
    "brier_draws",
    "calibration_in_the_large",
    "calibration_slope",
    "clopper_pearson",
    "delong",
    "ece_draws",
    "ece_if_calibrated",
    "format_interval",
    "independent_difference",
    "interval",
    "kappa_draws",
    "macro_auroc",
    "macro_auroc_draws",
    "majority",
    "net_benefit",
    "newcombe",
    "observed_to_expected",
    "patient_mean",
    "predictive_values",
    "rank_correlation",
    "rank_correlation_draws",
    "reliability",
    "roc_band",
    "specificity_difference",
]
