"""The frames that readers are shown: those that `ingest` would use, with what is known about each of them."""

import builtins
import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from thyroid import errors, progress, storage
from thyroid.data import pseudonyms
from thyroid.data.classes import BINARY, Classes
from thyroid.errors import InputError
from thyroid.imaging import images
from thyroid.ingest import examine, listing
from thyroid.ingest import labels as label_table
from thyroid.ingest.listing import ListedFile

_HEADER = 1 << 16
"""Bytes of a JPEG from which its size is read; the whole file is read if they are too few."""
_PICTURES = (".jpg", ".jpeg", ".png", ".dcm", ".dicom")
_ID_DIGITS = 16


class GoneError(InputError):
    """A frame whose file vanished, changed or is damaged. The others can still be read.

    The message contains the path of the frame, so it must not be in a log.
    """


@dataclass(frozen=True)
class Frame:
    """One frame.

    Attributes:
        path: Path below the folder of scans, followed by # and the frame's number for a DICOM file. It may contain a
            patient's number or name, so it must not be in any log or address.
        id: First 16 hexadecimal digits of the SHA-256 of the path, for logs and addresses.
        width: Width in pixels, upright.
        height: Height in pixels, upright.
        patient: Number of the patient; None if neither the file name nor the table of labels gives one.
        label: Class of the frame; "" if it is unknown.
        group: What belongs together: the same text for all frames of a patient. A frame without a patient is a group of
            its own.
        number: Number of the frame in its DICOM file, from 1; None for a JPEG.
        pseudonym: Name that `ingest` gives the frame of a DICOM file; "" for a JPEG.
    """

    path: str
    id: str
    width: int
    height: int
    patient: int | None
    label: str
    group: str
    number: int | None = None
    pseudonym: str = ""

    @property
    def file(self) -> str:
        """Path of the file below the folder of scans."""
        return self.path if self.number is None else self.path.rpartition("#")[0]

    @property
    def short(self) -> str:
        """Last part of the name in the tables of `ingest`, by which clinical.csv names a scan."""
        return (self.pseudonym or self.path).rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Catalogue:
    """All frames of a folder or bucket of scans.

    Attributes:
        scans: Location of the scans.
        frames: The frames in the order of their paths.
        left_out: Path and reason of every picture that cannot be shown. `ingest` would quarantine these, too. As the
            paths of frames, these may contain a patient's number or name.
        classes: The classes.
    """

    scans: storage.Location
    frames: tuple[Frame, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    classes: Classes = BINARY
    _files: dict[str, ListedFile] = field(default_factory=dict, repr=False)
    _by_id: dict[str, Frame] = field(default_factory=dict, repr=False)

    @classmethod
    def read(
        cls,
        scans: storage.Location,
        classes: Classes,
        labels: storage.Location | None = None,
        exclude: Sequence[storage.Location] = (),
    ) -> "Catalogue":
        """List the frames. Of a DICOM file these are the frames that dicom.csv names.

        Args:
            scans: Folder or gs:// prefix, searched recursively.
            classes: The classes. A label that is none of them is unknown.
            labels: CSV with filename and label, and optionally patient, as `ingest` reads it; it takes precedence
                over file names and dicom.csv.
            exclude: Files and folders within the scans to leave out, such as the one with the results.

        Raises:
            InputError: There is no such folder or no frame in it, a table cannot be read, or there are DICOM files and
                no key in the environment.
        """
        table = label_table.read(labels, classes) if labels else {}
        own = (storage.parted(labels)[0],) if labels else ()
        place = storage.at(scans)
        listed = [file.with_label(table) for file in listing.list_scans(scans, "normal", (*exclude, *own), classes)]
        frames: dict[str, Frame] = {}
        files: dict[str, ListedFile] = {}
        left_out = []
        for file, found in _examined(place, listed, classes):
            if isinstance(found, Frame):
                if frames.setdefault(found.path, found) is found:
                    files[found.path] = file
            elif file.row is not None or file.relative.lower().endswith(_PICTURES):
                left_out.append((os.fsencode(file.relative).decode("utf-8", "backslashreplace"), found))
        if not frames:
            why = f"; of the first of {len(left_out)} pictures: {left_out[0][1]}" if left_out else ""
            raise InputError(f"{scans}: no frame can be shown{why}")
        ordered = tuple(frames[path] for path in sorted(frames))
        return cls(scans, ordered, tuple(left_out), classes, files, {frame.id: frame for frame in ordered})

    def of(self, id: str) -> Frame | None:
        """Return the frame with this id; None if there is none."""
        return self._by_id.get(id)

    def by_path(self, path: str) -> Frame | None:
        """Return the frame with this path; None if there is none."""
        return self._by_id.get(frame_id(path))

    def bytes(self, frame: Frame) -> builtins.bytes:
        """Return the picture of a frame as JPEG, or as PNG without the patient for a DICOM file.

        It is read and decoded completely, so that nobody marks a damaged picture or another one of the same name.

        Raises:
            GoneError: The file vanished, is damaged, or has another size than when it was listed.
            InputError: The bucket cannot be read.
        """
        file = self._files[frame.path]
        try:
            data = _read(storage.at(self.scans), file)
            if frame.number is None:
                pixels = images.decode(data)
            else:
                from thyroid.imaging import dicom  # imported late: most scans are JPEGs

                pixels = dicom.read(data, frame.number).pixels
                data = dicom.png(pixels)
        except (OSError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or errors.one_line(error)
            raise GoneError(f"{frame.path}: {reason}; restore the file or go on with the next frame") from None
        if pixels.shape[:2] != (frame.height, frame.width):
            raise GoneError(f"{frame.path}: the file was replaced by a picture of another size; start the bench again")
        return data


def frame_id(path: str) -> str:
    """Return the id of the frame with this path."""
    return hashlib.sha256(path.encode("utf-8", "surrogatepass")).hexdigest()[:_ID_DIGITS]


def _examined(
    place: storage.Folder | storage.Bucket, files: Sequence[ListedFile], classes: Classes
) -> Iterator[tuple[ListedFile, Frame | str]]:
    """Yield every file with its frame, or with the reason why it cannot be shown."""

    def look(file: ListedFile) -> tuple[ListedFile, Frame | str]:
        try:
            return file, _frame(place, file, classes)
        except ValueError as error:
            return file, errors.one_line(error)
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symbolic links
            return file, (error.strerror if isinstance(error, OSError) else None) or "cannot be read"

    objects = [file for file in files if file.entry is not None and file.row is None]
    others = [file for file in files if file.entry is None or file.row is not None]  # a DICOM file may be large
    with ThreadPoolExecutor(storage.client.WORKERS) as pool:
        found = itertools.chain(pool.map(look, objects), map(look, others))
        yield from progress.bar(found, len(files), "frames", "file")


def _frame(place: storage.Folder | storage.Bucket, file: ListedFile, classes: Classes) -> Frame:
    """Return the frame of a file.

    Raises:
        ValueError: `ingest` could not use the file.
        OSError: The file cannot be read.
    """
    try:
        file.relative.encode()
    except UnicodeEncodeError:
        raise ValueError("name is not UTF-8; rename the file or its folder") from None
    given = "" if file.label is None else file.label.name or ""
    if file.row is not None:
        return _dicom_frame(place, file, given)
    if not file.relative.lower().endswith((".jpg", ".jpeg")):
        raise ValueError("not a .jpg file")
    try:
        name = file.name()
        patient, label = name.patient, classes.read(name.label) or ""
    except ValueError:
        patient, label = None, ""
    width, height = _size(place, file)
    group = file.relative if patient is None else f"patient-{patient}"
    return Frame(file.relative, frame_id(file.relative), width, height, patient, given or label, group)


def _dicom_frame(place: storage.Folder | storage.Bucket, file: ListedFile, given: str) -> Frame:
    from thyroid.imaging import dicom

    assert file.row is not None
    if file.row.reason is not None:
        raise ValueError(file.row.reason)
    picture = dicom.read(_read(place, file), file.row.frame)
    patient = file.row.patient or picture.patient
    number = pseudonyms.patient_number(pseudonyms.required_key(), patient) if patient else None
    path = f"{file.relative}#{picture.frame}"
    height, width = picture.pixels.shape[:2]
    frame = Frame(
        path, frame_id(path), width, height, number, given or file.row.label, path, picture.frame, file.row.name
    )
    return frame if number is None else replace(frame, group=f"patient-{number}")


def _size(place: storage.Folder | storage.Bucket, file: ListedFile) -> tuple[int, int]:
    """Return width and height of a JPEG, from its header where that is enough."""
    if file.local is not None:
        examine.check_file(Path(file.local), file)
        with Path(file.local).open("rb") as opened:
            header = opened.read(_HEADER)
        try:
            return images.size(header)
        except images.SizeError:
            raise
        except ValueError:  # a long header: metadata before the size
            pass
    return images.size(_read(place, file))


def _read(place: storage.Folder | storage.Bucket, file: ListedFile) -> bytes:
    """Return a file's bytes as they are now.

    Raises:
        ValueError: It is empty, too large, or not a regular file within the folder of scans.
        OSError: It vanished or cannot be read.
    """
    reader, limit = images.read, images.MAX_BYTES
    if file.row is not None:
        from thyroid.imaging import dicom

        reader, limit = dicom.read_file, dicom.MAX_BYTES
    if file.local is not None:
        examine.check_file(Path(file.local), file)
        return reader(file.local)
    if file.entry is not None and file.entry.size > limit:
        raise ValueError(f"file of {file.entry.size:,} bytes is larger than the limit of {limit:,}")
    data, generation = place.read(file.relative)
    if generation == storage.ABSENT:
        raise FileNotFoundError("the file does not exist any more")
    if not data:
        raise ValueError("empty file (0 bytes)")
    return data
