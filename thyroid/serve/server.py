"""The server: KServe's REST and gRPC servers around our models, with hot swap, self-test and a drain on SIGTERM."""

import asyncio
import contextlib
import gc
import hmac
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import grpc
import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from google.protobuf.message import DecodeError
from grpc import aio
from kserve import InferInput, InferRequest
from kserve.errors import InvalidInput, ModelNotFound, ModelNotReady, ServerNotReady
from kserve.model_repository import ModelRepository
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as rpc
from kserve.protocol.grpc.server import GRPCServer
from kserve.protocol.grpc.servicer import InferenceServicer
from kserve.protocol.infer_type import RequestedOutput
from kserve.protocol.model_repository_extension import ModelRepositoryExtension
from kserve.protocol.rest.server import RESTServer
from uvicorn.loops.auto import auto_loop_factory
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from thyroid import errors, logs, memory, storage
from thyroid.errors import InputError
from thyroid.registry import registry
from thyroid.serve import limits, openapi, payload
from thyroid.serve.admission import Admission, Memory
from thyroid.serve.guard import Guard, log
from thyroid.serve.limits import RequestError
from thyroid.serve.model import ThyroidModel

PREVIOUS = f"{registry.NAME}-previous"
WATCH_SECONDS = 1.0
WATCH_BUCKET_SECONDS = 10.0
"""Seconds between two reads of a registry on Google Cloud Storage, where each read costs requests."""
RETRY_SECONDS = 60.0
"""Seconds until a model that failed to load for a possibly temporary reason is tried again."""
SELF_TEST_SECONDS = 60.0
SWEEP_SECONDS = 1.0
"""Seconds between two checks for slow clients and for memory to give back."""
UNWANTED_SECONDS = 0.001
"""Seconds between two reads of a body that was answered before it had arrived, times the number of such connections.

Read as fast as they arrive, thirty such bodies leave no time for others.
"""
LAST_SECONDS = 0.2
"""Seconds in which the connections that were accepted last send their request and get their 503."""

T = TypeVar("T")

_GRPC_STATUS = {
    HTTPStatus.BAD_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    HTTPStatus.UNAUTHORIZED: grpc.StatusCode.UNAUTHENTICATED,
    HTTPStatus.FORBIDDEN: grpc.StatusCode.PERMISSION_DENIED,
    HTTPStatus.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    HTTPStatus.SERVICE_UNAVAILABLE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    HTTPStatus.REQUEST_TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
    HTTPStatus.GATEWAY_TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
}

_PROBES = ("ServerLive", "ServerReady")
"""Calls that need no token and are outside every limit. Their messages are not read."""

_ERRORS: dict[type[Exception], tuple[HTTPStatus, str]] = {
    InvalidInput: (HTTPStatus.BAD_REQUEST, "invalid_input"),
    ModelNotFound: (HTTPStatus.NOT_FOUND, "not_found"),
    ModelNotReady: (HTTPStatus.SERVICE_UNAVAILABLE, "not_ready"),
    ServerNotReady: (HTTPStatus.SERVICE_UNAVAILABLE, "not_ready"),
}
_REFUSALS: tuple[type[Exception], ...] = (RequestError, *_ERRORS)


@dataclass(frozen=True)
class Options:
    """The options of `python -m thyroid.serve`. Either `registry` or `model_dir` is set.

    Attributes:
        registry: Root of a registry, a folder or a bucket.
        model_dir: Folder of one artefact.
        port: Port of HTTP.
        grpc_port: Port of gRPC; None for no gRPC.
        form: One of `engine.FORMS`; None for the fastest one here.
        token: Bearer token that requests must carry; None if they need none.
        repository_api: Whether models can be loaded and unloaded through /v2/repository and its gRPC calls.
        tls_certificate: PEM file of the certificate; None for no TLS.
        tls_key: PEM file of its key.
    """

    registry: storage.Location | None = None
    model_dir: Path | None = None
    port: int = 8080
    grpc_port: int | None = None
    form: str | None = None
    token: str | None = None
    repository_api: bool = False
    tls_certificate: Path | None = None
    tls_key: Path | None = None


os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
"""A signal that ends a fork of any library must not reach the server's own loop through the inherited socket."""


class Server:
    """Serves the champion of a registry and the champion before it, or one artefact, until a signal stops it.

    Args:
        options: What to serve, and where.
    """

    def __init__(self, options: Options) -> None:
        """Create a server without models; `run` loads them."""
        self.options = options
        self.models = ModelRepository()
        self.admission = Admission()
        self.memory = Memory()
        self.draining = False
        self.closed = False
        self.failure: InputError | None = None
        self._swapping: set[asyncio.Task[None]] = set()

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises:
            InputError: The model cannot be served.
        """
        # The default is 5 ms. The event loop waits that long for every thread that decodes.
        sys.setswitchinterval(0.0005)
        memory.return_large(8 << 20)  # larger than usual frames, for which memory that was kept is faster
        with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:  # uvloop's, if it is installed
            runner.run(self._run())
        if self.failure is not None:
            raise self.failure

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        gc.freeze()  # these objects stay: the collector need not look at them
        dataplane = _DataPlane(self.models, self)
        extension = ModelRepositoryExtension(model_registry=self.models)
        options = self.options
        rest = _REST(dataplane, extension, self)
        servers = [rest.start()]
        remote = None
        if options.grpc_port is not None:
            remote = _GRPC(options.grpc_port, dataplane, extension, self)
            servers.append(remote.start(4))
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        serving: asyncio.Future[Any] = asyncio.ensure_future(asyncio.gather(*servers))
        helpers = [asyncio.create_task(one) for one in (self._watch(stop), self._test_itself(), rest.sweep())]
        stopped: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
        await asyncio.wait([serving, stopped], return_when=asyncio.FIRST_COMPLETED)
        self.draining = True
        if self.failure is None and not serving.done():
            await asyncio.sleep(limits.DRAIN)
        self.closed = True  # otherwise clients that come back would keep the server running for ever
        await rest.close()
        if remote is not None:
            await remote.stop()
        await asyncio.sleep(LAST_SECONDS)
        while self.admission.inside:
            await asyncio.sleep(0.05)
        for helper in helpers:
            helper.cancel()
        rest.shut()
        await serving

    def wanted(self) -> dict[str, tuple[Path, bool | None]]:
        """Return the models that should be served now, by the name under which each is served.

        Returns:
            The folder of each model, and whether it was released as a champion; None for `Options.model_dir`.
        """
        options = self.options
        if options.model_dir is not None:
            return {registry.NAME: (options.model_dir, None)}
        assert options.registry is not None
        aliases = registry.read_aliases(options.registry)
        if "champion" not in aliases:
            return {registry.NAME: (registry.locate(options.registry, "candidate"), False)}
        result: dict[str, tuple[Path, bool | None]] = {}
        for name, alias in ((registry.NAME, "champion"), (PREVIOUS, "previous")):
            if alias in aliases:
                result[name] = (registry.locate(options.registry, str(aliases[alias])), True)
        return result

    async def _watch(self, stop: asyncio.Event) -> None:
        """Load what the registry wants, and swap a model only when its successor is ready.

        An error is logged and the watch goes on. Only while there is no model to serve does an error stop the server.
        """
        failed: dict[str, tuple[tuple[Path, bool | None], float]] = {}
        told = ""
        bucket = self.options.registry is not None and storage.is_bucket(self.options.registry)
        while not self.draining:
            try:
                wanted = await _aside(self.wanted)
                told = ""
            except Exception as error:
                reason = _reason(error)
                if not self.models.get_models():
                    self._fail(InputError(reason), stop)
                    return
                wanted = {}
                if reason != told:
                    log.error("registry not read", extra={"fields": {"reason": reason}})
                told = reason
            for name, target in wanted.items():
                served = self.models.get_model(name)
                last, again = failed.get(name, (None, 0.0))
                if (served is not None and served.source == target) or (last == target and time.monotonic() < again):
                    continue
                try:
                    await self._load(name, target)
                    failed.pop(name, None)
                except Exception as error:
                    # A fault of an artefact is permanent.
                    pause = float("inf") if isinstance(error, InputError) else RETRY_SECONDS
                    failed[name] = target, time.monotonic() + pause
                    log.error("model not loaded", extra={"fields": {"name": name, "reason": _reason(error)}})
                    if self.models.get_model(registry.NAME) is None:
                        self._fail(InputError(f"{target[0]}: {_reason(error)}"), stop)
                        return
            await asyncio.sleep(WATCH_BUCKET_SECONDS if bucket else WATCH_SECONDS)

    def _fail(self, error: InputError, stop: asyncio.Event) -> None:
        self.failure = error
        stop.set()

    async def _load(self, name: str, target: tuple[Path, bool | None]) -> None:
        if (root := self.options.registry) is not None:
            await _aside(lambda: registry.check(root, target[0]))
        model = ThyroidModel(name, *target, form=self.options.form, admission=self.admission)
        await asyncio.get_running_loop().run_in_executor(None, model.load)
        old = self.models.get_model(name)
        self.models.update(model)
        fields = {
            "name": name,
            "version": model.facts["version"],
            "form": model.chosen,
            "images_per_second": model.engine_.measured,
            "backbone": model.facts["backbone"],
        }
        log.info("serving", extra={"fields": fields | {"not_released": model.not_released}})
        if old is not None:
            task = asyncio.create_task(_retire(old))
            self._swapping.add(task)
            task.add_done_callback(self._swapping.discard)

    async def _test_itself(self) -> None:
        while True:
            await asyncio.sleep(SELF_TEST_SECONDS)
            for name, model in list(self.models.get_models().items()):
                was = model.ready
                try:
                    ready = await model.self_test()
                except Exception as error:  # a model that cannot answer is not ready
                    model.ready = ready = False
                    log.error("self-test", extra={"fields": {"name": name, "kind": type(error).__name__}})
                if ready != was:
                    log.error("self-test", extra={"fields": {"name": name, "ready": ready}})

    def ready(self) -> bool:
        """Return whether requests should come here: the server is not draining, and all its models are ready."""
        models = self.models.get_models()
        return not self.draining and registry.NAME in models and all(model.ready for model in models.values())

    def resolve(self, name: str, version: str) -> str | None:
        """Return the name under which a version of a model is served; None if it is not served."""
        models: dict[str, ThyroidModel] = self.models.get_models()
        for served, model in models.items():
            if name in (served, registry.NAME) and str(model.facts["version"]) == version:
                return served
        return None


def _reason(error: Exception) -> str:
    """Describe an error. Kinds other than our own say little, so their type and place are added."""
    if isinstance(error, InputError | OSError):
        return errors.one_line(error)
    return f"{type(error).__name__}: {errors.one_line(error)} ({logs.place(error)})"


async def _aside(call: Callable[[], T]) -> T:
    """Return the result of `call`, which runs in a thread that the end of the process does not wait for.

    Storage may be unreachable for minutes.
    """
    done: futures.Future[T] = futures.Future()
    done.set_running_or_notify_cancel()

    def run() -> None:
        try:
            done.set_result(call())
        except Exception as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return await asyncio.wrap_future(done)


async def _retire(model: ThyroidModel) -> None:
    while model.in_flight:
        await asyncio.sleep(0.05)
    await asyncio.get_running_loop().run_in_executor(None, model.retire)


class _DataPlane(DataPlane):
    """KServe's data plane with clear errors for bodies that it cannot decode, and with the readiness of the server."""

    def __init__(self, models: ModelRepository, server: Server) -> None:
        super().__init__(model_registry=models)
        self.server = server

    async def ready(self) -> bool:
        return self.server.ready()

    async def model_ready(self, model_name: str, disable_predictor_health_check: bool = False) -> bool:
        if model_name == registry.NAME and self._model_registry.get_model(model_name) is None:
            raise ModelNotReady(model_name, "It is loading; try again.")  # known, so not 404
        ready: bool = await super().model_ready(model_name, disable_predictor_health_check)
        return ready

    def metadata(self) -> dict[str, Any]:
        described: dict[str, Any] = super().metadata()
        return described | {"name": registry.NAME, "extensions": []}

    async def model_metadata(self, model_name: str) -> dict[str, Any]:
        described: dict[str, Any] = await super().model_metadata(model_name)
        model = self._model_registry.get_model(model_name)
        return described | {"versions": [str(model.facts["version"])], "platform": model.chosen}

    def decode_inference_request(self, body: Any, headers: dict[str, str], model_name: str) -> InferRequest:
        """Decode as KServe does, but keep BYTES as bytes. KServe takes them for UTF-8, which no image is."""
        if not isinstance(body, bytes):
            return super().decode_inference_request(body, headers, model_name)
        length = headers.get("inference-header-content-length", "")
        if not length.isdigit() or int(length) > len(body):
            raise RequestError("inference-header-content-length: not the length of the JSON part of the body")
        header = body[: int(length)]
        if len(header) > limits.SMALL_BODY:
            payload.Values().add(header)
        described, place, inputs = orjson.loads(header), int(length), []
        for number, one in enumerate(described["inputs"]):
            tensor = InferInput(one["name"], one["shape"], one["datatype"], one.get("data"), one.get("parameters"))
            size = (one.get("parameters") or {}).get("binary_data_size")
            if size is not None:
                if type(size) is not int or size < 0 or place + size > len(body):
                    raise RequestError(f"inputs[{number}].parameters.binary_data_size: {size!r} is not within the body")
                tensor._raw_data = body[place : place + size]
                place += size
            inputs.append(tensor)
        asked = described.get("outputs")
        outputs = asked and [RequestedOutput(one["name"], one.get("parameters")) for one in asked]
        return InferRequest(
            model_name,
            inputs,
            request_id=described.get("id"),
            parameters=described.get("parameters"),
            request_outputs=outputs,
        )

    def decode(self, body: Any, headers: Any, *arguments: Any, **keywords: Any) -> Any:
        try:
            return super().decode(body, headers, *arguments, **keywords)
        except RequestError:
            raise
        except InvalidInput as error:
            raise RequestError(f"body: {error}"[:300]) from None
        except Exception as error:  # KeyError, TypeError, UnicodeDecodeError and others for bodies of another form
            raise RequestError(f"body: not a request of this protocol ({type(error).__name__})") from None


class _REST(RESTServer):
    def __init__(self, dataplane: DataPlane, extension: ModelRepositoryExtension, server: Server) -> None:
        options = server.options
        super().__init__(
            "kserve.model_server:app",
            dataplane,
            extension,
            options.port,
            ssl_certfile=None if options.tls_certificate is None else str(options.tls_certificate),
            ssl_keyfile=None if options.tls_key is None else str(options.tls_key),
        )
        self.config.access_log = False  # our own log line holds no path
        self.config.proxy_headers = False  # a client's address is not used
        self.config.http = _Connection
        self._guarded = server
        self._server.capture_signals = _no_signals  # the server drains by itself

    def _add_middlewares(self, app: FastAPI) -> None:
        """Put the guard in front of the application and of the middleware that it brings along, not inside it."""
        server = self._guarded
        self.config.app = Guard(
            app,
            token=server.options.token,
            repository_api=server.options.repository_api,
            resolve=server.resolve,
            admission=server.admission,
            memory=server.memory,
            draining=lambda: server.draining,
            closed=lambda: server.closed,
            predict=self._predict,
        )
        app.openapi = openapi.document
        app.add_api_route("/v1/models/{name}/facts", self._facts, methods=["GET"])
        app.add_api_route("/v1/models/{name}/report", self._report, methods=["GET"])

    async def _predict(
        self, name: str, body: bytes | memoryview, headers: dict[str, str]
    ) -> tuple[bytes, dict[str, str]]:
        """Answer as KServe's route does, without the layers in between."""
        try:
            model = self._model(name)
            if not model.ready:
                raise ModelNotReady(name)
            plain = headers["content-type"] == "application/json" and "ce-specversion" not in headers  # no CloudEvent
            if isinstance(body, memoryview) and plain:
                request: Any = body
                attributes: dict[str, Any] = {}
            else:
                request, attributes = self.dataplane.decode(bytes(body), headers)
            answering = model(request, headers)
            del body, request  # the model holds what was decoded
            answer, _ = await answering
            answer, more = self.dataplane.encode(name, answer, headers, attributes)
        except tuple(_ERRORS) as error:
            status, code = next(told for kind, told in _ERRORS.items() if isinstance(error, kind))
            raise RequestError(str(error)[:300], status, code) from None
        more.pop("content-length", None)
        if isinstance(answer, bytes | str):
            return answer if isinstance(answer, bytes) else answer.encode(), more
        return orjson.dumps(answer, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY), more

    def _facts(self, name: str) -> JSONResponse:
        return JSONResponse(self._model(name).described())

    def _report(self, name: str) -> FileResponse:
        report = self._model(name).folder / "report.html"
        if not report.is_file():  # an artefact that no pipeline registered
            raise RequestError("this model has no report", HTTPStatus.NOT_FOUND, "not_found")
        return FileResponse(report, media_type="text/html")

    def _model(self, name: str) -> ThyroidModel:
        model: ThyroidModel | None = self._guarded.models.get_model(name)
        if model is None:
            raise ModelNotReady(name) if name == registry.NAME else ModelNotFound(name)
        return model

    def _add_exception_handlers(self, app: FastAPI) -> None:
        """Give all errors the form that `guard` gives them, without a traceback in the log."""
        for kind, handler in (
            (RequestError, _request_error),
            (RequestValidationError, _not_v2),
            *((kind, _told(*told)) for kind, told in _ERRORS.items()),
            (Exception, _internal),
        ):
            app.add_exception_handler(kind, handler)

    async def close(self) -> None:
        """Accept no new connections.

        The kernel resets those that wait to be accepted when the last descriptor of their socket closes, so they are
        accepted first, by a second descriptor, once the loop no longer accepts.
        """
        loop, waiting = asyncio.get_running_loop(), []
        for server in getattr(self._server, "servers", ()):  # none if it has not started
            listeners = [socket.socket(fileno=os.dup(one.fileno())) for one in server.sockets]
            server.close()
            for listener in listeners:
                with listener, contextlib.suppress(BlockingIOError):
                    listener.setblocking(False)
                    while True:
                        waiting.append(listener.accept()[0])
        ssl = self.config.ssl
        await asyncio.gather(
            *(loop.connect_accepted_socket(self._connection, one, ssl=ssl) for one in waiting), return_exceptions=True
        )

    def _connection(self) -> HttpToolsProtocol:
        """Return the protocol of a connection, as Uvicorn makes it."""
        return _Connection(self.config, self._server.server_state, self._server.lifespan.state)

    def shut(self) -> None:
        """Finish the requests in flight, then end."""
        self._server.should_exit = True

    async def sweep(self) -> None:
        """Close connections whose next head has started but does not arrive, or that do not accept their answer.

        Free memory is given back to the system as well. This runs until it is cancelled.
        """
        waiting: dict[Any, tuple[Any, float]] = {}
        bodies = self._guarded.memory
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            if bodies.returned > memory.WORTH_IT > bodies.held:
                bodies.returned = 0
                await asyncio.get_running_loop().run_in_executor(None, memory.give_back)
            now, before, waiting = time.monotonic(), waiting, {}
            for one in list(self._server.server_state.connections):
                if (state := one.waits()) is None:
                    continue
                since = before[one][1] if one in before and before[one][0] == state else now
                waiting[one] = state, since
                if now - since > (limits.HEADERS if state[0] == "head" else limits.SLOW_CLIENT):
                    one.transport.abort()


class _Connection(HttpToolsProtocol):
    """A connection with limits against clients that only hold it: on the bytes of a head, and on their number."""

    _fresh: ClassVar[dict["_Connection", None]] = {}
    """Connections that may not have sent a whole head yet, the oldest first."""
    _unwanted: ClassVar[set["_Connection"]] = set()
    """Connections that were answered before their bodies had arrived."""
    _head = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._fresh[self] = None
        if len(self.connections) > limits.CONNECTIONS:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fresh.pop(self, None)
        self._unwanted.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.scope is not None and "path" not in self.scope:  # the head is not whole yet
            self._head += len(data)
            if self._head > limits.MAX_LITTLE:
                self.transport.abort()
        elif self._head:
            self._head = 0

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        if self.cycle.response_complete and not (self.flow.read_paused or self.transport.is_closing()):
            self._unwanted.add(self)
            self.flow.pause_reading()
            self.loop.call_later(UNWANTED_SECONDS * len(self._unwanted), self._go_on)

    def on_message_complete(self) -> None:
        self._unwanted.discard(self)
        super().on_message_complete()

    def _go_on(self) -> None:
        if not self.transport.is_closing():
            self.flow.resume_reading()

    def waits(self) -> tuple[str, int] | None:
        """Return what the connection waits for, and a number that changes when it makes progress.

        None if it is the server's turn, or if the connection is idle between requests.
        """
        if left := self.transport.get_write_buffer_size():
            return "answer", left
        if self.cycle is None or (self.cycle.response_complete and self.timeout_keep_alive_task is None):
            return "head", id(self.cycle)
        return None

    def _make_room(self) -> None:
        """Close the oldest connection without a request, or else an idle one. The new connection may be a probe."""
        for one in list(self._fresh):
            if one is self:
                break
            del self._fresh[one]
            if one.cycle is None:
                one.transport.abort()
                return
        other: Any
        for other in self.connections:
            if other is not self and other.timeout_keep_alive_task is not None:
                other.transport.abort()
                return


@contextlib.contextmanager
def _no_signals() -> Iterator[None]:
    yield


def _request_error(_: Request, error: Any) -> JSONResponse:
    from thyroid.serve import prometheus

    prometheus.REJECTED.labels(error.code).inc()
    headers = {"retry-after": str(limits.RETRY_AFTER)} if error.status == HTTPStatus.SERVICE_UNAVAILABLE else None
    return JSONResponse({"error": str(error), "code": error.code}, int(error.status), headers)


def _not_v2(request: Request, error: RequestValidationError) -> JSONResponse:
    """Name the place of the error, but not its content. FastAPI's own answer repeats the body."""
    where = ".".join(str(part)[:64] for part in error.errors()[0]["loc"]) if error.errors() else "body"
    message = f"{where}: not as the V2 protocol has it"
    return _request_error(request, RequestError(message, HTTPStatus.UNPROCESSABLE_ENTITY))


def _internal(request: Request, _: Any) -> JSONResponse:
    """Answer without details. The exception goes on to the guard, which logs it."""
    return JSONResponse({"error": "internal error", "code": "internal"}, int(HTTPStatus.INTERNAL_SERVER_ERROR))


def _told(status: HTTPStatus, code: str) -> Callable[[Request, Any], JSONResponse]:
    def handle(request: Request, error: Any) -> JSONResponse:
        return _request_error(request, RequestError(str(error)[:300], status, code))

    return handle


class _Servicer(InferenceServicer):
    """KServe's servicer, which checks versions and keeps the repository closed unless an option opens it."""

    def __init__(self, dataplane: DataPlane, extension: ModelRepositoryExtension, server: Server) -> None:
        super().__init__(dataplane, extension)
        self.server = server

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.model_version:
            name = self.server.resolve(request.model_name, request.model_version)
            if name is None:
                message = f"model {request.model_name[:64]} has no version {request.model_version[:32]} here"
                raise RequestError(message, HTTPStatus.NOT_FOUND, "not_found")
            request.model_name = name
        try:
            return await super().ModelInfer(request, context)
        except (RequestError, InvalidInput, ModelNotFound, ModelNotReady):
            raise
        except Exception as error:
            raise RequestError(f"not a request of this protocol ({type(error).__name__})") from None

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._repository()
        return await super().RepositoryModelLoad(request, context)

    async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._repository()
        return await super().RepositoryModelUnload(request, context)

    def _repository(self) -> None:
        if not self.server.options.repository_api:
            raise RequestError("the repository API is closed here", HTTPStatus.FORBIDDEN, "closed")


class _Door(aio.ServerInterceptor):
    """Does for gRPC what the guard does for HTTP, before a message is read: token, memory, and errors in one form."""

    def __init__(self, server: Server) -> None:
        self.server = server

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)
        if handler is None:  # no such method
            return None
        method = details.method.rsplit("/", 1)[-1]
        presented = dict(details.invocation_metadata).get("authorization", "")

        async def serve(_: Any, context: Any) -> Any:
            try:
                return await self._answer(handler, method, presented, context)
            except _REFUSALS as error:
                refused = _grpc_status(error), str(error)[:300]
            except Exception as error:
                fields = {"kind": type(error).__name__, "method": method, "where": logs.place(error)}
                log.error("internal error", extra={"fields": fields})
                refused = grpc.StatusCode.INTERNAL, "internal error"
            # Outside the handler: otherwise gRPC's own exception would keep this one alive, and this one the message.
            return await context.abort(*refused)  # which raises

        # This is a stream of one message: gRPC does not read it by itself before `serve` runs.
        return grpc.stream_unary_rpc_method_handler(serve, None, handler.response_serializer)

    async def _answer(self, handler: Any, method: str, presented: str, context: Any) -> Any:
        server = self.server
        if method in _PROBES:
            return await handler.unary_unary(handler.request_deserializer(b""), context)
        token = server.options.token
        if token is not None and not hmac.compare_digest(presented.encode(), f"Bearer {token}".encode()):
            raise RequestError("authorization: a bearer token is needed", HTTPStatus.UNAUTHORIZED, "unauthorized")
        if server.closed:
            raise limits.stopping()
        if method == "ModelInfer":
            await server.admission.opening()
        held = 2 * limits.MAX_BODY  # the length is known only when the message is there, and then it is there twice
        await server.memory.reserve(held)
        try:
            async with asyncio.timeout(limits.SLOW_CLIENT):
                message = await context.read()
            if message is aio.EOF:
                raise RequestError("a message is missing")
            server.memory.give(held - 2 * len(message))
            held = 2 * len(message)
            request = handler.request_deserializer(message)
            del message
            return await handler.unary_unary(request, context)
        except DecodeError:
            raise RequestError("not a message of this protocol") from None
        except TimeoutError:
            raise RequestError(
                f"no message within {limits.SLOW_CLIENT:g} seconds", HTTPStatus.REQUEST_TIMEOUT
            ) from None
        finally:
            server.memory.give(held)


def _grpc_status(error: Exception) -> grpc.StatusCode:
    if isinstance(error, RequestError):
        status = grpc.StatusCode.UNAVAILABLE if error.code == "stopping" else _GRPC_STATUS.get(error.status)
        return status or grpc.StatusCode.INVALID_ARGUMENT
    if isinstance(error, ModelNotReady | ServerNotReady):
        return grpc.StatusCode.UNAVAILABLE
    return grpc.StatusCode.NOT_FOUND if isinstance(error, ModelNotFound) else grpc.StatusCode.INVALID_ARGUMENT


class _GRPC(GRPCServer):
    def __init__(self, port: int, dataplane: DataPlane, extension: ModelRepositoryExtension, server: Server) -> None:
        super().__init__(port, dataplane, extension, kwargs={})
        self.server = server
        self.servicer = _Servicer(dataplane, extension, server)

    async def start(self, max_workers: int) -> None:
        options = [(f"grpc.max_{way}_message_length", limits.MAX_BODY) for way in ("send", "receive")]
        options += [("grpc.server_handshake_timeout_ms", int(limits.HEADERS * 1000))]
        # The most that is received of a message that is not being read yet.
        options += [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", limits.MAX_LITTLE)]
        self._server = aio.server(
            futures.ThreadPoolExecutor(max_workers),
            interceptors=(_Door(self.server),),
            options=options,
            maximum_concurrent_rpcs=limits.CALLS,
        )
        rpc.add_GRPCInferenceServiceServicer_to_server(self.servicer, self._server)
        address = f"[::]:{self._port}"
        if self.server.options.tls_certificate is None:
            self._server.add_insecure_port(address)
        else:
            self._server.add_secure_port(
                address, grpc.dynamic_ssl_server_credentials(self._certificate(), self._renewed)
            )
        await self._server.start()
        await self._server.wait_for_termination()

    def _certificate(self) -> Any:
        options = self.server.options
        assert options.tls_certificate is not None
        key = options.tls_key or options.tls_certificate  # one file may hold both
        return grpc.ssl_server_certificate_configuration([(key.read_bytes(), options.tls_certificate.read_bytes())])

    def _renewed(self) -> Any:
        """Return the certificate for a handshake; None keeps the current one."""
        try:
            return self._certificate()
        except OSError:  # the file is being replaced
            return None
