"""The state of a listener, and every change that it can undergo, as functions of the state alone.

A change that is applied once more finds that it is done and changes nothing. So it may be repeated when a writer was
killed, or does not know whether its write arrived.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from pipelines.events.scope import Scope
from thyroid.errors import InputError
from thyroid.records.record import Record

MOST_OBJECTS = 10_000
"""Objects of a batch that are remembered by name. Further ones are only counted."""
MOST_SEEN = 20_000
"""Objects that earlier runs have covered and that are remembered."""


@dataclass(frozen=True)
class Arrival:
    """What an event says.

    Attributes:
        address: Address of an object or a file that was written.
        generation: Its generation, or the ETag of S3; empty if the event does not say.
    """

    address: str
    generation: str = ""


class Batch(Record):
    """Objects that have arrived since the last batch."""

    scans: dict[str, str] = Field(default_factory=dict)
    """For each scan that has arrived, its address and the generation of its last event."""
    tables: dict[str, str] = Field(default_factory=dict)
    """The same for the CSV files."""
    more: int = 0
    """Events of objects that are beyond the limit and only counted."""
    first: float = 0.0
    """When the first event arrived, in seconds since 1970."""
    last: float = 0.0
    """When the last event arrived, in seconds since 1970."""

    @property
    def objects(self) -> dict[str, str]:
        """The scans and the tables."""
        return {**self.scans, **self.tables}


class Run(Record):
    """A run on Kubeflow that belongs to a batch."""

    name: str
    """Its name, which no other run has."""
    scans: int
    """Number of scans that have arrived for it."""
    attempted: float = 0.0
    """When the last attempt to create it began, in seconds since 1970; 0 if there was none."""
    id: str = ""
    """Its id on the host; empty until the host has confirmed it."""


class State(Record):
    """Everything that a listener must not forget."""

    batch: Batch = Batch()
    """The batch that is growing."""
    sealed: Batch | None = None
    """A batch that is ready and whose objects are being checked; null if there is none."""
    run: Run | None = None
    """The run that is to be created or that is unfinished; null if there is none."""
    seen: dict[str, str] = Field(default_factory=dict)
    """Objects that a run has covered, the oldest first: digests of the address, and of the generation that it found."""


@dataclass(frozen=True)
class Patience:
    """When a batch is ready.

    Attributes:
        quiet: Minutes without an event after which a batch is ready.
        minimum: Scans at which a batch is ready at once.
        longest: Hours after its first event at which a batch is ready in any case.
    """

    quiet: float = 15.0
    minimum: int = 100
    longest: float = 24.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name, value in (("quiet", self.quiet), ("minimum", self.minimum), ("longest", self.longest)):
            if not 0 < value < math.inf:
                raise InputError(f"--{name} {value}: give a number above 0")


def digest(text: str) -> str:
    """Return 14 hexadecimal digits that stand for an address or a generation."""
    return hashlib.sha256(text.encode()).hexdigest()[:14]


def news(state: State, arrivals: Sequence[Arrival]) -> list[Arrival]:
    """Return the events that say something new.

    Known are the objects of the growing batch and those that a run has covered, each with its generation.

    Args:
        state: The state.
        arrivals: The events, in the order in which they came.
    """
    known = state.batch.objects
    found = []
    for one in arrivals:
        if known.get(one.address) == one.generation or is_covered(state, one.address, one.generation):
            continue
        known[one.address] = one.generation
        found.append(one)
    return found


def is_covered(state: State, address: str, generation: str) -> bool:
    """Return whether the last run that covered an object found it in this generation."""
    return state.seen.get(digest(address)) == digest(generation)


def add(state: State, arrivals: Sequence[Arrival], scope: Scope, now: float) -> State:
    """Return the state after events. One that says nothing new changes nothing.

    Args:
        state: The state before.
        arrivals: The events, in the order in which they came.
        scope: Which objects count; all of `arrivals` do.
        now: The present time, in seconds since 1970.
    """
    fresh = news(state, arrivals)
    if not fresh:
        return state
    scans, tables, more = dict(state.batch.scans), dict(state.batch.tables), state.batch.more
    for one in fresh:
        known = tables if scope.is_table(one.address) else scans
        if one.address in known or len(scans) + len(tables) < MOST_OBJECTS:
            known[one.address] = one.generation
        else:
            more += 1
    batch = Batch(scans=scans, tables=tables, more=more, first=state.batch.first or now, last=now)
    return state.model_copy(update={"batch": batch})


def is_ready(state: State, patience: Patience, now: float) -> bool:
    """Return whether the growing batch is to be checked and started.

    It waits while the run of an earlier batch is unfinished.
    """
    batch = state.batch
    if state.run is not None or state.sealed is not None or not batch.last:
        return False
    if len(batch.scans) + batch.more >= patience.minimum:
        return True
    # a clock that was set back must not make a batch wait for longer
    return abs(now - batch.last) >= patience.quiet * 60 or abs(now - batch.first) >= patience.longest * 3600


def seal(state: State, patience: Patience, now: float) -> State:
    """Return the state in which the growing batch is sealed, if it is ready, and an empty one grows."""
    if not is_ready(state, patience, now):
        return state
    return state.model_copy(update={"sealed": state.batch, "batch": Batch()})


def drop(state: State, checked: Batch) -> State:
    """Return the state without a sealed batch that nothing is left of."""
    return state.model_copy(update={"sealed": None}) if state.sealed == checked else state


def intend(state: State, checked: Batch, run: Run, present: Mapping[str, str]) -> State:
    """Return the state in which a sealed batch has become a run that is to be created.

    Args:
        state: The state before.
        checked: The sealed batch.
        run: The run.
        present: Address and generation of each of its objects that still exists.
    """
    if state.sealed != checked or state.run is not None:
        return state
    now = {digest(address): digest(generation) for address, generation in present.items()}
    seen = {one: state.seen[one] for one in state.seen if one not in now} | now
    seen = dict(list(seen.items())[-MOST_SEEN:])
    return state.model_copy(update={"sealed": None, "run": run, "seen": seen})


def attempt(state: State, name: str, now: float) -> State:
    """Return the state that says that the host is being asked to create the run of this name."""
    return _with_run(state, name, attempted=now)


def confirm(state: State, name: str, id: str) -> State:
    """Return the state that says by which id the host knows the run of this name."""
    return _with_run(state, name, id=id)


def end(state: State, name: str) -> State:
    """Return the state in which the run of this name is finished."""
    return state.model_copy(update={"run": None}) if state.run is not None and state.run.name == name else state


def _with_run(state: State, name: str, **fields: str | float) -> State:
    if state.run is None or state.run.name != name:
        return state
    return state.model_copy(update={"run": state.run.model_copy(update=fields)})
