"""The manifests as kustomize renders them: valid, least rights, and the same as the code and the deploy step say."""

import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from http import HTTPStatus
from pathlib import Path

import jsonschema
import pytest
import yaml
from kserve.protocol.grpc import grpc_predict_v2_pb2
from prometheus_client.metrics import MetricWrapperBase

from pipelines.cluster import S3_FIELDS, Cluster
from pipelines.events import messages
from tests.support import ROOT, schemas, watched
from tests.support.kubernetes import kustomized
from tests.support.listening import records
from thyroid.deploy import manifest
from thyroid.deploy.options import KNATIVE, DeployOptions
from thyroid.registry.registry import MODEL_NAME
from thyroid.serve import prometheus as metrics
from thyroid.serve.decisions import writer
from thyroid.storage.volume import CLAIM
from thyroid.watch import prometheus
from thyroid.web import upload

FOLDERS = sorted(
    file.parent.relative_to(ROOT).as_posix()
    for folder in ("overlays", "service")  # what is in components is rendered with the overlays that name it
    for file in (ROOT / "manifests" / folder).glob("*/kustomization.yaml")
)
BENCH = ("manifests/overlays/label", "manifests/overlays/label-gateway", "manifests/overlays/label-ingress")
RUNTIMES = {"thyroid", "thyroid-knative", "thyroid-gpu", "thyroid-gpu-knative"}
ENDS = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}
"""Ends of the names of a metric's samples by its type."""
CHECKOV = Path(sys.prefix) / "checkov" / "bin" / "checkov"


@pytest.fixture(scope="module")
def rendered() -> dict[str, list[dict]]:
    """Folder to its objects."""
    return {folder: kustomized(folder) for folder in FOLDERS}


def of_kind(objects: list[dict], kind: str) -> dict[str, dict]:
    return {one["metadata"]["name"]: one for one in objects if one["kind"] == kind}


def test_every_metric_of_the_alerts_and_the_dashboard_is_there(tmp_path):
    """At the endpoint, or in watch.prom."""
    text = (ROOT / "manifests" / "components" / "alerts" / "rules.yaml").read_text()
    groups = yaml.safe_load(text)["spec"]["groups"]
    asked = [rule["expr"] for group in groups for rule in group["rules"]]
    panels = json.loads((ROOT / "manifests" / "base" / "dashboard.json").read_text())["panels"]
    asked += [target["expr"] for panel in panels for target in panel.get("targets", [])]
    known = {writer.COUNT, *(one for one in vars(metrics).values() if isinstance(one, MetricWrapperBase))}
    there = {f"{found.name}{end}" for one in known for found in one.collect() for end in ENDS[found.type]}
    prometheus.write(watched.record(), tmp_path)
    there |= set(re.findall(r"^thyroid_\w+", (tmp_path / prometheus.FILE).read_text(), re.MULTILINE))
    named = set(re.findall(r"\bthyroid_\w+", " ".join(asked)))
    assert {"thyroid_watch_drift", "thyroid_decisions_total"} <= named <= there


def test_what_kustomizations_name_is_kept():
    """An ignored file would be missing from a clone."""
    kept = subprocess.run(["git", "ls-files", "manifests"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not kept:
        pytest.skip("not a git clone")
    for file in (ROOT / "manifests").rglob("kustomization.yaml"):
        for name in yaml.safe_load(file.read_text()).get("resources", []):
            path = (file.parent / name).resolve()
            if path.suffix:
                assert path.relative_to(ROOT).as_posix() in kept


def test_the_folders():
    assert FOLDERS == [
        "manifests/overlays/bucket",
        "manifests/overlays/cpu",
        "manifests/overlays/gateway",
        "manifests/overlays/gpu",
        "manifests/overlays/ingress",
        "manifests/overlays/label",
        "manifests/overlays/label-gateway",
        "manifests/overlays/label-ingress",
        "manifests/overlays/listen",
        "manifests/overlays/listen-argo",
        "manifests/overlays/listen-knative",
        "manifests/overlays/multi-user",
        "manifests/service/cpu",
        "manifests/service/gpu",
    ]


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_object_is_valid(rendered, folder):
    known = schemas.definitions()
    skipped = set()
    for one in rendered[folder]:
        found = schemas.problems(one, known)
        if found is None and one["kind"] != "AuthorizationPolicy":  # Istio's, which has a test of its own
            skipped.add(one["kind"])
        assert not found, one["metadata"]["name"]
    if skipped:
        pytest.skip(f"no CustomResourceDefinition of {', '.join(sorted(skipped))} here ({schemas.CRDS})")


def test_overlays_hold_what_a_namespace_needs(rendered):
    kinds = {one["kind"] for one in rendered["manifests/overlays/cpu"]}
    assert kinds == {
        "ServiceAccount", "Role", "RoleBinding", "PersistentVolumeClaim", "ServingRuntime", "NetworkPolicy",
        "ConfigMap", "Deployment", "Service", "Pod",
    }  # fmt: skip
    assert set(of_kind(rendered["manifests/overlays/cpu"], "ServingRuntime")) == {"thyroid", "thyroid-knative"}
    assert set(of_kind(rendered["manifests/overlays/gpu"], "ServingRuntime")) == RUNTIMES
    dashboard = of_kind(rendered["manifests/overlays/cpu"], "ConfigMap")["thyroid-dashboard"]
    assert json.loads(dashboard["data"]["thyroid.json"])["panels"]
    assert CLAIM in of_kind(rendered["manifests/overlays/cpu"], "PersistentVolumeClaim")


def names(objects: list[dict]) -> set[tuple[str, str]]:
    return {(one["kind"], one["metadata"]["name"]) for one in objects}


def test_without_a_shared_volume_nothing_else_is_missing(rendered):
    found, everything = (rendered[f"manifests/overlays/{name}"] for name in ("bucket", "cpu"))
    assert names(everything) - names(found) == {
        ("PersistentVolumeClaim", CLAIM), ("Pod", "thyroid-volume"), ("NetworkPolicy", "thyroid-volume"),
    }  # fmt: skip
    assert names(found) < names(everything)
    assert CLAIM not in yaml.safe_dump_all(found)


@pytest.fixture(scope="module")
def volumeless(tmp_path_factory) -> list[dict]:
    """The objects of the kustomization that the guide shows for the bench and the log; skipped without kubectl."""
    guide = (ROOT / "docs" / "kubeflow.md").read_text()
    (text,) = [block for block in re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL) if "no-volume" in block]
    folder = tmp_path_factory.mktemp("own")
    text = re.sub(r"\bmanifests/", f"{os.path.relpath(ROOT, folder)}/manifests/", text)
    (folder / "kustomization.yaml").write_text(text)
    return kustomized(folder)


def test_the_bench_and_the_log_need_no_volume(volumeless):
    known = schemas.definitions()
    assert not any(schemas.problems(one, known) for one in volumeless)
    assert CLAIM not in yaml.safe_dump_all(volumeless)
    pod = of_kind(volumeless, "Deployment")["thyroid-label"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    given = dict(zip(container["args"], container["args"][1:], strict=False))
    assert all(given[option].startswith("s3://") for option in ("--scans", "--labelled"))
    assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in pod["volumes"]}
    for runtime in of_kind(volumeless, "ServingRuntime").values():
        (server,) = runtime["spec"]["containers"]
        assert server["args"][-2:] == ["--log-url", "$(THYROID_LOG_URL)"]
        assert "--log" not in server["args"]
        keys = [one["name"] for one in server["env"]]
        assert len(keys) == len(set(keys))
        assert {"THYROID_LOG_URL", "THYROID_PATIENT_KEY"} <= set(keys)


def test_all_who_read_buckets_get_the_keys_of_s3(rendered):
    """By the name that the steps have by default; KServe takes them from the account of the servers."""
    objects = rendered["manifests/overlays/label"]
    secret = Cluster().s3_secret
    assert of_kind(objects, "ServiceAccount")["thyroid-serve"]["secrets"] == [{"name": secret}]
    bench = of_kind(objects, "Deployment")["thyroid-label"]["spec"]["template"]["spec"]
    workbench = yaml.safe_load((ROOT / "manifests" / "workbench" / "pod.yaml").read_text())["spec"]
    for pod in (bench, workbench):
        assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": secret, "optional": True}}]
    policies = of_kind(objects, "NetworkPolicy")
    for name in ("thyroid-serve", "thyroid-label"):
        anywhere = [rule for rule in policies[name]["spec"]["egress"] if "to" not in rule]
        ports = {port["port"] for rule in anywhere for port in rule["ports"]}
        assert {443, 9000, 8333, 7480} <= ports, "Amazon and Google, MinIO, SeaweedFS, Ceph"


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_the_service_is_what_the_deploy_step_makes(rendered, kind):
    (found,) = rendered[f"manifests/service/{kind}"]
    uri = f"pvc://{CLAIM}/registry/thyroid/1"
    assert found == manifest.inference_service(1, uri, DeployOptions(serving_gpu=kind == "gpu"))


def test_the_page_is_reached_by_every_kind_of_entry_and_asks_the_endpoint(rendered):
    objects = rendered["manifests/overlays/gateway"]
    service = of_kind(objects, "Service")["thyroid-web"]["spec"]
    deployment = of_kind(objects, "Deployment")["thyroid-web"]["spec"]["template"]
    (container,) = deployment["spec"]["containers"]
    labels = deployment["metadata"]["labels"]
    assert service["selector"].items() <= labels.items()
    assert service["ports"][0]["targetPort"] in [port["name"] for port in container["ports"]]
    assert (
        of_kind(objects, "NetworkPolicy")["thyroid-web"]["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    )
    entry = of_kind(objects, "HTTPRoute")["thyroid-web"]["spec"]["rules"][0]["backendRefs"][0]
    assert entry == {"name": "thyroid-web", "port": service["ports"][0]["port"]}
    ingress = of_kind(rendered["manifests/overlays/ingress"], "Ingress")["thyroid-web"]["spec"]["rules"][0]["http"]
    backend = ingress["paths"][0]["backend"]["service"]
    assert backend == {"name": "thyroid-web", "port": {"name": service["ports"][0]["name"]}}
    # what the deploy step's InferenceService is reached by, and what Knative calls it, too
    endpoint = container["args"][container["args"].index("--endpoint") + 1]
    assert endpoint == "http://thyroid-predictor.$(NAMESPACE).svc.cluster.local"
    assert {one["name"] for one in container["env"]} == {"NAMESPACE", "THYROID_TOKEN", "THYROID_PAGE_SECRET"}
    assert container["image"].startswith("localhost/thyroid-web:")
    size = of_kind(rendered["manifests/overlays/ingress"], "Ingress")["thyroid-web"]["metadata"]["annotations"]
    assert int(size["nginx.ingress.kubernetes.io/proxy-body-size"].removesuffix("m")) * 1e6 > upload.MAX_TOTAL


def test_the_pages_arguments_are_its_own(rendered):
    """As the container would start it, up to where it would listen."""
    deployment = of_kind(rendered["manifests/overlays/cpu"], "Deployment")["thyroid-web"]["spec"]["template"]["spec"]
    command, *arguments = deployment["containers"][0]["args"]
    assert command == "python3"
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = str(other.getsockname()[1])
        done = subprocess.run(
            [sys.executable, *arguments, "--port", port], capture_output=True, text=True, cwd=ROOT, timeout=60
        )
    assert f"port {port}" in done.stderr, done.stderr


@pytest.mark.parametrize("folder", BENCH)
def test_the_bench_reads_the_volume_knows_its_readers_and_asks_the_endpoint(rendered, folder):
    objects = rendered[folder]
    service = of_kind(objects, "Service")["thyroid-label"]["spec"]
    deployment = of_kind(objects, "Deployment")["thyroid-label"]["spec"]
    pod, labels = deployment["template"]["spec"], deployment["template"]["metadata"]["labels"]
    (container,) = pod["containers"]
    assert service["selector"].items() <= labels.items()
    assert service["ports"][0]["targetPort"] in [port["name"] for port in container["ports"]]
    policy = of_kind(objects, "NetworkPolicy")["thyroid-label"]["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert container["image"].startswith("localhost/thyroid-label:")
    given = dict(zip(container["args"], container["args"][1:], strict=False))
    assert given["--endpoint"] == "http://thyroid-predictor.$(NAMESPACE).svc.cluster.local"
    mounts = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
    volumes = {one["name"]: one for one in pod["volumes"]}
    for option in ("--scans", "--labelled"):
        claim = volumes[mounts["/" + given[option].split("/")[1]]]["persistentVolumeClaim"]["claimName"]
        assert claim in of_kind(objects, "PersistentVolumeClaim")
    folder, _, name = given["--readers"].rpartition("/")
    secret = volumes[mounts[folder]]["secret"]
    assert (secret["secretName"], [one["path"] for one in secret["items"]]) == ("thyroid-label", [name])
    assert {one["name"] for one in container["env"]} == {
        "NAMESPACE", "THYROID_TOKEN", "THYROID_LABEL_SECRET", "THYROID_PATIENT_KEY",
    }  # fmt: skip
    keys = [one for one in container["env"] if one["name"] == "THYROID_PATIENT_KEY"]
    assert keys[0]["valueFrom"]["secretKeyRef"]["name"] == Cluster().key_secret


def test_the_bench_is_reached_by_every_kind_of_entry_and_by_none_unless_asked(rendered):
    by_itself, gateway, ingress = (rendered[folder] for folder in BENCH)
    assert not of_kind(by_itself, "HTTPRoute") | of_kind(by_itself, "Ingress")
    (port,) = of_kind(by_itself, "Service")["thyroid-label"]["spec"]["ports"]
    (container,) = of_kind(by_itself, "Deployment")["thyroid-label"]["spec"]["template"]["spec"]["containers"]
    (target,) = [one["containerPort"] for one in container["ports"] if one["name"] == port["targetPort"]]
    policy = of_kind(by_itself, "NetworkPolicy")["thyroid-label"]["spec"]
    (admitted,) = policy["ingress"]
    assert target in [one["port"] for one in admitted["ports"]]
    ((namespaces,),) = [one["namespaceSelector"]["matchExpressions"] for one in admitted["from"]]

    routes = of_kind(gateway, "HTTPRoute")
    assert set(routes) == {"thyroid-web", "thyroid-label"}, "KServe makes those of the endpoint"
    route = routes["thyroid-label"]["spec"]
    assert route["rules"] == [{"backendRefs": [{"name": "thyroid-label", "port": port["port"]}]}]
    assert {one["namespace"] for one in route["parentRefs"]} <= set(namespaces["values"])
    assert len({name for one in routes.values() for name in one["spec"]["hostnames"]}) == len(routes)

    entries = of_kind(ingress, "Ingress")
    assert set(entries) == {"thyroid-web", "thyroid-label"}
    entry = entries["thyroid-label"]["spec"]
    (rule,) = entry["rules"]
    backend = {"name": "thyroid-label", "port": {"name": port["name"]}}
    assert [path["backend"]["service"] for path in rule["http"]["paths"]] == [backend]
    (secure,) = entry["tls"]
    assert secure["hosts"] == [rule["host"]], "readers send their tokens"
    assert secure["secretName"] != entries["thyroid-web"]["spec"]["tls"][0]["secretName"]
    assert "ingress-nginx" in namespaces["values"]


def test_the_benchs_arguments_are_its_own(rendered):
    """As the container would start it, up to where it reads its readers."""
    deployment = of_kind(rendered["manifests/overlays/label"], "Deployment")["thyroid-label"]["spec"]["template"][
        "spec"
    ]
    command, *arguments = deployment["containers"][0]["args"]
    assert command == "python3"
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 2
    assert "/etc/thyroid/readers.csv" in done.stderr


def test_the_listener_needs_no_volume(volumeless):
    pod, container = listener(volumeless)
    assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in pod["volumes"]}
    arguments = container["args"]
    assert "--claim=" in arguments
    sets = dict(b.split("=", 1) for a, b in itertools.pairwise(arguments) if a == "--set")
    assert sets.keys() == {"scans", "rois", "registry", "store"}
    given = dict(itertools.pairwise(arguments))
    assert all(place.startswith("s3://") for place in (*sets.values(), given["--state"]))


LISTENERS = ("manifests/overlays/listen", "manifests/overlays/listen-argo", "manifests/overlays/listen-knative")


def listener(objects: list[dict]) -> tuple[dict, dict]:
    """The listener's pod and its container."""
    pod = of_kind(objects, "Deployment")["thyroid-listen"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return pod, container


@pytest.mark.parametrize("folder", LISTENERS)
def test_the_listener_reads_the_volume_knows_its_senders_and_asks_kubeflow(rendered, folder):
    objects = rendered[folder]
    pod, container = listener(objects)
    assert container["image"].startswith("localhost/thyroid-listen:")
    mounts = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
    volumes = {one["name"]: one for one in pod["volumes"]}
    assert volumes.keys() == set(mounts.values())
    given = dict(zip(container["args"], container["args"][1:], strict=False))
    files = [given["--event-token-file"], given["--token-file"], given["--state"]]
    assert all(any(file.startswith(f"{place}/") for place in mounts) for file in files)
    assert volumes[mounts["/data"]]["persistentVolumeClaim"]["claimName"] == CLAIM
    assert given["--service-account"] in of_kind(objects, "ServiceAccount")
    (source,) = volumes[mounts["/var/run/secrets/kubeflow"]]["projected"]["sources"]
    assert source["serviceAccountToken"]["audience"] == "pipelines.kubeflow.org"
    assert not pod["automountServiceAccountToken"]
    (port,) = of_kind(objects, "Service")["thyroid-listen"]["spec"]["ports"]
    (target,) = [one["containerPort"] for one in container["ports"] if one["name"] == port["targetPort"]]
    policy = of_kind(objects, "NetworkPolicy")["thyroid-listen"]["spec"]
    assert target in [one["port"] for one in policy["ingress"][0]["ports"]]


@pytest.mark.parametrize("folder", LISTENERS)
def test_the_listeners_arguments_are_its_own(rendered, folder):
    """As the container would start it, up to where it reads the senders' token."""
    command, *arguments = listener(rendered[folder])[1]["args"]
    assert command == "python3"
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 2
    assert "/etc/thyroid/token" in done.stderr or "/etc/issuer/ca.crt" in done.stderr, done.stderr


TRIGGER = {
    "type": "object",
    "additionalProperties": False,
    "required": ["subscriber"],
    "properties": {
        "broker": {"type": "string"},
        "filter": {"additionalProperties": False, "properties": {"attributes": {"type": "object"}}},
        "subscriber": {
            "additionalProperties": False,
            "properties": {
                "ref": {"required": ["apiVersion", "kind", "name"]},
                "uri": {"type": "string"},
                "CACerts": {"type": "string"},
                "audience": {"type": "string"},
            },
        },
        "delivery": {
            "additionalProperties": False,
            "properties": {
                "retry": {"type": "integer"},
                "backoffPolicy": {"enum": ["linear", "exponential"]},
                "backoffDelay": {"type": "string", "pattern": "^PT[0-9]+S$"},
                "deadLetterSink": {},
            },
        },
    },
}
"""The spec of a Trigger of eventing.knative.dev/v1, as far as ours uses it."""


def test_the_trigger_sends_what_the_listener_reads_with_an_account_that_it_knows(rendered):
    objects = rendered["manifests/overlays/listen-knative"]
    trigger = of_kind(objects, "Trigger")["thyroid-listen"]
    jsonschema.validate(trigger["spec"], TRIGGER)
    assert trigger["spec"]["filter"]["attributes"] == {"type": messages.WRITTEN}
    assert trigger["spec"]["subscriber"]["ref"]["name"] in of_kind(objects, "Service")
    arguments = listener(objects)[1]["args"]
    pairs = list(itertools.pairwise(arguments))
    assert dict(pairs)["--audience"] == trigger["spec"]["subscriber"]["audience"]
    name = trigger["metadata"]["name"]
    # GetOIDCServiceAccountNameForResource in pkg/auth of knative/eventing, whose releases differ
    accounts = (f"{name}-oidc-eventing.knative.dev-trigger", f"oidc-eventing.knative.dev-trigger-{name}")
    wanted = [f"system:serviceaccount:$(NAMESPACE):{account}" for account in accounts]
    assert [text for option, text in pairs if option == "--subject"] == wanted


def test_the_sensor_sends_the_notifications_of_its_source_with_the_token(rendered):
    objects = rendered["manifests/overlays/listen-argo"]
    source = of_kind(objects, "EventSource")["thyroid-scans"]["spec"]
    sensor = of_kind(objects, "Sensor")["thyroid-scans"]["spec"]
    (dependency,) = sensor["dependencies"]
    assert dependency["eventSourceName"] == "thyroid-scans"
    assert dependency["eventName"] in source["minio"]
    (trigger,) = sensor["triggers"]
    request = trigger["template"]["http"]
    assert request["url"].removeprefix("http://") in of_kind(objects, "Service")
    (part,) = request["payload"]
    assert part["src"] == {"dependencyName": dependency["name"], "dataKey": "notification", "useRawData": True}
    record = json.loads(records("hospital", ["scans/B_1-1-1.0.jpg"]))["Records"]
    assert messages.read({}, json.dumps({part["dest"]: record}).encode())[0]
    (header,) = request["secureHeaders"]
    pod, _ = listener(objects)
    (senders,) = [one["secret"]["secretName"] for one in pod["volumes"] if "secret" in one]
    assert trigger["policy"]["status"]["allow"] == [HTTPStatus.NO_CONTENT], "or a refused event is lost"
    assert header["name"] == "Authorization"
    assert header["valueFrom"]["secretKeyRef"] == {"name": senders, "key": "authorization"}
    keys = {source["minio"]["scans"][name]["key"] for name in ("accessKey", "secretKey")}
    assert keys < set(S3_FIELDS)


def test_runtimes_serve_our_format_on_the_ports_that_are_probed(rendered):
    for name, runtime in of_kind(rendered["manifests/overlays/gpu"], "ServingRuntime").items():
        spec = runtime["spec"]
        assert spec["supportedModelFormats"][0]["name"] == "thyroid"
        (container,) = spec["containers"]
        assert container["name"] == "kserve-container"
        assert container["args"][:3] == ["python3", "-m", "thyroid.serve"]
        assert container["args"][container["args"].index("--port") + 1] == "8080"
        assert "--registry" not in container["args"]
        for probe in ("readinessProbe", "livenessProbe"):
            assert container[probe]["httpGet"]["port"] == 8080
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == ("gpu" in name)
        assert container["image"].startswith(f"localhost/thyroid-serve{'-gpu' if 'gpu' in name else ''}:")


@pytest.fixture(scope="module")
def logging(rendered, tmp_path_factory) -> list[dict]:
    """The objects of a kustomization that names the components of the decision log; skipped without kubectl."""
    folder = tmp_path_factory.mktemp("own")
    manifests = os.path.relpath(ROOT / "manifests", folder)
    content = {
        "resources": [f"{manifests}/overlays/gpu"],
        "components": [f"{manifests}/components/decision-log", f"{manifests}/components/decision-events"],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(content))
    return kustomized(folder)


def test_the_decision_log_is_written_to_the_volume_and_posted(logging, rendered):
    known = schemas.definitions()
    assert not any(schemas.problems(one, known) for one in logging)
    before = of_kind(rendered["manifests/overlays/gpu"], "ServingRuntime")
    for name, runtime in of_kind(logging, "ServingRuntime").items():
        (container,), (was,) = runtime["spec"]["containers"], before[name]["spec"]["containers"]
        added = container["args"][len(was["args"]) :]
        assert added == ["--log", "/decisions", "--log-url", "$(THYROID_LOG_URL)"]
        secrets = {one["name"]: one["valueFrom"]["secretKeyRef"] for one in container["env"]}
        assert len(secrets) == len(container["env"])
        assert secrets["THYROID_PATIENT_KEY"] == {"name": Cluster().key_secret, "key": "key"}
        assert secrets["THYROID_LOG_URL"] == {"name": "thyroid-decisions", "key": "url"}
        (mount,) = [one for one in container["volumeMounts"] if one["mountPath"] == "/decisions"]
        (volume,) = [one for one in runtime["spec"]["volumes"] if one["name"] == mount["name"]]
        assert (volume["persistentVolumeClaim"]["claimName"], mount["subPath"]) == (CLAIM, "decisions"), "and no scans"
    egress = of_kind(logging, "NetworkPolicy")["thyroid-serve"]["spec"]["egress"]
    (more,) = [one for one in egress if one not in _egress(rendered)]
    assert more["to"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "knative-eventing"}
    for pod in pods(logging):
        assert schemas.problems(pod, {}) == []


def _egress(rendered: dict[str, list[dict]]) -> list[dict]:
    return of_kind(rendered["manifests/overlays/gpu"], "NetworkPolicy")["thyroid-serve"]["spec"]["egress"]


def test_the_arguments_of_the_decision_log_are_the_servers_own(logging, tmp_path):
    """As the container would start it, up to where it misses the key."""
    (container,) = of_kind(logging, "ServingRuntime")["thyroid"]["spec"]["containers"]
    command, *arguments = container["args"]
    assert command == "python3"
    own = {"/decisions": str(tmp_path), "$(THYROID_LOG_URL)": "https://events.example.com/"}
    environment = {name: value for name, value in os.environ.items() if name != "THYROID_PATIENT_KEY"}
    start = [sys.executable, *(own.get(one, one) for one in arguments)]
    done = subprocess.run(start, capture_output=True, text=True, cwd=ROOT, timeout=60, env=environment)
    assert done.returncode == 2
    assert "THYROID_PATIENT_KEY" in done.stderr


def declared(runtime: dict, service: dict) -> dict[str, int]:
    """The container's ports by name, as KServe merges them: by number, those of the InferenceService first."""
    (container,) = runtime["spec"]["containers"]
    ports = service["spec"]["predictor"]["model"].get("ports", []) + container["ports"]
    return {one["name"]: one["containerPort"] for one in {one["containerPort"]: one for one in ports}.values()}


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("replicas", [1, 0])
def test_what_a_runtime_claims_is_served_at_the_ports_that_it_declares(rendered, replicas, gpu):
    """In the mode that the deploy step uses it for."""
    options = DeployOptions(min_replicas=replicas, serving_gpu=gpu)
    service = manifest.inference_service(1, "gs://b/m", options)
    asked = service["spec"]["predictor"]["model"]
    runtime = of_kind(rendered["manifests/overlays/gpu"], "ServingRuntime")[asked["runtime"]]
    (container,) = runtime["spec"]["containers"]
    listens = {
        option: int(port)
        for option, port in zip(container["args"], container["args"][1:], strict=False)
        if option.endswith("port")
    }
    ports, claimed = declared(runtime, service), runtime["spec"]["protocolVersions"]
    assert asked["protocolVersion"] in claimed
    assert next(iter(ports.items())) == ("http1", listens.pop("--port")), "the first one is port 80 of the Service"
    if options.mode == KNATIVE:
        assert (len(ports), listens, claimed) == (1, {}, ["v1", "v2"]), "Knative refuses a second port"
    else:
        assert ports["grpc"] == listens.pop("--grpc-port"), "KServe knows gRPC by the name"
        assert (len(ports), listens, claimed) == (2, {}, ["v1", "v2", "grpc-v2"])
    policy = of_kind(rendered["manifests/overlays/gpu"], "NetworkPolicy")["thyroid-serve"]["spec"]
    (admitted,) = policy["ingress"]
    assert set(ports.values()) <= {one["port"] for one in admitted["ports"]}


def test_at_most_one_runtime_is_chosen_by_itself(rendered):
    runtimes = of_kind(rendered["manifests/overlays/gpu"], "ServingRuntime").values()
    chosen = [
        one["metadata"]["name"]
        for one in runtimes
        for model in one["spec"]["supportedModelFormats"]
        if model.get("autoSelect")
    ]
    assert chosen == ["thyroid"]


def test_the_route_for_grpc_that_the_guide_shows_leads_to_the_port():
    guide = (ROOT / "docs" / "kubeflow.md").read_text()
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)]
    (route,) = [one for one in blocks if one.get("kind") == "GRPCRoute"]
    ((rule,), (runtime,)) = (
        route["spec"]["rules"],
        yaml.safe_load_all((ROOT / "manifests" / "base" / "runtime" / "servingruntime.yaml").read_text()),
    )
    ports = declared(runtime, manifest.inference_service(1, "gs://b/m", DeployOptions()))
    assert rule["backendRefs"] == [{"name": "thyroid-predictor", "port": ports["grpc"]}]
    (match,) = rule["matches"]
    package, _, name = match["method"]["service"].rpartition(".")
    assert package == grpc_predict_v2_pb2.DESCRIPTOR.package
    assert name in grpc_predict_v2_pb2.DESCRIPTOR.services_by_name


AUTHORIZATION = {
    "source": {"principals", "notPrincipals", "namespaces"},
    "operation": {"ports", "methods", "paths"},
}
"""Fields of security.istio.io/v1 that our policies use; Istio ignores a misspelt one, and lets everybody in."""


def test_a_mesh_lets_in_gateways_proofs_and_metrics_at_ports_that_the_network_policy_opens(rendered):
    objects = rendered["manifests/overlays/multi-user"]
    policies, networks = of_kind(objects, "AuthorizationPolicy"), of_kind(objects, "NetworkPolicy")
    assert set(policies) == {"thyroid-serve", "thyroid-web", "thyroid-label"}
    networks |= of_kind(rendered["manifests/overlays/label"], "NetworkPolicy") | networks
    for name, policy in policies.items():
        assert policy["apiVersion"] == "security.istio.io/v1"
        spec, network = policy["spec"], networks[name]["spec"]
        assert set(spec) == {"selector", "action", "rules"}
        assert (spec["action"], spec["selector"]) == ("ALLOW", network["podSelector"])
        (admitted,) = network["ingress"]
        for rule in spec["rules"]:
            assert set(rule) <= {"from", "to", "when"}
            for kind, given in [one for part in ("from", "to") for each in rule.get(part, []) for one in each.items()]:
                assert given.keys() <= AUTHORIZATION[kind], "an empty rule would let everybody in"
                assert all(isinstance(one, str) for values in given.values() for one in values)
            (to,) = rule["to"]
            assert {int(port) for port in to["operation"]["ports"]} <= {one["port"] for one in admitted["ports"]}
            if "from" not in rule:
                assert to["operation"]["paths"] == ["/metrics"]
        assert spec["rules"][0]["when"] == [{"key": "request.headers[kubeflow-userid]", "values": ["*"]}]
    proof = policies["thyroid-serve"]["spec"]["rules"][1]
    assert proof["from"] == [{"source": {"notPrincipals": ["*"]}}]
    assert proof["to"][0]["operation"]["paths"] == [f"/v1/models/{MODEL_NAME}:predict"], (
        "where the step sends its proof"
    )


def test_why_a_server_ended_stands_in_its_pods_status(rendered):
    for runtime in of_kind(rendered["manifests/overlays/gpu"], "ServingRuntime").values():
        for container in runtime["spec"]["containers"]:
            assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_the_deploy_role_allows_just_what_the_step_calls(rendered):
    objects = rendered["manifests/overlays/gateway"]
    allowed = {
        (resource, verb, tuple(rule.get("resourceNames", ())))
        for rule in of_kind(objects, "Role")["thyroid-deploy"]["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    runtimes = ("thyroid", "thyroid-gpu", "thyroid-knative", "thyroid-gpu-knative")
    assert set(runtimes) == RUNTIMES
    assert allowed == {
        ("inferenceservices", "create", ()),
        *(("inferenceservices", verb, ("thyroid",)) for verb in ("get", "patch", "delete")),
        ("servingruntimes", "get", runtimes),
        ("httproutes", "get", ("thyroid",)),
        ("pods", "list", ()),
    }
    for role in of_kind(objects, "Role").values():
        for rule in role["rules"]:
            assert "*" not in [*rule["verbs"], *rule["resources"], *rule["apiGroups"]]
    assert not of_kind(objects, "ClusterRole")
    assert of_kind(objects, "ServiceAccount")["thyroid-serve"]["automountServiceAccountToken"] is False


def pods(objects: list[dict]) -> list[dict]:
    """The pods that KServe makes of the runtimes, which linters know; a ServingRuntime they do not."""
    return [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "lab"},
            "spec": {
                "serviceAccountName": "thyroid-serve",
                "automountServiceAccountToken": False,
                "containers": runtime["spec"]["containers"],
                "volumes": runtime["spec"]["volumes"],
            },
        }
        for name, runtime in of_kind(objects, "ServingRuntime").items()
    ]


def test_pods_of_the_runtimes_are_valid(rendered):
    for pod in pods(rendered["manifests/overlays/gpu"]):
        assert schemas.problems(pod, {}) == []


@pytest.mark.slow
def test_the_security_linter_finds_nothing(rendered, tmp_path):
    if not CHECKOV.exists():
        pytest.skip("checkov is not installed; make lint-manifests does it")
    for folder in FOLDERS:
        objects = [*rendered[folder], *pods(rendered[folder])]
        file = tmp_path / f"{folder.replace('/', '-')}.yaml"
        file.write_text(yaml.safe_dump_all(objects))
    shutil.copy(ROOT / "manifests" / "workbench" / "pod.yaml", tmp_path)
    done = subprocess.run(
        [CHECKOV, "--config-file", ROOT / "manifests" / "checkov.yaml", "-d", tmp_path, "-o", "json"],
        capture_output=True,
        text=True,
    )
    result = json.loads(done.stdout)
    failed = [(one["check_id"], one["resource"]) for one in result["results"]["failed_checks"]]
    assert failed == []
    assert result["summary"]["passed"] > 100
    assert done.returncode == 0
