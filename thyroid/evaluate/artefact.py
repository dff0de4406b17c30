"""Pack the winner as the registry takes it: one folder with the model, its operating point and its performance."""

import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from thyroid.clinical.fusion import Fusion
from thyroid.data import classes as kinds
from thyroid.data.classes import Classes
from thyroid.data.filenames import SCORE
from thyroid.evaluate import card, performance, predictions
from thyroid.evaluate.predictions import Trained
from thyroid.imaging import geometry, images, phantom
from thyroid.model import artefacts, engine
from thyroid.model.network import GRAPH, Network
from thyroid.model.operating_point import OperatingPoint
from thyroid.registry import registry


def export(winner: Trained, pixels: NDArray[np.uint8], output: Path) -> Future[dict[str, NDArray[np.float64]]]:
    """Start exporting the network for OpenVINO and scoring images with it, in a background thread.

    The images are scored in every form that OpenVINO can run on this CPU (see `engine.openvino_forms`).

    Args:
        winner: Training whose network is exported.
        pixels: Images to score, uint8 [n, size, size, 1 or 3].
        output: Folder to write the network to.

    Returns:
        A future that maps each form to its probabilities, float64 [n, classes]. It raises RuntimeError if OpenVINO
        cannot convert the network.
    """
    beside = ThreadPoolExecutor(1, thread_name_prefix="export")
    exported = beside.submit(_export, winner, pixels, output / engine.OPENVINO)
    beside.shutdown(wait=False)
    return exported


def _export(winner: Trained, pixels: NDArray[np.uint8], output: Path) -> dict[str, NDArray[np.float64]]:
    command = [sys.executable, "-m", engine.__name__, str(winner.folder / GRAPH), str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"OpenVINO cannot convert {winner.folder / GRAPH}: {done.stderr[-2000:]}")
    size, answers = winner.facts["image_size"], {}
    for form in engine.openvino_forms():
        running = engine.OpenVINOEngine(output, size, form)
        answers[form] = running.predict(images.rgb(pixels))[0].astype(np.float64)
    return answers


def write(
    winner: Trained,
    network: Network,
    exported: Future[dict[str, NDArray[np.float64]]],
    row: dict[str, Any],
    point: OperatingPoint,
    facts: dict[str, Any],
    result: dict[str, Any],
    scans: pd.DataFrame,
    tested: pd.DataFrame,
    output: Path,
    head: Fusion | None = None,
    columns: pd.DataFrame | None = None,
) -> None:
    """Write model.keras, card.md, scans.csv, a synthetic reference image and model.json.

    model.json also holds the model's answer to the reference image.

    Args:
        winner: Training of the winner.
        network: Network of the winner.
        exported: Future of `export`, which was called with the test images in the serving domain and with `output`.
        row: The winner's row of the ranking.
        point: Operating point of the winner.
        facts: Facts of the data version (data.json).
        result: Result of the evaluation.
        scans: `tables.contents` of the data version.
        tested: The winner's predictions of the images that `exported` scores, at its operating point.
        output: Folder to write to.
        head: Head that adds the clinical columns; None where the model uses none.
        columns: Clinical columns of the images in `tested`, in the same order; None where the model uses none.

    Raises:
        RuntimeError: OpenVINO could not convert the network.
    """
    output.mkdir(parents=True, exist_ok=True)
    classes = kinds.of(facts)
    reference = images.encode(geometry.normal(phantom.draw("M", patient=1, image=1).image))
    (output / "reference.jpg").write_bytes(reference)
    pixels = images.rgb(images.stored(_as_served(reference, result["serving_domain"]), row["image_size"]))
    raw = network.probabilities(pixels[None], "reference")
    probability = point.scale(raw if head is None else head.predict(raw, [{}])[0])[0]
    answers = exported.result()
    (output / artefacts.MODEL).write_bytes((winner.folder / row["checkpoint"]).read_bytes())
    scans.to_csv(output / artefacts.SCANS, index=False)
    card.write(output, winner.facts, facts, result)
    artefacts.describe(
        output,
        {
            "name": registry.NAME,
            "backbone": row["backbone"],
            "weights": row["weights"],
            **classes.facts(),
            "image_size": row["image_size"],
            "domain": row["train_domain"],
            "margin": facts["margin"],
            "serving_domain": result["serving_domain"],
            "parameters": row["parameters"],
            "data_digest": facts["digest"],
            "scans": facts["scans"],
            "synthetic": facts["synthetic"],
            **point.facts(),
            "settings": result["settings"],
            "reference": dict(zip(classes.names, probability.tolist(), strict=True)),
            "forms": {engine.KERAS: {"validation": row["validation"], "test": row["test"]}}
            | _other_forms(answers, classes, point, result["settings"]["prevalence"], tested, head, columns),
            **({} if head is None else {"clinical": head.facts() | {"fields": head.encoder.fields()}}),
            "audits": {key: result["audits"][key] for key in ("domain", "shortcut", "kept", "findings")},
        },
    )


def _as_served(reference: bytes, domain: str) -> NDArray[np.uint8]:
    """Prepare the reference image as the endpoint does for a request without a region."""
    frame = images.decode(reference)
    return geometry.normal(frame) if domain == "normal" else images.letterbox(frame, max(frame.shape[:2]))


def _other_forms(
    answers: dict[str, NDArray[np.float64]],
    classes: Classes,
    point: OperatingPoint,
    prevalence: float,
    tested: pd.DataFrame,
    head: Fusion | None,
    columns: pd.DataFrame | None,
) -> dict[str, Any]:
    """Compute the test metrics of every form that OpenVINO can run here, and its differences from Keras."""
    forms = {}
    for form, raw in answers.items():
        table = tested.copy()
        table[classes.columns] = raw if head is None else head.predict(raw, columns)[0]
        table = predictions.at_point(table, point, classes)
        scored = performance.of(table, classes, point, prevalence)
        kept = ("n", "auroc", "sensitivity", "specificity", "ece", "confusion")
        forms[form] = {
            "largest_difference": float(np.abs(table[SCORE] - tested[SCORE]).max()),
            "decisions_changed": int((point.decide(table[SCORE]) != point.decide(tested[SCORE])).sum()),
            "test": {key: scored[key] for key in kept if key in scored},
        }
    return forms
