"""The server: KServe's REST and gRPC servers around our models, with hot swap, self-test and a drain on SIGTERM."""

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import grpc
import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from grpc import aio
from kserve import InferInput, InferRequest
from kserve.errors import InvalidInput, ModelNotFound, ModelNotReady, ServerNotReady
from kserve.model_repository import ModelRepository
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as rpc
from kserve.protocol.grpc.interceptors import ExceptionToStatusInterceptor
from kserve.protocol.grpc.server import GRPCServer
from kserve.protocol.grpc.servicer import InferenceServicer
from kserve.protocol.infer_type import RequestedOutput
from kserve.protocol.model_repository_extension import ModelRepositoryExtension
from kserve.protocol.rest.server import RESTServer
from uvicorn.loops.auto import auto_loop_factory

from thyroid import registry, storage
from thyroid.errors import InputError
from thyroid.serve import limits, openapi
from thyroid.serve.admission import Admission
from thyroid.serve.guard import Guard, log
from thyroid.serve.limits import RequestError
from thyroid.serve.model import ThyroidModel

PREVIOUS = f"{registry.NAME}-previous"
WATCH_SECONDS = 1.0
WATCH_BUCKET_SECONDS = 10.0
"""Between two looks at a registry on Google Cloud Storage, where each one costs requests."""
SELF_TEST_SECONDS = 60.0

T = TypeVar("T")

_GRPC_STATUS = {
    HTTPStatus.BAD_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    HTTPStatus.UNAUTHORIZED: grpc.StatusCode.UNAUTHENTICATED,
    HTTPStatus.FORBIDDEN: grpc.StatusCode.PERMISSION_DENIED,
    HTTPStatus.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    HTTPStatus.SERVICE_UNAVAILABLE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    HTTPStatus.GATEWAY_TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
}


_ERRORS: dict[type[Exception], tuple[HTTPStatus, str]] = {
    InvalidInput: (HTTPStatus.BAD_REQUEST, "invalid_input"),
    ModelNotFound: (HTTPStatus.NOT_FOUND, "not_found"),
    ModelNotReady: (HTTPStatus.SERVICE_UNAVAILABLE, "not_ready"),
    ServerNotReady: (HTTPStatus.SERVICE_UNAVAILABLE, "not_ready"),
}


@dataclass(frozen=True)
class Options:
    """What `python -m thyroid.serve` takes."""

    registry: storage.Location | None = None
    model_dir: Path | None = None
    port: int = 8080
    grpc_port: int | None = None
    form: str | None = None
    token: str | None = None
    repository_api: bool = False
    tls_certificate: Path | None = None
    tls_key: Path | None = None


class Server:
    """Serves the champion of a registry and the one before it, or one artefact, until it is told to stop."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.models = ModelRepository()
        self.admission = Admission()
        self.draining = False
        self.failure: InputError | None = None
        self._swapping: set[asyncio.Task] = set()

    def run(self) -> None:
        """Until SIGTERM or SIGINT.

        Raises:
            InputError: the model cannot be served.
        """
        with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:  # uvloop's, where there is one
            runner.run(self._run())
        if self.failure is not None:
            raise self.failure

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
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
        helpers = [asyncio.create_task(self._watch(stop)), asyncio.create_task(self._test_itself())]
        stopped: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
        await asyncio.wait([serving, stopped], return_when=asyncio.FIRST_COMPLETED)
        self.draining = True
        if self.failure is None and not serving.done():
            await asyncio.sleep(limits.DRAIN)
            while self.admission.inside:
                await asyncio.sleep(0.05)
        for helper in helpers:
            helper.cancel()
        if remote is not None:
            await remote.stop()
        rest.shut()
        await serving

    def wanted(self) -> dict[str, tuple[Path, bool | None]]:
        """Name to folder, and whether it is a champion, as the registry has it now."""
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
        """Load what the registry wants; swap a model only when its successor is ready."""
        failed: dict[str, tuple[Path, bool | None]] = {}
        bucket = self.options.registry is not None and storage.is_bucket(self.options.registry)
        while not self.draining:
            try:
                wanted = await _aside(self.wanted)
            except (InputError, OSError) as error:
                if not self.models.get_models():
                    self._fail(InputError(str(error)), stop)
                    return
                wanted = {}
            for name, target in wanted.items():
                served = self.models.get_model(name)
                if (served is not None and served.source == target) or failed.get(name) == target:
                    continue
                try:
                    await self._load(name, target)
                    failed.pop(name, None)
                except (InputError, OSError) as error:
                    failed[name] = target
                    log.error("model not loaded", extra={"fields": {"name": name, "reason": str(error)}})
                    if self.models.get_model(registry.NAME) is None:
                        self._fail(InputError(str(error)), stop)
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
                if await model.self_test() != was:
                    log.error("self-test", extra={"fields": {"name": name, "ready": model.ready}})

    def ready(self) -> bool:
        """Whether requests should come here."""
        models = self.models.get_models()
        return not self.draining and registry.NAME in models and all(model.ready for model in models.values())

    def resolve(self, name: str, version: str) -> str | None:
        """Name under which a version of a model is served."""
        for served, model in self.models.get_models().items():
            if name in (served, registry.NAME) and str(model.facts["version"]) == version:
                return served
        return None


async def _aside(call: Callable[[], T]) -> T:
    """`call`'s result from a thread that the end of the process does not wait for: storage may be away for minutes."""
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
    """Bodies that KServe cannot decode become errors that say so; readiness is the server's."""

    def __init__(self, models: ModelRepository, server: Server) -> None:
        super().__init__(model_registry=models)
        self.server = server

    async def ready(self) -> bool:
        return self.server.ready()

    async def model_ready(self, model_name: str, disable_predictor_health_check: bool = False) -> bool:
        if model_name == registry.NAME and self._model_registry.get_model(model_name) is None:
            raise ModelNotReady(model_name, "It is loading; try again.")  # known, so not 404
        return await super().model_ready(model_name, disable_predictor_health_check)

    def metadata(self) -> dict[str, Any]:
        return super().metadata() | {"name": registry.NAME, "extensions": []}

    async def model_metadata(self, model_name: str) -> dict[str, Any]:
        described = await super().model_metadata(model_name)
        model = self._model_registry.get_model(model_name)
        return described | {"versions": [str(model.facts["version"])], "platform": model.chosen}

    def decode_inference_request(self, body: Any, headers: dict[str, str], model_name: str) -> InferRequest:
        """As KServe's, but BYTES stay bytes: KServe's own takes them for UTF-8, which no image is."""
        if not isinstance(body, bytes):
            return super().decode_inference_request(body, headers, model_name)
        length = headers.get("inference-header-content-length", "")
        if not length.isdigit() or int(length) > len(body):
            raise RequestError("inference-header-content-length: not the length of the JSON part of the body")
        described, place, inputs = orjson.loads(body[: int(length)]), int(length), []
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
        self.config.access_log = False  # our own line holds no path
        self.config.proxy_headers = False  # nobody asks for a client's address
        self.config.limit_concurrency = 1000
        self._guarded = server
        self._server.capture_signals = _no_signals  # the drain is ours

    def _add_middlewares(self, app: FastAPI) -> None:
        """Ours stands before the application with all that it brings along, and not within it."""
        server = self._guarded
        self.config.app = Guard(
            app,
            token=server.options.token,
            repository_api=server.options.repository_api,
            resolve=server.resolve,
            admission=server.admission,
            draining=lambda: server.draining,
            predict=self._predict,
        )
        app.openapi = openapi.document
        app.add_api_route("/v1/models/{name}/facts", self._facts, methods=["GET"])
        app.add_api_route("/v1/models/{name}/report", self._report, methods=["GET"])

    async def _predict(self, name: str, body: bytes, headers: dict[str, str]) -> tuple[bytes, dict[str, str]]:
        """As KServe's route, without the layers between."""
        try:
            model = self._model(name)
            if not model.ready:
                raise ModelNotReady(name)
            request, attributes = self.dataplane.decode(body, headers)
            answer, _ = await model(request, headers)
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
        model = self._guarded.models.get_model(name)
        if model is None:
            raise ModelNotReady(name) if name == registry.NAME else ModelNotFound(name)
        return model

    def _add_exception_handlers(self, app: FastAPI) -> None:
        """All in the form that `guard` gives errors, without a traceback in the log."""
        for kind, handler in (
            (RequestError, _request_error),
            (RequestValidationError, _not_v2),
            *((kind, _told(*told)) for kind, told in _ERRORS.items()),
            (Exception, _internal),
        ):
            app.add_exception_handler(kind, handler)

    def shut(self) -> None:
        """Finish what is in flight, then end."""
        self._server.should_exit = True


@contextlib.contextmanager
def _no_signals() -> Iterator[None]:
    yield


def _request_error(_: Request, error: Any) -> JSONResponse:
    from thyroid.serve import metrics

    metrics.REJECTED.labels(error.code).inc()
    headers = {"retry-after": str(limits.RETRY_AFTER)} if error.status == HTTPStatus.SERVICE_UNAVAILABLE else None
    return JSONResponse({"error": str(error), "code": error.code}, int(error.status), headers)


def _not_v2(request: Request, error: RequestValidationError) -> JSONResponse:
    """Where it is wrong, and not what stands there: FastAPI's own answer repeats the body."""
    where = ".".join(str(part)[:64] for part in error.errors()[0]["loc"]) if error.errors() else "body"
    message = f"{where}: not as the V2 protocol has it"
    return _request_error(request, RequestError(message, HTTPStatus.UNPROCESSABLE_ENTITY))


def _internal(request: Request, _: Any) -> JSONResponse:
    """What happened is logged by the guard, where the exception goes on to."""
    return JSONResponse({"error": "internal error", "code": "internal"}, int(HTTPStatus.INTERNAL_SERVER_ERROR))


def _told(status: HTTPStatus, code: str) -> Callable[[Request, Any], JSONResponse]:
    def handle(request: Request, error: Any) -> JSONResponse:
        return _request_error(request, RequestError(str(error)[:300], status, code))

    return handle


class _Servicer(InferenceServicer):
    """Versions are checked; the repository is closed."""

    def __init__(self, dataplane: DataPlane, extension: ModelRepositoryExtension, server: Server) -> None:
        super().__init__(dataplane, extension)
        self.server = server

    def _check(self, context: Any) -> None:
        if self.server.options.token is None:
            return
        sent = dict(context.invocation_metadata() or ()).get("authorization", "")
        if sent != f"Bearer {self.server.options.token}":
            raise RequestError("authorization: a bearer token is needed", HTTPStatus.UNAUTHORIZED, "unauthorized")

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._check(context)
        if request.model_version:
            name = self.server.resolve(request.model_name, request.model_version)
            if name is None:
                message = f"model {request.model_name[:64]} has no version {request.model_version[:32]} here"
                raise RequestError(message, HTTPStatus.NOT_FOUND, "not_found")
            request.model_name = name
        await self.server.admission.opening()
        try:
            return await super().ModelInfer(request, context)
        except (RequestError, InvalidInput, ModelNotFound, ModelNotReady):
            raise
        except Exception as error:
            raise RequestError(f"not a request of this protocol ({type(error).__name__})") from None

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._check(context)
        return await super().ModelMetadata(request, context)

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:  # noqa: N802
        if not self.server.options.repository_api:
            raise RequestError("the repository API is closed here", HTTPStatus.FORBIDDEN, "closed")
        return await super().RepositoryModelLoad(request, context)

    async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:  # noqa: N802
        if not self.server.options.repository_api:
            raise RequestError("the repository API is closed here", HTTPStatus.FORBIDDEN, "closed")
        return await super().RepositoryModelUnload(request, context)


class _Interceptor(ExceptionToStatusInterceptor):
    async def handle_exception(self, ex: Exception, request_or_iterator: Any, context: Any, method_name: str) -> None:
        if isinstance(ex, RequestError):
            await context.abort(_GRPC_STATUS.get(ex.status, grpc.StatusCode.INVALID_ARGUMENT), str(ex))
        elif isinstance(ex, InvalidInput):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(ex)[:300])
        elif isinstance(ex, ModelNotFound):
            await context.abort(grpc.StatusCode.NOT_FOUND, str(ex)[:300])
        elif isinstance(ex, ModelNotReady):
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(ex)[:300])
        else:
            log.error("internal error", extra={"fields": {"kind": type(ex).__name__, "method": method_name}})
            await context.abort(grpc.StatusCode.INTERNAL, "internal error")


class _GRPC(GRPCServer):
    def __init__(self, port: int, dataplane: DataPlane, extension: ModelRepositoryExtension, server: Server) -> None:
        super().__init__(port, dataplane, extension, kwargs={})
        self.servicer = _Servicer(dataplane, extension, server)

    async def start(self, max_workers: int) -> None:
        sizes = [(f"grpc.max_{way}_message_length", limits.MAX_BODY) for way in ("send", "receive")]
        self._server = aio.server(
            futures.ThreadPoolExecutor(max_workers), interceptors=(_Interceptor(),), options=sizes
        )
        rpc.add_GRPCInferenceServiceServicer_to_server(self.servicer, self._server)
        self._server.add_insecure_port(f"[::]:{self._port}")
        await self._server.start()
        await self._server.wait_for_termination()
