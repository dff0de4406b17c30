"""Fixtures: small phantoms and models trained on them, created once for all workers, and real data where available."""

import contextlib
import csv
import functools
import gc
import hashlib
import inspect
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from matplotlib.figure import Figure
from PIL import Image

from tests.support import ROOT, SHARED, receivers
from tests.support import gcs as emulated
from tests.support import s3 as s3_servers
from tests.support.clouds import Cloud, GoogleCloud, S3Cloud
from thyroid import locks, logs, storage
from thyroid.crop import CropOptions
from thyroid.data import plots
from thyroid.imaging import images, phantom

for variable in ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # each of pytest's workers has one core; more threads would only wait

# kfp inspects the stack at every setting of a step; finding source lines among TensorFlow's modules takes seconds.
inspect.stack = functools.partial(inspect.stack, context=0)

LONGEST = (
    "test_readme.py",
    "test_night.py",
    "test_night_of_events.py",
    "test_results.py",
    "test_evaluate.py",
    "test_checkpoints.py",
    "test_incremental.py",
    "test_deploy.py",
    "test_serve_hard.py",
    "test_registry.py",
    "test_train.py",
    "test_warm_start.py",
    "test_head.py",
    "test_locate.py",
    "test_attacks.py",
    "test_pipelines.py",
    "test_clinical_model.py",
    "test_search.py",
    "test_diagnose.py",
    "test_retention.py",
    "test_several_classes.py",
    "test_storage.py",
    "test_web.py",
    "test_serve.py",
    "test_backbones.py",
    "test_dicom.py",
    "test_engine.py",
    "test_step.py",
    "test_ingest_dicom.py",
    "test_network.py",
    "test_overlap.py",
    "test_erasure.py",
    "test_gate.py",
)
"""Files that take longest first, so that no worker ends long after the other.

`test_evaluate` makes the models that many share, beside one that needs none of them.
"""


SOAK = int(os.environ.get("SOAK", "1"))
"""How many times as many flips and kills there are; `make soak` has more than 5,000 flips in all."""


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
    (copy / "model.json").write_text(json.dumps(facts | {"code_version": copy.name}))
    return copy


def pytest_configure(config: pytest.Config) -> None:
    """Use a fifth of the examples where the slow tests are left out.

    Examples have no deadline, since each may have to wait for the processor.
    """
    examples = 20 if "not slow" in config.option.markexpr else 100
    settings.register_profile(
        "busy", deadline=None, max_examples=examples, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("busy")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


SAVEFIG = Figure.savefig


@pytest.fixture(scope="session", autouse=True)
def sketched() -> Iterator[None]:
    """Write figures as a single pixel, since rendering takes half the time of a small evaluation; see `drawn`."""

    def write(figure: Figure, file: Any, **given: Any) -> None:
        Image.new("L", (1, 1)).save(file, "PNG")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", write)
        yield


@pytest.fixture(scope="session", autouse=True)
def unsynced() -> Iterator[None]:
    """Skip fsync, whose effect no test can observe and which takes a second on some disks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def once_compiled(tmp_path_factory) -> Iterator[None]:
    """Compile a pipeline with the same settings only once, for tests that use the result."""
    from pipelines import compile

    plain, folder, made = compile.compile_training, tmp_path_factory.mktemp("compiled"), {}

    def compile_training(placement: compile.Placement, output: Path) -> None:
        key = repr(placement)
        if key not in made:
            made[key] = folder / f"{len(made)}.yaml"
            plain(placement, made[key])
        shutil.copy(made[key], output)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compile, "compile_training", compile_training)
        yield


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Figures are rendered within the block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", SAVEFIG)
        yield


@pytest.fixture(autouse=True)
def plain_logs() -> None:
    """What the library logs is on standard output, as in commands and steps."""
    logs.to_stdout()


@pytest.fixture
def drawn() -> Iterator[None]:
    """Figures are rendered: for tests that look at them."""
    with drawing():
        yield


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Twelve patients with two scans each, half of them malignant."""
    folder = tmp_path / "scans"
    for patient in range(1, 13):
        for image in (1, 2):
            label = "B" if patient % 2 else "M"
            write_scan(folder / f"{label}_{patient:03d}-{image:04d}-1.0.jpg", seed=patient * 10 + image)
    return folder


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """Leave out pictures, which take most of the time of a small ingest and crop."""
    monkeypatch.setattr(plots, "data_statistics", lambda good, regions, path, classes: path.touch())
    monkeypatch.setattr(plots, "crop_sheet", lambda scans, regions, folder, path: path.touch())


def source_digest() -> str:
    """Return a digest of everything that creates the shared fixtures: packages, this file and locked dependencies."""
    digest = hashlib.sha256()
    for path in [*sorted((ROOT / "thyroid").rglob("*.py")), Path(__file__), ROOT / "requirements-dev.lock"]:
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


class Shared:
    """Folders that are created once for all workers of a run, and for later runs with the same source.

    Tests only read them. They are in pytest's cache (`--cache-clear` removes them). Those of an older source are
    removed after an hour.
    """

    def __init__(self, root: Path) -> None:
        self.folder = root / source_digest()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.states: dict[Path, dict[str, tuple[int, int]]] = {}
        for old in root.iterdir():
            if old != self.folder and time.time() - old.stat().st_mtime > 3600:
                shutil.rmtree(old, ignore_errors=True)

    def make(self, name: str, write: Callable[[Path], object]) -> Path:
        """Return the folder `name`. The first caller writes it; others wait until it is complete."""
        folder, done = self.folder / name, self.folder / f"{name}.done"
        with locks.held(self.folder / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                write(folder)
                done.touch()
        self.states[folder] = state_of(folder)
        return folder

    def check(self) -> None:
        """Check that no test changed a folder. A changed folder is created again by the next run."""
        changed = [folder for folder, state in self.states.items() if state_of(folder) != state]
        for folder in changed:
            folder.with_suffix(".done").unlink(missing_ok=True)
        assert not changed, f"a test changed what others read: {changed}"


@pytest.fixture(scope="session")
def shared(request, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    cache = getattr(request.config, "cache", None)
    one = Shared(tmp_path_factory.getbasetemp() / "shared" if cache is None else cache.mkdir("fixtures"))
    yield one
    one.check()


@pytest.fixture(scope="session")
def phantoms(shared: Shared) -> Path:
    """Folder with scans/ and rois.csv: 15 synthetic patients with two images each."""
    return shared.make("phantoms", lambda folder: phantom.generate(folder, patients=15, images_per_patient=2, seed=1))


@pytest.fixture(scope="session")
def cropped(phantoms: Path, shared: Shared) -> Path:
    """Cropped data version of the phantoms, for both domains."""
    from thyroid import crop
    from thyroid.ingest import ingest
    from thyroid.ingest.options import IngestOptions

    def write(folder: Path) -> None:
        ingest.ingest(IngestOptions(phantoms / "scans", rois=phantoms / "rois.csv"), folder / "ingested")
        crop.crop(folder / "ingested", folder / "cropped", CropOptions(["cropped", "normal"]))

    return shared.make("data", write) / "cropped"


@pytest.fixture(scope="session")
def located(cropped: Path, shared: Shared) -> Path:
    """Folder of the step `locate` on the phantoms, with its toy body."""

    def write(folder: Path) -> None:
        from thyroid.locate.locate import locate
        from thyroid.locate.options import LocateOptions

        locate(cropped, cropped.parent / "ingested", folder, LocateOptions(weights="none"))

    return shared.make("located", write)


@pytest.fixture(scope="session")
def trained(cropped: Path, shared: Shared) -> dict[tuple[str, str], Path]:
    """(backbone, domain) to a training at toy size."""
    models = (("VGG16", "cropped"), ("VGG16", "normal"), ("VGG19", "cropped"))

    def write(folder: Path) -> None:
        from thyroid.train import train
        from thyroid.train.options import TrainOptions

        for backbone, domain in models:
            options = TrainOptions(weights="none", image_size=32, epochs=1)
            train.train(cropped, folder / backbone / domain, backbone, domain, options)

    folder = shared.make("models", write)
    return {(backbone, domain): folder / backbone / domain for backbone, domain in models}


@pytest.fixture(scope="session")
def evaluated(cropped: Path, trained: dict[tuple[str, str], Path], shared: Shared) -> Path:
    """Evaluation of the VGG16 and VGG19 that were trained on crops."""

    def write(folder: Path) -> None:
        from thyroid.evaluate import evaluate

        with drawing():
            evaluate.evaluate(cropped, [trained["VGG16", "cropped"], trained["VGG19", "cropped"]], folder)

    return shared.make("evaluation", write)


@pytest.fixture(scope="session")
def model(evaluated: Path, shared: Shared) -> Path:
    """Registry with the winner of `evaluated`; tests that change it copy it."""

    def write(folder: Path) -> None:
        from thyroid.registry import register

        register.register(evaluated, folder, folder / "summary.json")

    return shared.make("registry", write)


@pytest.fixture(scope="module")
def toy() -> Iterator[str]:
    """Name of a backbone that is small and quick, in this process."""
    import pipelines.training  # noqa: F401  its steps are made from the table as they are imported, and are to know nothing of it
    from tests.support import toys

    toys.install()
    yield toys.ROW.name
    toys.remove()


@pytest.fixture(scope="session")
def emulator() -> Iterator[str]:
    gc.collect()
    gc.freeze()  # `gcs` looks for garbage after every test, and need not look through TensorFlow each time
    with emulated.emulator() as address:
        yield address


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    with s3_servers.server() as address:
        yield address


@pytest.fixture(autouse=True)
def without_accounts(monkeypatch) -> None:
    """Take the developer's own accounts, and receivers of notifications, out of the environment."""
    for variable in [name for name in os.environ if name.startswith(("AWS_", "THYROID_NOTIFY_", "THYROID_RUN_ID"))]:
        monkeypatch.delenv(variable)


@pytest.fixture
def receiver(monkeypatch) -> Iterator[receivers.Receiver]:
    """A receiver of notifications in the plain form."""
    with receivers.receiving() as receiver:
        monkeypatch.setenv("THYROID_NOTIFY_URL", receiver.url)
        yield receiver


@pytest.fixture
def short_pauses(monkeypatch, tmp_path_factory) -> None:
    """Short pauses before a bucket is asked again, and a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(storage.client, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(storage.client, "LONGEST_PAUSE", 0.1)


@pytest.fixture
def gcs(emulator, short_pauses, monkeypatch) -> Iterator[GoogleCloud]:
    """Google Cloud Storage with one bucket."""
    with emulated.proxy(emulator) as (proxy, address), GoogleCloud.new(emulator, proxy) as cloud:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        yield cloud
    storage.client.client_of.cache_clear()
    gc.collect()  # connections that were broken are warned of here, where they belong


@pytest.fixture
def s3(s3_server, short_pauses, monkeypatch, without_accounts) -> Iterator[S3Cloud]:
    """A service that speaks S3, with one bucket."""
    with emulated.proxy(s3_server) as (proxy, address):
        for variable, value in s3_servers.variables(address).items():
            monkeypatch.setenv(variable, value)
        yield S3Cloud.new(proxy)


@pytest.fixture(params=["gs", "s3"])
def bucket(request) -> Cloud:
    """A bucket, once on each service."""
    return request.getfixturevalue({"gs": "gcs", "s3": "s3"}[request.param])


@pytest.fixture(params=["folder", "gs", "s3"])
def place(request, tmp_path) -> str:
    """An empty place, once of each kind."""
    if request.param == "folder":
        return str(tmp_path / "place")
    return request.getfixturevalue({"gs": "gcs", "s3": "s3"}[request.param]).address("some/place")


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
