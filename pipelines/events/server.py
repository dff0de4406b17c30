"""The HTTP server that takes events. A request is answered with 2xx once its events are durable, and not before."""

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from pipelines.events import batch, messages, metrics
from pipelines.events.auth import Gate
from pipelines.events.batch import Arrival
from pipelines.events.scope import Scope
from pipelines.events.state import BusyError, Store
from thyroid import RESEARCH_USE_ONLY, logs
from thyroid.errors import InputError, one_line
from thyroid.serve import limits
from thyroid.serve.limits import RequestError
from thyroid.serve.protocol.connections import Connection

log = logging.getLogger("thyroid.listen")

MAX_BODY = 1_000_000
"""Bytes of the body of a request."""
MEMORY = 32_000_000
"""Bytes of bodies that are held at once, over all connections."""
READING = 4
"""Bodies that are parsed at once. What is made of one takes up to 40 times its bytes."""
DEADLINE = 20.0
"""Seconds within which a body must arrive, and within which its events must be durable."""
SWEEP_SECONDS = 1.0
"""Seconds between two checks for slow clients."""
RETRY_AFTER = 5
"""Seconds in the Retry-After header of an answer that asks to try again."""

_MOMENT = 1.0  # seconds
_UNREAD = ("unauthorized", "issuer", "too_large", "slow_client", "overloaded")
"""Codes of errors that are answered before the body has been read."""


@dataclass(frozen=True)
class Listener:
    """What the server is made of.

    Attributes:
        store: The state.
        scope: Which objects count.
        gate: Who may send.
    """

    store: Store
    scope: Scope
    gate: Gate


def create(listener: Listener) -> Starlette:
    """Create the ASGI application."""
    held, reading = _Held(), asyncio.Semaphore(READING)

    async def events(request: Request) -> Response:
        await run_in_threadpool(listener.gate.admit, request.headers.get("authorization", ""))
        async with _body(request, held) as body, reading:
            arrivals, others = await run_in_threadpool(messages.read, dict(request.headers), body)
        counted = [one for one in arrivals if listener.scope.counts(one.address)]
        repeated = await _keep(listener, counted)
        outcomes = {
            "counted": len(counted) - repeated,
            "repeated": repeated,
            "ignored": others + len(arrivals) - len(counted),
        }
        for outcome, number in outcomes.items():
            metrics.OBJECTS.labels(outcome).inc(number)
        if request.url.path == "/scans":
            return JSONResponse(outcomes | {"notice": RESEARCH_USE_ONLY}, HTTPStatus.ACCEPTED)
        return Response(status_code=HTTPStatus.NO_CONTENT)  # Knative takes any body for an event

    async def health(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def measured(_: Request) -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    routes = [
        Route("/", events, methods=["POST"]),
        Route("/scans", events, methods=["POST"]),
        Route("/healthz", health),
        Route("/metrics", measured),
    ]
    return Starlette(routes=routes, exception_handlers={RequestError: _refuse, Exception: _fail})


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Args:
        host: Address to listen on.
        port: Port to listen on.

    Raises:
        InputError: The port cannot be used.
    """
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise InputError(f"--port {port}: {one_line(error)}; choose another port or --address") from None


def serve(listener: Listener, listening: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT, and answer the requests that are in progress.

    Args:
        listener: What is served.
        listening: The socket.
    """
    config = uvicorn.Config(
        create(listener),
        http=Connection,  # with limits against clients that only hold a connection
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(DEADLINE) + 5,
    )
    asyncio.run(_serve(uvicorn.Server(config), listening))


async def _serve(server: uvicorn.Server, listening: socket.socket) -> None:
    def stop() -> None:
        server.should_exit = True

    # Uvicorn's own handlers end the process before the state is closed
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    sweeping = asyncio.create_task(_sweep(server))
    try:
        await server.serve([listening])
    finally:
        sweeping.cancel()


async def _sweep(server: uvicorn.Server) -> None:
    """Close connections whose head does not arrive, or that do not accept their answer."""
    waiting: dict[Any, tuple[Any, float]] = {}
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        now, before, waiting = time.monotonic(), waiting, {}
        connection: Any
        for connection in list(server.server_state.connections):
            if (state := connection.waits()) is None:
                continue
            same = connection in before and before[connection][0] == state
            waiting[connection] = state, before[connection][1] if same else now
            if now - waiting[connection][1] > limits.HEADERS:
                connection.transport.abort()


class _Held:
    """Bytes of bodies that are held at the moment."""

    size = 0


@contextlib.asynccontextmanager
async def _body(request: Request, held: _Held) -> AsyncIterator[bytes]:
    """Yield the body of a request, and count its bytes meanwhile.

    Raises:
        RequestError: It is too large or too slow, or there is no memory for it.
    """
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > MAX_BODY:
        raise limits.too_large(MAX_BODY)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(DEADLINE):
            async for part in request.stream():
                size += len(part)
                held.size += len(part)
                if size > MAX_BODY:
                    raise limits.too_large(MAX_BODY)
                if held.size > MEMORY:
                    raise _later("too many requests at once; try again", "overloaded")
                parts.append(part)
        yield b"".join(parts)
    except TimeoutError:
        text = f"body: did not arrive within {DEADLINE:g} seconds"
        raise RequestError(text, HTTPStatus.REQUEST_TIMEOUT, "slow_client") from None
    except ClientDisconnect:
        raise RequestError("the client left", HTTPStatus.REQUEST_TIMEOUT, "disconnected") from None
    finally:
        held.size -= size


async def _keep(listener: Listener, arrivals: Sequence[Arrival]) -> int:
    """Make events durable; return how many of them changed nothing.

    Raises:
        RequestError: They cannot be made durable now.
    """
    if not arrivals:
        return 0
    now = time.time()
    fresh = batch.news(listener.store.state, arrivals)
    try:
        keeping = listener.store.submit(lambda state: batch.add(state, arrivals, listener.scope, now))
        # shielded, since what was handed over may be written even if its sender is sent away
        await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(keeping)), DEADLINE)
    except (InputError, BusyError, TimeoutError):
        raise _later("the events cannot be kept now; try again", "state") from None
    return len(arrivals) - len(fresh)


def _later(text: str, code: str) -> RequestError:
    return RequestError(text, HTTPStatus.SERVICE_UNAVAILABLE, code)


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    metrics.REJECTED.labels(error.code).inc()
    if error.code in _UNREAD:
        await _discard(request)
    headers = {}
    if error.status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["retry-after"] = str(RETRY_AFTER)
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    if error.code in _UNREAD:
        headers["connection"] = "close"
    return JSONResponse({"error": str(error), "code": error.code}, error.status, headers)


async def _discard(request: Request) -> None:
    """Read and drop what arrives of a body within a moment.

    Closing a connection with unread bytes resets it before the sender has seen the answer.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_MOMENT):
            while (await request.receive()).get("more_body"):
                pass


def _fail(_: Request, error: Exception) -> Response:
    """Answer an error of ours. Its text may hold parts of the request, so the log names only its place."""
    log.error("internal error", extra={"fields": {"kind": type(error).__name__, "where": logs.place(error)}})
    metrics.REJECTED.labels("internal").inc()
    return JSONResponse({"error": "internal error", "code": "internal"}, HTTPStatus.INTERNAL_SERVER_ERROR)
