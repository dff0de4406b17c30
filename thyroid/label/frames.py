"""The frames that readers are shown: those that `ingest` would use, with what is known about each of them."""

import builtins
import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from thyroid import progress, storage
from thyroid.data import pseudonyms
from thyroid.data.classes import BINARY, Classes
from thyroid.errors import InputError
from thyroid.imaging import images
from thyroid.ingest import labels as label_table
from thyroid.ingest import listing
from thyroid.ingest.listing import ListedFile
from thyroid.label import pictures
from thyroid.label.pictures import PictureError, Place, Sizes

_PICTURES = (".jpg", ".jpeg", ".png", ".dcm", ".dicom")
_ID_DIGITS = 16


class GoneError(InputError):
    """A frame whose file vanished, changed or is damaged. The others can still be read.

    The message contains the path of the frame, so it must not be in a log.
    """


class _Side:
    """A side of a frame in pixels. One that is given as a function is read when it is first asked for."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, frame: object | None, owner: type) -> int:
        if frame is None:
            raise AttributeError(self._name)  # so that the field has no default
        given: int | Callable[[], int] = vars(frame)[self._name]
        return given() if callable(given) else given

    def __set__(self, frame: object, side: int | Callable[[], int]) -> None:
        vars(frame)[self._name] = side


@dataclass(frozen=True)
class Frame:
    """One frame.

    Attributes:
        path: Path below the folder of scans, followed by # and the frame's number for a DICOM file. It may contain a
            patient's number or name, so it must not be in any log or address.
        id: First 16 hexadecimal digits of the SHA-256 of the path, for logs and addresses.
        width: Width in pixels, upright. That of an object in a bucket is read when it is first asked for. This raises a
            `GoneError` if the picture is damaged or vanished, and an `InputError` if the bucket cannot be read.
        height: Height in pixels, upright, as the width.
        patient: Number of the patient; None if neither the file name nor the table of labels gives one.
        label: Class of the frame; "" if it is unknown.
        group: What belongs together: the same text for all frames of a patient. A frame without a patient is a group of
            its own.
        number: Number of the frame in its DICOM file, from 1; None for a JPEG.
        pseudonym: Name that `ingest` gives the frame of a DICOM file; "" for a JPEG.
    """

    path: str
    id: str
    width: _Side = _Side()
    height: _Side = _Side()
    patient: int | None  # type: ignore[misc]  # the sides before have no default, which mypy does not see
    label: str  # type: ignore[misc]
    group: str  # type: ignore[misc]
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


_Found = tuple[ListedFile, Frame | str]
"""A file with its frame, or with the reason why it cannot be shown."""


@dataclass(frozen=True)
class _Content:
    """What a catalogue holds at one moment.

    Attributes:
        found: Every file that was listed.
        frames: The frames in the order of their paths.
        left_out: Path and reason of every picture that cannot be shown.
        files: The file of each frame, by the frame's path.
        by_path: The frames by their paths, in the same order.
        by_id: The frames by their ids.
    """

    found: Sequence[_Found] = ()
    frames: tuple[Frame, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    files: Mapping[str, ListedFile] = field(default_factory=dict)
    by_path: Mapping[str, Frame] = field(default_factory=dict)
    by_id: Mapping[str, Frame] = field(default_factory=dict)

    @classmethod
    def of(cls, found: Sequence[_Found], others: Iterable[Frame] = ()) -> "_Content":
        frames, files, left_out = {frame.path: frame for frame in others}, {}, []
        for file, one in found:
            if isinstance(one, Frame):
                if frames.setdefault(one.path, one) is one:
                    files[one.path] = file
            elif file.row is not None or file.relative.lower().endswith(_PICTURES):
                left_out.append((os.fsencode(file.relative).decode("utf-8", "backslashreplace"), one))
        return cls(found, (), tuple(left_out), files).showing([frames[path] for path in sorted(frames)])

    def showing(self, frames: Sequence[Frame]) -> "_Content":
        by_path = {frame.path: frame for frame in frames}
        files = {path: file for path, file in self.files.items() if path in by_path}
        by_id = {frame.id: frame for frame in frames}
        return replace(self, frames=tuple(frames), files=files, by_path=by_path, by_id=by_id)


class Catalogue:
    """All frames of a folder or bucket of scans. Its methods may be called from several threads.

    Args:
        scans: Location of the scans.
        frames: The frames.
        classes: The classes.
        labels: CSV of labels that `refresh` reads.
        exclude: Files and folders within the scans that `refresh` leaves out.
    """

    def __init__(
        self,
        scans: storage.Location,
        frames: Sequence[Frame],
        classes: Classes = BINARY,
        labels: storage.Location | None = None,
        exclude: Sequence[storage.Location] = (),
    ) -> None:
        """Keep the frames; the class documents the arguments."""
        self.scans, self.classes = scans, classes
        self._place, self._labels = storage.at(scans), labels
        self._exclude = (*exclude, *((storage.parted(labels)[0],) if labels else ()))
        self._sizes = Sizes(self._place)
        self._content, self._guard = _Content.of((), frames), threading.Lock()
        self._former: dict[str, Frame] = {}
        """Frames that were removed, by id."""
        self._is_erased: Callable[[str, int | None], bool] = lambda path, patient: False

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
            scans: Folder, gs:// or s3:// prefix, searched recursively.
            classes: The classes. A label that is none of them is unknown.
            labels: CSV with filename and label, and optionally patient and frame, as `ingest` reads it; it takes
                precedence over file names and dicom.csv.
            exclude: Files and folders within the scans to leave out, such as the one with the results.

        Raises:
            InputError: There is no such folder or no frame in it, a table cannot be read, or there are DICOM files and
                no key in the environment.
        """
        result = cls(scans, (), classes, labels, exclude)
        result.refresh()
        return result

    @property
    def frames(self) -> tuple[Frame, ...]:
        """The frames in the order of their paths; the same object for as long as none comes, goes or changes."""
        return self._content.frames

    @property
    def paths(self) -> Mapping[str, Frame]:
        """The frames by their paths, in the same order."""
        return self._content.by_path

    @property
    def left_out(self) -> tuple[tuple[str, str], ...]:
        """Path and reason of every picture that cannot be shown. `ingest` would quarantine these, too.

        As the paths of frames, these may contain a patient's number or name.
        """
        return self._content.left_out

    def of(self, id: str) -> Frame | None:
        """Return the frame with this id, also one that was removed since; None if there was none."""
        return self._content.by_id.get(id) or self._former.get(id)

    def by_path(self, path: str) -> Frame | None:
        """Return the frame with this path; None if there is none now."""
        return self._content.by_path.get(path)

    def refresh(self) -> set[str]:
        """Look which files were added, changed or removed, and return the paths of their frames.

        Only files that are new or have changed since the last look are read.

        Raises:
            InputError: As for `read`. All frames then stay as they were.
        """
        before = self._content
        known = {_key(pair[0]): pair for pair in before.found}
        table = label_table.read(self._labels, self.classes) if self._labels else {}
        scans = listing.list_scans(self.scans, "normal", self._exclude, self.classes)
        listed = [file.with_label(table) for file in scans]
        new = [file for file in listed if not _is_same(known.get(_key(file)), file)]
        look = (self._examined(file) for file in new)
        looked = look if before.found else progress.bar(look, len(new), "frames", "file")
        known |= {_key(pair[0]): pair for pair in looked}
        after = _Content.of([known[_key(file)] for file in listed])
        if not after.frames:
            left_out = after.left_out
            why = f"; of the first of {len(left_out)} pictures: {left_out[0][1]}" if left_out else ""
            raise InputError(f"{self.scans}: no frame can be shown{why}")
        self._change(after)
        self.keep_sizes()
        paths = before.files.keys() | after.files.keys()
        return {path for path in paths if before.files.get(path) is not after.files.get(path)}

    def measure(self, paths: Iterable[str]) -> None:
        """Read the sizes of frames at once, as far as they are unknown. Those that cannot be used are left out then.

        Args:
            paths: Paths of the frames; those of others are ignored.

        Raises:
            InputError: The bucket cannot be read.
        """
        files = self._content.files
        wanted = [files[path] for path in paths if path in files and _is_sized_later(files[path])]
        if failed := self._sizes.read(wanted):
            found = [(file, _failure(file, failed) or one) for file, one in self._content.found]
            self._change(_Content.of(found))

    def leave_out(self, is_erased: Callable[[str, int | None], bool]) -> None:
        """Let frames count as removed from now on; `is_erased` is called with a frame's path and patient."""
        self._is_erased = is_erased
        self._change(self._content)

    def keep_sizes(self) -> None:
        """Keep the sizes that were read in the user's cache, so that they are known after a restart."""
        self._sizes.keep([file for file, _ in self._content.found])

    def _change(self, after: _Content) -> None:
        with self._guard:
            before = self._content
            after = after.showing([one for one in after.frames if not self._is_erased(one.path, one.patient)])
            if [*map(id, before.frames)] == [*map(id, after.frames)]:
                after = replace(after, frames=before.frames)
            self._former |= {frame.id: frame for frame in before.frames if frame.path not in after.by_path}
            self._content = after

    def bytes(self, frame: Frame) -> builtins.bytes:
        """Return the picture of a frame as JPEG, or as PNG without the patient for a DICOM file.

        It is read and decoded completely, so that nobody marks a damaged picture or another one of the same name.

        Raises:
            GoneError: The file vanished, is damaged, or has another size than when it was listed.
            InputError: The bucket cannot be read.
        """
        file = self._content.files.get(frame.path)
        if file is None:
            raise GoneError(f"{frame.path}: is not among the scans any more; go on with the next frame")
        try:
            data = pictures.read(self._place, file)
            if frame.number is None:
                pixels = images.decode(data)
            else:
                from thyroid.imaging import dicom  # imported late: most scans are JPEGs

                pixels = dicom.read(data, frame.number).pixels
                data = dicom.png(pixels)
        except (OSError, ValueError) as error:
            raise _gone(frame.path, pictures.reason(error)) from None
        height, width = pixels.shape[:2]
        if _is_sized_later(file):
            self._sizes.learn(file, (width, height))
        if (width, height) != (frame.width, frame.height):
            raise GoneError(f"{frame.path}: the file was replaced by a picture of another size; load the frame again")
        return data

    def _examined(self, file: ListedFile) -> _Found:
        """Return a file with its frame, or with the reason why it cannot be shown."""
        try:
            return file, _frame(self._place, file, self.classes, self._sizes)
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a loop of symbolic links
            return file, "cannot be read" if isinstance(error, RuntimeError) else pictures.reason(error)


def frame_id(path: str) -> str:
    """Return the id of the frame with this path."""
    return hashlib.sha256(path.encode("utf-8", "surrogatepass")).hexdigest()[:_ID_DIGITS]


def _gone(path: str, reason: str) -> GoneError:
    return GoneError(f"{path}: {reason}; restore the file or go on with the next frame")


def _key(file: ListedFile) -> tuple[str, str]:
    """Return what tells a file, or a frame of a DICOM file, from all others."""
    return file.relative, "" if file.row is None else file.row.name


def _is_same(known: _Found | None, file: ListedFile) -> bool:
    """Return whether a file that was looked at is certainly as it was then."""
    if known is None or file.generation is None:
        return False
    return (known[0].generation, known[0].label) == (file.generation, file.label)


def _is_sized_later(file: ListedFile) -> bool:
    """Return whether the size of a file is read when it is first needed."""
    return file.entry is not None and file.row is None


def _failure(file: ListedFile, failed: Mapping[str, str]) -> str | None:
    return failed.get(file.relative) if _is_sized_later(file) else None


def _frame(place: Place, file: ListedFile, classes: Classes, sizes: Sizes) -> Frame:
    """Return the frame of a file.

    Raises:
        ValueError: `ingest` could not use the file.
        OSError: The file cannot be read.
    """
    try:
        file.relative.encode()
    except UnicodeEncodeError:
        raise ValueError("name is not UTF-8; rename the file or its folder") from None
    if file.row is not None:
        return _dicom_frame(place, file)
    if not file.relative.lower().endswith((".jpg", ".jpeg")):
        raise ValueError("not a .jpg file")
    try:
        name = file.name()
        patient, label = name.patient, classes.read(name.label) or ""
    except ValueError:
        patient, label = None, ""
    path = file.relative
    label = (file.label.name if file.label is not None else None) or label
    group = path if patient is None else f"patient-{patient}"
    if file.entry is None:
        return Frame(path, frame_id(path), *pictures.size(place, file), patient, label, group)
    pictures.check_object(file)

    def side(number: int) -> int:
        try:
            return sizes.of(file)[number]
        except PictureError as error:
            raise _gone(path, str(error)) from None

    return Frame(path, frame_id(path), lambda: side(0), lambda: side(1), patient, label, group)


def _dicom_frame(place: Place, file: ListedFile) -> Frame:
    from thyroid.imaging import dicom

    assert file.row is not None
    if file.row.reason is not None:
        raise ValueError(file.row.reason)
    picture = dicom.read(pictures.read(place, file), file.row.frame)
    patient = file.row.patient or picture.patient
    number = pseudonyms.patient_number(pseudonyms.required_key(), patient) if patient else None
    path = f"{file.relative}#{picture.frame}"
    given = None if file.label is None else file.label.of_frame(str(picture.frame)).name
    height, width = picture.pixels.shape[:2]
    frame = Frame(
        path, frame_id(path), width, height, number, given or file.row.label, path, picture.frame, file.row.name
    )
    return frame if number is None else replace(frame, group=f"patient-{number}")
