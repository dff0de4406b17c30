"""What a server shares between its protocols: the models, the limits, and whether it is stopping.

`Loader` keeps the models as the registry wants them.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import TypeVar

from kserve.errors import ModelNotFound, ModelNotReady
from kserve.model_repository import ModelRepository

from thyroid import errors, logs, storage
from thyroid.errors import InputError
from thyroid.registry import validations
from thyroid.registry.registry import MODEL_NAME, Registry
from thyroid.serve.admission import Admission, Memory
from thyroid.serve.decisions.log import DecisionLog
from thyroid.serve.model import Source, ThyroidModel
from thyroid.serve.options import ServeOptions
from thyroid.serve.shadow.shadow import Shadow

log = logging.getLogger("thyroid.serve")

PREVIOUS = f"{MODEL_NAME}-previous"
WATCH_SECONDS = 1.0
WATCH_BUCKET_SECONDS = 10.0
"""Seconds between two reads of a registry on Google Cloud Storage, where each read costs requests."""
RETRY_SECONDS = 60.0
"""Seconds until a model that failed to load for a possibly temporary reason is tried again."""
SELF_TEST_SECONDS = 60.0
FETCH_SECONDS = 10.0
"""Seconds that a model waits for its external validations from a bucket."""

T = TypeVar("T")


class State:
    """The state of one server.

    Args:
        options: What to serve, and where.

    Attributes:
        models: The models that are served, by name.
        admission: Limit on the images inside, over all models and protocols.
        memory: Budget that the bytes of request bodies are taken from.
        decisions: Log of the decisions of all models; None if there is none.
        shadow: The candidate behind the champion; None if nobody asks for it.
        draining: Whether the server is about to stop.
        closed: Whether the server has stopped accepting requests.
    """

    def __init__(self, options: ServeOptions) -> None:
        """Start without models.

        Raises:
            InputError: The decision log cannot be started.
        """
        self.options = options
        self.models = ModelRepository()
        self.admission = Admission()
        self.memory = Memory()
        self.decisions = DecisionLog.start(options)
        asked = options.shadow or options.shadow_dir is not None
        self.shadow = Shadow(self.admission, self.decisions, options.form) if asked else None
        self.draining = False
        self.closed = False

    def ready(self) -> bool:
        """Return whether requests should come here: the server is not draining, and all its models are ready."""
        models = self.models.get_models()
        return not self.draining and MODEL_NAME in models and all(model.ready for model in models.values())

    def find(self, name: str) -> ThyroidModel:
        """Return the model that is served under a name.

        Raises:
            ModelNotReady: The model is still loading.
            ModelNotFound: There is no such model.
        """
        model: ThyroidModel | None = self.models.get_model(name)
        if model is None:
            raise ModelNotReady(name) if name == MODEL_NAME else ModelNotFound(name)
        return model

    def resolve(self, name: str, version: str) -> str | None:
        """Return the name under which a version of a model is served; None if it is not served."""
        models: dict[str, ThyroidModel] = self.models.get_models()
        for served, model in models.items():
            if name in (served, MODEL_NAME) and str(model.publication.version) == version:
                return served
        return None


class Loader:
    """Loads the models of a registry or of one artefact, follows the registry, and tests the loaded models.

    Args:
        state: The state whose models are kept up to date.

    Attributes:
        failure: The reason why there is no model to serve; None as long as there may be one.
    """

    def __init__(self, state: State) -> None:
        """Load nothing yet; `watch` does."""
        self.state = state
        self.failure: InputError | None = None
        self._failed: dict[str, tuple[Source, float]] = {}
        """What failed to load, by name, with the time by `time.monotonic` from which it is tried again."""
        self._reported = ""
        """Why the registry could not be read, so that a lasting reason is logged once."""
        self._not_fetched = ""
        """Why validations could not be fetched, for the same purpose."""
        self._candidate: tuple[int | None, Path | None] = None, None
        """Version and folder of the candidate that answers behind the champion."""
        self._not_followed = ""
        """Why the candidate could not be read, for the same purpose."""
        self._retiring: set[asyncio.Task[None]] = set()

    def wanted(self) -> dict[str, Source]:
        """Return where the models are that should be served now, by the name under which each is served."""
        options = self.state.options
        if options.model_dir is not None:
            return {MODEL_NAME: Source(options.model_dir)}
        assert options.registry is not None
        aliases = Registry(options.registry).read_aliases()
        if "champion" not in aliases:
            return {MODEL_NAME: Source(Registry(options.registry).locate("candidate"), False)}
        result: dict[str, Source] = {}
        for name, alias in ((MODEL_NAME, "champion"), (PREVIOUS, "previous")):
            if alias in aliases:
                result[name] = Source(Registry(options.registry).locate(str(aliases[alias])), True)
        return result

    def candidate(self) -> tuple[int | None, Path | None]:
        """Return version and folder of what shall answer behind the champion; None for either if there is none."""
        options = self.state.options
        if options.registry is None:
            return None, options.shadow_dir
        registry = Registry(options.registry)
        aliases = registry.read_aliases()
        number = aliases.get("waiting", aliases.get("candidate"))
        if "champion" not in aliases or number is None or number in (aliases["champion"], *registry.refuted()):
            return None, None
        if number == self._candidate[0]:
            return self._candidate
        folder = registry.locate(str(number))
        registry.check(folder)
        return number, folder

    async def watch(self, stop: asyncio.Event) -> None:
        """Load what the registry wants, and swap a model only when its successor is ready.

        An error is logged and the watch continues. Only while there is no model to serve does an error stop the server.

        Args:
            stop: Is set when there is nothing to serve; `failure` holds the reason.
        """
        root = self.state.options.registry
        pause = WATCH_BUCKET_SECONDS if root is not None and storage.is_bucket(root) else WATCH_SECONDS
        following: asyncio.Task[None] | None = None
        while not self.state.draining:
            for name, source in (await self._read()).items():
                await self._update(name, source)
                if self.failure is not None:
                    break
            if self.failure is not None:
                stop.set()
                return
            for model in list(self.state.models.get_models().values()):
                await self._fetch(model)
            if following is None or following.done():  # a candidate that takes long to arrive delays no champion
                following = asyncio.create_task(self._follow())
            await asyncio.sleep(pause)

    async def _read(self) -> dict[str, Source]:
        """Return what is wanted now; nothing if the registry cannot be read."""
        try:
            wanted = await _in_daemon_thread(self.wanted)
        except Exception as error:
            reason = _reason(error)
            if not self.state.models.get_models():
                self.failure = InputError(reason)
            elif reason != self._reported:
                log.error("registry not read", extra={"fields": {"reason": reason}})
            self._reported = reason
            return {}
        self._reported = ""
        return wanted

    async def _fetch(self, model: ThyroidModel) -> None:
        """Bring the external validations of a model of a bucket here; a failure does not keep it from being served."""
        root = self.state.options.registry
        if root is None or not storage.is_bucket(root):
            return
        version, folder = model.publication.version, model.folder
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                await _in_daemon_thread(lambda: validations.fetch(Registry(root), version, folder))
        except Exception as error:
            reason = _reason(error)
            if reason != self._not_fetched:
                log.error("validations not read", extra={"fields": {"reason": reason}})
            self._not_fetched = reason
        else:
            self._not_fetched = ""

    async def _follow(self) -> None:
        """Have the present candidate answer behind the champion. A failure is logged, and the present one stays."""
        if self.state.shadow is None:
            return
        try:
            self._candidate = await _in_daemon_thread(self.candidate)
        except Exception as error:
            reason = _reason(error)
            if reason != self._not_followed:
                log.error("candidate not read", extra={"fields": {"reason": reason}})
            self._not_followed = reason
            return
        self._not_followed = ""
        self.state.shadow.follow(self._candidate[1])

    async def _update(self, name: str, source: Source) -> None:
        """Load a model unless it is served already, or failed to load a short time ago."""
        served = self.state.models.get_model(name)
        last, retry_at = self._failed.get(name, (None, 0.0))
        if (served is not None and served.source == source) or (last == source and time.monotonic() < retry_at):
            return
        try:
            await self._load(name, source)
            self._failed.pop(name, None)
        except Exception as error:
            # A fault of an artefact is permanent.
            pause = float("inf") if isinstance(error, InputError) else RETRY_SECONDS
            self._failed[name] = source, time.monotonic() + pause
            log.error("model not loaded", extra={"fields": {"name": name, "reason": _reason(error)}})
            if self.state.models.get_model(MODEL_NAME) is None:
                self.failure = InputError(f"{source.folder}: {_reason(error)}")

    async def _load(self, name: str, source: Source) -> None:
        options, models = self.state.options, self.state.models
        if (root := options.registry) is not None:
            await _in_daemon_thread(lambda: Registry(root).check(source.folder))
        admission, decisions = self.state.admission, self.state.decisions
        shadow = self.state.shadow if name == MODEL_NAME else None
        model = ThyroidModel(
            name, source.folder, source.released, options.form, admission, log=decisions, shadow=shadow
        )
        await asyncio.get_running_loop().run_in_executor(None, model.load)
        await self._fetch(model)
        old = models.get_model(name)
        models.update(model)
        fields = {
            "name": name,
            "version": model.publication.version,
            "form": model.chosen,
            "locator_form": None if model.locator is None else model.locator.form,
            "images_per_second": model.engine_.measured,
            "backbone": model.artefact.record.backbone,
            "novelty": model.novelty is not None,
        }
        log.info("serving", extra={"fields": fields | {"not_released": model.not_released}})
        if old is not None:
            task = asyncio.create_task(retire(old))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    async def test_models(self) -> None:
        """Test every model once a minute, and make one that drifts unready. This runs until it is cancelled."""
        while True:
            await asyncio.sleep(SELF_TEST_SECONDS)
            for name, model in list(self.state.models.get_models().items()):
                was = model.ready
                try:
                    ready = await model.self_test()
                except Exception as error:  # a model that cannot answer is not ready
                    model.ready = ready = False
                    log.error("self-test", extra={"fields": {"name": name, "kind": type(error).__name__}})
                if ready != was:
                    log.error("self-test", extra={"fields": {"name": name, "ready": ready}})


async def retire(model: ThyroidModel) -> None:
    """Release what a model holds once its requests are answered."""
    while model.in_flight:
        await asyncio.sleep(0.05)
    await asyncio.get_running_loop().run_in_executor(None, model.retire)


def _reason(error: Exception) -> str:
    """Describe an error. Kinds other than our own say little, so their type and place are added."""
    if isinstance(error, InputError | OSError):
        return errors.one_line(error)
    return f"{type(error).__name__}: {errors.one_line(error)} ({logs.place(error)})"


async def _in_daemon_thread(call: Callable[[], T]) -> T:
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
