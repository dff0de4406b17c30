"""The compiled pipeline against the code, both ways."""

import json
import os
import runpy
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import yaml
from kfp import components as kfp_components
from kfp import dsl
from kfp.local.docker_task_handler import DockerTaskHandler
from kfp.local.status import Status

from components.step import image_name
from pipelines import __main__ as cli
from pipelines.compile import Placement
from pipelines.kubeflow import submit
from pipelines.local import containers
from pipelines.local import steps as local
from pipelines.local.plan import Plan
from tests.support import ROOT, schemas
from thyroid.crop import CropOptions
from thyroid.data import pseudonyms, tables
from thyroid.data.version import DataVersion
from thyroid.imaging.geometry import MARGIN
from thyroid.ingest.options import GIVEN_SPLITS
from thyroid.model.backbones import BACKBONES, RECIPES
from thyroid.notify.receivers import RUN, VARIABLES
from thyroid.registry.changes import TRAIN_ON
from thyroid.train.settings import UNSET
from thyroid.validate.options import ValidateOptions
from thyroid.watch.options import WatchOptions

STEPS = {
    "ingest": "data",
    "crop": "data",
    "train": "train",
    "locate": "train",
    "evaluate": "train",
    "register": "ops",
    "deploy": "ops",
    "rest": "ops",
    "conclude": "ops",
}


SHARDS = {"ingest_shard": "ingest", "crop_shard": "crop"}
"""Steps of a pipeline in shards to the step that each of them goes before."""


def compile_(path: Path, *arguments: str) -> tuple[dict, dict]:
    """The pipeline specification and its settings for Kubernetes."""
    assert cli.main(["compile", "--output", str(path), *arguments]) == 0
    kfp_components.load_component_from_file(str(path))
    specification, platform = yaml.safe_load_all(path.read_text())
    return specification, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


@pytest.fixture(scope="module")
def yaml_file(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("compiled") / "thyroid.yaml"


@pytest.fixture(scope="module")
def both(yaml_file) -> tuple[dict, dict]:
    return compile_(yaml_file)


@pytest.fixture(scope="module")
def search(both, yaml_file) -> dict:
    """Return the search for settings, which `compile` writes next to the training."""
    return next(yaml.safe_load_all(yaml_file.with_name("thyroid-sweep.yaml").read_text()))


@pytest.fixture(scope="module")
def validation(both, yaml_file) -> dict:
    """Return the external validation, which `compile` writes next to the training, too."""
    return next(yaml.safe_load_all(yaml_file.with_name("thyroid-validate.yaml").read_text()))


@pytest.fixture(scope="module")
def watching(both, yaml_file) -> dict:
    """Return the watch, which `compile` writes next to the training, too."""
    return next(yaml.safe_load_all(yaml_file.with_name("thyroid-watch.yaml").read_text()))


@pytest.fixture(scope="module")
def compiled(both) -> dict:
    return both[0]


@pytest.fixture(scope="module")
def pods(both) -> dict:
    return both[1]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Path:
    """Return the file of a training in three shards, beside which `compile` writes the search."""
    path = tmp_path_factory.mktemp("sharded") / "thyroid.yaml"
    compile_(path, "--shards", "3", "--backbones", "VGG16")
    return path


def level(compiled: dict, task: dict) -> dict:
    """The tasks within a task."""
    return compiled["components"][task["componentRef"]["name"]].get("dag", {}).get("tasks", {})


@pytest.fixture(scope="module")
def levels(compiled) -> dict:
    """Name of a level to its tasks: the body of the exit handler, and both ways that it may go."""
    (body,) = [t for t in compiled["root"]["dag"]["tasks"].values() if t["taskInfo"]["name"] != "conclude"]
    found = {"scans to endpoint": level(compiled, body)}
    for task in found["scans to endpoint"].values():
        if task["taskInfo"]["name"] != "ingest":
            for name, branch in level(compiled, task).items():
                found[branch["taskInfo"]["name"]] = level(compiled, branch)
                assert branch["triggerPolicy"]["condition"], name
    return found


@pytest.fixture(scope="module")
def tasks(compiled, levels) -> dict:
    """Every step but the exit handler, whatever level it is on."""
    every = {key: task for one in levels.values() for key, task in one.items()}
    return {key: task for key, task in every.items() if not level(compiled, task)}


def executor(compiled: dict, task: dict) -> tuple[str, dict]:
    """Label and container of a task."""
    label = compiled["components"][task["componentRef"]["name"]]["executorLabel"]
    return label, compiled["deploymentSpec"]["executors"][label]["container"]


def test_every_step_is_a_file_and_every_file_a_step(compiled, search, validation, watching, sharded):
    in_shards = next(yaml.safe_load_all(sharded.read_text()))
    in_yaml = {
        executor["container"]["args"][0]
        for one in (compiled, search, validation, watching, in_shards)
        for executor in one["deploymentSpec"]["executors"].values()
    }
    files = {p.stem for p in (ROOT / "components").glob("*.py")} - {"__init__", "__main__", "step", "pages"}
    assert in_yaml == files
    assert {name for name in files if not name.startswith("sweep_")} - {"validate", "watch", *SHARDS} == set(STEPS)
    assert not set(SHARDS) & {
        executor["container"]["args"][0] for executor in compiled["deploymentSpec"]["executors"].values()
    }


def every_level(compiled: dict, tasks: dict) -> dict:
    """Each task of a pipeline, by its key, with the tasks beside it."""
    found = {key: (task, tasks) for key, task in tasks.items()}
    for task in tasks.values():
        found |= every_level(compiled, level(compiled, task))
    return found


@pytest.mark.parametrize("name", ["", "sweep"])
def test_the_shards_of_a_step_run_before_it_and_get_the_same(sharded, name):
    file = sharded.with_name(f"thyroid-{name}.yaml") if name else sharded
    compiled, platform = yaml.safe_load_all(file.read_text())
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    tasks = every_level(compiled, compiled["root"]["dag"]["tasks"])
    for shard, step in SHARDS.items():
        gathering, beside = tasks[step]
        (loop,) = [key for key in gathering["dependentTasks"] if "parameterIterator" in beside[key]]
        assert beside[loop]["parameterIterator"]["items"]["raw"] == "[1, 2, 3]"
        assert "triggerPolicy" not in gathering, "KFP would make an exit hook of it, which nothing can follow"
        ((task, _),) = every_level(compiled, level(compiled, beside[loop])).values()
        given = task["inputs"]["parameters"]
        assert "loop-item" in given["shard"]["componentInputParameter"]
        assert given["shards"]["runtimeValue"]["constant"] == 3
        assert not [key for key, source in given.items() if "taskOutputParameter" in source]
        assert not task["cachingOptions"].get("enableCache")
        for key in given.keys() - {"shard", "shards"}:
            same = gathering["inputs"]["parameters"][key]
            assert json.dumps(given[key]).replace("pipelinechannel--", "") == json.dumps(same).replace(
                "pipelinechannel--", ""
            )
        label, container = executor(compiled, task)
        whole, its_container = executor(compiled, gathering)
        assert container["args"][0] == shard
        assert (container["resources"], container["image"]) == (its_container["resources"], its_container["image"])
        assert (pods[label], task["retryPolicy"]) == (pods[whole], gathering["retryPolicy"])


def test_one_node_a_step_and_five_named_trainings_side_by_side(levels, tasks):
    names = {level: {task["taskInfo"]["name"] for task in within.values()} for level, within in levels.items()}
    assert "ingest" in names["scans to endpoint"]
    assert names["enough is new"] == {"crop", "locate", "evaluate", "register", "deploy"} | {
        f"train-{backbone}" for backbone in BACKBONES
    }
    assert names["nothing to do"] == {"rest"}
    trainings = {key: task for key, task in tasks.items() if task["taskInfo"]["name"].startswith("train-")}
    for task in trainings.values():
        assert task["dependentTasks"] == ["crop"]
        backbone = task["inputs"]["parameters"]["backbone"]["runtimeValue"]["constant"]
        assert task["taskInfo"]["name"] == f"train-{backbone}"
    evaluate = tasks["evaluate"]
    assert sorted(evaluate["dependentTasks"]) == sorted(["crop", "locate", *trainings])
    for backbone in BACKBONES:
        producer = evaluate["inputs"]["artifacts"][backbone]["taskOutputArtifact"]["producerTask"]
        assert tasks[producer]["taskInfo"]["name"] == f"train-{backbone}"
    assert evaluate["inputs"]["artifacts"]["boxes"]["taskOutputArtifact"] == {
        "outputArtifactKey": "boxes",
        "producerTask": "locate",
    }
    assert tasks["register"]["dependentTasks"] == ["evaluate"]
    assert tasks["deploy"]["dependentTasks"] == ["register"]


def test_the_locator_runs_beside_the_trainings_and_gets_the_frames_as_they_came(tasks):
    locate = tasks["locate"]
    assert locate["dependentTasks"] == ["crop"]
    artifacts, parameters = locate["inputs"]["artifacts"], locate["inputs"]["parameters"]
    assert artifacts["images"]["taskOutputArtifact"]["producerTask"] == "crop"
    assert "ingest-data" in artifacts["data"]["componentInputArtifact"]
    assert parameters["unsure"]["componentInputParameter"].endswith("unsure")
    assert not {"image_size", "epochs", "batch_size"} & parameters.keys(), "its size and epochs are its own"


def test_the_last_word_comes_whatever_happened(compiled):
    outer = compiled["root"]["dag"]["tasks"]
    conclude = outer.pop("conclude")
    (body,) = outer.values()
    assert conclude["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert conclude["dependentTasks"] == [next(iter(outer))]
    assert body["taskInfo"]["name"] == "scans to endpoint"
    outer["conclude"] = conclude


def test_only_what_is_safe_is_cached(tasks):
    """The cache sees parameters and names: what reads a folder, a registry or a cluster may not be cached."""
    cached = {name for name, task in tasks.items() if task["cachingOptions"].get("enableCache")}
    trainings = {name for name, task in tasks.items() if task["taskInfo"]["name"].startswith("train-")}
    assert cached == trainings | {"locate"}
    for name in cached:
        given = tasks[name]["inputs"]["parameters"]
        source = given["fingerprint"]["taskOutputParameter"]
        assert source["outputParameterKey"] == "version", "the data's fingerprint is part of the cache's key"
        assert "champion" in given["champion"]["componentInputParameter"], "and so is what a warm start starts from"


def test_what_is_new_decides(compiled, levels):
    (branches,) = [level(compiled, task) for task in levels["scans to endpoint"].values() if level(compiled, task)]
    conditions = {one["taskInfo"]["name"]: one["triggerPolicy"]["condition"] for one in branches.values()}
    assert conditions["enough is new"].endswith("ingest-verdict'] == 'train'")
    assert conditions["nothing to do"] == f"!({conditions['enough is new']})"


def test_every_pod_is_limited_retried_and_given_up(compiled, tasks, pods):
    for name, task in tasks.items():
        label, container = executor(compiled, task)
        assert set(container["resources"]) >= {"resourceCpuRequest", "resourceMemoryRequest", "resourceMemoryLimit"}
        policy = task["retryPolicy"]
        assert policy["maxRetryCount"] == 2, name
        assert policy["backoffDuration"] == "60s"
        assert policy["backoffFactor"] == 2.0
        assert 600 < int(pods[label]["activeDeadlineSeconds"]) <= 24 * 3600
    for label, pod in pods.items():
        assert pod["securityContext"] == {"runAsUser": "10001", "runAsGroup": "10001", "runAsNonRoot": True}, label
        assert pod["pvcMount"][0]["mountPath"] == "/data"
        assert pod["imagePullPolicy"] == "IfNotPresent"


def test_what_tensorflow_trains_gets_gpus_and_shared_memory_and_nothing_else(compiled, tasks, pods):
    for name, task in tasks.items():
        label, container = executor(compiled, task)
        gpu = container["resources"].get("accelerator")
        if name.startswith("train") or name == "locate":
            assert gpu["resourceType"] == "nvidia.com/gpu"
            assert gpu["resourceCount"] == "1"
            assert pods[label]["tolerations"] == [
                {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
            ]
            assert pods[label]["emptyDirMounts"][0] == {
                "volumeName": "shared-memory",
                "mountPath": "/dev/shm",
                "medium": "Memory",
                "sizeLimit": "2Gi",
            }
        else:
            assert gpu is None
            assert "tolerations" not in pods[label]


def test_the_key_of_pseudonyms_is_read_by_those_who_name_patients(tasks, compiled, pods):
    of_key = {
        compiled["deploymentSpec"]["executors"][label]["container"]["args"][0]: secret
        for label, pod in pods.items()
        for secret in pod.get("secretAsEnv", [])
        if secret["secretName"] == "thyroid-patient-key"
    }
    assert set(of_key) == {"ingest", "train", "locate", "evaluate", "register"}
    for secret in of_key.values():
        assert secret["keyToEnv"] == [{"envVar": pseudonyms.KEY_VARIABLE, "secretKey": "key"}]
        assert secret["optional"]


def test_receivers_of_notifications_are_known_to_those_who_tell(compiled, pods, yaml_file):
    """The pods also start without the secret; its addresses are in no parameter, which the UI would show."""
    found = {
        compiled["deploymentSpec"]["executors"][label]["container"]["args"][0]: secret
        for label, pod in pods.items()
        for secret in pod.get("secretAsEnv", [])
        if secret["secretName"] == "thyroid-notify"
        if pod["fieldPathAsEnv"] == [{"name": RUN, "fieldPath": "metadata.labels['pipeline/runid']"}]
    }
    assert set(found) == {"register", "deploy", "rest", "conclude"}
    for secret in found.values():
        assert {one["secretKey"]: one["envVar"] for one in secret["keyToEnv"]} == VARIABLES
        assert secret["optional"]
    assert "notify" not in str(compiled["root"]["inputDefinitions"])


@pytest.mark.parametrize("step", ["ingest", "register", "crop"])
def test_a_container_that_names_patients_gets_the_key_and_no_command_line_holds_it(tmp_path, monkeypatch, step):
    monkeypatch.setattr(DockerTaskHandler, "run", DockerTaskHandler.run)
    (tmp_path / "podman").write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/told\n')
    (tmp_path / "podman").chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv(pseudonyms.KEY_VARIABLE, "a secret for tests only")
    containers.runner("podman", [], [], [])
    command = ["python3", "-m", "components", step]
    task = SimpleNamespace(
        pipeline_root=tmp_path, get_volumes_to_mount=dict, env_vars={}, full_command=command, image="x"
    )
    steps = local.Steps(Plan([]), 1, 1e9)
    steps.queue([act := local.Task(steps, step)])
    local.current.set(act)
    assert DockerTaskHandler.run(task) == Status.SUCCESS
    told = (tmp_path / "told").read_text()
    assert (f"-e {pseudonyms.KEY_VARIABLE} " in told) == (step != "crop")
    assert "secret" not in told


def test_what_differs_from_cluster_to_cluster(tmp_path):
    options = ["--gpus", "4", "--node-selector", "cloud.google.com/gke-accelerator=nvidia-l4", "--gcs-secret", "key"]
    compiled, pods = compile_(tmp_path / "p.yaml", *options, "--claim", "", "--accelerator", "amd.com/gpu")
    label = next(label for label in pods if label.startswith("exec-train"))
    container = compiled["deploymentSpec"]["executors"][label]["container"]
    assert container["resources"]["accelerator"]["resourceCount"] == "4"
    assert pods[label]["nodeSelector"]["labels"] == {"cloud.google.com/gke-accelerator": "nvidia-l4"}
    assert pods[label]["tolerations"][0]["key"] == "amd.com/gpu"
    assert pods[label]["secretAsVolume"][0]["secretName"] == "key"
    assert {"name": "GOOGLE_APPLICATION_CREDENTIALS", "value": "/secret/gcs/key.json"} in container["env"]
    assert all("pvcMount" not in pod for pod in pods.values())
    compiled, _ = compile_(tmp_path / "cpu.yaml", "--gpus", "0")
    container = compiled["deploymentSpec"]["executors"][label]["container"]
    assert "accelerator" not in container["resources"]


def test_every_step_has_the_keys_of_s3_and_a_cache_of_its_own(tmp_path, monkeypatch):
    """The pods also start where there is no such secret, or not each of its fields; no key is in what is compiled."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-for-yaml")
    compile_(tmp_path / "p.yaml", "--s3-secret", "lab-s3", "--cache", "300Gi")
    for name in ("", "sweep", "validate", "watch"):
        file = tmp_path / (f"p-{name}.yaml" if name else "p.yaml")
        assert "not-for-yaml" not in file.read_text()
        for one in next(yaml.safe_load_all(file.read_text()))["deploymentSpec"]["executors"].values():
            assert {"name": "XDG_CACHE_HOME", "value": "/cache"} in one["container"]["env"]
            assert {"name": "THYROID_CACHE_BYTES", "value": str(240 << 30)} in one["container"]["env"]
        for pod in settings(tmp_path / "p.yaml", name)["deploymentSpec"]["executors"].values():
            (secret,) = [one for one in pod["secretAsEnv"] if one["secretName"] == "lab-s3"]
            assert secret["optional"]
            variables = {one["secretKey"]: one["envVar"] for one in secret["keyToEnv"]}
            assert variables == {
                name: name for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_REGION")
            }
            assert {"volumeName": "cache", "mountPath": "/cache", "sizeLimit": "300Gi"} in pod["emptyDirMounts"]
    compile_(tmp_path / "none.yaml", "--s3-secret", "")
    assert "AWS_" not in (tmp_path / "none.yaml").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--cache", "lots"], "--cache lots: give a quantity"),
        (["--s3-secret", "My Keys"], "--s3-secret My Keys: give at"),
    ],
)
def test_what_kubernetes_would_refuse_is_refused_here(tmp_path, capsys, options, said):
    assert cli.main(["compile", "--output", str(tmp_path / "p.yaml"), *options]) == 2
    assert said in capsys.readouterr().err


def settings(compiled: Path, name: str = "") -> dict:
    """What a pipeline that `compile` wrote asks of a cluster: of whole runs in pipelineConfig, and of pods."""
    file = compiled.with_name(f"{compiled.stem}-{name}.yaml") if name else compiled
    return list(yaml.safe_load_all(file.read_text()))[1]["platforms"]["kubernetes"]


@pytest.mark.parametrize("name", ["", "sweep", "validate", "watch"])
def test_a_run_has_time_for_every_step_and_to_wait_and_is_deleted_in_the_end(both, yaml_file, name):
    found = settings(yaml_file, name)
    # a search has four workers, of one executor; where `rest` runs, what comes after ingest does not
    times = {"exec-sweep-heads": 4, "exec-sweep-images": 4, "exec-rest": 0}
    executors = found["deploymentSpec"]["executors"].items()
    steps = sum(times.get(label, 1) * int(pod["activeDeadlineSeconds"]) for label, pod in executors)
    waiting = found["pipelineConfig"]["activeDeadlineSeconds"] - steps
    assert waiting == 24 * 3600
    assert found["pipelineConfig"]["resourceTtlOnCompletion"] == 7 * 24 * 3600


def test_shards_side_by_side_take_the_time_of_one(sharded):
    for name in ("", "sweep"):
        found = settings(sharded, name)
        times = {"exec-sweep-heads": 4, "exec-sweep-images": 4, "exec-rest": 0}
        executors = found["deploymentSpec"]["executors"].items()
        steps = sum(times.get(label, 1) * int(pod["activeDeadlineSeconds"]) for label, pod in executors)
        assert found["pipelineConfig"]["activeDeadlineSeconds"] - steps == 24 * 3600


def test_what_differs_from_installation_to_installation(tmp_path):
    """Kueue's queue and the limits of a run, in all pipelines."""
    options = ["--queue", "lab", "--priority-class", "low", "--deadline", "48", "--keep", "0"]
    _, pods = compile_(tmp_path / "p.yaml", *options)
    assert "conclude" in " ".join(pods), "the exit handler takes a place, too"
    for name in ("", "sweep", "validate", "watch"):
        found = settings(tmp_path / "p.yaml", name)
        assert found["pipelineConfig"] == {"activeDeadlineSeconds": 48 * 3600}
        for pod in found["deploymentSpec"]["executors"].values():
            assert pod["podMetadata"]["labels"] == {
                "app.kubernetes.io/part-of": "thyroid",
                "kueue.x-k8s.io/queue-name": "lab",
                "kueue.x-k8s.io/priority-class": "low",
            }
    compile_(tmp_path / "p.yaml", "--deadline", "0", "--keep", "0")
    assert "pipelineConfig" not in settings(tmp_path / "p.yaml")


@pytest.mark.parametrize("name", ["", "sweep"])
def test_a_parameter_of_a_few_values_is_a_choice(both, compiled, search, name):
    known = (search if name else compiled)["root"]["inputDefinitions"]["parameters"]
    every = {"recipe": RECIPES, "train_on": TRAIN_ON, "given_splits": GIVEN_SPLITS}
    choices = {parameter: tuple(one["literals"]) for parameter, one in known.items() if "literals" in one}
    assert choices == {parameter: values for parameter, values in every.items() if parameter in known}
    for parameter, values in choices.items():
        assert known[parameter]["defaultValue"] in values


def test_kfp_does_not_write_choices_itself():
    """When it does, the pipelines' own annotations can say them, and `pipelines.compile` need not."""
    with pytest.raises(TypeError, match="Literal"):

        @dsl.pipeline
        def choosing(one: Literal["a", "b"] = "a") -> None: ...


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--gpus", "99"], "--gpus 99"),
        (["--node-selector", "x"], "NAME=VALUE"),
        (["--queue", "My queue"], "--queue My queue"),
        (["--queue", "lab", "--priority-class", "Low"], "--priority-class Low"),
        (["--priority-class", "low"], "give --queue, too"),
        (["--deadline", "-1"], "--deadline -1"),
        (["--keep", "366"], "--keep 366"),
        (["--shards", "0"], "--shards 0: give 1 to 64"),
        (["--shards", "65"], "--shards 65: give 1 to 64"),
    ],
)
def test_impossible_settings(option, said, tmp_path, capsys):
    assert cli.main(["compile", "--output", str(tmp_path / "p.yaml"), *option]) == 2
    assert said in capsys.readouterr().err


def test_the_same_as_objects_for_git(yaml_file, both):
    pipeline, version = yaml.safe_load_all(yaml_file.with_name("thyroid-version.yaml").read_text())
    assert (pipeline["kind"], version["kind"]) == ("Pipeline", "PipelineVersion")
    assert version["spec"]["pipelineName"] == pipeline["metadata"]["name"]
    assert version["spec"]["pipelineSpec"]["root"] == both[0]["root"]
    known = schemas.definitions()
    if not known:
        pytest.skip(f"no CustomResourceDefinitions here ({schemas.CRDS})")
    assert schemas.problems(pipeline, known) == []
    assert schemas.problems(version, known) == []


def test_containers_call_the_entry_point_and_carry_no_source(compiled):
    for executor in compiled["deploymentSpec"]["executors"].values():
        container = executor["container"]
        step = container["args"][0]
        assert container["image"] == image_name(STEPS[step])
        assert container["command"] == ["python3", "-m", "components"]
        assert container["args"][1:3] == ["--executor-input", "{{$}}"]
        assert "def " not in json.dumps(container)


def test_trainings_ask_for_the_memory_of_their_backbone(compiled, tasks):
    for task in tasks.values():
        _, container = executor(compiled, task)
        if container["args"][0] != "train":
            continue
        row = BACKBONES[task["inputs"]["parameters"]["backbone"]["runtimeValue"]["constant"]]
        resources = container["resources"]
        assert (resources["resourceMemoryRequest"], resources["resourceMemoryLimit"]) == (
            row.memory_request,
            row.memory_limit,
        )


AS_IN_AN_IMAGE = """
import importlib, inspect, json, os, sys
os.environ["_KFP_RUNTIME"] = "true"
found = {}
for step in sys.argv[1:]:
    function = getattr(importlib.import_module(f"components.{step}"), step)
    heavy = sorted({"tensorflow", "keras", "cv2"} & set(sys.modules))
    found[step] = {"parameters": list(inspect.signature(function).parameters), "heavy": heavy}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def plain() -> dict[str, dict[str, list[str]]]:
    """Of every step where the decorator returns the function itself: its parameters, and what is imported by then."""
    command = [sys.executable, "-c", AS_IN_AN_IMAGE, *STEPS, *SHARDS]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)


def test_interfaces_are_those_of_the_functions(sharded, plain):
    compiled = next(yaml.safe_load_all(sharded.read_text()))
    for component in compiled["components"].values():
        if "executorLabel" not in component:
            continue  # the exit handler's body
        step = compiled["deploymentSpec"]["executors"][component["executorLabel"]]["container"]["args"][0]
        names = set()
        for side in ("inputDefinitions", "outputDefinitions"):
            for kind in ("parameters", "artifacts"):
                names |= set(component.get(side, {}).get(kind, {}))
        assert names == set(plain[step]["parameters"])


def test_parameters_have_descriptions_and_defaults(compiled):
    parameters = compiled["root"]["inputDefinitions"]["parameters"]
    assert len(parameters) <= 37
    for name, parameter in parameters.items():
        assert parameter.get("description"), name
        assert parameter.get("isOptional", False) == (name not in ("scans", "registry"))
    assert parameters["weights"]["defaultValue"] == "imagenet"
    assert parameters["margin"]["defaultValue"] == UNSET
    assert f"else {MARGIN:g}" in parameters["margin"]["description"]
    assert parameters["jitter"]["defaultValue"] == CropOptions.jitter


def test_margin_and_jitter_reach_the_crops(tasks, search):
    given = tasks["crop"]["inputs"]["parameters"]
    for name in ("margin", "jitter"):
        assert given[name]["componentInputParameter"].endswith(name)
    given = search["root"]["dag"]["tasks"]["crop"]["inputs"]["parameters"]
    assert given["margin"]["runtimeValue"]["constant"] == UNSET
    assert given["jitter"]["runtimeValue"]["constant"] == CropOptions.jitter


def test_tables_about_nodules_reach_the_evaluation(tasks):
    given = tasks["evaluate"]["inputs"]["parameters"]
    for name in ("clinical", "descriptors"):
        assert given[name]["componentInputParameter"].endswith(name)


@pytest.mark.parametrize(
    ("parameters", "named", "expected"),
    [
        ({}, None, (MARGIN, 1.0)),
        ({"margin": 0.3, "jitter": 0.5}, None, (0.3, 0.5)),
        ({}, {"margin": 0.35}, (0.35, 1.0)),
        ({"margin": 0.3}, {"head_rate": 0.01}, (0.3, 1.0)),
        ({"recipe": "deck"}, None, (MARGIN, 0.0)),
    ],
)
def test_the_crop_step_crops_as_it_is_told(cropped, tmp_path, monkeypatch, parameters, named, expected):
    (tmp_path / "settings.json").write_text(json.dumps(named))
    data = cropped.parent / "ingested"
    given = {
        "domains": "cropped",
        "recipe": "two-phase",
        "settings": "" if named is None else str(tmp_path / "settings.json"),
        "margin": UNSET,
        "jitter": CropOptions.jitter,
        "store": str(tmp_path / "store"),
    }
    made = SimpleNamespace(path=str(tmp_path / "out"), metadata={})
    monkeypatch.setenv("_KFP_RUNTIME", "true")  # as in a container, where steps are plain functions
    crop = runpy.run_path(str(ROOT / "components" / "crop.py"))["crop"]
    crop(
        data=SimpleNamespace(path=str(data)),
        fingerprint=DataVersion.read(data).fingerprint,
        **(given | parameters),
        images=made,
        version=str(tmp_path / "version"),
        sheet=SimpleNamespace(path=str(tmp_path / "sheet")),
    )
    facts = tables.read_facts(tmp_path / "out")
    assert (facts.margin, facts.jitter) == expected


def test_compiling_some_backbones_without_tensorflow(tmp_path):
    code = (
        "import sys; from pipelines.__main__ import main\n"
        f"assert main(['compile', '--output', {str(tmp_path / 'p.yaml')!r}, '--backbones', 'VGG16,resnet50']) == 0\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)
    compiled = next(yaml.safe_load_all((tmp_path / "p.yaml").read_text()))
    assert len(compiled["deploymentSpec"]["executors"]) == 10


def test_image_names_follow_the_environment(monkeypatch):
    monkeypatch.setenv("THYROID_IMAGES", "example.test/lab/thyroid")
    monkeypatch.setenv("THYROID_TAG", "abc123")
    assert image_name("train") == "example.test/lab/thyroid-train:abc123"


@pytest.mark.parametrize("step", [*STEPS, *SHARDS])
def test_modules_import_nothing_heavy(plain, step):
    assert plain[step]["heavy"] == []


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
        "parameters": {name: {"outputFile": str(tmp_path / name)} for name in ("version", "verdict", "champion")},
        "outputFile": str(tmp_path / "out.json"),
    }
    parameters = {
        "scans": str(tmp_path / "no"),
        "rois": "",
        "crops": "",
        "labels": "",
        "classes": "B|M",
        "given_splits": "separate",
        "site": "",
        "store": "",
        "registry": str(tmp_path / "registry"),
        "minimum": 0,
        "train_on": "new",
        "recipe": "two-phase",
        "settings": "",
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


@pytest.mark.parametrize(
    ("name", "required", "options", "elsewhere"),
    [
        ("validate", {"registry", "scans", "site"}, ValidateOptions, {"share", "key"}),
        ("watch", {"registry"}, WatchOptions, set()),
    ],
)
def test_validation_and_watch_are_one_step_with_the_key_of_pseudonyms(
    name, required, options, elsewhere, yaml_file, validation, watching
):
    pipeline = {"validate": validation, "watch": watching}[name]
    (task,) = pipeline["root"]["dag"]["tasks"].values()
    assert task["cachingOptions"].get("enableCache") is not True, "what is below a path changes"
    label, container = executor(pipeline, task)
    assert container["image"] == image_name(name)
    assert container["resources"]["resourceMemoryLimit"] == "6G"
    assert "accelerator" not in container["resources"]
    _, platform = yaml.safe_load_all(yaml_file.with_name(f"thyroid-{name}.yaml").read_text())
    pod = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][label]
    assert "thyroid-patient-key" in [secret["secretName"] for secret in pod["secretAsEnv"]]
    assert pod["pvcMount"][0]["mountPath"] == "/data"
    known = pipeline["root"]["inputDefinitions"]["parameters"]
    assert {parameter for parameter, one in known.items() if not one.get("isOptional")} == required
    assert set(known) == {field.name for field in fields(options)} - elsewhere


def test_each_pipeline_is_submitted_by_its_name():
    for name in ("training", "sweep", "validate", "watch"):
        with submit.compiled(Placement(), name) as (_, specification):
            assert specification["pipelineInfo"]["name"] == f"thyroid-{name}"
