"""How unlike the training scans the site's scans are, by grey levels and geometry and without a look at their labels.

A model keeps the quantiles of its training scans' properties. The 101 quantiles stand for the training scans: a site's
scan is ranked among them, ties counting half, and the mean rank is the AUROC with which the property alone tells the
site's scans from the training scans (Bamber 1975, 10.1016/0022-2496(75)90001-2). Above .5 the property is higher at the
site, below .5 it is lower. A property that only varies more has an AUROC of .5, but many scans outside the range.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import betabinom, norm

from thyroid import metrics
from thyroid.data.version import DataVersion
from thyroid.metrics.intervals import at_least
from thyroid.model import scan_statistics
from thyroid.records.model import ArtefactRecord, TrainingScans
from thyroid.records.validation import Unlike, Unlikeness

FAR = 0.25
"""Distance of an AUROC from .5, and share of scans, above which the summary names a difference."""
MOST = 4
"""Largest number of properties that the summary names."""

_SHOWN = (5, 25, 50, 75, 95)
_LOW, _HIGH = 1, 99
_CROP = "crop_"
_SIZE = ("frame_width", "frame_height", "frame_aspect")

_WORDS = {
    "frame_width": ("width of the frame", "wider", "less wide"),
    "frame_height": ("height of the frame", "taller", "less tall"),
    "frame_aspect": ("width over height of the frame", "wider for their height", "less wide for their height"),
    "area_share": (
        "share of the frame that the scan area takes",
        "with a scan area that fills more of the frame",
        "with a scan area that fills less of the frame",
    ),
    "area_left": ("left edge of the scan area", "with the scan area further right", "with the scan area further left"),
    "area_top": ("upper edge of the scan area", "with the scan area further down", "with the scan area further up"),
    "area_aspect": (
        "width over height of the scan area",
        "with a wider scan area for its height",
        "with a less wide scan area for its height",
    ),
    "region_share": (
        "share of the scan area that the nodule takes",
        "with nodules that fill more of the scan area",
        "with nodules that fill less of the scan area",
    ),
    "region_aspect": (
        "height over width of the nodule",
        "with nodules that are taller for their width",
        "with nodules that are flatter for their width",
    ),
    "mean_grey": ("mean grey level", "brighter", "darker"),
    "grey_spread": ("spread of the grey levels", "of higher contrast", "of lower contrast"),
    "black_share": ("share of black", "with more black", "with less black"),
    "fine_contrast": ("contrast at a fine scale (speckle)", "grainier", "smoother"),
    "width": ("width", "wider", "less wide"),
    "height": ("height", "taller", "less tall"),
}
"""By property, without the prefix of crops: what it is, and how scans are in which it is higher or lower."""

_KINDS = (
    ("mean_grey", "are full frames, while the training scans came in cropped"),
    ("crop_mean_grey", "came in cropped, while the training scans are full frames"),
)
"""A property that every full frame has, and one that every file has that came in cropped; what it means if only the
site's scans have it."""


def describe(name: str) -> str:
    """Return what a property is, in words.

    Args:
        name: A property of `thyroid.model.scan_statistics`.
    """
    text = _WORDS[name.removeprefix(_CROP)][0]
    return f"{text}, scans that came in cropped" if name.startswith(_CROP) else text


def measure(artefact: ArtefactRecord, data: DataVersion) -> Unlikeness | None:
    """Compare the properties of the site's scans with those of the model's training scans.

    The intervals of the AUROCs resample the site's patients. The training scans are known by their quantiles alone and
    cannot be resampled, so an interval is at least as wide as that of `metrics.newcombe` for the numbers of patients on
    both sides.

    Args:
        artefact: Content of the version's model.json.
        data: Data version of `crop` with the site's scans. All scans in use are compared, or a seeded draw of
            `scan_statistics.SCANS` of them.

    Returns:
        The comparison; None if the version does not record its training scans. If the model was trained on frames of
        more sizes than it lists, `new_frames` counts the sizes that are not listed as new and is an upper bound.

    Raises:
        InputError: An image of the data version is missing or changed.
    """
    training = artefact.training_scans
    if training is None:
        return None
    site = scan_statistics.measure(data)
    compared = [name for name in training.quantiles if name in site and site[name].notna().any()]
    properties = [_compare(name, site[["patient", name]].dropna(), training) for name in compared]
    properties.sort(key=_distance, reverse=True)
    sizes = scan_statistics.sizes(data)
    listed = {(size.width, size.height) for size in training.sizes}
    new = sum(size not in listed for size in sizes) / max(len(sizes), 1)
    return Unlikeness(properties=properties, new_frames=new, summary=_summary(properties, new, site, training))


def _compare(name: str, site: pd.DataFrame, training: TrainingScans) -> Unlike:
    """Compare a property: `site` has the columns patient and the property, without nulls."""
    values, patient = site[name].to_numpy(float), site["patient"].to_numpy()
    known = np.array(training.quantiles[name])
    rank = (np.searchsorted(known, values, "left") + np.searchsorted(known, values, "right")) / 2 / len(known)
    draws = metrics.Draws(patient)
    found = metrics.interval(draws.totals(rank, patient) / draws.totals(np.ones(len(rank)), patient))
    exact = metrics.newcombe(found.value, len(draws.patients), training.patients)
    return Unlike(
        name=name,
        training=known[list(_SHOWN)].tolist(),
        site=np.percentile(values, _SHOWN).tolist(),
        outside=float(((values < known[_LOW]) | (values > known[_HIGH])).mean()),
        auroc=at_least(found, exact),
    )


def _distance(one: Unlike) -> float:
    """Return how unlike a property is, 0 to 1, by which properties are ordered."""
    return max(2 * abs(one.auroc.value - 0.5), one.outside)


def _difference(one: Unlike, patients: tuple[int, int], compared: int) -> str | None:
    """Return how scans with such a property are, in words; None if it is not clearly unlike.

    A difference is clear if it is larger than `FAR` and than what chance explains, corrected for the number of
    properties (Bonferroni). Patients are the units. Under chance, an AUROC has the variance of the Mann-Whitney
    statistic, and the number of units outside the range of others is beta-binomial (Wilks 1941,
    10.1214/aoms/1177731788).

    Args:
        one: The property.
        patients: Numbers of patients of the site and of the training scans.
        compared: Number of properties.
    """
    here, there = patients
    level = (1 - metrics.LEVEL) / compared
    _, higher, lower = _WORDS[one.name.removeprefix(_CROP)]
    deviation = math.sqrt((here + there + 1) / (12 * here * there))
    distance = one.auroc.value - 0.5
    if abs(distance) > max(FAR, deviation * float(norm.isf(level / 2))):
        return higher if distance > 0 else lower
    outer = 2 + (_LOW + 100 - _HIGH) / 100 * (there - 1)  # expected share of the range's outside, times there + 1
    chance = betabinom.sf(round(one.outside * here) - 1, here, outer, there + 1 - outer)
    return f"often outside the usual range in {describe(one.name)}" if one.outside > FAR and chance < level else None


def _summary(properties: list[Unlike], new: float, site: pd.DataFrame, training: TrainingScans) -> str:
    """Say in one sentence what is unlike."""
    patients = site["patient"].nunique()
    found = [
        f"{share:.0%} {text}"
        for kind, text in _KINDS
        if kind not in training.quantiles and (share := float(site[kind].notna().mean())) > 0
    ]
    frames = sum(size.frames for size in training.sizes) + training.other_sizes
    other_size = frames > 0 and new - training.other_sizes / frames > FAR
    phrases = []
    if other_size:
        whose = "that few or no training frames have" if training.other_sizes else "that no training frame has"
        phrases.append(f"of a size {whose} ({new:.0%} of them)")
    for one in properties:
        if other_size and one.name in _SIZE:
            continue
        if (text := _difference(one, (patients, training.patients), len(properties))) is not None:
            phrases.append(text)
    if (more := len(phrases) - MOST) > 0:
        phrases[MOST:] = [f"unlike in {more} more respect{'s' * (more > 1)}"]
    if phrases:
        found.append(f"they are {listed(phrases)}")
    if found:
        return (
            f"These scans are unlike the training scans: {'; '.join(found)}; figures of the internal test may not hold "
            "for such scans."
        )
    few = f", as far as {patients} patients can tell" if patients < metrics.FEW else ""
    return f"These scans are like the training scans in grey levels and geometry{few}; other differences may exist."


def listed(phrases: Sequence[str]) -> str:
    """Join phrases with commas and a last "and"."""
    *first, last = phrases
    return f"{', '.join(first)} and {last}" if first else last
