"""The compiled pipelines on a real API server: their objects, their schedule, and the pods of their steps."""

from pathlib import Path

import pytest
import yaml

from pipelines import __main__ as cli
from tests.support import ROOT, applied, pod_security
from tests.support.kubernetes import Namespace

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> Path:
    """The training, beside which the other pipelines and the Kubernetes objects are."""
    file = tmp_path_factory.mktemp("compiled") / "thyroid.yaml"
    options = ["--gcs-secret", "key", "--node-selector", "cloud.google.com/gke-accelerator=nvidia-l4"]
    assert cli.main(["compile", "--output", str(file), *options]) == 0
    return file


def test_the_pipelines_objects_are_kept_whole_and_change_nothing_again(namespace, compiled):
    objects = list(yaml.safe_load_all(compiled.with_name("thyroid-version.yaml").read_text()))
    assert [one["kind"] for one in objects] == ["Pipeline", "PipelineVersion"]
    applied.check(namespace, objects)


def test_the_pipelines_objects_are_small_enough_for_a_client_side_apply(namespace, compiled):
    """kubectl then notes the whole object in an annotation, of which the server takes 256 KB."""
    file = compiled.with_name("thyroid-version.yaml")
    assert "pipelineversion" in namespace.kubectl("apply", f"--filename={file}")
    assert "unchanged" in namespace.kubectl("apply", f"--filename={file}")


@pytest.fixture(params=["training", "watch"])
def schedule(request, tmp_path, namespace) -> dict:
    file = tmp_path / "schedule.yaml"
    given = ["scans=/data/scans", "registry=/data/registry"]
    if request.param == "watch":
        given = ["log=/data/decisions", "registry=/data/registry"]
    options = ["--cron", "0 30 2 * * *", "--pipeline", request.param, "--manifest", str(file), "--pipeline-id", "p1"]
    more = ["--namespace", namespace.name, "--service-account", "thyroid-pipeline", *(f"--set={one}" for one in given)]
    assert cli.main(["schedule", *options, *more]) == 0
    return yaml.safe_load(file.read_text())


def test_a_schedule_is_kept_whole_and_changes_nothing_again(namespace, schedule):
    applied.check(namespace, [schedule])


def test_a_schedule_needs_a_status(namespace, schedule):
    del schedule["status"]
    with pytest.raises(RuntimeError, match="status"):
        namespace.apply(yaml.safe_dump(schedule))


@pytest.fixture
def restricted(namespace) -> Namespace:
    """A namespace that takes only pods that are `restricted`, where the server has this admission."""
    namespace.server.kubectl("label", "namespace", namespace.name, f"{pod_security.ENFORCE}=restricted")
    namespace.apply(namespace.server.kubectl("kustomize", str(ROOT / "manifests" / "overlays" / "label")))
    return namespace


def tried(namespace: Namespace, pods: list[dict]) -> list[dict]:
    """The pods as the server would keep them. None is made."""
    return applied.items(namespace.apply(yaml.safe_dump_all(pods), "--dry-run=server", "--output=json"))


def test_the_steps_pods_are_admitted_and_kept_whole(restricted, compiled):
    names = ("thyroid", "thyroid-sweep", "thyroid-validate", "thyroid-watch")
    files = [compiled.with_name(f"{name}.yaml") for name in names]
    assert {*files} | {compiled.with_name("thyroid-version.yaml")} == {*compiled.parent.glob("*.yaml")}
    pods = [pod for file in files for pod in pod_security.steps(file, "thyroid-pipeline").values()]
    assert len(pods) > 20
    kept = tried(restricted, pods)
    assert [found for one, other in zip(pods, kept, strict=True) for found in applied.lost(one, other, "Pod")] == []


@pytest.mark.parametrize("folder", ["overlays/gpu", "overlays/label", "workbench"])
def test_the_manifests_pods_are_admitted_and_kept_whole(restricted, folder):
    path = ROOT / "manifests" / folder
    text = (
        (path / "pod.yaml").read_text() if folder == "workbench" else restricted.server.kubectl("kustomize", str(path))
    )
    found = pod_security.pods(yaml.safe_load_all(text))
    pods = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name.lower().replace(" ", "-")}, "spec": pod["spec"]}
        for name, pod in found.items()
    ]
    assert pods
    kept = tried(restricted, pods)
    assert [found for one, other in zip(pods, kept, strict=True) for found in applied.lost(one, other, "Pod")] == []


def test_the_server_refuses_other_pods_there(restricted):
    pod = {"metadata": {"name": "other"}, "spec": {"containers": [{"name": "other", "image": "x"}]}}
    try:
        tried(restricted, [{"apiVersion": "v1", "kind": "Pod"} | pod])
    except RuntimeError as error:
        refusal = str(error)
    else:
        pytest.skip("the server has no PodSecurity admission; tests/support/pod_security.py stands in for it")
    assert "violates PodSecurity" in refusal
