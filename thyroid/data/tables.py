"""The two tables of a data version, `scans` and `regions`, and its digest.

A data version is a folder: `scans.parquet`, `regions.parquet`, `quarantine.csv`, pictures and `data.json`, which holds
the SHA-256 of all of them and of itself.

scans: One row per file.
    path: Where the file is (absolute, or in a bucket); for a DICOM file, a pseudonym in the same folder.
    local_path: Where its bytes, or a DICOM file's picture, can be read on this machine; absolute or relative to the
        data version.
    domain: "normal" for frames, "cropped" for files that came in cropped.
    class: See `classes`.
    label: The side of the class, "B" or "M".
    patient, image: Numbers.
    version: Text; for a DICOM file, the frame.
    width, height: In pixels.
    sha256: SHA-256 of the bytes.
    phash: See `duplicates`.
    group: Patients and near-duplicates that share a split.
    split: train, validation or test.
    quarantine_reason: Null for scans in use.
    Unknown values of a quarantined file are null. `crop` adds the box of the scan area, and normal_path and
    normal_sha256 of the image that it wrote (see `DataVersion.images`).
regions: One row per region of interest (ROI).
    path: Path of the scan.
    index: 0, 1, ... within the scan.
    x, y, width, height: In pixels of the frame.
    source: "given" or "auto".
    crop_path: File of the crop, see `DataVersion.images`; null until cropped.
    crop_sha256: SHA-256 of the crop's bytes; null until cropped.
    `crop` adds jitter_path and jitter_sha256 of a training region's second, disturbed crop. They are null where there
    is none: outside the train split, for files that came in cropped, and without jitter.
"""

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pandas as pd

from thyroid.atomic import replacing, to_json, write_bytes
from thyroid.errors import InputError
from thyroid.records.data import DataRecord

try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
except ImportError:  # the endpoint and the page read no tables
    pass
else:  # Arrow's strings take a third of the memory of Python's; its default allocator keeps what `release` gives back
    pd.options.mode.string_storage = "pyarrow"
    pa.set_memory_pool(pa.system_memory_pool())

FACTS = "data.json"
TABLES = ("scans.parquet", "regions.parquet")
QUARANTINE = "quarantine.csv"
_OTHER_FILES = (QUARANTINE, "statistics.png", "crops.png")
_SEAL = "sha256"
"""Field of data.json: SHA-256 of the file's bytes with 64 zeros in the place of this value."""
_UNSEALED = "0" * 64
SPLITS = ("train", "validation", "test")
AREA = ("area_x", "area_y", "area_width", "area_height")
"""Columns of a scan area in pixels of the frame."""
DOMAINS = ("normal", "cropped")
DOMAIN_NAMES = {"normal": "full frames", "cropped": "nodule crops"}
"""Names for people, to whom a normal image would be a healthy one."""
_SIDES = ["x", "y", "width", "height"]
_DIGEST_ROWS = 50_000
"""Rows whose texts go into a digest at the same time."""

# a spreadsheet calculates a cell that starts like this (OWASP, CSV injection)
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")

SCANS: dict[str, Literal["string", "Int64"]] = {
    "path": "string",
    "local_path": "string",
    "domain": "string",
    "class": "string",
    "label": "string",
    "patient": "Int64",
    "image": "Int64",
    "version": "string",
    "width": "Int64",
    "height": "Int64",
    "sha256": "string",
    "phash": "string",
    "group": "Int64",
    "split": "string",
    "quarantine_reason": "string",
}
REGIONS = {
    "path": "string",
    "index": "Int64",
    "x": "Int64",
    "y": "Int64",
    "width": "Int64",
    "height": "Int64",
    "source": "string",
    "crop_path": "string",
    "crop_sha256": "string",
}


def frame(rows: list[dict[str, Any]], schema: Mapping[str, Any]) -> pd.DataFrame:
    """Return a table of `schema` from row dictionaries; missing values are null."""
    return pd.DataFrame({name: pd.array([row.get(name) for row in rows], dtype) for name, dtype in schema.items()})


def release() -> None:
    """Give memory that tables and objects have freed back to the system; the C library keeps it otherwise."""
    pa.default_memory_pool().release_unused()


def used(scans: pd.DataFrame, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the scans that are not quarantined.

    Args:
        scans: Table of scans.
        columns: Columns to return, of which alone copies are made; None for all.
    """
    return scans.loc[scans["quarantine_reason"].isna(), slice(None) if columns is None else list(columns)]


def write(folder: Path, scans: pd.DataFrame, regions: pd.DataFrame, facts: DataRecord) -> DataRecord:
    """Write the tables and `facts` (data.json) of a data version; data.json comes last and marks it as whole.

    All files survive a power cut.

    Args:
        folder: Folder of the data version, which is made if it does not exist.
        scans: Table of scans.
        regions: Table of regions.
        facts: Content of data.json; its checksums are computed.

    Returns:
        The content of data.json with the SHA-256 of every file of the data version.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in zip(TABLES, (scans, regions), strict=True):
        with replacing(folder / name, shared=False) as temporary:
            table.to_parquet(temporary, index=False)
    files = {name: sha256(folder / name) for name in (*TABLES, *_OTHER_FILES) if (folder / name).is_file()}
    facts = facts.model_copy(update={"files": files})
    write_facts(folder, facts)
    return facts


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, which is not read into memory at once."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_facts(folder: Path, facts: DataRecord) -> None:
    """Write data.json with its seal."""
    write_sealed(folder / FACTS, facts.to_dict())


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON with the SHA-256 of its own bytes in the field sha256."""
    text = to_json({**content, _SEAL: _UNSEALED})
    start, end = text.rsplit(_UNSEALED, 1)
    write_bytes(path, f"{start}{hashlib.sha256(text.encode()).hexdigest()}{end}".encode())


def read_facts(folder: Path) -> DataRecord:
    """Return the content of data.json without its seal.

    Raises:
        InputError: The folder is no whole data version, or data.json is damaged or was written by older code.
    """
    content = _sealed(folder)
    try:
        if content is None:
            raise InputError(f"{FACTS} was changed after it was written, or comes from an older version")
        return DataRecord.parse(content, FACTS, "ignore")
    except InputError as error:
        raise InputError(f"{folder}: damaged data version ({error}); remove it and ingest again") from None


def sealed(folder: Path) -> bool:
    """Return whether a data version's data.json, with its seal, is as it was written.

    Raises:
        InputError: There is no data.json.
    """
    return _sealed(folder) is not None


def _sealed(folder: Path) -> dict[str, Any] | None:
    try:
        return read_sealed(folder / FACTS)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{folder}: not a data version ({FACTS} is missing); run `python -m thyroid.ingest` first"
        ) from None


def read_sealed(path: Path) -> dict[str, Any] | None:
    """Return what `write_sealed` wrote, without its seal, or None if the file is not as it was written."""
    data = path.read_bytes()
    try:
        content: dict[str, Any] = json.loads(data)
        seal = content.pop(_SEAL)
        whole = re.fullmatch("[0-9a-f]{64}", seal) is not None
        whole = whole and hashlib.sha256(data.replace(seal.encode(), _UNSEALED.encode())).hexdigest() == seal
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError):  # a damaged file may contain anything
        whole = False
    return content if whole else None


def checked(folder: Path, name: str, files: Mapping[str, str]) -> bytes:
    """Return the content of a file of a data version after comparing its checksum.

    Args:
        folder: Folder of the data version.
        name: Name of the file.
        files: SHA-256 of every file, as in data.json.

    Raises:
        ValueError: The file is missing or damaged.
    """
    try:
        data = (folder / name).read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{name} is missing") from None
    if hashlib.sha256(data).hexdigest() != files.get(name):
        raise ValueError(f"{name} is not as it was written")
    return data


def read_table(folder: Path, name: str, files: Mapping[str, str], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Return a parquet table of a data version after comparing the file's checksum.

    Args:
        folder: Folder of the data version.
        name: Name of the file.
        files: SHA-256 of every file, as in data.json.
        columns: Columns to read; None for all.

    Raises:
        ValueError: The file is missing or damaged.
    """
    try:
        if sha256(folder / name) != files.get(name):
            raise ValueError(f"{name} is not as it was written")
    except FileNotFoundError:
        raise ValueError(f"{name} is missing") from None
    # in parts and without pre_buffer, neither the file nor a column of it is in memory beside the table
    with pq.ParquetFile(folder / name, pre_buffer=False, buffer_size=2**20) as file:
        parts = list(file.iter_batches(columns=columns))
        table: pd.DataFrame = (pa.Table.from_batches(parts) if parts else file.read(columns)).to_pandas()
    release()
    return table


def read(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, DataRecord]:
    """Read the scans, regions and facts of a data version.

    Raises:
        InputError: The folder is no whole data version.
    """
    facts = read_facts(folder)
    try:
        scans, regions = (read_table(folder, name, facts.files) for name in TABLES)
    except ValueError as error:
        raise InputError(f"{folder}: damaged data version ({error}); remove it and ingest again") from None
    return scans, regions, facts


def read_quarantine(folder: Path, facts: DataRecord) -> pd.DataFrame:
    """Read file and reason of everything that a data version sets aside.

    Raises:
        InputError: The table is missing or damaged.
    """
    try:
        return pd.read_csv(io.BytesIO(checked(folder, QUARANTINE, facts.files)))
    except ValueError as error:
        raise InputError(f"{folder}: damaged data version ({error}); remove it and ingest again") from None


def count_splits(scans: pd.DataFrame, classes: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return, per split, the number of images of each class and the number of patients.

    Args:
        scans: Scans in use.
        classes: Names of the classes.
    """
    result = {}
    for split in SPLITS:
        part = scans[scans["split"] == split]
        result[split] = {name: int((part["class"] == name).sum()) for name in classes}
        result[split]["patients"] = int(part["patient"].nunique())
    return result


def digest(scans: pd.DataFrame, regions: pd.DataFrame) -> str:
    """Return the SHA-256 of the sorted (sha256, class, regions) of the scans in use; paths and order do not matter."""
    rows = used(scans, ["path", "class", "sha256"])
    names = rows["class"].map({name: json.dumps(name) for name in rows["class"].unique()})
    # what json.dumps makes of the three texts: a checksum and boxes hold nothing that it would escape
    boxes = _boxes(rows.pop("path"), regions)
    release()
    lines = _joined('["', _arrow(rows["sha256"]), '", ', _arrow(names), ', "', boxes, '"]')
    order = pc.array_sort_indices(lines)
    result = hashlib.sha256()
    for start in range(0, len(lines), _DIGEST_ROWS):
        texts = lines.take(order[start : start + _DIGEST_ROWS]).to_pylist()
        result.update(("\n" * (start > 0) + "\n".join(texts)).encode())
    return result.hexdigest()


CONTENTS = ("sha256", "label", "split", "boxes")
PRINTS = ("phash", "patient")
"""Columns that a registered version's scans.csv has after `CONTENTS`: perceptual hashes, and pseudonyms of patients."""


def contents(scans: pd.DataFrame, regions: pd.DataFrame) -> pd.DataFrame:
    """Return what a model is made of, for every scan in use.

    The columns are sha256, label (the class), split, boxes (JSON text of the sorted regions) and phash. The rows are
    sorted and have the index of `scans`.
    """
    rows = used(scans, ["path", "class", "sha256", "split"]).rename(columns={"class": "label"})
    rows["boxes"] = pd.array(_boxes(rows.pop("path"), regions), "string")
    keys = pa.table({name: _arrow(rows[name]) for name in CONTENTS})
    order = pc.sort_indices(keys, [(name, "ascending") for name in CONTENTS])
    release()
    rows = cast("pd.DataFrame", rows[list(CONTENTS)].iloc[order.to_numpy()])
    return rows.assign(phash=scans["phash"].loc[rows.index])


def _arrow(column: pd.Series | pd.Index) -> Any:
    """Return a column of texts as an array of Arrow, which shares the memory of a column of dtype string."""
    return pa.array(column).cast(pa.large_string())


def _joined(*parts: Any) -> Any:
    """Return an array of texts that are put together from texts and from arrays of texts."""
    texts = (pa.scalar(part, pa.large_string()) if isinstance(part, str) else part for part in (*parts, ""))
    return pc.binary_join_element_wise(*texts)


def _boxes(paths: pd.Series, regions: pd.DataFrame) -> Any:
    """Return the sorted regions of every path, each of which occurs once, as an array of JSON texts; "[]" for none."""
    places = pc.fill_null(pc.index_in(_arrow(regions["path"]), _arrow(paths)), -1).to_numpy()
    sides = regions[_SIDES].astype("int64").to_numpy()
    order = np.lexsort((*sides.T[::-1], places))
    x, y, width, height = (pa.array(sides[order, side]).cast(pa.large_string()) for side in range(len(_SIDES)))
    boxes = _joined("[", x, ", ", y, ", ", width, ", ", height, "]")
    ends = np.searchsorted(places[order], np.arange(len(paths) + 1))
    lists = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), boxes)
    return _joined("[", pc.binary_join(lists, pa.scalar(", ", pa.large_string())), "]")


def write_quarantine(path: Path | io.StringIO, rows: pd.DataFrame) -> None:
    """Write quarantine.csv: file and reason.

    An apostrophe is put before text that a spreadsheet would take for a formula.
    """
    safe = {}
    for name in rows:
        is_formula = rows[name].astype("string").str.startswith(_FORMULA).fillna(False)
        safe[name] = rows[name].mask(is_formula, "'" + rows[name].astype("string")) if is_formula.any() else rows[name]
    pd.DataFrame(safe, rows.index).to_csv(path, index=False)


def examples_of(scans: pd.DataFrame, regions: pd.DataFrame, domain: str) -> pd.DataFrame:
    """Return the images of one domain in no fixed order.

    Args:
        scans: Table of scans, as `crop` has completed it.
        regions: Table of regions, as `crop` has completed it.
        domain: One of `DOMAINS`.

    Returns:
        One row per image: name (within the folder of the images), sha256 of the image, path of its scan, class, label
        (its side), patient, group, split.

    Raises:
        InputError: The domain is unknown.
    """
    if domain not in DOMAINS:
        raise InputError(f"domain {domain!r} is unknown; choose from {', '.join(DOMAINS)}")
    scans = used(scans)
    if domain == "normal":
        table = scans[scans["domain"] == "normal"].assign(name=scans["normal_path"], sha256=scans["normal_sha256"])
    else:
        table = regions.merge(scans.drop(columns="sha256"), on="path")
        table = table.rename(columns={"crop_path": "name", "crop_sha256": "sha256"})
    return table[["name", "sha256", "path", "class", "label", "patient", "group", "split"]]
