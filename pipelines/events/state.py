"""The file that holds the state of the listeners, in a folder or a bucket.

Events that come at the same time are written together, since a bucket takes about one write a second of the same
object. Several listeners may share the file: a write fails if another one was faster, and is then made again on top of
what the other one has written. Only one of them, the leader, starts runs.
"""

import contextlib
import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

from pydantic_core import from_json

from pipelines.events.batch import State
from thyroid import locks, storage
from thyroid.errors import InputError
from thyroid.storage import lease
from thyroid.storage.location import ChangedError

log = logging.getLogger("thyroid.listen")

FILE = "listen.json"
LOCK = ".listen.lock"
PENDING = 256
"""Changes that may wait to be written. Further requests are refused until there is room."""
PAUSE = 1.0
"""Seconds between two writes of an object in a bucket (https://cloud.google.com/storage/quotas)."""
TRIES = 50
"""Writes that other listeners may be faster with, one after the other."""

Change = Callable[[State], State]


class BusyError(Exception):
    """Too many changes are waiting to be written."""


@dataclass(frozen=True)
class _Waiting:
    """A change that waits to be written."""

    change: Change
    fresh: bool
    future: "Future[State]"


class Store:
    """The state, which one thread of this process writes.

    Args:
        location: Folder, gs:// or s3:// prefix.

    Raises:
        InputError: The place cannot be read, does not keep preconditions, or holds a file that is no state.
    """

    def __init__(self, location: storage.Location) -> None:
        """Read the state and start the thread."""
        self._place = storage.at(location)
        if isinstance(self._place, storage.Bucket):
            self._place.require_preconditions()
        self._read()
        self._waiting: queue.Queue[_Waiting | None] = queue.Queue(PENDING)
        self._thread = threading.Thread(target=self._write_all, name="state", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """The place's address."""
        return self._place.address

    @property
    def state(self) -> State:
        """The state as this process knows it, which is on the disk or in the bucket."""
        return self._state

    def submit(self, change: Change, fresh: bool = False) -> "Future[State]":
        """Return the future state after a change. Its result is there once the change is durable.

        Args:
            change: The change. It may be called more than once.
            fresh: Whether the place is read first, where another listener may have written.

        The future raises `InputError` if the place cannot be written; nothing was changed then.

        Raises:
            BusyError: Too many changes are waiting.
        """
        future: Future[State] = Future()
        try:
            self._waiting.put_nowait(_Waiting(change, fresh, future))
        except queue.Full:
            raise BusyError from None
        return future

    def update(self, change: Change) -> State:
        """Apply a change to the state as it is now in the place, and wait until it is durable.

        Raises:
            InputError: The place cannot be read or written; nothing was changed.
            BusyError: Too many changes are waiting.
        """
        return self.submit(change, fresh=True).result()

    def close(self) -> None:
        """Write what is waiting, and stop the thread."""
        self._waiting.put(None)
        self._thread.join()

    @contextlib.contextmanager
    def leading(self) -> Iterator[Callable[[], None]]:
        """Be the leader within the block, after waiting until no other process is.

        Yields:
            A function that raises `InputError` if another process may have become the leader meanwhile.
        """

        def busy() -> None:
            log.info("another listener starts the runs; this one takes events")

        if isinstance(self._place, storage.Bucket):
            with lease.held(self._place, LOCK, busy) as held:
                yield held.require_held
        else:
            with locks.held(self._place.path / LOCK, busy):
                yield lambda: None

    def _read(self) -> None:
        data, generation = self._place.read(FILE)
        where = f"{self._place.address}/{FILE}"
        try:
            content = from_json(data) if data else {}
        except ValueError:
            raise InputError(f"{where}: not JSON; move it away to start without it") from None
        # only both together, or the next write would replace a file that cannot be read
        self._state, self._generation = State.parse(content, where, "ignore"), generation

    def _write_all(self) -> None:
        """Write groups of changes until the end is asked for."""
        is_over = False
        while not is_over:
            group = [self._waiting.get()]
            with contextlib.suppress(queue.Empty):
                while True:
                    group.append(self._waiting.get_nowait())
            is_over = None in group
            # a change whose sender has been given up is left out
            self._write_group([one for one in group if one and one.future.set_running_or_notify_cancel()])

    def _write_group(self, group: "list[_Waiting]") -> None:
        try:
            began = time.monotonic()
            is_fresh = any(one.fresh for one in group)
            if is_fresh:
                self._read()
            written = self._commit([one.change for one in group], is_fresh)
        except Exception as error:
            if not isinstance(error, InputError):
                log.error("the state was not written", extra={"fields": {"kind": type(error).__name__}})
            failure = error if isinstance(error, InputError) else InputError("the state cannot be written")
            for one in group:
                one.future.set_exception(failure)
            return
        for one in group:
            one.future.set_result(self._state)
        if written and isinstance(self._place, storage.Bucket):
            time.sleep(max(0.0, PAUSE - (time.monotonic() - began)))

    def _commit(self, changes: list[Change], is_fresh: bool) -> bool:
        """Apply changes and write the result; return whether anything had to be written.

        A write notices what another listener has changed. Where nothing has to be written, only reading does.
        """
        for _ in range(TRIES):
            state = self._state
            for change in changes:
                state = change(state)
            if state == self._state and is_fresh:
                return False
            if state == self._state:
                self._read()
                is_fresh = True
                continue
            try:
                self._place.write(FILE, state.model_dump_json().encode(), self._generation)
            except ChangedError:
                self._read()
                is_fresh = True
                time.sleep(random.uniform(0, 0.2))
                continue
            self._read()
            return True
        raise InputError(f"{self._place.address}/{FILE}: other listeners write it all the time; run fewer of them")
