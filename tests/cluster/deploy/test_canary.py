"""A canary in Standard mode: proven at its own service before it gets a share, then its share, then the end of it."""

import copy
import json
from typing import Any

import pytest

from tests.support.deploying import CANARY_HOST, DAMAGED, WRONG, Clients, owners

pytestmark = pytest.mark.cluster


def _canary(place) -> dict[str, Any]:
    (entry,) = place.live()["spec"]["canary"]
    return {"version": entry["predictor"]["labels"]["thyroid/version"], "percent": entry["trafficPercent"]}


def _weights(place) -> list[int]:
    """The canary's weights in the order in which the route got them; 0 also without it."""
    routed = [event.removeprefix("routed thyroid ") for event in place.controller.events]
    found = [json.loads(one.replace("'", '"')) for one in routed if one.startswith("{")]
    return [one.get("thyroid-v2-predictor", 0) for one in found]


def test_it_is_proven_before_it_gets_its_share(served):
    place, host, asked = served, CANARY_HOST.format(2, served.namespace.name), []

    def note(event: str) -> None:
        if event.startswith("routed thyroid {"):
            asked.append(place.proxy.asked[host, place.uri(2)])

    place.controller.on_event = note
    with Clients(place) as clients:
        said = place.deploy("--canary", "25")
        place.until_weight(25)
        before = place.settled()
        assert f"as evaluated at http://{host}" in said
        assert _weights(place)[-2:] == [0, 25]
        assert asked[-2] == 0
        assert asked[-1] > 0
        assert _canary(place) == {"version": "2", "percent": 25}
        assert place.live()["spec"]["predictor"]["model"]["storageUri"] == place.uri(1)
        assert place.live()["metadata"]["labels"]["thyroid/version"] == "1"
        assert (place.history(2), place.registry.champion()) == (["sent", "proven"], 2)
        assert place.shares(20)[2] in (4, 5, 6)  # the others' requests are dealt from the same deck

        assert "InferenceService thyroid is up to date" in place.deploy("--canary", "25")
        assert place.live()["metadata"] == before["metadata"]

        place.deploy("--canary", "50")
        place.until_weight(50)
        assert 0 not in _weights(place)[_weights(place).index(25) :]

        place.controller.events.clear()
        place.deploy()
        assert "canary" not in place.live()["spec"]
        assert place.live()["spec"]["predictor"]["model"]["storageUri"] == place.uri(2)
        assert place.live()["metadata"]["labels"]["thyroid/version"] == "2"
    assert clients.failures == []
    assert place.shares(4) == {2: 4}
    assert not [event for event in place.controller.events if event.startswith("started")]
    assert owners(place.live()) == {"thyroid": ["Apply"]}


@pytest.mark.parametrize(
    ("version", "why"),
    [(WRONG, "answers the reference image with"), (DAMAGED, "ModelLoadFailed: ")],
)
def test_one_that_fails_is_removed_and_nobody_notices(served, version, why):
    place = served
    place.release(version)
    before = place.live()
    with Clients(place) as clients:
        said = place.deploy("--canary", "25", code=2)
    assert f"version {version} is not served: " in said
    assert why in said
    assert "InferenceService thyroid was restored; the champion is version 2" in said
    assert not place.live()["spec"].get("canary")
    assert place.live()["spec"]["predictor"] == before["spec"]["predictor"]
    assert place.live()["metadata"]["labels"] == before["metadata"]["labels"]
    assert (clients.failures, set(clients.answers)) == ([], {1})
    assert (place.registry.champion(), place.history(version)) == (2, ["sent"])
    assert version in place.registry.refuted()


def test_a_second_canary_takes_the_place_of_the_first(served):
    """While version 2 is a canary, a version 3 that fails leaves version 2 its share."""
    place = served
    place.deploy("--canary", "25")
    place.release(WRONG)
    place.deploy("--canary", "10", code=2)
    assert _canary(place) == {"version": "2", "percent": 25}
    place.until_weight(25)
    assert place.registry.champion() == 2


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ("none serves", "a canary needs another version that serves beside it"),
        ("itself", "a canary needs another version that serves beside it"),
        ("outside", "deploy a canary in the pipeline or the workbench: only pods reach its own service"),
        ("no gateway", "a canary needs the Gateway API, and KServe made no HTTPRoute thyroid"),
    ],
)
def test_it_is_refused_before_anything_is_sent(place, case, why):
    if case != "none serves":
        if case == "no gateway":
            place.controller.gateway = False
        place.deploy()
        place.release(1 if case == "itself" else 2)
    before = place.state()
    outside = {"KUBERNETES_SERVICE_HOST": ""} if case == "outside" else {}
    assert why in place.deploy("--canary", "25", code=2, **outside)
    assert place.state() == before


def test_an_older_kserve_has_no_canary(own_server, served):
    place, name = served, "inferenceservices.serving.kserve.io"
    present = json.loads(own_server.kubectl("get", "crd", name, "--output=json"))
    del present["metadata"]["resourceVersion"]
    older = copy.deepcopy(present)
    del older["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["canary"]
    before = place.state()
    own_server.kubectl("replace", "--filename=-", text=json.dumps(older))
    try:
        place.until_schema(has_canary=False)
        said = place.deploy("--canary", "25", code=2)
        after = place.state()
    finally:
        own_server.kubectl("replace", "--filename=-", text=json.dumps(present))
        place.until_schema(has_canary=True)
    assert "0.20" in said
    assert after["service"] == before["service"]
    assert after["champion"] == 2
    assert place.shares(3) == {1: 3}
