"""docs/kubeflow.md: its commands are run as far as no cluster is needed, its numbers are those of the code."""

import base64
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml

from pipelines import draw
from pipelines.cluster import NEEDS, ON_GPU, S3_FIELDS
from pipelines.cluster import Cluster as Placed
from tests.components.test_step import compile_
from tests.deploy.test_deploy import REFERENCE, register
from tests.support import ROOT, schemas
from tests.support.cluster import Cluster
from tests.support.kubeflow import Kubeflow
from tests.support.serving import free_port
from thyroid.deploy import manifest
from thyroid.deploy.options import DeployOptions
from thyroid.ingest import ingest
from thyroid.ingest.options import IngestOptions
from thyroid.model.backbones import BACKBONES
from thyroid.notify.receivers import VARIABLES, configured, run_page
from thyroid.storage import volume

GUIDE = (ROOT / "docs" / "kubeflow.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL) for line in block.splitlines()]
NEEDS_A_CLUSTER = (
    "kubectl apply",
    "kubectl cp",
    "kubectl port-forward",
    "kubectl get",
    "kubectl wait",
    "kubectl delete",
    "kubectl annotate",
    "kubectl create token",
    "TOKEN=$(kubectl get",
    "URL=$(kubectl get",
    "KEY=$(kubectl get",
    "SECRET=$(kubectl get",
    "curl",
    "make push",
)


def command(start: str) -> str:
    (found,) = [line for line in COMMANDS if line.startswith(start)]
    return found


def run(line: str, **environment: str) -> str:
    """Output of a command of the guide, with this environment in place of .venv."""
    line = line.replace(".venv/bin/python", sys.executable)
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=ROOT,
        env=os.environ | {"MAKEFLAGS": f"VENV={Path(sys.executable).parents[1]} TAG=abc"} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def call(line: str) -> None:
    """A command of the guide that is one of ours, in this process, since starting one is most of its time."""
    python, option, module, *arguments = shlex.split(line)
    assert (python, option) == (".venv/bin/python", "-m")
    main = importlib.import_module({"pipelines": "pipelines.__main__"}.get(module, module)).main
    assert main(arguments) == 0


def test_every_command_is_run_here_or_needs_a_cluster():
    run_here = (
        "make images",  # by tests/e2e
        "make -s manifests",
        "kubectl create secret",
        "make compile",
        "make submit",
        ".venv/bin/python -m pipelines compile",
        "make -s workbench",
        ".venv/bin/python -c",
        ".venv/bin/python -m pipelines schedule",
        ".venv/bin/python -m pipelines listen",
        "kubectl exec -n kubeflow thyroid-workbench -- python3 -m thyroid.deploy",
        "kubectl exec -n kubeflow thyroid-workbench -- python3 -m thyroid.retention",
    )
    for line in COMMANDS:
        assert line.startswith(run_here + NEEDS_A_CLUSTER), line


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not here")
def test_manifests_are_rendered_with_the_images_that_were_named():
    line = command("make -s manifests GPU=1").split(" | ")[0]
    for overlay in ("cpu", "gpu", "gateway"):
        objects = list(yaml.safe_load_all(run(line.replace("OVERLAY=gpu", f"OVERLAY={overlay}"))))
        images = {c["image"] for o in objects if o["kind"] == "ServingRuntime" for c in o["spec"]["containers"]}
        wanted = {"registry.example.com/lab/thyroid-serve:abc"}
        assert images == wanted | ({"registry.example.com/lab/thyroid-serve-gpu:abc"} if overlay == "gpu" else set())
        assert not [problem for one in objects for problem in schemas.problems(one, schemas.definitions()) or []]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not here")
def test_the_token_is_a_secret_that_the_runtime_reads():
    made = yaml.safe_load(run(command("kubectl create secret generic thyroid-token") + " --dry-run=client -o yaml"))
    (runtime,) = yaml.safe_load_all((ROOT / "manifests" / "base" / "runtime" / "servingruntime.yaml").read_text())
    (read,) = [one["valueFrom"]["secretKeyRef"] for one in runtime["spec"]["containers"][0]["env"]]
    assert made["metadata"]["name"] == read["name"]
    assert list(made["data"]) == [read["key"]]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not here")
def test_the_key_of_dicom_scans_is_a_secret_that_ingest_reads():
    made = yaml.safe_load(
        run(command("kubectl create secret generic thyroid-patient-key") + " --dry-run=client -o yaml")
    )
    assert made["metadata"]["name"] == Placed().key_secret
    assert list(made["data"]) == ["key"]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not here")
def test_the_receivers_of_notifications_are_a_secret_with_the_fields_that_the_pods_read():
    line = command("kubectl create secret generic thyroid-notify") + " --dry-run=client -o yaml"
    made = yaml.safe_load(run(line, SLACK_URL="https://x/y", URL="https://x/z"))
    assert made["metadata"]["name"] == Placed().notify_secret
    assert set(made["data"]) == set(VARIABLES)
    found = {variable: base64.b64decode(made["data"][key]).decode() for key, variable in VARIABLES.items()}
    receivers, problems = configured(found)
    assert [one.form for one in receivers] == ["slack", "plain"]
    assert receivers[1].key
    assert not problems
    assert run_page(found, "7")


@pytest.mark.slow
def test_the_pipeline_is_compiled_with_the_images_that_were_named(tmp_path):
    shutil.copytree(ROOT, tmp_path / "copy", ignore=shutil.ignore_patterns(".venv", ".git", "output*", ".*_cache"))
    line = command("make compile")
    run(f"cd {tmp_path / 'copy'} && {line}", PYTHONPATH=str(tmp_path / "copy"))
    compiled = next(yaml.safe_load_all((tmp_path / "copy" / "thyroid.yaml").read_text()))
    images = {one["container"]["image"] for one in compiled["deploymentSpec"]["executors"].values()}
    assert images == {f"registry.example.com/lab/thyroid-{name}:abc" for name in ("data", "train", "ops")}
    assert (tmp_path / "copy" / "thyroid-version.yaml").is_file()
    for line, found in (
        (command(".venv/bin/python -m pipelines compile --gpus 1 --node-selector"), "nvidia-l4"),
        (command(".venv/bin/python -m pipelines compile --gpus 1 --gcs-secret"), "secretName: gcs-key"),
    ):
        call(f"{line} --output {tmp_path / 'p.yaml'}")
        assert found in (tmp_path / "p.yaml").read_text()


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not here")
def test_the_key_of_a_bucket_is_a_secret_with_the_name_that_the_pods_mount(tmp_path):
    (tmp_path / "key.json").write_text("{}")
    made = yaml.safe_load(
        run(f"cd {tmp_path} && {command('kubectl create secret generic gcs-key')} --dry-run=client -o yaml")
    )
    assert list(made["data"]) == ["key.json"]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not here")
def test_the_keys_of_s3_are_a_secret_with_the_fields_that_the_pods_read():
    line = command("kubectl create secret generic thyroid-s3") + " --dry-run=client -o yaml"
    made = yaml.safe_load(run(line, KEY="key", SECRET="secret"))
    assert made["metadata"]["name"] == Placed().s3_secret
    assert set(made["data"]) == set(S3_FIELDS)
    annotated = dict(one.split("=", 1) for one in command("kubectl annotate secret thyroid-s3").split() if "=" in one)
    endpoint = base64.b64decode(made["data"]["AWS_ENDPOINT_URL"]).decode()
    assert endpoint == f"http://{annotated['serving.kserve.io/s3-endpoint']}"
    assert annotated["serving.kserve.io/s3-usehttps"] == "0"
    region = base64.b64decode(made["data"]["AWS_REGION"]).decode()
    assert annotated["serving.kserve.io/s3-region"] == region


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not here")
@pytest.mark.parametrize("what", ["manifests", "workbench"])
def test_without_a_volume_nothing_names_the_claim(what):
    printed = run(command(f"make -s {what} OVERLAY=bucket").split(" | ")[0])
    assert "lab/thyroid-" in printed
    assert volume.CLAIM not in printed
    for one in yaml.safe_load_all(printed):
        assert not schemas.problems(one, schemas.definitions())


def test_a_schedule_is_made(capsys):
    host = Kubeflow()
    try:
        call(command(".venv/bin/python -m pipelines schedule").replace("http://localhost:8080", host.url))
    finally:
        host.shutdown()
        host.server_close()
    sent = host.sent("/apis/v2beta1/recurringruns")
    assert sent["trigger"]["cron_schedule"]["cron"] == "0 30 2 * * *"
    assert sent["service_account"] == "thyroid-pipeline"
    given = sent["runtime_config"]["parameters"]
    assert (given["store"], given["minimum"], given["recipe"]) == ("/data/store", 1, "warm")
    assert "02:30" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not here")
def test_the_token_of_the_senders_is_a_secret_with_the_fields_that_are_read():
    made = yaml.safe_load(run(command("kubectl create secret generic thyroid-listen") + " --dry-run=client -o yaml"))
    token, header = (base64.b64decode(made["data"][name]).decode() for name in ("token", "authorization"))
    assert header == f"Bearer {token}"
    assert len(token) == 64
    deployment = (ROOT / "manifests" / "components" / "listen" / "listen.yaml").read_text()
    assert f"secretName: {made['metadata']['name']}" in deployment
    objects = list(yaml.safe_load_all(run(command("make -s manifests OVERLAY=listen").split(" | ")[0])))
    images = {
        c["image"] for o in objects if o["kind"] == "Deployment" for c in o["spec"]["template"]["spec"]["containers"]
    }
    assert "registry.example.com/lab/thyroid-listen:abc" in images


def test_the_listener_starts(tmp_path):
    (tmp_path / "token").write_text("a token")
    _, *arguments = shlex.split(command(".venv/bin/python -m pipelines listen"))
    port = free_port()
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *arguments, "--backbones", "VGG16", "--port", str(port)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        while "listening on" not in (told := (tmp_path / "log").read_text()):
            assert process.poll() is None, told
            time.sleep(0.1)
        with httpx.Client(
            base_url=f"http://localhost:{port}", timeout=60, headers={"Authorization": "Bearer a token"}
        ) as sender:
            (told,) = [line for line in COMMANDS if "/scans -H" in line]
            body = shlex.split(told)[-1]
            assert sender.post("/scans", content=body).json()["ignored"] == 1, "it is on a volume"
            body = body.replace("/data/", "gs://hospital/")
            assert sender.post("/scans", content=body).json()["counted"] == 1
        assert "B_001" in (tmp_path / "listen" / "listen.json").read_text()
    finally:
        process.terminate()
        assert process.wait(30) == 0


def test_what_is_kept_is_listed(tmp_path, scans, undrawn, capsys):
    line = command("kubectl exec -n kubeflow thyroid-workbench -- python3 -m thyroid.retention").split(" -- python3 ")[
        1
    ]
    (tmp_path / "registry").mkdir()
    ingest.ingest(IngestOptions(scans, store=tmp_path / "store"), tmp_path / "data")
    call(f".venv/bin/python {line}".replace("/data/", f"{tmp_path}/"))
    assert "000001" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("what", ["make submit GPU=1", "make submit PIPELINE=sweep", "make submit CLAIM="])
def test_a_run_is_started(what):
    host = Kubeflow()
    try:
        printed = run(command(what).replace("http://localhost:8080", host.url))
    finally:
        host.shutdown()
        host.server_close()
    assert f"{host.url}/#/runs/details/r1" in printed
    sent = host.sent("/apis/v2beta1/runs")
    assert sent["service_account"] == "thyroid-pipeline"
    store = "s3://hospital/store" if "CLAIM=" in what else "/data/store"
    assert sent["runtime_config"]["parameters"]["store"] == store


def test_a_champion_is_deployed_by_hand(tmp_path):
    root = tmp_path / "registry"
    root.mkdir()
    register(root, tmp_path / "artefact")
    cluster = Cluster()
    try:
        cluster.put("servingruntimes", {"metadata": {"name": "thyroid"}, "spec": {}})
        cluster.answer = lambda version: {"probability": REFERENCE, "model_version": version}
        line = (
            command("kubectl exec -n kubeflow thyroid-workbench -- python3 -m thyroid.deploy")
            .split(" -- python3 ")[1]
            .replace("/data/registry", str(root))
        )
        # the volume's mount point and the pod's namespace are the workbench's; everything else is as a reader runs it
        code = f"from thyroid.storage import volume; volume.MOUNT = {str(tmp_path)!r}; "
        code += "from thyroid.deploy import __main__; raise SystemExit(__main__.main())"
        line = ".venv/bin/python " + line.replace("-m thyroid.deploy", f'-c "{code}" --namespace lab')
        printed = run(line, KUBECONFIG=str(cluster.kubeconfig(tmp_path)))
    finally:
        cluster.shutdown()
        cluster.server_close()
    assert re.search(r"\bversion 1\b", printed)


def test_the_table_of_nodes_is_the_codes():
    rows = {
        cells[0]: cells[1:]
        for line in GUIDE.splitlines()
        if len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 4
    }
    for names, cells in rows.items():
        for step in re.split(", ", names):
            if step in NEEDS:
                need = NEEDS[step]
                gpus = "1" if step in ON_GPU else ""
                assert cells == [need.cpu, f"{need.memory_request} to {need.memory_limit}", gpus], step
    for backbone in BACKBONES.values():
        (cells,) = [cells for names, cells in rows.items() if re.search(rf"train .*\b{backbone.name}\b", names)]
        assert cells == [NEEDS["train"].cpu, f"{backbone.memory_request} to {backbone.memory_limit}", "1"]
    limits = manifest.inference_service(1, "gs://b", DeployOptions(serving_gpu=True))["spec"]["predictor"]["model"][
        "resources"
    ]
    assert rows["model server, GPU"] == ["1 to 2", limits["limits"]["memory"], limits["limits"]["nvidia.com/gpu"]]


@pytest.mark.slow
def test_the_picture_is_of_the_pipeline_as_it_is(tmp_path, drawn):
    compile_(tmp_path / "thyroid.yaml")
    found = draw.steps(tmp_path / "thyroid.yaml")
    assert draw.drawn_edges(ROOT / "docs" / "dag.png") == draw.edges(found)
    assert {step.name for step in found} >= {"ingest", "crop", "locate", "evaluate", "register", "deploy", "conclude"}
    draw.draw(tmp_path / "thyroid.yaml", tmp_path / "dag.png")
    assert draw.drawn_edges(tmp_path / "dag.png") == draw.edges(found)


def test_what_the_guide_quotes_is_what_the_code_says():
    code = "".join(file.read_text() for folder in ("thyroid", "pipelines") for file in (ROOT / folder).rglob("*.py"))
    flat = re.sub(r'"\s*\n\s*f?"', "", code)
    for quoted in (
        "kept champion",
        "has no ServingRuntime",
        "changed by others during each of",
        "cannot be reached",
        "a canary needs the Gateway API",
    ):
        assert quoted in GUIDE
        assert quoted in flat


def test_the_workbench_is_a_pod_of_our_image_with_the_volume():
    pod = yaml.safe_load(run(command("make -s workbench GPU=1").split(" | ")[0]))
    assert schemas.problems(pod, {}) == []
    (container,) = pod["spec"]["containers"]
    assert container["image"] == "registry.example.com/lab/thyroid-ops:abc"
    assert container["volumeMounts"][0]["mountPath"] == volume.MOUNT
    secrets = {one["name"]: one["valueFrom"]["secretKeyRef"] for one in container["env"]}
    assert {name: one["name"] for name, one in secrets.items()} == {
        "THYROID_TOKEN": Placed().token_secret,
        "THYROID_HUB_TOKEN": Placed().hub_secret,
        **dict.fromkeys(VARIABLES.values(), Placed().notify_secret),
    }
    assert {key: name for key, name in VARIABLES.items() if secrets[name]["key"] == key} == VARIABLES
    assert pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] == volume.CLAIM


def test_the_request_is_made_of_a_scan(tmp_path):
    line = command(".venv/bin/python -c")
    (tmp_path / "scan.jpg").write_bytes(b"picture")
    run(f"cd {tmp_path} && {line}")
    assert json.loads((tmp_path / "request.json").read_text()) == {"instances": [{"image": {"b64": "cGljdHVyZQ=="}}]}


def test_links_lead_somewhere():
    for path in re.findall(r"\]\(([^)#:]+)\)", GUIDE):
        assert (ROOT / "docs" / path).exists(), path
    for path in re.findall(r"`((?:manifests|pipelines|thyroid)/[\w/.-]+)`", GUIDE):
        assert (ROOT / path).exists(), path
