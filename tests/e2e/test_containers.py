"""The images as they are built, and the whole pipeline in them. `make test-containers` builds them first."""

import base64
import json
import os
import re
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from components.step import image_name
from pipelines import __main__ as cli
from pipelines import configuration
from pipelines.local import containers
from tests.support import ROOT, SHARED, dicoms, label_server
from tests.support.label_server import READERS, nodule
from tests.support.pages import Visitor
from tests.support.serving import free_port
from thyroid.deploy import proof
from thyroid.imaging import phantom
from thyroid.model.artefact import Artefact
from thyroid.registry.registry import Registry

pytestmark = pytest.mark.containers
BACKBONES = ("VGG16", "ResNet50")
TOY = {"image_size": 32, "epochs": 1, "batch_size": 16, "weights": "none", "domains": ""}
MEGABYTES = {
    "data": 850,
    "ops": 700,
    "serve": 900,
    "train": 3500,
    "web": 700,
    "label": 1000,
    "validate": 1200,
    "watch": 1200,
    "listen": 700,
}
STEPS = {
    "data": ["ingest", "crop"],
    "train": ["train", "locate", "evaluate"],
    "ops": ["register", "deploy", "conclude"],
    "validate": ["validate"],
    "watch": ["watch"],
}
NOT_IN = {
    "data": ["tensorflow", "keras", "openvino", "sklearn", "kserve", "kubernetes"],
    "train": ["kserve", "kubernetes", "fastapi"],
    "ops": ["tensorflow", "keras", "openvino", "sklearn", "matplotlib", "scipy", "kserve", "fastapi"],
    "serve": ["tensorflow", "keras", "sklearn", "matplotlib", "pyarrow", "kfp"],
    "web": ["tensorflow", "keras", "openvino", "sklearn", "matplotlib", "pyarrow", "kserve", "kfp"],
    "label": ["tensorflow", "keras", "openvino", "sklearn", "matplotlib", "kserve", "kfp"],
    "validate": ["tensorflow", "keras", "flask"],
    "watch": ["tensorflow", "keras", "flask", "statsmodels"],
    "listen": ["tensorflow", "keras", "openvino", "sklearn", "matplotlib", "kserve", "flask"],
}


@pytest.fixture(scope="module")
def engine() -> str:
    """Name of the engine that built the images."""
    done = subprocess.run(["images/engine.sh"], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture(autouse=True)
def nothing_is_left_running(engine):
    yield
    left = subprocess.run(
        [engine, "ps", "-q", "--filter", f"label={containers.LABEL}"], capture_output=True, text=True, check=True
    )
    for one in left.stdout.split():
        subprocess.run([engine, "rm", "-f", one], capture_output=True)
    assert not left.stdout.split()


def inside(engine: str, image: str, *command: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    line = [engine, "run", "--rm", "--pull=never", "--label", containers.LABEL, *options, image_name(image), *command]
    return subprocess.run(line, capture_output=True, text=True)


@pytest.mark.parametrize("image", MEGABYTES)
def test_an_image_is_small_and_well_described(engine, image):
    (found,) = json.loads(
        subprocess.run([engine, "image", "inspect", image_name(image)], capture_output=True, check=True).stdout
    )
    assert found["Size"] < MEGABYTES[image] * 1e6
    config = found["Config"]
    assert config["User"] == "10001:10001"
    assert not config.get("Entrypoint")
    assert config["Cmd"][0] == "python3"
    labels = config["Labels"]
    assert labels["org.opencontainers.image.title"].startswith(f"thyroid-{image}")
    assert "Research use only" in labels["org.opencontainers.image.description"]
    assert labels["org.opencontainers.image.revision"] == os.environ.get("THYROID_TAG", "dev").removesuffix("-gpu")
    health = config.get("Healthcheck") or found.get("HealthCheck") or found.get("Healthcheck")
    assert bool(health) == (image in ("serve", "web", "label", "listen"))


def command(step: str) -> str:
    """The module that `python -m thyroid.STEP` runs."""
    return f"thyroid.{step}.__main__" if (ROOT / "thyroid" / step).is_dir() else f"thyroid.{step}"


@pytest.mark.parametrize("image", NOT_IN)
def test_an_image_holds_what_its_steps_import_and_nothing_of_the_others(engine, image):
    code = f"""
import importlib.util, os, sys
found = [name for name in {NOT_IN[image]!r} if importlib.util.find_spec(name)]
assert not found, found
assert os.getuid() == 10001
"""
    if image == "serve":
        code += "sys.argv = sys.argv[:1]\nimport thyroid.serve.server, thyroid.imaging.dicom"
    elif image == "web":
        code += "import thyroid.web.__main__"
    elif image == "label":
        code += "import thyroid.label.__main__"
    elif image == "listen":
        code += "import pipelines.events.server, pipelines.events.listen, components.step\n"
        code += f"assert components.step.image_name('train') == {image_name('train')!r}"
    else:
        code += "os.environ['_KFP_RUNTIME'] = 'true'\n"
        code += "\n".join(f"import components.{step}, {command(step)}" for step in STEPS[image])
    done = inside(engine, image, "python3", "-W", "ignore", "-c", code)
    assert done.returncode == 0, done.stderr


def test_a_step_runs_as_the_images_own_user(engine, tmp_path):
    phantom.generate(tmp_path / "in", patients=12, images_per_patient=1, seed=5)
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o777)
    done = inside(
        engine, "data",
        "python3", "-m", "thyroid.ingest", "--scans", "/in/scans", "--rois", "/in/rois.csv", "--output", "/out/data",
        options=("-v", f"{tmp_path / 'in'}:/in:ro", "-v", f"{tmp_path / 'out'}:/out", "--read-only", "--tmpfs", "/tmp"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "data" / "data.json").stat().st_uid == 10001


@pytest.fixture(scope="module")
def output(engine, tmp_path_factory) -> Path:
    """Run the whole DAG in containers at toy size, on the real scans if they are available, else on phantoms.

    The README's run has all five backbones.
    """
    folder = tmp_path_factory.mktemp("containers")
    scans, rois = SHARED / "data" / "ddti" / "normal", SHARED / "data" / "ddti" / "rois.csv"
    if not scans.is_dir():
        phantom.generate(folder / "sample", patients=30, images_per_patient=2, seed=1)
        scans, rois = folder / "sample" / "scans", folder / "sample" / "rois.csv"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(configuration.PRESETS, "quick", TOY)
        command = [
            "run",
            "--scans",
            str(scans),
            "--rois",
            str(rois),
            "--output",
            str(folder / "out"),
            "--engine",
            engine,
        ]
        code = cli.main([*command, "--backbones", ",".join(BACKBONES)])
    assert code == 0
    return folder / "out"


def test_the_whole_pipeline_ran_in_containers(output):
    summary = json.loads((output / "summary.json").read_text())
    assert {row["backbone"] for row in summary["models"]} == set(BACKBONES)
    assert (output / "report.html").stat().st_size > 100_000
    assert Artefact.verify(Registry(output / "registry").find()).record.version == 1
    assert "Research use only" in next((output / "pipeline").glob("*/conclude/page")).read_text()
    manifest = (output / "inferenceservice.yaml").read_text()
    assert ("kind: InferenceService" in manifest) == (summary["gate"]["decision"] == "promoted")


SHUT = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")


@contextmanager
def running(engine: str, image: str, arguments: list[str], *options: str) -> Iterator[str]:
    """Name of a container with the security context of the manifests."""
    name = f"thyroid-{image}-{free_port()}"
    line = [engine, "run", "-d", "--rm", "--pull=never", "--name", name, "--label", containers.LABEL, *SHUT, *options]
    subprocess.run([*line, image_name(image), *arguments], check=True, capture_output=True)
    try:
        yield name
    finally:
        subprocess.run([engine, "rm", "-f", name], capture_output=True)


def healthy(engine: str, name: str, address: str) -> bool:
    code = f"import urllib.request as u; u.urlopen('{address}')"
    return subprocess.run([engine, "exec", name, "python3", "-c", code], capture_output=True).returncode == 0


def container(kind: str, file: str) -> dict:
    """The only container of an object in the manifests."""
    objects = yaml.safe_load_all((ROOT / "manifests" / file).read_text())
    (found,) = [one for one in objects if one["kind"] == kind]
    spec = found["spec"] if kind == "ServingRuntime" else found["spec"]["template"]["spec"]
    (only,) = spec["containers"]
    assert only["securityContext"]["readOnlyRootFilesystem"]
    return only


def test_the_serve_image_answers_as_evaluated_and_the_page_asks_it(engine, output):
    """Mounted as KServe mounts it, with the arguments and the security context of the manifests."""
    folder, port, page_port = Registry(output / "registry").find(), free_port(), free_port()
    options = ("--memory", "2g", "-v", f"{folder}:/mnt/models:ro")
    options += ("-p", f"127.0.0.1:{port}:8080", "-p", f"127.0.0.1:{page_port}:8000")
    with running(
        engine, "serve", container("ServingRuntime", "base/runtime/servingruntime.yaml")["args"], *options
    ) as name:
        deadline = time.monotonic() + 60
        while (problem := proof.ask(f"http://127.0.0.1:{port}", Artefact.read(folder))) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert problem is None
        image = base64.b64encode((folder / "reference.jpg").read_bytes()).decode()
        body = json.dumps({"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [image]}]}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v2/models/thyroid/infer", body, headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            outputs = {one["name"]: one["data"] for one in json.load(answer)["outputs"]}
        assert outputs["decision"][0] in ("benign", "malignant", "abstain")
        assert healthy(engine, name, "http://localhost:8080/v2/health/ready")

        arguments = container("Deployment", "base/web.yaml")["args"]
        arguments[arguments.index("--endpoint") + 1] = "http://localhost:8080"
        # the network of the server's container, as if both were in one pod
        with running(engine, "web", arguments, "--memory", "1g", "--network", f"container:{name}") as page:
            deadline = time.monotonic() + 60
            while not healthy(engine, page, "http://localhost:8000/health") and time.monotonic() < deadline:
                time.sleep(0.5)
            visitor = Visitor(f"http://127.0.0.1:{page_port}")
            scan = dicoms.write(dicoms.frame(3), dicoms.JPEG_LS, name="KIM^YOUNG HEE")
            read = visitor.read([("scan.dcm", scan), ("scan.jpg", (folder / "reference.jpg").read_bytes())])
            visitor.client.close()
            assert read.status_code == 200, read.text
            assert Artefact.verify(folder).record.backbone in read.text
            log = subprocess.run([engine, "logs", page], capture_output=True, text=True)
            assert '"route": "read", "status": 200' in log.stdout + log.stderr
            assert "KIM" not in log.stdout + log.stderr


def test_the_validate_image_tries_the_model_on_another_scanner(engine, output, tmp_path):
    """With the security context of the steps' pods, and a registry that its user may write to."""
    phantom.generate(tmp_path / "site", patients=24, seed=9, scanner="portable")
    shutil.copytree(output / "registry", tmp_path / "registry")
    (tmp_path / "out").mkdir()
    for path in (tmp_path / "out", tmp_path / "registry", *(tmp_path / "registry").rglob("*")):
        path.chmod(0o777)
    places = {"site": "/site:ro", "registry": "/registry", "out": "/out"}
    options = (
        *SHUT,
        "--memory",
        "3g",
        *(word for name, at in places.items() for word in ("-v", f"{tmp_path / name}:{at}")),
    )
    done = inside(
        engine, "validate",
        "python3", "-m", "thyroid.validate", "--registry", "/registry", "--scans", "/site/scans", "--rois",
        "/site/rois.csv", "--site", "Elsewhere", "--output", "/out",
        options=options,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Research use only" in done.stdout
    record = json.loads((tmp_path / "out" / "validation.json").read_text())
    assert record["scans"]["patients"] == 24
    assert (tmp_path / "out" / "report.html").stat().st_size > 100_000
    kept = json.loads((tmp_path / "registry" / "thyroid" / "1" / "validations.json").read_text())
    assert [entry["site"] for entry in kept["validations"]] == ["Elsewhere"]
    pooled = inside(engine, "validate", "python3", "-m", "thyroid.pool", "--help")
    assert pooled.returncode == 0, pooled.stderr


def test_the_watch_image_reads_what_the_serve_image_decided(engine, output, tmp_path):
    """With the manifests' arguments, the log on a volume, and a registry that the steps' user may write to."""
    shutil.copytree(output / "registry", tmp_path / "registry")
    for name in ("decisions", "out"):
        (tmp_path / name).mkdir()
    for path in (tmp_path / "decisions", tmp_path / "out", tmp_path / "registry", *(tmp_path / "registry").rglob("*")):
        path.chmod(0o777)
    folder, port = Registry(output / "registry").find(), free_port()
    key = ("-e", "THYROID_PATIENT_KEY=a secret of some length")
    log = ("-v", f"{tmp_path / 'decisions'}:/decisions")
    options = ("--memory", "2g", "-v", f"{folder}:/mnt/models:ro", "-p", f"127.0.0.1:{port}:8080", *log, *key)
    arguments = [*container("ServingRuntime", "base/runtime/servingruntime.yaml")["args"], "--log", "/decisions"]
    with running(engine, "serve", arguments, *options):
        deadline = time.monotonic() + 60
        while (problem := proof.ask(f"http://127.0.0.1:{port}", Artefact.read(folder))) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert problem is None
        lines: list[str] = []
        while not lines and time.monotonic() < deadline:  # the proof was a request, which is written within a second
            lines = [
                line for file in (tmp_path / "decisions").glob("*.jsonl") for line in file.read_text().splitlines()
            ]
            time.sleep(0.5)
    places = {"decisions": "/decisions", "registry": "/registry", "out": "/out"}
    mounts = (word for name, at in places.items() for word in ("-v", f"{tmp_path / name}:{at}"))
    done = inside(
        engine, "watch",
        "python3", "-m", "thyroid.watch", "--registry", "/registry", "--log", "/decisions", "--output", "/out",
        options=(*SHUT, "--memory", "3g", *key, *mounts),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Research use only" in done.stdout
    record = json.loads((tmp_path / "out" / "watch.json").read_text())
    assert record["log"]["decisions"] == len(lines) > 0
    assert "Research use only" in (tmp_path / "out" / "report.html").read_text()
    assert (tmp_path / "registry" / "thyroid" / "1" / "watch.json").is_file()


def test_the_label_image_writes_regions(engine, scans, tmp_path):
    """With the arguments of the manifests, no endpoint behind them, and a volume that its user may write to."""
    for name in ("labelled", "secret"):
        (tmp_path / name).mkdir()
    (tmp_path / "labelled").chmod(0o777)
    (tmp_path / "secret" / "readers.csv").write_text(READERS)
    port, arguments = free_port(), container("Deployment", "components/label/label.yaml")["args"]
    arguments[-1] = arguments[-1].replace("$(NAMESPACE)", "nowhere")
    options = ("--memory", "2g", "-p", f"127.0.0.1:{port}:8010", "-v", f"{scans}:/data/scans:ro")
    options += ("-v", f"{tmp_path / 'labelled'}:/data/labelled", "-v", f"{tmp_path / 'secret'}:/etc/thyroid:ro")
    with running(engine, "label", arguments, *options) as name:
        deadline = time.monotonic() + 60
        while not healthy(engine, name, "http://localhost:8010/health") and time.monotonic() < deadline:
            time.sleep(0.5)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            reader = label_server.Visitor(client, "Dr. Kim")
            shown = reader.next().json()
            assert reader.save(shown, nodule(10, 20, 30, 40)).status_code == 200
            rois = tmp_path / "labelled" / "rois.csv"
            while ",10,20,30,40" not in rois.read_text() and time.monotonic() < deadline:
                time.sleep(0.2)
        assert ",10,20,30,40" in rois.read_text()
        log = subprocess.run([engine, "logs", name], capture_output=True, text=True)
        assert not any(file.name in log.stdout + log.stderr for file in scans.glob("*.jpg"))


def test_a_container_that_fails_fails_the_run(engine, scans, tmp_path, capfd):
    for file in scans.glob("M_*"):
        file.unlink()
    code = cli.main(["run", "--scans", str(scans), "--output", str(tmp_path / "out"), "--engine", engine])
    captured = capfd.readouterr()
    assert code == 2
    assert re.search(r"ingest: .*\bclass M\b", captured.out)
    assert re.search(r"exit code 2\b", captured.out)
    assert "FAILED" in captured.out, "the exit handler ran"


def test_a_container_that_is_killed_fails_the_run(engine, scans, tmp_path, capfd):
    """As the kernel does when a pod is out of memory."""
    killed = threading.Event()

    def kill() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not killed.is_set():
            listed = subprocess.run(
                [engine, "ps", "-q", "--filter", f"label={containers.LABEL}"], capture_output=True, text=True
            )
            for one in listed.stdout.split():
                if subprocess.run([engine, "kill", one], capture_output=True).returncode == 0:
                    killed.set()
            time.sleep(0.1)

    killer = threading.Thread(target=kill)
    killer.start()
    code = cli.main(["run", "--scans", str(scans), "--output", str(tmp_path / "out"), "--engine", engine])
    killer.join()
    assert killed.is_set()
    assert code == 2
    assert re.search(r"exit code 137\b", capfd.readouterr().out)


def test_an_image_that_is_missing_is_said_before_anything_runs(engine, scans, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("THYROID_TAG", "never-built")
    assert cli.main(["run", "--scans", str(scans), "--output", str(tmp_path / "out"), "--engine", engine]) == 2
    assert "localhost/thyroid-data:never-built" in capsys.readouterr().err


def test_an_engine_that_is_missing(scans, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert cli.main(["run", "--scans", str(scans), "--output", str(tmp_path / "out"), "--engine", "docker"]) == 2
    assert re.search(r"--engine docker\b", capsys.readouterr().err)
