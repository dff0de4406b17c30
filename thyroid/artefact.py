"""The winner as the registry takes it: one folder with the model, its operating point, and how it was measured."""

from pathlib import Path
from typing import Any

from thyroid import card, crop, images, phantom, registry
from thyroid.names import CLASSES
from thyroid.operating import OperatingPoint
from thyroid.predictions import Trained


def write(
    winner: Trained,
    network: Any,
    row: dict[str, Any],
    point: OperatingPoint,
    facts: dict[str, Any],
    result: dict[str, Any],
    development: set[str],
    output: Path,
) -> None:
    """Write model.keras, card.md, development.txt, a synthetic reference image, and model.json with the answer to it.

    Args:
        winner: the training.
        network: its model, loaded.
        row: its row of the ranking.
        point: its operating point.
        facts: of the data version.
        result: of the evaluation.
        development: SHA-256 of the scans that training or validation saw.
        output: folder to write.
    """
    output.mkdir(parents=True, exist_ok=True)
    reference = images.encode(crop.normal(phantom.draw("M", patient=1, image=1).image))
    (output / "reference.jpg").write_bytes(reference)
    pixels = images.rgb(images.square(reference, row["image_size"]))
    probability = point.scale(network.predict(pixels[None], verbose=0))[0]
    (output / registry.MODEL).write_bytes((winner.folder / row["checkpoint"]).read_bytes())
    (output / registry.DEVELOPMENT).write_text("\n".join(sorted(development)) + "\n")
    card.write(output, winner.facts, facts, result)
    registry.describe(
        output,
        {
            "name": registry.NAME,
            "backbone": row["backbone"],
            "weights": row["weights"],
            "classes": list(CLASSES),
            "image_size": row["image_size"],
            "domain": row["train_domain"],
            "serving_domain": result["serving_domain"],
            "parameters": row["parameters"],
            "data_digest": facts["digest"],
            **point.facts(),
            "settings": result["settings"],
            "reference": dict(zip(CLASSES, probability.tolist(), strict=True)),
            "forms": {"keras": {"validation": row["validation"], "test": row["test"]}},
            "audits": {key: result["audits"][key] for key in ("domain", "shortcut", "kept", "findings")},
        },
    )
