"""A client of the endpoint over HTTP (docs/api.md). The token stays on this side."""

import base64
import json
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httpx

from thyroid.registry.registry import MODEL_NAME
from thyroid.web.upload import PageError, View

PATIENCE = 35.0
"""Seconds for an answer: slightly more than the endpoint allows itself."""
CONNECT = 3.0
"""Seconds for a connection, and for the facts of a model that has answered."""
GLANCE = 1.0
"""Seconds for the facts of the model that would answer, since the page must open without a model, too.

The facts of a model that has answered may take `CONNECT` seconds.
"""
READINGS = 6
"""Readings that wait for the endpoint at once: fewer than the server's threads, so that the page always answers."""
LOCATINGS = 2
"""Pictures that wait at once for proposed boxes. They must not keep readings waiting; the script asks again."""
REPORTS = 3
"""Reports that are fetched at once."""
MAX_ANSWER = 100_000_000
"""Bytes of an answer. The answer for twelve pictures with heat maps has some million, as a report has."""
FRESH = 5.0
"""Seconds for which the facts of the model are reused."""

_NO_LOCATOR = (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED)
_MODEL = f"/v1/models/{MODEL_NAME}"
_FIELD = re.compile(r"instances\[(?P<number>[0-9]{1,3})\]")
_CODES: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "error_token",
    HTTPStatus.FORBIDDEN: "error_token",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "error_total",
    HTTPStatus.TOO_MANY_REQUESTS: "error_busy",
    HTTPStatus.BAD_GATEWAY: "error_unreachable",
    HTTPStatus.REQUEST_TIMEOUT: "error_late",
    HTTPStatus.GATEWAY_TIMEOUT: "error_late",
}


class Endpoint:
    """A model behind KServe's V1 protocol.

    Args:
        address: Address as http://host:port, without a path.
        token: Bearer token; None if the endpoint needs none.
    """

    def __init__(self, address: str, token: str | None = None) -> None:
        """Create the HTTP client. Nothing is sent yet."""
        headers = {"authorization": f"Bearer {token}"} if token else {}
        # A compressed answer could unpack to any size.
        headers["accept-encoding"] = "identity"
        self._client = httpx.Client(base_url=address.rstrip("/"), headers=headers, trust_env=False)
        self._seen: tuple[float, dict[str, Any] | None] = (-FRESH, None)
        self._places, self._reports = threading.BoundedSemaphore(READINGS), threading.BoundedSemaphore(REPORTS)
        self._locatings = threading.BoundedSemaphore(LOCATINGS)

    def facts(self, version: int | None = None) -> dict[str, Any] | None:
        """Return what the endpoint says about the model that it serves.

        Args:
            version: Version that the facts must be of; None for any.

        Returns:
            The facts; None if the endpoint cannot be reached or serves another version by now.
        """
        at, seen = self._seen
        if time.monotonic() - at > FRESH or (version is not None and seen is not None and seen["version"] != version):
            try:
                answer = self._ask("GET", f"{_MODEL}/facts", GLANCE if version is None else CONNECT)
                seen = _object(answer) if answer.status == HTTPStatus.OK else None
            except PageError:
                seen = None
            if seen is not None and type(seen.get("version")) is not int:
                seen = None
            self._seen = (time.monotonic(), seen)
        return seen if seen is None or version in (None, seen["version"]) else None

    def report(self) -> bytes:
        """Return the report of the model in service as HTML.

        Raises:
            PageError: There is no report, the endpoint cannot be reached, or too many reports are being fetched.
        """
        if not self._reports.acquire(blocking=False):
            raise PageError("error_busy", status=HTTPStatus.SERVICE_UNAVAILABLE)
        try:
            answer = self._ask("GET", f"{_MODEL}/report", PATIENCE)
        finally:
            self._reports.release()
        if answer.status == HTTPStatus.NOT_FOUND:
            raise PageError("error_report", status=HTTPStatus.NOT_FOUND)
        return _checked(answer, ()).body

    def explain(self, views: Sequence[View], request_id: str, clinical: dict[str, float | str]) -> dict[str, Any]:
        """Return the endpoint's answer to `:explain`.

        Args:
            views: Pictures of one patient.
            request_id: Id of the request, which the endpoint logs.
            clinical: Values of the patient's clinical columns.

        Raises:
            PageError: The endpoint cannot be reached, is too busy, refuses a view, or gives an undocumented answer.
        """
        instances = [
            _instance(view)
            | {"patient": "1"}
            | ({} if view.roi is None else {"roi": view.roi})
            | ({"clinical": clinical} if clinical else {})
            for view in views
        ]
        if not self._places.acquire(blocking=False):
            raise PageError("error_busy", status=HTTPStatus.SERVICE_UNAVAILABLE)
        try:
            body, headers = {"instances": instances}, {"x-request-id": request_id}
            answer = self._ask("POST", f"{_MODEL}:explain", PATIENCE, json=body, headers=headers)
        finally:
            self._places.release()
        content = _object(_checked(answer, views))
        explanations, patients = content.get("explanations"), content.get("patients")
        if type(explanations) is not list or type(patients) is not list:
            raise _undocumented()
        if len(explanations) != len(views) or len(patients) != 1:
            raise _undocumented()
        return content

    def locate(self, view: View, request_id: str) -> dict[str, Any] | None:
        """Return the endpoint's answer to `:locate` for one picture; None if the model has no locator.

        Args:
            view: The picture. Its box is not sent.
            request_id: Id of the request, which the endpoint logs.

        Raises:
            PageError: As for `explain`.
        """
        if not self._locatings.acquire(blocking=False):
            raise PageError("error_busy", status=HTTPStatus.SERVICE_UNAVAILABLE)
        try:
            body, headers = {"instances": [_instance(view)]}, {"x-request-id": request_id}
            answer = self._ask("POST", f"{_MODEL}:locate", PATIENCE, json=body, headers=headers)
        finally:
            self._locatings.release()
        if answer.status in _NO_LOCATOR:
            return None
        boxes = _object(_checked(answer, [view])).get("boxes")
        if boxes is None:
            return None
        if type(boxes) is not list or len(boxes) != 1 or type(boxes[0]) is not dict:
            raise _undocumented()
        return boxes[0]

    def predict(self, view: View, request_id: str) -> dict[str, Any]:
        """Return the endpoint's answer to `:predict` for one picture, without a box.

        Args:
            view: The picture. Its box is not sent.
            request_id: Id of the request, which the endpoint logs.

        Raises:
            PageError: As for `explain`.
        """
        body, headers = {"instances": [_instance(view)]}, {"x-request-id": request_id}
        answer = self._ask("POST", f"{_MODEL}:predict", PATIENCE, json=body, headers=headers)
        predictions = _object(_checked(answer, [view])).get("predictions")
        if type(predictions) is not list or len(predictions) != 1 or type(predictions[0]) is not dict:
            raise _undocumented()
        return predictions[0]

    def _ask(self, method: str, path: str, patience: float, **more: Any) -> "_Answer":
        """Return an answer that arrives completely within `patience` seconds and `MAX_ANSWER` bytes.

        Raises:
            PageError: The endpoint cannot be reached, is too slow, or answers with too many bytes.
        """
        end = time.monotonic() + patience
        timeout = httpx.Timeout(patience, connect=min(CONNECT, patience))
        try:
            with self._client.stream(method, path, timeout=timeout, **more) as answer:
                parts, size = [], 0
                for part in answer.iter_raw():
                    size += len(part)
                    if size > MAX_ANSWER or time.monotonic() > end:
                        raise _undocumented() if size > MAX_ANSWER else httpx.ReadTimeout("")
                    parts.append(part)
                return _Answer(answer.status_code, b"".join(parts))
        except (httpx.ReadTimeout, httpx.WriteTimeout):
            raise PageError("error_late", status=HTTPStatus.GATEWAY_TIMEOUT) from None
        except httpx.HTTPError:
            raise PageError("error_unreachable", status=HTTPStatus.BAD_GATEWAY) from None


@dataclass(frozen=True)
class _Answer:
    status: int
    body: bytes


def _instance(view: View) -> dict[str, Any]:
    """Return what every request says about a picture."""
    image = {"image": {"b64": base64.b64encode(view.data).decode()}}
    return image | ({"domain": "frame"} if view.full_frame else {})


def _undocumented() -> PageError:
    return PageError("error_answer", status=HTTPStatus.BAD_GATEWAY)


def _object(answer: _Answer) -> dict[str, Any]:
    try:
        content = json.loads(answer.body)
    except (ValueError, RecursionError):
        raise _undocumented() from None
    if not isinstance(content, dict):
        raise _undocumented()
    return content


def _checked(answer: _Answer, views: Sequence[View]) -> _Answer:
    if answer.status == HTTPStatus.OK:
        return answer
    try:
        content = _object(answer)
    except PageError:  # the page of a gateway
        content = {}
    code, message = str(content.get("code")), str(content.get("error"))
    if answer.status == HTTPStatus.SERVICE_UNAVAILABLE:
        key = {"overloaded": "error_busy", "not_ready": "error_starting"}.get(code, "error_unreachable")
        raise PageError(key, status=HTTPStatus.SERVICE_UNAVAILABLE)
    named = _FIELD.match(message)
    if answer.status == HTTPStatus.BAD_REQUEST and re.match(r"instances\[[0-9]+\]\.clinical", message):
        # the form was made for another model than the one that answers
        raise PageError("error_columns", status=HTTPStatus.BAD_GATEWAY)
    if answer.status == HTTPStatus.BAD_REQUEST and named and int(named["number"]) < len(views):
        # Sizes and boxes were checked on this side, so what the endpoint still refuses is damaged behind its header.
        raise PageError("error_damaged", {"name": views[int(named["number"])].name})
    key = _CODES.get(answer.status, "error_answer")
    values = {"limit": round(sum(len(view.data) for view in views) / 1e6)} if key == "error_total" else {}
    raise PageError(key, values, HTTPStatus.BAD_GATEWAY)
