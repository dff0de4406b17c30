"""KServe's data plane, which both protocols share, and KServe's errors as ours."""

from http import HTTPStatus
from typing import Any

import orjson
from kserve import InferInput, InferRequest
from kserve.errors import InvalidInput, ModelNotFound, ModelNotReady, ServerNotReady
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.infer_type import RequestedOutput

from thyroid.registry.registry import MODEL_NAME
from thyroid.serve import limits
from thyroid.serve.limits import RequestError
from thyroid.serve.protocol import bodies
from thyroid.serve.state import State

KSERVE_ERRORS: dict[type[Exception], tuple[HTTPStatus, str]] = {
    InvalidInput: (HTTPStatus.BAD_REQUEST, "invalid_input"),
    ModelNotFound: (HTTPStatus.NOT_FOUND, "not_found"),
    ModelNotReady: (HTTPStatus.SERVICE_UNAVAILABLE, "not_ready"),
    ServerNotReady: (HTTPStatus.SERVICE_UNAVAILABLE, "not_ready"),
}
"""KServe's errors that report a request, with the HTTP status and the reason code of the answer."""


class ThyroidDataPlane(DataPlane):
    """KServe's data plane with clear errors for bodies that it cannot decode, and with the readiness of the server."""

    def __init__(self, state: State) -> None:
        super().__init__(model_registry=state.models)
        self.state = state

    async def ready(self) -> bool:
        """Return whether requests should come here."""
        return self.state.ready()

    async def model_ready(self, model_name: str, disable_predictor_health_check: bool = False) -> bool:
        """Return whether a model is ready.

        Raises:
            ModelNotReady: The model is still loading.
            ModelNotFound: There is no such model.
        """
        if model_name == MODEL_NAME and self._model_registry.get_model(model_name) is None:
            raise ModelNotReady(model_name, "It is loading; try again.")  # known, so not 404
        ready: bool = await super().model_ready(model_name, disable_predictor_health_check)
        return ready

    def metadata(self) -> dict[str, Any]:
        """Return the metadata of the server."""
        described: dict[str, Any] = super().metadata()
        return described | {"name": MODEL_NAME, "extensions": []}

    async def model_metadata(self, model_name: str) -> dict[str, Any]:
        """Return the metadata of a model, with its version and the form that answers."""
        described: dict[str, Any] = await super().model_metadata(model_name)
        model = self._model_registry.get_model(model_name)
        return described | {"versions": [str(model.publication.version)], "platform": model.chosen}

    def decode_inference_request(self, body: Any, headers: dict[str, str], model_name: str) -> InferRequest:
        """Decode as KServe does, but keep BYTES as bytes. KServe takes them for UTF-8, which no image is."""
        if not isinstance(body, bytes):
            return super().decode_inference_request(body, headers, model_name)
        length = headers.get("inference-header-content-length", "")
        if not length.isdigit() or int(length) > len(body):
            raise RequestError("inference-header-content-length: not the length of the JSON part of the body")
        header = body[: int(length)]
        if len(header) > limits.SMALL_BODY:
            bodies.Values().add(header)
        described, place, inputs = orjson.loads(header), int(length), []
        for number, given in enumerate(described["inputs"]):
            parameters = given.get("parameters")
            tensor = InferInput(given["name"], given["shape"], given["datatype"], given.get("data"), parameters)
            size = (parameters or {}).get("binary_data_size")
            if size is not None:
                if type(size) is not int or size < 0 or place + size > len(body):
                    raise RequestError(f"inputs[{number}].parameters.binary_data_size: {size!r} is not within the body")
                tensor._raw_data = body[place : place + size]
                place += size
            inputs.append(tensor)
        asked = described.get("outputs")
        outputs = asked and [RequestedOutput(output["name"], output.get("parameters")) for output in asked]
        return InferRequest(
            model_name,
            inputs,
            request_id=described.get("id"),
            parameters=described.get("parameters"),
            request_outputs=outputs,
        )

    def decode(self, body: Any, headers: Any, *arguments: Any, **keywords: Any) -> Any:
        """Decode as KServe does.

        Raises:
            RequestError: The body is not a request of the protocol.
        """
        try:
            return super().decode(body, headers, *arguments, **keywords)
        except RequestError:
            raise
        except InvalidInput as error:
            raise RequestError(f"body: {error}"[:300]) from None
        except Exception as error:  # KeyError, TypeError, UnicodeDecodeError and others for bodies of another form
            raise RequestError(f"body: not a valid request of this protocol ({type(error).__name__})") from None
