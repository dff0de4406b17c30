"""Stores a locator in every form in which it can be served, and compares the forms on the test frames."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thyroid.locate.frames import Frames
from thyroid.locate.proposals import Proposals
from thyroid.metrics import detection
from thyroid.model import engine, locator_network
from thyroid.model import locator as inference
from thyroid.records.locate import BoxCalibration, LocatorForm


def write(locator: Any, output: Path) -> None:
    """Write the Keras form and OpenVINO's single precision form as `locator.FILES` in `output`.

    Raises:
        RuntimeError: OpenVINO cannot convert the network.
    """
    (output / inference.KERAS).parent.mkdir(parents=True, exist_ok=True)
    locator.save(output / inference.KERAS)
    graph = output / "locator.pb"
    locator_network.write_graph(locator, graph)
    command = [
        sys.executable,
        "-m",
        engine.__name__,
        str(graph),
        str(output / inference.OPENVINO),
        *locator_network.OUTPUTS,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"OpenVINO cannot convert {graph}: {done.stderr[-2000:]}")
    graph.unlink()


def compare(
    output: Path,
    pixels: NDArray[np.uint8],
    frames: Frames,
    reference: Proposals,
    calibration: BoxCalibration,
    *,
    limit: float,
    seed: int,
) -> dict[str, LocatorForm]:
    """Return what every form that runs here changes on the test frames.

    Args:
        output: Folder of `write`.
        pixels: Inputs of the test frames, uint8 [n, size, size, 3].
        frames: The test frames, all with marked nodules.
        reference: Proposals of the Keras form.
        calibration: The locator's calibration.
        limit: Probability below which a box is unsure.
        seed: Seed of the bootstrap.
    """
    result = {}
    sure = reference.best(calibration) >= limit
    patient = frames.table["patient"].to_numpy(int)
    for form in engine.openvino_forms():
        found = Proposals.read(
            frames, *engine.OpenVINOEngine(output / inference.OPENVINO, frames.size, form).predict(pixels)
        )
        distance = [
            1 - float(detection.iou(one[:1], other[:1])[0, 0])
            for one, other in zip(found.boxes, reference.boxes, strict=True)
        ]
        result[form] = LocatorForm(
            largest_difference=max(distance),
            decisions_changed=int(((found.best(calibration) >= limit) != sure).sum()),
            iou50=detection.mean_interval(detection.compare(found.boxes, frames.boxes).hit, patient, seed),
        )
    return result
