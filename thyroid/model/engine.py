"""What runs a model: Keras, or OpenVINO in single precision or bfloat16. Each is a *form* of one and the same artefact.

A form is served only if the evaluation scored it (`forms` in model.json). OpenVINO needs no TensorFlow.
"""

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
from thyroid.data import classes as kinds
from thyroid.data.classes import Classes
from thyroid.errors import InputError

KERAS, F32, BF16 = "keras", "openvino-f32", "openvino-bf16"
FORMS = (BF16, F32, KERAS)

NEAR = 0.02
"""Largest difference of a probability from Keras' up to which a form is taken without being asked for."""

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
"""OpenVINO takes its stub then. The real one forks when it is imported and reports each conversion to an analytics host; where
packets to the internet are dropped it also stops the model server, whose signal socket the fork has inherited."""

OPENVINO = "openvino/model.xml"
"""File of the artefact; its weights lie beside it."""

_CROWDED = 0.75
"""Share of its time that the latency mode would be busy, from which on the throughput mode takes over: there images begin to
wait, and it answers an eighth more of them."""
_LOAD_SECONDS = 2.0
"""Of the moving average of that share."""
_MICRO_BATCH = 32
_ROUNDS, _ROUND_SECONDS = 2, 0.25  # of measuring each form

Answer = tuple[NDArray[np.float32], NDArray[np.float32]]
"""A network's own probabilities [classes] and its evidence of malignancy by place [h, w]."""


class Engine(Protocol):
    """Runs one model.

    Attributes:
        form: of `FORMS`.
        measured: images a second of every form that `load` chose from; empty where it had no choice.
    """

    form: str
    measured: dict[str, float]

    def predict(self, pixels: NDArray[np.uint8]) -> Answer:
        """Of uint8 [n, size, size, 3]: probabilities [n, classes] and evidence [n, h, w]."""

    async def answer(self, pixels: NDArray[np.uint8]) -> Answer:
        """Of one uint8 [size, size, 3], without blocking the event loop."""

    def close(self) -> None:
        """Give back threads; nothing may be in flight."""


def convert(graph: Path, output: Path) -> None:
    """Write a network as OpenVINO's single precision IR: `output` and its .bin.

    Args:
        graph: file of a training, see `network.GRAPH`.
        output: the .xml file.
    """
    import openvino

    output.parent.mkdir(parents=True, exist_ok=True)
    model = openvino.convert_model(graph)  # its outputs are in the order of their names
    results = [model.output(f"{name}:0").node for name in ("probability", "evidence")]
    model = openvino.Model(results, model.get_parameters(), model.get_friendly_name())
    openvino.save_model(model, output, compress_to_fp16=False)


def has_bf16() -> bool:
    """Whether this CPU has bfloat16 instructions."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def openvino_forms() -> list[str]:
    """The forms that OpenVINO can run on this CPU."""
    return [F32, BF16] if has_bf16() else [F32]


def candidates(scored: Mapping[str, Any], form: str | None = None) -> list[str]:
    """The forms to choose from: `form`, or those that the evaluation scored and found near enough and that run here.

    Where there is a GPU, and where OpenVINO has no form to run, that is Keras alone.

    Args:
        scored: `forms` of model.json.
        form: what the user wants; None for all whose largest difference from Keras is at most `NEAR`.

    Raises:
        InputError: it was not scored, or this CPU lacks bfloat16.
    """
    if form is not None and form not in scored:
        raise InputError(f"form {form!r} was not scored by the evaluation; this model has {', '.join(scored)}")
    if form == BF16 and not has_bf16():
        raise InputError("form openvino-bf16: this CPU has no bfloat16 instructions; use openvino-f32")
    if form is not None:
        return [form]
    if KERAS in scored and _has_gpu():
        return [KERAS]
    near = [one for one in FORMS if one in scored and scored[one].get("largest_difference", 0.0) <= NEAR]
    usable = [one for one in near if one != KERAS and (one != BF16 or has_bf16())]
    if not usable and KERAS not in near:
        raise InputError(f"no form of this model can run here; the evaluation scored {', '.join(scored)}")
    return usable or [KERAS]


def _has_gpu() -> bool:
    if not Path("/dev/nvidiactl").exists():  # TensorFlow takes seconds to say so
        return False
    try:
        from thyroid.model.backend import tf
    except ImportError:  # the CPU's serving image
        return False
    return bool(tf.config.list_physical_devices("GPU"))


def load(folder: Path, facts: dict[str, Any], form: str | None = None) -> Engine:
    """The engine of a verified artefact: in `form`, or in the fastest of its `candidates` by a second of measurement.

    Which precision is faster differs from processor to processor, whatever instructions they have.

    Raises:
        InputError: see `candidates`.
    """
    names = candidates(facts["forms"], form)
    if names == [KERAS]:
        return KerasEngine(folder, kinds.of(facts))
    engines = [OpenVINOEngine(folder / OPENVINO, facts["image_size"], name) for name in names]
    measured = _measure(engines) if len(engines) > 1 else {}
    chosen = max(engines, key=lambda one: measured.get(one.form, 0.0))
    chosen.measured = measured
    chosen.warm()
    return chosen


def _measure(engines: Sequence["OpenVINOEngine"]) -> dict[str, float]:
    """Images a second of each, in short rounds by turns: what else this machine does meanwhile meets all alike."""
    images, seconds = dict.fromkeys(engines, 0), dict.fromkeys(engines, 0.0)
    for one in engines:
        one.run_for(0.0)  # the first image makes kernels
    for _ in range(_ROUNDS):
        for one in engines:
            started = time.perf_counter()
            images[one] += one.run_for(_ROUND_SECONDS)
            seconds[one] += time.perf_counter() - started
    return {one.form: round(images[one] / seconds[one], 1) for one in engines}


class OpenVINOEngine:
    """OpenVINO on the CPU.

    One image at a time gets all cores (latency mode), for the soonest answer. When more wait than there are cores, or would
    wait before long (`_CROWDED`), each runs on a core of its own (throughput mode), which answers more of them a second, until
    none is left. The two never run side by side, where they would take each other's cores. Batching gains nothing on a CPU.

    Args:
        model: the .xml file.
        size: side of the input in pixels.
        form: `F32` or `BF16`.
    """

    def __init__(self, model: Path, size: int, form: str) -> None:
        import openvino

        self.form = form
        self.measured: dict[str, float] = {}
        self._size = size
        self._network = openvino.Core().read_model(model)
        self._network.reshape([1, size, size, 3])
        self._cores = cores.available()
        # twice as many as there are cores, so that a core has its next image at once
        self._many = self._compiled(2 * self._cores, PERFORMANCE_HINT="THROUGHPUT", NUM_STREAMS=str(self._cores))
        self._alone = self._many
        self._waiting: deque[tuple[NDArray[np.uint8], asyncio.Future[Answer]]] = deque()
        self._running = 0
        self._load, self._asked = 0.0, 0.0  # share of time, and when it was brought up to date
        self._one = 0.0  # seconds of an image in latency mode
        self._mode = self._many

    def _compiled(self, jobs: int, **options: str) -> Any:
        import openvino

        options |= {
            "INFERENCE_PRECISION_HINT": "bf16" if self.form == BF16 else "f32",
            "INFERENCE_NUM_THREADS": str(self._cores),  # by itself it takes the node's cores for the pod's
            "ENABLE_CPU_PINNING": "NO",  # all pods of a node would pin themselves to the same cores
        }
        queue = openvino.AsyncInferQueue(openvino.Core().compile_model(self._network, "CPU", options), jobs)
        queue.set_callback(_finished)
        return queue

    def warm(self) -> None:
        """Compile the latency mode, which `predict` does without and `answer` waits for the longer without."""
        if self._cores > 1:
            self._alone = self._compiled(1, PERFORMANCE_HINT="LATENCY")
        for _ in range(2):  # the first image makes kernels
            started = time.perf_counter()
            _start(self._alone, np.zeros((self._size, self._size, 3), np.uint8), lambda answer: None)
            self._alone.wait_all()
            self._one = time.perf_counter() - started
        del self._network  # its weights are in the compiled ones

    def run_for(self, seconds: float) -> int:
        """Run black images, one a core, for about so long; how many."""
        black, count, end = np.zeros((self._size, self._size, 3), np.uint8), 0, time.perf_counter() + seconds
        while count < self._cores or time.perf_counter() < end:
            _start(self._many, black, lambda answer: None)
            count += 1
        self._many.wait_all()
        return count

    def predict(self, pixels: NDArray[np.uint8]) -> Answer:
        answers: list[Answer] = [None] * len(pixels)  # type: ignore[list-item]
        for number, image in enumerate(pixels):
            _start(self._many, image, partial(answers.__setitem__, number))
        self._many.wait_all()
        return np.stack([one[0] for one in answers]), np.stack([one[1] for one in answers])

    async def answer(self, pixels: NDArray[np.uint8]) -> Answer:
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((pixels, future))
        now = time.monotonic()
        self._load = self._load * math.exp((self._asked - now) / _LOAD_SECONDS) + self._one / _LOAD_SECONDS
        self._asked = now
        self._feed()
        return await future

    def _feed(self) -> None:
        """Start what may start now; called on the event loop, and never blocks it."""
        if not self._running:
            crowded = len(self._waiting) > self._cores or self._load > _CROWDED
            self._mode = self._many if crowded else self._alone
        places = len(self._mode)
        while self._waiting and self._running < places:
            pixels, future = self._waiting.popleft()
            if future.done():  # the caller went away
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
        self._alone.wait_all()
        self._many.wait_all()


def _start(queue: Any, pixels: NDArray[np.uint8], tell: Any) -> None:
    """Run an image in the queue's next free job; waits for one. Written into its input, since OpenVINO's own way takes longer."""
    queue[queue.get_idle_request_id()].get_input_tensor(0).data[0] = pixels
    queue.start_async(None, tell)


def _finished(request: Any, tell: Any) -> None:
    """Called by OpenVINO's threads; the outputs are copied, since the request is used again at once."""
    tell((request.get_output_tensor(0).data[0].copy(), request.get_output_tensor(1).data[0].copy()))


def _resolve(future: asyncio.Future, answer: Answer) -> None:
    if not future.done():
        future.set_result(answer)


class KerasEngine:
    """Keras on a GPU, compiled by XLA there; what waits is run as one batch. Also the reference for the other forms."""

    def __init__(self, folder: Path, classes: Classes) -> None:
        from thyroid.model import artefacts, explain
        from thyroid.model.backend import XLA, tf

        self.form = KERAS
        self.measured: dict[str, float] = {}
        network = explain.with_map(artefacts.load_keras(folder / artefacts.MODEL), classes)
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


if __name__ == "__main__":  # a process of its own, since OpenVINO holds Python's lock while it converts
    convert(*map(Path, sys.argv[1:]))
