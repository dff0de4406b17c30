"""A real Kubernetes API server: etcd and kube-apiserver in processes of their own, or the cluster of KUBECONFIG.

Behind the processes of our own there is no controller manager, scheduler or kubelet. So only that happens to an object
which the API server does itself: it authorises, defaults, admits and validates.
"""

import json
import os
import re
import shutil
import ssl
import subprocess
import time
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support import ROOT, SHARED
from tests.support.serving import free_port

Object = dict[str, Any]
CRDS = SHARED / "schemas" / "crds"
INSTALL = ROOT / "tests" / "cluster" / "install.sh"
OVERLAY = ROOT / "manifests" / "overlays" / "cpu"
ISSUER = "https://kubernetes.default.svc.cluster.local"


def require_kubectl() -> None:
    """Skip the test where kubectl is missing or older than 1.27, whose kustomize knows all that the manifests use."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not here")
    version = json.loads(kubectl("", "version", "--client", "--output=json"))["clientVersion"]
    if int(re.sub(r"\D", "", version["minor"])) < 27:
        pytest.skip(f"kubectl {version['gitVersion']} is older than 1.27")


def kubectl(kubeconfig: Path | str, *arguments: str, text: str = "") -> str:
    """Run kubectl with one of these kubeconfig files, and return its output.

    Args:
        kubeconfig: The file, or several as in the variable KUBECONFIG.
        arguments: Arguments of kubectl.
        text: Its standard input.

    Raises:
        RuntimeError: With what kubectl says, if it fails.
        subprocess.TimeoutExpired: It takes longer than five minutes, such as for an object that keeps its finalizers.
    """
    # kubectl's cache knows a server by its port, which another one may have had: each file has its own
    command = ["kubectl", f"--cache-dir={kubeconfig}.discovery", *arguments]
    environment = os.environ | {"KUBECONFIG": str(kubeconfig)}
    done = subprocess.run(command, input=text, capture_output=True, text=True, env=environment, timeout=300)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return done.stdout


def kustomized(folder: Path | str) -> list[Object]:
    """Return the objects of a kustomization; its path is taken from the project's root. Skips as `require_kubectl`."""
    require_kubectl()
    return list(yaml.safe_load_all(kubectl("", "kustomize", str(ROOT / folder))))


class ApiServer:
    """A Kubernetes API server that has the custom resources of KServe, Kubeflow Pipelines and the Gateway API.

    Attributes:
        ours: It was started here, and may be stopped and restarted; False for the cluster of KUBECONFIG.
        folder: Folder of files that are needed as long as it runs.
        kubeconfig: File with the rights of the cluster's administrator.
    """

    def __init__(self, folder: Path, kubeconfig: Path, ours: bool) -> None:
        self.folder, self.kubeconfig, self.ours = folder, kubeconfig, ours
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: dict[str, list[str]] = {}
        self._added: list[str] = []  # custom resources that the cluster did not have

    @classmethod
    def start(cls, folder: Path) -> "ApiServer":
        """Start etcd and kube-apiserver with an empty store, and wait until they are ready."""
        server = cls(folder, folder / "kubeconfig", ours=True)
        # it prints the folder of the binaries, and builds them if they are not there
        binaries = Path(subprocess.run([INSTALL], stdout=subprocess.PIPE, text=True, check=True).stdout.strip())
        store, peers, port = free_port(), free_port(), free_port()
        token = uuid.uuid4().hex
        (folder / "tokens.csv").write_text(f"{token},admin,admin,system:masters\n")
        key = ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
        (folder / "accounts.key").write_bytes(key)
        server._commands = {
            "etcd": [
                str(binaries / "etcd"),
                f"--data-dir={folder / 'etcd'}",
                f"--listen-client-urls=http://127.0.0.1:{store}",
                f"--advertise-client-urls=http://127.0.0.1:{store}",
                f"--listen-peer-urls=http://127.0.0.1:{peers}",
            ],
            "kube-apiserver": [
                str(binaries / "kube-apiserver"),
                f"--etcd-servers=http://127.0.0.1:{store}",
                f"--secure-port={port}",
                "--bind-address=127.0.0.1",
                "--advertise-address=127.0.0.1",
                "--endpoint-reconciler-type=none",  # any other refuses a loopback address
                f"--cert-dir={folder}",  # it writes a certificate of its own there
                f"--token-auth-file={folder / 'tokens.csv'}",
                "--anonymous-auth=false",
                "--authorization-mode=RBAC",
                f"--service-account-issuer={ISSUER}",
                f"--service-account-key-file={folder / 'accounts.key'}",
                f"--service-account-signing-key-file={folder / 'accounts.key'}",
                "--service-cluster-ip-range=10.96.0.0/16",
                "--allow-privileged=true",
                # tokens of pods as projected volumes, as in every later release: no controller writes secrets here
                "--feature-gates=BoundServiceAccountTokenVolume=true",
                # its finalizer on volume claims is for a controller to remove
                "--disable-admission-plugins=StorageObjectInUseProtection",
            ],
        }
        server._run("etcd")
        server._run("kube-apiserver")
        cluster = {"server": f"https://127.0.0.1:{port}", "certificate-authority": str(folder / "apiserver.crt")}
        server.kubeconfig.write_text(_kubeconfig(cluster, token))
        try:
            server.wait()
            server.add_custom_resources()
        except BaseException:
            server.stop()
            raise
        return server

    @classmethod
    def join(cls, folder: Path, kubeconfig: str) -> "ApiServer":
        """Use the current cluster of kubeconfig files, in the form of the variable KUBECONFIG.

        What it lacks of the custom resources is added, and removed by `stop`.
        """
        server = cls(folder, folder / "kubeconfig", ours=False)
        shown = kubectl(kubeconfig, "config", "view", "--minify", "--raw", "--flatten")
        server.kubeconfig.write_text(shown)
        server.kubeconfig.chmod(0o600)
        server.add_custom_resources()
        return server

    @property
    def url(self) -> str:
        return str(self.cluster["server"])

    @property
    def cluster(self) -> Object:
        """Address and certificate authority, as kubeconfig files have them."""
        return dict(yaml.safe_load(self.kubeconfig.read_text())["clusters"][0]["cluster"])

    def kubectl(self, *arguments: str, text: str = "") -> str:
        """Run kubectl as the administrator; see the function `kubectl`."""
        return kubectl(self.kubeconfig, *arguments, text=text)

    def objects(self, kind: str) -> list[Object]:
        """All objects of a kind that has no namespace."""
        return list(json.loads(self.kubectl("get", kind, "--output=json"))["items"])

    def has_kserve(self) -> bool:
        """Whether KServe's own controller runs in the cluster."""
        found = self.kubectl("get", "deployments", "--all-namespaces", "--output=name")
        return "/kserve-controller-manager" in found

    def restart(self) -> None:
        """Kill kube-apiserver and start it on the same port. It returns at once, see `wait`."""
        assert self.ours
        self._kill("kube-apiserver")
        self._run("kube-apiserver")

    def wait(self) -> None:
        """Wait until the server is ready."""
        token = yaml.safe_load(self.kubeconfig.read_text())["users"][0]["user"]["token"]
        request = urllib.request.Request(f"{self.url}/readyz", headers={"Authorization": f"Bearer {token}"})
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._processes["kube-apiserver"].poll() is None:
            try:
                trusted = ssl.create_default_context(cafile=self.folder / "apiserver.crt")
                with urllib.request.urlopen(request, timeout=5, context=trusted):
                    return
            except OSError:  # not listening, or not ready, or the certificate is not written yet
                time.sleep(0.05)
        raise AssertionError((self.folder / "kube-apiserver.log").read_text()[-4000:])

    def add_custom_resources(self) -> None:
        """Create the custom resource definitions that the server lacks."""
        there = {one["metadata"]["name"] for one in self.objects("crd")}
        files = {file: yaml.safe_load(file.read_text())["metadata"]["name"] for file in sorted(CRDS.glob("*.yaml"))}
        missing = {file: name for file, name in files.items() if name not in there}
        if missing:
            # an older server does not know x-kubernetes-validations, and leaves it out
            self.kubectl("create", "--validate=false", *(f"--filename={file}" for file in missing))
            self._added = list(missing.values())
            deadline = time.monotonic() + 60
            while not set(self._added) <= {one["metadata"]["name"] for one in self.objects("crd") if _established(one)}:
                assert time.monotonic() < deadline, self._added
                time.sleep(0.1)

    def stop(self) -> None:
        """Stop what `start` started, and remove what `join` added."""
        if self._added and not self.ours:
            self.kubectl("delete", "crd", *self._added)
        for name in ("kube-apiserver", "etcd"):
            if name in self._processes:
                self._kill(name)

    def _run(self, name: str) -> None:
        with (self.folder / f"{name}.log").open("a") as log:
            self._processes[name] = subprocess.Popen(
                self._commands[name], cwd=self.folder, stdout=log, stderr=subprocess.STDOUT
            )

    def _kill(self, name: str) -> None:
        self._processes[name].kill()
        self._processes[name].wait()


class Namespace:
    """A namespace with the objects of an overlay, and the service account `default`.

    Attributes:
        name: Its name, which no other has.
    """

    def __init__(self, server: ApiServer, overlay: Path = OVERLAY) -> None:
        self.server, self.name = server, f"thyroid-test-{uuid.uuid4().hex[:12]}"
        server.kubectl("create", "namespace", self.name)
        # there are no pods without this account, which a controller makes where there is one, but perhaps not yet
        default = "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: default}\n---\n"
        self.apply(default + server.kubectl("kustomize", str(overlay)))

    def kubectl(self, *arguments: str, text: str = "") -> str:
        """Run kubectl as the administrator in the namespace; see the function `kubectl`."""
        return self.server.kubectl(f"--namespace={self.name}", *arguments, text=text)

    def objects(self, kind: str, name: str = "") -> Any:
        """A list of the objects of a kind, or the one with a name."""
        found = json.loads(self.kubectl("get", kind, *filter(None, [name]), "--show-managed-fields", "--output=json"))
        return found if name else found["items"]

    def apply(self, text: str, *more: str) -> str:
        """Apply YAML or JSON on the server's side; unknown fields are refused where the server can tell them."""
        return self.kubectl("apply", "--server-side", "--validate=strict", *more, "--filename=-", text=text)

    def account(self, name: str) -> Path:
        """A kubeconfig file with a token of a service account, and with the namespace as the current one."""
        token = self.kubectl("create", "token", name).strip()
        file = self.server.folder / f"{self.name}-{name}.kubeconfig"
        file.write_text(_kubeconfig(self.server.cluster, token, self.name))
        return file

    def limit(self, hard: dict[str, str]) -> None:
        """Set a quota, such as {"pods": "0"}, which holds as soon as the server knows what is used of it."""
        quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "test"}, "spec": {"hard": hard}}
        self.apply(json.dumps(quota))
        if self.server.ours:  # else a controller counts
            status = json.dumps({"status": {"hard": hard, "used": dict.fromkeys(hard, "0")}})
            self.kubectl("patch", "resourcequota", "test", "--subresource=status", "--type=merge", "--patch", status)
        self.kubectl("wait", "--for=jsonpath={.status.hard}", "--timeout=60s", "resourcequota/test")

    def remove(self) -> None:
        """Delete the namespace from a cluster that stays. Its controllers delete what is in it."""
        if self.server.ours:
            return
        self.server.kubectl("delete", "namespace", self.name, "--wait=false")
        for one in self.objects("inferenceservices"):
            if one["metadata"].get("finalizers"):
                patch = json.dumps({"metadata": {"finalizers": None}})
                self.kubectl("patch", "inferenceservice", one["metadata"]["name"], "--type=merge", "--patch", patch)


def _established(definition: Object) -> bool:
    found = definition.get("status", {}).get("conditions") or []  # `kubectl wait` fails as long as there are none
    return any(one["type"] == "Established" and one["status"] == "True" for one in found)


def _kubeconfig(cluster: Object, token: str, namespace: str = "default") -> str:
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}],
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": {"token": token}}],
        }
    )
