"""Pack the winner as the registry takes it: one folder with the model, its operating point and its performance."""

import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thyroid.data.filenames import SCORE
from thyroid.evaluate import card, performance, predictions
from thyroid.evaluate.boxes import boxes
from thyroid.evaluate.descriptors.lock import Locked as LockedDescriptors
from thyroid.evaluate.novelty import usual
from thyroid.evaluate.novelty.measure import Locked
from thyroid.evaluate.scored import ScoredModel
from thyroid.imaging import geometry, images, phantom
from thyroid.model import engine, scan_statistics
from thyroid.model.artefact import MODEL, SCANS, Artefact
from thyroid.model.descriptors.head import FILE, Head
from thyroid.model.engine import Answer
from thyroid.model.network import GRAPH
from thyroid.records.evaluation import Measured
from thyroid.records.model import ModelDescription
from thyroid.registry.registry import MODEL_NAME

_BLOCK = 256  # images that run at once; the maps of their descriptors are not kept
_KEPT = 4


@dataclass(frozen=True)
class Export:
    """An export of the winner's network that runs in the background.

    Attributes:
        folder: Folder of the artefact.
        answers: Maps each form that OpenVINO can run on this CPU (see `engine.openvino_forms`) to its answers to the
            test images, one array [n, ...] for each output but the maps of descriptors. It raises RuntimeError if
            OpenVINO cannot convert the network.
    """

    folder: Path
    answers: Future[dict[str, Answer]]

    def pooled(self) -> dict[str, NDArray[np.float32]]:
        """Return the network's pooled features of the test images, float32 [n, d], by form.

        Raises:
            RuntimeError: OpenVINO could not convert the network.
        """
        return {form: answer[2] for form, answer in self.answers.result().items()}

    def features(self) -> dict[str, NDArray[np.float32]]:
        """Return the network's frozen features of the test images, float32 [n, d], by form.

        Empty if the model tells no descriptors.

        Raises:
            RuntimeError: OpenVINO could not convert the network.
        """
        return {form: answer[3] for form, answer in self.answers.result().items() if len(answer) == _KEPT}


def export(winner: ScoredModel, folder: Path, told: LockedDescriptors | None = None) -> Export:
    """Start exporting the network for OpenVINO and scoring the test images with it, in a background thread.

    Args:
        winner: The winner, with a locked operating point.
        folder: Folder of the artefact, to which the weights of the findings that are given out are written.
        told: Its findings, locked; None if there are none.
    """
    evaluation = winner.evaluation
    pixels = evaluation.data.pixels(evaluation.examples(evaluation.serving_domain, "test"), winner.size)
    more = []
    if told is not None and told.head is not None:
        folder.mkdir(parents=True, exist_ok=True)
        told.head.write(folder)
        more = ["--descriptors", str(folder / FILE)]
    thread = ThreadPoolExecutor(1, thread_name_prefix="export")
    answers = thread.submit(_export, winner, pixels, folder / engine.OPENVINO, more)
    thread.shutdown(wait=False)
    return Export(folder, answers)


def _export(winner: ScoredModel, pixels: NDArray[np.uint8], output: Path, more: Sequence[str]) -> dict[str, Answer]:
    graph = winner.folder / GRAPH
    command = [sys.executable, "-m", engine.__name__, str(graph), str(output), *more]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"OpenVINO cannot convert {graph}: {done.stderr[-2000:]}")
    answers = {}
    for form in engine.openvino_forms():
        running = engine.OpenVINOEngine(output, winner.size, form)
        blocks = [pixels[start : start + _BLOCK] for start in range(0, len(pixels), _BLOCK)]
        parts = [running.predict(images.rgb(block))[:_KEPT] for block in blocks]
        answers[form] = tuple(np.concatenate(output) for output in zip(*parts, strict=True))
    return answers


def write(
    winner: ScoredModel,
    exported: Export,
    result: Measured,
    locked: Locked | None,
    told: LockedDescriptors | None = None,
) -> None:
    """Write the artefact: the networks, card.md, scans.csv, a reference image, novelty.npz and model.json.

    The reference image is synthetic. model.json also holds the model's answer to it.

    Args:
        winner: The winner, scored on the test set.
        exported: Result of `export`.
        result: Result of the evaluation.
        locked: Reference of the training images; None for a model that has none.
        told: Findings, whose weights `export` has written; None for a model that tells no descriptors.

    Raises:
        RuntimeError: OpenVINO could not convert the network.
    """
    folder, data = exported.folder, winner.evaluation.data
    folder.mkdir(parents=True, exist_ok=True)
    reference = images.encode(geometry.normal(phantom.draw("M", patient=1, image=1).image))
    (folder / "reference.jpg").write_bytes(reference)
    probability = _answer(winner, reference)
    answers = {form: answer[0].astype(np.float64) for form, answer in exported.answers.result().items()}
    (folder / MODEL).write_bytes((winner.folder / winner.training.checkpoint).read_bytes())
    data.contents.to_csv(folder / SCANS, index=False)
    card.write(folder, winner.training, data.facts, result)
    described = _description(winner, result, probability) | _performance(winner, answers, result)
    described |= boxes.pack(winner, result, folder)
    if result.descriptors is not None:
        described["descriptors"] = result.descriptors.to_dict()
    described |= _novelty(winner, result, locked, folder, None if told is None else told.head)
    Artefact.describe(folder, ModelDescription.parse(described, folder / "model.json"))


def _novelty(
    winner: ScoredModel, result: Measured, locked: Locked | None, folder: Path, head: Head | None
) -> dict[str, Any]:
    """Write the reference of the training images, and return what model.json says of it and of usual answers."""
    released = result.automatic_boxes is not None and result.automatic_boxes.released
    answers = usual.describe(winner, None if locked is None else locked.novelty, released, head)
    described: dict[str, Any] = {"usual_answers": {source: one.to_dict() for source, one in answers.items()}}
    if locked is not None and result.novelty is not None:
        locked.novelty.write(folder)
        described["novelty"] = result.novelty.to_dict()
    return described


def _answer(winner: ScoredModel, reference: bytes) -> NDArray[np.float64]:
    """Return the winner's scaled probabilities of the reference image [classes], as the endpoint computes them."""
    pixels = images.rgb(images.stored(_as_served(reference, winner.evaluation.serving_domain), winner.size))
    raw = winner.network.probabilities(pixels[None], "reference")
    if winner.clinical is not None:
        raw = winner.clinical.head.predict(raw, [{}])[0]
    answer: NDArray[np.float64] = winner.point.scale(raw)[0]
    return answer


def _as_served(reference: bytes, domain: str) -> NDArray[np.uint8]:
    """Prepare the reference image as the endpoint does for a request without a region."""
    frame = images.decode(reference)
    return geometry.normal(frame) if domain == "normal" else images.letterbox(frame, max(frame.shape[:2]))


def _description(winner: ScoredModel, result: Measured, probability: NDArray[np.float64]) -> dict[str, Any]:
    """Return the fields of model.json that say what the model is and how it decides."""
    training, data, classes = winner.training, winner.evaluation.data, winner.classes
    return {
        "name": MODEL_NAME,
        "backbone": training.backbone,
        "weights": training.weights,
        **classes.to_dict(),
        "image_size": winner.size,
        "domain": training.train_domain,
        "margin": data.margin,
        "serving_domain": winner.evaluation.serving_domain,
        "parameters": training.parameters,
        "data_digest": data.digest,
        "scans": data.facts.scans,
        "synthetic": data.facts.synthetic,
        **winner.point.to_dict(),
        "settings": result.settings.to_dict(),
        "reference": dict(zip(classes.names, probability.tolist(), strict=True)),
        "training_scans": scan_statistics.describe(data, "train").to_dict(),
    }


def _performance(winner: ScoredModel, answers: dict[str, NDArray[np.float64]], result: Measured) -> dict[str, Any]:
    """Return the fields of model.json that say how well the model does, in every form in which it can be served."""
    row, head = result.models[0].to_dict(), winner.clinical
    keras = {engine.KERAS: {"validation": row["validation"], "test": row["test"]}}
    clinical = {} if head is None else {"clinical": head.head.to_dict() | {"fields": head.head.encoder.fields()}}
    return {
        "forms": keras | {form: _compare(winner, raw) for form, raw in answers.items()},
        **clinical,
        "audits": result.audits.model_dump(mode="json", include={"domain", "shortcut", "kept", "findings"}),
    }


def _compare(winner: ScoredModel, raw: NDArray[np.float64]) -> dict[str, Any]:
    """Compute the test metrics of a form that OpenVINO runs, and its differences from Keras.

    Args:
        winner: The winner, scored on the test set.
        raw: Unscaled probabilities of the network in this form [n, classes].
    """
    tested, classes, point = winner.tested(winner.evaluation.serving_domain), winner.classes, winner.point
    table = tested.assign(**dict(zip(classes.columns, raw.T, strict=True)))
    if winner.clinical is not None:
        table = winner.clinical.apply(table, classes)
    table = predictions.at_point(table, point, classes)
    scored = performance.of(table, classes, point, winner.evaluation.options.prevalence).to_dict()
    kept = ("n", "auroc", "sensitivity", "specificity", "ece", "confusion")
    return {
        "largest_difference": float(np.abs(table[SCORE] - tested[SCORE]).max()),
        "decisions_changed": int((point.decide(table[SCORE]) != point.decide(tested[SCORE])).sum()),
        "test": {key: scored[key] for key in kept if key in scored},
    }
