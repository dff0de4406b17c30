"""Runs a model with Keras, or with OpenVINO in single precision or bfloat16.

Each of these is a *form* of the same artefact. A form is served only if the evaluation scored it (`forms` in
model.json). OpenVINO does not need TensorFlow.
"""

import argparse
import asyncio
import math
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from thyroid import cores
from thyroid.errors import InputError
from thyroid.model.artefact import Artefact
from thyroid.model.descriptors import maps

KERAS, F32, BF16 = "keras", "openvino-f32", "openvino-bf16"
FORMS = (BF16, F32, KERAS)

NEAR = 0.02
"""Largest difference between a form's probabilities and Keras' up to which the form is chosen by default."""

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
"""OpenVINO uses its stub instead of this package.

The real package forks when it is imported and reports every conversion to an analytics service. Where packets to the
internet are dropped, it also stops the model server, whose signal socket the fork has inherited.
"""

OPENVINO = "openvino/model.xml"
"""File of the artefact; the file with its weights is in the same folder."""

_CROWDED = 0.75
"""Load above which the throughput mode takes over: the share of its time that the latency mode would be busy.

At this load images begin to wait, and the throughput mode answers an eighth more of them.
"""
_LOAD_SECONDS = 2.0
"""Time constant of the moving average of the load, in seconds."""
_MICRO_BATCH = 32
_ROUNDS, _ROUND_SECONDS = 2, 0.25  # number and length of the rounds in which each form is measured

Answer = tuple[NDArray[np.float32], ...]
"""A network's unscaled probabilities [classes], its map of evidence of malignancy [h, w] and its pooled features [d],
which the networks of older releases lack. If it tells descriptors, its frozen features [d] and a map of each finding
[h, w, k] follow. That of a locator is its heat and its distances."""


class Engine(Protocol):
    """Runs one model.

    Attributes:
        form: One of `FORMS`.
        measured: Images per second of every form that `load` chose from. Empty if there was no choice.
    """

    form: str
    measured: dict[str, float]

    def predict(self, pixels: NDArray[np.uint8]) -> Answer:
        """Return the answers to uint8 [n, size, size, 3], one array [n, ...] for each output of the network."""

    async def answer(self, pixels: NDArray[np.uint8]) -> Answer:
        """Return the answer to one image, uint8 [size, size, 3], without blocking the event loop."""

    def close(self) -> None:
        """Release the engine's threads. No image may be in flight."""


CLASSIFIER_OUTPUTS = ("probability", "evidence", "pooled")
"""Outputs of a classifier's graph that are served. Graphs of older releases lack the last one."""


def convert(
    graph: Path, output: Path, names: Sequence[str] = CLASSIFIER_OUTPUTS, descriptors: Path | None = None
) -> None:
    """Write a network as OpenVINO's single precision IR: `output` and its .bin file.

    Args:
        graph: The file `network.GRAPH` of a training, or that of a locator.
        output: The .xml file to write.
        names: Names of the graph's outputs that are kept, in their order. A name that the graph lacks is left out.
        descriptors: File of a `Head` that tells descriptors, whose features and maps become two more outputs; None for
            none. The graph must have `network.MAPS`.
    """
    import openvino

    output.parent.mkdir(parents=True, exist_ok=True)
    model = openvino.convert_model(graph)  # orders its outputs by name
    known = {name for output in model.outputs for name in output.get_names()}
    results = [model.output(f"{name}:0").node for name in names if f"{name}:0" in known]
    if descriptors is not None:
        results += maps.results(model, descriptors)
    model = openvino.Model(results, model.get_parameters(), model.get_friendly_name())
    openvino.save_model(model, output, compress_to_fp16=False)


def has_bf16() -> bool:
    """Return whether this CPU has bfloat16 instructions."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def openvino_forms() -> list[str]:
    """Return the forms that OpenVINO can run on this CPU."""
    return [F32, BF16] if has_bf16() else [F32]


def candidates(scored: Mapping[str, float], form: str | None = None) -> list[str]:
    """Return the forms to choose from.

    These are `form` alone if it is given. Otherwise they are the OpenVINO forms that run here, that the evaluation
    scored, and whose largest difference from Keras is at most `NEAR`. On a machine with a GPU, and where no such form
    is left, Keras is the only candidate if it was scored.

    Args:
        scored: Largest difference from Keras by form that the evaluation scored (`Artefact.differences`).
        form: Form that the user asks for, or None.

    Raises:
        InputError: The form was not scored, this CPU lacks bfloat16, or no scored form can run here.
    """
    if form is not None and form not in scored:
        raise InputError(f"form {form!r} was not scored by the evaluation; this model has {', '.join(scored)}")
    if form == BF16 and not has_bf16():
        raise InputError("form openvino-bf16: this CPU has no bfloat16 instructions; use openvino-f32")
    if form is not None:
        return [form]
    if KERAS in scored and _has_gpu():
        return [KERAS]
    near = [one for one in FORMS if one in scored and scored[one] <= NEAR]
    usable = [one for one in near if one != KERAS and (one != BF16 or has_bf16())]
    if not usable and KERAS not in near:
        raise InputError(f"this CPU can run none of the forms that the evaluation scored: {', '.join(scored)}")
    return usable or [KERAS]


def _has_gpu() -> bool:
    if not Path("/dev/nvidiactl").exists():  # TensorFlow needs seconds for the same check
        return False
    try:
        from thyroid.model.backend import tf
    except ImportError:  # the serving image for CPUs has no TensorFlow
        return False
    return bool(tf.config.list_physical_devices("GPU"))


def load(artefact: Artefact, form: str | None = None) -> Engine:
    """Load the engine of a verified artefact, in `form` or in the fastest of its `candidates`.

    The candidates are measured for a second. Which precision is faster differs from processor to processor, whatever
    instructions they have.

    Args:
        artefact: The artefact.
        form: Form that the user asks for, or None.

    Raises:
        InputError: As for `candidates`.
    """
    names = candidates(artefact.differences, form)
    if names == [KERAS]:
        from thyroid.model import explain

        return KerasEngine(explain.load(artefact))
    engines = [OpenVINOEngine(artefact.folder / OPENVINO, artefact.record.image_size, name) for name in names]
    measured = _measure(engines) if len(engines) > 1 else {}
    chosen = max(engines, key=lambda one: measured.get(one.form, 0.0))
    chosen.measured = measured
    chosen.warm()
    return chosen


def _measure(engines: Sequence["OpenVINOEngine"]) -> dict[str, float]:
    """Measure the images per second of each engine.

    The engines take turns in short rounds, so that other load on this machine affects all of them alike.
    """
    images, seconds = dict.fromkeys(engines, 0), dict.fromkeys(engines, 0.0)
    for one in engines:
        one.run_for(0.0)  # the first image compiles kernels
    for _ in range(_ROUNDS):
        for one in engines:
            started = time.perf_counter()
            images[one] += one.run_for(_ROUND_SECONDS)
            seconds[one] += time.perf_counter() - started
    return {one.form: round(images[one] / seconds[one], 1) for one in engines}


class OpenVINOEngine:
    """Runs a model with OpenVINO on the CPU.

    In latency mode one image at a time gets all cores, which gives the fastest answer. In throughput mode every image
    runs on one core, which gives more answers per second. The engine switches to throughput mode when more images wait
    than there are cores, or soon would (`_CROWDED`), and stays there until none is in flight. The two modes never run
    at the same time, because they would compete for the cores. Batching gains nothing on a CPU.

    Args:
        model: The .xml file.
        size: Side of the input in pixels.
        form: `F32` or `BF16`.
        alone: Whether the engine has the latency mode only, which takes half the memory.
    """

    def __init__(self, model: Path, size: int, form: str, alone: bool = False) -> None:
        """Read the model and compile the throughput mode; `warm` compiles the latency mode."""
        import openvino

        self.form = form
        self.measured: dict[str, float] = {}
        self._size = size
        self._network = openvino.Core().read_model(model)
        self._network.reshape([1, size, size, 3])
        self._cores = cores.available()
        self._one_mode = alone or self._cores == 1
        # two jobs for each core, or for all cores together, so that they have their next image at once
        self._many = (
            self._compiled(2, PERFORMANCE_HINT="LATENCY")
            if alone
            else self._compiled(2 * self._cores, PERFORMANCE_HINT="THROUGHPUT", NUM_STREAMS=str(self._cores))
        )
        self._alone = self._many
        self._waiting: deque[tuple[NDArray[np.uint8], asyncio.Future[Answer]]] = deque()
        self._running = 0
        self._load, self._asked = 0.0, 0.0  # the load, and when it was last updated
        self._one = 0.0  # seconds for one image in latency mode
        self._mode = self._many

    def _compiled(self, jobs: int, **options: str) -> Any:
        import openvino

        options |= {
            "INFERENCE_PRECISION_HINT": "bf16" if self.form == BF16 else "f32",
            "INFERENCE_NUM_THREADS": str(self._cores),  # the default is the cores of the node, not of the pod
            "ENABLE_CPU_PINNING": "NO",  # all pods of a node would pin themselves to the same cores
        }
        queue = openvino.AsyncInferQueue(openvino.Core().compile_model(self._network, "CPU", options), jobs)
        queue.set_callback(_finished)
        return queue

    def warm(self) -> None:
        """Compile the latency mode and measure how long it takes for an image.

        `predict` does not use this mode. Without it `answer` takes longer.
        """
        if not self._one_mode:
            self._alone = self._compiled(1, PERFORMANCE_HINT="LATENCY")
        for _ in range(2):  # the first image compiles kernels
            started = time.perf_counter()
            _start(self._alone, np.zeros((self._size, self._size, 3), np.uint8), lambda answer: None)
            self._alone.wait_all()
            self._one = time.perf_counter() - started
        del self._network  # the compiled models hold the weights

    def run_for(self, seconds: float) -> int:
        """Run black images, one per core at a time, for about `seconds` and return their number."""
        black, count, end = np.zeros((self._size, self._size, 3), np.uint8), 0, time.perf_counter() + seconds
        while count < self._cores or time.perf_counter() < end:
            _start(self._many, black, lambda answer: None)
            count += 1
        self._many.wait_all()
        return count

    def predict(self, pixels: NDArray[np.uint8]) -> Answer:
        """Return the answers to uint8 [n, size, size, 3], one array [n, ...] for each output of the network."""
        answers: list[Answer] = [None] * len(pixels)  # type: ignore[list-item]
        for number, image in enumerate(pixels):
            _start(self._many, image, partial(answers.__setitem__, number))
        self._many.wait_all()
        return tuple(np.stack(output) for output in zip(*answers, strict=True))

    async def answer(self, pixels: NDArray[np.uint8]) -> Answer:
        """Return the answer to one image, uint8 [size, size, 3], without blocking the event loop."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((pixels, future))
        now = time.monotonic()
        self._load = self._load * math.exp((self._asked - now) / _LOAD_SECONDS) + self._one / _LOAD_SECONDS
        self._asked = now
        self._feed()
        return await future

    def _feed(self) -> None:
        """Start the images that may start now. Runs on the event loop and never blocks it."""
        if not self._running:
            crowded = len(self._waiting) > self._cores or self._load > _CROWDED
            self._mode = self._many if crowded else self._alone
        places = len(self._mode)
        while self._waiting and self._running < places:
            pixels, future = self._waiting.popleft()
            if future.done():  # the caller has disconnected
                continue
            self._running += 1
            _start(self._mode, pixels, partial(self._tell, asyncio.get_running_loop(), future))

    def _tell(self, loop: asyncio.AbstractEventLoop, future: "asyncio.Future[Answer]", answer: Answer) -> None:
        loop.call_soon_threadsafe(self._answered, future, answer)

    def _answered(self, future: "asyncio.Future[Answer]", answer: Answer) -> None:
        self._running -= 1
        _resolve(future, answer)
        self._feed()

    def close(self) -> None:
        """Wait until both modes are idle."""
        self._alone.wait_all()
        self._many.wait_all()


def _start(queue: Any, pixels: NDArray[np.uint8], tell: Any) -> None:
    """Run an image in the queue's next free job, and wait until there is one.

    The pixels are written into the job's input tensor, because passing them to OpenVINO takes longer.
    """
    queue[queue.get_idle_request_id()].get_input_tensor(0).data[0] = pixels
    queue.start_async(None, tell)


def _finished(request: Any, tell: Any) -> None:
    """Hand over the outputs of a finished request.

    OpenVINO's threads call this. The outputs are copied, because the request is used again at once.
    """
    tell(tuple(tensor.data[0].copy() for tensor in request.output_tensors))


def _resolve(future: "asyncio.Future[Answer]", answer: Answer) -> None:
    if not future.done():
        future.set_result(answer)


class KerasEngine:
    """Runs a model with Keras, compiled by XLA on a GPU.

    Waiting images run as one batch. This engine is also the reference for the other forms.

    Args:
        network: A Keras model whose outputs are those of `predict`.
    """

    def __init__(self, network: Any) -> None:
        """Trace the model."""
        from thyroid.model.backend import XLA, tf

        self.form = KERAS
        self.measured: dict[str, float] = {}
        self._call = tf.function(lambda batch: network(batch, training=False), jit_compile=XLA)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="inference")
        self._waiting: list[tuple[NDArray[np.uint8], asyncio.Future[Answer]]] = []

    def predict(self, pixels: NDArray[np.uint8]) -> Answer:
        """Return the answers to uint8 [n, size, size, 3], one array [n, ...] for each output of the network."""
        return tuple(output.numpy() for output in self._call(pixels))

    async def answer(self, pixels: NDArray[np.uint8]) -> Answer:
        """Return the answer to one image, uint8 [size, size, 3], without blocking the event loop."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((pixels, future))
        self._worker.submit(self._run_waiting, loop)
        return await future

    def _run_waiting(self, loop: asyncio.AbstractEventLoop) -> None:
        taken, self._waiting = self._waiting[:_MICRO_BATCH], self._waiting[_MICRO_BATCH:]
        if not taken:
            return  # an earlier call has already run these images
        # padded to a power of two, so that XLA compiles only a handful of shapes
        size = 1 << (len(taken) - 1).bit_length()
        images = [pixels for pixels, _ in taken]
        answers = self.predict(np.stack(images + images[:1] * (size - len(images))))
        for number, (_, future) in enumerate(taken):
            loop.call_soon_threadsafe(_resolve, future, tuple(output[number] for output in answers))

    def close(self) -> None:
        """Stop the worker thread after its last batch."""
        self._worker.shutdown()


if __name__ == "__main__":  # a separate process, because OpenVINO holds the GIL while it converts
    parser = argparse.ArgumentParser()
    parser.add_argument("graph", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--descriptors", type=Path)
    given = parser.parse_args()
    convert(given.graph, given.output, given.names or CLASSIFIER_OUTPUTS, given.descriptors)
