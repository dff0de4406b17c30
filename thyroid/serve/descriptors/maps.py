"""Heat maps of an answer: of malignancy, and of every finding."""

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from thyroid.imaging.geometry import Box
from thyroid.model import explain

LAYER = 112
"""Most pixels of a side of a finding's layer.

An answer may be about 64 images with 18 findings each, and whoever shows a layer stretches it over the image anyway.
"""


def malignancy(pixels: NDArray[np.uint8], evidence: NDArray[np.float32], roi: Box | None) -> dict[str, Any]:
    """Return where the network saw evidence of malignancy: as an array, as a layer (PNG) and as an overlay (PNG).

    Args:
        pixels: The network's input, uint8 [size, size, 3].
        evidence: The network's map of evidence [h, w].
        roi: The nodule in pixels of the input; None if it is not known.
    """
    heat = explain.heat(evidence, pixels.shape[0])
    return {
        "method": "class activation map (Grad-CAM of a pooled last layer), evidence of malignancy",
        "size": pixels.shape[0],
        "overlay_png": _png(explain.overlay(pixels, heat)),
        "roi": None if roi is None else list(roi),
    } | _drawn(evidence, heat, heat, roi)


def finding(evidence: NDArray[np.float32], size: int, roi: Box | None) -> dict[str, Any]:
    """Return where the network saw evidence of a finding: as an array and as a layer (PNG).

    Args:
        evidence: The finding's map of evidence [h, w].
        size: Side of the network's input in pixels.
        roi: The nodule in pixels of the input; None if it is not known.
    """
    return _drawn(evidence, explain.heat(evidence, size), explain.heat(evidence, min(size, LAYER)), roi)


def _drawn(
    evidence: NDArray[np.float32], heat: NDArray[np.float32], shown: NDArray[np.float32], roi: Box | None
) -> dict[str, Any]:
    positive = np.maximum(evidence, 0)
    return {
        "map": (positive / max(float(positive.max()), 1e-12)).round(4).tolist(),
        "layer_png": _png(explain.layer(shown)),
        "share_inside_roi": None if roi is None else explain.share_inside(heat, roi),
    }


def _png(pixels: NDArray[np.uint8]) -> dict[str, str]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return {"b64": base64.b64encode(buffer.getvalue()).decode()}
