"""A small labelling: scans, journal and tables, and somebody who edits the tables by hand.

bench = Labelling.of(scans, folder)
bench.say(bench.paths[0], nodules((5, 6, 20, 30)))
bench.tables.write()
bench.edit("rois.csv", lambda rows: rows[:-1])
"""

import csv
import io
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import write_scan
from thyroid import storage
from thyroid.data.classes import BINARY, Classes
from thyroid.label.consensus import Rules, State
from thyroid.label.frames import Catalogue
from thyroid.label.journal import Journal
from thyroid.label.readings import Entry, MarkedRegion, Reading, Role, Verdict
from thyroid.label.tables import Tables

NOTHING, UNUSABLE = Reading(verdict=Verdict.NONE), Reading(verdict=Verdict.UNUSABLE)
Row = dict[str, str]


def nodules(*boxes: tuple[int, int, int, int], side: str = "", **features: str) -> Reading:
    """Return a reading with these boxes; the features are those of each of them."""
    return Reading(
        verdict=Verdict.NODULES,
        regions=tuple(MarkedRegion(x=x, y=y, width=w, height=h, features=features) for x, y, w, h in boxes),
        side=side,
    )


def write_scans(folder: Path) -> Path:
    """Write six frames of 96x80 pixels of three patients, and one without a patient."""
    for patient, label in ((1, "B"), (2, "M"), (3, "B")):
        for image in (1, 2):
            write_scan(folder / f"{label}_{patient:03d}-{image:04d}-1.0.jpg", patient * 10 + image)
    write_scan(folder / "more" / "unnamed.jpg", 99)
    return folder


def at_once(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Call a function in as many processes as there are arguments, which begin together; return the results."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__])  # imports take longer than the calls
    barrier = context.Barrier(len(arguments))
    with ProcessPoolExecutor(len(arguments), context, _begin, (barrier,)) as pool:
        return [future.result() for future in [pool.submit(function, *given) for given in arguments]]


def _begin(barrier: Any) -> None:
    """Wait for the other processes, and skip fsync as the fixture `unsynced` does: it takes 50 ms on some disks."""
    os.fsync = lambda descriptor: None
    barrier.wait(300)


@dataclass
class Labelling:
    """One server of a labelling.

    Attributes:
        place: Folder or gs:// prefix of the results.
        catalogue: The frames.
        journal: Its journal.
        tables: Its tables.
    """

    place: str
    catalogue: Catalogue
    journal: Journal
    tables: Tables

    @classmethod
    def of(
        cls, scans: storage.Location, place: storage.Location, rules: Rules | None = None, classes: Classes = BINARY
    ) -> "Labelling":
        catalogue, journal = Catalogue.read(scans, classes), Journal(place)
        return cls(str(place), catalogue, journal, Tables(place, catalogue, journal, rules or Rules()))

    @property
    def paths(self) -> list[str]:
        """Paths of the frames."""
        return [frame.path for frame in self.catalogue.frames]

    def say(self, path: str, reading: Reading | None, reader: str = "Ann", role: Role = Role.READER) -> Entry:
        """Add a reading on top of the reader's current one."""
        current = self.journal.current(path, reader)
        return self.journal.add(
            reader=reader, role=role, frame=path, reading=reading, base=0 if current is None else current.number
        )

    def state(self, path: str) -> tuple[State, Reading | None]:
        """Return the state of a frame and what goes into the tables."""
        self.journal.refresh()
        frame = self.catalogue.by_path(path)
        assert frame is not None
        found = self.tables.consensus(frame)
        return found.state, found.reading

    def content(self, name: str) -> bytes:
        return storage.at(self.place).read(name)[0]

    def rows(self, name: str) -> list[Row]:
        """Return the rows of a table as they are on the disk or in the bucket."""
        return list(csv.DictReader(io.StringIO(self.content(name).decode())))

    def put(self, name: str, content: str | bytes) -> None:
        """Write a file as somebody else does."""
        storage.at(self.place).write(name, content.encode() if isinstance(content, str) else content)

    def edit(self, name: str, change: Callable[[list[Row]], list[Row]]) -> None:
        """Edit a table by hand: `change` gets its rows and returns those to write."""
        header = self.content(name).decode().splitlines()[0].split(",")
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, header)
        writer.writeheader()
        writer.writerows(change(self.rows(name)))
        self.put(name, buffer.getvalue())

    def set(self, name: str, path: str, **cells: str) -> None:
        """Change cells in the first row of a frame by hand."""

        def change(rows: list[Row]) -> list[Row]:
            next(row for row in rows if row["filename"] == path).update(cells)
            return rows

        self.edit(name, change)

    def drop(self, name: str, path: str) -> None:
        """Remove all rows of a frame by hand."""
        self.edit(name, lambda rows: [row for row in rows if row["filename"] != path])
