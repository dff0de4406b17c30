"""Parse the requests of every protocol into one list of instances. Errors name the field.

V1 takes an image as the body, or this JSON:

    {"instances": [{"image": {"b64": "..."}, "roi": [x, y, width, height], "domain": "frame", "patient": "...",
                    "frame": 1, "clinical": {"age": 52}}]}

V2 takes an input `image`, either BYTES [n] (encoded files; base64 in JSON) or UINT8 [n, h, w, 3]. Optional inputs are
`roi`, INT32 or INT64 [n, 4]; `domain`, BYTES [n]; `patient`, BYTES [n]; `frame`, INT32 or INT64 [n]; and `clinical`,
BYTES [n], each a JSON object.

An encoded file is JPEG, PNG or DICOM, which its bytes decide.
"""

import base64
import binascii
import contextlib
import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from kserve import InferInput, InferRequest
from numpy.typing import NDArray

from thyroid.clinical.encoder import Encoder
from thyroid.errors import InputError
from thyroid.imaging import images
from thyroid.imaging.geometry import Box
from thyroid.serve.limits import MAX_IMAGE_BYTES, MAX_INSTANCES, MAX_REQUEST_PIXELS, RequestError
from thyroid.serve.protocol.bodies import PART, decoded

EXAMPLE = '{"instances": [{"image": {"b64": "..."}}]}'
FRAME, CROP = "frame", "crop"
"""Values of `Instance.domain`."""
_INPUTS = ("image", "roi", "patient", "frame", "clinical", "domain")  # of V2
_INTEGERS = ("INT32", "INT64")
_PATIENT_LENGTH = 128
_COLUMNS = 200


@dataclass(frozen=True)
class Instance:
    """One image of a request.

    Attributes:
        field: Name of the image in errors.
        image: The image, either encoded (bytes) or decoded (uint8 [h, w, 3]).
        roi: The nodule as x, y, width, height in pixels of the image; None if it is not marked.
        patient: The patient whose views are aggregated; None for no patient.
        frame: Frame of a DICOM file, counted from 1; None for the middle one.
        clinical: Columns and values as they were sent.
        domain: `FRAME` or `CROP` if the client says what the image is; None if the endpoint has to tell.
    """

    field: str
    image: bytes | NDArray[np.uint8]
    roi: Box | None = None
    patient: str | None = None
    frame: int | None = None
    clinical: dict[str, Any] = dataclasses.field(default_factory=dict)
    domain: str | None = None

    @property
    def is_dicom(self) -> bool:
        """Whether the image looks like DICOM: a cheaper check than `images.kind`, since every request needs it.

        A file of another kind with these bytes in this place only waits with the DICOM files.
        """
        return isinstance(self.image, bytes) and self.image[128:132] == b"DICM"


@dataclass(frozen=True)
class Request:
    """A parsed request, with everything that its answer needs.

    Attributes:
        instances: The images.
        clinical: Checked clinical values and notes on them for every image, as `columns` returns them.
        v2: The request itself, if it is of V2.
        started: When its parsing began, by `time.perf_counter`.
    """

    instances: Sequence[Instance]
    clinical: Sequence[tuple[dict[str, Any], list[str]]]
    v2: InferRequest | None
    started: float


def columns(instances: Sequence[Instance], encoder: Encoder | None) -> list[tuple[dict[str, Any], list[str]]]:
    """Return the checked clinical values of every image, with notes on them.

    Args:
        instances: The images.
        encoder: Encoder of the model's clinical columns; None if the model uses none.

    Raises:
        RequestError: The model uses no such column, or a value is not of its column's kind.
    """
    found: list[tuple[dict[str, Any], list[str]]] = []
    for number, instance in enumerate(instances):
        if encoder is None and instance.clinical:
            raise RequestError(f"instances[{number}].clinical: this model uses no clinical columns; remove the field")
        try:
            found.append(({}, []) if encoder is None else encoder.check(instance.clinical))
        except InputError as error:
            raise RequestError(f"instances[{number}].{error}") from None
    return found


def parse(payload: Any) -> list[Instance]:
    """Return the instances of a request.

    Args:
        payload: A decoded V1 body, a view of the JSON of a large V1 body, a V2 request, or the bytes of an image.

    Raises:
        RequestError: The payload is not a valid request of these forms.
    """
    if isinstance(payload, InferRequest):
        return _v2(payload)
    if isinstance(payload, bytes | bytearray):
        if not payload:
            raise RequestError(f"body: empty; expected {EXAMPLE}, or the bytes of a JPEG, PNG or DICOM file")
        return [Instance("body", bytes(payload))]
    if isinstance(payload, memoryview):
        try:
            payload = decoded(payload)
        except ValueError:
            raise RequestError("body: not JSON") from None
    instances = payload.get("instances") if isinstance(payload, dict) else None
    if not isinstance(instances, list):
        raise RequestError(f"body: expected {EXAMPLE}, or the bytes of a JPEG, PNG or DICOM file with its content type")
    _count("instances", len(instances))
    return _bounded("instances", [_v1(number, instance) for number, instance in enumerate(instances)])


def _bounded(field: str, instances: list[Instance]) -> list[Instance]:
    """Return the instances if their pictures together do not exceed the limit of a request.

    The sizes of JPEG and PNG files come from their headers. DICOM files are not counted.

    Raises:
        RequestError: The pictures have too many pixels.
    """
    if len(instances) == 1:  # the limit of a single picture applies
        return instances
    pixels = 0
    for instance in instances:
        if not isinstance(instance.image, bytes):
            pixels += instance.image.shape[0] * instance.image.shape[1]
        elif images.kind(instance.image) in images.SERVED:
            with contextlib.suppress(ValueError):  # reported when it is decoded
                pixels += math.prod(images.size(instance.image, formats=images.SERVED))
    if pixels > MAX_REQUEST_PIXELS:
        raise RequestError(
            f"{field}: {pixels:,} pixels in total exceed the limit of {MAX_REQUEST_PIXELS:,}; send fewer images"
        )
    return instances


def _count(field: str, count: int) -> None:
    if not 1 <= count <= MAX_INSTANCES:
        raise RequestError(f"{field}: expected 1 to {MAX_INSTANCES} images, not {count}")


def _v1(number: int, instance: Any) -> Instance:
    where = f"instances[{number}]"
    if not isinstance(instance, dict):
        raise RequestError(f"{where}: expected an object with image.b64")
    image = instance.get("image")
    encoded = image.get("b64") if isinstance(image, dict) else None
    if not isinstance(encoded, str | memoryview):
        raise RequestError(f'{where}.image.b64: missing; an instance is {{"image": {{"b64": "..."}}}}')
    roi, patient = instance.get("roi"), instance.get("patient")
    if patient is not None and not isinstance(patient, str | int):
        raise RequestError(f"{where}.patient: expected a string or an integer")
    field = f"{where}.image.b64"
    return Instance(
        field,
        _base64(field, encoded),
        _box(f"{where}.roi", roi),
        _name(where, patient),
        _frame(f"{where}.frame", instance.get("frame")),
        _clinical(f"{where}.clinical", instance.get("clinical")),
        _domain(f"{where}.domain", instance.get("domain")),
    )


def _clinical(where: str, values: Any) -> dict[str, Any]:
    if values is None:
        return {}
    if not isinstance(values, dict) or len(values) > _COLUMNS:
        raise RequestError(f"{where}: expected an object of at most {_COLUMNS} columns and their values")
    return values


def _domain(field: str, domain: Any) -> str | None:
    if domain is None or (isinstance(domain, str) and domain in (FRAME, CROP)):
        return domain
    raise RequestError(f'{field}: expected "{FRAME}" or "{CROP}", or no domain')


def _frame(field: str, frame: Any) -> int | None:
    if frame is not None and (type(frame) is not int or not 1 <= frame <= 1_000_000):
        raise RequestError(f"{field}: expected a frame number, counted from 1")
    return frame


def _name(where: str, patient: str | int | None) -> str | None:
    if patient is None:
        return None
    if len(str(patient)) > _PATIENT_LENGTH:
        raise RequestError(f"{where}.patient: longer than {_PATIENT_LENGTH} characters")
    return str(patient)


def _base64(field: str, text: str | bytes | memoryview) -> bytes:
    parts: list[bytes] = []
    try:
        # Decoded as a whole, it would keep all other threads waiting for tenths of a second.
        for at in range(0, len(text), PART):
            parts.append(base64.b64decode(text[at : at + PART], validate=True))
            if len(parts[-1]) < PART // 4 * 3 and at + PART < len(text):
                raise ValueError("padded before its end")
    except (binascii.Error, ValueError):
        raise RequestError(f"{field}: not base64") from None
    data = b"".join(parts)
    if not data:
        raise RequestError(f"{field}: empty")
    if len(data) > MAX_IMAGE_BYTES:
        raise RequestError(f"{field}: {len(data):,} bytes exceed the limit of {MAX_IMAGE_BYTES:,}")
    return data


def _box(field: str, roi: Any) -> Box | None:
    if roi is None:
        return None
    if not (isinstance(roi, list) and len(roi) == 4 and all(type(value) is int for value in roi)):
        raise RequestError(f"{field}: expected four whole numbers [x, y, width, height] in pixels of the image")
    x, y, width, height = roi
    if x < 0 or y < 0 or width < 1 or height < 1 or max(roi) > 1_000_000:
        raise RequestError(
            f"{field}: {roi} is not a region [x, y, width, height] in pixels, x and y from 0, sides from 1"
        )
    return (x, y, width, height)


def _v2(request: InferRequest) -> list[Instance]:
    inputs = {given.name: given for given in request.inputs}
    unknown = sorted(str(name) for name in set(inputs) - set(_INPUTS))
    if unknown:
        raise RequestError(f"inputs: {unknown[0]!r} is unknown; use one of {', '.join(_INPUTS)}")
    if "image" not in inputs:
        raise RequestError("inputs: image is missing; send BYTES [n] (encoded) or UINT8 [n, height, width, 3]")
    pictures = _pictures(inputs["image"])
    count = len(pictures)
    boxes = _boxes(inputs.get("roi"), count)
    patients = _texts("patient", inputs.get("patient"), count)
    frames = _frames(inputs.get("frame"), count)
    clinical = _clinical_objects(inputs.get("clinical"), count)
    domains = _texts("domain", inputs.get("domain"), count)
    found = [
        Instance(
            f"inputs.image[{i}]",
            image,
            _box(f"inputs.roi[{i}]", box),
            _name(f"inputs[{i}]", patient),
            _frame(f"inputs.frame[{i}]", frame),
            _clinical(f"inputs.clinical[{i}]", values),
            _domain(f"inputs.domain[{i}]", domain or None),
        )
        for i, (image, box, patient, frame, values, domain) in enumerate(
            zip(pictures, boxes, patients, frames, clinical, domains, strict=True)
        )
    ]
    return _bounded("inputs.image", found)


def _pictures(given: InferInput) -> list[bytes | NDArray[np.uint8]]:
    """Return the images of the input `image`, encoded or decoded."""
    pictures: list[bytes | NDArray[np.uint8]]
    if given.datatype == "BYTES":
        encoded = _tensor(given, "BYTES", 1).tolist()
        pictures = [_encoded(f"inputs.image[{i}]", data) for i, data in enumerate(encoded)]
    elif given.datatype == "UINT8":
        array = _tensor(given, "UINT8", 4)
        if array.shape[-1] != 3:
            raise RequestError(f"inputs.image: shape {list(array.shape)}; expected [n, height, width, 3]")
        _count("inputs.image", len(array))
        height, width = array.shape[1:3]
        if (
            height * width > images.MAX_PIXELS
            or min(height, width) < images.MIN_SIDE
            or max(height, width) > images.MAX_SIDE
        ):
            raise RequestError(f"inputs.image: an image of {width}x{height} pixels is too small or too large")
        pictures = list(array)
    else:
        raise RequestError(f"inputs.image: datatype {given.datatype}; expected BYTES or UINT8")
    _count("inputs.image", len(pictures))
    return pictures


def _boxes(given: InferInput | None, count: int) -> list[Any]:
    if given is None:
        return [None] * count
    boxes = _tensor(given, given.datatype, 2)
    if given.datatype not in _INTEGERS or boxes.shape != (count, 4):
        raise RequestError(f"inputs.roi: expected INT32 or INT64 of shape [{count}, 4]")
    return list(boxes.tolist())


def _texts(name: str, given: InferInput | None, count: int) -> list[Any]:
    if given is None:
        return [None] * count
    texts = _tensor(given, "BYTES", 1).tolist()
    if len(texts) != count:
        raise RequestError(f"inputs.{name}: expected BYTES of shape [{count}]")
    if not all(isinstance(text, str | bytes) for text in texts):
        raise RequestError(f"inputs.{name}: expected strings")
    return [text.decode(errors="replace") if isinstance(text, bytes) else text for text in texts]


def _frames(given: InferInput | None, count: int) -> list[Any]:
    if given is None:
        return [None] * count
    frames = _tensor(given, given.datatype, 1)
    if given.datatype not in _INTEGERS or len(frames) != count:
        raise RequestError(f"inputs.frame: expected INT32 or INT64 of shape [{count}]")
    return list(frames.tolist())


def _clinical_objects(given: InferInput | None, count: int) -> list[Any]:
    if given is None:
        return [None] * count
    texts = _tensor(given, "BYTES", 1).tolist()
    if len(texts) != count:
        raise RequestError(f"inputs.clinical: expected BYTES of shape [{count}], each a JSON object")
    return [_object(f"inputs.clinical[{i}]", text) for i, text in enumerate(texts)]


def _object(where: str, text: Any) -> Any:
    try:
        return json.loads(text) if text else None
    except (TypeError, ValueError, RecursionError):
        raise RequestError(f"{where}: not a JSON object") from None


def _tensor(given: InferInput, datatype: str, rank: int) -> NDArray[Any]:
    field = f"inputs.{given.name}"
    if given.datatype != datatype:
        raise RequestError(f"{field}: datatype {given.datatype}; expected {datatype}")
    if len(given.shape or []) != rank:
        raise RequestError(f"{field}: shape {list(given.shape or [])}; expected {rank} dimensions")
    try:
        array: NDArray[Any] = given.as_numpy()
    except Exception as error:  # kserve and numpy raise many kinds if data does not fit its shape or type
        raise RequestError(
            f"{field}: the data does not match the shape and datatype ({type(error).__name__})"
        ) from None
    if list(array.shape) != list(given.shape):
        raise RequestError(f"{field}: the data has shape {list(array.shape)} instead of {list(given.shape)}")
    return array


def _encoded(field: str, value: Any) -> bytes:
    """Return the bytes of a file, decoded from base64 where the protocol only carries text."""
    if not isinstance(value, str | bytes):
        raise RequestError(f"{field}: expected the bytes of a file, raw or as base64")
    data = value.encode("latin-1", errors="replace") if isinstance(value, str) else value
    if not data:
        raise RequestError(f"{field}: empty")
    if images.kind(data) is None:
        data = _base64(field, data)
    if len(data) > MAX_IMAGE_BYTES:
        raise RequestError(f"{field}: {len(data):,} bytes exceed the limit of {MAX_IMAGE_BYTES:,}")
    return data
