"""What a request says: CloudEvents of Google Cloud Storage, notifications of S3, or a plain list of objects."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import unquote_plus

from cloudevents.exceptions import GenericException
from cloudevents.http import CloudEvent, from_http
from pydantic import BaseModel, Field, ValidationError
from pydantic_core import from_json, to_json

from pipelines.events.batch import Arrival
from thyroid.serve.limits import RequestError

MOST_EVENTS = 1000
"""Events or objects of one request."""
WRITTEN = "google.cloud.storage.object.v1.finalized"
"""Type of the CloudEvent that Eventarc and Knative send when an object of Google Cloud Storage was written
(https://cloud.google.com/eventarc/docs/reference/supported-events)."""
_BATCH = "application/cloudevents-batch+json"
_STRUCTURED = "application/cloudevents"
_CREATED = ("ObjectCreated:", "s3:ObjectCreated:")


class _Object(BaseModel):
    """The data of Google's events, as far as they are read."""

    bucket: str
    name: str
    generation: str | int = ""


class _Named(BaseModel):
    name: str


class _Key(BaseModel):
    key: str
    e_tag: str = Field("", alias="eTag")


class _Place(BaseModel):
    bucket: _Named
    object: _Key


class _Record(BaseModel):
    """A record of a notification of S3 (https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-content-structure.html)."""

    event: str = Field(alias="eventName")
    place: _Place = Field(alias="s3")


class _Records(BaseModel):
    records: list[Any] = Field(alias="Records")


class _Objects(BaseModel):
    objects: list[str]


Model = TypeVar("Model", bound=BaseModel)


def read(headers: Mapping[str, str], body: bytes) -> tuple[list[Arrival], int]:
    """Read the events of a request.

    Args:
        headers: The request's headers. Their names are lower case.
        body: Its body: a CloudEvent in binary or structured mode, a batch of CloudEvents, a notification of S3, or
            `{"objects": ["gs://bucket/prefix/name"]}`.

    Returns:
        The objects that were written, in the order of the events; and the number of other events, such as deletions.

    Raises:
        RequestError: The body is none of these. The message names the field and quotes nothing.
    """
    kind = headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == _BATCH:
        return _read_events(_parse(body))
    if kind.startswith(_STRUCTURED):
        return _read_events([_parse(body)])
    if "ce-specversion" in headers:
        return _gathered([_of_event(_event(headers, body))])
    content = _parse(body)
    if isinstance(content, dict) and "Records" in content:
        return _gathered([_of_record(one) for one in _limited(_valid(_Records, content).records)])
    if isinstance(content, dict) and content.get("Event") == "s3:TestEvent":
        return [], 1
    return [Arrival(one) for one in _limited(_valid(_Objects, content).objects)], 0


def _read_events(content: Any) -> tuple[list[Arrival], int]:
    if not isinstance(content, list):
        raise RequestError("body: expected a list of CloudEvents")
    return _gathered([_of_event(_event({}, to_json(one))) for one in _limited(content)])


def _gathered(found: list[Arrival | None]) -> tuple[list[Arrival], int]:
    arrivals = [one for one in found if one is not None]
    return arrivals, len(found) - len(arrivals)


def _limited(items: list[Any]) -> list[Any]:
    if len(items) > MOST_EVENTS:
        text = f"body: {len(items)} events; send at most {MOST_EVENTS} in one request"
        raise RequestError(text, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_many")
    return items


def _parse(body: bytes | str) -> Any:
    try:
        return from_json(body, allow_inf_nan=False)  # it refuses nesting beyond 200 levels
    except ValueError:
        raise RequestError("body: not JSON, or nested too deeply") from None


def _event(headers: Mapping[str, str], body: bytes) -> CloudEvent:
    """Return a CloudEvent whose required attributes are there."""
    try:
        return from_http(headers, body, data_unmarshaller=_as_it_is)
    except (GenericException, ValueError, TypeError, AttributeError, RecursionError):
        text = "body: no CloudEvent 1.0; it needs specversion, id, source and type (https://cloudevents.io)"
        raise RequestError(text) from None


def _as_it_is(data: Any) -> Any:
    """Leave the data of an event as they are. Those of most types are not read."""
    return data


def _of_event(event: CloudEvent) -> Arrival | None:
    if event["type"] != WRITTEN:
        return None
    data = event.get_data()
    written = _valid(_Object, _parse(data) if isinstance(data, bytes | str) else data)
    return Arrival(f"gs://{written.bucket}/{written.name}", str(written.generation))


def _of_record(content: Any) -> Arrival | None:
    record = _valid(_Record, content)
    if not record.event.startswith(_CREATED):
        return None
    place = record.place
    return Arrival(f"s3://{place.bucket.name}/{unquote_plus(place.object.key)}", place.object.e_tag)


def _valid(model: type[Model], content: Any) -> Model:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(str(part)[:64] for part in first["loc"]) or "body"
        raise RequestError(f"{field}: {first['msg']}") from None
