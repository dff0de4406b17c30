"""List the files of a folder or bucket of scans, with what dicom.csv and labels.csv say about each of them."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from thyroid import storage
from thyroid.data import filenames, pseudonyms
from thyroid.data.classes import BINARY, Classes
from thyroid.errors import InputError
from thyroid.imaging import images
from thyroid.ingest import dicom_csv, labels
from thyroid.ingest.dicom_csv import Row
from thyroid.ingest.labels import Label

SETTLED_SECONDS = 2.0
"""A file written within this time may change again without a visible change of its times, so it is read again."""
_DICOM = (".dcm", ".dicom", "dicomdir")


class NoScanError(InputError):
    """A folder has no scan."""


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file as it was listed.

    Attributes:
        path: Name of the file in the tables. For the scan of a DICOM file it is a pseudonym.
        relative: Path below the folder of scans. For a DICOM file it must not appear in any output of `ingest`.
        root: Address of the folder of scans.
        domain: "normal" or "cropped".
        generation: Text that changes whenever the content changes; None if a change could go unnoticed.
        local: Where the bytes are; None for an object that has not been downloaded.
        entry: The object in a bucket; None for a local file.
        row: What dicom.csv says about the scan of a DICOM file; None for other files.
        label: What labels.csv says about the scan.
    """

    path: str
    relative: str
    root: str
    domain: str
    generation: str | None
    local: str | None
    entry: storage.Entry | None = None
    row: Row | None = None
    label: Label | None = None

    @property
    def copied(self) -> bool:
        """Whether later steps read a copy of it, which lies below the store or the output."""
        return self.entry is not None or self.row is not None

    def name(self) -> filenames.ScanName:
        """Parse the file's name. A patient number in labels.csv takes precedence over the one in the name.

        Raises:
            ValueError: The name does not follow the scheme and labels.csv gives no patient, or it is not a .jpg file.
        """
        last = self.path.rsplit("/", 1)[-1]
        if self.label is None or self.label.patient is None:
            return filenames.parse(last)
        if not last.lower().endswith((".jpg", ".jpeg")):
            raise ValueError("not a .jpg file")
        try:
            return replace(filenames.parse(last), patient=self.label.patient)
        except ValueError:
            return filenames.ScanName("", self.label.patient, 0, "1.0")

    def with_label(self, table: Mapping[str, Label]) -> "ListedFile":
        """Return the file with its label. A patient number other than the one in its name changes its generation."""
        label = labels.of(table, self.relative)
        if label is None or label.patient is None or self.row is not None:
            return replace(self, label=label)
        generation = None if self.generation is None else f"{self.generation}-{label.patient}"
        return replace(self, label=label, generation=generation)


def check_apart(scans: storage.Location, crops: storage.Location) -> None:
    """Check that the folder of scans is not inside the folder of crops.

    Raises:
        InputError: It is.
    """
    inner, outer = f"{storage.at(scans).address}/", f"{storage.at(crops).address}/"
    if inner.startswith(outer):
        raise InputError(f"{crops}: the folder of crops contains the folder of scans {scans}; use separate folders")


def list_scans(
    location: storage.Location,
    domain: str,
    exclude: Sequence[storage.Location] = (),
    classes: Classes = BINARY,
) -> list[ListedFile]:
    """List every file or object below a place, sorted by path, except those in `exclude` and hidden ones (.name).

    Args:
        location: Folder, gs:// or s3:// prefix.
        domain: Domain of the files, "normal" or "cropped".
        exclude: Files and folders to leave out. Empty texts are ignored.
        classes: The classes. Every label in dicom.csv must be one of them.

    Raises:
        NoScanError: The folder holds no scan.
        InputError: There is no such folder, dicom.csv cannot be read, or there are DICOM files and no key in the
            environment.
    """
    place = storage.at(location)
    if isinstance(place, storage.Bucket):
        files = _objects(place, domain)
    elif place.path.is_dir():
        files = _local_files(place, domain)
    else:
        raise InputError(f"{location}: no such folder of scans")
    skip = [storage.at(path).address for path in exclude if path]
    files = [file for file in files if not any(file.path == out or file.path.startswith(f"{out}/") for out in skip)]
    files = _with_dicoms(place, domain, files, classes)
    if not files:
        raise NoScanError(f"{location}: no scan found; expected files such as B_001-0002-1.0.jpg here or in subfolders")
    return sorted(files, key=lambda file: file.path)


def is_scan_name(name: str) -> bool:
    """Return whether the last part of a path follows the naming scheme of scans."""
    try:
        filenames.parse(name.rsplit("/", 1)[-1])
    except ValueError:
        return False
    return True


def may_be_scan(name: str, labelled: bool) -> bool:
    """Return whether `ingest` would read a file as a scan, as far as its name tells.

    Args:
        name: Path below the folder of scans.
        labelled: Whether there is a labels.csv, which may say what a name does not.
    """
    if any(part.startswith(".") for part in name.split("/")):
        return False
    lower = name.lower()
    return is_scan_name(name) or lower.endswith(_DICOM) or (labelled and lower.endswith((".jpg", ".jpeg")))


def marked(generation: str | None, row: Row | None) -> str | None:
    """Return a file's generation combined with the mark of its row in dicom.csv."""
    return generation if row is None or generation is None else f"{generation}-{row.mark}"


def _objects(bucket: storage.Bucket, domain: str) -> list[ListedFile]:
    return [
        ListedFile(
            f"{bucket.address}/{entry.name}",
            entry.name,
            bucket.address,
            domain,
            entry.generation,
            local=None,
            entry=entry,
        )
        for entry in bucket.entries()
        if not any(part.startswith(".") and part != ".." for part in entry.name.split("/"))
    ]


def _local_files(folder: storage.Folder, domain: str) -> list[ListedFile]:
    now = time.time()
    files = []
    for path in _walk(folder.address):
        # A name that is not UTF-8 cannot be stored in a table.
        text = os.fsencode(path).decode("utf-8", "backslashreplace")
        relative = path[len(folder.address) + 1 :]
        local = text if text == path else path  # of a million files, one text each
        files.append(ListedFile(text, relative, folder.address, domain, _generation(path, now), local))
    return files


def _walk(root: str) -> Iterator[str]:
    """Yield files, links to folders, and unreadable folders under `root`. Hidden ones are skipped."""
    unreadable: list[str] = []
    for directory, folders, files in os.walk(root, onerror=lambda e: unreadable.append(os.fspath(e.filename))):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [name for name in folders if Path(directory, name).is_symlink()]
        for name in files + links:
            if not name.startswith("."):
                yield f"{directory}/{name}"
    yield from unreadable


def _generation(path: str, now: float) -> str | None:
    """Return a text that changes whenever a file is written; None if it is too recent or unreadable."""
    try:
        found = os.stat(path)  # noqa: PTH116 - of 50,000 files
    except OSError:
        return None
    # A file from the future, which a wrong clock has made, is not settled either.
    settled = max(found.st_mtime, found.st_ctime) < now - SETTLED_SECONDS
    return f"{found.st_size}-{found.st_mtime_ns}-{found.st_ctime_ns}" if settled else None


def _with_dicoms(
    place: storage.Folder | storage.Bucket, domain: str, listed: list[ListedFile], classes: Classes
) -> list[ListedFile]:
    """Return `listed` with DICOM files replaced by the scans that dicom.csv makes of them.

    Files that dicom.csv omits get a pseudonym as well, so that they can be quarantined. Without a dicom.csv this holds
    for every file that looks like DICOM.
    """
    files = {file.relative: file for file in listed}
    has_table = files.pop(dicom_csv.NAME, None) is not None
    odd = [file.relative for file in files.values() if not is_scan_name(file.relative)]
    if not has_table:
        odd = [name for name in odd if name.lower().endswith(_DICOM) or _has_dicom_mark(files[name])]
        if not odd:
            return listed
    data = place.read(dicom_csv.NAME)[0] if has_table else None
    folder = dicom_csv.DicomFolder(pseudonyms.required_key(), files, classes)
    rows = folder.rows(data, f"{place.address}/{dicom_csv.NAME}", odd)
    taken = {row.file for row in rows}
    result = [file for file in files.values() if file.relative not in taken]
    for row in rows:
        file = files.get(row.file) if row.reason is None else None
        result.append(
            ListedFile(
                f"{place.address}/{row.name}",
                row.file,
                place.address,
                domain,
                row.mark if file is None else marked(file.generation, row),
                local=None if file is None else file.local,
                entry=None if file is None else file.entry,
                row=row,
            )
        )
    return result


def _has_dicom_mark(file: ListedFile) -> bool:
    try:
        if file.local is None or not Path(file.local).is_file():
            return False
        with Path(file.local).open("rb") as opened:
            return images.kind(opened.read(132)) == "DICOM"
    except OSError:
        return False
