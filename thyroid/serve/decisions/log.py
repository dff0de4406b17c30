"""The decision log: one line for every image that was answered, without pixels, file names and patient numbers."""

import logging
import re
import uuid
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thyroid import logs
from thyroid.data import pseudonyms
from thyroid.errors import InputError
from thyroid.records.watch import AUTO, FRAME, SHADOW_FOLDER, Decision, Shadowed
from thyroid.serve.answers import Scored
from thyroid.serve.decisions.events import SHADOW_TYPE, Events
from thyroid.serve.decisions.folder import Folder
from thyroid.serve.decisions.writer import Line, Sink, Writer
from thyroid.serve.options import ServeOptions

log = logging.getLogger("thyroid.serve")

REQUEST: ContextVar[str] = ContextVar("request", default="")
"""Id of the request that is being answered. The protocols set it."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DIGITS = 5
"""Decimals of the features, whose standard deviation in the training images is about 1."""


def begin(given: str) -> str:
    """Set and return the id of a request: the client's if it is short and plain, else a new one.

    Args:
        given: The client's header x-request-id; empty if it sent none.
    """
    found = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
    REQUEST.set(found)
    return found


class DecisionLog:
    """Writes decisions to a folder, to a URL or to both, from threads of its own.

    Args:
        sinks: Where the decisions go.
        secret: Key of the hashes that stand for images and patients.
        site: Name of the cohort within which the patients' numbers are known.
        features: Whether a decision holds the projected features of its image.
        shadow: Where the answers of a candidate behind the champion go.

    Attributes:
        features: As given. The model computes them only if they are wanted.
    """

    def __init__(
        self,
        sinks: Sequence[Sink],
        secret: bytes,
        site: str = "",
        features: bool = False,
        shadow: Sequence[Sink] = (),
    ) -> None:
        """Start a thread for every sink."""
        self.features = features
        self._secret, self._site = secret, site
        self._writers = [Writer(sink) for sink in sinks]
        self._shadow_writers = [Writer(sink) for sink in shadow]
        self._reported = False

    @classmethod
    def start(cls, options: ServeOptions) -> "DecisionLog | None":
        """Start the log that the options ask for; return None if they ask for none.

        Raises:
            InputError: There is no key or it is too short, the folder cannot be written, or the address is no URL.
        """
        sinks: list[Sink] = []
        if options.log is not None:
            sinks.append(Folder(options.log))
        if options.log_url:
            sinks.append(Events(options.log_url))
        if not sinks:
            if options.log_features or options.site:
                option = "--log-features" if options.log_features else "--site"
                raise InputError(f"{option}: there is no decision log; give --log FOLDER or --log-url URL as well")
            return None
        shadow: list[Sink] = []
        if options.shadow or options.shadow_dir is not None:
            if options.log is not None:
                shadow.append(Folder(options.log / SHADOW_FOLDER, "shadow-folder"))
            if options.log_url:
                shadow.append(Events(options.log_url, "shadow-url", SHADOW_TYPE))
        return cls(sinks, _key(options), options.site, options.log_features, shadow)

    def record(self, version: int, form: str, scored: Sequence[Scored]) -> list[Decision]:
        """Log the decisions of one request. This takes about 0.1 ms an image, never waits and never raises.

        Args:
            version: Version of the model in the registry.
            form: Form of the model that answered.
            scored: The images of the request with their answers.

        Returns:
            What was logged, in the order of the images; nothing after an error.
        """
        try:
            now = datetime.now(UTC)
            decisions = [self._decision(now, version, form, number, image) for number, image in enumerate(scored)]
            lines = [_line(now, decision) for decision in decisions]
        except Exception as error:
            self._fail(self._writers, len(scored), error)
            return []
        for writer in self._writers:
            writer.put(lines)
        return decisions

    def record_shadow(self, decision: Decision, answer: Mapping[str, Any]) -> None:
        """Log what a candidate makes of an image. As `record`, this never waits and never raises.

        Args:
            decision: The champion's decision, as it was logged.
            answer: The fields of `Shadowed` that are the candidate's own.
        """
        try:
            now = datetime.now(UTC)
            time = now.isoformat(timespec="milliseconds")
            line = _line(
                now, Shadowed(id=decision.id, time=time, image=decision.image, patient=decision.patient, **answer)
            )
        except Exception as error:
            self._fail(self._shadow_writers, 1, error)
            return
        for writer in self._shadow_writers:
            writer.put([line])

    def _fail(self, writers: Sequence[Writer], count: int, error: Exception) -> None:
        for writer in writers:
            writer.fail(count)
        if not self._reported:
            self._reported = True
            fields = {"kind": type(error).__name__, "where": logs.place(error)}
            log.error("decision not logged", extra={"fields": fields})

    def _decision(self, now: datetime, version: int, form: str, number: int, image: Scored) -> Decision:
        name, prepared = uuid.uuid4().hex, image.prepared
        patient = image.instance.patient or ""  # an empty name names nobody; V2 has no other way to leave one out
        source = prepared.done.get("source", FRAME)
        return Decision(
            id=name,
            request=REQUEST.get() or name,
            number=number,
            time=now.isoformat(timespec="milliseconds"),
            image=pseudonyms.of_file(self._secret, prepared.sha256),
            patient=pseudonyms.of_text(self._secret, self._site, patient) if patient.strip() else None,
            version=version,
            form=form,
            source=source,
            probability=image.decision["malignant"],
            decision=image.decision["decision"],
            reasons=image.decision.get("reasons", []),
            novelty=image.novelty,
            distance=image.distance,
            box_probability=prepared.done["probability"] if source == AUTO else None,
            width=prepared.size[0],
            height=prepared.size[1],
            box=prepared.done["box"],
            features=_rounded(image.features) if self.features and image.features is not None else None,
        )

    def close(self) -> None:
        """Write what waits, for at most `writer.CLOSE_SECONDS`; what is left then is lost. This blocks."""
        writers = [*self._writers, *self._shadow_writers]
        for writer in writers:
            writer.finish()
        for writer in writers:
            writer.close()


def _key(options: ServeOptions) -> bytes:
    """Return the key of the hashes: that of the environment, or else of the registry.

    Raises:
        InputError: There is neither, or it is too short.
    """
    if options.registry is not None:
        return pseudonyms.key(options.registry)
    if (given := pseudonyms.environment_key()) is not None:
        return given
    raise InputError(
        f"{pseudonyms.KEY_VARIABLE}: a decision log without a registry needs a secret of at least "
        f"{pseudonyms.MIN_KEY} characters in this environment variable; use the one of the registry's commands"
    )


def _line(now: datetime, record: Decision | Shadowed) -> Line:
    return Line(f"{now:%Y-%m-%d}", record.model_dump_json(exclude_none=True).encode())


def _rounded(features: NDArray[np.float32]) -> list[float]:
    rounded: list[float] = np.round(features.astype(np.float64), _DIGITS).tolist()
    return rounded
