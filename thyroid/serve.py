"""The KServe endpoint: one registered model behind V1 `:predict`, with health and readiness.

python -m thyroid.serve --registry output/registry --port 8080
python -m thyroid.serve --model-dir /mnt/models
"""

import argparse
import asyncio
import base64
import binascii
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import kserve
import numpy as np
from kserve.errors import InvalidInput

from thyroid import RESEARCH_USE_ONLY, crop, errors, images, operating, registry
from thyroid.errors import InputError
from thyroid.names import POSITIVE

MAX_INSTANCES = 64

_NEEDED = (
    "version",
    "backbone",
    "classes",
    "image_size",
    "serving_domain",
    "reference",
    "gate",
    "data_digest",
    "temperature",
    "bias",
    "threshold",
)


class ThyroidModel(kserve.Model):
    """A registered model. Every image gets the treatment that the evaluation measured, and the answer says which."""

    def __init__(self, folder: Path, released: bool | None = None) -> None:
        """Of the artefact in `folder`; `released` tells whether it is a champion, None leaves that to its own gate."""
        super().__init__(registry.NAME)
        self.folder = folder
        self._released = released
        # One worker: Keras uses all cores for one image, and the event loop stays free for health checks.
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="inference")

    def load(self) -> bool:
        """Verify the artefact's hashes, load it, and check its answer to its own reference image.

        Raises:
            InputError: the artefact was changed, or answers differently than when it was evaluated.
        """
        self.facts = registry.verify(self.folder, _NEEDED)
        self.point = operating.of(self.facts)
        self.released = self.facts["gate"]["decision"] == "promoted" if self._released is None else self._released
        self.network = registry.load_keras(self.folder / registry.MODEL)
        reference = images.square((self.folder / "reference.jpg").read_bytes(), self.facts["image_size"])
        answer = self._probability(images.rgb(reference)[None])[0]
        expected = [self.facts["reference"][label] for label in self.facts["classes"]]
        if not np.allclose(answer, expected, atol=1e-3):
            raise InputError(
                f"{self.folder}: answers its reference image with {answer.tolist()}, not {expected}; not served"
            )
        self.ready = True
        return self.ready

    @property
    def not_released(self) -> list[str]:
        """Why this version may not be relied on; empty for a champion, or, where no registry tells, one that passed its gate."""
        if self.released:
            return []
        return (
            list(self.facts["gate"]["reasons"]) if self.facts["gate"]["decision"] == "refused" else ["not the champion"]
        )

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> dict[str, Any]:
        """V1: {"instances": [{"image": {"b64": ...}, "roi": [x, y, width, height]?}]} to one prediction an instance."""
        instances = _instances(payload)
        loop = asyncio.get_running_loop()
        return {"predictions": await loop.run_in_executor(self.worker, self._predict, instances)}

    def _predict(self, instances: list[dict[str, Any]]) -> list[dict[str, Any]]:
        started = time.perf_counter()
        prepared = [self._prepare(i, instance) for i, instance in enumerate(instances)]
        probability = self._probability(np.stack([pixels for pixels, _ in prepared]))
        milliseconds = round((time.perf_counter() - started) * 1000, 1)
        classes = self.facts["classes"]
        status = {} if self.released else {"not_released": self.not_released}
        return [
            {
                "probability": dict(zip(classes, row.tolist(), strict=True)),
                "class": classes[POSITIVE] if row[POSITIVE] >= self.point.threshold else classes[1 - POSITIVE],
                "threshold": self.point.threshold,
                "decision": decision,
                **({"reason": "within the abstention band"} if decision == "abstain" else {}),
                "crop": treatment,
                "model": self.facts["backbone"],
                "model_version": self.facts["version"],
                "data_digest": self.facts["data_digest"],
                "milliseconds": milliseconds,
                "notice": RESEARCH_USE_ONLY,
            }
            | status
            for row, decision, (_, treatment) in zip(
                probability, self.point.decide(probability[:, POSITIVE]).tolist(), prepared, strict=True
            )
        ]

    def _probability(self, pixels: images.Pixels) -> np.ndarray:
        """At the operating point's temperature and bias."""
        return self.point.scale(self.network.predict_on_batch(pixels))

    def _prepare(self, number: int, instance: dict[str, Any]) -> tuple[images.Pixels, dict[str, Any]]:
        """uint8 [size, size, 3] exactly as evaluation saw such an image, and what was done to it."""
        frame = _frame(number, instance)
        roi = _roi(number, instance)
        if self.facts["serving_domain"] == "normal":
            area = crop.scan_area(frame)
            image = crop.normal(frame, area)
            treatment = {"domain": "normal", "box": list(area.box), "scan_area_found": area.found}
        elif roi is not None:
            try:
                image = crop.region(frame, roi)
            except ValueError as error:
                raise InvalidInput(f"instances[{number}].roi: {error}") from None
            treatment = {"domain": "cropped", "box": list(roi), "margin": crop.MARGIN}
        else:
            image = images.letterbox(frame, max(frame.shape[:2]))
            treatment = {"domain": "cropped", "note": "no roi given: the image is taken as a crop of the nodule"}
        # Evaluation read its images from JPEG files of this quality; the round trip makes the answer the same.
        return images.rgb(images.square(images.encode(image), self.facts["image_size"])), treatment


def _instances(payload: Any) -> list[dict[str, Any]]:
    instances = payload.get("instances") if isinstance(payload, dict) else None
    if not isinstance(instances, list) or not instances:
        raise InvalidInput('body: expected {"instances": [{"image": {"b64": "..."}}]} with at least one instance')
    if len(instances) > MAX_INSTANCES:
        raise InvalidInput(f"instances: {len(instances)} are more than the limit of {MAX_INSTANCES}")
    return instances


def _frame(number: int, instance: Any) -> images.Pixels:
    field = f"instances[{number}].image.b64"
    try:
        encoded = instance["image"]["b64"]
        data = base64.b64decode(encoded, validate=True)
    except (KeyError, TypeError):
        raise InvalidInput(f'{field}: missing; an instance is {{"image": {{"b64": "..."}}}}') from None
    except (binascii.Error, ValueError):
        raise InvalidInput(f"{field}: not base64") from None
    if len(data) > images.MAX_BYTES:
        raise InvalidInput(f"{field}: {len(data):,} bytes are more than the limit of {images.MAX_BYTES:,}")
    try:
        return images.decode(data)
    except ValueError as error:
        raise InvalidInput(f"{field}: {error}") from None


def _roi(number: int, instance: dict[str, Any]) -> crop.Box | None:
    roi = instance.get("roi")
    if roi is None:
        return None
    if not (isinstance(roi, list) and len(roi) == 4 and all(type(v) is int for v in roi)):
        raise InvalidInput(
            f"instances[{number}].roi: expected four whole numbers [x, y, width, height] in pixels of the image"
        )
    return (roi[0], roi[1], roi[2], roi[3])


@errors.command
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m thyroid.serve", description=__doc__.split("\n")[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--registry", type=Path, help="root of a registry; its champion is served, else its candidate")
    source.add_argument("--model-dir", type=Path, help="folder of one model, as KServe mounts it")
    parser.add_argument("--port", type=int, default=8080)
    arguments = parser.parse_args(argv)
    folder, released = arguments.model_dir, None
    if arguments.registry:
        folder = registry.find(arguments.registry)
        released = int(folder.name) == registry.read_aliases(arguments.registry).get("champion")
    model = ThyroidModel(folder, released)
    model.load()
    for reason in model.not_released:
        print(f"not released: {reason}")
    print(
        f"serving {model.facts['backbone']} version {model.facts['version']} on "
        f"http://localhost:{arguments.port}/v1/models/{registry.NAME}:predict\n{RESEARCH_USE_ONLY}",
        flush=True,
    )
    kserve.ModelServer(http_port=arguments.port, enable_grpc=False, workers=1).start([model])


if __name__ == "__main__":
    sys.exit(main())
