"""Examine files: download, decode and hash them, or say why one cannot be used. Known files are not read again."""

import functools
import hashlib
import itertools
import logging
import re
import stat
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from thyroid import atomic, errors, progress, storage, workers
from thyroid.data import duplicates, pseudonyms, store, tables
from thyroid.data.store import Version
from thyroid.errors import InputError
from thyroid.imaging import images, phantom
from thyroid.ingest import dicom_csv
from thyroid.ingest.dicom_csv import Row
from thyroid.ingest.listing import ListedFile, marked

log = logging.getLogger(__name__)

EXAMINATION = 1
"""Version of everything that a file's row in the tables depends on: decoding, names, perceptual hashes, DICOM.

Raise it with any change of these. The next run then reads every file of a store again.
"""
_COLUMNS = {**tables.SCANS, "generation": "string", "synthetic": "boolean"}
_GIVEN = {"train": "train", "test": "test", "validation": "validation", "val": "validation", "valid": "validation"}
"""Names of folders, in lower case, to the split that they give."""
_CHUNK = 64
_OBJECTS_ON_DISK = 16
"""Number of DICOM objects that are on this machine's disk at the same time."""


@dataclass(frozen=True)
class Examined:
    """The files of a run as they were found.

    Attributes:
        rows: One row per file, quarantined or not, in the order in which the files were listed. The columns are those
            of `tables.SCANS`, generation and synthetic; label is the class that the file's name or dicom.csv gives.
        looked_at: Number of files that had to be read; the others were known.
    """

    rows: pd.DataFrame
    looked_at: int


def examine(files: Sequence[ListedFile], last: Version | None, copies: Path) -> Examined:
    """Return what is in every file. A file that cannot be read is quarantined.

    Args:
        files: The files.
        last: The last data version of the same source. Its row is reused if the file's generation is the same.
        copies: Folder below which copies are kept.

    Raises:
        InputError: A bucket cannot be read, or the last data version is damaged.
    """
    kept = _known_rows(files, last)
    known = set(kept["path"].tolist())
    new = [file for file in files if file.path not in known]
    objects = [file for file in new if file.entry is not None]
    scans = [*_fetch([f for f in objects if f.row is None], copies), *(f for f in new if f.entry is None)]
    dicoms = sorted((file for file in objects if file.row is not None), key=lambda file: file.relative)
    both = itertools.chain(_examine_all(scans, copies), _examine_dicom_objects(dicoms, copies))
    rows = list(progress.bar(both, len(scans) + len(dicoms), "ingest", "scan"))
    table = pd.concat([kept, tables.frame(rows, _COLUMNS)], ignore_index=True)
    order = {file.path: number for number, file in enumerate(files)}
    table = table.sort_values("path", key=lambda paths: paths.map(order), ignore_index=True)
    return Examined(table, len(table) - len(kept))


def _known_rows(files: Sequence[ListedFile], last: Version | None) -> pd.DataFrame:
    """Return the rows of the last data version whose files, and copies of them, have not changed."""
    if last is None or last.facts.examined_by != EXAMINATION:
        return tables.frame([], _COLUMNS)
    old = last.table(store.EXAMINED)
    now = {(file.path, file.domain, file.generation): file for file in files}
    columns = (old[column].tolist() for column in ("path", "domain", "generation", "local_path"))
    same = [
        (file := now.get((path, domain, generation))) is not None
        and (not file.copied or pd.isna(copy) or Path(copy).exists())
        for path, domain, generation, copy in zip(*columns, strict=True)
    ]
    return old[pd.Series(same, old.index, bool)]


def _examine_all(files: Sequence[ListedFile], copies: Path) -> Iterator[dict[str, Any]]:
    look = functools.partial(_examine_file, copies=copies)
    if len(files) <= _CHUNK:
        yield from map(look, files)
        return
    with workers.pool() as pool:
        yield from pool.map(look, files, chunksize=_CHUNK)


def _examine_dicom_objects(files: Sequence[ListedFile], copies: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of DICOM objects. Only their pictures are kept."""
    for start in range(0, len(files), _OBJECTS_ON_DISK):
        with tempfile.TemporaryDirectory() as folder:
            try:
                fetched = list(_fetch(files[start : start + _OBJECTS_ON_DISK], Path(folder)))
            except InputError as error:  # the part in brackets comes from Google and may contain an object's name
                raise InputError(re.sub(r" \(.*\)", "", str(error), flags=re.DOTALL)) from None
            yield from _examine_all(fetched, copies)


def _fetch(files: Sequence[ListedFile], copies: Path) -> Iterator[ListedFile]:
    """Download files and yield them with their copies.

    Files that cannot be scans are yielded without a download. Objects that vanished in the meantime are left out.
    """
    wanted: dict[str, dict[str, tuple[storage.Entry, Path]]] = {}
    by_object: dict[str, list[ListedFile]] = {}  # several frames may come from one object
    for file in files:
        assert file.entry is not None
        if _refusal(file) is not None:
            yield file
            continue
        address = f"{file.root}/{file.entry.name}"
        wanted.setdefault(file.root, {})[address] = (
            file.entry,
            store.copy_of(copies, address, file.entry.generation),
        )
        by_object.setdefault(address, []).append(file)
    for bucket, objects in wanted.items():
        for entry, copy in storage.Bucket(bucket).download(list(objects.values()), "download"):
            if copy is None:
                log.info(f"{bucket}: 1 object was deleted while the scans were being read; it is skipped")
                continue
            address = f"{bucket}/{entry.name}"
            target = store.copy_of(copies, address, entry.generation)
            if target != copy:  # the object was overwritten after it was listed
                target.parent.mkdir(parents=True, exist_ok=True)
                copy.replace(target)
            for file in by_object[address]:
                yield replace(file, entry=entry, generation=marked(entry.generation, file.row), local=str(target))


def _refusal(file: ListedFile) -> str | None:
    """Return why an object is not worth a download; None if it is."""
    assert file.entry is not None
    limit = images.MAX_BYTES
    if file.row is not None:
        from thyroid.imaging import dicom

        limit = dicom.MAX_BYTES
    else:
        try:
            file.name()
        except ValueError as error:
            return str(error)
    if file.entry.size > limit:
        return f"file of {file.entry.size:,} bytes is larger than the limit of {limit:,}"
    return None


def _examine_file(file: ListedFile, copies: Path) -> dict[str, Any]:
    """Return the row of one file. Any problem with it becomes its quarantine reason."""
    if file.row is not None:
        return _examine_dicom(file, file.row, copies)
    row: dict[str, Any] = {"path": file.path, "domain": file.domain, "generation": file.generation}
    try:
        if file.local is None:
            raise ValueError(_refusal(file))
        local = Path(file.local)
        if file.entry is None:
            check_file(local, file)
        name = file.name()
        data = images.read(local)
        image = images.decode(data)
        picture_row = _describe_picture(file, data, image)
    except ValueError as error:
        return row | {"quarantine_reason": errors.one_line(error)}
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symbolic links
        # The problem is not in the content, so the next run examines the file again.
        return row | {"generation": None, "quarantine_reason": errors.one_line(error)}
    except Exception as error:  # a single file must never end a run
        return row | {"quarantine_reason": f"cannot be read ({type(error).__name__})"}
    return row | {
        "local_path": file.local,
        "label": name.label,
        "patient": name.patient,
        "image": name.image,
        "version": name.version,
        "synthetic": phantom.MARK in data[:1024],
        **picture_row,
    }


def _examine_dicom(file: ListedFile, listed: Row, copies: Path) -> dict[str, Any]:
    """Return the row of the scan of a DICOM file. No output may name the file or the patient."""
    from thyroid.imaging import dicom

    row: dict[str, Any] = {"path": file.path, "domain": file.domain, "generation": file.generation}
    try:
        if listed.reason is not None:
            raise ValueError(listed.reason)
        if file.local is None:
            raise ValueError(_refusal(file))
        if file.entry is None:
            check_file(Path(file.local), file)
        picture = dicom.read(dicom.read_file(file.local), listed.frame)
        patient = listed.patient or picture.patient
        if not patient:
            raise ValueError(f"neither the file itself nor {dicom_csv.NAME} says which patient this is")
        data = dicom.png(picture.pixels)
        picture_row = _describe_picture(file, data, picture.pixels)
    except ValueError as error:
        return row | {"quarantine_reason": errors.one_line(error)}
    except (OSError, RuntimeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "cannot be read"
        return row | {"generation": None, "quarantine_reason": reason}
    except Exception as error:  # a single file must never end a run
        return row | {"quarantine_reason": f"cannot be read ({type(error).__name__})"}
    return row | {
        "local_path": str(_write(data, store.copy_of(copies, file.path, hashlib.sha256(data).hexdigest(), ".png"))),
        "label": listed.label,
        "patient": pseudonyms.patient_number(pseudonyms.required_key(), patient),
        "image": picture.instance,
        "version": str(picture.frame),
        "synthetic": False,
        **picture_row,
    }


def _describe_picture(file: ListedFile, data: bytes, image: images.Pixels) -> dict[str, Any]:
    """Return what a row says about a scan's bytes and pixels, and the split that a folder gives it.

    Raises:
        ValueError: The picture is empty.
    """
    if images.is_empty(image):
        raise ValueError("picture without content: it is all of one colour")
    given = {_GIVEN[p.lower()] for p in file.relative.split("/")[:-1] if p.lower() in _GIVEN}
    return {
        "height": image.shape[0],
        "width": image.shape[1],
        "sha256": hashlib.sha256(data).hexdigest(),
        "phash": duplicates.perceptual_hash(image),
        "split": given.pop() if len(given) == 1 else None,
    }


def _write(data: bytes, path: Path) -> Path:
    """Write a picture completely or not at all, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(path) as temporary:
        temporary.write_bytes(data)
    return path


def check_file(path: Path, file: ListedFile) -> None:
    """Check that this is a regular file of the folder of scans.

    Raises:
        ValueError: It is not, or its name is not UTF-8, or it is a link that leaves the folder.
        OSError: It cannot be read, or does not exist any more.
    """
    if file.row is None and file.path != str(path):
        raise ValueError("name is not UTF-8; rename the file or its folder")
    if path.is_symlink() and not path.resolve().is_relative_to(file.root):
        raise ValueError("symbolic link leaves the folder of scans")
    if path.is_symlink() and path.is_dir():
        raise ValueError("symbolic link to a folder; name the folder itself")
    if path.is_dir():
        raise ValueError("folder cannot be read")
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("not a regular file")
