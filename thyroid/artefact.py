"""The winner as the registry takes it: one folder with the model, its operating point, and how it was measured."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from thyroid import card, crop, engine, figures, images, phantom, predictions, registry
from thyroid import classes as kinds
from thyroid.classes import Classes
from thyroid.fusion import Fusion
from thyroid.names import SCORE
from thyroid.network import Network
from thyroid.operating import OperatingPoint
from thyroid.predictions import Trained


def export(network: Network, output: Path) -> Future[None]:
    """Begin to write the network to `output` as OpenVINO runs it; the Future ends with that.

    Done beside what follows: OpenVINO translates a graph on one core, without Python's lock.
    """
    beside = ThreadPoolExecutor(1, thread_name_prefix="export")
    exported = beside.submit(engine.convert, network, output / engine.OPENVINO)
    beside.shutdown(wait=False)
    return exported


def write(
    winner: Trained,
    network: Network,
    exported: Future[None],
    row: dict[str, Any],
    point: OperatingPoint,
    facts: dict[str, Any],
    result: dict[str, Any],
    scans: pd.DataFrame,
    tested: pd.DataFrame,
    pixels_of_test: NDArray[np.uint8],
    output: Path,
    head: Fusion | None = None,
    columns: pd.DataFrame | None = None,
) -> None:
    """Write model.keras, card.md, scans.csv, a synthetic reference image, and model.json with the answer to it.

    Args:
        winner: the training.
        network: its network.
        exported: of `export` to `output`.
        row: its row of the ranking.
        point: its operating point.
        facts: of the data version.
        result: of the evaluation.
        scans: `tables.contents` of the data version.
        tested: its test predictions in the serving domain.
        pixels_of_test: the images of `tested`, uint8 [n, size, size, 1 or 3].
        output: folder to write.
        head: what clinical columns add; None where the model uses none.
        columns: these columns of `tested`.
    """
    output.mkdir(parents=True, exist_ok=True)
    classes = kinds.of(facts)
    reference = images.encode(crop.normal(phantom.draw("M", patient=1, image=1).image))
    (output / "reference.jpg").write_bytes(reference)
    pixels = images.rgb(
        images.square(images.encode(_as_served(reference, result["serving_domain"])), row["image_size"])
    )
    raw = network.probabilities(pixels[None], "reference")
    probability = point.scale(raw if head is None else head.predict(raw, [{}])[0])[0]
    print(f"scoring {row['backbone']} as OpenVINO runs it", flush=True)
    exported.result()
    (output / registry.MODEL).write_bytes((winner.folder / row["checkpoint"]).read_bytes())
    scans.to_csv(output / registry.SCANS, index=False)
    card.write(output, winner.facts, facts, result)
    registry.describe(
        output,
        {
            "name": registry.NAME,
            "backbone": row["backbone"],
            "weights": row["weights"],
            **classes.facts(),
            "image_size": row["image_size"],
            "domain": row["train_domain"],
            "margin": facts.get("margin", crop.MARGIN),
            "serving_domain": result["serving_domain"],
            "parameters": row["parameters"],
            "data_digest": facts["digest"],
            "scans": facts["scans"],
            "synthetic": facts["synthetic"],
            **point.facts(),
            "settings": result["settings"],
            "reference": dict(zip(classes.names, probability.tolist(), strict=True)),
            "forms": {engine.KERAS: {"validation": row["validation"], "test": row["test"]}}
            | _other_forms(
                output, row, classes, point, result["settings"]["prevalence"], tested, pixels_of_test, head, columns
            ),
            **({} if head is None else {"clinical": head.facts() | {"fields": head.encoder.fields()}}),
            "audits": {key: result["audits"][key] for key in ("domain", "shortcut", "kept", "findings")},
        },
    )


def _as_served(reference: bytes, domain: str) -> NDArray[np.uint8]:
    """What the endpoint makes of the reference image when it comes without a region."""
    frame = images.decode(reference)
    return crop.normal(frame) if domain == "normal" else images.letterbox(frame, max(frame.shape[:2]))


def _other_forms(
    output: Path,
    row: dict[str, Any],
    classes: Classes,
    point: OperatingPoint,
    prevalence: float,
    tested: pd.DataFrame,
    pixels: NDArray[np.uint8],
    head: Fusion | None,
    columns: pd.DataFrame | None,
) -> dict[str, Any]:
    """Every form that OpenVINO can run here, scored on the test images: its figures, and how far it is from Keras."""
    forms = {}
    for form in (engine.F32, *((engine.BF16,) if engine.has_bf16() else ())):
        running = engine.OpenVINOEngine(output / engine.OPENVINO, row["image_size"], form)
        raw = running.predict(images.rgb(pixels))[0].astype(float)
        table = tested.copy()
        table[classes.columns] = raw if head is None else head.predict(raw, columns)[0]
        table = predictions.at_point(table, point, classes)
        scored = figures.of(table, classes, point, prevalence)
        kept = ("n", "auroc", "sensitivity", "specificity", "ece", "confusion")
        forms[form] = {
            "largest_difference": float(np.abs(table[SCORE] - tested[SCORE]).max()),
            "decisions_changed": int((point.decide(table[SCORE]) != point.decide(tested[SCORE])).sum()),
            "test": {key: scored[key] for key in kept if key in scored},
        }
    return forms
