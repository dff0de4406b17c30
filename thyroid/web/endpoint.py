"""The endpoint, asked over HTTP (docs/api.md); the token stays on this side."""

import base64
import re
import time
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import httpx

from thyroid import registry
from thyroid.web.upload import PageError, View

PATIENCE = 35.0
"""Seconds for an answer: a little more than the endpoint gives itself."""
CONNECT = 3.0
GLANCE = 0.5
"""Seconds for a look at who answers: a page must open without the model, too."""
FRESH = 5.0
"""Seconds for which what was seen of the model is shown again."""

_MODEL = f"/v1/models/{registry.NAME}"
_FIELD = re.compile(r"instances\[(?P<number>\d+)\]")
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
        address: http://host:port, without a path.
        token: bearer token; None for none.
    """

    def __init__(self, address: str, token: str | None = None) -> None:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        timeout = httpx.Timeout(PATIENCE, connect=CONNECT)
        self._client = httpx.Client(base_url=address.rstrip("/"), headers=headers, timeout=timeout, trust_env=False)
        self._seen: tuple[float, dict[str, Any] | None] = (-FRESH, None)

    def facts(self, version: int | None = None) -> dict[str, Any] | None:
        """What the endpoint tells of the model it serves; None if it cannot be reached, or serves another version by now."""
        at, seen = self._seen
        if time.monotonic() - at > FRESH or (version is not None and seen is not None and seen["version"] != version):
            try:
                answer = self._client.get(f"{_MODEL}/facts", timeout=GLANCE)
                seen = answer.json() if answer.status_code == HTTPStatus.OK else None
            except (httpx.HTTPError, ValueError):
                seen = None
            self._seen = (time.monotonic(), seen)
        return seen if seen is None or version in (None, seen["version"]) else None

    def report(self) -> str:
        """The report of the model in service, HTML.

        Raises:
            PageError: there is none, or the endpoint cannot be reached.
        """
        answer = self._ask("GET", f"{_MODEL}/report")
        if answer.status_code == HTTPStatus.NOT_FOUND:
            raise PageError("error_report", status=HTTPStatus.NOT_FOUND)
        return _checked(answer, ()).text

    def explain(self, views: Sequence[View], request_id: str) -> dict[str, Any]:
        """The endpoint's answer to `:explain`, the views being one patient's.

        Raises:
            PageError: it cannot be reached, has too much to do, refuses a view, or answers otherwise than documented.
        """
        instances = [
            {"image": {"b64": base64.b64encode(view.data).decode()}, "patient": "1"}
            | ({} if view.roi is None else {"roi": view.roi})
            for view in views
        ]
        answer = self._ask(
            "POST", f"{_MODEL}:explain", json={"instances": instances}, headers={"x-request-id": request_id}
        )
        try:
            told = _checked(answer, views).json()
            if len(told["explanations"]) == len(views) and len(told["patients"]) == 1:
                return told
        except (ValueError, KeyError, TypeError):
            pass
        raise PageError("error_answer", status=HTTPStatus.BAD_GATEWAY)

    def _ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        try:
            return self._client.request(method, path, **more)
        except (httpx.ReadTimeout, httpx.WriteTimeout):
            raise PageError("error_late", status=HTTPStatus.GATEWAY_TIMEOUT) from None
        except httpx.HTTPError:
            raise PageError("error_unreachable", status=HTTPStatus.BAD_GATEWAY) from None


def _checked(answer: httpx.Response, views: Sequence[View]) -> httpx.Response:
    if answer.status_code == HTTPStatus.OK:
        return answer
    try:
        told = answer.json()
        code, message = str(told.get("code")), str(told.get("error"))
    except (ValueError, AttributeError):
        code = message = ""
    if answer.status_code == HTTPStatus.SERVICE_UNAVAILABLE:
        key = {"overloaded": "error_busy", "not_ready": "error_starting"}.get(code, "error_unreachable")
        raise PageError(key, status=HTTPStatus.SERVICE_UNAVAILABLE)
    named = _FIELD.match(message)
    if answer.status_code == HTTPStatus.BAD_REQUEST and named and int(named["number"]) < len(views):
        # sizes and boxes were checked here, so what the endpoint still refuses is damage behind the header
        raise PageError("error_damaged", {"name": views[int(named["number"])].name})
    key = _CODES.get(answer.status_code, "error_answer")
    values = {"limit": round(sum(len(view.data) for view in views) / 1e6)} if key == "error_total" else {}
    raise PageError(key, values, HTTPStatus.BAD_GATEWAY)
