import json
import re
from pathlib import Path

import pytest
import yaml

from pipelines import __main__ as cli
from pipelines import configuration
from pipelines import output as outputs
from tests.conftest import write_rois
from tests.support.receivers import receiving
from thyroid.model.artefact import Artefact
from thyroid.notify.notification import Notification
from thyroid.records.evaluation import SummaryRecord

TOY = {"image_size": 32, "epochs": 1, "batch_size": 8, "weights": "none", "domains": ""}


ONE = {"backbones": ["VGG16"], "domains": ["cropped"]}
FOUR = {"backbones": ["VGG16", "ResNet50"], "domains": ["normal", "cropped"]}


@pytest.fixture(scope="module", params=[ONE, pytest.param(FOUR, marks=pytest.mark.slow)], ids=["one", "four"])
def asked(request) -> dict[str, list[str]]:
    """What to train."""
    return request.param


@pytest.fixture(scope="module")
def told(asked) -> list[Notification]:
    """What was told about the run, when it has ended. Each run has its own."""
    return []


@pytest.fixture(scope="module")
def output(phantoms, asked, tmp_path_factory, told) -> Path:
    """The whole DAG under kfp.local at toy size."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch, receiving() as receiver:
        patch.setenv("THYROID_NOTIFY_URL", receiver.url)
        patch.setitem(configuration.PRESETS, "quick", TOY)
        code = cli.main(
            [
                "run",
                "--scans", str(phantoms / "scans"),
                "--rois", str(phantoms / "rois.csv"),
                "--descriptors", f"{phantoms / 'descriptors.csv'}#shape,margin=margin",
                "--output", str(folder / "out put"),
                "--backbones", ",".join(asked["backbones"]),
                "--domains", ",".join(asked["domains"]),
            ]
        )  # fmt: skip
        told += receiver.messages
    assert code == 0
    return folder / "out put"


def test_summary_says_everything(output, asked):
    summary = json.loads((output / "summary.json").read_text())
    assert {(row["backbone"], row["train_domain"]) for row in summary["models"]} == {
        (b, d) for b in asked["backbones"] for d in asked["domains"]
    }
    assert set(summary["data"]["splits"]) == {"train", "validation", "test"}
    for row in summary["models"]:
        assert set(row["test"]) == {*asked["domains"], "automatic"}
        assert set(row["test"]["cropped"]) >= {"n", "auroc", "accuracy", "majority"}
        assert {"parameters", "seconds", "validation"} <= set(row)
        assert row["recipe"] == "two-phase"
    assert summary["ranked_by"] == "validation"
    assert len(summary["diagnosis"]) == len(summary["models"])
    for one in summary["diagnosis"]:  # one epoch from random weights may well end in a constant
        assert set(one["findings"]) <= {"constant predictor"}
    assert summary["winner"].keys() == {"backbone", "train_domain"}
    steps = {"ingest", "crop", "locate", "evaluate", "register"}
    assert steps <= set(summary["seconds"])
    assert len(summary["seconds"]) == len(steps) + len(summary["models"])
    assert summary["descriptors"]["columns"] == {"shape": "shape", "margin": "margin"}
    assert Artefact.verify(Path(summary["model"]["uri"])).record.version == 1


def test_results_are_where_people_look(output):
    assert (output / "report.html").stat().st_size > 100_000
    assert (output / "data" / "statistics.png").is_file()
    request = json.loads((output / "request.json").read_text())
    assert set(request["instances"][0]) == {"image", "roi"}
    assert (output / "locate" / "sheet.png").is_file()
    assert (output / "locate" / "locate.json").is_file()
    assert not [name for name in ("crops", "locator") if (output / "locate" / name).exists()], "the registry has them"
    left = {path.name.rpartition("-")[0] for path in (output / "store" / "work").glob("*")}
    assert left <= {"locate-maps"}, "what a killed run would go on from is gone after a whole one"


def test_the_run_is_written_down_for_people_and_in_the_registry(output, asked):
    text = (output / "run.yaml").read_text()
    written = yaml.safe_load(text)
    assert written["backbones"].split(",") == asked["backbones"]
    assert written["domains"].split(",") == asked["domains"]
    assert Path(written["scans"]).is_absolute()
    version = Path(json.loads((output / "summary.json").read_text())["model"]["uri"])
    assert (version / "run.yaml").read_text() == text


def artifacts(output: Path, name: str) -> list[dict]:
    return [json.loads(path.read_text()) for path in output.glob(f"pipeline/*/*/{name}")]


def test_kubeflow_artifacts_are_filled(output, asked):
    classification = artifacts(output, "classification")[0]
    points = classification["confidenceMetrics"]
    assert points[0]["recall"] == 0
    assert points[-1]["falsePositiveRate"] == 1
    rows = classification["confusionMatrix"]["rows"]
    summary = json.loads((output / "summary.json").read_text())
    best = summary["models"][0]["test"][summary["serving_domain"]]
    assert [row["row"] for row in rows] == best["confusion"]
    evaluate = next(m for m in artifacts(output, "metrics") if "promoted" in m)
    assert evaluate["test_auroc_value"] == pytest.approx(best["auroc"]["value"])
    assert evaluate["promoted"] == (summary["gate"]["decision"] == "promoted")
    logged = {type(value) for metrics in artifacts(output, "metrics") for value in metrics.values()}
    assert logged == {int, float}, "text would be logged as 0 by what expects numbers"
    pages = [
        p.read_text()
        for name in ("statistics", "sheet", "history", "report")
        for p in output.glob(f"pipeline/*/*/{name}")
    ]
    assert len(pages) == 4 + len(asked["backbones"])
    assert all("Research use only" in page for page in pages)


def failing(capsys, *arguments: str) -> str:
    assert cli.main(["run", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == 1
    return error


def test_what_is_wrong_is_said_before_the_first_step(capsys, scans, tmp_path):
    out = ("--output", str(tmp_path / "out"))
    assert "'AlexNet'" in failing(capsys, *out, "--backbones", "AlexNet")
    assert "unsure 1.0" in failing(capsys, *out, "--unsure", "1")
    assert str(tmp_path / "no") in failing(capsys, *out, "--scans", str(tmp_path / "no"))
    assert "no.csv" in failing(capsys, *out, "--scans", str(scans), "--rois", str(tmp_path / "no.csv"))
    assert "/no/where" in failing(capsys, *out, "--scans", str(scans), "--weights", "/no/where")
    assert "--rois" in failing(capsys, *out, "--scans", str(scans), "--domains", "cropped")
    assert "'frames'" in failing(capsys, *out, "--scans", str(scans), "--domains", "frames")
    assert "--train-on drifts: choose from new, drift" in failing(capsys, *out, "--train-on", "drifts")
    assert "--crops" in failing(capsys, *out, "--crops", str(scans))
    assert re.search(r"jitter\b.*\b3\b", failing(capsys, *out, "--scans", str(scans), "--jitter", "3"))
    assert re.search(r"margin\b.*-0\.1\b", failing(capsys, *out, "--scans", str(scans), "--margin", "-0.1"))
    (tmp_path / "labels.csv").write_text("filename,tirads\na.jpg,4a\n")
    descriptors = ("--scans", str(scans), "--descriptors", f"{tmp_path / 'labels.csv'}#margin=tirads")
    assert "column tirads holds no word for margin" in failing(capsys, *out, *descriptors)
    (tmp_path / "settings.json").write_text('{"margin": 0.35}')
    settings = ("--scans", str(scans), "--settings", str(tmp_path / "settings.json"))
    assert re.search(r"\b0\.3\b.*\b0\.35\b", failing(capsys, *out, *settings, "--margin", "0.3"))
    assert "python3" in failing(capsys, "--output", str(tmp_path / "python3.11" / "out"))
    assert not (tmp_path / "out").exists()


def test_two_runs_on_one_output(capsys, scans, tmp_path):
    """The second one says so, and leaves the first one's files alone; a lock that nobody holds any more is none."""
    out = tmp_path / "out"
    arguments = ("--scans", str(scans), "--output", str(out))
    with outputs.locked(out):
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
        told = f"error: {out}: another run is using this folder"
        assert told in failing(capsys, *arguments)
        assert cli.main(["sweep", *arguments]) == 2
        assert told in capsys.readouterr().err
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    with outputs.locked(out):
        assert (out / outputs.MARK).read_text().count("made by") == 1


def test_output_that_is_a_file(capsys, tmp_path):
    (tmp_path / "out").write_text("in the way")
    assert str(tmp_path / "out") in failing(capsys, "--output", str(tmp_path / "out"))


def test_a_failing_step_ends_the_run_with_its_message(capfd, scans, tmp_path):
    for file in scans.glob("M_*"):
        file.unlink()
    assert cli.main(["run", "--scans", str(scans), "--output", str(tmp_path / "out")]) == 2
    captured = capfd.readouterr()
    assert re.search(r"error: ingest: .*\bclass M\b", captured.out)
    assert captured.err.count("error: ") == 1
    assert "Traceback" not in captured.out + captured.err
    assert not (tmp_path / "out" / "registry").exists()


def test_a_run_tells_what_the_gate_decided_and_that_it_ended(output, told):
    decided, ended = told
    summary = SummaryRecord.read(output / "summary.json")
    assert decided.event == {"promoted": "gate.released", "refused": "gate.refused"}[summary.gate.decision]
    assert (decided.version, decided.link) == (1, f"{summary.model.uri}/report.html")
    assert ended.event == "run.succeeded"
    assert ended.run == decided.run
    assert ended.run


def test_a_failing_run_tells_where_it_failed_and_names_no_scan(capfd, scans, tmp_path, receiver):
    for file in scans.glob("M_*"):
        file.unlink()
    of_patient = scans.rename(tmp_path / "B_4711")
    assert cli.main(["run", "--scans", str(of_patient), "--output", str(tmp_path / "out")]) == 2
    assert re.search(r"error: ingest: .*B_4711", capfd.readouterr().out)
    (told,) = receiver.messages
    assert (told.event, told.sentence) == ("run.failed", "The run failed at ingest.")
    assert "4711" not in told.model_dump_json()


@pytest.mark.slow
def test_weights_of_the_wrong_shape_end_the_run_with_the_file(capfd, scans, tmp_path):
    (tmp_path / "vgg16.weights.h5").write_bytes(b"no")
    rois = write_rois(tmp_path / "rois.csv", [(file.name, 10, 10, 40, 30) for file in sorted(scans.iterdir())])
    arguments = ["--scans", str(scans), "--rois", str(rois), "--output", str(tmp_path / "out")]
    code = cli.main(["run", *arguments, "--weights", str(tmp_path / "vgg16.weights.h5"), "--backbones", "VGG16"])
    assert code == 2
    assert f"{tmp_path / 'vgg16.weights.h5'}: not weights of VGG16" in capfd.readouterr().out


def test_an_output_that_no_run_made_is_left_alone(capsys, scans, tmp_path):
    (tmp_path / "mine" / "data").mkdir(parents=True)
    (tmp_path / "mine" / "data" / "precious").write_text("x")
    assert str(tmp_path / "mine") in failing(capsys, "--output", str(tmp_path / "mine"))
    assert (tmp_path / "mine" / "data" / "precious").read_text() == "x"


@pytest.mark.parametrize("place", ["scans", "scans/out", "."])
def test_scans_and_output_may_not_hold_one_another(capsys, scans, place):
    output = scans.parent / place
    before = sorted(scans.rglob("*"))
    error = failing(capsys, "--scans", str(scans), "--output", str(output))
    assert f"--scans {scans}" in error
    assert f"--output {output}" in error
    assert sorted(scans.rglob("*")) == before


def test_a_seed_below_zero(capsys, tmp_path):
    assert re.search(r"seed -1\b", failing(capsys, "--output", str(tmp_path / "out"), "--seed", "-1"))
