"""Kubeflow Hub is told what the registry decides: once, completely, and at the price of a warning where it fails."""

import json
import logging
import socket
from pathlib import Path

import httpx
import pandas as pd
import pytest
from werkzeug import Request, Response

from tests.registry.test_registry import add, home
from tests.support import hub as kubeflow
from tests.support.hub import Hub, listening
from thyroid import RESEARCH_USE_ONLY
from thyroid.errors import InputError
from thyroid.model.artefact import SCANS
from thyroid.registry import __main__ as commands
from thyroid.registry import register
from thyroid.registry.hub import hub as library
from thyroid.registry.registry import Registry
from thyroid.storage import volume


@pytest.fixture
def hub(request, monkeypatch):
    monkeypatch.setenv(library.TOKEN, kubeflow.TOKEN)
    with kubeflow.running(getattr(request, "param", kubeflow.ALPHA)) as one:
        yield one


@pytest.fixture
def root(tmp_path, monkeypatch) -> str:
    """A registry on the volume, with a released version and a refused one."""
    monkeypatch.setattr(volume, "MOUNT", str(tmp_path / "data"))
    place = str(tmp_path / "data" / "registry")
    add(place, tmp_path)
    add(place, tmp_path, "refused")
    return place


def states(hub: Hub) -> dict[str, str]:
    return {row["name"]: row["state"] for row in hub.kept["model_version"].values()}


def properties(row: dict) -> dict:
    return {
        name: value.get("string_value", value.get("double_value")) for name, value in row["customProperties"].items()
    }


def writes(hub: Hub) -> list[tuple[str, str]]:
    return [request for request in hub.requests if request[0] != "GET"]


@pytest.mark.parametrize("hub", [kubeflow.ALPHA, "v1"], indirect=True)
def test_a_version_is_entered_with_its_figures(hub, root):
    record = library.enter(Registry(root), hub.url)
    (model,) = hub.kept["registered_model"].values()
    assert model["name"] == "thyroid"
    assert model["owner"]
    assert RESEARCH_USE_ONLY in model["description"]
    assert properties(model)["champion"] == "1"
    assert states(hub) == {"1": "LIVE", "2": "ARCHIVED"}
    first = hub.kept["model_version"][record.versions["1"]]
    assert RESEARCH_USE_ONLY in first["description"]
    facts = properties(first)
    assert facts["notice"] == RESEARCH_USE_ONLY
    assert (facts["backbone"], facts["gate"], facts["data_digest"]) == ("VGG16", "promoted", "0" * 64)
    assert (facts["test_auroc"], facts["test_auroc_low"], facts["test_auroc_high"]) == (0.5, 0.4, 0.6)
    assert facts["test_accuracy"] == facts["test_majority_accuracy"] == 0.5
    assert facts["test_ece"] == 0.5
    artefacts = {row["name"]: row for row in hub.kept["model_artifact"].values()}
    assert artefacts.keys() == {"thyroid-1", "thyroid-2"}
    assert artefacts["thyroid-1"]["uri"] == "pvc://thyroid-data/registry/thyroid/1"
    assert artefacts["thyroid-1"]["modelFormatName"] == "thyroid"
    assert artefacts["thyroid-1"]["modelVersionId"] == record.versions["1"]


def test_the_hub_of_these_tests_refuses_what_the_schema_forbids(hub):
    where = f"{hub.url}/api/model_registry/{kubeflow.ALPHA}/model_versions"
    token = {"authorization": f"Bearer {kubeflow.TOKEN}"}
    assert httpx.post(where, json={"name": "1", "registeredModelId": "none"}, headers=token).status_code == 400
    assert hub.problems.pop().startswith("POST ")
    assert hub.kept["model_version"] == {}


def test_nothing_is_entered_twice(hub, root):
    record = library.enter(Registry(root), hub.url)
    before, wrote = hub.kept.copy(), len(writes(hub))
    assert library.enter(Registry(root)) == record
    assert hub.kept == before
    assert len(writes(hub)) == wrote + 1, "the model's champion"
    home(root).remove("hub.json")
    assert library.enter(Registry(root), hub.url) == record
    assert len(writes(hub)) == wrote + 2


def test_what_an_ended_step_left_undone_is_completed(hub, root):
    library.enter(Registry(root), hub.url)
    home(root).remove("hub.json")
    hub.kept["model_artifact"].popitem()
    hub.kept["model_version"].popitem()
    library.enter(Registry(root), hub.url)
    assert len(states(hub)) == len(hub.kept["model_version"]) == 2
    assert {row["name"] for row in hub.kept["model_artifact"].values()} == {"thyroid-1", "thyroid-2"}


def test_the_states_follow_the_registry(hub, root, tmp_path, capsys):
    library.enter(Registry(root), hub.url)
    assert add(root, tmp_path).version == 3
    library.update(Registry(root))
    assert states(hub) == {"1": "LIVE", "2": "ARCHIVED", "3": "LIVE"}
    assert commands.main(["rollback", "--registry", root, "--reason", "worse", "--by", "a"]) == 0
    assert states(hub) == {"1": "LIVE", "2": "ARCHIVED", "3": "ARCHIVED"}
    (model,) = hub.kept["registered_model"].values()
    assert properties(model)["champion"] == "1"
    assert commands.main(["promote", "2", "--registry", root, "--reason", "better", "--by", "a"]) == 0
    assert states(hub) == {"1": "LIVE", "2": "LIVE", "3": "ARCHIVED"}
    for _ in range(2):
        add(root, tmp_path)
    library.update(Registry(root))
    assert commands.main(["gc", "--registry", root, "--keep", "1", "--delete"]) == 0
    kept = set(map(str, Registry(root).versions()))
    assert {name for name, state in states(hub).items() if state == "LIVE"} <= kept < states(hub).keys()


def test_many_versions_are_read_page_by_page(hub, root, tmp_path, monkeypatch):
    from thyroid.registry.hub import client

    monkeypatch.setattr(client, "_PAGE", 2)
    for _ in range(3):
        add(root, tmp_path)
    record = library.enter(Registry(root), hub.url)
    home(root).remove("hub.json")
    assert library.enter(Registry(root), hub.url) == record
    assert len(record.versions) == len(states(hub)) == 5


def test_the_deployment_gets_the_labels(hub, root):
    registry = Registry(root)
    assert library.labels(registry, 1) == {}
    record = library.enter(registry, hub.url)
    assert library.labels(registry, 1) == {
        "modelregistry.kubeflow.org/registered-model-id": record.model,
        "modelregistry.kubeflow.org/model-version-id": record.versions["1"],
    }
    assert library.labels(registry, 9) == {}


def test_registries_that_share_a_hub_need_names(hub, root, tmp_path):
    library.enter(Registry(root), hub.url)
    other = str(tmp_path / "data" / "other")
    add(other, tmp_path)
    wrote = len(writes(hub))
    with pytest.raises(InputError, match=r"model thyroid was entered by another registry; .*URL#NAME"):
        library.enter(Registry(other), hub.url)
    assert len(writes(hub)) == wrote
    library.enter(Registry(other), f"{hub.url}#thyroid-other")
    assert {row["name"] for row in hub.kept["registered_model"].values()} == {"thyroid", "thyroid-other"}
    library.update(Registry(other))
    assert len(hub.kept["registered_model"]) == 2


@pytest.mark.parametrize(("status", "reason"), [(403, "403: access is refused; set THYROID_HUB_TOKEN"), (503, "503 ")])
def test_a_hub_that_refuses_is_a_warning(hub, root, caplog, status, reason):
    hub.broken = status
    with caplog.at_level(logging.WARNING):
        library.update(Registry(root), hub.url)
    assert reason in caplog.text
    assert f"python -m thyroid.registry hub --registry {root} --hub URL" in caplog.text
    assert kubeflow.TOKEN not in caplog.text
    hub.broken = 0
    assert commands.main(["hub", "--registry", root, "--hub", hub.url]) == 0
    assert len(states(hub)) == 2


def test_a_missing_token_is_named(hub, root, monkeypatch):
    monkeypatch.delenv(library.TOKEN)
    with pytest.raises(InputError, match=r"401: access is refused; set THYROID_HUB_TOKEN"):
        library.enter(Registry(root), hub.url)


def test_an_absent_or_silent_hub_is_a_warning(root, monkeypatch, caplog):
    monkeypatch.setattr(library, "_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        library.update(Registry(root), f"http://127.0.0.1:{port}")
        assert "not done within 0.5 s" in caplog.text
    caplog.clear()
    library.update(Registry(root), f"http://127.0.0.1:{port}")
    assert f"Kubeflow Hub http://127.0.0.1:{port}: " in caplog.text
    caplog.clear()
    library.update(Registry(root))
    assert caplog.text == "", "nobody asked for a Hub"


@pytest.mark.parametrize(
    "url", ["hub", "ftp://hub", "http://", "http://:8080", "http://name:secret@hub", "http://[::1", "http://hub:port"]
)
def test_an_address_that_is_none_is_refused(root, url, caplog):
    with pytest.raises(InputError, match="give the address of Kubeflow Hub"):
        library.enter(Registry(root), url)
    library.update(Registry(root), url)
    assert "give the address of Kubeflow Hub" in caplog.text
    assert "secret" not in caplog.text


def test_what_a_hub_answers_is_bounded(hub, root, monkeypatch, caplog):
    from thyroid.registry.hub import client

    record = library.enter(Registry(root), hub.url)
    monkeypatch.setattr(client, "_PAGE", 1)
    monkeypatch.setattr(client, "_MOST", 4000)  # of all answers together, each of which is smaller
    library.update(Registry(root))
    assert f"Kubeflow Hub {hub.url}: answers with more than " in caplog.text
    assert library.labels(Registry(root), 1)["modelregistry.kubeflow.org/model-version-id"] == record.versions["1"]


def test_a_hub_that_redirects_elsewhere_does_not_pass_the_token_on(root, monkeypatch, caplog):
    monkeypatch.setenv(library.TOKEN, kubeflow.TOKEN)
    seen: list[str | None] = []

    @Request.application
    def other(request: Request) -> Response:
        seen.append(request.headers.get("authorization"))
        return Response("log in", content_type="text/html")

    with listening(other) as target:

        @Request.application
        def hub(request: Request) -> Response:
            seen.append(request.headers.get("authorization"))
            return Response(status=307, headers={"location": target + request.path})

        with listening(hub) as url:
            library.update(Registry(root), url)
    assert seen == [f"Bearer {kubeflow.TOKEN}", None]
    assert "Kubeflow Hub" in caplog.text


def test_what_people_have_entered_there_stays(hub, root):
    record = library.enter(Registry(root), hub.url)
    model = hub.kept["registered_model"][record.model]
    team = {"team": {"string_value": "A", "metadataType": "MetadataStringValue"}}
    model |= {"description": "Ask A first.", "customProperties": model["customProperties"] | team}
    hub.kept["model_version"]["99"] = {
        "id": "99", "name": "trial", "registeredModelId": record.model, "author": "A", "state": "LIVE",
    }  # fmt: skip
    Registry(root).promote("2", "better", "a")
    library.update(Registry(root))
    assert properties(model)["champion"] == "2"
    assert properties(model)["team"] == "A"
    assert model["description"] == "Ask A first."
    assert states(hub)["trial"] == "LIVE"


def test_a_model_of_somebody_else_is_left(hub, root):
    record = library.enter(Registry(root), hub.url)
    model = hub.kept["registered_model"][record.model]
    model["customProperties"] = {"registry": {"int_value": "7", "metadataType": "MetadataIntValue"}}
    with pytest.raises(InputError, match="was entered by another registry"):
        library.enter(Registry(root), hub.url)


def test_what_only_this_machine_can_read_is_not_entered(tmp_path):
    add(tmp_path / "elsewhere", tmp_path)
    with pytest.raises(InputError, match="a cluster cannot read this path"):
        library.enter(Registry(tmp_path / "elsewhere"), "http://localhost:1")
    with pytest.raises(InputError, match="the registry is empty"):
        library.enter(Registry(tmp_path / "new"), "http://localhost:1")


NO_LABEL = b'{"url": "http://hub", "model": "1", "versions": {"1": "not a label"}}'


@pytest.mark.parametrize("content", [b"", b"[]", b'{"url": 1}', b"[" * 100_000, NO_LABEL])
def test_a_damaged_file_is_named_and_replaced(hub, root, caplog, content):
    record = library.enter(Registry(root), hub.url)
    home(root).write("hub.json", content)
    assert library.labels(Registry(root), 1) == {}
    library.update(Registry(root))
    assert caplog.text.count("hub.json: damaged: ") == 2
    assert library.enter(Registry(root), hub.url) == record


def test_a_file_that_cannot_be_read_is_a_warning(root, caplog):
    (Path(root) / "thyroid" / "hub.json").mkdir()
    assert library.labels(Registry(root), 1) == {}
    library.update(Registry(root))
    assert caplog.text.count("hub.json: Is a directory") == 2


def test_a_damaged_version_does_not_keep_the_others_out(hub, root, caplog):
    home(root).write("2/model.json", b"{}")
    library.enter(Registry(root), hub.url)
    assert states(hub) == {"1": "LIVE"}
    assert "version 2 is not entered in Kubeflow Hub" in caplog.text


def test_the_registration_tells_the_hub_and_does_without_it(hub, evaluated, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(volume, "MOUNT", str(tmp_path))
    given = evaluated, tmp_path / "registry", tmp_path / "summary.json"
    hub.broken = 500
    done = register.register(*given, hub=hub.url)
    assert "Kubeflow Hub" in caplog.text
    assert (tmp_path / "summary.json").is_file()
    hub.broken = 0
    assert register.register(*given, hub=hub.url) == done, "a step that is tried again"
    assert states(hub) == {"1": "ARCHIVED"}, "its gate refused it"
    assert register.register(*given) == done
    text = json.dumps(hub.kept)
    assert not {"patient.key", "scans.csv"} & set(text.split('"'))
    for name in pd.read_csv(Path(done.uri) / SCANS)["patient"]:
        assert name not in text


def test_a_registry_in_a_bucket_is_entered_as_such(hub, gcs, tmp_path):
    root = gcs.address("some/registry")
    add(root, tmp_path)
    library.enter(Registry(root), hub.url)
    (artefact,) = hub.kept["model_artifact"].values()
    assert artefact["uri"] == f"{root}/thyroid/1"
    assert library.labels(Registry(root), 1)
