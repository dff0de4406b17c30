"""The commands that bring readings of other programs into a labelling, and write them for other programs.

python -m thyroid.exchange {coco-import,coco-export,ddti-import} ... --scans DIR
"""

import csv
import io
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from thyroid import RESEARCH_USE_ONLY, atomic, command, storage
from thyroid.command import AT_LEAST_ONE, FLAT
from thyroid.data import classes
from thyroid.errors import InputError
from thyroid.ingest.regions import ROI_COLUMNS
from thyroid.label.consensus import Consensus, Rules
from thyroid.label.exchange import coco, ddti_xml
from thyroid.label.exchange.imported import Imported
from thyroid.label.frames import Catalogue
from thyroid.label.journal import OUTSIDE, Journal, StaleError
from thyroid.label.readings import Reading, Role
from thyroid.label.tables import Tables
from thyroid.storage import ABSENT, ChangedError, Location

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImportOptions:
    """Which frames a file is about, and where its readings go. An empty text means "none".

    Attributes:
        scans: Folder, gs:// or s3:// prefix of the scans.
        labelled: Folder, gs:// or s3:// prefix of a labelling, into whose journal and tables the readings go. They
            count until somebody reads the frame in the bench.
        rois: CSV to write the boxes to instead, such as rois.csv. It must not exist yet.
        labels: CSV with filename and label, and optionally patient, as ingest reads it.
        classes: Classes in order, such as B|M, of which a file may name one for each frame.
        reader: Name under which the journal keeps the readings.
        skip: Leave out what cannot be used. Without it, nothing is imported if anything cannot be used.

    Raises:
        InputError: Not exactly one of `labelled` and `rois` is given, or the name of the reader is reserved.
    """

    scans: Location
    labelled: Location = ""
    rois: Location = ""
    labels: Location = ""
    classes: str = classes.DEFAULT
    reader: str = "import"
    skip: bool = False

    def __post_init__(self) -> None:
        """Check that there is one place to write to."""
        if bool(self.labelled) == bool(self.rois):
            raise InputError("give --labelled, the folder of a labelling, or --rois, a CSV file to write")
        if not self.reader.strip() or self.reader == OUTSIDE:
            raise InputError(f"reader {self.reader!r}: give another name; {OUTSIDE} is reserved for edits by hand")

    def catalogue(self) -> Catalogue:
        """Read the frames."""
        return _catalogue(self.scans, self.labelled, self.labels, self.classes)


def import_coco(
    file: Path,
    /,
    *,
    options: Annotated[ImportOptions, FLAT],
    category: Annotated[list[str] | None, AT_LEAST_ONE] = None,
) -> None:
    """Import the boxes of a COCO file.

    Args:
        file: The COCO file.
        options: Where they go.
        category: Names of the categories that are nodules; if not given, nodule.
    """
    catalogue = options.catalogue()
    found = coco.read(file, catalogue.frames, classes.parse(options.classes), category or (coco.CATEGORY,))
    _keep(found, file, catalogue, options)


def import_ddti(folder: Path, /, *, options: Annotated[ImportOptions, FLAT]) -> None:
    """Import the contours of the XML files of the public DDTI as boxes.

    Args:
        folder: Folder with the XML files.
        options: Where they go.
    """
    catalogue = options.catalogue()
    _keep(ddti_xml.read(folder, catalogue.frames, classes.parse(options.classes)), folder, catalogue, options)


def export_coco(
    output: Path,
    /,
    *,
    scans: Location,
    labelled: Location,
    labels: Location = "",
    spec: Annotated[str, Parameter(name="--classes")] = classes.DEFAULT,
) -> None:
    """Write the readings of a labelling as a COCO file. Frames that readers contradict each other on are left out.

    Args:
        output: The COCO file.
        scans: Folder, gs:// or s3:// prefix of the scans.
        labelled: Folder, gs:// or s3:// prefix of the labelling.
        labels: CSV with filename and label, and optionally patient, as ingest reads it.
        spec: Classes in order, such as B|M.
    """
    catalogue, journal = _catalogue(scans, labelled, labels, spec), Journal(labelled)
    readings: dict[str, Reading] = {}
    for frame in catalogue.frames:
        agreed = Consensus.of(frame, journal.readings(frame.path), Rules()).reading
        if agreed is not None:
            readings[frame.path] = agreed
    content = coco.content(readings, catalogue.frames)
    output.parent.mkdir(parents=True, exist_ok=True)
    # in ASCII, since the name of a file need not be UTF-8
    atomic.write_bytes(output, json.dumps(content, indent=1).encode())
    log.info(f"{output}: {len(content['images'])} frames, {len(content['annotations'])} boxes")
    log.info(RESEARCH_USE_ONLY)


def _catalogue(scans: Location, labelled: Location, labels: Location, spec: str) -> Catalogue:
    result = Catalogue.read(scans, classes.parse(spec), labels or None, (labelled,) if labelled else ())
    result.measure(result.paths)
    result.keep_sizes()
    return result


def _keep(found: Imported, source: Path, catalogue: Catalogue, options: ImportOptions) -> None:
    """Write what was found to where the options say.

    Raises:
        InputError: Something cannot be used and nothing is to be skipped, or nothing can be used.
    """
    if not options.skip or not found.readings:
        found.require_all(source)
    if not found.readings:
        raise InputError(f"{source}: says nothing about a frame of {options.scans}; check both")
    for note in found.notes:
        log.info(note)
    if options.rois:
        _write_rois(found.readings, catalogue, options.rois)
        kept = len(found.readings)
    else:
        kept = _add(found.readings, options)
        for note in Tables(options.labelled, catalogue, Journal(options.labelled), Rules()).write():
            log.info(note)
    boxes = sum(len(reading.regions) for reading in found.readings.values())
    log.info(f"{options.rois or options.labelled}: {kept} frames are new or changed, of {len(found.readings)}")
    left_out = f"; {len(found.problems)} places were left out" if found.problems else ""  # they name scans
    log.info(f"{source}: {boxes} boxes{left_out}")
    log.info(RESEARCH_USE_ONLY)


def _add(readings: Mapping[str, Reading], options: ImportOptions) -> int:
    """Add readings to the journal that are not there yet, and return their number.

    Raises:
        InputError: The reader's name is that of a person, or somebody else imports under it at the same time.
    """
    journal, reader = Journal(options.labelled), options.reader.strip()
    if any(entry.reader == reader and entry.role is not Role.IMPORT for entry in journal.entries):
        raise InputError(f"reader {reader!r}: has readings of an own; give the import another name with --reader")
    added = 0
    for path, reading in readings.items():
        current = journal.current(path, reader)
        if journal.is_erased(path) or (current is not None and current.reading == reading):
            continue
        base = 0 if current is None else current.number
        try:
            journal.add(reader=reader, role=Role.IMPORT, frame=path, reading=reading, base=base)
        except StaleError:
            raise InputError(
                f"reader {reader!r}: another import under this name is running; start again when it has ended"
            ) from None
        added += 1
    return added


def _write_rois(readings: Mapping[str, Reading], catalogue: Catalogue, location: Location) -> None:
    """Write a new rois.csv.

    Raises:
        InputError: It exists already.
    """
    frames = [frame for frame in catalogue.frames if frame.path in readings]
    numbered = any(frame.number is not None for frame in frames)
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow([*ROI_COLUMNS, "frame"] if numbered else ROI_COLUMNS)
    for frame in frames:
        for region in readings[frame.path].regions:
            number = ["" if frame.number is None else frame.number] if numbered else []
            rows.writerow([frame.file, *region.box, *number])
    place = Path(location) if not storage.is_bucket(location) else None
    parent, name = (place.parent, place.name) if place else str(location).rsplit("/", 1)
    try:
        storage.at(parent).write(name, text.getvalue().encode("utf-8", "surrogateescape"), ABSENT)
    except ChangedError:
        raise InputError(f"{location}: exists already; remove it or give another name") from None


COMMANDS: dict[str, Callable[..., None]] = {
    "coco-import": import_coco,
    "coco-export": export_coco,
    "ddti-import": import_ddti,
}
main = command.main("python -m thyroid.exchange", COMMANDS, __doc__)
