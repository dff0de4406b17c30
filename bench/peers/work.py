"""How every peer answers a request, as an engineer would write it with OpenCV and OpenVINO and without this project.

Compared with the project's endpoint, it leaves out the limits, the checks, the JPEG that makes a crop in memory the
same as a crop on disk, and every part of an answer except its probabilities.
"""

import argparse
import base64
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openvino
from numpy.typing import NDArray

SIZE, MARGIN = 224, 0.5
CORES = len(os.sched_getaffinity(0))

cv2.setNumThreads(1)


def options() -> argparse.Namespace:
    """Parse the command line that bench/serving.py passes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--precision", choices=("f32", "bf16"), required=True)
    parser.add_argument("--mode", choices=("latency", "throughput"), required=True)
    parser.add_argument("--port", type=int, required=True)
    return parser.parse_args()


class Network:
    """The model, which several threads can call at the same time.

    Args:
        model: OpenVINO model file.
        precision: Inference precision: f32 or bf16.
        mode: OpenVINO's performance hint: latency or throughput.
        threads: Threads of OpenVINO; all cores by default.
    """

    def __init__(self, model: Path, precision: str, mode: str, threads: int = CORES) -> None:
        core = openvino.Core()
        network = core.read_model(model)
        network.reshape([1, SIZE, SIZE, 3])
        settings = {"PERFORMANCE_HINT": mode.upper(), "INFERENCE_PRECISION_HINT": precision}
        # several processes that pin their threads would pin them to the same core
        threads_of = {"INFERENCE_NUM_THREADS": str(threads), "ENABLE_CPU_PINNING": "NO"} if threads < CORES else {}
        self._compiled = core.compile_model(network, "CPU", settings | threads_of)
        # pybind11 initialises itself at the first array. Two threads that come first at the same time would deadlock.
        self._compiled.create_infer_request().infer({0: np.zeros((1, SIZE, SIZE, 3), np.uint8)})
        self._own = threading.local()
        self.callers = 2 if mode == "latency" else CORES + 2
        """Number of threads that keep the network busy while one or two of them prepare images."""

    def pool(self) -> ThreadPoolExecutor:
        """Return a pool of `callers` threads."""
        return ThreadPoolExecutor(self.callers)

    def answer(self, body: bytes, kind: str) -> dict[str, Any]:
        """Answer an image, or the documented request as JSON."""
        if kind.startswith("application/json"):
            return {"predictions": [self.look(one) for one in json.loads(body)["instances"]]}
        return {"predictions": [self._look(body, None)]}

    def look(self, instance: dict[str, Any]) -> dict[str, Any]:
        """Answer one instance of the documented request."""
        return self._look(base64.b64decode(instance["image"]["b64"]), instance.get("roi"))

    def _look(self, data: bytes, roi: list[int] | None) -> dict[str, Any]:
        if not hasattr(self._own, "request"):
            self._own.request = self._compiled.create_infer_request()
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        assert image is not None
        pixels = letterbox(image if roi is None else crop(image, roi), SIZE)
        self._own.request.infer({0: pixels[None]})
        return {"probability": self._own.request.get_output_tensor(0).data[0].tolist()}


def crop(frame: NDArray[np.uint8], roi: list[int]) -> NDArray[np.uint8]:
    """Return the region with its margin, black outside the scan area."""
    height, width = frame.shape[:2]
    mask = scan_area(frame)
    x, y, w, h = roi
    mask[y : y + h, x : x + w] = 1
    dx, dy = round(MARGIN * w), round(MARGIN * h)
    rows = slice(max(0, y - dy), min(height, y + h + dy))
    columns = slice(max(0, x - dx), min(width, x + w + dx))
    kept: NDArray[np.uint8] = cv2.copyTo(frame[rows, columns], mask[rows, columns])
    return kept


def scan_area(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a mask of the tissue, uint8 [height, width], with 1 inside.

    It is the convex hull of the areas that are brighter than the background and thick.
    """
    height, width = frame.shape[:2]
    grey = cv2.max(cv2.max(frame[..., 0], frame[..., 1]), frame[..., 2])
    background = int(cv2.calcHist([grey], [0], None, [256], [0, 256])[:64].argmax())
    tissue = cv2.threshold(grey, background + 4, 1, cv2.THRESH_BINARY)[1]
    for side, operation in ((60, cv2.MORPH_CLOSE), (12, cv2.MORPH_OPEN)):
        side = max(3, min(height, width) // side) | 1
        tissue = cv2.morphologyEx(tissue, operation, np.ones((side, side), np.uint8))
    contours, _ = cv2.findContours(tissue, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    areas = [cv2.contourArea(one) for one in contours]
    if sum(areas) < 0.1 * height * width:
        return np.ones((height, width), np.uint8)
    kept = [one for one, area in zip(contours, areas, strict=True) if area >= max(areas) / 4]
    hull = cv2.convexHull(np.concatenate(kept))
    area: NDArray[np.uint8] = cv2.fillConvexPoly(np.zeros((height, width), np.uint8), hull, 1)
    return area


def letterbox(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Scale an image into a square without stretching it, with a black border."""
    height, width = image.shape[:2]
    scale = size / max(height, width)
    new = max(1, round(width * scale)), max(1, round(height * scale))
    image = cv2.resize(image, new, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    out = np.zeros((size, size, 3), np.uint8)
    left, top = (size - new[0]) // 2, (size - new[1]) // 2
    out[top : top + new[1], left : left + new[0]] = image
    return out
