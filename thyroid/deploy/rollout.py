"""The rollout of one version to a cluster: apply its InferenceService, prove it, or restore what was there before."""

import copy
import json
import logging
import time

from thyroid.deploy.edits import APPLIED, deployed_parts, merged
from thyroid.deploy.kserve_client import Cluster, ConflictError, Object, PassingError
from thyroid.deploy.manifest import CANARY, MODE, ROUTE, inference_service, route, storage_uri
from thyroid.deploy.options import STANDARD, DeployOptions
from thyroid.deploy.proof import is_deleted, prove
from thyroid.errors import InputError
from thyroid.model.artefact import Artefact
from thyroid.registry.registry import MODEL_NAME, Registry

log = logging.getLogger(__name__)

_POLL_SECONDS = 2.0
_CONFLICTS = 5
_DELETION_SECONDS = 180.0  # pods have 30 s to end, and each controller's finalizer takes a few more seconds


class NotServedError(InputError):
    """The version is not served.

    Attributes:
        refuted: Whether the version did not prove itself, so that the registry must be rolled back, too.
    """

    def __init__(self, message: str, refuted: bool) -> None:
        """Keep the message and whether the version is refuted."""
        super().__init__(message)
        self.refuted = refuted


class Rollout:
    """The deployment of one registered version to a cluster.

    In Standard mode a canary is a second InferenceService, to which an HTTPRoute sends a part of the requests. In
    Knative mode KServe splits the requests of one InferenceService.

    Args:
        cluster: Cluster to deploy to.
        registry: Registry with the version.
        artefact: The version, with its reference.jpg.
        options: How to serve.

    Attributes:
        version: Number of the version.
        name: Name of the InferenceService.
        wanted: InferenceService that is sent.
        before: What the cluster had; None if there was nothing.
        changed: Whether `wanted` differs from that.
        notes: Notes for people.

    Raises:
        InputError: KServe cannot read the registry.
    """

    def __init__(self, cluster: Cluster, registry: Registry, artefact: Artefact, options: DeployOptions) -> None:
        """Build the InferenceService. Nothing is sent yet."""
        self._cluster, self._registry, self._artefact, self._options = cluster, registry, artefact, options
        self._second_service = options.canary > 0 and options.mode == STANDARD
        self.version = artefact.publication.version
        self.name = CANARY if self._second_service else MODEL_NAME
        digest = artefact.record.data_digest
        self.wanted = inference_service(self.name, self.version, self._uri(self.version), options, digest)
        self.before: Object | None = None
        self.changed = False
        self.notes: list[str] = []

    def run(self) -> str:
        """Deploy the version and prove it.

        Returns:
            The address of the service.

        Raises:
            InputError: Nothing was changed.
            PassingError: The version was sent, and the outcome is unknown.
            NotServedError: The version was sent and did not prove itself, or it gets no traffic. The message gives the
                reason and what was done about it.
        """
        self._prepare()
        where = f"InferenceService {self.name} in namespace {self._cluster.namespace}"
        # This is noted first, so that an attempt that is killed leaves a version that counts as unproven.
        if _uri_of(self.before) != _uri_of(self.wanted):
            self._registry.note_deployment("sent", self.version, f"sent to {where}")
        self._apply()
        for note in self.notes:
            log.info(note)
        try:
            url = prove(self._cluster, self.name, self._artefact, self._options)
        except InputError as error:
            raise self._not_served(error) from None
        self._registry.note_deployment("proven", self.version, f"answered its reference image as evaluated: {where}")
        if self._second_service:
            try:
                split_traffic(self._cluster, self._options.canary)
            except InputError as error:
                raise self._not_served(error) from None
        if not self._options.canary and self._options.mode == STANDARD:
            self.notes += _end_canary(self._cluster)
        return url

    def _prepare(self) -> None:
        """Check that the cluster can serve the version, and read what it has.

        Raises:
            InputError: The ServingRuntime, or the service beside the canary, is missing, or the service that exists
                runs in the other mode.
        """
        self._cluster.need_runtime(self.wanted["spec"]["predictor"]["model"]["runtime"])
        if self._second_service and _settled(self._cluster, MODEL_NAME) is None:
            raise InputError(
                f"a canary needs a champion that is already served, and there is no InferenceService {MODEL_NAME} yet"
            )
        self.before = _settled(self._cluster, self.name)
        if self.before is None:
            return
        mode, annotations = self._options.mode, self.before["metadata"].get("annotations") or {}
        present = self.before.get("status", {}).get("deploymentMode") or annotations.get(MODE, mode)
        if present != mode:
            raise InputError(
                f"InferenceService {self.name} runs in {present} mode, and KServe cannot change the mode of an "
                f"existing service. min_replicas {self._options.min_replicas} needs {mode} mode: delete the service, "
                "or set min_replicas " + ("to 0" if mode == STANDARD else "above 0")
            )

    def _apply(self) -> None:
        """Create or update the object, and note edits by hand. Nothing is sent if nothing has to change.

        Raises:
            InputError: The cluster refuses, or somebody else changes the object at each try.
        """
        parts = deployed_parts(self.wanted)
        request = json.dumps(parts, sort_keys=True)
        for _ in range(_CONFLICTS):
            live = _settled(self._cluster, self.name)
            try:
                if live is None:
                    body = copy.deepcopy(self.wanted)
                    body["metadata"]["annotations"][APPLIED] = request
                    self._cluster.create(body)
                    self.changed, self.notes = True, [f"created InferenceService {self.name}"]
                    return
                annotations = live["metadata"].get("annotations") or {}
                try:
                    applied = json.loads(annotations.get(APPLIED, "{}"))
                except ValueError:
                    applied = {}  # as for an object that was made by hand or by GitOps
                result, notes = merged(deployed_parts(live), applied, parts)
                if result == deployed_parts(live) and annotations.get(APPLIED) == request:
                    self.notes = [*notes, f"InferenceService {self.name} is already up to date"]
                    return
                body = copy.deepcopy(live)
                body["spec"] = result["spec"]
                metadata = {"annotations": result["annotations"] | {APPLIED: request}, "labels": result["labels"]}
                body["metadata"] |= metadata
                self._cluster.replace(body)
                self.changed, self.notes = True, [*notes, f"updated InferenceService {self.name}"]
                return
            except ConflictError as error:
                conflict = error
        raise InputError(
            f"InferenceService {self.name}: changed by somebody else during each of {_CONFLICTS} attempts ({conflict})"
        )

    def _not_served(self, error: InputError) -> InputError:
        """Take the version back unless the failure says nothing about it, and return the error to raise."""
        if isinstance(error, PassingError):
            return error
        try:
            refuted, done = self._take_back()
        except InputError as second:
            refuted, done = False, f"nothing was rolled back: {second}"
        return NotServedError(f"version {self.version} is not served: {error}; {done}", refuted)

    def _take_back(self) -> tuple[bool, str]:
        """Undo what was sent, after the version did not prove itself or got no traffic.

        What the cluster had before is restored. If that is a version that never proved itself either, the newest
        earlier champion is deployed instead. A version that has proven itself once is not refuted by a later failure.

        Returns:
            Whether the version is refuted, and what was done, in words.
        """
        before, service = self.before, f"InferenceService {self.name}"
        same = _uri_of(before) == _uri_of(self.wanted)
        refuted = self._registry.is_unproven(self.version)
        restored, done = before, f"{service} was restored"
        if not self.changed and not refuted:
            return False, f"{service} was already up to date and was not changed"
        if before is None or (self.name == CANARY and same and refuted):
            restored, done = None, f"{service} was removed"
        elif (same and refuted) or _uri_of(before) in [self._uri(number) for number in self._registry.refuted()]:
            earlier = [number for number in self._registry.earlier() if number != self.version]
            if not refuted or not earlier:
                return False, f"{service} was left as it is, because no proven version was there before"
            restored = _with_version(before, earlier[0], self._uri(earlier[0]))
            done = f"{service} serves version {earlier[0]} again"
        try:
            _restore(self._cluster, self.name, restored)
        except InputError as error:
            done = f"{service} could not be restored: {error}"
        return refuted, done

    def _uri(self, version: int) -> str:
        return storage_uri(self._registry.address(version))


def split_traffic(cluster: Cluster, canary: int) -> None:
    """Set the weights of the HTTPRoute.

    Args:
        cluster: Cluster with the route.
        canary: Percentage of requests for the canary, 0 to 99.

    Raises:
        InputError: The namespace has no such route, or the route is KServe's own, so that KServe would undo the change.
    """
    found = cluster.route(ROUTE)
    if found is None:
        raise InputError(
            f"namespace {cluster.namespace} has no HTTPRoute {ROUTE}, which splits the traffic in Standard mode "
            "(KServe ignores canaryTrafficPercent there): make -s manifests OVERLAY=gateway | kubectl apply -f -"
        )
    if any(owner["kind"] == "InferenceService" for owner in found["metadata"].get("ownerReferences", [])):
        raise InputError(f"HTTPRoute {ROUTE} belongs to an InferenceService, so KServe would revert any change to it")
    rules = copy.deepcopy(found["spec"].get("rules") or [{}])
    rules[0]["backendRefs"] = route(cluster.namespace, canary)["spec"]["rules"][0]["backendRefs"]
    cluster.patch_route(ROUTE, {"spec": {"rules": rules}})


def _end_canary(cluster: Cluster) -> list[str]:
    """Send all traffic to the champion's service and remove the canary.

    Failures become notes and raise no error, since the model is already proven.
    """
    try:
        if cluster.get(CANARY) is None:
            return []
        split_traffic(cluster, 0)
        cluster.delete(CANARY)
    except InputError as error:
        return [f"the canary {CANARY} was not removed: {error}"]
    return [f"removed InferenceService {CANARY}"]


def _settled(cluster: Cluster, name: str) -> Object | None:
    """Wait for the end of any deletion in progress, and return the InferenceService; None if there is none.

    Raises:
        InputError: The deletion does not end in time.
    """
    deadline, logged = time.monotonic() + _DELETION_SECONDS, False
    while True:
        live = cluster.get(name)
        if live is None or not is_deleted(live):
            return live
        since, finalizers = live["metadata"]["deletionTimestamp"], ", ".join(live["metadata"].get("finalizers", []))
        if time.monotonic() > deadline:
            raise InputError(
                f"InferenceService {name}: deleted at {since}, but kept by its finalizers ({finalizers}): "
                "check the log of their controller, then run the deployment again"
            )
        if not logged:
            log.info(f"waiting for {name}: deleted at {since}, its finalizers ({finalizers}) are still running")
            logged = True
        time.sleep(_POLL_SECONDS)


def _restore(cluster: Cluster, name: str, before: Object | None) -> None:
    """Put an object back as it was; None removes it.

    Raises:
        InputError: It could not be put back.
    """
    if before is None:
        cluster.delete(name)
        return
    for _ in range(_CONFLICTS):
        live = _settled(cluster, name)
        body = copy.deepcopy(before)
        body["metadata"].pop("resourceVersion", None)
        try:
            if live is None:
                cluster.create(body)
            else:
                body["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"]
                cluster.replace(body)
        except ConflictError:
            continue
        return
    raise InputError("it is being changed by somebody else")


def _uri_of(body: Object | None) -> str | None:
    """Return the address from which an InferenceService loads its model."""
    return None if body is None else body["spec"]["predictor"].get("model", {}).get("storageUri")


def _with_version(before: Object, version: int, uri: str) -> Object:
    """Return an InferenceService as it was before, with another version."""
    body = copy.deepcopy(before)
    body["spec"]["predictor"]["model"]["storageUri"] = uri
    body["metadata"].setdefault("labels", {})["thyroid/version"] = str(version)
    for key in (APPLIED, "thyroid/data-digest"):
        (body["metadata"].get("annotations") or {}).pop(key, None)
    return body
