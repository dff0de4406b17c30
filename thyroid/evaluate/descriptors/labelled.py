"""The images whose descriptors are known."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from thyroid import tirads
from thyroid.clinical.descriptors_csv import DescriptorTable
from thyroid.data import surroundings
from thyroid.data.version import DataVersion
from thyroid.model.novelty import fit
from thyroid.tirads import FOCI

MOST = 5000
"""Most development images, disturbed crops included, and most test images that are looked at. A seeded draw takes whole
patients, so that the time and the memory do not grow with the data."""

Finding = tuple[str, str]
"""A descriptor and one of its values."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """Development images with at least one label.

    Attributes:
        images: Rows of `surroundings.context`, one for each scan [n].
        disturbed: Disturbed crops of training images: file and sha256, and place (of the image in `images`) [m].
    """

    images: pd.DataFrame
    disturbed: pd.DataFrame


def of_scans(data: DataVersion, domain: str, table: DescriptorTable) -> pd.DataFrame:
    """Return the images of a domain that a label is for.

    The words describe a scan's largest nodule, so that the crops of its other nodules have none.

    Args:
        data: Data version of `crop`.
        domain: "normal" or "cropped".
        table: The labels.

    Returns:
        Rows of `surroundings.context`, at most one for each scan.
    """
    known = surroundings.context(data, domain)
    area = known[["box_width", "box_height"]].astype(float).prod(axis=1)
    known = known.loc[area.groupby(known["path"]).idxmax().sort_values()]
    labelled = table.rows.loc[known["path"]].notna().any(axis=1).to_numpy()
    return known[labelled].reset_index(drop=True)


def development(data: DataVersion, domain: str, table: DescriptorTable, seed: int) -> Labelled:
    """Return the labelled development images and, of training crops, the disturbed ones: at most `MOST` together."""
    images = of_scans(data, domain, table)
    images = data.with_jitter(images[images["split"] != "test"])
    disturbed = images[images["jitter_sha256"].notna()]
    patients = pd.concat([images["patient"], disturbed["patient"]]).to_numpy(int)
    drawn = patients[fit.draw(patients, seed, MOST)]
    images = images[images["patient"].astype(int).isin(drawn)].reset_index(drop=True)
    disturbed = images[images["jitter_sha256"].notna()]
    made = disturbed[["jitter_file", "jitter_sha256"]].set_axis(["file", "sha256"], axis=1)
    return Labelled(images, made.assign(place=made.index).reset_index(drop=True))


def truths(images: pd.DataFrame, table: DescriptorTable) -> dict[Finding, NDArray[np.float64]]:
    """Return, for every value that occurs, whether images have it: 1 or 0, NaN where no word says so [n].

    Of a descriptor with two values that exclude each other one finding says everything: that of more points.

    Args:
        images: Images with the path of their scan [n].
        table: The labels.
    """
    found: dict[Finding, NDArray[np.float64]] = {}
    for descriptor, values in seen(images, table).items():
        if descriptor != FOCI and len(values) == 2:
            values = sorted(values, key=tirads.DESCRIPTORS[descriptor].__getitem__)[1:]
        for value in values:
            found[descriptor, value] = table.labels(images["path"].tolist(), descriptor, value)
    return found


def seen(images: pd.DataFrame, table: DescriptorTable) -> dict[str, list[str]]:
    """Return the values with which images are labelled, by descriptor that has a label, in the order of the lexicon."""
    words = table.rows.loc[images["path"]]
    occurring: Mapping[str, set[str]] = {
        descriptor: set().union(*words[descriptor].dropna()) for descriptor in table.columns
    }
    return {
        descriptor: [value for value in tirads.kinds(descriptor) if value in values]
        for descriptor, values in occurring.items()
        if values
    }
