"""A stand-in for an endpoint with a locator: it answers as docs/api.md says, and knows no medicine."""

import base64
import http.server
import io
import json
import threading
from typing import Any

import numpy as np
from PIL import Image

from thyroid import RESEARCH_USE_ONLY
from thyroid.imaging import images

_SHARE = {"value": 0.61, "low": 0.52, "high": 0.69}
FACTS = {
    "version": 1,
    "backbone": "VGG16",
    "serving_domain": "cropped",
    "margin": 0.5,
    "data_digest": "0" * 64,
    "threshold": 0.5,
    "form": "keras",
    "forms": {"keras": {"test": {"cropped": {}}}},
    "not_released": [],
    "locator": {"test": {"iou50": _SHARE}},
    "automatic_boxes": {"released": True},
}
PLACES = ((0.36, 0.3, 0.25, 0.28, 0.71), (0.7, 0.35, 0.16, 0.2, 0.18), (0.08, 0.55, 0.14, 0.18, 0.06))
"""Place, size and probability of each proposal: x, y, width and height as shares of the image."""


class Locating:
    """An endpoint on a free port, until `stop`.

    Attributes:
        unsure: Whether its boxes are unsure.
        released: Whether its model may decide on automatic boxes.
        whole: Whether it takes images for crops, unless the request says `frame`.
        located: Status of the answers to `:locate`; 404 is that of an endpoint without a locator.
        predicted: Status of the answers to `:predict`.
        version: Version of its model.
        changes: Fields in which the answers about one image differ from those documented.
        patient: The same of the answer about the patient.
        known: The same of what it says about its model.
        asked: Path and body of every request.
    """

    def __init__(self) -> None:
        self.unsure = self.whole = False
        self.released, self.located, self.predicted, self.version = True, 200, 200, 1
        self.changes: dict[str, Any] = {}
        self.patient: dict[str, Any] = {}
        self.known: dict[str, Any] = {}
        self.asked: list[tuple[str, Any]] = []
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                self._answer(200, owner.facts())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                owner.asked.append((self.path, body))
                if self.path.endswith(":locate"):
                    self._answer(
                        owner.located, {"boxes": [owner.box(one) | owner.changes for one in body["instances"]]}
                    )
                elif self.path.endswith(":predict"):
                    predictions = owner.explain(body["instances"])["explanations"]
                    self._answer(owner.predicted, {"predictions": predictions, "error": "no"})
                else:
                    self._answer(200, owner.explain(body["instances"]))

            def _answer(self, status: int, content: Any) -> None:
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def facts(self) -> dict[str, Any]:
        """Return what it says about its model."""
        return FACTS | {"automatic_boxes": {"released": self.released}, "version": self.version} | self.known

    def box(self, instance: dict[str, Any]) -> dict[str, Any]:
        """Return what `:locate` says about an image."""
        width, height = images.size(base64.b64decode(instance["image"]["b64"]), formats=images.SERVED)
        if self.whole and instance.get("domain") != "frame":
            return {"box": [0, 0, width, height], "source": "whole", "notice": RESEARCH_USE_ONLY}
        found = [
            {"box": [int(x * width), int(y * height), int(w * width), int(h * height)], "probability": p}
            for x, y, w, h, p in PLACES
        ]
        return found[0] | {"proposals": found, "unsure": self.unsure, "source": "auto", "notice": RESEARCH_USE_ONLY}

    def explain(self, instances: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the answer to `:explain`: the views whose boxes are sure count."""
        crops = [{"source": "given", "box": one["roi"]} if "roi" in one else self.box(one) for one in instances]
        answers = [self._explanation(crop) for crop in crops]
        left_out = [
            {"image": number, "reason": answer["reason"]} for number, answer in enumerate(answers) if "reason" in answer
        ]
        patient = {"patient": "1", "images": len(answers), "left_out": left_out} | _decided(
            answers[0].get("reasons", [answers[0].get("reason")]) if len(left_out) == len(answers) else []
        )
        return {"explanations": answers, "patients": [patient | self.patient]}

    def _explanation(self, crop: dict[str, Any]) -> dict[str, Any]:
        reasons = ["box_unsure"] if crop.get("unsure") else []
        reasons += ["box_not_confirmed"] if crop["source"] == "auto" and not self.released else []
        x, y, width, height = crop["box"]
        side = 2 * max(width, height)
        crop |= {"domain": "cropped", "square": [x + (width - side) // 2, y + (height - side) // 2, side]}
        heat = {"layer_png": layer(), "share_inside_roi": None if crop["source"] == "whole" else 0.7}
        told = _decided(reasons) | {"crop": crop, "model": "VGG16", "model_version": self.version, "heat_map": heat}
        told |= {"data_digest": FACTS["data_digest"]}
        return told | self.changes


def _decided(reasons: list[str]) -> dict[str, Any]:
    decision = (
        {"decision": "abstain", "reasons": reasons, "reason": reasons[0]} if reasons else {"decision": "malignant"}
    )
    return {"probability": {"B": 0.2, "M": 0.8}, "malignant": 0.8, "class": "M", "threshold": 0.5} | decision


def layer(place: float = 0.0) -> dict[str, str]:
    """Return a warm spot as a PNG inside of JSON, `place` (-1 to 1) to the right of the middle."""
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    warm = np.clip(255 * np.exp(-6 * ((x - place) ** 2 + y**2)), 0, 255).astype(np.uint8)
    pixels = np.dstack([np.full_like(warm, 255), warm // 2, np.zeros_like(warm), warm])
    buffer = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(buffer, "PNG")
    return {"b64": base64.b64encode(buffer.getvalue()).decode()}
