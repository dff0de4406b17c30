"""The head of an artefact that tells sonographic descriptors, and what follows from them for ACR TI-RADS.

Each finding (one value of a descriptor, such as a lobulated margin) is a calibrated logistic regression on the features
that training left frozen: they never saw a label, so that the findings are a second opinion beside the probability of
malignant. `thyroid.evaluate.descriptors` fits them. Since the features are a mean over a feature map, the same weights
give a map for each finding (Zhou et al. 2016, Learning Deep Features for Discriminative Localization).
"""

import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from thyroid import atomic, tirads
from thyroid.errors import InputError
from thyroid.model.artefact import Artefact
from thyroid.records.model import DescriptorsRecord, FindingRecord
from thyroid.tirads import FOCI, Points

FILE = "descriptors.npz"
"""File of the artefact with the weights and biases of `Head`."""


@dataclass(frozen=True)
class Told:
    """What a picture shows.

    Attributes:
        possible: Values that cannot be excluded, by descriptor that has labels; of foci the kinds, which may be none.
            Where no finding of a descriptor is given out, these are all of its labelled values.
        sure_foci: Kinds of echogenic foci that are there for certain.
        present: Whether each finding is told to be there, in the order of `Head.given`.
        uncertain: Whether each finding can neither be excluded nor is certain.
        points: Points of TI-RADS that are possible.
    """

    possible: dict[str, tuple[str, ...]]
    sure_foci: tuple[str, ...]
    present: tuple[bool, ...]
    uncertain: tuple[bool, ...]
    points: Points


@dataclass(frozen=True, eq=False)
class Head:
    """Tells the findings that an artefact gives out.

    Attributes:
        record: Field `descriptors` of model.json.
        weight: Weights of the features, float32 [d, k], a column for each of `given`.
        bias: Biases, float32 [k].
    """

    record: DescriptorsRecord
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    @property
    def given(self) -> tuple[FindingRecord, ...]:
        """The findings that are given out, in the order of the columns."""
        return tuple(self.record.given)

    def probabilities(self, features: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Return the probability of each finding given out.

        Args:
            features: Features of the images, as of `Network.features` [n, d].

        Returns:
            float64 [n, k], 0 to 1; NaN for an image with a feature that is not finite.
        """
        known = np.isfinite(features).all(axis=1, keepdims=True)
        logits = np.where(known, features, 0).astype(np.float64) @ self.weight.astype(np.float64) + self.bias
        found: NDArray[np.float64] = np.where(known, expit(logits), np.nan)
        return found

    def tell(self, probability: NDArray[np.float64]) -> Told:
        """Say what an image shows.

        A value is possible unless its probability is below the limit that excludes it. Values without a finding that is
        given out stay possible; values that no image was labelled with do not count. If one value is sure and no other
        of its descriptor is likely, the others are ruled out. Echogenic foci may be of several kinds at once.

        Args:
            probability: One row of `probabilities` [k].
        """
        given = self.given
        limits = np.array([[one.exclude, one.threshold, one.sure] for one in given], float).reshape(-1, 3)
        excluded, present, sure = probability < limits[:, 0], probability >= limits[:, 1], probability >= limits[:, 2]
        place = {(one.descriptor, one.value): number for number, one in enumerate(given)}

        def those(descriptor: str, which: NDArray[np.bool_]) -> list[str]:
            values = self.record.seen[descriptor]
            return [one for one in values if (descriptor, one) in place and which[place[descriptor, one]]]

        possible = {}
        for descriptor, values in self.record.seen.items():
            gone, certain, likely = (those(descriptor, which) for which in (excluded, sure, present))
            left = [one for one in values if one not in gone]
            if descriptor != FOCI:
                left = certain if len(certain) == 1 and likely in ([], certain) else left or values
            possible[descriptor] = tuple(left)
        sure_foci = tuple(those(FOCI, sure)) if FOCI in possible else ()
        points = tirads.points(possible, sure_foci)
        uncertain = ~excluded & ~sure
        return Told(possible, sure_foci, tuple(present.tolist()), tuple(uncertain.tolist()), points)

    def disagrees(self, decision: str, points: Points) -> bool:
        """Return whether the points contradict a decision, wherever they lie in their interval.

        Args:
            decision: "benign", "malignant" or "abstain", with which nothing disagrees.
            points: Points of the image, or of all of a patient's images.
        """
        if self.record.tirads is None:
            return False
        cut = self.record.tirads.cut
        return points.high < cut if decision == "malignant" else decision == "benign" and points.low >= cut

    def write(self, folder: Path) -> None:
        """Write `FILE`. The same head gives the same bytes."""
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, weight=self.weight, bias=self.bias)
        atomic.write_bytes(folder / FILE, content.getvalue())

    @classmethod
    def read(cls, artefact: Artefact) -> Self | None:
        """Return the head of an artefact; None if it gives out no finding, as the artefacts of older releases.

        Raises:
            InputError: The file is missing or damaged, or does not fit model.json.
        """
        record = artefact.record.descriptors
        if record is None or not record.given:
            return None
        file = artefact.folder / FILE
        try:
            with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as stored:
                head = cls(record, stored["weight"], stored["bias"])
        except FileNotFoundError:
            raise InputError(f"{file}: missing from the model; register the model again") from None
        except (OSError, ValueError, TypeError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
            raise InputError(f"{file}: damaged; register the model again") from None
        if not head._fits():
            raise InputError(f"{file}: does not fit model.json; register the model again")
        return head

    def _fits(self) -> bool:
        """Return whether the arrays are those of the findings that model.json gives out, and these can be told."""
        given, seen = self.given, self.record.seen
        limits = np.array([(one.exclude, one.threshold, one.sure) for one in given], float)  # NaN where there is none
        return (
            self.weight.shape == (self.record.features, len(given))
            and self.bias.shape == (len(given),)
            and all(one.dtype.kind == "f" and bool(np.isfinite(one).all()) for one in (self.weight, self.bias))
            and bool((np.diff(limits, axis=1) >= 0).all())
            and all(set(values) <= set(tirads.DESCRIPTORS.get(name, ())) for name, values in seen.items())
            and all(values or name == FOCI for name, values in seen.items())
            and all(one.value in seen.get(one.descriptor, ()) for one in given)
        )
