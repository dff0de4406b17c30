"""README's commands, run as a reader would run them, in a copy of the project."""

import contextlib
import datetime
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest

from tests.support import ROOT, label_server
from thyroid.imaging import phantom
from thyroid.train import settings

BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The tracked and new files of the project, with this environment."""
    folder = tmp_path_factory.mktemp("readme") / "thyroid"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
        os.utime(folder / name, (0, 0))  # older than this environment, or make would set it up again, for the copy
    phantom.generate(folder / "my", patients=60, images_per_patient=1, seed=3)
    return folder


def shell(command: str, copy: Path, **options) -> subprocess.Popen:
    environment = os.environ | {"MAKEFLAGS": f"VENV={Path(sys.executable).parents[1]}", "PYTHONPATH": str(copy)}
    return subprocess.Popen(
        ["bash", "-c", command],
        cwd=copy,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def command(start: str) -> str:
    found = [block.strip() for block in BLOCKS if block.startswith(start)]
    assert found, f"README has no command {start!r}"
    return found[0]


def test_every_block_is_run_here():
    ran = ("make run\n", "make test\n", "make serve\n", "curl ", "make compile\n", ".venv/bin/python")
    ran += (
        "make label SCANS=my",
        "make run SCANS=my",
        "make sweep SCANS=my",
        "make run SCANS=gs://",
        "make validate SCANS=other",
        "make serve LOG=decisions",
        "make watch LOG=decisions",
    )  # the latter by test_night.py
    for block in BLOCKS:
        assert block.startswith(ran), block


@pytest.mark.slow
def test_run_then_serve_then_query(copy):
    run = shell(command("make run\n"), copy)
    printed = run.communicate()[0]
    assert run.returncode == 0, printed[-3000:]
    assert command("curl ").split("-d ")[1].split()[0] in printed
    assert command("make serve\n") in printed
    summary = json.loads((copy / "output" / "summary.json").read_text())
    assert len(summary["models"]) == 5
    best = summary["models"][0]["test"][summary["serving_domain"]]
    assert best["auroc"]["low"] > 0.5, "on the phantoms the winner beats chance"

    (copy / ".venv").symlink_to(Path(sys.executable).parents[1])
    listed = shell(command(".venv/bin/python -m thyroid.registry list"), copy).communicate()[0]
    assert summary["gate"]["decision"] in listed
    audited = {one["name"]: one["passed"] for one in summary["gate"]["criteria"] if one["name"].endswith("audit")}
    assert audited == {"shortcut audit": True, "leakage audit": True}, "the sample's evidence is in its nodules"
    released = summary["gate"]["decision"] == "promoted"  # twenty malignant patients: two missed, by a rounding, decide
    assert ("champion" in listed) is released

    server = shell(command("make serve\n"), copy, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            asked = subprocess.run(["bash", "-c", command("curl ")], cwd=copy, capture_output=True, text=True)
            if asked.returncode == 0 and "predictions" in asked.stdout:
                break
            assert asked.returncode or "not ready" in asked.stdout, asked.stdout
            time.sleep(1)
        prediction = json.loads(asked.stdout)["predictions"][0]
        assert prediction["model_version"] == summary["model"]["version"]
        assert set(prediction["probability"]) == {"B", "M"}
        assert prediction["decision"] in ("benign", "malignant")
        assert ("not_released" in prediction) is not released
        deadline, page = time.monotonic() + 60, ""
        while prediction["model"] not in page and time.monotonic() < deadline:
            with contextlib.suppress(OSError), urllib.request.urlopen("http://localhost:8000/", timeout=60) as opened:
                page = opened.read().decode()
            time.sleep(1)
        assert prediction["model"] in page
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.communicate(timeout=30)


@pytest.mark.slow
def test_after_release(copy):
    """After the default run, whose model decides on its own sample: the log and the outcomes fit each other."""
    if not (copy / "output" / "registry").is_dir():
        assert shell(command("make run\n"), copy).wait() == 0
    scans = sorted((copy / "output" / "sample" / "scans").rglob("*.jpg"))[:12]
    server = shell(command("make serve LOG=decisions"), copy, start_new_session=True)
    try:
        ready = time.monotonic() + 120
        while time.monotonic() < ready:
            with contextlib.suppress(OSError), urllib.request.urlopen("http://localhost:8080/v2/health/ready"):
                break
            time.sleep(1)
        for scan in scans:
            request = urllib.request.Request(
                "http://localhost:8080/v1/models/thyroid:predict", scan.read_bytes(), {"content-type": "image/jpeg"}
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                (prediction,) = json.load(answer)["predictions"]
            assert 0 <= prediction["novelty"] <= 100
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.communicate(timeout=30)
    logged = [line for file in (copy / "decisions").glob("*.jsonl") for line in file.read_text().splitlines()]
    assert len(logged) == len(scans)
    today = datetime.datetime.now(datetime.UTC).date()
    kinds = {"M": "malignant", "B": "benign"}
    rows = [f"{scan.relative_to(copy)},{kinds[scan.name[0]]},{today}" for scan in scans]
    (copy / "outcomes.csv").write_text("\n".join(["file,pathology,date", *rows]) + "\n")
    watched = shell(command("make watch LOG=decisions"), copy)
    printed = watched.communicate()[0]
    assert watched.returncode == 0, printed[-3000:]
    record = json.loads((copy / "output" / "watch" / "watch.json").read_text())
    assert record["log"]["decisions"] == record["outcomes"]["patients"] == len(scans)
    assert record["outcomes"]["malignant"] == sum(scan.name.startswith("M") for scan in scans)
    assert record["verdict"] in ("steady", "drift", "worse"), "twelve images of its own patients are enough to compare"
    assert (copy / "output" / "watch" / "report.html").is_file()


@pytest.mark.slow
def test_another_hospitals_scans(copy):
    """After the default run, whose model it tries."""
    if not (copy / "output" / "registry").is_dir():
        assert shell(command("make run\n"), copy).wait() == 0
    phantom.generate(copy / "other", patients=40, seed=11, scanner="portable")
    tried = shell(command("make validate SCANS=other"), copy)
    printed = tried.communicate()[0]
    assert tried.returncode == 0, printed[-3000:]
    record = json.loads((copy / "output" / "validation" / "validation.json").read_text())
    assert (record["site"], record["scans"]["patients"], record["scans"]["taken_out"]) == ("Elsewhere", 40, {})
    assert set(record["forms"]) == {"given", "automatic"}
    fall = record["forms"]["given"]["beside"]["auroc"]["difference"]
    assert fall["value"] < 0, "another scanner's nodules look different"
    assert (copy / "output" / "validation" / "report.html").is_file()
    kept = json.loads((copy / "output" / "registry" / "thyroid" / "1" / "validations.json").read_text())
    assert [entry["site"] for entry in kept["validations"]] == ["Elsewhere"]


@pytest.mark.slow
def test_own_scans(copy):
    run = shell(command("make run SCANS=my"), copy)
    printed = run.communicate()[0]
    assert run.returncode == 0, printed[-3000:]
    summary = json.loads((copy / "my" / "output" / "summary.json").read_text())
    assert summary["data"]["scans"] == 60
    assert {row["backbone"] for row in summary["models"]} == {"VGG16", "ResNet50"}


@pytest.mark.slow
def test_more_classes_and_clinical_data(copy):
    """Grades that go with the phantoms' sides, and two columns of which one is worth something."""
    names = sorted(path.name for path in (copy / "my" / "scans").glob("*.jpg"))
    rng = np.random.default_rng(0)
    malignant = sorted({name[2:5] for name in names if name[0] == "M"})
    grades = {patient: turn % 4 for turn, patient in enumerate(malignant)}  # each class has patients for three splits
    grades |= {name[2:5]: rng.integers(4) for name in names if name[0] == "B"}
    with (copy / "my" / "labels.csv").open("w") as labels, (copy / "my" / "clinical.csv").open("w") as clinical:
        labels.write("filename,tirads\n")
        clinical.write("filename,age,tsh\n")
        for name in names:
            side, grade = name[0], grades[name[2:5]]
            labels.write(f"{name},{('4a', '4b', '4c', '5')[grade] if side == 'M' else '23'[grade % 2]}\n")
            clinical.write(f"{name},{rng.integers(20, 80)},{(3 if side == 'M' else 1) + rng.normal():.2f}\n")
    run = shell(command("make run SCANS=my/scans ROIS=my/rois.csv LABELS"), copy)
    printed = run.communicate()[0]
    assert run.returncode == 0, printed[-3000:]
    summary = json.loads((copy / "my" / "graded" / "summary.json").read_text())
    assert summary["classes"] == ["2", "3", "4a", "4b", "4c", "5"]
    (best,) = summary["models"]
    test = best["test"][summary["serving_domain"]]
    assert sum(row["n"] for row in test["classes"].values()) == test["n"]
    assert summary["clinical"]["wanted"] == ["age", "tsh"]
    report = (copy / "my" / "graded" / "report.html").read_text()
    assert "Class by class" in report
    assert "tsh" in report


@pytest.mark.slow
def test_search_and_the_training_after_it(copy):
    """Started again with more trials it goes on; then margin, size and recipe of a training are what its file says."""
    for heads in (6, 8):
        run = shell(f"{command('make sweep SCANS=my')} HEAD_TRIALS={heads} IMAGE_TRIALS=1", copy)
        printed = run.communicate()[0]
        assert run.returncode == 0, printed[-3000:]
        facts = json.loads((copy / "my" / "sweep" / "sweep" / "study.json").read_text())
        assert len([one for one in facts["trials"] if one["state"] in ("complete", "pruned")]) == heads + 1
    assert f"SETTINGS={'my/sweep/sweep/settings.json'}" in printed
    assert "Research use only" in (copy / "my" / "sweep" / "sweep" / "report.html").read_text()

    mine = settings.read(copy / "my" / "sweep" / "sweep" / "settings.json").replace(margin=0.35, image_size=48)
    mine.write(copy / "my" / "chosen.json")
    where = "SCANS=my/scans ROIS=my/rois.csv BACKBONES=VGG16 OUTPUT=my/sweep"
    run = shell(f"make run {where} SETTINGS=my/chosen.json", copy)
    printed = run.communicate()[0]
    assert run.returncode == 0, printed[-3000:]
    summary = json.loads((copy / "my" / "sweep" / "summary.json").read_text())
    assert summary["models"][0]["image_size"] == 48
    assert summary["models"][0]["recipe"] == mine.recipe
    assert json.loads((copy / "my" / "sweep" / "data" / "data.json").read_text())["margin"] == 0.35


@pytest.mark.slow
def test_boxes_of_the_bench_train_a_model(copy):
    """Read every frame but one as its rois.csv says; the last one is not usable."""
    shutil.rmtree(copy / "my" / "labelled", ignore_errors=True)
    truth = pd.read_csv(copy / "my" / "rois.csv").groupby("filename")
    boxes = {Path(name).name: rows[["x", "y", "width", "height"]].to_numpy().tolist() for name, rows in truth}
    names = {hashlib.sha256(name.encode()).hexdigest()[:16]: name for name in boxes}
    bench = shell(command("make label SCANS=my"), copy, start_new_session=True)
    try:
        greeting = re.compile(r"(http://localhost:\d+/)\?token=(\S+)")
        address, token = next(found for line in bench.stdout if (found := greeting.search(line))).groups()
        deadline, signed_in = time.monotonic() + 120, None
        with httpx.Client(base_url=address, timeout=60) as client:
            while signed_in is None and time.monotonic() < deadline:
                with contextlib.suppress(httpx.HTTPError):
                    signed_in = client.get("/", params={"token": token})
                time.sleep(0.2)
            reader = label_server.Visitor(client, token=token)
            while (shown := reader.next().json())["frame"] is not None:
                known = boxes.pop(names[shown["frame"]["id"]])
                regions = [dict(zip(("x", "y", "width", "height"), box, strict=True)) for box in known]
                reading = {"verdict": "nodules", "regions": regions} if boxes else {"verdict": "unusable"}
                assert reader.save(shown, reading).status_code == 200
    finally:
        os.killpg(bench.pid, signal.SIGTERM)
        bench.communicate(timeout=60)
    assert not boxes
    given = command("make run SCANS=my/scans ROIS=my/labelled")
    run = shell(f"{given} BACKBONES=VGG16 OUTPUT=my/from-bench", copy)
    printed = run.communicate()[0]
    assert run.returncode == 0, printed[-3000:]
    data = json.loads((copy / "my" / "from-bench" / "data" / "data.json").read_text())
    assert (data["regions"], data["quarantined"]) == (data["scans"], 1)


@pytest.mark.slow
def test_compile(copy):
    run = shell(command("make compile\n"), copy)
    printed = run.communicate()[0]
    assert run.returncode == 0, printed
    assert "sdkVersion: kfp-2.17.0" in (copy / "thyroid.yaml").read_text()


@pytest.mark.slow
def test_real_scans(copy, ddti, vgg16_weights):
    """The pipeline on DDTI in both domains: VGG16 from the given weights, the other from none, and it says so.

    The sample's run has all five backbones.
    """
    run = shell(
        f"make run SCANS={ddti / 'normal'} ROIS={ddti / 'rois.csv'} WEIGHTS={vgg16_weights.parent} OUTPUT=ddti "
        f"DOMAINS=normal,cropped CLINICAL={ddti / 'labels.csv'} BACKBONES=VGG16,ResNet50",
        copy,
    )
    printed = run.communicate()[0]
    assert run.returncode == 0, printed[-3000:]
    assert "VGG16: starts from " in printed
    assert printed.count("starts from random weights (none)") == 2, "on both domains"
    summary = json.loads((copy / "ddti" / "summary.json").read_text())
    assert summary["data"]["scans"] == 243
    assert summary["data"]["quarantined"] == 0
    assert {row["backbone"]: row["weights"] for row in summary["models"]}["VGG16"] == vgg16_weights.name
    assert len(summary["domain_matrix"]) == 2
    for matrix in summary["domain_matrix"].values():
        assert {(a, b) for a in matrix["cells"] for b in matrix["cells"][a]} == {
            (a, b) for a in ("normal", "cropped") for b in ("normal", "cropped", "automatic")
        }
    assert summary["gate"]["decision"] == "refused", "labels of suspicion, 48 test images: nothing to release"
    audits = [summary["audits"], *summary["other_audits"]]
    frames = next(audit for audit in audits if audit["domain"] == "normal")
    assert frames["shortcut"]["scan_area_geometry"]["low"] > 0.5
    assert {"tirads", "composition", "margins"} <= {row["column"] for row in summary["subgroups"]}
    assert "Before you trust these" in (copy / "ddti" / "report.html").read_text()


@pytest.mark.slow
def test_documented_requests(copy, cropped, trained, located, tmp_path):
    """Every command and the Python example of docs/api.md, against a server on the port that it names."""
    from tests.support.serving import Server
    from thyroid.evaluate import evaluate
    from thyroid.evaluate.options import EvaluateOptions
    from thyroid.registry import register

    options = EvaluateOptions(locate=located)
    evaluate.evaluate(cropped, [trained["VGG16", "cropped"]], tmp_path / "evaluation", options)
    register.register(tmp_path / "evaluation", tmp_path / "registry", tmp_path / "summary.json")
    phantom.generate(copy / "output" / "sample", patients=3, images_per_patient=1, seed=3)
    text = (ROOT / "docs" / "api.md").read_text()
    running = Server(tmp_path / "log", "--registry", str(tmp_path / "registry")).wait()
    text = text.replace("localhost:8080", f"localhost:{running.port}")
    setting, *blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    try:
        for block in blocks:
            printed = shell(f"set -e; {setting}{block}", copy).communicate()[0]
            assert printed, block
            assert '"error"' not in printed, printed[:500]
        (copy / "example.py").write_text(example)
        asked = f"{setting}{sys.executable} example.py http://localhost:{running.port} $SCAN"
        printed = shell(asked, copy).communicate()[0]
        assert "[[" in printed, printed
    finally:
        running.stop()
