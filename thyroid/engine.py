"""What runs a model: Keras, or OpenVINO in single precision or bfloat16. Each is a *form* of one and the same artefact.

A form is served only if the evaluation scored it (`forms` in model.json). OpenVINO needs no TensorFlow.
"""

import asyncio
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from thyroid import classes as kinds
from thyroid.classes import Classes
from thyroid.errors import InputError

if TYPE_CHECKING:
    from thyroid.network import Network

KERAS, F32, BF16 = "keras", "openvino-f32", "openvino-bf16"
FORMS = (BF16, F32, KERAS)
"""Fastest first on a CPU."""

NEAR = 0.02
"""Largest difference of a probability from Keras' up to which a form is taken without being asked for."""

OPENVINO = "openvino/model.xml"
"""File of the artefact; its weights lie beside it."""

_MICRO_BATCH = 32

Answer = tuple[NDArray[np.float32], NDArray[np.float32]]
"""A network's own probabilities [classes] and its evidence of malignancy by place [h, w]."""


class Engine(Protocol):
    """Runs one model."""

    form: str
    concurrency: int

    def predict(self, pixels: NDArray[np.uint8]) -> Answer:
        """Of uint8 [n, size, size, 3]: probabilities [n, classes] and evidence [n, h, w]."""

    async def answer(self, pixels: NDArray[np.uint8]) -> Answer:
        """Of one uint8 [size, size, 3], without blocking the event loop; as many at once as `concurrency` run side by side."""

    def close(self) -> None:
        """Give back threads; nothing may be in flight."""


def convert(network: "Network", output: Path) -> None:
    """Write probabilities and evidence of a network as OpenVINO's single precision IR: `output` and its .bin."""
    import tempfile

    import openvino

    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "frozen.pb"
        graph.write_bytes(network.frozen())
        model = openvino.convert_model(graph)
    output.parent.mkdir(parents=True, exist_ok=True)
    openvino.save_model(model, output, compress_to_fp16=False)


def has_bf16() -> bool:
    """Whether this CPU has bfloat16 instructions."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def choose(scored: Mapping[str, Any], form: str | None = None) -> str:
    """The form to serve: `form`, or the fastest one on this machine that the evaluation scored and found near enough.

    Args:
        scored: `forms` of model.json.
        form: what the user wants; None for the fastest whose largest difference from Keras is at most `NEAR`.

    Raises:
        InputError: it was not scored, or this CPU lacks bfloat16.
    """
    if form is not None and form not in scored:
        raise InputError(f"form {form!r} was not scored by the evaluation; this model has {', '.join(scored)}")
    if form == BF16 and not has_bf16():
        raise InputError("form openvino-bf16: this CPU has no bfloat16 instructions; use openvino-f32")
    if form is not None:
        return form
    if KERAS in scored and _has_gpu():
        return KERAS
    near = [one for one in FORMS if one in scored and scored[one].get("largest_difference", 0.0) <= NEAR]
    usable = [one for one in near if one != BF16 or has_bf16()]
    if not usable:
        raise InputError(f"no form of this model can run here; the evaluation scored {', '.join(scored)}")
    return usable[0]


def _has_gpu() -> bool:
    if not Path("/dev/nvidiactl").exists():  # TensorFlow takes seconds to say so
        return False
    try:
        from thyroid.backend import tf
    except ImportError:  # the CPU's serving image
        return False
    return bool(tf.config.list_physical_devices("GPU"))


def load(folder: Path, facts: dict[str, Any], form: str) -> Engine:
    """The engine of a verified artefact in a form that `choose` gave."""
    if form == KERAS:
        return KerasEngine(folder, kinds.of(facts))
    return OpenVINOEngine(folder / OPENVINO, facts["image_size"], form)


class OpenVINOEngine:
    """OpenVINO on the CPU.

    A lone image gets all cores (latency mode); while one is running, further ones run one core each (throughput mode), which
    answers more of them a second. Batching gains nothing on a CPU.

    Args:
        model: the .xml file.
        size: side of the input in pixels.
        form: `F32` or `BF16`.
    """

    def __init__(self, model: Path, size: int, form: str) -> None:
        import openvino

        self.form = form
        core = openvino.Core()
        network = core.read_model(model)
        network.reshape([1, size, size, 3])
        options = {"INFERENCE_PRECISION_HINT": "bf16" if form == BF16 else "f32"}
        cores = os.cpu_count() or 1
        alone = core.compile_model(network, "CPU", options | {"PERFORMANCE_HINT": "LATENCY"})
        many = core.compile_model(
            network, "CPU", options | {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": str(cores)}
        )
        self._alone = openvino.AsyncInferQueue(alone, 1)
        self._many = openvino.AsyncInferQueue(many, cores)
        for queue in (self._alone, self._many):
            queue.set_callback(_finished)
        self.concurrency = cores
        self._slots = asyncio.Semaphore(cores)
        self._running = 0

    def predict(self, pixels: NDArray[np.uint8]) -> Answer:
        answers: list[Answer] = [None] * len(pixels)  # type: ignore[list-item]
        for number, image in enumerate(pixels):
            self._many.start_async({0: image[None]}, lambda answer, number=number: answers.__setitem__(number, answer))
        self._many.wait_all()
        return np.stack([one[0] for one in answers]), np.stack([one[1] for one in answers])

    async def answer(self, pixels: NDArray[np.uint8]) -> Answer:
        loop = asyncio.get_running_loop()
        async with self._slots:
            future: asyncio.Future[Answer] = loop.create_future()
            queue = self._many if self._running else self._alone
            self._running += 1
            try:
                queue.start_async({0: pixels[None]}, lambda answer: loop.call_soon_threadsafe(_resolve, future, answer))
                # a caller that goes away must not free the slot before the engine has: its place in the queue is taken
                return await asyncio.shield(future)
            except asyncio.CancelledError:
                await asyncio.shield(future)
                raise
            finally:
                self._running -= 1

    def close(self) -> None:
        self._alone.wait_all()
        self._many.wait_all()


def _finished(request: Any, tell: Any) -> None:
    """Called by OpenVINO's threads; the outputs are copied, since the request is used again at once."""
    tell((request.get_output_tensor(0).data[0].copy(), request.get_output_tensor(1).data[0].copy()))


def _resolve(future: asyncio.Future, answer: Answer) -> None:
    if not future.done():
        future.set_result(answer)


class KerasEngine:
    """Keras on a GPU, compiled by XLA there; what waits is run as one batch. Also the reference for the other forms."""

    def __init__(self, folder: Path, classes: Classes) -> None:
        from thyroid import explain, registry
        from thyroid.backend import XLA, tf

        self.form = KERAS
        self.concurrency = _MICRO_BATCH
        network = explain.with_map(registry.load_keras(folder / registry.MODEL), classes)
        self._call = tf.function(lambda batch: network(batch, training=False), jit_compile=XLA)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="inference")
        self._waiting: list[tuple[NDArray[np.uint8], asyncio.Future[Answer]]] = []

    def predict(self, pixels: NDArray[np.uint8]) -> Answer:
        probability, evidence = self._call(pixels)
        return probability.numpy(), evidence.numpy()

    async def answer(self, pixels: NDArray[np.uint8]) -> Answer:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((pixels, future))
        self._worker.submit(self._run_waiting, loop)
        return await future

    def _run_waiting(self, loop: asyncio.AbstractEventLoop) -> None:
        taken, self._waiting = self._waiting[:_MICRO_BATCH], self._waiting[_MICRO_BATCH:]
        if not taken:
            return  # an earlier call took them along
        # padded to a power of two, so that XLA compiles a handful of shapes and no more
        size = 1 << (len(taken) - 1).bit_length()
        images = [pixels for pixels, _ in taken]
        probability, evidence = self.predict(np.stack(images + images[:1] * (size - len(images))))
        for number, (_, future) in enumerate(taken):
            loop.call_soon_threadsafe(_resolve, future, (probability[number], evidence[number]))

    def close(self) -> None:
        self._worker.shutdown()
