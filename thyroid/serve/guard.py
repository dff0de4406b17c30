"""The middleware in front of every HTTP route.

It handles request ids, limits, the token and closed routes, gives all errors one form, and logs one line per request.
"""

import asyncio
import contextlib
import hmac
import json
import logging
import mmap
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any

from thyroid import logs
from thyroid.serve import limits, openapi, payload, prometheus
from thyroid.serve.admission import Admission, Memory
from thyroid.serve.limits import RequestError

log = logging.getLogger("thyroid.serve")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

JSON_TYPES = ("application/json", "application/cloudevents+json")
IMAGE_TYPES = (*openapi.IMAGES, "application/octet-stream")
OPEN_PATHS = ("/", "/metrics", "/openapi.json")
"""Paths that need no token. Everything under /v2/health/ needs none either."""

_MOMENT = 1.0  # seconds

_INFER = re.compile(r"/v1/models/[^/]+:(predict|explain)|/v2/models/[^/]+(/versions/[^/]+)?/infer")
_PREDICT = re.compile(r"/v1/models/(?P<name>[^/]+):predict")
_VERSION = re.compile(r"/v2/models/(?P<name>[^/]+)/versions/(?P<version>[^/]+)(?P<rest>/.*)?")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Guard:
    """ASGI middleware that checks every HTTP request before the application sees it.

    Args:
        app: The ASGI application behind the guard.
        token: Bearer token that requests must carry; None if they need none.
        repository_api: Whether /v2/repository is open.
        resolve: Returns the name under which a version of a model is served, given the model's name and the version, or
            None if it is not served.
        admission: Limit on the images inside. Requests beyond it are rejected here, before their bodies are read.
        memory: Budget that the bytes of bodies are taken from.
        draining: Returns whether the server is about to stop.
        closed: Returns whether the server has stopped accepting requests.
        predict: Answers V1 predictions: takes a model's name, the body and the headers, and returns a body and headers.
            None leaves them to `app`, whose layers take longer than everything else except the network.
    """

    def __init__(
        self,
        app: Any,
        token: str | None,
        repository_api: bool,
        resolve: Callable[[str, str], str | None],
        admission: Admission,
        memory: Memory,
        draining: Callable[[], bool],
        closed: Callable[[], bool],
        predict: Callable[[str, bytes | memoryview, dict[str, str]], Awaitable[tuple[bytes, dict[str, str]]]]
        | None = None,
    ) -> None:
        """Start with no request inside."""
        self.app, self.token, self.repository_api = app, token, repository_api
        self.resolve, self.admission, self.memory = resolve, admission, memory
        self.draining, self.closed, self.predict = draining, closed, predict
        self.inside = 0
        self._arriving: dict[asyncio.Timeout, None] = {}
        """The time limits of small bodies that are being read, the oldest first."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request, read its body within the limits, have it answered, and log it.

        An error becomes a JSON object with `error` and `code`. Scopes other than HTTP go to the application unchanged.
        """
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = _headers(scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        state: dict[str, Any] = {"status": 0, "started": False, "held": 0, "read": False}

        async def reply(message: Message) -> None:
            if message["type"] == "http.response.start":
                state["status"], state["started"] = message["status"], True
                extra = [(b"x-request-id", request_id.encode())]
                if self.draining():
                    extra.append((b"connection", b"close"))
                message["headers"] = [*message.get("headers", []), *extra]
            await send(message)

        self.inside += 1
        try:
            self._check(scope, headers)
            infers = scope["method"] == "POST" and _INFER.fullmatch(scope["path"])
            if infers:
                await self.admission.opening()
            counts = bool(infers) and headers["content-type"] in JSON_TYPES
            body = await self._whole_body(
                receive, headers, state, limits.MAX_BODY if infers else limits.MAX_LITTLE, counts
            )
            if infers and not body:
                raise RequestError('body: empty; expected {"instances": [{"image": {"b64": "..."}}]} or an image')
            asked = _PREDICT.fullmatch(scope["path"]) if infers else None
            if asked is None or self.predict is None:
                answering = self.app(scope, _replay(bytes(body), receive), reply)
                del body  # so that it is freed as soon as it is decoded
                await answering
            else:
                predicting = self.predict(asked["name"], body, headers)
                del body
                answer, more = await predicting
                await _answer(reply, HTTPStatus.OK, answer, more)
        except _DisconnectedError:
            state["status"] = 499
        except RequestError as error:
            unread = not state["read"] and "transfer-encoding" in headers
            if unread or (self.draining() and not state["read"]):
                await _discard(receive)
            await _refuse(reply, state, error, unread)
        except Exception as error:
            fields: dict[str, Any] = {
                "request_id": request_id,
                "kind": type(error).__name__,
                "where": logs.place(error),
            }
            log.error("internal error", extra={"fields": fields})
            await _refuse(reply, state, RequestError("internal error", HTTPStatus.INTERNAL_SERVER_ERROR, "internal"))
        finally:
            self.inside -= 1
            if state["held"]:
                self.memory.give(state["held"])
        seconds = time.perf_counter() - started
        route = _route(scope["path"])
        prometheus.REQUEST.labels(route, str(state["status"])).observe(seconds)
        fields = {"request_id": request_id, "method": scope["method"], "route": route, "status": state["status"]}
        quiet = route in ("/v2/health", "/metrics") and state["status"] < HTTPStatus.INTERNAL_SERVER_ERROR
        log.log(
            logging.DEBUG if quiet else logging.INFO,
            "request",
            extra={"fields": fields | {"milliseconds": round(seconds * 1000, 1)}},
        )

    async def _whole_body(
        self, receive: Receive, headers: dict[str, str], state: dict[str, Any], most: int, counts: bool
    ) -> bytes | memoryview:
        """Read the body within the limits of size and time.

        `state["held"]` says how many bytes of the memory budget the body takes; the caller gives them back. A large
        body is a view of a buffer that was filled as it arrived: joining its parts would keep other requests waiting.
        If `counts` is set, the values of a body that is or may become large are counted meanwhile.

        Raises:
            RequestError: The body is too large, too slow or holds too many values, or there is no memory for it.
        """
        length = headers.get("content-length", "0")
        if not length.isdigit():
            raise RequestError("content-length: not a number")
        if int(length) > most:
            raise limits.too_large(most)
        if int(length) > limits.SMALL_BODY:
            await self.memory.reserve(int(length))
            state["held"] = int(length)
        # Anonymous memory gets its pages one by one as they are written. A bytearray would get all of them at once, and
        # NumPy asks for huge pages, for which the kernel moves others out of the way while everybody waits.
        whole = memoryview(mmap.mmap(-1, state["held"])) if state["held"] else memoryview(b"")
        parts: list[bytes] = []
        size, more = 0, True
        values = payload.Values() if counts and (whole or "content-length" not in headers) else None
        wrong: RequestError | None = None
        try:
            async with asyncio.timeout(limits.SLOW_CLIENT) as patience:
                if not whole:
                    self._arriving[patience] = None
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _DisconnectedError
                    part = message.get("body", b"")
                    before, size = size, size + len(part)
                    if size > most:
                        raise limits.too_large(most)
                    if size > state["held"]:
                        await self._take(size - state["held"], patience)
                        state["held"] = size
                    if values is not None:
                        try:
                            values.add(part)
                        except RequestError as error:
                            wrong, values = error, None  # raised after the rest: no client reads before
                    if whole:
                        whole[before:size] = part
                    else:
                        parts.append(part)
                    more = message.get("more_body", False)
            state["read"] = True
            if wrong:
                raise wrong
            return whole.toreadonly() if whole else b"".join(parts)
        except TimeoutError:
            self.memory.give(state["held"])
            state["held"] = 0
            text = f"body: did not arrive within {limits.SLOW_CLIENT:g} seconds"
            raise RequestError(text, HTTPStatus.REQUEST_TIMEOUT, "slow_client") from None
        finally:
            self._arriving.pop(patience, None)
            parts.clear()  # a traceback may keep this frame after the request
            del whole, wrong

    async def _take(self, size: int, patience: asyncio.Timeout) -> None:
        """Hold `size` more bytes of a small body.

        If there is no room, the bodies that have been arriving for the longest time are abandoned.

        Raises:
            RequestError: This body is the oldest one.
        """
        while True:
            try:
                return self.memory.take(size)
            except RequestError:
                oldest = next(iter(self._arriving), patience)
                if oldest is patience:
                    raise
                self._arriving.pop(oldest)
                oldest.reschedule(asyncio.get_running_loop().time())
            for _ in range(5):  # until the abandoned one has noticed
                await asyncio.sleep(0)

    def _check(self, scope: Scope, headers: dict[str, str]) -> None:
        path = scope["path"]
        if path.startswith("/v2/health/"):  # probes are outside every limit
            return
        if self.token is not None and path not in OPEN_PATHS:
            presented = headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(presented.encode(), self.token.encode()):
                raise RequestError("authorization: a bearer token is needed", HTTPStatus.UNAUTHORIZED, "unauthorized")
        if self.closed():
            raise limits.stopping()
        if self.inside > limits.CONNECTIONS:
            raise limits.overloaded()
        if path.startswith("/v2/repository/") and not self.repository_api:
            raise RequestError("the repository API is closed here", HTTPStatus.FORBIDDEN, "closed")
        if scope["method"] == "POST" and _INFER.fullmatch(path):
            self._content_type(scope, headers, v1=path.startswith("/v1/"))
        if version := _VERSION.fullmatch(path):
            name = self.resolve(version["name"], version["version"])
            if name is None:
                message = f"model {version['name'][:64]} has no version {version['version'][:32]} here"
                raise RequestError(message, HTTPStatus.NOT_FOUND, "not_found")
            scope["path"] = f"/v2/models/{name}{version['rest'] or ''}"
            scope["raw_path"] = scope["path"].encode()

    def _content_type(self, scope: Scope, headers: dict[str, str], v1: bool) -> None:
        """Refuse unknown content types, and drop parameters such as charset.

        They are dropped from `headers` too, because KServe compares the whole value.
        """
        kind = headers.get("content-type", "application/json").split(";")[0].strip().lower()
        binary = "inference-header-content-length" in headers
        if kind not in JSON_TYPES and not (v1 and kind in IMAGE_TYPES) and not (binary and kind in IMAGE_TYPES):
            allowed = ", ".join((*JSON_TYPES, *(IMAGE_TYPES if v1 else ())))
            message = f"content-type: {kind[:64]!r} is not one of {allowed}"
            raise RequestError(message, HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "content_type")
        if binary:  # FastAPI would read a body of type JSON only as JSON
            kind = "application/octet-stream"
        elif kind == "application/octet-stream":  # KServe would take it for JSON
            kind = "image/jpeg"
        rest = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
        scope["headers"] = [*rest, (b"content-type", kind.encode())]
        headers["content-type"] = kind


class _DisconnectedError(Exception):
    """The client disconnected before its body had arrived."""


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the application the whole body at once."""
    given: list[bytes] = [body]

    async def replay() -> Message:
        return {"type": "http.request", "body": given.pop(), "more_body": False} if given else await receive()

    return replay


async def _discard(receive: Receive) -> None:
    """Read and drop what arrives of a body within a moment.

    Closing a connection with unread bytes resets it before the client has seen the answer.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_MOMENT):
            while (await receive()).get("more_body"):
                pass


async def _refuse(send: Send, state: dict[str, Any], error: RequestError, unread: bool = False) -> None:
    """Answer with an error. If a body of unknown length is `unread`, the connection closes without waiting for it."""
    prometheus.REJECTED.labels(error.code).inc()
    if state["started"]:
        return
    headers = {}
    if error.status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS):
        headers["retry-after"] = str(limits.RETRY_AFTER)
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    if unread or error.status in (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.REQUEST_TIMEOUT):
        headers["connection"] = "close"  # the rest of the body is not read
    await _answer(send, error.status, json.dumps({"error": str(error), "code": error.code}).encode(), headers)


async def _answer(send: Send, status: HTTPStatus, body: bytes, headers: dict[str, str]) -> None:
    all_of_them = {"content-type": "application/json", "content-length": str(len(body))} | headers
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in all_of_them.items()]
    await send({"type": "http.response.start", "status": int(status), "headers": encoded})
    await send({"type": "http.response.body", "body": body})


def _route(path: str) -> str:
    """Return the path without anything that a client chose, for labels and logs."""
    if found := _INFER.fullmatch(path):
        return f"v1:{found[1]}" if found[1] else "v2:infer"
    for prefix in ("/v2/health", "/v2/repository", "/v2/models", "/v1/models", "/metrics"):
        if path.startswith(prefix):
            return prefix
    return "other"
