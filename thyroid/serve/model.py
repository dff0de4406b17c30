"""One registered model behind KServe's interface: it parses, prepares, predicts and explains."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import kserve
import numpy as np
from kserve import InferRequest
from kserve.metrics import EXPLAIN_HIST_TIME, PREDICT_HIST_TIME, get_labels
from kserve.model import InferenceVerb

from thyroid import cores
from thyroid.clinical.fusion import Fusion
from thyroid.data.classes import Classes
from thyroid.errors import InputError
from thyroid.model import engine
from thyroid.model.artefact import Artefact
from thyroid.model.descriptors.head import Head
from thyroid.model.locator_engine import LocatorEngine
from thyroid.model.novelty.novelty import Novelty
from thyroid.model.operating_point import OperatingPoint
from thyroid.registry import validations
from thyroid.serve import limits, payload, prometheus
from thyroid.serve.admission import Admission, Files
from thyroid.serve.answers import Answers, Scored, columns_used, heat_maps, unlikeness
from thyroid.serve.decisions.log import DecisionLog
from thyroid.serve.descriptors.answers import tell
from thyroid.serve.payload import Instance, Request
from thyroid.serve.preprocessing import Prepared, Preprocessing
from thyroid.serve.reference import check
from thyroid.serve.shadow.shadow import Shadow

T = TypeVar("T")

_NOT_FACTS = ("files", "usual_answers")
"""Fields of model.json that are too long for people: hashes, and thousands of values for the watch."""


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Attributes:
        folder: Folder of the artefact.
        released: Whether the model is a champion. None where there is no registry: the artefact's own gate decides.
    """

    folder: Path
    released: bool | None = None


class ThyroidModel(kserve.Model):
    """A registered model.

    Every image gets the preprocessing that the evaluation measured, and the answer says which. Research use only: the
    answer says that, too.

    Args:
        name: Name under which the model is served.
        folder: Folder of the artefact.
        released: Whether the model is a champion. None where there is no registry: the artefact's own gate decides.
        form: One of `engine.FORMS`. None for the form that a measurement finds fastest here, among those that were
            scored and found close enough.
        admission: Limit on the images inside, shared by all models of a server. None for one of its own.
        log: Log of the decisions, shared by all models of a server. None for none.
        shadow: The candidate that gets the same images once they are answered. None for none.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        released: bool | None = None,
        form: str | None = None,
        admission: Admission | None = None,
        *,
        log: DecisionLog | None = None,
        shadow: Shadow | None = None,
    ) -> None:
        """Create a model that is not ready; `load` makes it so."""
        super().__init__(name)
        self.folder = folder
        self.source = Source(folder, released)
        self.form = form
        self.admission = admission or Admission()
        self.log, self.shadow = log, shadow
        self.in_flight = 0
        histograms = {InferenceVerb.PREDICT: PREDICT_HIST_TIME, InferenceVerb.EXPLAIN: EXPLAIN_HIST_TIME}
        self._seconds = {verb: histogram.labels(**get_labels(name)) for verb, histogram in histograms.items()}
        self._preparing = ThreadPoolExecutor(cores.available(), thread_name_prefix="prepare")
        # A separate thread, so that small requests do not wait for large ones.
        self._parsing = ThreadPoolExecutor(1, thread_name_prefix="parse")
        # A separate thread, which waits for the process that reads DICOM files; other requests must not wait for it.
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="dicom")
        self._files = Files()
        # Frames stay decoded until their boxes are known; more of them would only wait for the locator.
        self._locating = asyncio.Semaphore(max(2, cores.available()))
        # DICOM files are read one after another and may take seconds; the others must not wait for them here, either.
        self._locating_dicom = asyncio.Semaphore(1)

    def load(self) -> bool:
        """Verify the artefact's hashes, load the form and the locator, and check their answers to the reference image.

        Raises:
            InputError: The artefact was changed, has no form that can run here, or does not answer as evaluated, or its
                locator cannot run here.
        """
        self.artefact = Artefact.verify(self.folder)
        record, self.publication = self.artefact.record, self.artefact.publication
        self.point, known = OperatingPoint.from_record(record), Classes.from_record(record)
        self.head = None if record.clinical is None else Fusion.from_record(record.clinical)
        gate = self.publication.gate
        self.released = gate.decision == "promoted" if self.source.released is None else self.source.released
        self.novelty, self.descriptors = Novelty.read(self.artefact), Head.read(self.artefact)
        self.engine_ = engine.load(self.artefact, self.form)
        self.chosen = self.engine_.form
        self.locator: LocatorEngine | None = None
        if record.locator is not None and record.serving_domain == "cropped":
            self.locator = LocatorEngine(self.artefact, record.locator, self.chosen)
        reader = None if self.locator is None else self.locator.locator
        self.preprocessing = Preprocessing(
            record.serving_domain, record.image_size, record.margin, reader, hashes=self.log is not None
        )
        reasons = None if self.released else self.not_released
        self.answers = Answers(
            record, self.point, known, self.chosen, reasons, locates=reader is not None, head=self.descriptors
        )
        reference = Instance("reference.jpg", (self.folder / "reference.jpg").read_bytes())
        self._reference = self.preprocessing.prepare(reference).pixels
        if drift := self.drift():
            raise InputError(f"{self.folder}: not served, because the model {drift}")
        self._version = str(self.publication.version)
        prometheus.MODEL.labels(self.name, self._version, self.chosen, record.backbone).set(1)
        self.ready = True
        return self.ready

    def drift(self) -> str | None:
        """Compare the answer to the reference image with the evaluated one; return the difference in words, or None."""
        answer = [output[0] for output in self.engine_.predict(self._reference[None])]
        return check.misfit(answer, self.novelty, self.descriptors) or self._difference(answer[0])

    def _difference(self, probability: np.ndarray) -> str | None:
        return check.difference(self.artefact, self.chosen, self.point, self._fused(probability, {}))

    async def self_test(self) -> bool:
        """Check for drift while requests run, and set and return the readiness accordingly."""
        probability, *_ = await self.engine_.answer(self._reference)
        same = self._difference(probability) is None
        self.ready = same and (self.locator is None or await self.locator.self_test())
        return self.ready

    def _fused(self, probability: np.ndarray, clinical: dict[str, Any]) -> np.ndarray:
        """Fuse the network's probabilities [classes] with clinical columns."""
        return probability if self.head is None else self.head.predict(probability[None], [clinical])[0][0]

    def _columns(self, instances: Sequence[Instance]) -> list[tuple[dict[str, Any], list[str]]]:
        return payload.columns(instances, None if self.head is None else self.head.encoder)

    def retire(self) -> None:
        """Release what the model holds. No request may be in flight."""
        prometheus.MODEL.labels(self.name, self._version, self.chosen, self.artefact.record.backbone).set(0)
        self.engine_.close()
        if self.locator is not None:
            self.locator.close()
        self._preparing.shutdown(wait=False)
        self._parsing.shutdown(wait=False)
        self._reading.shutdown(wait=False)

    @property
    def not_released(self) -> list[str]:
        """The reasons why this version may not be relied on.

        The list is empty for a champion and, where there is no registry, for a version that passed its gate.
        """
        if self.released:
            return []
        gate = self.publication.gate
        return list(gate.reasons) if gate.decision == "refused" else ["not the champion"]

    def get_input_types(self) -> list[dict[str, Any]]:
        """Return the inputs for the V2 metadata."""
        columns = [] if self.head is None else [{"name": "clinical", "datatype": "BYTES", "shape": [-1]}]
        domain = [] if self.locator is None else [{"name": "domain", "datatype": "BYTES", "shape": [-1]}]
        return [{"name": "image", "datatype": "BYTES", "shape": [-1]}, *columns, *domain]

    def get_output_types(self) -> list[dict[str, Any]]:
        """Return the outputs for the V2 metadata."""
        return self.answers.output_types()

    async def __call__(
        self, body: Any, headers: dict[str, str] | None = None, verb: InferenceVerb = InferenceVerb.PREDICT
    ) -> Any:
        """Admit a request and answer it within the deadline.

        KServe's own method would call `preprocess` and other methods that this model does not have.

        Raises:
            RequestError: The request is wrong, too much is waiting, or the deadline has passed.
        """

        async def timed(request: Request) -> Any:
            with self._seconds[verb].time():
                return await (self.explain if verb is InferenceVerb.EXPLAIN else self.predict)(request)

        admitted = self._admit(body, timed)
        del body  # so that it is freed as soon as it is parsed
        return await admitted, {}

    async def locate(self, body: Any) -> Any:
        """Admit a request and answer with `{"boxes": [...]}` as `__call__` does, without the classifier.

        Raises:
            RequestError: The model has no locator, or as for `__call__`.
        """
        if self.locator is None:
            message = "this model has no locator; send the nodule's box as roi to :predict"
            if self.preprocessing.domain == "normal":
                message = "this model judges full frames and needs no box; use :predict"
            raise limits.RequestError(message, HTTPStatus.NOT_FOUND, "not_found")
        admitted = self._admit(body, self._locate_all)
        del body
        return await admitted, {}

    async def _admit(self, body: Any, answer: Callable[[Request], Awaitable[Any]]) -> Any:
        """Parse a request, admit its images, and answer it within the deadline."""
        started = time.perf_counter()
        self.in_flight += 1  # a request that is parsed here must still find this model
        try:
            with self.admission.request():
                if isinstance(body, bytes):
                    instances = payload.parse(body)
                else:
                    executor = self._parsing if isinstance(body, memoryview) else self._preparing
                    instances = await asyncio.get_running_loop().run_in_executor(executor, payload.parse, body)
                v2 = body if isinstance(body, InferRequest) else None
                del body
                request = Request(instances, self._columns(instances), v2, started)
                with self.admission.admit(len(instances)), self._files.admit(sum(one.is_dicom for one in instances)):
                    async with asyncio.timeout(limits.DEADLINE):
                        return await answer(request)
        except TimeoutError:
            raise limits.too_late() from None
        finally:
            self.in_flight -= 1

    async def predict(self, request: Any, headers: Any = None, response_headers: Any = None) -> Any:
        """Answer with `{"predictions": [...]}` (V1) or with the outputs of V2."""
        scored = await self._score_all(request)
        if request.v2 is None:
            answer: Any = self.answers.predictions(scored)
        else:
            answer = self.answers.v2(self.name, request.v2, scored)
        self._record(scored)
        return answer

    async def explain(self, request: Any, headers: Any = None) -> dict[str, Any]:
        """Answer with `{"explanations": [...]}` (V1).

        Each one is a prediction with its heat map as an array, as a layer (PNG) and as an overlay (PNG), and with a
        heat map of every finding.
        """
        scored = await self._score_all(request)
        loop = asyncio.get_running_loop()
        maps = [loop.run_in_executor(self._preparing, heat_maps, image) for image in scored]
        answer = self.answers.explanations(scored, await asyncio.gather(*maps))
        self._record(scored)
        return answer

    def _record(self, scored: Sequence[Scored]) -> None:
        logged = [] if self.log is None else self.log.record(self.publication.version, self.chosen, scored)
        if self.shadow is not None:
            self.shadow.offer(scored, logged)

    async def score(self, instance: Instance) -> Scored:
        """Return what the model makes of one image, as in an answer, but without admission and without a deadline.

        Raises:
            RequestError: The image or its clinical values are wrong.
        """
        (clinical,) = self._columns([instance])
        return await self._score(instance, clinical, time.perf_counter())

    async def _score_all(self, request: Request) -> list[Scored]:
        if len(request.instances) == 1:
            return [await self._score(request.instances[0], request.clinical[0], request.started, alone=True)]
        pairs = zip(request.instances, request.clinical, strict=True)
        return await _all([self._score(instance, clinical, request.started) for instance, clinical in pairs])

    async def _locate_all(self, request: Request) -> dict[str, Any]:
        steps = replace(self.preprocessing, hashes=False)  # since nothing of this is logged
        found = await _all([self._prepare(steps, instance, request.started) for instance in request.instances])
        return self.answers.boxes([prepared for prepared, _ in found])

    async def _score(
        self, instance: Instance, clinical: tuple[dict[str, Any], list[str]], started: float, alone: bool = False
    ) -> Scored:
        begun = time.perf_counter()
        prepared, located = await self._prepare(self.preprocessing, instance, started, alone)
        ready = time.perf_counter()
        probability, evidence, *pooled = await self.engine_.answer(prepared.pixels)
        done = time.perf_counter()
        project = self.log is not None and self.log.features
        novelty, distance, features = (
            (None, None, None) if self.novelty is None else unlikeness(self.novelty, pooled[0], project)
        )
        findings, told = (None, None) if self.descriptors is None else tell(self.descriptors, pooled[1])
        values, notes = clinical
        unscaled = self._fused(probability, values)
        scaled = self.point.scale(unscaled[None])[0]
        doubts = self.answers.doubts(instance, prepared, distance)
        decision = self.answers.decide(scaled, doubts, points=None if told is None else told.points)
        seconds = {"prepare": ready - begun - located, "engine": done - ready, "total": done - started}
        if located:
            seconds["locate"] = located
        prometheus.PREPARE.observe(seconds["prepare"])
        prometheus.ENGINE.observe(seconds["engine"])
        prometheus.count(self._version, prepared.done, decision, distance)
        milliseconds = {name: round(s * 1000, 1) for name, s in seconds.items()}
        used = {} if self.head is None else columns_used(self.head.encoder, values, notes)
        return Scored(
            instance=instance,
            prepared=prepared,
            probability=scaled,
            unscaled=unscaled,
            decision=decision,
            evidence=evidence,
            clinical=used,
            milliseconds=milliseconds,
            novelty=novelty,
            distance=distance,
            features=features,
            findings=findings,
            told=told,
            descriptor_maps=None if told is None else pooled[2],
        )

    async def _prepare(
        self, steps: Preprocessing, instance: Instance, started: float, alone: bool = False
    ) -> tuple[Prepared, float]:
        """Return the network's input, and the seconds that the locator took for it: 0 where it was not asked."""
        locates = steps.locates(instance)
        prepared = steps.prepare_small(instance) if alone and not locates else None  # before a thread could start
        if prepared is not None:
            return prepared, 0.0
        loop = asyncio.get_running_loop()
        executor = self._reading if instance.is_dicom else self._preparing
        end = time.monotonic() + started + limits.DEADLINE - time.perf_counter()
        if not locates or self.locator is None:
            return await loop.run_in_executor(executor, steps.prepare, instance, end), 0.0
        asked = time.perf_counter()
        async with self._locating_dicom if instance.is_dicom else self._locating:
            waited = time.perf_counter() - asked
            looked = await loop.run_in_executor(executor, steps.look, instance, end)
            begun = time.perf_counter()
            answer = await self.locator.answer(looked.seen)
            seconds = waited + time.perf_counter() - begun
            prometheus.LOCATE.observe(seconds)
            return await loop.run_in_executor(self._preparing, steps.finish, instance, looked, answer), seconds

    def describe(self) -> dict[str, Any]:
        """Return what the registry knows of this version, for people who ask which model answers.

        This is model.json without the hashes of its files and without the usual answers, with the form that answers
        here, the images per second of the forms that it was chosen from, whether the version is released, and its
        external validations. `novelty` is None for a model that cannot tell whether an image is unlike its training
        images.
        """
        record = self.artefact.record.to_dict()
        facts = {"novelty": None} | {name: value for name, value in record.items() if name not in _NOT_FACTS}
        here: dict[str, Any] = {"form": self.chosen, "images_per_second": self.engine_.measured}
        if self.locator is not None:
            here["locator_form"] = self.locator.form
        here |= {"released": self.released, "not_released": self.not_released}
        return facts | here | {"validations": validations.facts(self.folder)}


async def _all(answering: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Return the results of all coroutines, which run at once. After the first error the others are cancelled."""
    tasks = [asyncio.ensure_future(one) for one in answering]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
