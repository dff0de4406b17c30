"""Deployment against an API server that keeps, checks and records what it is sent."""

import base64
import json
import os
import socket
from pathlib import Path

import pytest
import yaml

from tests.support import schemas, toy_artefact
from tests.support.cluster import Cluster
from thyroid.deploy import deploy, kserve_client, manifest, proof, rollout
from thyroid.deploy.__main__ import main
from thyroid.deploy.edits import APPLIED
from thyroid.deploy.manifest import CANARY
from thyroid.deploy.options import DeployOptions
from thyroid.errors import InputError
from thyroid.model.artefact import Artefact
from thyroid.records.gate import GateRecord
from thyroid.registry.registry import Registry
from thyroid.storage import Location

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
    monkeypatch.setattr(manifest, "MOUNT", str(tmp_path / "data"))
    monkeypatch.setattr(proof, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(rollout, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(kserve_client, "_PAUSE", 0.02)
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
    for name in ("thyroid", "thyroid-gpu"):
        running.put("servingruntimes", {"metadata": {"name": name}, "spec": {}})
    running.answer = lambda version: {"probability": REFERENCE, "model_version": version}
    yield running
    running.shutdown()
    running.server_close()


def run(root: Path, version: int | None = None, **options) -> deploy.Deployed:
    options = DeployOptions(namespace="lab", timeout=60, **options)
    return deploy.deploy(root, version, root.parent / "manifest.yaml", options)


def shortly(root: Path, **options) -> deploy.Deployed:
    """As `run`, where nothing is to be waited for."""
    return deploy.deploy(
        root, None, root.parent / "manifest.yaml", DeployOptions(namespace="lab", timeout=0.2, **options)
    )


FOR_EVER = 10_000
"""Refusals that are more than any deployment asks for."""


@pytest.fixture
def impatient(monkeypatch) -> None:
    monkeypatch.setattr(kserve_client, "_PATIENCE", 0.1)


def wrong(version: int) -> dict:
    return {"probability": {"B": 0.7, "M": 0.3}, "model_version": version}


def served(cluster: Cluster, name: str = "thyroid") -> dict:
    return cluster.objects["inferenceservices", name]


def test_first_deployment(cluster, root):
    done = run(root)
    assert done.status == "deployed"
    body = served(cluster)
    predictor = body["spec"]["predictor"]
    assert predictor["model"]["modelFormat"] == {"name": "thyroid"}
    assert predictor["model"]["runtime"] == "thyroid"
    assert predictor["model"]["storageUri"] == "pvc://thyroid-data/registry/thyroid/1"
    assert body["metadata"]["labels"]["thyroid/version"] == "1"
    assert body["metadata"]["annotations"][manifest.MODE] == "Standard"
    assert body["metadata"]["annotations"]["prometheus.io/port"] == "8080"
    ((question, token),) = cluster.questions
    assert base64.b64decode(question["instances"][0]["image"]["b64"]) == b"picture"
    assert token is None
    assert yaml.safe_load((root.parent / "manifest.yaml").read_text())["spec"] == body["spec"]


def test_all_that_is_sent_fits_the_schemas(cluster, root):
    known = schemas.definitions()
    if not known:
        pytest.skip(f"no CustomResourceDefinitions here ({schemas.CRDS})")
    cluster.put("httproutes", manifest.route("lab", 0))
    for options in ({}, {"serving_gpu": True}, {"canary": 10}):
        run(root, **options)
    del cluster.objects["inferenceservices", "thyroid"]
    run(root, min_replicas=0)
    run(root, min_replicas=0, canary=20)
    sent = [body for _, _, body in cluster.written() if body.get("kind") == "InferenceService"]
    assert len(sent) == 5
    for body in sent:
        assert schemas.problems(body, known) == []


def test_the_schemas_do_refuse():
    known = schemas.definitions()
    if not known:
        pytest.skip(f"no CustomResourceDefinitions here ({schemas.CRDS})")
    body = manifest.inference_service("thyroid", 1, "gs://b/m", DeployOptions())
    body["spec"]["predictor"]["minReplica"] = 1
    body["spec"]["predictor"]["model"]["resources"]["limits"]["cpu"] = [1]
    assert len(schemas.problems(body, known) or []) == 2


def test_again_changes_nothing(cluster, root):
    run(root)
    before = cluster.written()
    done = run(root)
    assert cluster.written() == before
    assert done.status == "deployed"
    assert len(done.notes) == 1


def test_the_next_champion_replaces_it_and_the_new_generation_is_waited_for(cluster, root, tmp_path):
    run(root)
    register(root, tmp_path / "artefact")
    cluster.looks_until_ready = 4
    run(root, 2)
    assert served(cluster)["metadata"]["generation"] == 2
    assert served(cluster)["spec"]["predictor"]["model"]["storageUri"].endswith("/thyroid/2")
    assert len(cluster.questions) >= 3, "meanwhile the old generation is Ready and answers"
    assert cluster.serving == {"thyroid": 2}


def test_a_refused_version_deploys_nothing(cluster, root, tmp_path, capsys):
    run(root)
    before = list(cluster.calls)
    assert register(root, tmp_path / "artefact", "refused") == 2
    done = run(root, 2)
    assert (done.status, done.version) == ("kept champion", 1)
    assert done.notes == ["AUROC is not shown to be as good"]
    assert cluster.calls == before
    assert capsys.readouterr().out.endswith("kept champion: version 1 stays\n  AUROC is not shown to be as good\n")


def test_a_first_version_that_is_refused(root, tmp_path):
    other = tmp_path / "data" / "other"
    other.mkdir()
    version = register(other, tmp_path / "artefact", "refused")
    assert run(other, version).status == "kept champion"


def test_a_wrong_answer_brings_back_what_was_there(cluster, root, tmp_path):
    run(root)
    before = served(cluster)["spec"]
    register(root, tmp_path / "artefact")
    cluster.answer = wrong
    with pytest.raises(InputError, match=r"0\.7.*0\.8.*InferenceService"):
        run(root, 2)
    assert served(cluster)["spec"] == before
    assert Registry(root).read_aliases() == {"candidate": 2, "champion": 1, "anchor": 1}
    assert Registry(root).history()[-1]["by"] == "deploy"
    assert list(Registry(root).refuted()) == [2]


def test_a_retry_of_a_failed_deployment_fails_too(cluster, root, tmp_path):
    test_a_wrong_answer_brings_back_what_was_there(cluster, root, tmp_path)
    with pytest.raises(InputError, match=r"0\.7.*InferenceService"):
        run(root, 2)


def away(_: int) -> dict:
    """What a pod that is away for a moment answers."""
    return {"error": 503}


def test_a_refuted_version_does_not_come_back_when_the_good_one_fails_for_a_moment(cluster, root, tmp_path):
    test_a_wrong_answer_brings_back_what_was_there(cluster, root, tmp_path)
    before, aliases, written = served(cluster), Registry(root).read_aliases(), cluster.written()
    cluster.answer = away
    for _ in range(2):
        with pytest.raises(InputError, match="503"):
            shortly(root)
    assert served(cluster) == before
    assert Registry(root).read_aliases() == aliases
    assert cluster.written() == written
    cluster.answer = lambda version: {"probability": REFERENCE, "model_version": version}
    assert run(root).status == "deployed"


def test_other_options_that_fail_refute_no_version_that_has_proven_itself(cluster, root, tmp_path):
    run(root)
    register(root, tmp_path / "artefact")
    run(root, 2)
    before = served(cluster)["spec"]
    cluster.answer = away
    with pytest.raises(InputError, match="503"):
        shortly(root, serving_gpu=True)
    assert served(cluster)["spec"] == before
    assert Registry(root).read_aliases()["champion"] == 2


def refuted_and_not_put_back(cluster, root, tmp_path, version: int) -> None:
    """Send a version whose answer is wrong, at a moment at which nothing can be put back."""
    champion = Registry(root).champion()
    assert register(root, tmp_path / "artefact") == version
    answers = cluster.answer

    def then_refused(asked: int) -> dict:
        if asked == version:
            cluster.refuse["PUT", "inferenceservices"] = [(422, "no")]
        return wrong(asked)

    cluster.answer = then_refused
    with pytest.raises(InputError, match=rf"422.*\b{champion}$"):
        run(root, version)
    cluster.answer = answers
    assert served(cluster)["spec"]["predictor"]["model"]["storageUri"].endswith(f"/thyroid/{version}")


def test_what_the_cluster_had_is_not_put_back_where_it_was_refuted(cluster, root, tmp_path):
    run(root)
    refuted_and_not_put_back(cluster, root, tmp_path, 2)
    register(root, tmp_path / "artefact")
    cluster.answer = wrong
    with pytest.raises(InputError, match=r"\b3\b.*\b1$"):
        run(root, 3)
    assert served(cluster)["spec"]["predictor"]["model"]["storageUri"].endswith("/thyroid/1")
    assert served(cluster)["metadata"]["labels"]["thyroid/version"] == "1"
    assert "thyroid/data-digest" not in served(cluster)["metadata"]["annotations"]
    assert list(Registry(root).refuted()) == [2, 3]


def test_where_there_is_nothing_to_go_back_to_what_was_sent_stays_and_that_is_said(cluster, root, tmp_path):
    run(root)
    refuted_and_not_put_back(cluster, root, tmp_path, 2)
    cluster.answer = away
    with pytest.raises(InputError, match=r"503.*InferenceService"):
        shortly(root)
    assert served(cluster)["spec"]["predictor"]["model"]["storageUri"].endswith("/thyroid/1")
    assert Registry(root).read_aliases()["champion"] == 1


def test_a_version_that_has_proven_itself_is_not_refuted_where_it_is_made_anew(cluster, root, tmp_path):
    run(root)
    register(root, tmp_path / "artefact")
    run(root, 2)
    del cluster.objects["inferenceservices", "thyroid"]
    cluster.answer = away
    with pytest.raises(InputError, match="503"):
        shortly(root)
    assert ("inferenceservices", "thyroid") not in cluster.objects
    assert Registry(root).read_aliases() == {"candidate": 2, "champion": 2, "previous": 1, "anchor": 1}


def test_a_champion_before_that_is_damaged_does_not_hide_why_the_deployment_failed(cluster, root, tmp_path):
    run(root)
    register(root, tmp_path / "artefact")
    (root / "thyroid" / "1" / "model.keras").write_bytes(b"")
    cluster.answer = wrong
    with pytest.raises(InputError, match=r"0\.7.*model\.keras"):
        run(root, 2)


def test_a_first_deployment_that_fails_leaves_nothing(cluster, root):
    cluster.answer = wrong
    with pytest.raises(InputError, match=r"0\.7"):
        run(root)
    assert ("inferenceservices", "thyroid") not in cluster.objects


def test_edits_by_hand_are_kept_and_told_but_for_the_model(cluster, root, tmp_path):
    run(root)
    predictor = served(cluster)["spec"]["predictor"]
    predictor["minReplicas"] = 5
    predictor["model"]["storageUri"] = "gs://elsewhere/model"
    predictor["model"]["env"] = [{"name": "MINE", "value": "1"}]
    register(root, tmp_path / "artefact")
    notes = run(root, 2).notes
    predictor = served(cluster)["spec"]["predictor"]
    assert predictor["minReplicas"] == 5
    assert predictor["model"]["env"] == [{"name": "MINE", "value": "1"}]
    assert predictor["model"]["storageUri"].endswith("/thyroid/2")
    assert any(note.startswith("spec.predictor.minReplicas ") and "kept" in note for note in notes)
    assert any("storageUri" in note and "gs://elsewhere/model" in note for note in notes)


def test_one_that_was_made_by_hand_is_taken_over(cluster, root):
    body = manifest.inference_service("thyroid", 0, "gs://elsewhere/model", DeployOptions())
    body["spec"]["predictor"] |= {"minReplicas": 2, "maxReplicas": 9}
    body["metadata"]["annotations"].pop("thyroid/notice")
    cluster.put("inferenceservices", body)
    run(root)
    found = served(cluster)
    assert found["spec"]["predictor"]["maxReplicas"] == 9
    assert found["spec"]["predictor"]["model"]["storageUri"].endswith("/thyroid/1")
    assert found["metadata"]["labels"]["thyroid/version"] == "1"
    assert APPLIED in found["metadata"]["annotations"]


def test_changed_options_are_applied(cluster, root):
    run(root)
    run(root, serving_gpu=True)
    predictor = served(cluster)["spec"]["predictor"]
    assert predictor["model"]["runtime"] == "thyroid-gpu"
    assert predictor["model"]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    run(root)
    assert "tolerations" not in served(cluster)["spec"]["predictor"]
    assert "nvidia.com/gpu" not in served(cluster)["spec"]["predictor"]["model"]["resources"]["limits"]


def test_canary_in_knative_mode(cluster, root, tmp_path):
    run(root, min_replicas=0)
    register(root, tmp_path / "artefact")
    done = run(root, 2, min_replicas=0, canary=10)
    assert served(cluster)["spec"]["predictor"]["canaryTrafficPercent"] == 10
    assert served(cluster)["metadata"]["annotations"]["serving.kserve.io/enable-tag-routing"] == "true"
    assert done.url == f"{cluster.url}/thyroid/latest", "the canary is asked at its own address"
    run(root, min_replicas=0)
    assert "canaryTrafficPercent" not in served(cluster)["spec"]["predictor"]


def test_canary_in_standard_mode_is_a_second_service_and_a_route(cluster, root, tmp_path):
    run(root)
    cluster.put("httproutes", manifest.route("lab", 0))
    register(root, tmp_path / "artefact")
    run(root, 2, canary=10)
    assert served(cluster)["spec"]["predictor"]["model"]["storageUri"].endswith("/1"), "the champion before stays"
    assert served(cluster, CANARY)["spec"]["predictor"]["model"]["storageUri"].endswith("/2")
    assert "canaryTrafficPercent" not in served(cluster, CANARY)["spec"]["predictor"], "it would be ignored"
    backends = cluster.objects["httproutes", manifest.ROUTE]["spec"]["rules"][0]["backendRefs"]
    assert [(one["name"], one["weight"]) for one in backends] == [
        ("thyroid-predictor", 90),
        ("thyroid-canary-predictor", 10),
    ]
    assert [kind for method, _, _, kind in cluster.calls if method == "PATCH"] == ["application/merge-patch+json"]
    run(root)
    assert ("inferenceservices", CANARY) not in cluster.objects
    assert served(cluster)["spec"]["predictor"]["model"]["storageUri"].endswith("/2")
    assert len(cluster.objects["httproutes", manifest.ROUTE]["spec"]["rules"][0]["backendRefs"]) == 1


def test_canary_without_a_route_is_taken_back(cluster, root, tmp_path):
    run(root)
    register(root, tmp_path / "artefact")
    with pytest.raises(InputError, match=r"thyroid-entry.*thyroid-canary"):
        run(root, 2, canary=10)
    assert ("inferenceservices", CANARY) not in cluster.objects
    assert Registry(root).read_aliases()["champion"] == 2
    assert Registry(root).refuted() == {}, "it has answered as evaluated"


def test_a_canary_needs_something_beside_it(cluster, root):
    with pytest.raises(InputError, match="canary"):
        run(root, canary=10)
    assert cluster.written() == []


def test_the_mode_of_one_that_exists_is_not_changed(cluster, root):
    run(root)
    with pytest.raises(InputError, match=r"Standard.*min_replicas"):
        run(root, min_replicas=0)


def test_without_our_runtime(cluster, root):
    del cluster.objects["servingruntimes", "thyroid"]
    with pytest.raises(InputError, match=r"ServingRuntime.*kubectl"):
        run(root)
    cluster.put("servingruntimes", {"metadata": {"name": "thyroid"}, "spec": {"disabled": True}})
    with pytest.raises(InputError, match=r"spec\.disabled"):
        run(root)
    assert cluster.written() == []


def test_without_kserve(cluster, root):
    cluster.known = set()
    with pytest.raises(InputError, match=r"404.*KServe"):
        run(root)


def test_a_conflict_is_tried_again(cluster, root, tmp_path):
    run(root)
    register(root, tmp_path / "artefact")
    conflict = (409, "the object has been modified")
    cluster.refuse["PUT", "inferenceservices"] = [conflict] * 3
    assert run(root, 2).status == "deployed"
    register(root, tmp_path / "artefact")
    cluster.refuse["PUT", "inferenceservices"] = [conflict] * 5
    with pytest.raises(InputError, match=r"thyroid.*\b5\b.*modified"):
        run(root, 3)


def test_an_edit_between_read_and_write_is_not_lost(cluster, root, tmp_path):
    run(root)
    register(root, tmp_path / "artefact")

    def edit(_: str) -> None:
        cluster.before_write = None
        live = served(cluster)
        live["spec"]["predictor"]["maxReplicas"] = 7
        live["metadata"]["resourceVersion"] = "99"

    cluster.before_write = edit
    run(root, 2)
    assert served(cluster)["spec"]["predictor"]["maxReplicas"] == 7


@pytest.mark.parametrize(("status", "said"), [(422, "KServe"), (403, "manifests/base/rbac.yaml"), (500, "500")])
def test_what_the_server_refuses_is_said(cluster, root, status, said, impatient):
    cluster.refuse["POST", "inferenceservices"] = [(status, "no")] * FOR_EVER
    with pytest.raises(InputError, match=str(status)) as caught:
        run(root)
    assert said in str(caught.value)


def test_a_quota_that_is_used_up_is_said_at_once(cluster, root):
    told = 'inferenceservices.serving.kserve.io "thyroid" is forbidden: exceeded quota: lab, used: 1, limited: 1'
    cluster.refuse["POST", "inferenceservices"] = [(403, told)] * FOR_EVER
    with pytest.raises(InputError, match="ResourceQuota") as caught:
        run(root)
    assert "rbac.yaml" not in str(caught.value)
    assert len(cluster.written()) == 1, "a quota does not pass by waiting"


@pytest.mark.parametrize(
    ("method", "plural"),
    [
        *((method, "inferenceservices") for method in ("GET", "POST", "PUT", "DELETE")),
        *((method, "httproutes") for method in ("GET", "PATCH")),
    ],
)
def test_an_api_server_that_restarts_is_waited_out(cluster, root, tmp_path, method, plural):
    """It refuses for a moment, does not know its custom kinds yet, and is then away; none of it is a verdict."""
    run(root)
    cluster.put("httproutes", manifest.route("lab", 0))
    register(root, tmp_path / "artefact")
    cluster.refuse[method, plural] = [(401, "Unauthorized"), (403, "forbidden"), (404, {}), (503, "starting")] * 2
    assert run(root, 2, canary=10).status == "deployed"
    assert run(root).status == "deployed"
    assert cluster.refuse[method, plural] == []
    assert ("inferenceservices", CANARY) not in cluster.objects
    assert Registry(root).read_aliases()["champion"] == 2


def test_a_right_that_is_lost_during_the_proof_decides_nothing(cluster, root, tmp_path, impatient):
    run(root)
    register(root, tmp_path / "artefact")

    def then_lost(_: str) -> None:
        cluster.before_write = None
        cluster.refuse["GET", "inferenceservices"] = [(403, "forbidden")] * FOR_EVER

    cluster.before_write = then_lost
    with pytest.raises(InputError, match=r"403.*rbac\.yaml"):
        shortly(root)
    assert Registry(root).read_aliases()["champion"] == 2
    assert served(cluster)["spec"]["predictor"]["model"]["storageUri"].endswith("/2")


def deleted(cluster) -> None:
    served(cluster)["metadata"]["finalizers"] = ["inferenceservice.finalizers"]
    cluster.delete("inferenceservices", "thyroid")


def test_one_that_is_being_deleted_is_waited_for_and_made_anew(cluster, root, capsys):
    run(root)
    deleted(cluster)
    before = len(cluster.written())
    assert run(root).status == "deployed"
    assert [method for method, _, _ in cluster.written()[before:]] == ["POST"]
    assert "deletionTimestamp" not in served(cluster)["metadata"]
    assert capsys.readouterr().out.count("(inferenceservice.finalizers)") == 1


def test_one_whose_deletion_does_not_end_is_said(cluster, root, monkeypatch):
    run(root)
    deleted(cluster)
    cluster.looks_until_gone = FOR_EVER
    monkeypatch.setattr(rollout, "_DELETION_SECONDS", 0.05)
    before = cluster.written()
    with pytest.raises(InputError, match=r"2026.*inferenceservice\.finalizers"):
        run(root)
    assert cluster.written() == before


def test_one_that_is_deleted_during_the_proof_refutes_nothing(cluster, root, tmp_path):
    run(root)
    register(root, tmp_path / "artefact")

    def then_deleted(version: int) -> dict:
        if ("inferenceservices", "thyroid") in cluster.objects:
            deleted(cluster)
        return away(version)

    cluster.answer = then_deleted
    with pytest.raises(InputError, match="deleted"):
        shortly(root)
    assert Registry(root).read_aliases()["champion"] == 2


def test_one_that_is_deleted_before_it_is_replaced_is_made_anew(cluster, root, tmp_path):
    run(root)
    register(root, tmp_path / "artefact")

    def then_gone(_: str) -> None:
        cluster.before_write = None
        cluster.delete("inferenceservices", "thyroid")

    cluster.before_write = then_gone
    assert run(root, 2).status == "deployed"
    assert [method for method, _, _ in cluster.written()][-2:] == ["PUT", "POST"]


def test_an_unreachable_server(root, tmp_path, monkeypatch):
    running = Cluster()
    file = running.kubeconfig(tmp_path)
    running.shutdown()
    running.server_close()
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(file))
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:\d+"):
        run(root)


def test_a_server_that_never_answers_is_given_up(cluster, root, monkeypatch):
    silent = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(kserve_client, "_TIMEOUTS", (0.2, 0.2))
    file = root.parent / "kubeconfig"
    text = (root.parent.parent / "kubeconfig").read_text()
    file.write_text(text.replace(cluster.url, f"http://127.0.0.1:{silent.getsockname()[1]}"))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(file))
    with silent, pytest.raises(InputError, match=str(silent.getsockname()[1])):
        run(root)


def test_without_a_kubeconfig(root, tmp_path, monkeypatch):
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    with pytest.raises(InputError, match="kubeconfig"):
        run(root)


def pod(**status) -> dict:
    return {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}, "status": status}


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (
            {
                "conditions": [
                    {"type": "PodScheduled", "status": "False", "message": "0/3 nodes: Insufficient nvidia.com/gpu"}
                ]
            },
            "Insufficient nvidia.com/gpu",
        ),
        ({"reason": "Evicted", "message": "The node was low on memory"}, "Evicted: The node was low on memory"),
        (
            {
                "containerStatuses": [
                    {
                        "name": "kserve-container", "image": "i", "imageID": "", "ready": False, "restartCount": 3,
                        "state": {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}},
                        "lastState": {"terminated": {"reason": "OOMKilled", "exitCode": 137}},
                    }
                ]
            },
            "container kserve-container: ImagePullBackOff not found; container kserve-container: OOMKilled",
        ),
        (
            {
                "containerStatuses": [
                    {
                        "name": "kserve-container", "image": "i", "imageID": "", "ready": False, "restartCount": 3,
                        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s"}},
                        "lastState": {"terminated": {
                            "reason": "Error", "exitCode": 2,
                            "message": "starting\n" * 99 + "error: 1/model.keras: missing\n",
                        }},
                    }
                ]
            },
            "starting error: 1/model.keras: missing",
        ),
    ],
)  # fmt: skip
def test_never_ready_is_said_in_the_pods_own_words(cluster, root, status, said, capsys):
    cluster.looks_until_ready = 10**6
    cluster.pods = [pod(**status)]
    with pytest.raises(InputError, match="InferenceService") as caught:
        deploy.deploy(root, None, root.parent / "manifest.yaml", DeployOptions(namespace="lab", timeout=0.2))
    assert said in str(caught.value)
    assert "MinimumReplicasUnavailable" in capsys.readouterr().out


def test_a_model_that_does_not_load_is_not_waited_for(cluster, root, monkeypatch):
    monkeypatch.setattr(proof, "_FAILED_SECONDS", 0.05)
    cluster.status = lambda body: {
        "observedGeneration": body["metadata"]["generation"],
        "conditions": [{"type": "Ready", "status": "False"}],
        "modelStatus": {
            "transitionStatus": "BlockedByFailedLoad",
            "lastFailureInfo": {"reason": "ModelLoadFailed", "message": "model.keras: changed since it was registered"},
        },
    }
    with pytest.raises(InputError, match=r"ModelLoadFailed.*model\.keras"):
        run(root)


def test_the_token_is_sent_and_asked_for(cluster, root, monkeypatch):
    monkeypatch.setenv("THYROID_TOKEN", "s3cret")
    run(root)
    assert cluster.questions[0][1] == "Bearer s3cret"
    del cluster.objects["inferenceservices", "thyroid"]
    cluster.answer = lambda _: {"error": 401}
    with pytest.raises(InputError, match="THYROID_TOKEN"):
        run(root)


def test_an_endpoint_that_never_answers(cluster, root):
    cluster.looks_until_ready = 0
    cluster.answer = lambda _: {"error": 503}
    with pytest.raises(InputError, match=r"thyroid.*503"):
        deploy.deploy(root, None, root.parent / "manifest.yaml", DeployOptions(namespace="lab", timeout=0.2))


def test_an_endpoint_that_answers_nonsense(cluster, root):
    cluster.looks_until_ready = 0
    cluster.answer = lambda _: {"nonsense": 1}
    with pytest.raises(InputError, match="KeyError"):
        deploy.deploy(root, None, root.parent / "manifest.yaml", DeployOptions(namespace="lab", timeout=0.2))


@pytest.mark.parametrize("plural", ["servingruntimes", "inferenceservices"])
@pytest.mark.parametrize("status", [403, 500, 503])
def test_what_fails_before_anything_is_sent_leaves_the_registry_alone(
    cluster, root, tmp_path, plural, status, impatient
):
    run(root)
    register(root, tmp_path / "artefact")
    cluster.refuse["GET", plural] = [(status, "no")] * FOR_EVER
    before, history = cluster.written(), Registry(root).history()
    with pytest.raises(InputError, match=str(status)):
        run(root, 2)
    assert Registry(root).read_aliases()["champion"] == 2
    assert Registry(root).history() == history
    assert cluster.written() == before
    cluster.refuse.clear()
    assert run(root, 2).status == "deployed", "a retry helps"


def away_from_the_first_write(cluster, times: int) -> None:
    """Let the API server refuse so many readings of the service, from the first write on."""

    def away(_: str) -> None:
        cluster.before_write = None
        cluster.refuse["GET", "inferenceservices"] = [(503, "down")] * times

    cluster.before_write = away


def test_a_server_that_is_away_for_a_while_is_waited_for(cluster, root, tmp_path):
    run(root)
    register(root, tmp_path / "artefact")
    away_from_the_first_write(cluster, 5)
    assert run(root, 2).status == "deployed"


def test_a_server_that_stays_away_decides_nothing(cluster, root, tmp_path, impatient):
    run(root)
    register(root, tmp_path / "artefact")
    away_from_the_first_write(cluster, FOR_EVER)
    with pytest.raises(InputError, match="503"):
        shortly(root)
    assert Registry(root).read_aliases()["champion"] == 2
    cluster.refuse.clear()
    assert run(root, 2).status == "deployed"


def test_after_an_attempt_that_decided_nothing_the_champion_before_comes_back(cluster, root, tmp_path, impatient):
    """The object already names the new version when the next attempt first looks at it, as after a killed attempt."""
    run(root)
    register(root, tmp_path / "artefact")
    away_from_the_first_write(cluster, FOR_EVER)
    with pytest.raises(InputError, match="503"):
        shortly(root)
    assert Registry(root).read_aliases()["champion"] == 2
    cluster.refuse.clear()
    assert served(cluster)["spec"]["predictor"]["model"]["storageUri"].endswith("/thyroid/2")
    cluster.answer = wrong
    with pytest.raises(InputError, match=r"0\.7.*\b1$"):
        run(root, 2)
    assert served(cluster)["spec"]["predictor"]["model"]["storageUri"].endswith("/thyroid/1")
    assert served(cluster)["metadata"]["labels"]["thyroid/version"] == "1"


def test_another_runs_champion_is_left_alone(cluster, root, tmp_path):
    run(root)
    register(root, tmp_path / "artefact")

    def meanwhile(version: int) -> dict:
        if version == 2 and Registry(root).read_aliases()["champion"] == 2:
            register(root, tmp_path / "artefact")
        return wrong(version)

    cluster.answer = meanwhile
    with pytest.raises(InputError, match=r"\b3$"):
        run(root, 2)
    assert Registry(root).read_aliases()["champion"] == 3


def test_a_canary_that_does_not_go_is_told_and_demotes_nobody(cluster, root, tmp_path):
    run(root)
    cluster.put("httproutes", manifest.route("lab", 0))
    register(root, tmp_path / "artefact")
    run(root, 2, canary=10)
    cluster.refuse["PATCH", "httproutes"] = [(409, "modified")]
    done = run(root, 2)
    assert done.status == "deployed"
    assert any(CANARY in note and "modified" in note for note in done.notes)
    assert Registry(root).read_aliases()["champion"] == 2


def test_a_route_of_kserves_own_is_refused(cluster, root, tmp_path):
    run(root)
    route = manifest.route("lab", 0)
    route["metadata"]["ownerReferences"] = [{"kind": "InferenceService", "name": "thyroid"}]
    cluster.put("httproutes", route)
    register(root, tmp_path / "artefact")
    with pytest.raises(InputError, match=manifest.ROUTE):
        run(root, 2, canary=10)


def test_additions_that_decide_who_answers_are_taken_out_and_removals_stay(cluster, root, tmp_path):
    run(root)
    predictor = served(cluster)["spec"]["predictor"]
    predictor["canaryTrafficPercent"] = 10
    predictor["model"]["image"] = "elsewhere/serve"
    del predictor["serviceAccountName"]
    register(root, tmp_path / "artefact")
    notes = run(root, 2).notes
    predictor = served(cluster)["spec"]["predictor"]
    assert "canaryTrafficPercent" not in predictor
    assert "image" not in predictor["model"]
    assert "serviceAccountName" not in predictor
    assert any("canaryTrafficPercent" in note and note.endswith("removed") for note in notes)
    assert any("serviceAccountName" in note and "kept" in note for note in notes)


def test_a_registry_in_a_bucket(cluster, tmp_path, gcs):
    bucket, path = gcs.address("registry"), tmp_path / "manifest.yaml"
    for version in (1, 2):
        register(bucket, tmp_path / "artefact")
        assert deploy.deploy(bucket, version, path, DeployOptions(namespace="lab", timeout=60)).status == "deployed"
    assert served(cluster)["spec"]["predictor"]["model"]["storageUri"] == f"{bucket}/thyroid/2"
    assert not any("alt=media" in path and "model.keras" in path for _, path in gcs.proxy.requests), "not needed here"
    cluster.answer = wrong
    register(bucket, tmp_path / "artefact")
    with pytest.raises(InputError, match=r"\b3\b.*0\.7.*\b2$"):
        deploy.deploy(bucket, 3, path, DeployOptions(namespace="lab", timeout=60))
    assert served(cluster)["spec"]["predictor"]["model"]["storageUri"] == f"{bucket}/thyroid/2"
    register(bucket, tmp_path / "artefact", "refused")
    kept = deploy.deploy(bucket, 4, path, DeployOptions(namespace="lab"))
    assert (kept.status, kept.version) == ("kept champion", 2)
    assert kept.notes == ["AUROC is not shown to be as good"]
    with pytest.raises(InputError, match="misspelt"):
        deploy.deploy(gcs.address("misspelt"), None, path, DeployOptions(namespace="lab"))


def test_another_claim(cluster, root, monkeypatch):
    monkeypatch.setenv("THYROID_CLAIM", "other")
    run(root)
    assert served(cluster)["spec"]["predictor"]["model"]["storageUri"].startswith("pvc://other/")
    monkeypatch.setenv("THYROID_CLAIM", "")
    with pytest.raises(InputError, match="KServe"):
        run(root)


def test_without_a_cluster_the_manifest_is_written(tmp_path, capsys):
    root = tmp_path / "registry"
    register(root, tmp_path / "artefact")
    done = deploy.deploy(root, 1, tmp_path / "manifest.yaml")
    assert done.status == "manifest written"
    body = yaml.safe_load((tmp_path / "manifest.yaml").read_text())
    assert body["kind"] == "InferenceService"
    assert f"python -m thyroid.serve --registry {root}" in capsys.readouterr().out


def test_a_registry_that_kserve_cannot_read(tmp_path):
    register(tmp_path / "registry", tmp_path / "artefact")
    with pytest.raises(InputError, match="KServe"):
        run(tmp_path / "registry")
    with pytest.raises(InputError, match="misspelt"):
        run(tmp_path / "misspelt")
    assert manifest.storage_uri("gs://bucket/registry/thyroid/3") == "gs://bucket/registry/thyroid/3"


@pytest.mark.parametrize("options", [{"canary": 100}, {"canary": -1}, {"min_replicas": -1}])
def test_impossible_options(options):
    ((name, value),) = options.items()
    with pytest.raises(InputError, match=f"{name}.*{value}"):
        DeployOptions(**options)


def test_command(cluster, root, capsys):
    arguments = [
        "--registry",
        str(root),
        "--namespace",
        "lab",
        "--manifest",
        str(root.parent / "m.yaml"),
        "--timeout",
        "60",
    ]
    assert main(arguments) == 0
    assert served(cluster)["metadata"]["labels"]["thyroid/version"] == "1"
    assert cluster.url in capsys.readouterr().out
    assert main(["--registry", str(root / "no"), "--namespace", "lab"]) == 2
    assert json.loads(served(cluster)["metadata"]["annotations"][APPLIED])["labels"]["thyroid/version"] == "1"
