"""Compares the answer to an artefact's reference image with what the artefact says about it.

Each function returns the difference in words that follow "the model", or None if there is none.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from thyroid.model.artefact import Artefact
from thyroid.model.descriptors.head import Head
from thyroid.model.novelty.novelty import Novelty
from thyroid.model.operating_point import OperatingPoint

TOLERANCE = 1e-3
"""How far a probability of the reference image may be from the evaluated one.

The form's own largest difference is added to it.
"""


def misfit(answer: Sequence[NDArray[np.float32]], novelty: Novelty | None, head: Head | None) -> str | None:
    """Describe which outputs of the network are not those that the artefact needs.

    Args:
        answer: The network's outputs for one image, see `engine.Answer`.
        novelty: What the training images are like; None if the artefact does not know.
        head: Head of the descriptors; None if the artefact gives out none.
    """
    shapes = [output.shape for output in answer[2:]]
    if novelty is not None and shapes[:1] != [novelty.mean.shape]:
        return "does not answer with the features that its novelty is computed from; register the model again"
    if head is not None:
        features, findings = head.weight.shape
        if shapes[1:2] != [(features,)] or len(shapes) != 3 or shapes[2][2:] != (findings,):
            return "does not answer with what its descriptors are computed from; register the model again"
    return None


def difference(artefact: Artefact, form: str, point: OperatingPoint, unscaled: NDArray[np.float64]) -> str | None:
    """Describe how far the probabilities of the reference image are from the evaluated ones; None if close enough.

    Args:
        artefact: The artefact.
        form: Form that answered, one of `engine.FORMS`.
        point: The artefact's operating point.
        unscaled: The probabilities [classes] that the operating point scales.
    """
    record, probability = artefact.record, point.scale(unscaled[None])[0]
    expected = [record.reference[name] for name in record.classes]
    if np.abs(probability - expected).max() <= TOLERANCE + artefact.differences[form]:
        return None
    found, wanted = probability.round(4).tolist(), np.round(expected, 4).tolist()
    return f"answers its reference image with {found} instead of {wanted}"
