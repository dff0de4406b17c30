"""The stand-in for KServe does on a real API server what the deployment's tests rely on."""

import json
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import kserve
from tests.support.kserve import Controller
from tests.support.kserve_network import Proxy, Webhook
from tests.support.kubernetes import ApiServer, Namespace
from tests.support.serving import PREDICT, encoded

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("no_kserve")]


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """What stands for the pipeline's volume, with a registry of two versions."""
    for _ in range(2):
        kserve.publish(tmp_path / "registry")
    return tmp_path


@pytest.fixture
def controller(server: ApiServer, namespace: Namespace, volume: Path) -> Iterator[Controller]:
    with Controller(server.kubeconfig, namespace.name, volume, deletion_seconds=0.5) as one:
        yield one


@pytest.fixture
def proxy(controller: Controller) -> Iterator[Proxy]:
    with Proxy(controller) as one:
        yield one


def uri(version: int) -> str:
    return f"pvc://thyroid-data/registry/thyroid/{version}"


def predictor(version: int, **more: Any) -> dict[str, Any]:
    model = {"modelFormat": {"name": "thyroid"}, "runtime": "thyroid", "storageUri": uri(version)}
    return {"minReplicas": 1, "model": model} | more


def service(version: int, canary: int = 0, percent: int = 10, mode: str = "Standard", **more: Any) -> str:
    """An InferenceService with a version, and perhaps another one as its canary."""
    spec: dict[str, Any] = {"predictor": predictor(version, **more)}
    if canary:
        entry = predictor(canary, name=f"v{canary}")
        entry["model"]["name"] = "kserve-container"  # KServe's schema demands it of a canary
        spec["canary"] = [{"trafficPercent": percent, "predictor": entry}]
    metadata = {"name": "thyroid", "annotations": {kserve.MODE: mode}}
    return json.dumps(
        {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "metadata": metadata, "spec": spec}
    )


def status(namespace: Namespace) -> dict[str, Any]:
    found: dict[str, Any] = namespace.objects("inferenceservices", "thyroid").get("status", {})
    return found


def condition(namespace: Namespace, kind: str = "Ready") -> str | None:
    rows = {row["type"]: row["status"] for row in status(namespace).get("conditions", [])}
    return rows.get(kind)


def backends(namespace: Namespace) -> dict[str, int]:
    (rule,) = namespace.objects("httproutes", "thyroid")["spec"]["rules"]
    return {one["name"]: one["weight"] for one in rule["backendRefs"]}


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def ask(proxy: Proxy, url: str, reference: Path) -> dict[str, Any]:
    """Send a reference image as a process inside the cluster would."""
    body = json.dumps({"instances": [{"image": encoded(reference), "domain": "crop"}]}).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": proxy.url}))
    request = urllib.request.Request(url + PREDICT, body, {"Content-Type": "application/json"})
    with opener.open(request, timeout=30) as answer:
        prediction: dict[str, Any] = json.load(answer)["predictions"][0]
        return prediction


def versions(proxy: Proxy, url: str, volume: Path, count: int = 1) -> Counter[int]:
    reference = volume / "registry/thyroid/1/reference.jpg"
    return Counter(ask(proxy, url, reference)["model_version"] for _ in range(count))


def card(volume: Path, version: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((volume / f"registry/thyroid/{version}/model.json").read_text())
    return found


def test_a_service_becomes_ready_and_answers_as_evaluated(namespace, controller, proxy, volume):
    namespace.apply(service(1))
    until(lambda: condition(namespace) == "True")
    found = status(namespace)
    assert found["url"] == f"http://thyroid-{namespace.name}.example.com"
    assert found["address"] == {"url": f"http://thyroid-predictor.{namespace.name}.svc.cluster.local"}
    assert (found["deploymentMode"], found["modelStatus"]["transitionStatus"]) == ("Standard", "UpToDate")
    for url in (found["url"], found["address"]["url"]):
        answer = ask(proxy, url, volume / "registry/thyroid/1/reference.jpg")
        assert answer["probability"] == pytest.approx(card(volume, 1)["reference"])
    assert namespace.objects("inferenceservices", "thyroid")["metadata"]["finalizers"] == [kserve.FINALIZER]
    with pytest.raises(urllib.error.HTTPError, match="502"):
        versions(proxy, f"http://thyroid-v2-predictor.{namespace.name}.svc.cluster.local", volume)


def test_a_wrong_answer(namespace, controller, proxy, volume):
    version = kserve.publish(volume / "registry", "wrong answer")
    namespace.apply(service(version))
    until(lambda: condition(namespace) == "True")
    answer = ask(proxy, status(namespace)["url"], volume / f"registry/thyroid/{version}/reference.jpg")
    assert abs(answer["probability"]["M"] - card(volume, version)["reference"]["M"]) > 0.2


def test_the_previous_version_serves_until_the_next_one_is_ready(namespace, controller, proxy, volume):
    namespace.apply(service(1))
    until(lambda: condition(namespace) == "True")
    url, first, during = status(namespace)["url"], controller.servers[uri(1)], []

    def note(event: str) -> None:
        if event == f"started {uri(2)}":
            during.append((versions(proxy, url, volume), condition(namespace)))

    controller.on_event = note
    namespace.apply(service(2))
    until(lambda: status(namespace)["observedGeneration"] == 2)
    until(lambda: status(namespace)["modelStatus"]["transitionStatus"] == "UpToDate")
    assert during == [(Counter([1]), "True")]
    assert versions(proxy, url, volume) == Counter([2])
    assert first.process.wait(30) == 0


def test_a_canary_gets_its_share_and_is_promoted_without_a_restart(namespace, controller, proxy, volume):
    namespace.apply(service(1))
    until(lambda: condition(namespace) == "True")
    url = status(namespace)["url"]
    namespace.apply(service(1, canary=2, percent=0))
    until(lambda: condition(namespace, "CanaryPredictorReady") == "True")
    own = f"http://thyroid-v2-predictor.{namespace.name}.svc.cluster.local"
    assert versions(proxy, own, volume) == Counter([2])
    assert versions(proxy, url, volume, 5) == Counter({1: 5})
    namespace.apply(service(1, canary=2, percent=20))
    until(lambda: status(namespace)["canaryStatuses"][0]["trafficPercent"] == 20)
    assert versions(proxy, url, volume, 10) == Counter({1: 8, 2: 2})
    assert backends(namespace) == {"thyroid-predictor": 80, "thyroid-v2-predictor": 20}
    owners = namespace.objects("httproutes", "thyroid")["metadata"]["ownerReferences"]
    assert [owner["kind"] for owner in owners] == ["InferenceService"]
    canary = controller.servers[uri(2)]
    namespace.apply(service(2))
    until(lambda: "canaryStatuses" not in status(namespace))
    assert versions(proxy, url, volume, 5) == Counter({2: 5})
    assert controller.servers == {uri(2): canary}
    assert condition(namespace, "CanaryPredictorReady") is None


def test_a_change_of_the_route_by_hand_is_undone(namespace, controller):
    namespace.apply(service(1))
    until(lambda: condition(namespace) == "True")
    changed = json.dumps({"spec": {"rules": [{"backendRefs": [{"name": "elsewhere", "port": 80}]}]}})
    namespace.kubectl("patch", "httproute", "thyroid", "--type=merge", "--patch", changed)
    until(lambda: backends(namespace) == {"thyroid-predictor": 100})


def test_a_damaged_model_is_blocked_and_gets_no_requests(namespace, controller, proxy, volume):
    damaged = kserve.publish(volume / "registry", "damaged")
    namespace.apply(service(1, canary=damaged, percent=50))
    until(lambda: condition(namespace) == "True" and f"failed {uri(damaged)}" in controller.events)
    until(lambda: status(namespace)["canaryStatuses"][0]["modelStatus"]["transitionStatus"] == "BlockedByFailedLoad")
    assert condition(namespace, "CanaryPredictorReady") == "False"
    assert versions(proxy, status(namespace)["url"], volume, 4) == Counter({1: 4})
    namespace.apply(service(damaged))
    until(lambda: status(namespace)["modelStatus"]["transitionStatus"] == "BlockedByFailedLoad")
    failure = status(namespace)["modelStatus"]["lastFailureInfo"]
    assert "sha256 differs" in failure["message"]
    assert versions(proxy, status(namespace)["url"], volume) == Counter([1])


def test_a_deleted_service_stays_until_its_finalizer_is_done(namespace, controller, proxy, volume):
    namespace.apply(service(1))
    until(lambda: condition(namespace) == "True")
    url, server = status(namespace)["url"], controller.servers[uri(1)]
    namespace.kubectl("delete", "inferenceservice", "thyroid", "--wait=false")
    until(lambda: "deleting thyroid" in controller.events)
    assert "deletionTimestamp" in namespace.objects("inferenceservices", "thyroid")["metadata"]
    until(lambda: namespace.objects("inferenceservices") == [])
    assert namespace.objects("httproutes") == []
    assert server.process.wait(30) == 0
    with pytest.raises(urllib.error.HTTPError, match="502"):
        versions(proxy, url, volume)


def test_it_survives_a_restart_of_the_api_server(own_server, namespace, controller):
    namespace.apply(service(1))
    until(lambda: condition(namespace) == "True")
    own_server.restart()
    own_server.wait()
    until(lambda: _applied(namespace, service(2)))
    until(lambda: status(namespace)["observedGeneration"] == 2)
    assert controller.events.count(f"started {uri(1)}") == 1


def _applied(namespace: Namespace, text: str) -> bool:
    """Whether an object was applied. A server that has just started refuses for two seconds."""
    try:
        namespace.apply(text)
    except RuntimeError:
        return False
    return True


def test_without_the_gateway_api_a_canary_gets_no_requests(server, namespace, volume):
    with Controller(server.kubeconfig, namespace.name, volume, gateway=False) as controller, Proxy(controller) as proxy:
        namespace.apply(service(1, canary=2, percent=50))
        until(lambda: condition(namespace) == "True" and condition(namespace, "CanaryPredictorReady") == "True")
        assert namespace.objects("httproutes") == []
        assert versions(proxy, status(namespace)["url"], volume, 4) == Counter({1: 4})


def test_knative_splits_one_service(namespace, controller, proxy, volume):
    namespace.apply(service(1, mode="Knative"))
    until(lambda: condition(namespace) == "True")
    namespace.apply(service(2, mode="Knative", canaryTrafficPercent=25))
    until(lambda: status(namespace)["observedGeneration"] == 2 and condition(namespace) == "True")
    found = status(namespace)
    (latest,) = [one for one in found["components"]["predictor"]["traffic"] if one["latestRevision"]]
    inside = f"http://latest-thyroid-predictor.{namespace.name}.svc.cluster.local"
    assert (latest["percent"], latest["tag"]) == (25, "latest")
    assert versions(proxy, latest["url"], volume) == versions(proxy, inside, volume) == Counter([2])
    assert versions(proxy, found["url"], volume, 8) == Counter({1: 6, 2: 2})
    namespace.apply(service(2, mode="Knative"))
    until(lambda: controller.traffic["thyroid"] == Counter({uri(2): 100}))
    assert versions(proxy, found["address"]["url"], volume, 3) == Counter({2: 3})


def test_the_webhook_refuses(own_server, namespace, controller, tmp_path):
    crowded = json.loads(service(1, canary=2, percent=60))
    (first,) = crowded["spec"]["canary"]
    crowded["spec"]["canary"].append(first | {"predictor": first["predictor"] | {"name": "v3"}})
    with Webhook(own_server.kubeconfig, namespace.name, tmp_path) as webhook:
        for wrong, why in (
            (service(1, canary=2, mode="Knative"), "only supported in Standard deployment mode"),
            (json.dumps(crowded), "exceeds 100"),
            (service(1, canary=2, name="v2"), "a predictor.name of its own"),
            (service(1, canary=2, canaryTrafficPercent=10), "mutually exclusive"),
        ):
            with pytest.raises(RuntimeError, match=f"denied the request: .*{why}"):
                namespace.apply(wrong)
        namespace.apply(service(1))
        until(lambda: condition(namespace) == "True")
        with pytest.raises(RuntimeError, match=r"predictor\.name change requires a model change"):
            namespace.apply(service(1, name="v1"))
        with pytest.raises(RuntimeError, match="cannot be changed from 'Standard' to 'Knative'"):
            namespace.apply(service(1, mode="Knative"))
        webhook.refuse = "not on a Friday"
        with pytest.raises(RuntimeError, match="denied the request: not on a Friday"):
            namespace.apply(service(2))
    namespace.apply(service(2))
