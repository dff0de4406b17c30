"""The rollout of one version to a cluster: apply its InferenceService, prove it, or restore what was there before."""

import copy
import logging
import os
import time
from collections.abc import Callable
from typing import TypeVar

from thyroid.deploy import fields, manifest
from thyroid.deploy.cluster import ROUTES, RUNTIMES, SERVICES, Cluster, ConflictError, Object, PassingError
from thyroid.deploy.options import STANDARD, DeployOptions
from thyroid.deploy.proof import UnaskedError, WrongAnswerError, prove
from thyroid.errors import InputError
from thyroid.model.artefact import Artefact
from thyroid.registry.hub import hub
from thyroid.registry.registry import MODEL_NAME, Registry
from thyroid.storage.volume import storage_uri

log = logging.getLogger(__name__)
_T = TypeVar("_T")

_CONFLICTS = 5
_POLL_SECONDS = 2.0
_DELETION_SECONDS = 180.0  # pods have 30 s to end, and each controller's finalizer takes a few more seconds
_SERVICE = f"InferenceService {MODEL_NAME}"


class Rollout:
    """The deployment of one registered version to a cluster.

    In Standard mode a canary is an entry of spec.canary, a server of its own, which gets its share of the requests when
    it has proven itself. In Knative mode KServe splits the requests between two revisions of one server.

    Args:
        cluster: Cluster to deploy to.
        registry: Registry with the version.
        artefact: The version, with its reference.jpg.
        options: How to serve.

    Attributes:
        version: Number of the version.
        notes: Notes for people.
        taken_back: Whether the version was taken back, from the cluster or as the champion.

    Raises:
        InputError: KServe cannot read the registry.
    """

    def __init__(self, cluster: Cluster, registry: Registry, artefact: Artefact, options: DeployOptions) -> None:
        """Build the InferenceService. Nothing is sent yet."""
        self._cluster, self._registry, self._artefact, self._options = cluster, registry, artefact, options
        self.version = artefact.publication.version
        self._wanted = self._service(self.version, self._uri(self.version), artefact.record.data_digest)
        self._canary = options.canary if options.mode == STANDARD else 0
        self._before: Object | None = None
        self._changed = False
        self._where = f"{_SERVICE} in namespace {cluster.namespace}"
        self.notes: list[str] = []
        self.taken_back = False

    def run(self) -> str:
        """Deploy the version and prove it.

        Returns:
            The address of the service.

        Raises:
            PassingError: The API server is away; if the version was sent, the outcome is unknown.
            InputError: The version is not served. The message gives the reason, what was done about it, and which
                version is the champion now.
        """
        self._prepare()
        # This is noted first, so that an attempt that is killed leaves a version that counts as unproven.
        self._changed = self._uri(self.version) not in _shares(self._before)
        if self._changed:
            self._registry.note_deployment("sent", self.version, f"sent to {self._where}")
        self._apply()
        try:
            url = prove(self._cluster, self._artefact, self._options)
        except InputError as error:
            raise (error if isinstance(error, PassingError) else self._failed(error)) from None
        self._registry.note_deployment("proven", self.version, f"answered as evaluated at {self._where}")
        if self._canary:
            self._wanted["spec"]["canary"][0]["trafficPercent"] = self._canary
            self._apply()
        return url

    def _prepare(self) -> None:
        """Read what the cluster has, and check what KServe does not check: runtime and route must be there before.

        Raises:
            InputError: The ServingRuntime is missing or disabled, or there cannot be a canary.
        """
        name = self._wanted["spec"]["predictor"]["model"]["runtime"]
        runtime = self._cluster.get(RUNTIMES, name)
        if runtime is None or runtime["spec"].get("disabled"):
            overlay = "gpu" if self._options.serving_gpu else "cpu"
            raise InputError(
                f"namespace {self._cluster.namespace} has no ServingRuntime {name}, or spec.disabled is true in it; "
                f"apply manifests/overlays/{overlay}, or enable it"
            )
        self._before = before = self._settled()
        if not self._canary:
            return
        uri, stable = self._uri(self.version), next(iter(_shares(before)), "")
        if before is None or stable in ("", uri):
            raise InputError(f"a canary needs another version that serves beside it; {_SERVICE} has none")
        if "KUBERNETES_SERVICE_HOST" not in os.environ:
            raise InputError("deploy a canary in the pipeline or the workbench: only pods reach its own service")
        if self._cluster.get(ROUTES, MODEL_NAME) is None:
            raise InputError(
                f"a canary needs the Gateway API, and KServe made no HTTPRoute {MODEL_NAME}: set enableGatewayApi in "
                "its inferenceservice-config (docs/kubeflow.md)"
            )
        share = 0 if self._registry.is_unproven(self.version) else _shares(before).get(uri, 0)
        entry = manifest.canary(self.version, self._wanted, share)
        # What serves stays as it is beside the canary, but for the options.
        number, digest = (before["metadata"].get(key, {}) for key in ("labels", "annotations"))
        self._wanted = self._service(number.get("thyroid/version", ""), stable, digest.get("thyroid/data-digest", ""))
        self._wanted["spec"]["canary"] = [entry]

    def _apply(self) -> None:
        """Create or update the object, and note what others have set.

        Raises:
            InputError: The cluster refuses, somebody else changes the object at each try, or another version is the
                champion by now.
        """

        def step(live: Object | None) -> list[str]:
            if (champion := self._registry.champion()) != self.version:
                raise InputError(f"version {champion} is the champion by now; version {self.version} was given up")
            if live and (patch := fields.taken_over(live)):
                self._cluster.patch(MODEL_NAME, patch)
                live = self._settled()
            body, notes = fields.merged(live, self._wanted) if live else (self._wanted, [])
            done = self._cluster.apply(body)
            if live and "canary" in body["spec"] and "canary" not in done["spec"]:
                self._cluster.apply(fields.merged(done, _parts(live))[0])
                raise InputError("this KServe has no spec.canary, which came with 0.20; update it")
            same = live is not None and live["metadata"]["resourceVersion"] == done["metadata"]["resourceVersion"]
            self._changed |= not same
            return [*notes, f"{_SERVICE} {'is up to date' if same else 'was updated' if live else 'was created'}"]

        for note in [note for note in self._repeated(step) if note not in self.notes]:
            log.info(note)
            self.notes.append(note)

    def _failed(self, error: InputError) -> InputError:
        """Take the version back, also in the registry if it is refuted, and return the error to raise."""
        if isinstance(error, WrongAnswerError):  # it may have been sent by hand
            self._registry.note_deployment("sent", self.version, f"answered otherwise than evaluated at {self._where}")
        refuted, done = self._take_back(error)
        said = f"version {self.version} is not served: {error}; {done}"
        if refuted and self._registry.earlier():
            try:
                self._registry.roll_back(f"deployment failed: {said}"[:500], "deploy", self.version)
            except InputError as second:
                return InputError(f"{said}; the registry was not rolled back: {second}")
            self.taken_back = True
            hub.update(self._registry)
        return InputError(f"{said}; the champion is version {self._registry.champion()}")

    def _take_back(self, error: InputError) -> tuple[bool, str]:
        """Undo what was sent, after the version did not prove itself.

        What the cluster had before is restored. If that is a version that never proved itself either, the newest
        earlier champion is deployed instead. A version is not refuted if it has proven itself once, if it could not be
        asked, or if somebody else replaced it before it answered.

        Returns:
            Whether the version is refuted, and what was done, in words.
        """
        before, uri = self._before, self._uri(self.version)
        refuted = self._registry.is_unproven(self.version) and not isinstance(error, UnaskedError)
        if not self._changed and not refuted:
            return False, f"{_SERVICE} was already up to date and was not changed"
        restored, done = Object(), f"{_SERVICE} was removed"
        if before is not None:
            restored, done = _parts(before), f"{_SERVICE} was restored"
            bad = [self._uri(number) for number in self._registry.refuted()] + [uri] * refuted
            if "canary" in before["spec"]:
                canaries = before["spec"]["canary"]
                restored["spec"]["canary"] = [one for one in canaries if _uri_of(one["predictor"]) not in bad]
            if _uri_of(before["spec"]["predictor"]) in bad:
                earlier = [number for number in self._registry.earlier() if number != self.version]
                if not refuted or not earlier:
                    return False, f"{_SERVICE} was left as it is, because no proven version was there before"
                restored["spec"]["predictor"]["model"]["storageUri"] = self._uri(earlier[0])
                restored["metadata"]["labels"] |= self._service(earlier[0], "", "")["metadata"]["labels"]
                restored["metadata"]["annotations"].pop("thyroid/data-digest", None)
                done = f"{_SERVICE} serves version {earlier[0]} again"

        tried = False

        def step(live: Object | None) -> bool:
            nonlocal tried
            if live is None or uri not in _shares(live):
                # The answer to an earlier attempt may have been lost.
                return tried and _shares(live) == _shares(restored)
            tried = True
            if before is None:
                self._cluster.delete(live)
            else:
                self._cluster.apply(fields.merged(live, restored)[0])
            return True

        try:
            self.taken_back = self._repeated(step)
            if not self.taken_back:
                refuted &= isinstance(error, WrongAnswerError)
                done = f"{_SERVICE} was left to whoever has changed it in the meantime"
        except InputError as second:
            done = f"{_SERVICE} could not be restored: {second}"
        return refuted, done

    def _repeated(self, step: Callable[[Object | None], _T]) -> _T:
        """Carry out a step with what the cluster has, again as long as somebody else changes it in between.

        Raises:
            InputError: The cluster refuses, or somebody else changes the object at each try.
        """
        for _ in range(_CONFLICTS):
            try:
                return step(self._settled())
            except ConflictError as error:
                conflict = error
        raise InputError(f"{_SERVICE}: changed by others during each of {_CONFLICTS} attempts ({conflict})")

    def _settled(self) -> Object | None:
        """Wait for the end of a deletion in progress, and return the InferenceService; None if there is none.

        Raises:
            InputError: The deletion does not end in time.
        """
        deadline, said = time.monotonic() + _DELETION_SECONDS, ""
        while True:
            live = self._cluster.get(SERVICES, MODEL_NAME)
            if live is None or "deletionTimestamp" not in live["metadata"]:
                return live
            since, finalizers = live["metadata"]["deletionTimestamp"], live["metadata"].get("finalizers", [])
            if not said:
                said = f"{_SERVICE}: deleted at {since}, but kept by its finalizers ({', '.join(finalizers)})"
                log.info(f"waiting: {said}")
            if time.monotonic() > deadline:
                raise InputError(f"{said}: check the log of their controller, then run the deployment again")
            time.sleep(_POLL_SECONDS)

    def _service(self, version: int | str, uri: str, digest: str) -> Object:
        body = manifest.inference_service(version, uri, self._options, digest)
        body["metadata"]["labels"] |= hub.labels(self._registry, version)
        return body

    def _uri(self, version: int) -> str:
        return storage_uri(self._registry.address(version))


def _parts(before: Object) -> Object:
    """Return an object as it was, without what the API server sets."""
    metadata = {"labels": {}, "annotations": {}} | before["metadata"]
    kept = {key: metadata[key] for key in ("name", "labels", "annotations")}
    return copy.deepcopy({key: before[key] for key in ("apiVersion", "kind", "spec")} | {"metadata": kept})


def _uri_of(predictor: Object) -> str:
    """Return the address from which a predictor loads its model; "" if it is no model of ours."""
    return str(predictor.get("model", {}).get("storageUri", ""))


def _shares(body: Object | None) -> dict[str, int]:
    """Map the address of each version that an InferenceService names to its percentage, the predictor's first."""
    spec: Object = body["spec"] if body else {}
    canaries = {_uri_of(one["predictor"]): one["trafficPercent"] for one in spec.get("canary", [])}
    return ({_uri_of(spec["predictor"]): 100 - sum(canaries.values())} if spec else {}) | canaries
