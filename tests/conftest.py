"""Fixtures: small phantoms, and real data where the machine has it."""

import csv
import gc
import http.client
import json
import shutil
import urllib.parse
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import gcs as emulated
from thyroid import images, phantom, storage

SHARED = Path(__file__).parents[2] / "shared"


def write_scan(path: Path, seed: int = 0, size: tuple[int, int] = (96, 80)) -> Path:
    """A small JPEG of speckle-like noise, different for every seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(40, 255, (40, 48), dtype=np.uint8))
    pixels = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(images.encode(np.repeat(pixels[..., None], 3, axis=2)))
    return path


def write_rois(path: Path, rows: list[tuple]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("filename", "x", "y", "width", "height"), *rows])
    return path


def variant(artefact: Path, folder: Path) -> Path:
    """A copy of an artefact in `folder` that passes for another one: the same one is registered only once."""
    copy = shutil.copytree(artefact, folder / uuid.uuid4().hex)
    facts = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps(facts | {"variant": copy.name}))
    return copy


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Twelve patients with two scans each, half of them malignant."""
    folder = tmp_path / "scans"
    for patient in range(1, 13):
        for image in (1, 2):
            label = "B" if patient % 2 else "M"
            write_scan(folder / f"{label}_{patient:03d}-{image:04d}-1.0.jpg", seed=patient * 10 + image)
    return folder


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with scans/ and rois.csv: 15 synthetic patients with two images each."""
    folder = tmp_path_factory.mktemp("phantoms")
    phantom.generate(folder, patients=15, images_per_patient=2, seed=1)
    return folder


@pytest.fixture(scope="session")
def cropped(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cropped data version of the phantoms, for both domains."""
    from thyroid import crop, ingest

    folder = tmp_path_factory.mktemp("data")
    ingest.ingest(phantoms / "scans", folder / "ingested", rois=phantoms / "rois.csv")
    crop.crop(folder / "ingested", folder / "cropped", ["cropped", "normal"])
    return folder / "cropped"


@pytest.fixture(scope="session")
def trained(cropped: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """(backbone, domain) to a training at toy size."""
    from thyroid import train

    folder = tmp_path_factory.mktemp("models")
    result = {}
    for backbone, domain in (("VGG16", "cropped"), ("VGG16", "normal"), ("ResNet50", "cropped")):
        target = folder / backbone / domain
        train.train(cropped, target, backbone, domain, weights="none", image_size=32, epochs=1)
        result[backbone, domain] = target
    return result


@pytest.fixture(scope="session")
def evaluated(cropped: Path, trained: dict[tuple[str, str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Evaluation of the VGG16 and ResNet50 that were trained on crops."""
    from thyroid import evaluate

    folder = tmp_path_factory.mktemp("evaluation")
    evaluate.evaluate(cropped, [trained["VGG16", "cropped"], trained["ResNet50", "cropped"]], folder)
    return folder


@pytest.fixture(scope="session")
def model(evaluated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Registry with the winner of `evaluated`; tests that change it copy it."""
    from thyroid import register

    root = tmp_path_factory.mktemp("registry")
    register.register(evaluated, root, root / "summary.json")
    return root


@pytest.fixture(scope="session")
def emulator() -> Iterator[str]:
    with emulated.emulator() as address:
        yield address


@dataclass
class Cloud:
    """A fresh bucket of the emulator.

    Attributes:
        bucket: its name.
        proxy: in front of the emulator; what is under test goes through it.
        client: Google's, straight to the emulator, to set up and to look.
    """

    bucket: str
    proxy: emulated.Proxy
    client: Any

    def address(self, prefix: str = "") -> str:
        return f"gs://{self.bucket}/{prefix}"

    def put(self, objects: dict[str, bytes]) -> None:
        """Write objects by their whole names; without Google's client, thousands take seconds."""
        connection = http.client.HTTPConnection(self.proxy.target)
        for name, data in objects.items():
            query = urllib.parse.urlencode({"uploadType": "media", "name": name})
            connection.request("POST", f"/upload/storage/v1/b/{self.bucket}/o?{query}", data)
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            answer.read()
        connection.close()

    def names(self) -> list[str]:
        return [blob.name for blob in self.client.list_blobs(self.bucket)]


@pytest.fixture
def gcs(emulator, monkeypatch, tmp_path_factory) -> Iterator[Cloud]:
    """Google Cloud Storage with one bucket, short pauses, and a cache of the test's own."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud.storage import Client

    client = Client("none", AnonymousCredentials(), client_options={"api_endpoint": emulator})
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    client.create_bucket(bucket)
    with emulated.proxy(emulator) as (proxy, address):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        monkeypatch.setattr(storage, "FIRST_PAUSE", 0.01)
        monkeypatch.setattr(storage, "LONGEST_PAUSE", 0.1)
        yield Cloud(bucket, proxy, client)
    storage._client_of.cache_clear()
    client.close()
    gc.collect()  # connections that were broken are warned of here, where they belong


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path) -> str:
    """An empty place, once of each kind."""
    return (
        str(tmp_path / "place") if request.param == "folder" else request.getfixturevalue("gcs").address("some/place")
    )


@pytest.fixture(scope="session")
def ddti() -> Path:
    folder = SHARED / "data" / "ddti"
    if not folder.is_dir():
        pytest.skip(f"real scans are not here ({folder})")
    return folder


@pytest.fixture(scope="session")
def vgg16_weights() -> Path:
    file = SHARED / "weights" / "vgg16_hed_notop.weights.h5"
    if not file.is_file():
        pytest.skip(f"pre-trained weights are not here ({file})")
    return file
