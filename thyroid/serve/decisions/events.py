"""The decision log as CloudEvents 1.0 (https://cloudevents.io) to a URL, in batches."""

import contextlib
import socket
import threading
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import httpx
import orjson
from cloudevents.conversion import to_json
from cloudevents.http import CloudEvent

from thyroid.errors import InputError
from thyroid.serve.decisions.writer import Line, RefusedError

TYPE = "thyroid.decision.v1"
SHADOW_TYPE = "thyroid.shadow.v1"
CONTENT_TYPE = "application/cloudevents-batch+json"
TIMEOUT = 5.0
"""Seconds for each of: to connect, to send, and to get an answer."""
DEADLINE = 15.0
"""Seconds for all of it, since a receiver that sends its answer byte by byte keeps every `TIMEOUT`."""
_LATER = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)
"""Refusals that another attempt may not get."""
_LAST_PORT = 65535


class Events:
    """Posts decisions to a URL as a batch of CloudEvents.

    A redirect is not followed, so that the decisions go nowhere else. An event that is sent again keeps its id and its
    source, by which the receiver knows it.

    Args:
        url: http:// or https:// address. Name and password in it are sent as basic authentication.
        name: Label of the metrics.
        type_: Type of the events.

    Raises:
        InputError: It is no such address, which the message does not quote, since it may hold a password; or the
            environment names certificates or a proxy that cannot be used.
    """

    most = 100
    attempts = 5

    def __init__(self, url: str, name: str = "url", type_: str = TYPE) -> None:
        """Open no connection yet."""
        self.name, self._type = name, type_
        try:
            self._url = httpx.URL(url)
            known = self._url.scheme in ("http", "https") and self._url.host and (self._url.port or 0) <= _LAST_PORT
        except (httpx.InvalidURL, ValueError):  # ValueError for a host or a path that cannot be encoded
            known = False
        if not known:
            raise InputError("--log-url: no http:// or https:// address; write it as https://host/path")
        try:
            self._client = httpx.Client(timeout=TIMEOUT, follow_redirects=False, headers={"content-type": CONTENT_TYPE})
        except (OSError, ValueError, ImportError, httpx.InvalidURL):  # their texts may quote a proxy's password
            raise InputError(
                "--log-url: the environment's certificates or proxies cannot be used; correct SSL_CERT_FILE, "
                "SSL_CERT_DIR, HTTP_PROXY, HTTPS_PROXY and ALL_PROXY"
            ) from None

    def write(self, lines: Sequence[Line]) -> None:
        """Post decisions in one batch.

        Raises:
            RefusedError: The receiver refuses them for good, or sends them elsewhere.
            ConnectionError: The receiver cannot take them now.
            httpx.HTTPError: It cannot be reached, or does not answer in time.
        """
        batch = b"[" + b",".join(to_json(_event(self._type, line)) for line in lines) + b"]"
        connected: list[socket.socket] = []

        def keep(event: str, info: Mapping[str, Any]) -> None:
            if event.endswith(("connect_tcp.complete", "start_tls.complete")):
                connected.append(info["return_value"].get_extra_info("socket"))

        timer = threading.Timer(DEADLINE, _cut, [connected])
        timer.daemon = True
        timer.start()
        try:
            with self._client.stream("POST", self._url, content=batch, extensions={"trace": keep}) as answer:
                status = answer.status_code  # the body of the answer is not read
        finally:
            timer.cancel()
        if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
            return
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _LATER:
            raise ConnectionError(None, f"answered with status {status}")
        raise RefusedError(f"refused with status {status}")


def _cut(connected: Sequence[socket.socket]) -> None:
    """End connections that another thread may be reading from."""
    for one in connected:
        with contextlib.suppress(OSError):  # it is closed, or TLS has taken its place
            one.shutdown(socket.SHUT_RDWR)


def _event(type_: str, line: Line) -> CloudEvent:
    decision = orjson.loads(line.text)
    attributes = {
        "type": type_,
        "source": f"/thyroid/{decision['version']}",
        "id": decision["id"],
        "time": decision["time"],
        "datacontenttype": "application/json",
    }
    return CloudEvent(attributes, decision)
