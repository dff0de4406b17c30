"""The message that is sent by webhook, and the file that remembers what was told."""

from typing import Literal

from thyroid.records.record import Record

Event = Literal[
    "run.started",
    "run.succeeded",
    "run.unchanged",
    "run.failed",
    "run.cancelled",
    "gate.released",
    "gate.refused",
    "gate.waiting",
    "watch.drift",
    "watch.worse",
    "watch.steady",
    "watch.failed",
    "watch.complete",
    "deployment.taken_back",
    "deployment.served",
    "test",
]
"""What can happen; the part before the dot is what it happens to."""


class Notification(Record):
    """One message to a receiver, in the plain form."""

    id: str
    """Id of the event. A message that is sent again has the same id, so that a receiver can drop it."""
    event: Event
    """What happened."""
    time: str
    """When it was told, as an ISO time (UTC)."""
    sentence: str
    """What happened, for people, without names of files, addresses of scans and numbers of patients."""
    link: str | None = None
    """Page of the run in Kubeflow, or address of the report or the version; absent if there is none."""
    run: str | None = None
    """Id of the run; absent if the event belongs to no run."""
    version: int | None = None
    """Number of the version in the registry; absent if the event is about none."""
    notice: str
    """That it is for research use only."""


class Told(Record):
    """What was told last to one kind of receiver about one topic."""

    receiver: Literal["slack", "plain"]
    """Form of the receiver's messages."""
    topic: str
    """What it was about, such as a run, or the watch of a version."""
    state: str
    """The state of the topic that was told."""
    id: str
    """Id of the message."""
    time: str
    """When it was told, as an ISO time (UTC)."""


class ToldRecord(Record):
    """What has been told of a registry and its runs, oldest first."""

    told: list[Told]
    """The newest entry of each topic and receiver; the oldest topics are dropped."""
