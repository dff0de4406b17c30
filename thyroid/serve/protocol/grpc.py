"""gRPC: KServe's server and servicer, with the same checks that HTTP has."""

import asyncio
import hmac
import logging
from concurrent import futures
from http import HTTPStatus
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc import aio
from kserve.errors import InvalidInput, ModelNotFound, ModelNotReady, ServerNotReady
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as rpc
from kserve.protocol.grpc.server import GRPCServer
from kserve.protocol.grpc.servicer import InferenceServicer
from kserve.protocol.model_repository_extension import ModelRepositoryExtension

from thyroid import logs
from thyroid.serve import limits
from thyroid.serve.decisions.log import begin
from thyroid.serve.limits import RequestError
from thyroid.serve.protocol.dataplane import KSERVE_ERRORS
from thyroid.serve.state import State

log = logging.getLogger("thyroid.serve")

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
_REFUSED: tuple[type[Exception], ...] = (RequestError, *KSERVE_ERRORS)


class _Servicer(InferenceServicer):
    """KServe's servicer, which checks versions and keeps the repository closed unless an option opens it."""

    def __init__(self, dataplane: DataPlane, extension: ModelRepositoryExtension, state: State) -> None:
        super().__init__(dataplane, extension)
        self.state = state

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.model_version:
            name = self.state.resolve(request.model_name, request.model_version)
            if name is None:
                message = f"model {request.model_name[:64]} has no version {request.model_version[:32]} here"
                raise RequestError(message, HTTPStatus.NOT_FOUND, "not_found")
            request.model_name = name
        try:
            return await super().ModelInfer(request, context)
        except (RequestError, InvalidInput, ModelNotFound, ModelNotReady):
            raise
        except Exception as error:
            raise RequestError(f"not a valid request of this protocol ({type(error).__name__})") from None

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._check_repository()
        return await super().RepositoryModelLoad(request, context)

    async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._check_repository()
        return await super().RepositoryModelUnload(request, context)

    def _check_repository(self) -> None:
        if not self.state.options.repository_api:
            raise RequestError("the repository API is disabled on this server", HTTPStatus.FORBIDDEN, "closed")


class _Guard(aio.ServerInterceptor):
    """Does for gRPC what the guard does for HTTP, before a message is read.

    That is the request's id (in the trailing metadata of the answer), token, memory, and errors in one form.
    """

    def __init__(self, state: State) -> None:
        self.state = state

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)
        if handler is None:  # no such method
            return None
        method = details.method.rsplit("/", 1)[-1]
        metadata = dict(details.invocation_metadata)
        presented, asked = metadata.get("authorization", ""), metadata.get("x-request-id", "")

        async def serve(_: Any, context: Any) -> Any:
            request_id = begin(asked)
            try:
                return await self._answer(handler, method, presented, context)
            except _REFUSED as error:
                refused = _grpc_status(error), str(error)[:300]
            except Exception as error:
                fields = {"kind": type(error).__name__, "method": method, "where": logs.place(error)}
                log.error("internal error", extra={"fields": fields})
                refused = grpc.StatusCode.INTERNAL, "internal error"
            finally:  # and not before: KServe takes what is set by then for headers of the request
                context.set_trailing_metadata((("x-request-id", request_id),))
            # Outside the handler: otherwise gRPC's own exception would keep this one alive, and this one the message.
            return await context.abort(*refused)  # which raises

        # This is a stream of one message: gRPC does not read it by itself before `serve` runs.
        return grpc.stream_unary_rpc_method_handler(serve, None, handler.response_serializer)

    async def _answer(self, handler: Any, method: str, presented: str, context: Any) -> Any:
        state = self.state
        if method in _PROBES:
            return await handler.unary_unary(handler.request_deserializer(b""), context)
        token = state.options.token
        if token is not None and not hmac.compare_digest(presented.encode(), f"Bearer {token}".encode()):
            raise RequestError("authorization: a bearer token is required", HTTPStatus.UNAUTHORIZED, "unauthorized")
        if state.closed:
            raise limits.stopping()
        if method == "ModelInfer":
            await state.admission.opening()
        held = 2 * limits.MAX_BODY  # the length is known only when the message is there, and then it is there twice
        await state.memory.reserve(held)
        try:
            async with asyncio.timeout(limits.SLOW_CLIENT):
                message = await context.read()
            if message is aio.EOF:
                raise RequestError("the request contains no message")
            state.memory.give(held - 2 * len(message))
            held = 2 * len(message)
            request = handler.request_deserializer(message)
            del message
            return await handler.unary_unary(request, context)
        except DecodeError:
            raise RequestError("not a valid message of this protocol") from None
        except TimeoutError:
            raise RequestError(
                f"no message within {limits.SLOW_CLIENT:g} seconds", HTTPStatus.REQUEST_TIMEOUT
            ) from None
        finally:
            state.memory.give(held)


def _grpc_status(error: Exception) -> grpc.StatusCode:
    if isinstance(error, RequestError):
        status = grpc.StatusCode.UNAVAILABLE if error.code == "stopping" else _GRPC_STATUS.get(error.status)
        return status or grpc.StatusCode.INVALID_ARGUMENT
    if isinstance(error, ModelNotReady | ServerNotReady):
        return grpc.StatusCode.UNAVAILABLE
    return grpc.StatusCode.NOT_FOUND if isinstance(error, ModelNotFound) else grpc.StatusCode.INVALID_ARGUMENT


class GrpcServer(GRPCServer):
    """KServe's gRPC server behind the guard, with our limits and TLS."""

    def __init__(self, port: int, dataplane: DataPlane, extension: ModelRepositoryExtension, state: State) -> None:
        super().__init__(port, dataplane, extension, kwargs={})
        self.state = state
        self.servicer = _Servicer(dataplane, extension, state)

    async def start(self, max_workers: int) -> None:
        """Serve until `stop` is called, with `max_workers` threads for calls that are not asynchronous."""
        options = [(f"grpc.max_{way}_message_length", limits.MAX_BODY) for way in ("send", "receive")]
        options += [("grpc.server_handshake_timeout_ms", int(limits.HEADERS * 1000))]
        # The most that is received of a message that is not being read yet.
        options += [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", limits.MAX_LITTLE)]
        self._server = aio.server(
            futures.ThreadPoolExecutor(max_workers),
            interceptors=(_Guard(self.state),),
            options=options,
            maximum_concurrent_rpcs=limits.CALLS,
        )
        rpc.add_GRPCInferenceServiceServicer_to_server(self.servicer, self._server)
        address = f"[::]:{self._port}"
        if self.state.options.tls_certificate is None:
            self._server.add_insecure_port(address)
        else:
            self._server.add_secure_port(
                address, grpc.dynamic_ssl_server_credentials(self._certificate(), self._renewed)
            )
        await self._server.start()
        await self._server.wait_for_termination()

    def _certificate(self) -> Any:
        options = self.state.options
        assert options.tls_certificate is not None
        key = options.tls_key or options.tls_certificate  # one file may hold both
        return grpc.ssl_server_certificate_configuration([(key.read_bytes(), options.tls_certificate.read_bytes())])

    def _renewed(self) -> Any:
        """Return the certificate for a handshake; None keeps the current one."""
        try:
            return self._certificate()
        except OSError:  # the file is being replaced
            return None
