"""Deployments to one namespace of a real API server in which KServe's part is played, see `kserve`."""

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support import ROOT, kserve
from tests.support.kserve import MODE, Controller, Object
from tests.support.kserve_network import Proxy
from tests.support.kubernetes import ApiServer, Namespace
from tests.support.serving import PREDICT, encoded
from thyroid.registry.registry import Registry

WRONG, DAMAGED = 3, 4
"""Versions that answer wrongly, and that do not load. 1 and 2 are as they should be."""
KEEPER = "keeper"
CANARY_HOST = "thyroid-v{}-predictor.{}.svc.cluster.local"

# Pauses are shortened: what they wait for takes no time here.
_PRELUDE = """
import sys
from thyroid.deploy import cluster, proof, rollout
from thyroid.storage import volume
volume.MOUNT = {volume!r}
proof._POLL_SECONDS = rollout._POLL_SECONDS = cluster._PAUSE = 0.2
cluster._PATIENCE, proof._FAILED_SECONDS = {patience}, 1.0
{more}
from thyroid.deploy.__main__ import main
sys.exit(main())
"""
# Before and after each call of the API server the process says so, and waits for a line.
_STEPS = """
from kubernetes.client import ApiClient
call = ApiClient.call_api
def step(self, path, method, *arguments, **options):
    what = method + " " + path.partition("?")[0].partition("/namespaces/")[2].partition("/")[2]
    print("before", what, file=steps, flush=True)
    sys.stdin.readline()
    answer = call(self, path, method, *arguments, **options)
    print("after", what, file=steps, flush=True)
    sys.stdin.readline()
    return answer
ApiClient.call_api = step
steps = open(STEPS, "w")
"""


class Deployment:
    """A process of `python -m thyroid.deploy`.

    Args:
        code: Its statements.
        arguments: Its arguments.
        environment: Its environment.
        log: File of its messages.
    """

    def __init__(self, code: str, arguments: list[str], environment: dict[str, str], log: Path) -> None:
        self.log = log
        reading, writing = os.pipe()
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", f"STEPS = {writing}\n{code}", *arguments],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                pass_fds=[writing],
            )
        os.close(writing)
        self._steps = os.fdopen(reading)

    def steps(self) -> Iterator[str]:
        """Yield "before" and "after" each call of the API server, which waits for what is done in between."""
        assert self.process.stdin is not None
        for line in self._steps:
            yield line.strip()
            self.process.stdin.write("\n")
            self.process.stdin.flush()

    def wait_for(self, text: str) -> None:
        """Wait until a message holds a text."""
        until(lambda: text in self.log.read_text() or self.process.poll() is not None)
        assert text in self.log.read_text(), self.log.read_text()

    def end(self, code: int = 0) -> str:
        """Wait for the end with an exit code, and return the messages."""
        self.process.communicate(timeout=120)
        self._steps.close()
        said = self.log.read_text()
        assert self.process.returncode == code, said
        assert "Traceback" not in said, said
        return said


class Clients:
    """Somebody who asks the public address all the time, from `with` to its end.

    Attributes:
        answers: Number of answers of each version.
        failures: What came in place of an answer.
    """

    def __init__(self, place: "Place") -> None:
        self.answers: Counter[int] = Counter()
        self.failures: list[str] = []
        self._place, self._stopping = place, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Clients":
        self._thread.start()
        until(lambda: self.answers.total() + len(self.failures) > 0)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(0.05):
            try:
                self.answers[self._place.ask()] += 1
            except OSError as error:
                self.failures.append(str(error))


class Place:
    """A namespace with a registry on its volume, and endpoints of its good versions that run all the time.

    Args:
        server: API server.
        volume: Folder that stands for the pipeline's volume.

    Attributes:
        namespace: The namespace.
        controller: KServe's controller.
        proxy: The cluster's network.
        registry: The registry.
    """

    def __init__(self, server: ApiServer, volume: Path) -> None:
        self.server, self.volume, self.registry = server, volume, Registry(volume / "registry")
        self._aliases = volume / "registry" / "thyroid" / "aliases.json"
        for version in (1, 2, WRONG, DAMAGED):
            assert kserve.publish(volume / "registry", "wrong answer" if version == WRONG else "") == version
            if version > 1:
                self.registry.roll_back("it has its turn in a test", "test")
        self._released, damaged = self._aliases.read_bytes(), self.registry.find(str(DAMAGED))
        self._weights = damaged / "openvino" / "model.bin"
        self._whole = self._weights.read_bytes()
        self.namespace = Namespace(server)
        self.controller = Controller(server.kubeconfig, self.namespace.name, volume, deletion_seconds=0.2)
        self.proxy = Proxy(self.controller)
        self._accounts: dict[str, Path] = {}
        self._count = 0

    def __enter__(self) -> "Place":
        self.controller.__enter__()
        self.proxy.__enter__()
        predictors = [{"name": f"v{one}", "minReplicas": 1, "model": self.model(one)} for one in (1, 2, WRONG)]
        canaries = [{"trafficPercent": 0, "predictor": one} for one in predictors[1:]]
        self.put({"predictor": predictors[0], "canary": canaries}, KEEPER)
        until(lambda: all(self._serves(version) for version in (1, 2, WRONG)))
        return self

    def __exit__(self, *_: object) -> None:
        self.proxy.__exit__()
        self.controller.__exit__()
        self.namespace.remove()

    def clear(self) -> None:
        """Remove what a test has left, but the endpoints."""
        if self.server.ours:
            self.server.wait()
        self.controller.gateway, self.controller.paused, self.controller.on_event = True, False, lambda event: None
        for name in ("thyroid", "thyroid-canary"):
            self.namespace.kubectl("delete", "inferenceservice", name, "--ignore-not-found", "--timeout=30s")
        until(lambda: "thyroid" not in self.controller.traffic)
        self.controller.events.clear()
        self.proxy.asked.clear()

    def reset(self) -> None:
        """Let version 1 be the registry's only champion so far."""
        self._aliases.write_bytes(self._released)

    def release(self, version: int) -> None:
        """Make a version the champion."""
        self._weights.write_bytes(self._whole)
        self.registry.promote(str(version), "its turn", "test")
        self._weights.write_bytes(b"")

    def start(
        self,
        *options: str,
        account: str = "thyroid-pipeline",
        patience: float = 2.0,
        more: str = "",
        **environment: str,
    ) -> Deployment:
        """Start a deployment of the champion inside the cluster.

        Args:
            options: More options of the command.
            account: Service account.
            patience: Seconds for which a refusal of the API server is not believed.
            more: More statements.
            environment: More of the environment; an empty text takes a variable out.
        """
        if account not in self._accounts:
            self._accounts[account] = self.namespace.account(account)
        self._count += 1
        inside = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "http_proxy": self.proxy.url, "no_proxy": "127.0.0.1"}
        variables = os.environ | inside | {"KUBECONFIG": str(self._accounts[account])} | environment
        registry, manifest = self.volume / "registry", self.volume / f"manifest-{self._count}.yaml"
        arguments = ["--registry", str(registry), "--namespace", self.namespace.name, "--manifest", str(manifest)]
        return Deployment(
            _PRELUDE.format(volume=str(self.volume), patience=patience, more=more),
            [*arguments, *(() if "--timeout" in options else ("--timeout", "60")), *options],
            {name: value for name, value in variables.items() if value},
            self.volume / f"deployment-{self._count}.log",
        )

    def deploy(self, *options: str, code: int = 0, **rest: Any) -> str:
        """Deploy the champion, and return what was told."""
        return self.start(*options, **rest).end(code)

    def stepping(self, *options: str) -> Deployment:
        """Start a deployment whose `Deployment.steps` must be taken."""
        return self.start(*options, patience=30.0, more=_STEPS)

    def live(self) -> Object | None:
        """The InferenceService."""
        found = [one for one in self.namespace.objects("inferenceservices") if one["metadata"]["name"] == "thyroid"]
        return found[0] if found else None

    def settled(self) -> Object:
        """The InferenceService when the controller has nothing more to write."""
        before = None
        while before is None or before != self.live():
            before = self.live()
            time.sleep(0.3)
        return before

    def state(self) -> Object:
        """What a deployment may have changed."""
        live, service = self.live(), None
        if live is not None:
            service = {key: live["metadata"].get(key) for key in ("labels", "annotations")} | {"spec": live["spec"]}
        return {
            "registry": [(one["action"], one["version"]) for one in self.registry.history()],
            "champion": self.registry.champion(),
            "service": service,
            "owners": live and owners(live),
        }

    def uri(self, version: int) -> str:
        return f"pvc://thyroid-data/registry/thyroid/{version}"

    def model(self, version: int) -> Object:
        served = {"modelFormat": {"name": "thyroid"}, "runtime": "thyroid", "storageUri": self.uri(version)}
        return served | {"name": "kserve-container"}  # which the schema wants of a canary

    def put(self, spec: Object, name: str = "thyroid", **metadata: Any) -> None:
        """Create an InferenceService as somebody else."""
        body = {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "spec": spec}
        body["metadata"] = {"name": name, "annotations": {MODE: "Standard"}} | metadata
        self.namespace.kubectl("create", "--filename=-", text=json.dumps(body))

    def patch(self, patch: Any, *options: str) -> None:
        """Patch the InferenceService by hand: a merge patch, or a JSON patch if it is a list."""
        kind = "json" if isinstance(patch, list) else "merge"
        text = json.dumps(patch)
        self.namespace.kubectl("patch", "inferenceservice", "thyroid", f"--type={kind}", f"--patch={text}", *options)

    def history(self, version: int) -> list[str]:
        """What the registry says of the deployments of a version."""
        return [
            one["action"]
            for one in self.registry.history()
            if one["version"] == version and one["action"] in ("sent", "proven")
        ]

    def ask(self, host: str = "") -> int:
        """Ask the public address, or another host, and return the version that answers."""
        url = f"http://{host or self.controller.public('thyroid')}{PREDICT}"
        picture = self.volume / "registry" / "thyroid" / "1" / "reference.jpg"
        body = json.dumps({"instances": [{"image": encoded(picture), "domain": "crop"}]}).encode()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": self.proxy.url}))
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with opener.open(request, timeout=30) as answer:
            return int(json.load(answer)["predictions"][0]["model_version"])

    def shares(self, count: int) -> Counter[int]:
        """Versions that answer so many requests to the public address."""
        return Counter(self.ask() for _ in range(count))

    def until_shares(self, wanted: dict[int, int]) -> None:
        """Wait until so many requests to the public address are answered by these versions."""
        until(lambda: self.shares(sum(wanted.values())) == wanted)

    def until_weight(self, percent: int) -> None:
        """Wait until the canary has a share of the requests to the public address."""
        until(lambda: percent in self.controller.traffic["thyroid"].values())

    def until_schema(self, has_canary: bool) -> None:
        """Wait until the server's schema of InferenceServices has spec.canary, or has it no longer."""
        until(lambda: self._takes_canaries() == has_canary)

    def _takes_canaries(self) -> bool:
        predictor = {"name": "v1", "model": self.model(1)}
        spec = {"predictor": predictor, "canary": [{"trafficPercent": 0, "predictor": predictor | {"name": "v2"}}]}
        body = {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "metadata": {"name": "probe"}}
        options = ("create", "--validate=false", "--dry-run=server", "--output=json", "--filename=-")
        shown = json.loads(self.namespace.kubectl(*options, text=json.dumps(body | {"spec": spec})))
        return "canary" in shown["spec"]

    def _serves(self, version: int) -> bool:
        return any(one.serving == self.uri(version) for one in list(self.controller.predictors.values()))


def owners(live: Object) -> dict[str, list[str]]:
    """Map each manager of an InferenceService but KServe's own to how it has changed it."""
    managers: dict[str, list[str]] = {}
    for entry in live["metadata"]["managedFields"]:
        if entry["manager"] != "manager":
            managers.setdefault(entry["manager"], []).append(entry["operation"])
    return managers


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
