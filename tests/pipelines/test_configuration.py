"""What a run is given: presets, run.yaml and the command line."""

import dataclasses

import pytest
import yaml

from pipelines import configuration, run
from pipelines.configuration import LocalOptions
from thyroid.errors import InputError
from thyroid.evaluate.options import EvaluateOptions
from thyroid.locate.options import LocateOptions
from thyroid.train.options import TrainOptions


def resolve(options: LocalOptions = LocalOptions(), **given) -> configuration.Configuration:
    return configuration.resolve(run.PARAMETERS, options, given)


def test_the_command_line_overrides_the_file_and_the_file_the_preset(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("preset: full\nbackbones: vgg16,ResNet50\nepochs: 7\nseed: 3\nsite: 12\nscans:\n")
    found = resolve(LocalOptions(config=file), seed=4)
    assert (found.preset, found.backbones) == ("full", ["VGG16", "ResNet50"])
    assert (found["image_size"], found["epochs"], found["seed"], found["site"]) == (320, 7, 4, "12")
    found = resolve(LocalOptions(config=file, preset="quick", backbones="VGG19"))
    assert (found.preset, found.backbones, found["image_size"]) == ("quick", ["VGG19"], 64)


def test_defaults_are_those_of_the_options():
    found = resolve()
    assert found["sensitivity"] == EvaluateOptions.sensitivity
    assert found["recipe"] == TrainOptions.recipe
    assert found["unsure"] == LocateOptions.unsure
    assert found["weights"] == "none", "the preset's"


def test_what_is_written_repeats_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scans").mkdir()
    first = resolve(LocalOptions(preset="standard"), scans="scans", rois="rois.csv", labels="l.csv#tirads", folds=3)
    first.write(tmp_path)
    monkeypatch.chdir("/")
    again = resolve(LocalOptions(config=tmp_path / "run.yaml"))
    assert again == first
    assert first["scans"] == str(tmp_path / "scans")
    assert first["labels"] == str(tmp_path / "l.csv#tirads")
    written = yaml.safe_load((tmp_path / "run.yaml").read_text())
    assert written.keys() == {"preset", "backbones", *run.PARAMETERS}


def test_sample_scans_are_noted_and_drawn_in_the_output(tmp_path):
    found = resolve()
    assert "sample" in found.text()
    arguments = found.arguments(tmp_path)
    assert arguments["rois"] == str(tmp_path / "sample" / "rois.csv")
    assert (arguments["store"], arguments["registry"]) == (str(tmp_path / "store"), str(tmp_path / "registry"))
    assert found["scans"] == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epoch: 9", "epochs"),
        ("epochs: many", "epochs: expected a whole number"),
        ("epochs: 2.5", "epochs: expected a whole number"),
        ("epochs: true", "epochs: expected a whole number"),
        ("rois: [a, b]", "rois: expected a text"),
        ("preset: quik", "quick"),
        ("run: text", "run is unknown"),
        ("- a", "expected parameters"),
        ("a: b: c", "not YAML"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path, text, said):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(InputError, match=said):
        resolve(LocalOptions(config=tmp_path / "run.yaml"))


def test_the_file_of_a_run_on_kubeflow_can_be_repeated_here(tmp_path):
    (tmp_path / "run.yaml").write_text("backbones: VGG16\ncanary: 10\nfolds: 3\n")
    found = resolve(LocalOptions(config=tmp_path / "run.yaml"))
    assert found["folds"] == 3
    assert "canary" not in found.values


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"no\.yaml"):
        resolve(LocalOptions(config=tmp_path / "no.yaml"))


def test_locations_come_from_the_options():
    known = {"scans", "rois", "crops", "labels", "settings", "registry", "store", "clinical", "descriptors"}
    assert known == configuration.LOCATIONS & run.PARAMETERS.keys()
    assert dataclasses.is_dataclass(run.Given)


@pytest.mark.parametrize(
    ("given", "body"),
    [
        ({}, "toy"),
        ({"weights": "imagenet"}, "body"),
        ({"weights": "None"}, "toy"),
        ({"scans": "scans", "rois": "rois.csv", "weights": "weights"}, "body"),
        ({"scans": "scans", "weights": "weights"}, ""),
        ({"scans": "scans", "crops": "crops"}, ""),
    ],
)
def test_the_locator_that_a_run_trains_follows_from_weights_and_regions(tmp_path, given, body):
    chosen = resolve(**given)
    assert run.workload(chosen, chosen.arguments(tmp_path)).locator == body
