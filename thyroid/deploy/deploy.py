"""Serve the champion with KServe: update its InferenceService, prove its answer, or restore what was there before.

python -m thyroid.deploy --registry /data/registry --namespace thyroid
python -m thyroid.deploy --registry output/registry --manifest service.yaml    (without a cluster)
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import yaml

from thyroid.deploy.kserve_client import Cluster, Object, PassingError
from thyroid.deploy.manifest import CLAIM, inference_service, storage_uri
from thyroid.deploy.options import DeployOptions
from thyroid.deploy.rollout import NotServedError, Rollout
from thyroid.errors import InputError
from thyroid.model.artefact import CARD, Artefact
from thyroid.registry.registry import MODEL_NAME, Registry
from thyroid.storage import Location

log = logging.getLogger(__name__)

_DEFAULTS = DeployOptions()


@dataclass(frozen=True)
class Deployed:
    """The outcome of a deployment.

    Attributes:
        status: "deployed", "kept champion" or "manifest written".
        version: Version of the champion; None if no model is released yet.
        url: Address of the service; None if nothing was deployed.
        notes: Notes for people.
    """

    status: str
    version: int | None
    url: str | None
    notes: list[str]


def deploy(root: Location, version: int | None, manifest: Path, options: DeployOptions = _DEFAULTS) -> Deployed:
    """Deploy the champion if it is `version`. A version that the gate refused changes nothing.

    Without a namespace and outside a cluster, only the manifest is written, and the command to serve on this machine is
    logged. If the version is new to the cluster and does not come to answer its reference image as evaluated, what was
    deployed before is restored, and the previous champion becomes the registry's champion again. A version that has
    proven itself stays the champion if a later deployment of it fails. A failure before anything was sent does not
    change the registry.

    Args:
        root: Root of the registry.
        version: Version that this run registered; None deploys the champion, whichever it is.
        manifest: File to which the InferenceService is written.
        options: Where and how to serve.

    Returns:
        The outcome.

    Raises:
        InputError: The registry cannot be used, the cluster refuses, or the model does not answer as evaluated. The
            message says what was restored.
    """
    registry = Registry(root)
    if not registry.versions():
        raise InputError(f"{root}: there is no registry here; `make run` or the pipeline creates one")
    champion = registry.champion()
    manifest.parent.mkdir(parents=True, exist_ok=True)
    if champion is None or (version is not None and champion != version):
        return _keep(registry, champion, version, manifest)
    artefact = Artefact.read(registry.find(str(champion), (*CARD, "reference.jpg")))
    digest = artefact.record.data_digest
    namespace = options.namespace or _own_namespace()
    if not namespace:
        try:
            uri = storage_uri(registry.address(champion))
        except InputError:
            uri = f"pvc://{CLAIM}/registry/{MODEL_NAME}/{champion}"
        _write(manifest, inference_service(MODEL_NAME, champion, uri, options, digest))
        command = f"python -m thyroid.serve --registry {root}"
        log.info(f"no cluster: wrote {manifest}\nserve version {champion} here with: {command}")
        return Deployed("manifest written", champion, None, [f"serve it with {command}"])
    uri = storage_uri(registry.address(champion))
    _write(manifest, inference_service(MODEL_NAME, champion, uri, options, digest))
    return _roll_out(namespace, registry, artefact, options)


def _keep(registry: Registry, champion: int | None, version: int | None, manifest: Path) -> Deployed:
    """Deploy nothing, since the run's version is not the champion.

    Raises:
        InputError: The version was released and rolled back since. A retry of a deployment that failed must not
            succeed.
    """
    kept = "no model is released yet" if champion is None else f"version {champion} stays"
    reasons = []
    if version is not None:
        reasons = Artefact.read(registry.find(str(version), CARD)).publication.gate.reasons
        if (why := registry.refuted().get(version)) is not None:
            raise InputError(f"version {version} was released and rolled back: {why}")
    manifest.write_text(f"# kept champion: {kept}\n")
    log.info("\n".join([f"kept champion: {kept}", *(f"  {reason}" for reason in reasons)]))
    return Deployed("kept champion", champion, None, reasons)


def _roll_out(namespace: str, registry: Registry, artefact: Artefact, options: DeployOptions) -> Deployed:
    """Deploy the champion, and roll the registry back if it is refuted."""
    cluster = Cluster(namespace)
    rollout = Rollout(cluster, registry, artefact, options)
    champion = rollout.version
    try:
        url = rollout.run()
    except PassingError as error:
        raise InputError(f"{error}; no decision was made: run the deployment again") from None
    except NotServedError as error:
        if not error.refuted or not registry.earlier():
            raise InputError(f"{error}; version {champion} remains the champion") from None
        try:
            present = registry.roll_back(f"deployment failed: {error}"[:500], "deploy", champion)
        except InputError as second:
            raise InputError(f"{error}; the registry was not rolled back: {second}") from None
        raise InputError(f"{error}; the champion is version {present}") from None
    log.info(f"version {champion} answers its reference image as evaluated at {url}")
    return Deployed("deployed", champion, url, rollout.notes)


def _write(manifest: Path, body: Object) -> None:
    manifest.write_text(yaml.safe_dump(body, sort_keys=False))


def _own_namespace() -> str:
    """Return the pod's own namespace; empty outside a cluster."""
    try:
        return Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace").read_text().strip()
    except OSError:
        return ""
