"""What is written to Kubeflow Hub, by the generated client of the package model-registry."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from mr_openapi import (
    ApiClient,
    Artifact,
    Configuration,
    MetadataDoubleValue,
    MetadataStringValue,
    MetadataValue,
    ModelArtifact,
    ModelRegistryServiceApi,
    ModelVersionCreate,
    ModelVersionUpdate,
    RegisteredModelCreate,
    RegisteredModelUpdate,
)
from mr_openapi.exceptions import NotFoundException

from thyroid import RESEARCH_USE_ONLY
from thyroid.errors import InputError
from thyroid.model.artefact import Artefact

OWNER = "thyroid pipeline"
"""Owner of the models and author of the versions that are entered here."""
_PAGE = 100
_MOST = 8 * 2**20
"""Bytes that a Hub may answer in all, which are some 4,000 versions. As objects they take 0.3 GB."""
_FORMAT, _FORMAT_VERSION = "thyroid", "1"
"""Name and version of the model format in the ServingRuntime."""


class _Client(ApiClient):
    """Reads at most `_MOST` bytes, since the generated client holds whatever it is sent."""

    _received = 0

    async def call_api(self, *given: Any, **named: Any) -> Any:
        answer = await super().call_api(*given, **named)
        answer.data = b""
        async for part in answer.response.content.iter_any():
            self._received += len(part)
            if self._received > _MOST:
                raise InputError(f"answers with more than {_MOST >> 20} MB; check the address")
            answer.data += part
        return answer


class _AlphaClient(_Client):
    """Speaks v1alpha3 to servers that are too old for v1. The package has one version only, and the records agree."""

    def param_serialize(self, method: str, resource_path: str, *rest: Any, **named: Any) -> Any:
        return super().param_serialize(method, resource_path.replace("/v1/", "/v1alpha3/", 1), *rest, **named)


@asynccontextmanager
async def connect(url: str, token: str | None) -> AsyncIterator[ModelRegistryServiceApi]:
    """Connect to a Hub with the newest version of the API that it has.

    Args:
        url: Address of the Hub.
        token: Bearer token; None for none.
    """
    config = Configuration(host=url, access_token=token)
    client = _Client(config)
    try:
        try:
            await ModelRegistryServiceApi(client).get_registered_models(page_size="1")
        except NotFoundException:
            await client.close()
            client = _AlphaClient(config)
        yield ModelRegistryServiceApi(client)
    finally:
        await client.close()


async def enter_model(api: ModelRegistryServiceApi, name: str, registry_id: str, champion: int | None) -> str:
    """Enter the registered model, or update its champion, and return its id.

    What people have changed at the model is left: its description, its owner and properties of their own.

    Args:
        api: Client from `connect`.
        name: Name of the registered model.
        registry_id: What tells this registry from others.
        champion: Number of the champion; None if there is none.

    Raises:
        InputError: The Hub has a model of this name that another registry entered.
    """
    facts = _properties({"registry": registry_id, "champion": str(champion or "none"), "notice": RESEARCH_USE_ONLY})
    try:
        present = await api.find_registered_model(name=name)
    except NotFoundException:
        model = RegisteredModelCreate(
            name=name,
            state="LIVE",
            owner=OWNER,
            description=f"Classifier of thyroid nodules in ultrasound. {RESEARCH_USE_ONLY}",
            customProperties=facts,
        )
        return str((await api.create_registered_model(model)).id)
    properties = present.custom_properties or {}
    found = properties.get("registry")
    if found is None or getattr(found.actual_instance, "string_value", None) != registry_id:
        raise InputError(f"its model {name} was entered by another registry; give this one another name, as URL#NAME")
    await api.update_registered_model(present.id, RegisteredModelUpdate(customProperties=properties | facts))
    return str(present.id)


async def read_versions(api: ModelRegistryServiceApi, model: str) -> dict[str, Any]:
    """Return the versions of a registered model that the Hub has, by name.

    Args:
        api: Client from `connect`.
        model: Id of the registered model.

    Raises:
        InputError: The Hub has answered with more than `_MOST` bytes.
    """
    found: dict[str, Any] = {}
    token = None
    while token != "":
        page = await api.get_registered_model_versions(model, page_size=str(_PAGE), next_page_token=token)
        found |= {version.name: version for version in page.items or []}
        token = page.next_page_token or ""
    return found


async def enter_version(api: ModelRegistryServiceApi, model: str, artefact: Artefact, state: str) -> str:
    """Enter a version of our registry below a registered model, and return the id that it gets.

    Args:
        api: Client from `connect`.
        model: Id of the registered model.
        artefact: The version.
        state: LIVE or ARCHIVED.
    """
    row, known = artefact.record, artefact.publication
    description = f"{row.backbone} on {row.serving_domain} images, gate: {known.gate.decision}. {RESEARCH_USE_ONLY}"
    version = ModelVersionCreate(
        name=str(known.version),
        registeredModelId=model,
        author=OWNER,
        state=state,
        description=description,
        customProperties=_properties(_facts(artefact)),
    )
    return str((await api.create_model_version(version)).id)


async def enter_address(api: ModelRegistryServiceApi, version: str, name: str, uri: str) -> None:
    """Enter where a version's files are, unless the Hub knows.

    Args:
        api: Client from `connect`.
        version: Id of the version.
        name: Name of the artefact.
        uri: Its gs://, s3:// or pvc:// address.
    """
    try:
        await api.find_model_artifact(name=name, parent_resource_id=version)
    except NotFoundException:
        artifact = ModelArtifact(
            name=name,
            uri=uri,
            artifactType="model-artifact",
            state="LIVE",
            modelFormatName=_FORMAT,
            modelFormatVersion=_FORMAT_VERSION,
            description=RESEARCH_USE_ONLY,
        )
        await api.upsert_model_version_artifact(version, Artifact(artifact))


async def set_state(api: ModelRegistryServiceApi, present: Any, state: str) -> None:
    """Set a version's state, unless it is in it.

    Args:
        api: Client from `connect`.
        present: The version, as `read_versions` returns it.
        state: LIVE or ARCHIVED.
    """
    if present.state != state:
        await api.update_model_version(present.id, ModelVersionUpdate(state=state))


def _facts(artefact: Artefact) -> dict[str, str | float | None]:
    """Return what a version's page shows: aggregates of the internal test, and nothing of a patient."""
    row, known, test = artefact.record, artefact.publication, artefact.performance
    facts: dict[str, str | float | None] = {
        "backbone": row.backbone,
        "serving_domain": row.serving_domain,
        "data_digest": row.data_digest,
        "code_version": row.code_version,
        "gate": known.gate.decision,
        "recalibrated_for_site": row.recalibrated_for,
        "test_patients": float(test.patients),
        "test_accuracy": test.accuracy,
        "test_majority_accuracy": test.majority,
        "notice": RESEARCH_USE_ONLY,
    }
    for name in ("auroc", "sensitivity", "specificity", "ece"):
        if (metric := getattr(test, name)) is not None:
            facts |= {f"test_{name}": metric.value, f"test_{name}_low": metric.low, f"test_{name}_high": metric.high}
    return facts


def _properties(facts: Mapping[str, str | float | None]) -> dict[str, MetadataValue]:
    """Return facts as the Hub's custom properties, without those that are None."""
    return {
        name: MetadataValue(
            MetadataStringValue(string_value=value, metadataType="MetadataStringValue")
            if isinstance(value, str)
            else MetadataDoubleValue(double_value=value, metadataType="MetadataDoubleValue")
        )
        for name, value in facts.items()
        if value is not None
    }
