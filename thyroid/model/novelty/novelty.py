"""The reference of an artefact, which says how unlike the training images an image is.

An image is described by a few statistics of its pixels and by the features from which the network computes its
probability (see `thyroid.model.explain`). Its distance from the training images has two halves. The first is the
Mahalanobis distance of the statistics. The second is that of probabilistic principal components of the features
(Tipping and Bishop 1999, Mixture Models for Probabilistic Principal Component Analysers): the few directions in which
the training images differ most are measured in units of their own deviation, everything outside them in units of the
mean deviation of the rest; these count the same, however many features there are. Distances of this kind are known to
detect foreign images (Lee et al. 2018, A Simple Unified Framework for Detecting Out-of-Distribution Samples). The
network alone is not enough: to a poor one, blank images and noise look like tissue. `thyroid.model.novelty.fit` fits
the reference.
"""

import io
import zipfile
import zlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from thyroid import atomic
from thyroid.errors import InputError
from thyroid.model.artefact import Artefact
from thyroid.records.model import NoveltyRecord

FILE = "novelty.npz"
"""File of the artefact with the arrays of `Novelty`."""

PICTURE = ("mean", "deviation", "across", "down", "colour", "black", "white")
"""The first features of an image: mean and deviation of its grey levels, mean difference of neighbours across and down,
mean difference of the largest and smallest of the three colours (all of 0 to 255), and share of its pixels that are
nearly black and nearly white (0 to 1)."""

QUANTILES = 101
"""Number of the quantiles of the training images' distances, from the 0 % to the 100 % quantile."""


@dataclass(frozen=True, eq=False)
class Reference:
    """Measures how far an image's features are from those of the training images.

    Attributes:
        mean: Mean of each feature over the training images, float32 [7 + d], `PICTURE` first.
        scale: What each feature's deviation from its mean is divided by, float32 [7 + d], above 0.
        precision: Inverse covariance of the scaled `PICTURE` of the training images, float64 [7, 7].
        directions: The orthonormal directions in which the scaled other features differ most, float32 [d, k].
        variances: Variance of the scaled training images along each direction, float64 [k], above 0.
        residual: Mean variance of the scaled training images along the d - k other directions, above 0.
    """

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    precision: NDArray[np.float64]
    directions: NDArray[np.float32]
    variances: NDArray[np.float64]
    residual: float

    def project(self, features: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Return the coordinates of images along the directions, float32 [n, k], of their features [n, 7 + d]."""
        projected: NDArray[np.float32] = self._scaled(features)[:, len(PICTURE) :] @ self.directions
        return projected

    def distance(self, features: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Return the distances of images from the training images.

        Args:
            features: Third output of `explain.with_map` [n, 7 + d].

        Returns:
            float64 [n], at least 0. They are about 1 for the training images, and are not divided by a limit.
        """
        scaled = self._scaled(features)
        picture, pooled = scaled[:, : len(PICTURE)].astype(np.float64), scaled[:, len(PICTURE) :]
        looks = np.maximum(((picture @ self.precision) * picture).mean(axis=1), 0.0)
        along = (pooled @ self.directions).astype(np.float64) ** 2
        rest = np.einsum("ij,ij->i", pooled, pooled, dtype=np.float64) - along.sum(axis=1)
        inside = (along / self.variances).mean(axis=1)
        outside = np.maximum(rest, 0.0) / (self.residual * (pooled.shape[1] - len(self.variances)))
        distances: NDArray[np.float64] = np.sqrt(looks / 2 + (inside + outside) / 4)
        return distances

    def _scaled(self, features: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        scaled: NDArray[np.float32] = (features.astype(np.float32, copy=False) - self.mean) / self.scale
        return scaled


@dataclass(frozen=True, eq=False)
class Novelty(Reference):
    """A reference with what its distances mean.

    Attributes:
        quantiles: The `QUANTILES` quantiles of the training images' distances, each image measured with a reference of
            the other patients, float64 [101], in ascending order.
        limit: Distance beyond which an image is unlike the training images, above 0.
    """

    quantiles: NDArray[np.float64]
    limit: float

    def percentile(self, distance: float) -> float:
        """Return how many percent of the training images are at most as far away as an image, 0 to 100.

        Args:
            distance: The image's `distance`.
        """
        return float(np.interp(distance, self.quantiles, np.arange(QUANTILES)))

    def write(self, folder: Path) -> None:
        """Write `FILE`. The same reference gives the same bytes."""
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, **{one.name: getattr(self, one.name) for one in fields(self)})
        atomic.write_bytes(folder / FILE, content.getvalue())

    @classmethod
    def read(cls, artefact: Artefact) -> Self | None:
        """Return the reference of an artefact; None if it has none, as the artefacts of older releases.

        Raises:
            InputError: The file is missing or damaged, or does not fit model.json.
        """
        record = artefact.record.novelty
        if record is None:
            return None
        file = artefact.folder / FILE
        try:
            with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as stored:
                found = {one.name: stored[one.name] for one in fields(cls)}
            novelty = cls(**found | {name: float(found[name]) for name in ("residual", "limit")})
        except FileNotFoundError:
            raise InputError(f"{file}: missing from the model; register the model again") from None
        except (OSError, ValueError, TypeError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
            raise InputError(f"{file}: damaged; register the model again") from None
        if not novelty._fits(record):
            raise InputError(f"{file}: does not fit model.json; register the model again")
        return novelty

    def _fits(self, record: NoveltyRecord) -> bool:
        """Return whether the arrays are those of a reference, and of the one that model.json describes."""
        d, k = record.features, record.components
        own = len(PICTURE)
        shapes = {"mean": (d,), "scale": (d,), "precision": (own, own), "directions": (d - own, k)}
        shapes |= {"variances": (k,), "quantiles": (QUANTILES,)}
        arrays = [getattr(self, one.name) for one in fields(self)]
        return (
            0 < k < d - own
            and all(getattr(self, name).shape == shape for name, shape in shapes.items())
            and all(np.asarray(one).dtype.kind == "f" and np.isfinite(one).all() for one in arrays)
            and all(np.min(one) > 0 for one in (self.scale, self.variances, self.residual, self.limit))
            and bool((np.diff(self.quantiles) >= 0).all())
            and bool(np.isclose(self.limit, record.limit))
        )
