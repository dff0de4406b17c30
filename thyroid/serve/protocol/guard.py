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
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any

from thyroid import logs
from thyroid.serve import limits, openapi, prometheus
from thyroid.serve.decisions.log import begin
from thyroid.serve.limits import RequestError
from thyroid.serve.protocol import bodies
from thyroid.serve.state import State

log = logging.getLogger("thyroid.serve")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Predict = Callable[[str, bytes | memoryview, dict[str, str]], Awaitable[tuple[bytes, dict[str, str]]]]
"""Answers a V1 prediction: takes a model's name, the body and the headers, and returns a body and headers."""

JSON_TYPES = ("application/json", "application/cloudevents+json")
IMAGE_TYPES = (*openapi.IMAGES, "application/octet-stream")
OPEN_PATHS = ("/", "/metrics", "/openapi.json")
"""Paths that need no token. Everything under /v2/health/ needs none either."""

_MOMENT = 1.0  # seconds

_INFER = re.compile(r"/v1/models/[^/]+:(predict|explain|locate)|/v2/models/[^/]+(/versions/[^/]+)?/infer")
_PREDICT = re.compile(r"/v1/models/(?P<name>[^/]+):predict")
_VERSION = re.compile(r"/v2/models/(?P<name>[^/]+)/versions/(?P<version>[^/]+)(?P<rest>/.*)?")


class Guard:
    """ASGI middleware that checks every HTTP request before the application sees it.

    Requests beyond the limit on images are rejected before their bodies are read.

    Args:
        app: The ASGI application behind the guard.
        state: The state of the server: its options, models and limits.
        predict: Answers V1 predictions. None leaves them to `app`, whose layers take longer than everything else except
            the network.
    """

    def __init__(self, app: Any, state: State, predict: Predict | None = None) -> None:
        """Start with no request inside."""
        self.app, self.state, self.predict = app, state, predict
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
        exchange = _Exchange(scope, send, self.state)
        headers = exchange.headers
        self.inside += 1
        try:
            self._check(scope, headers)
            infers = scope["method"] == "POST" and _INFER.fullmatch(scope["path"]) is not None
            if infers:
                await self.state.admission.opening()
            body = await self._read(receive, exchange, infers)
            if infers and not body:
                raise RequestError('body: empty; expected {"instances": [{"image": {"b64": "..."}}]} or an image')
            prediction = _PREDICT.fullmatch(scope["path"]) if infers else None
            if prediction is None or self.predict is None:
                answering = self.app(scope, _replay(bytes(body), receive), exchange.reply)
                del body  # so that it is freed as soon as it is decoded
                await answering
            else:
                predicting = self.predict(prediction["name"], body, headers)
                del body
                answer, more = await predicting
                await exchange.answer(HTTPStatus.OK, answer, more)
        except _DisconnectedError:
            exchange.status = 499
        except RequestError as error:
            unread = not exchange.read and "transfer-encoding" in headers
            if unread or (self.state.draining and not exchange.read):
                await _discard(receive)
            await exchange.refuse(error, unread)
        except Exception as error:
            exchange.log_error(error)
            await exchange.refuse(RequestError("internal error", HTTPStatus.INTERNAL_SERVER_ERROR, "internal"))
        finally:
            self.inside -= 1
            if exchange.held:
                self.state.memory.give(exchange.held)
        exchange.record()

    async def _read(self, receive: Receive, exchange: "_Exchange", infers: bool) -> bytes | memoryview:
        """Read the body within the limits of size and time.

        `exchange.held` says how many bytes of the memory budget the body takes; the caller gives them back.

        Raises:
            RequestError: The body is too large, too slow or holds too many values, or there is no memory for it.
        """
        headers, most = exchange.headers, limits.MAX_BODY if infers else limits.MAX_LITTLE
        length = _content_length(headers, most)
        if length > limits.SMALL_BODY:
            await self.state.memory.reserve(length)
            exchange.held = length
        counts = infers and headers["content-type"] in JSON_TYPES and (exchange.held or "content-length" not in headers)
        body = _Body(exchange.held, bodies.Values() if counts else None)
        try:
            async with asyncio.timeout(limits.SLOW_CLIENT) as patience:
                if not exchange.held:
                    self._arriving[patience] = None
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _DisconnectedError
                    part = message.get("body", b"")
                    size = body.size + len(part)
                    if size > most:
                        raise limits.too_large(most)
                    if size > exchange.held:
                        await self._take(size - exchange.held, patience)
                        exchange.held = size
                    body.add(part)
                    more = message.get("more_body", False)
            exchange.read = True
            return body.content()
        except TimeoutError:
            self.state.memory.give(exchange.held)
            exchange.held = 0
            text = f"body: did not arrive within {limits.SLOW_CLIENT:g} seconds"
            raise RequestError(text, HTTPStatus.REQUEST_TIMEOUT, "slow_client") from None
        finally:
            self._arriving.pop(patience, None)
            body.clear()

    async def _take(self, size: int, patience: asyncio.Timeout) -> None:
        """Hold `size` more bytes of a small body.

        If there is no room, the bodies that have been arriving for the longest time are abandoned.

        Raises:
            RequestError: This body is the oldest one.
        """
        while True:
            try:
                return self.state.memory.take(size)
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
        token = self.state.options.token
        if token is not None and path not in OPEN_PATHS:
            presented = headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(presented.encode(), token.encode()):
                raise RequestError("authorization: a bearer token is required", HTTPStatus.UNAUTHORIZED, "unauthorized")
        if self.state.closed:
            raise limits.stopping()
        if self.inside > limits.CONNECTIONS:
            raise limits.overloaded()
        if path.startswith("/v2/repository/") and not self.state.options.repository_api:
            raise RequestError("the repository API is disabled on this server", HTTPStatus.FORBIDDEN, "closed")
        if scope["method"] == "POST" and _INFER.fullmatch(path):
            self._content_type(scope, headers, v1=path.startswith("/v1/"))
        if version := _VERSION.fullmatch(path):
            name = self.state.resolve(version["name"], version["version"])
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


class _Exchange:
    """One request and its answer.

    Attributes:
        headers: The request's headers. Their names are lower case.
        id: Id of the request, which the answer and the log carry.
        status: Status of the answer; 0 as long as there is none.
        held: Bytes of the memory budget that the body takes.
        read: Whether the whole body was read.
    """

    __slots__ = ("_begun", "_scope", "_send", "_started", "_state", "headers", "held", "id", "read", "status")

    def __init__(self, scope: Scope, send: Send, state: State) -> None:
        self._begun = time.perf_counter()
        self._scope, self._send, self._state = scope, send, state
        self._started = False  # whether the answer has started
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        self.id = begin(self.headers.get("x-request-id", ""))
        self.status = self.held = 0
        self.read = False

    async def reply(self, message: Message) -> None:
        """Send a part of the answer, with the request's id in its headers."""
        if message["type"] == "http.response.start":
            self.status, self._started = message["status"], True
            extra = [(b"x-request-id", self.id.encode())]
            if self._state.draining:
                extra.append((b"connection", b"close"))
            message["headers"] = [*message.get("headers", []), *extra]
        await self._send(message)

    async def answer(self, status: HTTPStatus, body: bytes, headers: dict[str, str]) -> None:
        """Send a whole answer as JSON."""
        all_headers = {"content-type": "application/json", "content-length": str(len(body))} | headers
        encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in all_headers.items()]
        await self.reply({"type": "http.response.start", "status": int(status), "headers": encoded})
        await self.reply({"type": "http.response.body", "body": body})

    async def refuse(self, error: RequestError, unread: bool = False) -> None:
        """Answer with an error unless an answer has started.

        If a body of unknown length is `unread`, the connection closes without waiting for it.
        """
        prometheus.REJECTED.labels(error.code).inc()
        if self._started:
            return
        headers = {}
        if error.status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS):
            headers["retry-after"] = str(limits.RETRY_AFTER)
        if error.status == HTTPStatus.UNAUTHORIZED:
            headers["www-authenticate"] = "Bearer"
        if unread or error.status in (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.REQUEST_TIMEOUT):
            headers["connection"] = "close"  # the rest of the body is not read
        await self.answer(error.status, json.dumps({"error": str(error), "code": error.code}).encode(), headers)

    def log_error(self, error: Exception) -> None:
        """Log the kind and the place of an error of ours. Its text may hold parts of the request."""
        fields = {"request_id": self.id, "kind": type(error).__name__, "where": logs.place(error)}
        log.error("internal error", extra={"fields": fields})

    def record(self) -> None:
        """Measure and log the request."""
        seconds = time.perf_counter() - self._begun
        route = _route(self._scope["path"])
        prometheus.REQUEST.labels(route, str(self.status)).observe(seconds)
        quiet = route in ("/v2/health", "/metrics") and self.status < HTTPStatus.INTERNAL_SERVER_ERROR
        fields = {
            "request_id": self.id,
            "method": self._scope["method"],
            "route": route,
            "status": self.status,
            "milliseconds": round(seconds * 1000, 1),
        }
        log.log(logging.DEBUG if quiet else logging.INFO, "request", extra={"fields": fields})


class _Body:
    """A body as it arrives.

    A large body is a view of a buffer that is filled as it arrives: joining its parts would keep other requests
    waiting.

    Args:
        length: Length in bytes of a large body; 0 for a small one or one of unknown length.
        values: Counts the values meanwhile; None to count none.
    """

    __slots__ = ("_error", "_parts", "_values", "_whole", "size")

    def __init__(self, length: int, values: bodies.Values | None) -> None:
        # Anonymous memory gets its pages one by one as they are written. A bytearray would get all of them at once, and
        # NumPy asks for huge pages, for which the kernel moves others out of the way while everybody waits.
        self._whole = memoryview(mmap.mmap(-1, length)) if length else memoryview(b"")
        self._parts: list[bytes] = []
        self._values = values
        self._error: RequestError | None = None
        self.size = 0

    def add(self, part: bytes) -> None:
        """Keep the next part. Too many values are reported by `content`, because no client reads before."""
        before = self.size
        self.size += len(part)
        if self._values is not None:
            try:
                self._values.add(part)
            except RequestError as error:
                self._error, self._values = error, None
        if self._whole:
            self._whole[before : self.size] = part
        else:
            self._parts.append(part)

    def content(self) -> bytes | memoryview:
        """Return the whole body.

        Raises:
            RequestError: It holds too many values.
        """
        if self._error:
            raise self._error
        return self._whole.toreadonly() if self._whole else b"".join(self._parts)

    def clear(self) -> None:
        """Drop what has arrived: a traceback may keep this object after the request."""
        self._parts.clear()
        self._whole, self._error = memoryview(b""), None


class _DisconnectedError(Exception):
    """The client disconnected before its body had arrived."""


def _content_length(headers: dict[str, str], most: int) -> int:
    """Return the length of a body by its header; 0 without one.

    Raises:
        RequestError: It is not a number, or larger than `most`.
    """
    length = headers.get("content-length", "0")
    if not length.isdigit():
        raise RequestError("content-length: not a number")
    if int(length) > most:
        raise limits.too_large(most)
    return int(length)


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


def _route(path: str) -> str:
    """Return the path without anything that a client chose, for labels and logs."""
    if found := _INFER.fullmatch(path):
        return f"v1:{found[1]}" if found[1] else "v2:infer"
    for prefix in ("/v2/health", "/v2/repository", "/v2/models", "/v1/models", "/metrics"):
        if path.startswith(prefix):
            return prefix
    return "other"
