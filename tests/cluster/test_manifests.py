"""The manifests on a real API server: every object is accepted and kept whole, and a second time changes nothing."""

import json
import os
from pathlib import Path

import pytest
import yaml

from tests.support import ROOT, applied
from tests.support.kubernetes import ApiServer, Namespace

pytestmark = pytest.mark.cluster

MANIFESTS = ROOT / "manifests"
FOLDERS = sorted(
    file.parent.relative_to(MANIFESTS).as_posix()
    for folder in ("overlays", "service")
    for file in (MANIFESTS / folder).glob("*/kustomization.yaml")
)
OTHERS = {"PrometheusRule", "AuthorizationPolicy", "Trigger", "EventSource", "Sensor"}
"""Kinds that come with Prometheus, Istio, Knative Eventing and Argo Events, which a cluster may lack."""
SERVING, ROUTES, ARGO, CORE = "serving.kserve.io", "gateway.networking.k8s.io", "argoproj.io", ""
RIGHTS = {
    # the deploy step
    (SERVING, "inferenceservices", "create", ""),
    *((SERVING, "inferenceservices", verb, "thyroid") for verb in ("get", "patch", "delete")),
    *((SERVING, "servingruntimes", "get", f"thyroid{gpu}{mode}") for gpu in ("", "-gpu") for mode in ("", "-knative")),
    (ROUTES, "httproutes", "get", "thyroid"),
    (CORE, "pods", "list", ""),
    # Kubeflow's executor and launcher
    (ARGO, "workflowtaskresults", "create", ""),
    (ARGO, "workflowtaskresults", "patch", ""),
    (CORE, "pods", "get", ""),
    (CORE, "pods", "patch", ""),
    (CORE, "configmaps", "get", "kfp-launcher"),
    (CORE, "secrets", "get", "mlpipeline-minio-artifact"),
}
"""All that the pipeline's account may do: group, resource, verb, and the object's name or nothing for any."""


def rendered(server: ApiServer, folder: Path) -> list[dict]:
    """The objects of a kustomization, but for those of `OTHERS` that the cluster does not know."""
    known = {line.split()[-1] for line in server.kubectl("api-resources", "--no-headers").splitlines()}
    objects = list(yaml.safe_load_all(server.kubectl("kustomize", str(folder))))
    return [one for one in objects if one["kind"] in known or one["kind"] not in OTHERS]


@pytest.fixture(scope="module")
def shared(server):
    """One namespace for what the manifests put into it in turn, as somebody does who changes his mind."""
    one = Namespace(server)
    yield one
    one.remove()


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_kustomization_is_kept_whole_and_changes_nothing_again(shared, folder):
    applied.check(shared, rendered(shared.server, MANIFESTS / folder))


def test_the_components_that_no_overlay_has_are_kept_whole_and_change_nothing_again(shared, tmp_path):
    files = [yaml.safe_load(file.read_text()) for file in MANIFESTS.rglob("kustomization.yaml")]
    named = {Path(component).name for file in files for component in file.get("components", ())}
    others = sorted({folder.name for folder in (MANIFESTS / "components").iterdir()} - named)
    assert {"decision-log", "decision-events", "alerts"} <= {*others}
    manifests = os.path.relpath(MANIFESTS, tmp_path)
    content = {
        "resources": [f"{manifests}/overlays/gpu"],
        "components": [f"{manifests}/components/{name}" for name in others],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(content))
    applied.check(shared, rendered(shared.server, tmp_path))


def test_the_workbench_is_kept_whole_and_changes_nothing_again(shared):
    applied.check(shared, list(yaml.safe_load_all((MANIFESTS / "workbench" / "pod.yaml").read_text())))


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("v1 ConfigMap", {"dataa": {}}),
        ("networking.k8s.io/v1 NetworkPolicy", {"spec": {"podSelector": {}, "engress": []}}),
        ("serving.kserve.io/v1alpha1 ServingRuntime", {"spec": {"containers": [], "protocolVersion": ["v2"]}}),
    ],
)
def test_an_unknown_field_is_refused(shared, kind, content):
    """Else the other tests would show little."""
    version, kind = kind.split()
    wrong = {"apiVersion": version, "kind": kind, "metadata": {"name": "wrong"}} | content
    with pytest.raises(RuntimeError, match=r"unknown field.*(dataa|engress|protocolVersion)"):
        shared.apply(json.dumps(wrong))


def may(namespace: Namespace, account: str, where: str = "") -> set[tuple[str, str, str, str]]:
    """All that an account may do in a namespace, as the server says to the account itself."""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": where or namespace.name},
    }
    answer = namespace.kubectl(
        f"--kubeconfig={namespace.account(account)}",
        "create", "--raw=/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", "--filename=-",
        text=json.dumps(review),
    )  # fmt: skip
    return {
        (group, resource, verb, name)
        for rule in json.loads(answer)["status"]["resourceRules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames") or [""]
        if group not in ("authorization.k8s.io", "authentication.k8s.io")  # to ask this is everybody's right
    }


def test_the_pipeline_may_do_what_it_does_and_nothing_else(namespace):
    assert may(namespace, "thyroid-pipeline") == RIGHTS
    assert may(namespace, "thyroid-pipeline", "default") == set()


@pytest.mark.parametrize("account", ["thyroid-serve", "thyroid-web", "thyroid-label"])
def test_what_serves_may_do_nothing(shared, account):
    applied.check(shared, rendered(shared.server, MANIFESTS / "overlays" / "label"))
    assert may(shared, account) == set()


def test_the_rights_hold_for_requests(namespace):
    """With the token of the account, not by asking what it might do."""
    token = f"--kubeconfig={namespace.account('thyroid-pipeline')}"
    with pytest.raises(RuntimeError, match="NotFound"):
        namespace.kubectl(token, "get", "inferenceservice", "thyroid")
    assert "thyroid" in namespace.kubectl(token, "get", "servingruntime", "thyroid", "--output=name")
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "own"}, "spec": {"containers": []}}
    for refused in (
        ["get", "secrets"],
        ["get", "secret", "thyroid-token"],
        ["get", "inferenceservices"],
        ["delete", "inferenceservice", "other"],
        ["create", "--filename=-"],
        ["--namespace=default", "get", "pods"],
    ):
        with pytest.raises(RuntimeError, match=r"\(Forbidden\)"):
            namespace.kubectl(token, *refused, text=json.dumps(pod))
