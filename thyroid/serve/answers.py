"""Builds the answers of one model: predictions, explanations and patients of V1, and the outputs of V2.

`schemas` describes these answers.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from kserve import InferOutput, InferRequest, InferResponse
from PIL import Image

from thyroid import RESEARCH_USE_ONLY
from thyroid.data.classes import Classes
from thyroid.model import explain
from thyroid.model.operating_point import OperatingPoint
from thyroid.records.model import ArtefactRecord
from thyroid.serve.payload import Instance
from thyroid.serve.preprocessing import Prepared


@dataclass(frozen=True)
class Scored:
    """An image of a request with what the model makes of it.

    Attributes:
        instance: The image as it was sent.
        prepared: The input of the network.
        probability: Calibrated probabilities [classes].
        decision: The result of `Answers.decide` for `probability`.
        evidence: The network's map of evidence of malignancy [h, w].
        clinical: Clinical columns used and missing, and notes on values; empty if the model uses none.
        milliseconds: The time of each stage.
    """

    instance: Instance
    prepared: Prepared
    probability: np.ndarray
    decision: dict[str, Any]
    evidence: np.ndarray
    clinical: dict[str, Any]
    milliseconds: dict[str, float]


@dataclass(frozen=True)
class Answers:
    """Builds the answers of one model.

    Attributes:
        record: Content of the artefact's model.json.
        point: The operating point.
        classes: The classes of the model.
        form: The form that answers, one of `engine.FORMS`.
        not_released: The reasons why the model may not be relied on; None for a released one.
    """

    record: ArtefactRecord
    point: OperatingPoint
    classes: Classes
    form: str
    not_released: list[str] | None

    def decide(self, probability: np.ndarray) -> dict[str, Any]:
        """Return calibrated probabilities [classes] with the decision at the operating point."""
        names = self.classes.names
        malignant = float(self.classes.malignant(probability[None])[0])
        decision = str(self.point.decide(malignant))
        above = [name for name, p, t in zip(names, probability, self.point.thresholds, strict=True) if p >= t]
        return {
            "probability": dict(zip(names, probability.tolist(), strict=True)),
            "malignant": malignant,
            "class": names[self.point.call(probability[None], self.classes)[0]],
            "above_threshold": above,
            "threshold": self.point.threshold,
            "decision": decision,
            **({"reason": "abstention_band"} if decision == "abstain" else {}),
        }

    def predictions(self, scored: Sequence[Scored]) -> dict[str, Any]:
        """Return the answer to `:predict`."""
        return {"predictions": [self._prediction(image) for image in scored]} | self._patients(scored)

    def explanations(self, scored: Sequence[Scored], maps: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the answer to `:explain`, with the `heat_map` of every image."""
        explained = [self._prediction(image) | {"heat_map": heat} for image, heat in zip(scored, maps, strict=True)]
        return {"explanations": explained} | self._patients(scored)

    def _prediction(self, scored: Scored) -> dict[str, Any]:
        return (
            scored.decision
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

    def _patients(self, scored: Sequence[Scored]) -> dict[str, Any]:
        """Average the views of each patient, as the evaluation does. The answer is empty if no patient is named."""
        views: dict[str, list[np.ndarray]] = {}
        for image in scored:
            if image.instance.patient is not None:
                views.setdefault(image.instance.patient, []).append(image.probability)
        patients = [
            {"patient": patient, "images": len(rows)} | self.decide(np.mean(rows, axis=0))
            for patient, rows in views.items()
        ]
        return {"patients": patients} if patients else {}

    def v2(self, name: str, request: InferRequest, scored: Sequence[Scored]) -> InferResponse:
        """Return the answer to a V2 request with the outputs `probability` and `decision`.

        Args:
            name: Name under which the model is served.
            request: The request.
            scored: Its images.
        """
        probability = InferOutput("probability", [len(scored), len(self.record.classes)], "FP32")
        values = np.stack([image.probability for image in scored]).astype(np.float32)
        probability.set_data_from_numpy(values, binary_data=False)
        decision = InferOutput("decision", [len(scored)], "BYTES")
        decisions = [image.decision["decision"].encode() for image in scored]
        decision.set_data_from_numpy(np.array(decisions, dtype=np.object_), binary_data=False)
        return InferResponse(
            response_id=request.id or "",
            model_name=name,
            model_version=str(self.record.version),
            infer_outputs=[probability, decision],
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


def heat_map(scored: Scored) -> dict[str, Any]:
    """Return where the network saw evidence of malignancy: as an array, as a layer (PNG) and as an overlay (PNG)."""
    pixels = scored.prepared.pixels
    heat = explain.heat(scored.evidence, pixels.shape[0])
    positive = np.maximum(scored.evidence, 0)
    roi = scored.prepared.roi
    return {
        "method": "class activation map (Grad-CAM of a pooled last layer), evidence of malignancy",
        "map": (positive / max(float(positive.max()), 1e-12)).round(4).tolist(),
        "size": pixels.shape[0],
        "overlay_png": _png(explain.overlay(pixels, heat)),
        "layer_png": _png(explain.layer(heat)),
        "roi": None if roi is None else list(roi),
        "share_inside_roi": None if roi is None else explain.share_inside(heat, roi),
    }


def _png(pixels: np.ndarray) -> dict[str, str]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return {"b64": base64.b64encode(buffer.getvalue()).decode()}
