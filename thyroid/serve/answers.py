"""Builds the answers of one model: predictions, explanations and patients of V1, and the outputs of V2.

`schemas` describes these answers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from kserve import InferOutput, InferRequest, InferResponse
from numpy.typing import NDArray

from thyroid import RESEARCH_USE_ONLY
from thyroid.clinical.encoder import Encoder
from thyroid.data.classes import Classes
from thyroid.model.descriptors.head import Head, Told
from thyroid.model.locator import MOST
from thyroid.model.novelty.novelty import Novelty
from thyroid.model.operating_point import OperatingPoint
from thyroid.records.model import ArtefactRecord, KerasForm
from thyroid.records.watch import AUTO, WHOLE
from thyroid.serve.descriptors import answers as descriptors
from thyroid.serve.descriptors import maps
from thyroid.serve.limits import RequestError
from thyroid.serve.payload import CROP, Instance
from thyroid.serve.preprocessing import Prepared
from thyroid.tirads import Points

UNLIKE, BOX_UNSURE, BOX_NOT_CONFIRMED = "unlike_training", "box_unsure", "box_not_confirmed"
BAND, DESCRIPTORS_DISAGREE, DISAGREE = "abstention_band", "descriptors_disagree", "views_disagree"
"""Reasons of abstention, in the order of an answer."""
_DOUBTS = (UNLIKE, BOX_UNSURE, BOX_NOT_CONFIRMED)
_FARTHEST = 1e6
"""Distance of features that are not finite, in limits."""
_LOCATED = ("source", "box", "probability", "unsure", "proposals", "note", "scan_area_found", "frame", "frames")
"""Fields of a crop that `:locate` answers with, where they are there."""
_LOCATED_OUTPUTS: list[dict[str, Any]] = [
    {"name": "box", "datatype": "INT32", "shape": [-1, 4]},
    {"name": "box_probability", "datatype": "FP32", "shape": [-1]},
    {"name": "source", "datatype": "BYTES", "shape": [-1]},
    {"name": "proposals", "datatype": "FP32", "shape": [-1, MOST, 5]},
]
"""Outputs of V2 that only a model with a locator has, for the metadata."""


@dataclass(frozen=True)
class Scored:
    """An image of a request with what the model makes of it.

    Attributes:
        instance: The image as it was sent.
        prepared: The input of the network.
        probability: Calibrated probabilities [classes].
        unscaled: The probabilities [classes] that the operating point scales: the network's, fused with the clinical
            columns.
        decision: The result of `Answers.decide` for `probability`.
        evidence: The network's map of evidence of malignancy [h, w].
        clinical: Clinical columns used and missing, and notes on values; empty if the model uses none.
        milliseconds: The time of each stage.
        novelty: Percentile, 0 to 100, of the distance from the training images among their own; None if the model has
            no reference for it.
        distance: That distance, divided by the model's limit; None as above.
        features: The network's features as the distance sees them, float32 [k]; None unless the log asks for them.
        findings: Probabilities of the findings that the model gives out [k]; None if it gives out none, or if a
            feature is not finite.
        told: What follows from them; None as above.
        descriptor_maps: The network's map of evidence of each of them [h, w, k]; None as above.
    """

    instance: Instance
    prepared: Prepared
    probability: np.ndarray
    unscaled: np.ndarray
    decision: dict[str, Any]
    evidence: np.ndarray
    clinical: dict[str, Any]
    milliseconds: dict[str, float]
    novelty: float | None
    distance: float | None
    features: NDArray[np.float32] | None
    findings: NDArray[np.float64] | None = None
    told: Told | None = None
    descriptor_maps: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Answers:
    """Builds the answers of one model.

    Attributes:
        record: Content of the artefact's model.json.
        point: The operating point.
        classes: The classes of the model.
        form: The form that answers, one of `engine.FORMS`.
        not_released: The reasons why the model may not be relied on; None for a released one.
        locates: Whether the model has a locator.
        head: Head that tells descriptors; None if the model tells none.
    """

    record: ArtefactRecord
    point: OperatingPoint
    classes: Classes
    form: str
    not_released: list[str] | None
    locates: bool = False
    head: Head | None = None

    def doubts(self, instance: Instance, prepared: Prepared, distance: float | None) -> list[str]:
        """Return the reasons why an image or its crop allows no decision.

        Those of a crop are absent where the request gives the region, or says that the image is a crop. An image that
        was only taken for a crop is as little confirmed as a box that nobody has seen.

        Args:
            instance: The image as it was sent.
            prepared: The input of the network.
            distance: As in `Scored`.
        """
        unlike = [UNLIKE] * (distance is not None and distance > 1)
        source = prepared.done.get("source")
        guessed = self.locates and source == WHOLE and instance.domain != CROP
        if source != AUTO and not guessed:
            return unlike
        cost = self.record.automatic_boxes
        confirmed = cost is not None and cost.released
        unsure = bool(prepared.done.get("unsure"))
        return unlike + [BOX_UNSURE] * unsure + [BOX_NOT_CONFIRMED] * (not confirmed)

    def decide(
        self,
        probability: NDArray[np.float64],
        doubts: Sequence[str] = (),
        disagree: bool = False,
        points: Points | None = None,
    ) -> dict[str, Any]:
        """Return calibrated probabilities [classes] with the decision at the operating point, and TI-RADS beside it.

        Args:
            probability: The probabilities.
            doubts: Reasons against a decision that lie in the images or their crops.
            disagree: Whether the views that the probabilities are the mean of disagree.
            points: Points of TI-RADS that are possible; None if they cannot be told.
        """
        names = self.classes.names
        malignant = float(self.classes.malignant(probability[None])[0])
        decision = str(self.point.decide(malignant))
        tirads = None if self.head is None or points is None else descriptors.tirads(self.head, decision, points)
        contradicted = tirads is not None and tirads["agrees"] is False and self._descriptors_decide
        band = [BAND] if decision == "abstain" else []
        reasons = [*doubts, *band, *([DESCRIPTORS_DISAGREE] if contradicted else []), *([DISAGREE] if disagree else [])]
        above = [name for name, p, t in zip(names, probability, self.point.thresholds, strict=True) if p >= t]
        return {
            "probability": dict(zip(names, probability.tolist(), strict=True)),
            "malignant": malignant,
            "class": names[self.point.call(probability[None], self.classes)[0]],
            "above_threshold": above,
            "threshold": self.point.threshold,
            "decision": "abstain" if reasons else decision,
            **({"reason": reasons[0], "reasons": reasons} if reasons else {}),
            **({} if tirads is None else {"tirads": tirads}),
        }

    @property
    def _descriptors_decide(self) -> bool:
        """Whether the model makes no decision that the descriptors disagree with."""
        return self.head is not None and self.head.record.tirads is not None and self.head.record.tirads.doubts

    def predictions(self, scored: Sequence[Scored]) -> dict[str, Any]:
        """Return the answer to `:predict`."""
        return {"predictions": [self._prediction(image) for image in scored]} | self._patients(scored)

    def explanations(
        self, scored: Sequence[Scored], drawn: Sequence[tuple[dict[str, Any], list[dict[str, Any]]]]
    ) -> dict[str, Any]:
        """Return the answer to `:explain`, with the `heat_maps` of every image."""
        pairs = zip(scored, drawn, strict=True)
        explained = [self._prediction(image, findings) | {"heat_map": heat} for image, (heat, findings) in pairs]
        return {"explanations": explained} | self._patients(scored)

    def _prediction(self, scored: Scored, drawn: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
        return (
            scored.decision
            | self._descriptors(scored, drawn)
            | ({} if scored.distance is None else {"novelty": scored.novelty, "novelty_distance": scored.distance})
            | {
                "crop": scored.prepared.done,
                "model": self.record.backbone,
                "model_version": self.record.version,
                "data_digest": self.record.data_digest,
                "form": self.form,
                "milliseconds": scored.milliseconds,
                "notice": RESEARCH_USE_ONLY,
            }
            | ({"clinical": scored.clinical} if scored.clinical else {})
            | ({} if self.not_released is None else {"not_released": self.not_released})
        )

    def _descriptors(self, scored: Scored, drawn: Sequence[dict[str, Any]]) -> dict[str, Any]:
        if self.head is None or scored.findings is None or scored.told is None:
            return {}
        return {"descriptors": descriptors.describe(self.head, scored.findings, scored.told, drawn)}

    def boxes(self, prepared: Sequence[Prepared]) -> dict[str, Any]:
        """Return the answer to `:locate`."""
        found = [{name: one.done[name] for name in _LOCATED if name in one.done} for one in prepared]
        return {"boxes": [one | {"notice": RESEARCH_USE_ONLY} for one in found]}

    def _patients(self, scored: Sequence[Scored]) -> dict[str, Any]:
        """Average the views of each patient, as the evaluation does. The answer is empty if no patient is named."""
        views: dict[str, list[int]] = {}
        for number, image in enumerate(scored):
            if image.instance.patient is not None:
                views.setdefault(image.instance.patient, []).append(number)
        patients = [self._patient(name, numbers, scored) for name, numbers in views.items()]
        return {"patients": patients} if patients else {}

    def _patient(self, name: str, numbers: Sequence[int], scored: Sequence[Scored]) -> dict[str, Any]:
        """Average the views of one patient that allow a decision; if there is none, average all of them."""
        views = {number: scored[number] for number in numbers}
        doubts = {number: self.doubts(one.instance, one.prepared, one.distance) for number, one in views.items()}
        counted = [number for number in numbers if not doubts[number]]
        rows = np.stack([scored[number].probability for number in counted or numbers])
        reasons = [] if counted else [one for one in _DOUBTS if any(one in found for found in doubts.values())]
        left_out = [{"image": number, "reason": found[0]} for number, found in doubts.items() if found]
        told = [one for number in counted or numbers if (one := scored[number].told) is not None]
        differ = descriptors.differing(told)
        disagree = bool(counted) and self.disagree(rows)
        return (
            {"patient": name, "images": len(numbers)}
            | self.decide(rows.mean(axis=0), reasons, disagree, descriptors.together(told))
            | ({"views_differ": differ} if differ else {})
            | ({"left_out": left_out} if left_out else {})
        )

    def disagree(self, rows: NDArray[np.float64]) -> bool:
        """Return whether two of the views [n, classes] disagree.

        They do if they lie on different sides of the threshold and their intervals do not overlap. A view's interval is
        its probability of malignant, plus and minus the upper bound of the model's expected calibration error on
        validation (Naeini et al. 2015): how far probabilities of this model are from observed shares on average. It is
        no confidence interval of the patient's risk, and it knows nothing of what made these views differ.
        """
        keras = self.record.forms.get("keras")
        if not isinstance(keras, KerasForm):
            return False
        ece = keras.validation.ece
        malignant = self.classes.malignant(rows)
        low, high = float(malignant.min()), float(malignant.max())
        return low < self.point.threshold <= high and high - low > 2 * (ece.value if ece.high is None else ece.high)

    def v2(self, name: str, request: InferRequest, scored: Sequence[Scored]) -> InferResponse:
        """Return the answer to a V2 request: the outputs of `output_types`.

        Args:
            name: Name under which the model is served.
            request: The request.
            scored: Its images.

        Raises:
            RequestError: The request asks for an output that there is not.
        """
        outputs = self._outputs(scored)
        wanted = [one.name for one in request.request_outputs or ()]
        if unknown := sorted(set(wanted) - set(outputs)):
            raise RequestError(f"outputs: {unknown[0][:64]!r} is unknown; use one of {', '.join(outputs)}")
        return InferResponse(
            response_id=request.id or "",
            model_name=name,
            model_version=str(self.record.version),
            infer_outputs=[outputs[one] for one in wanted or outputs],
            use_binary_outputs=request.use_binary_outputs,
            requested_outputs=request.request_outputs,
            parameters={
                "threshold": repr(self.point.threshold),
                "data_digest": self.record.data_digest,
                "form": self.form,
                "released": self.not_released is None,
                "notice": RESEARCH_USE_ONLY,
            },
        )

    def output_types(self) -> list[dict[str, Any]]:
        """Return the outputs for the V2 metadata: those beyond probability and decision only where they exist."""
        novelty, head = self.record.novelty is not None, self.head
        reasons = self.locates or novelty or head is not None
        return [
            {"name": "probability", "datatype": "FP32", "shape": [-1, len(self.record.classes)]},
            {"name": "decision", "datatype": "BYTES", "shape": [-1]},
            *(_LOCATED_OUTPUTS if self.locates else []),
            *([{"name": "reasons", "datatype": "BYTES", "shape": [-1]}] if reasons else []),
            *([{"name": "novelty", "datatype": "FP32", "shape": [-1]}] if novelty else []),
            *([] if head is None else descriptors.output_types(head)),
        ]

    def _outputs(self, scored: Sequence[Scored]) -> dict[str, InferOutput]:
        """Return the outputs of V2 by name."""
        values: dict[str, tuple[str, NDArray[Any]]] = {
            "probability": ("FP32", np.stack([image.probability for image in scored]).astype(np.float32)),
            "decision": ("BYTES", _texts([image.decision["decision"] for image in scored])),
        }
        if self.locates:
            crops = [image.prepared.done for image in scored]
            sure = [crop.get("probability", -1.0) for crop in crops]  # JSON has no NaN
            values |= {
                "box": ("INT32", np.array([crop["box"] for crop in crops], np.int32)),
                "box_probability": ("FP32", np.array(sure, np.float32)),
                "source": ("BYTES", _texts([crop["source"] for crop in crops])),
                "proposals": ("FP32", np.stack([_proposals(crop) for crop in crops])),
            }
        reasons = [",".join(image.decision.get("reasons", [])) for image in scored]
        values["reasons"] = "BYTES", _texts(reasons)
        values["novelty"] = "FP32", np.array([image.novelty for image in scored], np.float32)
        named = {}
        if self.head is not None:
            values |= descriptors.outputs(self.head, [(image.findings, image.told) for image in scored])
            named["descriptors"] = {"findings": descriptors.names(self.head)}
        outputs = {}
        for name in (one["name"] for one in self.output_types()):
            datatype, array = values[name]
            outputs[name] = InferOutput(name, list(array.shape), datatype, parameters=named.get(name))
            outputs[name].set_data_from_numpy(array, binary_data=False)
        return outputs


def _proposals(crop: dict[str, Any]) -> NDArray[np.float32]:
    """Return box and probability of every proposal as float32 [MOST, 5]; the rows that are left are -1."""
    out = np.full((MOST, 5), -1, np.float32)
    for row, one in enumerate(crop.get("proposals", [])):
        out[row] = [*one["box"], one["probability"]]
    return out


def _texts(texts: Sequence[str]) -> NDArray[np.object_]:
    return np.array([text.encode() for text in texts], np.object_)


def unlikeness(
    reference: Novelty, pooled: NDArray[np.float32], project: bool
) -> tuple[float, float, NDArray[np.float32] | None]:
    """Compare an image with the training images.

    Args:
        reference: What the training images are like.
        pooled: The image's features, float32 [d].
        project: Whether the log asks for the projected features.

    Returns:
        The fields `novelty`, `distance` and `features` of `Scored`. The distance is finite, so that JSON can hold it.
    """
    features = pooled[None]
    found = float(reference.distance(features)[0])
    distance = found if np.isfinite(found) else _FARTHEST * reference.limit
    projected = reference.project(features)[0] if project else None
    return reference.percentile(distance), distance / reference.limit, projected


def columns_used(encoder: Encoder, values: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Describe which columns of the model an image's clinical values use, and which of them are missing."""
    columns = [column.name for column in encoder.columns]
    return {
        "used": [name for name in columns if name in values],
        "missing": [name for name in columns if name not in values],
        "notes": notes,
    }


def heat_maps(scored: Scored) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the heat map of malignancy, and one of each finding, which are none if the image has no findings."""
    pixels, roi, found = scored.prepared.pixels, scored.prepared.roi, scored.descriptor_maps
    each = [] if found is None else [found[..., place] for place in range(found.shape[-1])]
    drawn = [maps.finding(evidence, pixels.shape[0], roi) for evidence in each]
    return maps.malignancy(pixels, scored.evidence, roi), drawn
