"""Deployment against an API server that checks and keeps what it is sent, and fails when it is told to."""

import base64
import os
import socket
import urllib.request
from pathlib import Path

import pytest
import yaml

from tests.support import hub as kubeflow_hub
from tests.support import toy_artefact
from tests.support.cluster import CHANGED, Cluster
from thyroid.deploy import cluster as api
from thyroid.deploy import deploy, manifest, proof, rollout
from thyroid.deploy.__main__ import main
from thyroid.deploy.options import DeployOptions
from thyroid.errors import InputError
from thyroid.model.artefact import Artefact
from thyroid.records.gate import GateRecord
from thyroid.registry.hub import hub
from thyroid.registry.registry import Registry
from thyroid.storage import Location, volume

REFERENCE = {"B": 0.2, "M": 0.8}


def gate(decision: str, champion: int | None) -> GateRecord:
    reasons = ["AUROC is not shown to be as good"] if decision == "refused" else []
    return toy_artefact.gate(decision, champion, reasons)


def register(root: Location, folder: Path, decision: str = "promoted") -> int:
    folder.mkdir(exist_ok=True)
    (folder / "model.keras").write_bytes(os.urandom(8))  # another model each time
    (folder / "reference.jpg").write_bytes(b"picture")
    described = toy_artefact.description({"openvino-f32": 1e-5}, reference=REFERENCE, data_digest="ab12")
    Artefact.describe(folder, described)
    return Registry(root).publish(folder, gate(decision, Registry(root).champion())).version


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A registry with a champion, on what stands for the pipeline's volume."""
    monkeypatch.setattr(volume, "MOUNT", str(tmp_path / "data"))
    monkeypatch.setattr(proof, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(rollout, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(api, "_PAUSE", 0.02)
    root = tmp_path / "data" / "registry"
    root.mkdir(parents=True)
    register(root, tmp_path / "artefact")
    return root


@pytest.fixture
def cluster(root, tmp_path, monkeypatch):
    """A cluster with our ServingRuntimes, whose endpoint answers as the champion was evaluated."""
    running = Cluster()
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(running.kubeconfig(tmp_path)))
    monkeypatch.delenv("THYROID_TOKEN", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    for name in ("thyroid", "thyroid-gpu", "thyroid-knative", "thyroid-gpu-knative"):
        running.put("servingruntimes", {"metadata": {"name": name}, "spec": {}})
    running.answer = right
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture
def inside(cluster, monkeypatch) -> None:
    """The deployment runs in a pod, which reaches the cluster's Services. KServe has made its HTTPRoute."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setenv("http_proxy", cluster.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(urllib.request, "_opener", None)  # it keeps the proxy of its first use
    cluster.put("httproutes", {"metadata": {"name": "thyroid"}, "spec": {}})


@pytest.fixture
def impatient(monkeypatch) -> None:
    monkeypatch.setattr(api, "_PATIENCE", 0.1)


FOR_EVER = 10_000
"""Refusals that are more than any deployment asks for."""


def run(root: Path, version: int | None = None, timeout: float = 60, **options) -> deploy.Deployed:
    options = DeployOptions(namespace="lab", timeout=timeout, **options)
    return deploy.deploy(root, version, root.parent / "manifest.yaml", options)


def shortly(root: Path, **options) -> deploy.Deployed:
    """As `run`, where nothing is to be waited for."""
    return run(root, timeout=0.2, **options)


def right(version: int) -> dict:
    return {"probability": REFERENCE, "model_version": version}


def wrong(version: int) -> dict:
    return {"probability": {"B": 0.7, "M": 0.3}, "model_version": version}


def away(_: int) -> dict:
    """What a pod that is away for a moment answers."""
    return {"error": 503}


def stay_away(cluster) -> None:
    """Let the endpoint be ready at the first look and never answer, however slow the machine of this test is."""
    cluster.looks_until_ready = 0
    cluster.answer = away


def second(root: Path, **options) -> None:
    """Deploy the first version, and register the second one."""
    run(root, **options)
    assert register(root, root.parents[1] / "artefact") == 2


def third(root: Path) -> None:
    assert register(root, root.parents[1] / "artefact") == 3


def served(cluster: Cluster) -> dict:
    return cluster.objects["inferenceservices", "thyroid"]


def version(cluster: Cluster) -> int:
    """The version that the InferenceService names, which its label names, too."""
    number = served(cluster)["spec"]["predictor"]["model"]["storageUri"].rpartition("/thyroid/")[2]
    assert served(cluster)["metadata"]["labels"]["thyroid/version"] == number
    return int(number)


def shares(cluster: Cluster) -> dict[str, int]:
    return {one["predictor"]["name"]: one["trafficPercent"] for one in served(cluster)["spec"].get("canary", [])}


def champion(root: Location) -> int | None:
    return Registry(root).champion()


def test_first_deployment_and_that_again_changes_nothing(cluster, root):
    done = run(root)
    assert (done.status, done.url) == ("deployed", f"{cluster.url}/thyroid-predictor")
    assert version(cluster) == 1
    body = served(cluster)
    assert body["spec"]["predictor"]["model"]["storageUri"] == "pvc://thyroid-data/registry/thyroid/1"
    ((question, token),) = cluster.questions
    assert base64.b64decode(question["instances"][0]["image"]["b64"]) == b"picture"
    assert token is None
    written = yaml.safe_load((root.parent / "manifest.yaml").read_text())
    assert [written[key] for key in ("spec", "kind")] == [body[key] for key in ("spec", "kind")]
    before = served(cluster)
    assert len(run(root).notes) == 1
    assert served(cluster) == before


def test_in_a_pod_the_namespace_and_the_address_are_the_clusters(cluster, root, inside, tmp_path, monkeypatch):
    (tmp_path / "namespace").write_text("lab")
    monkeypatch.setattr(deploy, "_OWN_NAMESPACE", tmp_path / "namespace")
    done = deploy.deploy(root, None, tmp_path / "manifest.yaml", DeployOptions(timeout=60))
    assert done.url == "http://thyroid-predictor.lab.svc.cluster.local"
    assert cluster.asked == ["thyroid-predictor"]


def test_the_next_champion_replaces_it_and_the_new_generation_is_waited_for(cluster, root):
    second(root)
    cluster.looks_until_ready = 4
    run(root, 2)
    assert served(cluster)["metadata"]["generation"] == 2
    assert version(cluster) == 2
    assert len(cluster.questions) >= 3, "meanwhile the old generation is Ready and answers"
    assert cluster.serving == {"thyroid-predictor": 2}


def test_a_refused_version_deploys_nothing(cluster, root, tmp_path, capsys):
    run(root)
    before = len(cluster.writes)
    assert register(root, tmp_path / "artefact", "refused") == 2
    done = run(root, 2)
    assert (done.status, done.version) == ("kept champion", 1)
    assert done.notes == ["AUROC is not shown to be as good"]
    assert len(cluster.writes) == before
    assert capsys.readouterr().out.endswith("kept champion: version 1 stays\n  AUROC is not shown to be as good\n")


def test_a_first_version_that_is_refused(root, tmp_path):
    other = tmp_path / "data" / "other"
    other.mkdir()
    version = register(other, tmp_path / "artefact", "refused")
    assert run(other, version).status == "kept champion"


def test_a_wrong_answer_brings_back_what_was_there_and_a_retry_fails_too(cluster, root):
    second(root)
    before = served(cluster)["spec"]
    cluster.answer = wrong
    with pytest.raises(InputError, match=r"0\.7.*0\.8.*InferenceService"):
        run(root, 2)
    assert served(cluster)["spec"] == before
    assert version(cluster) == 1
    assert Registry(root).read_aliases() == {"candidate": 2, "champion": 1, "anchor": 1}
    assert Registry(root).history()[-1]["by"] == "deploy"
    assert list(Registry(root).refuted()) == [2]
    with pytest.raises(InputError, match=r"0\.7.*InferenceService"):
        run(root, 2)


def test_a_refuted_version_does_not_come_back_when_the_good_one_fails_for_a_moment(cluster, root):
    test_a_wrong_answer_brings_back_what_was_there_and_a_retry_fails_too(cluster, root)
    aliases, before = Registry(root).read_aliases(), len(cluster.writes)
    stay_away(cluster)
    for _ in range(2):
        with pytest.raises(InputError, match="503"):
            shortly(root)
    assert version(cluster) == 1
    assert len(cluster.writes) == before + 2, "there is nothing to put back"
    assert Registry(root).read_aliases() == aliases
    cluster.answer = right
    assert run(root).status == "deployed"


def test_a_deployment_that_is_taken_back_is_told_once(cluster, root, receiver):
    second(root)
    assert not receiver.got, "what goes well is not told"
    cluster.answer = wrong
    for _ in range(3):
        with pytest.raises(InputError):
            run(root, 2)
    (told,) = receiver.messages
    assert told.event == "deployment.taken_back"
    assert told.sentence == "The deployment of version 2 failed and was taken back. The champion is version 1."
    assert told.version == 2


def test_an_attempt_that_was_killed_before_it_told_is_told_by_the_next(cluster, root, receiver, monkeypatch):
    second(root)
    cluster.answer = wrong
    with monkeypatch.context() as patched:
        patched.setattr(deploy, "_tell", lambda *_, **given: None)
        with pytest.raises(InputError):
            run(root, 2)
    with pytest.raises(InputError):
        run(root, 2)
    assert receiver.events == ["deployment.taken_back"]


def test_a_registry_that_cannot_be_read_for_a_message_changes_no_outcome(cluster, root, receiver, monkeypatch):
    second(root)
    tell = deploy._tell

    def away(registry, artefact, **given):
        with monkeypatch.context() as patched:
            patched.setattr(type(registry), "champion", fail)
            tell(registry, artefact, **given)

    def fail(_):
        raise InputError("the bucket is away")

    monkeypatch.setattr(deploy, "_tell", away)
    assert run(root, 2).status == "deployed"
    cluster.answer = wrong
    third(root)
    with pytest.raises(InputError, match="is not served"):
        run(root, 3)


def test_a_version_that_is_served_after_all_is_told(cluster, root, receiver):
    stay_away(cluster)
    with pytest.raises(InputError, match="503"):
        shortly(root)
    cluster.answer = right
    run(root)
    run(root)
    assert receiver.events == ["deployment.taken_back", "deployment.served"]


def test_where_nothing_was_taken_back_nothing_is_told(cluster, root, receiver, impatient):
    run(root)
    stay_away(cluster)
    with pytest.raises(InputError, match="503"):
        shortly(root)
    assert version(cluster) == 1
    assert not receiver.got


def test_other_options_that_fail_refute_no_version_that_has_proven_itself(cluster, root):
    second(root)
    run(root, 2)
    before = served(cluster)["spec"]
    stay_away(cluster)
    with pytest.raises(InputError, match="503"):
        shortly(root, serving_gpu=True)
    assert served(cluster)["spec"] == before
    assert champion(root) == 2


def refuted_and_not_put_back(cluster, root, **options) -> None:
    """Send a second version whose answer is wrong, at a moment at which nothing can be put back."""
    second(root)

    def then_refused(asked: int) -> dict:
        if asked == 2:
            cluster.refuse["PATCH", "inferenceservices"] = [(422, "no")]
        return wrong(asked)

    cluster.answer = then_refused
    with pytest.raises(InputError, match=r"422.*\b1$"):
        run(root, 2, **options)


def test_what_the_cluster_had_is_not_put_back_where_it_was_refuted(cluster, root):
    refuted_and_not_put_back(cluster, root)
    assert version(cluster) == 2
    third(root)
    cluster.answer = wrong
    with pytest.raises(InputError, match=r"\b3\b.*\b1$"):
        run(root, 3)
    assert version(cluster) == 1
    assert "thyroid/data-digest" not in served(cluster)["metadata"]["annotations"]
    assert list(Registry(root).refuted()) == [2, 3]


def test_where_there_is_nothing_to_go_back_to_what_was_sent_stays_and_that_is_said(cluster, root):
    refuted_and_not_put_back(cluster, root)
    stay_away(cluster)
    with pytest.raises(InputError, match=r"503.*InferenceService"):
        shortly(root)
    assert version(cluster) == champion(root) == 1


def test_a_version_that_has_proven_itself_is_not_refuted_where_it_is_made_anew(cluster, root):
    second(root)
    run(root, 2)
    cluster.delete("inferenceservices", "thyroid")
    stay_away(cluster)
    with pytest.raises(InputError, match="503"):
        shortly(root)
    assert ("inferenceservices", "thyroid") not in cluster.objects
    assert Registry(root).read_aliases() == {"candidate": 2, "champion": 2, "previous": 1, "anchor": 1}


def test_a_champion_before_that_is_damaged_does_not_hide_why_the_deployment_failed(cluster, root):
    second(root)
    (root / "thyroid" / "1" / "model.keras").write_bytes(b"")
    cluster.answer = wrong
    with pytest.raises(InputError, match=r"0\.7.*model\.keras"):
        run(root, 2)


def test_a_first_deployment_that_fails_leaves_nothing(cluster, root):
    cluster.answer = wrong
    with pytest.raises(InputError, match=r"0\.7"):
        run(root)
    assert ("inferenceservices", "thyroid") not in cluster.objects


def test_edits_by_hand_are_left_and_told_by_owner_but_for_the_model(cluster, root):
    second(root)
    mine = [{"name": "MINE", "value": "1"}]
    cluster.edit("spec.predictor.minReplicas", 5)
    cluster.edit("spec.predictor.model.env", mine)
    cluster.edit("spec.predictor.model.storageUri", "gs://elsewhere/model", "console")
    cluster.edit("spec.predictor.model.protocolVersion", None)
    cluster.edit("metadata.labels.thyroid/version", "0")
    cluster.edit("metadata.labels.team", "lab")
    notes = run(root, 2).notes
    predictor = served(cluster)["spec"]["predictor"]
    assert version(cluster) == 2
    assert (predictor["minReplicas"], predictor["model"]["env"]) == (5, mine)
    assert predictor["model"]["protocolVersion"] == "v2"
    assert served(cluster)["metadata"]["labels"]["team"] == "lab"
    told = {note.split(" ")[0]: note for note in notes[:-1]}
    fields = (f"spec.predictor.{name}" for name in ("minReplicas", "model.env", "model.storageUri"))
    assert sorted(told) == ["metadata.labels.thyroid/version", *fields]
    assert "kubectl-edit" in told["spec.predictor.minReplicas"]
    assert "'gs://elsewhere/model' by console" in told["spec.predictor.model.storageUri"]
    again = run(root).notes
    assert len(again) == 3, "what was forced is ours now, the rest is told again"


def test_a_map_whose_fields_are_all_ours_now_is_sent(cluster, root):
    second(root)
    emptied = {"f:metadata": {"f:labels": {}}, "f:spec": {"f:predictor": {"f:model": {".": {}}}}}
    row = {"manager": "kubectl", "operation": "Update", "apiVersion": "serving.kserve.io/v1beta1"}
    served(cluster)["metadata"]["managedFields"].append(row | {"fieldsType": "FieldsV1", "fieldsV1": emptied})
    assert len(run(root, 2).notes) == 1
    assert version(cluster) == 2


def test_edits_by_hand_outlive_a_deployment_that_is_taken_back(cluster, root):
    second(root)
    cluster.edit("spec.predictor.minReplicas", 5)
    cluster.answer = wrong
    with pytest.raises(InputError, match=r"0\.7"):
        run(root, 2, serving_gpu=True)
    assert "tolerations" not in served(cluster)["spec"]["predictor"]
    cluster.answer = right
    run(root)
    assert (version(cluster), served(cluster)["spec"]["predictor"]["minReplicas"]) == (1, 5)


@pytest.mark.parametrize("manager", ["OpenAPI-Generator", "kubectl-create"])
def test_one_that_an_older_release_or_somebody_else_has_made_is_taken_over(cluster, root, manager):
    """Only what the older release has sent changes without a word."""
    body = manifest.inference_service(0, "gs://elsewhere/model", DeployOptions())
    body["spec"]["predictor"] |= {"maxReplicas": 9, "canaryTrafficPercent": 10}
    body["metadata"]["annotations"]["thyroid/applied"] = "{}"
    cluster.put("inferenceservices", body, manager)
    cluster.edit("spec.predictor.minReplicas", 2)
    notes = run(root).notes
    assert version(cluster) == 1
    predictor, annotations = served(cluster)["spec"]["predictor"], served(cluster)["metadata"]["annotations"]
    ours = manager == "OpenAPI-Generator"
    assert (predictor["minReplicas"], predictor["maxReplicas"]) == (2, 3 if ours else 9)
    assert ("thyroid/applied" in annotations) == ("canaryTrafficPercent" in predictor) == (not ours)
    assert any("minReplicas" in note and "kubectl-edit" in note for note in notes)
    assert any(manager in note for note in notes) == (not ours)


def test_one_that_an_older_release_has_changed_since_is_taken_over_again(cluster, root):
    run(root)
    for path, value in (("metadata.annotations.thyroid/applied", "{}"), ("spec.predictor.maxReplicas", 9)):
        cluster.edit(path, value, "OpenAPI-Generator")
    assert len(run(root).notes) == 1
    assert served(cluster)["spec"]["predictor"]["maxReplicas"] == 3
    assert "thyroid/applied" not in served(cluster)["metadata"]["annotations"]


def test_the_labels_of_kubeflow_hub_are_those_of_the_version(cluster, root, monkeypatch):
    second(root)
    monkeypatch.setenv(hub.TOKEN, kubeflow_hub.TOKEN)
    with kubeflow_hub.running(kubeflow_hub.ALPHA) as one:
        known = hub.enter(Registry(root), one.url)
    label = "modelregistry.kubeflow.org/model-version-id"
    run(root, 2)
    assert served(cluster)["metadata"]["labels"][label] == known.versions["2"]
    Registry(root).roll_back("too slow", "somebody")
    run(root)
    assert served(cluster)["metadata"]["labels"][label] == known.versions["1"]


def test_changed_options_are_applied(cluster, root):
    run(root)
    run(root, serving_gpu=True)
    predictor = served(cluster)["spec"]["predictor"]
    assert predictor["model"]["runtime"] == "thyroid-gpu"
    assert predictor["model"]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    run(root)
    assert "tolerations" not in served(cluster)["spec"]["predictor"]
    assert "nvidia.com/gpu" not in served(cluster)["spec"]["predictor"]["model"]["resources"]["limits"]


@pytest.mark.parametrize("where", ["outside", "inside"])
def test_canary_in_knative_mode(cluster, root, where, request):
    second(root, min_replicas=0)
    hosts = {"outside": cluster.url + "/latest-thyroid-predictor"}
    hosts["inside"] = "http://latest-thyroid-predictor.lab.svc.cluster.local"
    if where == "inside":
        request.getfixturevalue("inside")
    assert run(root, 2, min_replicas=0, canary=10).url == hosts[where]
    assert served(cluster)["spec"]["predictor"]["canaryTrafficPercent"] == 10
    assert cluster.asked[-1] == "latest-thyroid-predictor"
    run(root, min_replicas=0)
    assert "canaryTrafficPercent" not in served(cluster)["spec"]["predictor"]


def test_canary_in_standard_mode(cluster, root, inside):
    """It has its own server, which has proven itself before it gets a share, and it is promoted by the next release."""
    second(root)
    done = run(root, 2, canary=10)
    assert done.url == "http://thyroid-v2-predictor.lab.svc.cluster.local"
    assert cluster.asked[-1] == "thyroid-v2-predictor"
    assert (version(cluster), shares(cluster)) == (1, {"v2": 10})
    assert run(root, 2, canary=10).status == "deployed"
    assert run(root, 2, canary=30).status == "deployed"
    sent = [body["spec"]["canary"][0]["trafficPercent"] for _, body in cluster.writes if "canary" in body["spec"]]
    assert sent == [0, 10, 10, 10, 10, 30], "it never goes back"
    assert run(root, 2).status == "deployed"
    assert (version(cluster), shares(cluster)) == (2, {})


def test_a_canary_that_was_refuted_does_not_come_back(cluster, root, inside):
    refuted_and_not_put_back(cluster, root, canary=10)
    assert shares(cluster) == {"v2": 0}
    third(root)
    cluster.answer = wrong
    with pytest.raises(InputError, match=r"\b3\b.*\b1$"):
        run(root, 3)
    assert (version(cluster), shares(cluster)) == (1, {})


def test_a_promotion_that_fails_for_a_moment_brings_the_canary_back(cluster, root, inside):
    second(root)
    run(root, 2, canary=10)
    stay_away(cluster)
    with pytest.raises(InputError, match="503"):
        shortly(root)
    assert (version(cluster), shares(cluster)) == (1, {"v2": 10})
    assert champion(root) == 2


def test_what_a_canary_needs_is_said_before_anything_is_sent(cluster, root, inside, monkeypatch):
    with pytest.raises(InputError, match="canary"):
        run(root, canary=10)
    second(root)
    before, history = len(cluster.writes), Registry(root).history()
    route = cluster.objects.pop(("httproutes", "thyroid"))
    with pytest.raises(InputError, match="Gateway API"):
        run(root, 2, canary=10)
    cluster.put("httproutes", route)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    with pytest.raises(InputError, match="workbench"):
        run(root, 2, canary=10)
    assert len(cluster.writes) == before
    assert Registry(root).history() == history


def test_an_older_kserve_has_no_canary(cluster, root, inside):
    second(root)
    cluster.unknown = {"canary"}
    with pytest.raises(InputError, match=r"0\.20"):
        run(root, 2, canary=10)
    assert (version(cluster), champion(root)) == (1, 2)


def test_without_our_runtime(cluster, root):
    for name, options in (("thyroid", {}), ("thyroid-gpu", {"serving_gpu": True})):
        del cluster.objects["servingruntimes", name]
        with pytest.raises(InputError, match=rf"no ServingRuntime {name},.*overlays/{'gpu' if options else 'cpu'}"):
            run(root, **options)
        cluster.put("servingruntimes", {"metadata": {"name": name}, "spec": {"disabled": True}})
        with pytest.raises(InputError, match=r"spec\.disabled"):
            run(root, **options)
    assert cluster.writes == []


def test_without_kserve(cluster, root):
    cluster.known = set()
    with pytest.raises(InputError, match=r"404.*KServe"):
        run(root)


def test_a_conflict_is_tried_again(cluster, root):
    second(root)
    cluster.refuse["PATCH", "inferenceservices"] = [(409, CHANGED), (404, "not found"), (409, CHANGED)]
    assert run(root, 2).status == "deployed"
    third(root)
    cluster.refuse["PATCH", "inferenceservices"] = [(409, CHANGED)] * 5
    with pytest.raises(InputError, match=r"thyroid.*\b5\b.*modified"):
        run(root, 3)


def test_an_edit_between_read_and_write_is_not_lost(cluster, root):
    second(root)
    cluster.before_write = lambda: cluster.edit("spec.predictor.maxReplicas", 7)
    run(root, 2)
    assert (version(cluster), served(cluster)["spec"]["predictor"]["maxReplicas"]) == (2, 7)


DENIED = 'admission webhook "inferenceservice.kserve-webhook-server.validator" denied the request: not on a Friday'
POLICY = (
    "inferenceservices is forbidden: ValidatingAdmissionPolicy 'lab' with binding 'lab' denied request: not on a Friday"
)
QUOTA = 'inferenceservices.serving.kserve.io "thyroid" is forbidden: exceeded quota: lab, used: 1, limited: 1'


@pytest.mark.parametrize(
    ("status", "answer", "said", "calls"),
    [
        (422, "no", "KServe", 1),
        (400, "strict decoding error", "0.20", 1),
        (400, DENIED, "not on a Friday", 1),
        (403, DENIED, "not on a Friday", 1),
        (422, POLICY, "not on a Friday", 1),
        (500, "failed to create typed patch object: .spec.canary: field not declared in schema", "0.20", 1),
        (403, QUOTA, "ResourceQuota", 1),
        (403, "forbidden", "manifests/base/rbac.yaml", FOR_EVER),
        (500, "broken", "500", FOR_EVER),
    ],
)
def test_what_the_server_refuses_is_said_and_repeated_only_where_it_may_pass(
    cluster, root, status, answer, said, calls, impatient
):
    cluster.refuse["PATCH", "inferenceservices"] = [(status, answer)] * FOR_EVER
    with pytest.raises(InputError) as caught:
        run(root)
    assert said in str(caught.value)
    assert answer in str(caught.value)
    assert ("rbac.yaml" in str(caught.value)) == (answer == "forbidden")
    assert ("0.20" in str(caught.value)) == (status in (400, 422, 500) and answer not in (DENIED, POLICY, "broken"))
    assert (len(cluster.writes) == 1) == (calls == 1)


@pytest.mark.parametrize(
    ("method", "plural"), [("GET", "inferenceservices"), ("PATCH", "inferenceservices"), ("GET", "httproutes")]
)
def test_an_api_server_that_restarts_is_waited_out(cluster, root, inside, method, plural):
    """It refuses for a moment, does not know its custom kinds yet, and is then away; none of it is a verdict."""
    second(root)
    cluster.refuse[method, plural] = restarting()
    assert run(root, 2, canary=10).status == "deployed"
    assert run(root).status == "deployed"
    assert cluster.refuse[method, plural] == []
    assert version(cluster) == champion(root) == 2


def restarting() -> list[tuple[int, dict | str]]:
    return [(401, "Unauthorized"), (403, "forbidden"), (404, {}), (429, "wait"), (503, "starting")] * 2


def test_an_api_server_that_restarts_while_a_deployment_is_taken_back_is_waited_out(cluster, root):
    cluster.answer = wrong
    cluster.refuse["DELETE", "inferenceservices"] = restarting()
    with pytest.raises(InputError, match=r"0\.7"):
        run(root)
    assert ("inferenceservices", "thyroid") not in cluster.objects


def test_a_right_that_is_lost_during_the_proof_decides_nothing(cluster, root, impatient):
    second(root)
    away_from_the_first_write(cluster, FOR_EVER, 403)
    with pytest.raises(InputError, match=r"403.*rbac\.yaml"):
        shortly(root)
    assert version(cluster) == champion(root) == 2


def deleted(cluster) -> None:
    served(cluster)["metadata"]["finalizers"] = ["inferenceservice.finalizers"]
    cluster.delete("inferenceservices", "thyroid")


def test_one_that_is_being_deleted_is_waited_for_and_made_anew(cluster, root, capsys):
    run(root)
    deleted(cluster)
    assert run(root).status == "deployed"
    assert "deletionTimestamp" not in served(cluster)["metadata"]
    assert served(cluster)["metadata"]["generation"] == 1
    assert capsys.readouterr().out.count("(inferenceservice.finalizers)") == 1


def test_one_whose_deletion_does_not_end_is_said(cluster, root, monkeypatch):
    run(root)
    deleted(cluster)
    cluster.looks_until_gone = FOR_EVER
    monkeypatch.setattr(rollout, "_DELETION_SECONDS", 0.05)
    before = len(cluster.writes)
    with pytest.raises(InputError, match=r"2026.*inferenceservice\.finalizers"):
        run(root)
    assert len(cluster.writes) == before


def test_one_that_is_deleted_during_the_proof_refutes_nothing(cluster, root):
    second(root)

    def then_deleted(number: int) -> dict:
        if ("inferenceservices", "thyroid") in cluster.objects:
            deleted(cluster)
        return away(number)

    cluster.answer = then_deleted
    with pytest.raises(InputError, match="deleted"):
        run(root)
    assert champion(root) == 2


@pytest.mark.parametrize("manager", ["thyroid", "OpenAPI-Generator"])
def test_one_that_is_deleted_before_it_is_replaced_is_made_anew(cluster, root, manager):
    second(root)
    cluster.edit("metadata.annotations.thyroid/applied", "{}", manager)
    cluster.before_write = lambda: cluster.delete("inferenceservices", "thyroid")
    assert run(root, 2).status == "deployed"
    assert version(cluster) == 2


@pytest.mark.parametrize("listens", [True, False])
def test_a_server_that_does_not_answer_is_given_up(cluster, root, tmp_path, monkeypatch, listens):
    monkeypatch.setattr(api, "_TIMEOUTS", (0.2, 0.2))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url, file = f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path / "kubeconfig"
        file.write_text(file.read_text().replace(cluster.url, url))
        if not listens:
            silent.close()
        with pytest.raises(InputError, match=url):
            run(root)


def test_without_a_kubeconfig(root, tmp_path, monkeypatch):
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    with pytest.raises(InputError, match="kubeconfig"):
        run(root)


def container(waiting: str, **terminated) -> dict:
    """A container that waits with this reason, after it was terminated."""
    states = {"state": {"waiting": {"reason": waiting}}, "lastState": {"terminated": {"exitCode": 1, **terminated}}}
    return {
        "containerStatuses": [{"name": "c", "image": "i", "imageID": "", "ready": False, "restartCount": 3} | states]
    }


def test_never_ready_is_said_in_the_pods_own_words(cluster, root, capsys):
    cluster.looks_until_ready = FOR_EVER
    scheduled = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes: Insufficient nvidia.com/gpu"}
    words = "starting\n" * 99 + "error: 1/model.keras: missing\n"
    for status in (
        {"conditions": [scheduled, {"type": "Initialized", "status": "True"}]},
        {"reason": "Evicted", "message": "The node was low on memory"},
        container("ImagePullBackOff", reason="OOMKilled"),
        container("PodInitializing", reason="Error", message=words),
        container("CrashLoopBackOff", reason="Completed"),
    ):
        cluster.pods.append({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}, "status": status})
    with pytest.raises(InputError, match="InferenceService") as caught:
        shortly(root)
    said, most = str(caught.value).split("; "), "starting " * 99 + "error: 1/model.keras: missing"
    assert {"0/3 nodes: Insufficient nvidia.com/gpu", "Evicted: The node was low on memory"} < set(said)
    assert sorted(one.removeprefix("container c: ") for one in said if one.startswith("container")) == [
        *("CrashLoopBackOff", f"Error {most[-500:]}", "ImagePullBackOff", "OOMKilled")
    ]
    assert "MinimumReplicasUnavailable" in capsys.readouterr().out


def test_a_model_that_does_not_load_is_not_waited_for(cluster, root, monkeypatch):
    monkeypatch.setattr(proof, "_FAILED_SECONDS", 0.05)
    cluster.status = lambda _: {
        "conditions": [{"type": "Ready", "status": "False"}],
        "modelStatus": {
            "transitionStatus": "BlockedByFailedLoad",
            "lastFailureInfo": {"reason": "ModelLoadFailed", "message": "model.keras: changed since it was registered"},
        },
    }
    with pytest.raises(InputError, match=r"ModelLoadFailed.*model\.keras"):
        run(root)


@pytest.mark.parametrize(
    ("status", "said"),
    [({"conditions": [{"type": "Ready", "status": "True"}]}, "no address"), ({}, "not processed")],
)
def test_a_status_that_says_little_and_pods_that_may_not_be_listed(cluster, root, status, said, impatient):
    cluster.status = lambda _: status
    cluster.refuse["GET", "pods"] = [(403, "forbidden")] * FOR_EVER
    with pytest.raises(InputError, match=said):
        shortly(root)


def test_the_token_is_sent_and_asked_for(cluster, root, monkeypatch):
    monkeypatch.setenv("THYROID_TOKEN", "s3cret")
    run(root)
    assert cluster.questions[0][1] == "Bearer s3cret"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"error": 401}, "THYROID_TOKEN"),
        ({"error": 403, "text": "RBAC: access denied"}, "mesh"),
        ({"error": 503}, "thyroid.*503"),
        ({"nonsense": 1}, "KeyError"),
    ],
)
def test_an_endpoint_that_does_not_answer_the_question(cluster, root, answer, said):
    cluster.looks_until_ready = 0
    cluster.answer = lambda _: answer
    with pytest.raises(InputError, match=said):
        shortly(root)


@pytest.mark.parametrize("plural", ["servingruntimes", "inferenceservices"])
@pytest.mark.parametrize("status", [403, 500, 503])
def test_what_fails_before_anything_is_sent_leaves_the_registry_alone(cluster, root, plural, status, impatient):
    second(root)
    cluster.refuse["GET", plural] = [(status, "no")] * FOR_EVER
    before, history = len(cluster.writes), Registry(root).history()
    with pytest.raises(InputError, match=str(status)):
        run(root, 2)
    assert champion(root) == 2
    assert Registry(root).history() == history
    assert len(cluster.writes) == before
    cluster.refuse.clear()
    assert run(root, 2).status == "deployed", "a retry helps"


def away_from_the_first_write(cluster, times: int, status: int = 503) -> None:
    """Let the API server refuse so many readings of the service, from the first write on."""
    refuse = {("GET", "inferenceservices"): [(status, "down")] * times}
    cluster.before_write = lambda: cluster.refuse.update(refuse)


def decided_nothing(cluster, root, **options) -> None:
    """Deploy version 2 to an API server that stays away from the first write on, and is back afterwards."""
    second(root)
    away_from_the_first_write(cluster, FOR_EVER)
    with pytest.raises(InputError, match="503"):
        shortly(root, **options)
    assert champion(root) == 2
    cluster.refuse.clear()


def test_after_an_attempt_that_decided_nothing_the_champion_before_comes_back(cluster, root, impatient):
    """The object already names the new version when the next attempt first looks at it, as after a killed attempt."""
    decided_nothing(cluster, root)
    assert version(cluster) == 2
    cluster.answer = wrong
    with pytest.raises(InputError, match=r"0\.7.*\b1$"):
        run(root, 2)
    assert version(cluster) == 1


def test_after_an_attempt_that_decided_nothing_a_canary_has_no_share_before_its_proof(cluster, root, inside, impatient):
    decided_nothing(cluster, root, canary=10)
    cluster.edit("spec.canary", [served(cluster)["spec"]["canary"][0] | {"trafficPercent": 50}])
    asked = []

    def look(_: int) -> dict:
        asked.append(shares(cluster))
        return wrong(2)

    cluster.answer = look
    with pytest.raises(InputError, match=r"0\.7.*\b1$"):
        run(root, 2, canary=10)
    assert asked == [{"v2": 0}]
    assert (version(cluster), shares(cluster)) == (1, {})


def test_another_runs_champion_is_left_alone(cluster, root):
    second(root)

    def meanwhile(number: int) -> dict:
        if number == champion(root) == 2:
            third(root)
            cluster.edit("spec.predictor.model.storageUri", "gs://b/thyroid/3", "thyroid")
            cluster.edit("metadata.labels.thyroid/version", "3", "thyroid")
        return wrong(number)

    cluster.answer = meanwhile
    with pytest.raises(InputError, match=r"\b3$"):
        run(root, 2)
    assert version(cluster) == champion(root) == 3


def test_a_version_that_somebody_replaced_before_it_answered_is_not_refuted(cluster, root):
    second(root)

    def replaced(number: int) -> dict:
        cluster.edit("spec.predictor.model.storageUri", "gs://elsewhere/model/1")
        return away(number)

    cluster.looks_until_ready = 0
    cluster.answer = replaced
    with pytest.raises(InputError, match=r"left.*\b2$"):
        shortly(root)
    assert (champion(root), Registry(root).refuted()) == (2, {})
    assert served(cluster)["spec"]["predictor"]["model"]["storageUri"] == "gs://elsewhere/model/1"


@pytest.mark.parametrize("answer", [{"error": 401}, {"error": 403, "text": "RBAC: access denied"}, None])
def test_a_version_that_could_not_be_asked_is_not_refuted(cluster, root, answer, monkeypatch):
    """The endpoint wants a token or admits only some accounts, or KServe does not take the specification."""
    second(root)
    cluster.answer = lambda number: answer if number == 2 else right(number)
    if answer is None:
        monkeypatch.setattr(proof, "_FAILED_SECONDS", 0.05)
        cluster.status = lambda _: {"modelStatus": {"transitionStatus": "InvalidSpec"}}
    with pytest.raises(InputError, match=r"restored.*\b2$"):
        run(root)
    assert (version(cluster), champion(root), Registry(root).refuted()) == (1, 2, {})
    cluster.answer, cluster.status = right, None
    assert run(root, 2).status == "deployed"


def test_a_wrong_answer_refutes_a_version_that_somebody_has_sent_by_hand(cluster, root):
    second(root)
    cluster.edit("spec.predictor.model.storageUri", "pvc://thyroid-data/registry/thyroid/2")
    cluster.edit("metadata.labels.thyroid/version", "2")
    cluster.answer = lambda number: wrong(number) if number == 2 else right(number)
    with pytest.raises(InputError, match=r"0\.7.*\b1$"):
        run(root)
    assert (version(cluster), champion(root), list(Registry(root).refuted())) == (1, 1, [2])


def test_an_edit_during_the_proof_outlives_a_version_that_is_taken_back(cluster, root):
    second(root)

    def edited(number: int) -> dict:
        if number == 2:
            cluster.edit("spec.predictor.maxReplicas", 7)
        return wrong(number)

    cluster.answer = edited
    with pytest.raises(InputError, match="restored"):
        run(root)
    assert (version(cluster), served(cluster)["spec"]["predictor"]["maxReplicas"]) == (1, 7)


@pytest.mark.parametrize("first", [True, False])
def test_a_change_while_a_version_is_taken_back_is_seen(cluster, root, first):
    """So is that it was restored although the server's answer was lost."""
    if not first:
        second(root)

    def changed(number: int) -> dict:
        if number == champion(root):
            uri = "gs://elsewhere/model/9" if first else "pvc://thyroid-data/registry/thyroid/1"
            cluster.before_write = lambda: cluster.edit("spec.predictor.model.storageUri", uri, "thyroid")
        return wrong(number)

    cluster.answer = changed
    with pytest.raises(InputError, match="left" if first else "restored"):
        run(root)
    assert ("inferenceservices", "thyroid") in cluster.objects
    assert champion(root) == 1


def test_a_version_that_is_no_champion_any_more_is_not_sent(cluster, root):
    second(root)

    def meanwhile() -> None:
        third(root)
        cluster.edit("spec.predictor.maxReplicas", 7)

    cluster.before_write = meanwhile
    with pytest.raises(InputError, match=r"\b3\b"):
        run(root, 2)
    assert (version(cluster), champion(root)) == (1, 3)


def test_a_registry_in_a_bucket(cluster, tmp_path, bucket):
    root, path = bucket.address("registry"), tmp_path / "manifest.yaml"
    for number in (1, 2):
        register(root, tmp_path / "artefact")
        assert deploy.deploy(root, number, path, DeployOptions(namespace="lab", timeout=60)).status == "deployed"
    assert served(cluster)["spec"]["predictor"]["model"]["storageUri"] == f"{root}/thyroid/2"
    content = "alt=media" if root.startswith("gs://") else ""  # without it Google only sends what it knows of an object
    read = [path for method, path in bucket.proxy.requests if method == "GET" and content in path]
    assert read, "the model card and the reference image"
    assert not any("model.keras" in path for path in read), "not needed here"
    cluster.answer = wrong
    register(root, tmp_path / "artefact")
    with pytest.raises(InputError, match=r"\b3\b.*0\.7.*\b2$"):
        deploy.deploy(root, 3, path, DeployOptions(namespace="lab", timeout=60))
    assert served(cluster)["spec"]["predictor"]["model"]["storageUri"] == f"{root}/thyroid/2"
    register(root, tmp_path / "artefact", "refused")
    kept = deploy.deploy(root, 4, path, DeployOptions(namespace="lab"))
    assert (kept.status, kept.version) == ("kept champion", 2)
    with pytest.raises(InputError, match="misspelt"):
        deploy.deploy(bucket.address("misspelt"), None, path, DeployOptions(namespace="lab"))


def test_another_claim(cluster, root, monkeypatch):
    monkeypatch.setenv("THYROID_CLAIM", "other")
    run(root)
    assert served(cluster)["spec"]["predictor"]["model"]["storageUri"].startswith("pvc://other/")
    monkeypatch.setenv("THYROID_CLAIM", "")
    with pytest.raises(InputError, match="cannot read this path"):
        run(root)


def test_without_a_cluster_the_manifest_is_written(tmp_path, capsys):
    root = tmp_path / "registry"
    register(root, tmp_path / "artefact")
    done = deploy.deploy(root, 1, tmp_path / "manifest.yaml")
    assert done.status == "manifest written"
    assert yaml.safe_load((tmp_path / "manifest.yaml").read_text())["kind"] == "InferenceService"
    assert f"python -m thyroid.serve --registry {root}" in capsys.readouterr().out


def test_a_registry_that_kserve_cannot_read(tmp_path):
    register(tmp_path / "registry", tmp_path / "artefact")
    with pytest.raises(InputError, match="cannot read this path"):
        run(tmp_path / "registry")
    with pytest.raises(InputError, match="misspelt"):
        run(tmp_path / "misspelt")


@pytest.mark.parametrize(
    "options", [{"canary": 100}, {"canary": -1}, {"min_replicas": -1}, {"timeout": 0}, {"timeout": float("inf")}]
)
def test_impossible_options(options):
    ((name, value),) = options.items()
    with pytest.raises(InputError, match=f"{name}.*{value}"):
        DeployOptions(**options)


def test_command(cluster, root, capsys):
    where = ["--namespace", "lab", "--timeout", "60", "--manifest", str(root.parent / "m.yaml")]
    assert main(["--registry", str(root), *where]) == 0
    assert version(cluster) == 1
    assert cluster.url in capsys.readouterr().out
    assert main(["--registry", str(root / "no"), *where]) == 2
