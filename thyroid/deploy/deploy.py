"""Serve the champion with KServe: update its InferenceService, prove its answer, or restore what was there before."""

import logging
from dataclasses import dataclass
from pathlib import Path

import yaml

from thyroid import notify
from thyroid.deploy.cluster import Cluster, PassingError
from thyroid.deploy.manifest import inference_service
from thyroid.deploy.options import DeployOptions
from thyroid.deploy.rollout import Rollout
from thyroid.errors import InputError
from thyroid.model.artefact import CARD, MODEL, Artefact
from thyroid.notify import words
from thyroid.registry.registry import MODEL_NAME, Registry
from thyroid.storage import Location
from thyroid.storage.volume import CLAIM, storage_uri

log = logging.getLogger(__name__)

_DEFAULTS = DeployOptions()
_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""File of every pod with the name of its namespace."""


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
    deployed before is restored, and the previous champion becomes the registry's champion again. A version stays the
    champion if it has proven itself before, if it could not be asked, or if somebody else replaced it before it
    answered. A failure before anything was sent does not change the registry.

    Args:
        root: Root of the registry.
        version: Version that this run registered; None deploys the champion, whichever it is.
        manifest: File to which the InferenceService is written.
        options: Where and how to serve.

    Raises:
        InputError: The registry cannot be used, the cluster refuses, or the model does not answer as evaluated. The
            message says what was restored.
    """
    registry = Registry(root)
    if not registry.versions():
        raise InputError(f"{root}: there is no registry here; `make run` or the pipeline creates one")
    champion = registry.champion()
    manifest.parent.mkdir(parents=True, exist_ok=True)
    if champion is None or version not in (None, champion):
        return _keep(registry, champion, version, manifest)
    artefact = Artefact.read(registry.find(str(champion), (*CARD, "reference.jpg")))
    namespace = options.namespace or (_OWN_NAMESPACE.read_text().strip() if _OWN_NAMESPACE.is_file() else "")
    try:
        uri = storage_uri(registry.address(champion))
    except InputError:
        if namespace:
            raise
        uri = f"pvc://{CLAIM}/registry/{MODEL_NAME}/{champion}"
    body = inference_service(champion, uri, options, artefact.record.data_digest)
    manifest.write_text(yaml.safe_dump(body, sort_keys=False))
    if not namespace:
        command = f"python -m thyroid.serve --registry {root}"
        log.info(f"no cluster: wrote {manifest}\nserve version {champion} here with: {command}")
        return Deployed("manifest written", champion, None, [f"serve it with {command}"])
    rollout = Rollout(Cluster(namespace), registry, artefact, options)
    try:
        url = rollout.run()
    except PassingError as error:
        raise InputError(f"{error}; no decision was made: run the deployment again") from None
    except InputError:
        if rollout.taken_back:
            _tell(registry, artefact, taken_back=True)
        raise
    _tell(registry, artefact, taken_back=False)
    log.info(f"version {champion} answers its reference image as evaluated at {url}")
    return Deployed("deployed", champion, url, rollout.notes)


def _keep(registry: Registry, champion: int | None, version: int | None, manifest: Path) -> Deployed:
    """Deploy nothing, since the run's version is not the champion.

    Raises:
        InputError: The version was released and rolled back since. A retry of a failed deployment must not succeed.
    """
    reasons = []
    if version is not None:
        artefact = Artefact.read(registry.find(str(version), CARD))
        reasons = artefact.publication.gate.reasons
        if (why := registry.refuted().get(version)) is not None:
            _tell(registry, artefact, taken_back=True)  # the attempt that took it back may have been killed before
            raise InputError(f"version {version} was released and rolled back: {why}")
    kept = "kept champion: " + ("no model is released yet" if champion is None else f"version {champion} stays")
    manifest.write_text(f"# {kept}\n")
    log.info("\n".join([kept, *(f"  {reason}" for reason in reasons)]))
    return Deployed("kept champion", champion, None, reasons)


def _tell(registry: Registry, artefact: Artefact, *, taken_back: bool) -> None:
    """Tell the receivers of notifications what became of a deployment."""
    version = artefact.publication.version
    try:
        champion = registry.champion() if taken_back else version
    except InputError as error:  # it must not take the place of what is to be told
        log.warning(f"notification of the deployment: not possible ({type(error).__name__})")
        return
    news = words.deployed(
        version,
        artefact.record.files[MODEL],
        taken_back=taken_back,
        champion=champion,
        link=registry.address(version),
    )
    notify.tell(news, registry.root)
