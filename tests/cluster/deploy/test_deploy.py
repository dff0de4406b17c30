"""A deployment on a real API server: fresh, again, updated, beside what others have set, and after an older release."""

import json

import pytest
import yaml
from kubernetes import client, config

from tests.support.deploying import Clients, owners
from thyroid.deploy import manifest
from thyroid.deploy.options import DeployOptions

pytestmark = pytest.mark.cluster


def test_a_fresh_deployment_then_again_then_an_update(place):
    said = place.deploy()
    live = place.settled()
    assert "InferenceService thyroid was created" in said
    assert f"answers its reference image as evaluated at http://thyroid-predictor.{place.namespace.name}.svc" in said
    assert live["spec"]["predictor"]["model"]["storageUri"] == place.uri(1)
    assert live["metadata"]["labels"]["thyroid/version"] == "1"
    assert owners(live) == {"thyroid": ["Apply"]}
    assert place.history(1) == ["sent", "proven"]

    said = place.deploy()
    assert "InferenceService thyroid is up to date" in said
    assert place.live()["metadata"] == live["metadata"]
    assert place.history(1) == ["sent", "proven"]

    place.release(2)
    with Clients(place) as clients:
        said = place.deploy()
    live = place.live()
    assert "InferenceService thyroid was updated" in said
    assert "was set to" not in said
    assert live["spec"]["predictor"]["model"]["storageUri"] == place.uri(2)
    assert live["metadata"]["labels"]["thyroid/version"] == "2"
    assert owners(live) == {"thyroid": ["Apply"]}
    assert place.history(2) == ["sent", "proven"]
    assert (clients.failures, set(clients.answers)) == ([], {1, 2})
    assert place.shares(3) == {2: 3}


def test_what_others_have_set_is_left_but_for_what_decides_which_model_answers(place, monkeypatch):
    place.deploy()
    place.patch({"metadata": {"labels": {"thyroid/version": "9"}, "annotations": {"team": "lab"}}})
    place.patch({"spec": {"predictor": {"minReplicas": 2}}}, "--field-manager=alice")
    place.patch({"spec": {"predictor": {"model": {"storageUri": "pvc://thyroid-data/other"}}}}, "--field-manager=bob")
    place.namespace.kubectl("apply", "--server-side", "--field-manager=argocd", "--filename=-", text=_additions())
    edit = "sed -i 's/runtime: thyroid$/runtime: other/'"
    monkeypatch.setenv("KUBE_EDITOR", edit)
    place.namespace.kubectl("edit", "inferenceservice", "thyroid")
    assert owners(place.live()).keys() == {"thyroid", "kubectl-patch", "alice", "bob", "argocd", "kubectl-edit"}

    said = place.deploy()
    live = place.settled()
    predictor = live["spec"]["predictor"]
    ports = [{"containerPort": 9000, "name": "extra", "protocol": "TCP"}]
    for note in (
        "spec.predictor.minReplicas was set to 2 by alice: left (a deployment would set 1)",
        "spec.predictor.model.env was set to [{'name': 'EXTRA', 'value': 'x'}] by argocd: left",
        f"spec.predictor.model.storageUri was set to 'pvc://thyroid-data/other' by bob: set to '{place.uri(1)}'",
        "spec.predictor.model.runtime was set to 'other' by kubectl-edit: set to 'thyroid'",
        "metadata.labels.thyroid/version was set to '9' by kubectl-patch: set to '1'",
        f"spec.predictor.model.ports was set to {ports} by argocd: left",
    ):
        assert note in said
    assert (predictor["minReplicas"], predictor["maxReplicas"]) == (2, 3)
    assert predictor["model"]["env"] == [{"name": "EXTRA", "value": "x"}]
    assert (predictor["model"]["storageUri"], predictor["model"]["runtime"]) == (place.uri(1), "thyroid")
    assert predictor["model"]["ports"] == ports
    assert live["metadata"]["labels"]["thyroid/version"] == "1"
    assert live["metadata"]["annotations"]["team"] == "lab"
    assert owners(live)["thyroid"] == ["Apply"]

    again = place.deploy()
    assert "InferenceService thyroid is up to date" in again
    assert "minReplicas was set to 2 by alice: left (a deployment would set 1)" in again
    assert "storageUri was set" not in again
    assert place.live()["metadata"] == live["metadata"]


def _additions() -> str:
    """What a tool of the lab has applied to the same object."""
    ports = [{"containerPort": 9000, "name": "extra"}]
    model = {"env": [{"name": "EXTRA", "value": "x"}], "ports": ports}
    body = {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "metadata": {"name": "thyroid"}}
    return json.dumps(body | {"spec": {"predictor": {"model": model}}})


def test_what_somebody_has_removed_comes_back(place):
    place.deploy()
    before = place.live()["spec"]
    paths = ("/spec/predictor/maxReplicas", "/spec/predictor/model/resources", "/metadata/labels/thyroid~1version")
    place.patch([{"op": "remove", "path": path} for path in paths])
    assert "maxReplicas" not in place.live()["spec"]["predictor"]
    place.deploy()
    assert place.live()["spec"] == before
    assert place.live()["metadata"]["labels"]["thyroid/version"] == "1"


def test_a_service_that_a_client_has_applied_by_itself_becomes_ours(place):
    """kubectl apply without --server-side, as Git tools do it."""
    wanted = manifest.inference_service(1, place.uri(1), DeployOptions())
    wanted["spec"]["predictor"]["minReplicas"] = 2
    place.namespace.kubectl("apply", "--filename=-", text=yaml.safe_dump(wanted))
    place.release(2)
    said = place.deploy()
    assert "minReplicas was set to 2 by kubectl-client-side-apply: left (a deployment would set 1)" in said
    assert "storageUri was set to" in said
    live = place.settled()
    wanted["spec"]["predictor"]["model"]["storageUri"] = place.uri(2)
    assert live["spec"] == wanted["spec"]
    assert "InferenceService thyroid is up to date" in place.deploy()
    assert place.live()["metadata"] == live["metadata"]


def test_a_service_of_the_release_before_is_taken_over(place):
    wanted = manifest.inference_service(1, place.uri(1), DeployOptions(), "ab12")
    wanted["spec"]["predictor"]["timeout"] = 77  # what that release had set, and this one does not
    wanted["metadata"]["annotations"]["thyroid/applied"] = json.dumps({"spec": wanted["spec"]})
    with config.new_client_from_config(str(place.server.kubeconfig)) as connection:
        client.CustomObjectsApi(connection).create_namespaced_custom_object(
            "serving.kserve.io", "v1beta1", place.namespace.name, "inferenceservices", wanted
        )
    assert owners(place.live()) == {"OpenAPI-Generator": ["Update"]}
    place.patch({"spec": {"predictor": {"minReplicas": 2}}})

    place.release(2)
    said = place.deploy()
    live = place.settled()
    assert "minReplicas was set to 2 by kubectl-patch: left (a deployment would set 1)" in said
    assert said.count("was set to") == 1
    assert owners(live) == {"thyroid": ["Apply"], "kubectl-patch": ["Update"]}
    assert "thyroid/applied" not in live["metadata"]["annotations"]
    assert live["spec"]["predictor"]["model"]["storageUri"] == place.uri(2)
    assert (live["spec"]["predictor"]["minReplicas"], live["spec"]["predictor"].get("timeout")) == (2, None)
    assert "InferenceService thyroid is up to date" in place.deploy()
    assert place.live()["metadata"] == live["metadata"]


def test_knative_mode_with_a_canary(place):
    said = place.deploy("--min-replicas", "0")
    live = place.live()
    assert live["status"]["deploymentMode"] == "Knative"
    assert f"at http://thyroid.{place.namespace.name}.svc.cluster.local" in said

    place.release(2)
    with Clients(place) as clients:
        said = place.deploy("--min-replicas", "0", "--canary", "25")
    assert f"at http://latest-thyroid-predictor.{place.namespace.name}.svc.cluster.local" in said
    assert place.live()["spec"]["predictor"]["canaryTrafficPercent"] == 25
    assert place.shares(8) == {1: 6, 2: 2}
    assert place.history(2) == ["sent", "proven"]

    place.deploy("--min-replicas", "0")
    assert "canaryTrafficPercent" not in place.live()["spec"]["predictor"]
    place.until_shares({2: 4})
    assert clients.failures == []
    assert owners(place.live()) == {"thyroid": ["Apply"]}
