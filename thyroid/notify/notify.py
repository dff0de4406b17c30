"""Tell each event once to each receiver. Nothing that goes wrong here ends the work that is told about."""

import datetime
import hashlib
import json
import logging
import os
import random
import subprocess
import sys
import time
import uuid
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from thyroid import RESEARCH_USE_ONLY, atomic, storage
from thyroid.errors import InputError
from thyroid.notify.notification import Notification, Told, ToldRecord
from thyroid.notify.receivers import RUN, Receiver, configured, run_page
from thyroid.notify.words import News
from thyroid.storage import ChangedError, Location

log = logging.getLogger(__name__)

FILE = "told.json"
"""File below the place that is told about, with what has been told."""
MOST = 500
"""Topics and receivers that the file remembers."""
DEADLINE = 10
"""Seconds after which sending ends, whether or not all receivers have answered."""
LONGEST = 600
"""Characters of a sentence."""

_POST = Path(__file__).with_name("post.py")
_START = 5  # seconds in which a busy machine starts the process
_WRITES = 20
_PAUSE = 0.2  # maximum seconds before the file is written again because another process was faster


def present_run() -> str:
    """Return the id of the run that this process is a step of; a new one if that is not known."""
    return os.environ.get(RUN) or uuid.uuid4().hex


def tell(news: News, place: Location) -> None:
    """Tell the receivers that the environment names, unless they were told before.

    The link is that to the run's page in Kubeflow, if both are known, or else that of the news.

    It takes at most 15 seconds beside reading and writing the file of what was told, and raises nothing: each failure
    is one line in the log. If the process ends between a message and the note of it, the message is sent again with
    the same id. A receiver that could not be told is told the next time that the same news comes up.

    Args:
        news: What happened.
        place: Folder, gs:// or s3:// prefix in which the file `FILE` is kept, such as the root of a registry.
    """
    try:
        receivers, problems = configured(os.environ)
        for problem in problems:
            log.warning(f"notification: {problem}")
        if receivers:
            _tell(news, place, receivers)
    except Exception as error:  # a failure here must not fail the step, and its text may quote an address
        log.warning(f"notification of {news.event}: not possible ({type(error).__name__})")


def _tell(news: News, place: Location, receivers: Collection[Receiver]) -> None:
    book = _Book(place)
    known, now = book.read(), datetime.datetime.now(datetime.UTC)
    run = news.run or os.environ.get(RUN, "")
    due = {}
    for receiver in receivers:
        before = known.get((receiver.form, news.topic))
        if not news.is_news_after(None if before is None else before.state):
            continue
        parts = "\n".join((str(place), news.topic, news.state, "" if before is None else before.id))
        due[receiver] = Notification(
            id=f"msg_{hashlib.sha256(parts.encode()).hexdigest()[:32]}",
            event=news.event,
            time=now.isoformat(timespec="seconds"),
            sentence=news.sentence[:LONGEST],
            notice=RESEARCH_USE_ONLY,
            **_set(link=run_page(os.environ, run) or news.link, run=run, version=news.version),
        )
    if not due:
        return
    outcomes = send([receiver.request(message, int(now.timestamp())) for receiver, message in due.items()])
    log.log(
        logging.INFO if set(outcomes.values()) == {"delivered"} else logging.WARNING,
        f"notification of {news.event}: {', '.join(f'{name} {outcome}' for name, outcome in outcomes.items())}",
    )
    book.note(
        [
            Told(receiver=receiver.form, topic=news.topic, state=news.state, id=message.id, time=message.time)
            for receiver, message in due.items()
            if outcomes[receiver.form] == "delivered"
        ]
    )


def send(requests: list[dict[str, Any]]) -> dict[str, str]:
    """Send requests, and return what became of each: "delivered", or why it was not.

    Args:
        requests: Requests as `Receiver.request` makes them, with different names.
    """
    # The requests go through a pipe, since everybody on the machine can read a command line.
    command = [sys.executable, "-P", str(_POST), str(DEADLINE)]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(requests),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=DEADLINE + _START,
            check=False,
        )
        printed = done.stdout
    except subprocess.TimeoutExpired:
        printed = ""
    outcomes = dict(line.split(" ", 1) for line in printed.splitlines() if " " in line)
    return {request["name"]: outcomes.get(request["name"], "no answer in time") for request in requests}


def _set(**fields: Any) -> dict[str, Any]:
    """Return the fields that have a value."""
    return {name: value for name, value in fields.items() if value not in ("", None)}


class _Book:
    """The file of what was told. It is read and written as well as possible: without it, news is told twice.

    Args:
        place: Folder, gs:// or s3:// prefix of the file.
    """

    def __init__(self, place: Location) -> None:
        self._place = place

    def read(self) -> Mapping[tuple[str, str], Told]:
        """Return the newest entry of each receiver and topic; none if the file cannot be read."""
        try:
            told, _ = self._read()
        except (InputError, OSError) as error:
            log.warning(f"notification: {FILE} cannot be read ({type(error).__name__}); it may be told twice")
            return {}
        return {(entry.receiver, entry.topic): entry for entry in told}

    def note(self, entries: list[Told]) -> None:
        """Add entries in place of earlier ones of the same receivers and topics."""
        if not entries:
            return
        new = {(entry.receiver, entry.topic) for entry in entries}
        for _ in range(_WRITES):
            try:
                told, generation = self._read()
                kept = [entry for entry in told if (entry.receiver, entry.topic) not in new]
                record = ToldRecord(told=[*kept, *entries][-MOST:])
                storage.at(self._place).write(FILE, atomic.to_json(record.to_dict()).encode(), generation)
                return
            except ChangedError:
                time.sleep(random.uniform(0, _PAUSE))
            except (InputError, OSError) as error:
                log.warning(f"notification: {FILE} cannot be written ({type(error).__name__}); it may be told twice")
                return
        log.warning(f"notification: {FILE} cannot be written, since others write it; it may be told twice")

    def _read(self) -> tuple[list[Told], str]:
        """Return the entries and the file's generation. A damaged file counts as empty, and is replaced."""
        data, generation = storage.at(self._place).read(FILE)
        try:
            return (ToldRecord.parse(json.loads(data), FILE, "ignore").told if data else []), generation
        except (ValueError, RecursionError, InputError):
            return [], generation
