"""What surrounds KServe's controller: the cluster's network with its gateway, and the validating webhook."""

import base64
import http.client
import json
import ssl
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from kubernetes.client.rest import ApiException

from tests.support.kserve import MODE, Api, Controller, Object
from tests.support.serving import Server

_CONFIGURATIONS = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
_LABEL = "thyroid-webhook"
_SCALING = ("autoScaling", "maxReplicas", "scaleMetric", "scaleMetricType", "scaleTarget")


class Quiet(BaseHTTPRequestHandler):
    """A handler that logs nothing."""

    def log_message(self, *_: Any) -> None:
        pass

    def send(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))


class Proxy(ThreadingHTTPServer):
    """The network of the cluster and its gateway: an HTTP proxy that knows the hosts of a controller's services.

    A process with http_proxy=`url` reaches them. A host with several versions deals the requests out by their weights.

    Args:
        controller: The controller.

    Attributes:
        asked: (Host, storageUri) to the number of its requests.
    """

    daemon_threads = True

    def __init__(self, controller: Controller) -> None:
        super().__init__(("127.0.0.1", 0), _Forward)
        self.asked: Counter[tuple[str, str]] = Counter()
        self._controller = controller
        self._dealt: Counter[tuple[object, ...]] = Counter()
        self._lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def pick(self, host: str) -> Server | None:
        """The endpoint that gets the next request to a host; None if there is none."""
        weights = +self._choices(host)
        with self._lock:
            deal = (host, *weights.items())  # a change of the weights deals anew
            uri = max(weights, key=lambda uri: weights[uri] / (self._dealt[(*deal, uri)] + 1), default="")
            self._dealt[(*deal, uri)] += 1
            self.asked[host, uri] += 1
        return self._controller.servers.get(uri)

    def _choices(self, host: str) -> Counter[str]:
        one = self._controller
        inside = f".{one.namespace}.svc.cluster.local"
        for name, traffic in list(one.traffic.items()):
            if host in (one.public(name), f"{name}{inside}"):
                return traffic
        for service, predictor in list(one.predictors.items()):
            if host in (f"latest-{service}{inside}", f"latest-{service}-{one.namespace}.example.com"):
                return Counter({predictor.serving: 1} if predictor.settled else {})
            if host == f"{service}{inside}":
                knative = service.removesuffix("-predictor") if predictor.settled else ""
                return one.traffic.get(knative, Counter({predictor.serving: 1}))
        return Counter()


class _Forward(Quiet):
    server: Proxy

    def _do(self) -> None:
        asked, body = urlsplit(self.path), self.body()
        chosen = self.server.pick(asked.hostname or "")
        try:
            if chosen is None:
                raise ConnectionError
            to = http.client.HTTPConnection("127.0.0.1", chosen.port, timeout=60)
            to.request(self.command, asked.path, body or None, {**self.headers, "Connection": "close"})
            answer = to.getresponse()
            self.send(answer.status, answer.read())
        except OSError:
            self.send(502, b'{"error": "no endpoint behind this host"}')

    do_GET = do_POST = _do  # noqa: N815


class Webhook(ThreadingHTTPServer):
    """KServe's validating webhook. It is in force from `with` to its end. The API server must run on this machine.

    Args:
        kubeconfig: File with the rights of the cluster's administrator.
        namespace: Name of the namespace.
        folder: Folder for its certificate.

    Attributes:
        refuse: Reason for which every change of a specification is refused; "" for KServe's own rules alone.
    """

    daemon_threads = True

    def __init__(self, kubeconfig: Path, namespace: str, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Review)
        self.refuse, self._namespace, self._api = "", namespace, Api(kubeconfig)
        certificate = _certificate()
        (folder / "webhook.pem").write_bytes(b"".join(certificate))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "webhook.pem")
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self._authority = base64.b64encode(certificate[0]).decode()

    def __enter__(self) -> "Webhook":
        """Register the webhook, and wait until the API server asks it."""
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        label = {_LABEL: self._namespace}
        self._api("PATCH", f"/api/v1/namespaces/{self._namespace}", {"metadata": {"labels": label}})
        rule = {"apiGroups": ["serving.kserve.io"], "apiVersions": ["v1beta1"], "resources": ["inferenceservices"]}
        hook = {
            "name": "inferenceservice.kserve-webhook-server.validator",
            "clientConfig": {"url": f"https://127.0.0.1:{self.server_port}/", "caBundle": self._authority},
            "rules": [rule | {"operations": ["CREATE", "UPDATE"]}],
            "namespaceSelector": {"matchLabels": label},
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
        }
        self._api("POST", _CONFIGURATIONS, {"metadata": {"name": self._namespace}, "webhooks": [hook]})
        self.refuse, deadline = "is it there?", time.monotonic() + 30
        while not self._asked():
            assert time.monotonic() < deadline, "the API server does not ask the webhook"
            time.sleep(0.1)
        self.refuse = ""
        return self

    def __exit__(self, *_: object) -> None:
        self._api("DELETE", f"{_CONFIGURATIONS}/{self._namespace}")
        self.shutdown()
        self.server_close()

    def _asked(self) -> bool:
        """Whether the webhook refuses an InferenceService, which is not stored."""
        place = f"/apis/serving.kserve.io/v1beta1/namespaces/{self._namespace}/inferenceservices"
        probe = {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "metadata": {"name": "probe"}}
        try:
            self._api("POST", place, probe | {"spec": {"predictor": {}}}, dryRun="All")
        except ApiException as error:
            return self.refuse in str(error.body)
        return False


class _Review(Quiet):
    server: Webhook

    def _do(self) -> None:
        request = json.loads(self.body())["request"]
        new, old = request["object"], request["oldObject"]
        reason = _problem(new, old) or (self.server.refuse if old is None or old["spec"] != new["spec"] else "")
        answer = {"uid": request["uid"], "allowed": not reason, "status": {"code": 403, "message": reason}}
        review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": answer}
        self.send(200, json.dumps(review).encode())

    do_POST = _do  # noqa: N815


def _problem(new: Object, old: Object | None) -> str:
    """What KServe's rules say against an InferenceService; "" if nothing."""
    predictor, canaries = new["spec"]["predictor"], new["spec"].get("canary") or []
    mode = (new["metadata"].get("annotations") or {}).get(MODE, "Standard")
    names = [canary["predictor"].get("name", "") for canary in canaries]
    if canaries and mode != "Standard":
        return "spec.canary is only supported in Standard deployment mode"
    if canaries and "canaryTrafficPercent" in predictor:
        return "spec.canary and canaryTrafficPercent are mutually exclusive"
    if not all(names) or len({*names, predictor.get("name", "")}) <= len(names):
        return "each canary needs a predictor.name of its own"
    if not 0 <= sum(canary["trafficPercent"] for canary in canaries) <= 100:
        return "the sum of canary trafficPercent exceeds 100"
    if any(field in canary["predictor"] for canary in canaries for field in _SCALING):
        return "autoscaling fields are not supported in a canary"
    if old is None:
        return ""
    before = old["spec"]["predictor"]
    if before.get("name") != predictor.get("name") and _uri(before) == _uri(predictor):
        return "predictor.name change requires a model change (e.g. storageUri)"
    present = old.get("status", {}).get("deploymentMode", mode)
    if present != mode and "deletionTimestamp" not in new["metadata"]:
        return f"update rejected: deploymentMode cannot be changed from '{present}' to '{mode}'"
    return ""


def _uri(predictor: Object) -> str | None:
    uri: str | None = predictor.get("model", {}).get("storageUri")
    return uri


def _certificate() -> tuple[bytes, bytes]:
    """A certificate for 127.0.0.1 that is its own authority, and its key, as PEM."""
    key, name, now = ec.generate_private_key(ec.SECP256R1()), x509.Name([]), datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return certificate.public_bytes(pem), secret
