"""Examine files: download, decode and hash them, or say why one cannot be used. Known files are not read again."""

import contextlib
import functools
import hashlib
import itertools
import logging
import re
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from thyroid import atomic, errors, progress, storage, workers
from thyroid.data import duplicates, pseudonyms, store, tables
from thyroid.data.store import Version
from thyroid.errors import InputError
from thyroid.imaging import images, phantom
from thyroid.ingest import dicom_csv
from thyroid.ingest.dicom_csv import Row
from thyroid.ingest.listing import ListedFile, marked

log = logging.getLogger(__name__)

EXAMINATION = 2
"""Version of everything that a file's row in the tables depends on: decoding, names, perceptual hashes, DICOM.

Raise it with any change of these. The next run then reads every file of a store again.
"""
_COLUMNS = {**tables.SCANS, "generation": "string", "synthetic": "boolean"}
_GIVEN = {"train": "train", "test": "test", "validation": "validation", "val": "validation", "valid": "validation"}
"""Names of folders, in lower case, to the split that they give."""
BATCH = 2000
"""Largest number of scans that are examined before their rows are handed on."""
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


def examine(
    files: Sequence[ListedFile], last: Version | None, copies: Path, left: pd.DataFrame, there: Callable[[str], bool]
) -> Examined:
    """Return what is in every file. A file that cannot be read is quarantined.

    Args:
        files: The files.
        last: The last data version of the same source. Its row is reused if the file's generation is the same.
        copies: Folder below which copies are kept.
        left: Rows that shards have left of files of the same source, which are reused likewise.
        there: Whether the copy of a scan at a local_path still exists.

    Raises:
        InputError: A bucket cannot be read, or the last data version is damaged.
    """
    kept = known(files, last, left, there)
    listed = pa.array([file.path for file in files], pa.large_string())
    is_known = pc.is_in(listed, pa.array(kept["path"])).to_pylist()
    new = [file for file, known_ in zip(files, is_known, strict=True) if not known_]
    table = pd.concat([kept, *batches(new, copies)], ignore_index=True)
    order = pc.index_in(pa.array(table["path"]), listed).to_numpy()
    looked_at = len(table) - len(kept)
    del kept, listed, new  # a million take 0.1 GB, and `kept` shares memory with the table
    return Examined(_take(table, np.argsort(order)), looked_at)


def known(
    files: Sequence[ListedFile], last: Version | None, left: pd.DataFrame, there: Callable[[str], bool]
) -> pd.DataFrame:
    """Return the rows of those files that have not changed since they were examined, and whose copies still exist.

    Args:
        files: The files.
        last: The last data version of the same source; None for none.
        left: Rows that shards have left since then.
        there: Whether the copy of a scan at a local_path still exists.

    Raises:
        InputError: The last data version is damaged.
    """
    old = tables.frame([], _COLUMNS)
    if last is not None and last.facts.examined_by == EXAMINATION:
        old = _unchanged(last.table(store.EXAMINED), files, there)
    if left.empty:
        return old
    # pieces outlive the run that took them up if it was stopped before it removed them
    new = _unchanged(left[list(_COLUMNS)], files, there).drop_duplicates("path")
    return pd.concat([old, new[~new["path"].isin(old["path"])]], ignore_index=True)


def _unchanged(rows: pd.DataFrame, files: Sequence[ListedFile], there: Callable[[str], bool]) -> pd.DataFrame:
    """Return the rows whose files, and copies of them, have not changed. `rows` loses its columns.

    Args:
        rows: Rows of files as they were found earlier.
        files: The files now.
        there: Whether the copy of a scan at a local_path still exists.
    """
    places = pc.index_in(pa.array(rows["path"]), pa.array([file.path for file in files], pa.large_string()))
    same = pc.is_valid(places)
    for name in ("domain", "generation"):
        now = pa.array([getattr(file, name) for file in files], pa.large_string()).take(places)
        same = pc.and_(same, pc.fill_null(pc.equal(pa.array(rows[name]), now), False))
    found = same.to_numpy(zero_copy_only=False)
    is_copied = np.array([file.copied for file in files], bool)
    if is_copied.any():
        copied = np.flatnonzero(found & rows["local_path"].notna().to_numpy())
        copied = copied[is_copied[places.take(copied).to_numpy()]]
        found[copied] = [there(copy) for copy in rows["local_path"].iloc[copied]]
    return rows if found.all() else _take(rows, np.flatnonzero(found))


def _take(rows: pd.DataFrame, places: NDArray[np.int64]) -> pd.DataFrame:
    """Return rows of a table, which loses its columns, so that only one of them is in memory twice."""
    columns = {}
    for name in rows.columns.tolist():
        column = _in_one_piece(rows.pop(name))
        tables.release()
        columns[name] = column.take(places)
        del column
        tables.release()
    return pd.DataFrame(columns)


def _in_one_piece(column: pd.Series) -> Any:
    """Return the array of a column. Arrow would join the pieces of texts in `take`, with the pieces still in memory."""
    texts = pa.array(column) if column.dtype == "string" else None
    return pd.array(texts.combine_chunks(), "string") if isinstance(texts, pa.ChunkedArray) else column.array


def batches(files: Sequence[ListedFile], copies: Path) -> Iterator[pd.DataFrame]:
    """Download, decode and hash files, and yield their rows, at most `BATCH` at a time and in any order.

    Args:
        files: The files.
        copies: Folder below which copies are kept.

    Raises:
        InputError: A bucket cannot be read.
    """
    rows = iter(progress.bar(_rows(files, copies), len(files), "ingest", "scan"))
    while batch := list(itertools.islice(rows, BATCH)):
        yield tables.frame(batch, _COLUMNS)


def _rows(files: Sequence[ListedFile], copies: Path) -> Iterator[dict[str, Any]]:
    there = (file for file in files if file.entry is None)
    objects = [file for file in files if file.entry is not None and file.row is None]
    blocks = (objects[start : start + BATCH] for start in range(0, len(objects), BATCH))
    scans = itertools.chain(itertools.chain.from_iterable(_fetch(block, copies) for block in blocks), there)
    dicoms = sorted((file for file in files if file.entry and file.row), key=lambda file: file.relative)
    look = functools.partial(_examine_file, copies=copies)
    with contextlib.ExitStack() as stack:
        many = len(files) > _CHUNK
        # one pool for all batches, since a new one takes each worker seconds
        each = functools.partial(stack.enter_context(workers.pool()).map, chunksize=_CHUNK) if many else map
        while batch := list(itertools.islice(scans, BATCH)):
            yield from each(look, batch)
        for start in range(0, len(dicoms), _OBJECTS_ON_DISK):
            with tempfile.TemporaryDirectory() as folder:
                yield from map(look, _fetch_dicoms(dicoms[start : start + _OBJECTS_ON_DISK], Path(folder)))


def _fetch_dicoms(files: Sequence[ListedFile], folder: Path) -> list[ListedFile]:
    """Download DICOM objects, of which only the pictures are kept."""
    try:
        return list(_fetch(files, folder))
    except InputError as error:  # the part in brackets comes from the service and may contain an object's name
        raise InputError(re.sub(r" \(.*\)", "", str(error), flags=re.DOTALL)) from None


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
        for entry, copy in storage.bucket_at(bucket).download(list(objects.values()), "download"):
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
