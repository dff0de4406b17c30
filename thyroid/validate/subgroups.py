"""The subgroups of a site's scans: clinical columns, the size of the nodule, and the scanner."""

import numpy as np
import pandas as pd
from sklearn.cluster import AgglomerativeClustering

from thyroid.clinical.clinical_table import ClinicalTable
from thyroid.data.tables import AREA
from thyroid.data.version import DataVersion
from thyroid.evaluate.performance import SUBGROUP

SCANNER = "scanner"
"""Column of clinical.csv that names the scanner."""
GEOMETRY = "frame geometry"
"""Subgroup that stands for the scanner where clinical.csv does not name it."""
SIZE = "region size"
"""Subgroup by the size of the largest region."""
OTHER = "other"
"""Name of the scans whose frame geometry is rare."""
MOST = 6
"""Number of frame geometries that are told apart."""
LEAST = 10
"""Scans of a frame geometry below which it is one of the others."""

_APART = 0.2
"""Mean distance from which scan areas are of different geometries, as a share of the frame's sides. Depth and width of
the view change with every patient, so that the areas of one scanner scatter (on DDTI by up to .1)."""


def columns(data: DataVersion, clinical: ClinicalTable | None) -> pd.DataFrame:
    """Return the subgroup of every scan in use, in several respects.

    These are the columns of clinical.csv as `clinical_table.subgroups` groups them; the size of the largest given
    region, in thirds; and the scanner. Where clinical.csv has no usable column `SCANNER`, the geometry of the frame
    stands for it: two scanners rarely export frames of the same size and layout, although one scanner may export
    several.

    Args:
        data: Data version of `crop` with the site's scans.
        clinical: Content of clinical.csv for the same scans; None for none.

    Returns:
        A table with the paths of the scans as its index and one column of names per respect, which starts with
        `performance.SUBGROUP`. A name is null where it is not known, and a respect in which all scans are alike is left
        out.
    """
    scans = data.used.set_index("path")
    found = {} if clinical is None else {str(name): groups for name, groups in clinical.groups.items()}
    found[SIZE] = _sizes(scans, data.regions)
    if SCANNER not in {name.casefold() for name in found}:
        found[GEOMETRY] = _geometries(scans)
    table = pd.DataFrame({SUBGROUP + name: groups.reindex(scans.index) for name, groups in found.items()}, scans.index)
    return table.loc[:, table.nunique() > 1]


def _areas(scans: pd.DataFrame) -> pd.DataFrame:
    """Return the scan area of every scan in pixels; the whole frame where none is known."""
    areas = scans.reindex(columns=list(AREA)).astype(float)
    whole = {"area_x": 0.0, "area_y": 0.0, "area_width": scans["width"], "area_height": scans["height"]}
    return areas.fillna(pd.DataFrame(whole, scans.index).astype(float))


def _sizes(scans: pd.DataFrame, regions: pd.DataFrame) -> pd.Series:
    """Return the third that each scan's largest given region is in, by its share of the scan area; null without one."""
    given = regions[(regions["source"] == "given") & regions["path"].isin(scans.index)]
    largest = (given["width"] * given["height"]).astype(float).groupby(given["path"]).max()
    areas = _areas(scans).loc[largest.index]
    share = 100 * largest / (areas["area_width"] * areas["area_height"])
    if not len(share):
        return pd.Series(dtype=object)
    low, high = np.quantile(share, [1 / 3, 2 / 3])
    names = [
        f"small (up to {low:.1f} % of the scan area)",
        f"middle ({low:.1f} % to {high:.1f} %)",
        f"large (above {high:.1f} %)",
    ]
    return pd.Series(np.array(names, object)[(share > low).astype(int) + (share > high)], share.index)


def _geometries(scans: pd.DataFrame) -> pd.Series:
    """Return the frame geometry of each scan, in words; the most frequent one is the first.

    Scans are of one geometry if their frames have the same size in pixels and their scan areas lie alike in it: average
    linkage of the areas' place and size with the largest difference as distance (Sokal & Michener 1958).
    """
    areas = _areas(scans)
    names = pd.Series(OTHER, scans.index, dtype=object)
    clusters: list[tuple[int, str, str, pd.Index]] = []
    for (width, height), frames in scans.groupby(["width", "height"]):
        sides = np.array([width, height, width, height], float)
        place = np.rint(100 * areas.loc[frames.index, list(AREA)].to_numpy() / sides)
        distinct, which = np.unique(place, axis=0, return_inverse=True)
        cluster = _clusters(distinct)[which.reshape(-1)]
        for number in np.unique(cluster):
            members = frames.index[cluster == number]
            seen = areas.loc[members].median()
            view = f", view {seen['area_width']:.0f} x {seen['area_height']:.0f}" if cluster.max() else ""
            clusters.append((-len(members), f"{width} x {height}", view, members))
    frequent = [one for one in sorted(clusters, key=lambda one: one[:3]) if -one[0] >= LEAST][:MOST]
    for number, (_, size, view, members) in enumerate(frequent, 1):
        names[members] = f"scanner {number} ({size}{view})"
    return names


def _clusters(places: np.ndarray) -> np.ndarray:
    """Return the number of the cluster of each scan area, from their places and sizes in per cent [n, 4]."""
    if len(places) < 2:
        return np.zeros(len(places), int)
    linkage = AgglomerativeClustering(
        n_clusters=None, distance_threshold=100 * _APART, metric="chebyshev", linkage="average"
    )
    found: np.ndarray = linkage.fit_predict(places)
    return found
