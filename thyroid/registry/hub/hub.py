"""Enters in Kubeflow Hub what the registry has decided. A Hub that fails or cannot be reached changes nothing here.

Each time everything that the Hub lacks is entered, so that a Hub that could not be reached catches up:

    RegisteredModel  thyroid        owner, notice, and the champion as a custom property
    ModelVersion     our version    figures of the internal test as custom properties; LIVE if it is the champion or a
                                    former one that a roll-back may return to, ARCHIVED otherwise
    ModelArtifact    thyroid-N      its gs://, s3:// or pvc:// address

hub.json beside aliases.json keeps the Hub's address and ids.
"""

import asyncio
import contextlib
import json
import logging
import os
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field

from thyroid import errors, storage
from thyroid.errors import InputError
from thyroid.model.artefact import CARD, Artefact
from thyroid.records.record import Record
from thyroid.registry.aliases import dump
from thyroid.registry.registry import MODEL_NAME, Registry
from thyroid.storage import ABSENT
from thyroid.storage.volume import storage_uri

log = logging.getLogger(__name__)

TOKEN = "THYROID_HUB_TOKEN"
"""Environment variable with the bearer token that the Hub asks for."""
FILE = "hub.json"

_SECONDS = 60
"""A run waits no longer than this for the Hub."""
_LABEL = "modelregistry.kubeflow.org"
_Id = Annotated[str, Field(pattern="^[A-Za-z0-9]([-._A-Za-z0-9]{0,61}[A-Za-z0-9])?$")]
"""An id that can be the value of a label; Kubernetes would refuse the whole InferenceService for another one."""


class HubRecord(Record):
    """hub.json: the Hub in which a registry's versions are entered, and the ids that it gave."""

    url: str
    """Address of the Hub, as `--hub` named it."""
    model: _Id
    """Id of the registered model."""
    versions: dict[str, _Id]
    """Number of each version to its id."""


def update(registry: Registry, hub: str = "") -> None:
    """Do the same as `enter` if there is a Hub; a failure is a warning that says how to repeat it later.

    Args:
        registry: The registry.
        hub: Address of the Hub, as for `enter`; empty for the last one, if any.
    """
    try:
        if hub or _read(registry) is not None:
            enter(registry, hub)
    except (InputError, OSError) as error:
        address = " --hub URL" if hub else ""
        log.warning(
            f"warning: {errors.one_line(error)}; nothing else depends on it. To enter the models later: "
            f"python -m thyroid.registry hub --registry {registry.root}{address}"
        )


def enter(registry: Registry, hub: str = "") -> HubRecord:
    """Enter every version that Kubeflow Hub lacks, newest first, and set the state of all and the champion.

    A second call enters nothing twice.

    Args:
        registry: The registry.
        hub: http:// or https:// address of the Hub; `URL#NAME` enters the model under another name than thyroid, for
            registries that share a Hub. Empty for the last one.

    Returns:
        The ids that the Hub gave.

    Raises:
        InputError: The address is no URL or contains a password, the registry is empty or only this machine can read
            it, or the Hub refuses, has a model of this name from another registry, answers with more than 8 MB, or
            takes longer than a minute.
    """
    if not hub:
        known = _read(registry)
        if known is None:
            raise InputError(f"{registry.root}: this registry is in no Hub yet; name one with --hub URL")
        hub = known.url
    url, name = _parse(hub)
    if not registry.versions():
        raise InputError(f"{registry.root}: the registry is empty; there is nothing to enter in Kubeflow Hub")
    storage_uri(registry.address(1))  # any version's
    try:
        return asyncio.run(asyncio.wait_for(_enter(registry, hub, url, name), _SECONDS))
    except TimeoutError:
        raise InputError(
            f"Kubeflow Hub {url}: not done within {_SECONDS} s; check the address and the Hub, and try again, which "
            "continues where this ended"
        ) from None
    except ImportError as error:
        raise InputError(f"Kubeflow Hub: package model-registry is not installed ({error})") from None
    except Exception as error:  # of aiohttp and its resolver, of the generated client and of its records' checks
        raise InputError(f"Kubeflow Hub {url}: {_reason(error)}") from None


def labels(registry: Registry, version: int | str) -> dict[str, str]:
    """Return the labels by which Kubeflow Hub knows the InferenceService of a version; none if it was not entered.

    Args:
        registry: The registry.
        version: Number of the version.
    """
    try:
        known = _read(registry)
    except (InputError, OSError) as error:
        log.warning(f"warning: {errors.one_line(error)}")
        known = None
    if known is None or str(version) not in known.versions:
        return {}
    return {f"{_LABEL}/registered-model-id": known.model, f"{_LABEL}/model-version-id": known.versions[str(version)]}


async def _enter(registry: Registry, hub: str, url: str, name: str) -> HubRecord:
    """Enter what the Hub lacks, and write hub.json, also if it ends halfway."""
    from thyroid.registry.hub import client  # takes half a second

    champion, numbers = registry.champion(), registry.versions()
    complete = _ids(registry, hub)
    ids = {number: own for number, own in complete.items() if number in map(str, numbers)}
    live = {champion, *registry.earlier()}
    async with client.connect(url, os.environ.get(TOKEN, "").strip() or None) as api:
        model = await client.enter_model(api, name, registry.history()[0]["id"], champion)
        try:
            present = await client.read_versions(api, model)
            for number in map(str, reversed(numbers)):
                state, own = "LIVE" if int(number) in live else "ARCHIVED", present.pop(number, None)
                if own is not None:
                    await client.set_state(api, own, state)
                if own is not None and complete.get(number) == own.id:
                    continue
                try:
                    artefact = Artefact.read(registry.find(number, CARD))
                    uri = storage_uri(registry.address(int(number)))
                    version = own.id if own is not None else await client.enter_version(api, model, artefact, state)
                    await client.enter_address(api, version, f"{MODEL_NAME}-{number}", uri)
                    ids[number] = version
                except InputError as error:
                    ids.pop(number, None)
                    log.warning(f"warning: version {number} is not entered in Kubeflow Hub: {error}")
            for removed in present.values():
                if removed.author == client.OWNER:  # people may have versions of their own there
                    await client.set_state(api, removed, "ARCHIVED")
        finally:
            record = HubRecord(url=hub, model=model, versions=ids)
            _home(registry).write(FILE, dump(record.to_dict()))
    return record


def _parse(hub: str) -> tuple[str, str]:
    """Return the address of a Hub, and the name that the model has there.

    Raises:
        InputError: The address is none, or contains a user's name or password.
    """
    with contextlib.suppress(ValueError):  # of brackets or a port that are none
        address = urlsplit(hub)
        usable = address.scheme in ("http", "https") and address.hostname and address.port != 0
        if usable and "@" not in address.netloc:
            return address._replace(fragment="").geturl().rstrip("/"), address.fragment or MODEL_NAME
    raise InputError(
        "hub: give the address of Kubeflow Hub, such as http://model-registry-service.kubeflow:8080; "
        f"a token belongs in {TOKEN}"
    )


def _ids(registry: Registry, hub: str) -> dict[str, str]:
    """Return the ids of the versions that this Hub has with everything that belongs to them."""
    try:
        known = _read(registry)
    except InputError:  # it is replaced
        return {}
    return known.versions if known is not None and known.url == hub else {}


def _reason(error: Exception) -> str:
    """Return what went wrong in one line, and what to do where that is known."""
    status = getattr(error, "status", None)
    if status in (401, 403):
        return f"{status}: access is refused; set {TOKEN} to a token that may write there"
    if status is not None:
        return f"{status} {getattr(error, 'reason', None) or ''}".rstrip()
    return errors.one_line(error)[:200] or type(error).__name__


def _read(registry: Registry) -> HubRecord | None:
    """Return the content of hub.json; None if there is none.

    Raises:
        InputError: The file is damaged.
    """
    place = storage.below(registry.root, MODEL_NAME, FILE)
    data, generation = _home(registry).read(FILE)
    if generation == ABSENT:
        return None
    try:
        return HubRecord.parse(json.loads(data), place, "ignore")
    except (ValueError, RecursionError, InputError) as error:
        reason = errors.one_line(error).removeprefix(f"{place}: ")[:200]
        raise InputError(f"{place}: damaged: {reason}; name the Hub again with --hub URL, which replaces it") from None


def _home(registry: Registry) -> storage.Folder | storage.Bucket:
    return storage.at(storage.below(registry.root, MODEL_NAME))
