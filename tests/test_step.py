"""The compiled pipeline against the code, both ways."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from kfp import components as kfp_components

from components.step import image_name
from pipelines import __main__ as cli
from thyroid.backbones import BACKBONES

ROOT = Path(__file__).parents[1]
STEPS = {"ingest": "data", "crop": "data", "train": "train", "evaluate": "train", "register": "ops"}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> dict:
    path = tmp_path_factory.mktemp("compiled") / "thyroid.yaml"
    assert cli.main(["compile", "--output", str(path)]) == 0
    kfp_components.load_component_from_file(str(path))
    return next(yaml.safe_load_all(path.read_text()))


def test_every_step_is_a_file_and_every_file_a_step(compiled):
    in_yaml = {executor["container"]["args"][0] for executor in compiled["deploymentSpec"]["executors"].values()}
    files = {p.stem for p in (ROOT / "components").glob("*.py")} - {"__init__", "__main__", "step", "pages"}
    assert in_yaml == files == set(STEPS)


def test_one_node_a_step_and_five_named_trainings_side_by_side(compiled):
    tasks = compiled["root"]["dag"]["tasks"]
    names = {task["taskInfo"]["name"] for task in tasks.values()}
    assert names == {"ingest", "crop", "evaluate", "register"} | {f"train-{backbone}" for backbone in BACKBONES}
    trainings = {key: task for key, task in tasks.items() if task["taskInfo"]["name"].startswith("train-")}
    for task in trainings.values():
        assert task["dependentTasks"] == ["crop"]
        backbone = task["inputs"]["parameters"]["backbone"]["runtimeValue"]["constant"]
        assert task["taskInfo"]["name"] == f"train-{backbone}"
    evaluate = tasks["evaluate"]
    assert sorted(evaluate["dependentTasks"]) == sorted(["crop", *trainings])
    for backbone in BACKBONES:
        producer = evaluate["inputs"]["artifacts"][backbone]["taskOutputArtifact"]["producerTask"]
        assert tasks[producer]["taskInfo"]["name"] == f"train-{backbone}"
    assert tasks["register"]["dependentTasks"] == ["evaluate"]
    assert "enableCache" not in tasks["register"]["cachingOptions"]


def test_containers_call_the_entry_point_and_carry_no_source(compiled):
    for executor in compiled["deploymentSpec"]["executors"].values():
        container = executor["container"]
        step = container["args"][0]
        assert container["image"] == image_name(STEPS[step])
        assert container["command"] == ["python3", "-m", "components"]
        assert container["args"][1:3] == ["--executor-input", "{{$}}"]
        assert "def " not in json.dumps(container)


def test_trainings_ask_for_the_memory_of_their_backbone(compiled):
    for component in compiled["components"].values():
        executor = compiled["deploymentSpec"]["executors"][component["executorLabel"]]
        if executor["container"]["args"][0] != "train":
            continue
        tasks = compiled["root"]["dag"]["tasks"].values()
        (task,) = [t for t in tasks if compiled["components"][t["componentRef"]["name"]] is component]
        row = BACKBONES[task["inputs"]["parameters"]["backbone"]["runtimeValue"]["constant"]]
        resources = executor["container"]["resources"]
        assert (resources["resourceMemoryRequest"], resources["resourceMemoryLimit"]) == (
            row.memory_request,
            row.memory_limit,
        )


def test_interfaces_are_those_of_the_functions(compiled):
    """Read the plain functions where the decorator returns them, as in an image."""
    code = (
        "import os, json, importlib, inspect; os.environ['_KFP_RUNTIME'] = 'true'\n"
        f"print(json.dumps({{s: list(inspect.signature(getattr(importlib.import_module('components.' + s), s)).parameters) for s in {sorted(STEPS)!r}}}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    functions = json.loads(done.stdout)
    for component in compiled["components"].values():
        step = compiled["deploymentSpec"]["executors"][component["executorLabel"]]["container"]["args"][0]
        names = set()
        for side in ("inputDefinitions", "outputDefinitions"):
            for kind in ("parameters", "artifacts"):
                names |= set(component.get(side, {}).get(kind, {}))
        assert names == set(functions[step])


def test_parameters_have_descriptions_and_defaults(compiled):
    parameters = compiled["root"]["inputDefinitions"]["parameters"]
    assert len(parameters) <= 21
    for name, parameter in parameters.items():
        assert parameter.get("description"), name
        assert parameter.get("isOptional", False) == (name not in ("scans", "registry"))
    assert parameters["weights"]["defaultValue"] == "imagenet"


def test_compiling_some_backbones(tmp_path):
    assert cli.main(["compile", "--output", str(tmp_path / "p.yaml"), "--backbones", "VGG16,resnet50"]) == 0
    tasks = yaml.safe_load((tmp_path / "p.yaml").read_text())["root"]["dag"]["tasks"]
    assert len(tasks) == 6


def test_compiling_does_not_import_tensorflow(tmp_path):
    code = (
        "import sys; from pipelines.__main__ import main\n"
        f"assert main(['compile', '--output', {str(tmp_path / 'p.yaml')!r}]) == 0\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)


def test_image_names_follow_the_environment(monkeypatch):
    monkeypatch.setenv("THYROID_IMAGES", "example.test/lab/thyroid")
    monkeypatch.setenv("THYROID_TAG", "abc123")
    assert image_name("train") == "example.test/lab/thyroid-train:abc123"


@pytest.mark.parametrize("step", STEPS)
def test_modules_import_nothing_heavy(step):
    code = f"import os, sys; os.environ['_KFP_RUNTIME'] = 'true'; import components.{step}; assert not {{'tensorflow', 'keras', 'cv2'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_step_reports_bad_input_in_one_line(tmp_path):
    outputs = {
        "artifacts": {
            name: {
                "artifacts": [
                    {"name": name, "type": {"schemaTitle": title}, "uri": str(tmp_path / name), "metadata": {}}
                ]
            }
            for name, title in (
                ("data", "system.Dataset"),
                ("metrics", "system.Metrics"),
                ("statistics", "system.HTML"),
            )
        },
        "outputFile": str(tmp_path / "out.json"),
    }
    parameters = {
        "scans": str(tmp_path / "no"),
        "rois": "",
        "crops": "",
        "given_splits": "separate",
        "previous": "",
        "seed": 0,
    }
    request = {"inputs": {"parameterValues": parameters}, "outputs": outputs}
    done = subprocess.run(
        [sys.executable, "-m", "components", "ingest", "--executor-input", json.dumps(request)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"error: ingest: {tmp_path / 'no'}: no such folder of scans"
    assert "Traceback" not in done.stderr
