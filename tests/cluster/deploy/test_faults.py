"""What a real API server refuses, models that fail, and several writers at once."""

import json
import time
from collections.abc import Iterator

import pytest

from tests.support.deploying import DAMAGED, WRONG, Clients, owners, until
from tests.support.kserve_network import Webhook

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize(
    ("version", "why", "answers"),
    [(WRONG, "answers the reference image with", {1, WRONG}), (DAMAGED, "ModelLoadFailed: ", {1})],
)
def test_a_version_that_fails_is_taken_back_and_no_request_is_lost(place, version, why, answers):
    place.deploy()
    before = place.live()
    place.release(version)
    with Clients(place) as clients:
        said = place.deploy(code=2)
        place.until_shares({1: 3})
    assert f"version {version} is not served: " in said
    assert why in said
    assert "InferenceService thyroid was restored; the champion is version 1" in said
    live = place.live()
    assert (live["spec"], live["metadata"]["labels"]) == (before["spec"], before["metadata"]["labels"])
    assert owners(live) == {"thyroid": ["Apply"]}
    assert clients.failures == []
    assert set(clients.answers) <= answers
    assert (place.registry.champion(), place.history(version)) == (1, ["sent"])
    assert version in place.registry.refuted()
    assert "is up to date" in place.deploy()


def test_what_others_have_set_outlives_a_version_that_is_taken_back(served):
    place = served
    place.patch({"spec": {"predictor": {"minReplicas": 2}}})
    before = place.live()
    place.release(WRONG)
    place.deploy(code=2)
    assert place.live()["spec"] == before["spec"]
    place.namespace.kubectl(
        "patch", "inferenceservice", "thyroid", "--type=merge", '--patch={"spec":{"predictor":{"minReplicas":3}}}'
    )
    said = place.deploy()
    assert "minReplicas was set to 3 by kubectl-patch: left (a deployment would set 1)" in said


def test_the_first_version_of_all_is_removed_if_it_fails(place):
    place.release(DAMAGED)
    said = place.deploy(code=2)
    assert "InferenceService thyroid was removed" in said
    until(lambda: place.live() is None)
    assert place.registry.champion() == 1


def test_an_account_without_the_role_changes_nothing(served):
    place = served
    before = place.state()
    said = place.deploy(code=2, account="default", patience=1.0)
    assert "the account needs the role in manifests/base/rbac.yaml" in said
    assert "403" in said
    assert place.state() == before


def test_a_canary_without_the_right_to_read_routes_changes_nothing(served):
    place = served
    role = place.namespace.objects("roles", "thyroid-deploy")
    rules = [rule for rule in role["rules"] if rule["resources"] != ["httproutes"]]
    subject = {"kind": "ServiceAccount", "name": "limited"}
    rbac = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "limited"}}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "limited"}
    for one in (
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "limited"}},
        rbac | {"kind": "Role", "rules": rules},
        rbac | {"kind": "RoleBinding", "roleRef": reference, "subjects": [subject]},
    ):
        place.namespace.apply(json.dumps(one))
    before = place.state()
    said = place.deploy("--canary", "25", code=2, account="limited", patience=1.0)
    assert "httproutes" in said
    assert "the account needs the role in manifests/base/rbac.yaml" in said
    assert place.state() == before
    place.deploy(account="limited")


def test_a_quota_is_told_at_once(place):
    place.namespace.limit({"count/inferenceservices.serving.kserve.io": "0"})
    try:
        said = place.deploy(code=2, patience=30.0)
    finally:
        place.namespace.kubectl("delete", "resourcequota", "test")
    assert "exceeded quota" in said
    assert "raise the ResourceQuota, or free some of it" in said
    assert "rbac.yaml" not in said
    assert place.live() is None
    assert place.registry.champion() == 1
    until(lambda: not place.namespace.objects("resourcequotas"))
    place.deploy()


def test_a_service_that_is_being_deleted_is_waited_for(served):
    place = served
    place.patch({"metadata": {"finalizers": ["test.example.com/hold", *place.live()["metadata"]["finalizers"]]}})
    place.namespace.kubectl("delete", "inferenceservice", "thyroid", "--wait=false")
    uid = place.live()["metadata"]["uid"]

    never = place.deploy(code=2, more="rollout._DELETION_SECONDS = 1.0")
    assert "test.example.com/hold" in never
    assert "check the log of their controller, then run the deployment again" in never
    assert place.history(2) == []

    running = place.start()
    running.wait_for("kept by its finalizers")
    place.patch({"metadata": {"finalizers": None}})
    assert "InferenceService thyroid was created" in running.end()
    assert place.live()["metadata"]["uid"] != uid
    assert place.history(2) == ["sent", "proven"]


def test_an_edit_between_reading_and_writing_is_seen(served):
    place, edited = served, 0
    running = place.stepping()
    for step in running.steps():
        if step == "before PATCH inferenceservices/thyroid" and not edited:
            edited += 1
            place.patch({"spec": {"predictor": {"minReplicas": 2}}})
    said = running.end()
    assert edited == 1
    assert "minReplicas was set to 2 by kubectl-patch: left (a deployment would set 1)" in said
    assert place.live()["spec"]["predictor"]["minReplicas"] == 2
    assert place.live()["spec"]["predictor"]["model"]["storageUri"] == place.uri(2)


def test_a_deletion_during_the_proof_decides_nothing(served):
    place, running = served, served.stepping("--timeout", "3")
    for step in running.steps():
        if step == "after PATCH inferenceservices/thyroid":
            place.namespace.kubectl("delete", "inferenceservice", "thyroid", "--wait=false")
    said = running.end(2)
    assert "was deleted in the meantime" in said
    assert "no decision was made: run the deployment again" in said
    assert (place.registry.champion(), place.history(2)) == (2, ["sent"])
    place.deploy()
    assert place.history(2) == ["sent", "proven"]


@pytest.mark.parametrize(
    ("phase", "why"),
    [
        ("before PATCH", "version 1 is the champion by now; version 2 was given up"),
        ("after PATCH", "version 1 answers instead of 2; InferenceService thyroid was left to whoever has changed it"),
    ],
)
def test_of_two_deployments_at_once_the_present_champion_wins(served, phase, why):
    """The one of version 2 stands still while version 1 becomes the champion again and is deployed."""
    place, other = served, ""
    running = place.stepping("--timeout", "2")
    for step in running.steps():
        if step.startswith(phase) and not other:
            place.release(1)
            other = place.deploy("--min-replicas", "2")
    assert why in running.end(2)
    assert "answers its reference image as evaluated" in other
    assert place.registry.champion() == 1
    assert place.live()["metadata"]["labels"]["thyroid/version"] == "1"
    assert place.live()["spec"]["predictor"]["minReplicas"] == 2
    place.until_shares({1: 3})


@pytest.fixture
def webhook(own_server, served, tmp_path) -> Iterator[Webhook]:
    with Webhook(own_server.kubeconfig, served.namespace.name, tmp_path) as one:
        yield one


def test_the_reason_of_kserves_webhook_is_told_at_once(served, webhook):
    before = served.state()
    webhook.refuse, begun = "not on a Friday", time.monotonic()
    said = served.deploy(code=2, patience=600.0)
    assert time.monotonic() - begun < 300
    assert "denied the request: not on a Friday" in said
    assert "rbac.yaml" not in said
    after = served.state()
    assert (after["service"], after["champion"]) == (before["service"], 2)
    webhook.refuse = ""
    served.deploy()
    assert served.history(2) == ["sent", "proven"]


def test_the_mode_of_a_service_does_not_change(served, webhook):
    before = served.state()
    said = served.deploy("--min-replicas", "0", code=2)
    assert "deploymentMode cannot be changed from 'Standard' to 'Knative'" in said
    assert served.state()["service"] == before["service"]
    assert served.registry.champion() == 2
