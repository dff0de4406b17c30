"""The two tables of a data version, `scans` and `regions`, and its digest.

A data version is a folder: `scans.parquet`, `regions.parquet`, `quarantine.csv`, pictures and `data.json`, which holds the
SHA-256 of them all and of itself.

scans: one row a file.
    path: where the file is (absolute, or gs://), of a DICOM file a pseudonym there; local_path: where its bytes, or the
    picture of a DICOM file, can be read here, relative to the data version or absolute; domain: "normal" for frames,
    "cropped" for files that came in cropped; class: see `classes`; label: its side, "B" or "M"; patient, image: numbers; version: text, of a DICOM file
    the frame; width, height: pixels; sha256 of the bytes; phash: see `duplicates`; group: patients and near-duplicates
    that share a split; split: train, validation or test; quarantine_reason: null for scans in use. What is unknown of a
    quarantined file is null. `crop` adds the scan area's box, and normal_path and normal_sha256 of the image it wrote (see
    `images`).
regions: one row a region of interest (ROI).
    path: of the scan; index: 0, 1, ... within the scan; x, y, width, height: pixels of the frame;
    source: "given" or "auto"; crop_path: file of the crop, see `images`; crop_sha256: of its bytes; both
    null until cropped.
"""

import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from thyroid.atomic import to_json, write_bytes
from thyroid.errors import InputError

FACTS = "data.json"
TABLES = ("scans.parquet", "regions.parquet")
QUARANTINE = "quarantine.csv"
_BESIDE = (QUARANTINE, "statistics.png", "crops.png")
_SEAL = "sha256"
"""Field of data.json: SHA-256 of the file's bytes with 64 zeros in its place."""
_UNSEALED = "0" * 64
SPLITS = ("train", "validation", "test")
DOMAINS = ("normal", "cropped")
DOMAIN_NAMES = {"normal": "full frames", "cropped": "nodule crops"}
"""In words for people, to whom a normal image is a healthy one."""

_FORMULA = (
    "=",
    "+",
    "-",
    "@",
    "\t",
    "\r",
    "\n",
)  # a cell that starts so is calculated by spreadsheets (OWASP, CSV injection)

SCANS = {
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


def frame(rows: list[dict[str, Any]], schema: dict[str, str]) -> pd.DataFrame:
    """A table of `schema` from row dictionaries; missing values are null."""
    return pd.DataFrame(rows, columns=list(schema)).astype(schema)


def used(scans: pd.DataFrame) -> pd.DataFrame:
    """The scans that are not quarantined."""
    return scans[scans["quarantine_reason"].isna()]


def write(folder: Path, scans: pd.DataFrame, regions: pd.DataFrame, facts: dict[str, Any]) -> None:
    """Write the tables and `facts` (data.json) of a data version; data.json comes last and marks it whole.

    `facts` is given the field files, the SHA-256 of every file of the data version; all of them survive a power cut then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in zip(TABLES, (scans, regions), strict=True):
        write_bytes(folder / name, table.to_parquet(index=False))
    facts["files"] = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in (*TABLES, *_BESIDE)
        if (folder / name).is_file()
    }
    write_facts(folder, facts)


def write_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write data.json with its seal."""
    write_sealed(folder / FACTS, facts)


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON with the SHA-256 of its own bytes in it."""
    text = to_json({**content, _SEAL: _UNSEALED})
    start, end = text.rsplit(_UNSEALED, 1)
    write_bytes(path, f"{start}{hashlib.sha256(text.encode()).hexdigest()}{end}".encode())


def read_facts(folder: Path) -> dict[str, Any]:
    """data.json without its seal.

    Raises:
        InputError: the folder is not a whole data version, data.json is damaged, or older code has written it.
    """
    if (facts := _sealed(folder)) is None:
        raise InputError(
            f"{folder}: damaged data version ({FACTS} is not as it was written, or by older code); remove it and ingest again"
        )
    return facts


def sealed(folder: Path) -> bool:
    """Whether a data version's data.json is as it was written, with its seal."""
    return _sealed(folder) is not None


def _sealed(folder: Path) -> dict[str, Any] | None:
    try:
        return read_sealed(folder / FACTS)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{folder}: not a data version ({FACTS} is missing); run `python -m thyroid.ingest` first"
        ) from None


def read_sealed(path: Path) -> dict[str, Any] | None:
    """What `write_sealed` wrote, without its seal; None where the file is not as it was written."""
    data = path.read_bytes()
    try:
        facts: dict[str, Any] = json.loads(data)
        seal = facts.pop(_SEAL)
        whole = re.fullmatch("[0-9a-f]{64}", seal) is not None
        whole = whole and hashlib.sha256(data.replace(seal.encode(), _UNSEALED.encode())).hexdigest() == seal
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError):  # whatever a damaged file may hold
        whole = False
    return facts if whole else None


def checked(folder: Path, name: str, files: Mapping[str, str]) -> bytes:
    """Content of a file of a data version.

    Args:
        folder: the data version.
        name: of the file.
        files: SHA-256 of every file, as in data.json.

    Raises:
        ValueError: it is missing or damaged.
    """
    try:
        data = (folder / name).read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{name} is missing") from None
    if hashlib.sha256(data).hexdigest() != files.get(name):
        raise ValueError(f"{name} is not as it was written")
    return data


def read(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Read scans, regions and facts of a data version.

    Raises:
        InputError: the folder is not a whole data version.
    """
    facts = read_facts(folder)
    try:
        scans, regions = (pd.read_parquet(io.BytesIO(checked(folder, name, facts["files"]))) for name in TABLES)
    except ValueError as error:
        raise InputError(f"{folder}: damaged data version ({error}); remove it and ingest again") from None
    return scans, regions, facts


def read_quarantine(folder: Path, facts: Mapping[str, Any]) -> pd.DataFrame:
    """file and reason of everything that a data version sets aside.

    Raises:
        InputError: the table is missing or damaged.
    """
    try:
        return pd.read_csv(io.BytesIO(checked(folder, QUARANTINE, facts["files"])))
    except ValueError as error:
        raise InputError(f"{folder}: damaged data version ({error}); remove it and ingest again") from None


def read_csv(path: Path, given: str, kind: str) -> pd.DataFrame:
    """A table that somebody has written, every cell as text; empty ones are "".

    Args:
        path: of the file.
        given: what it is called where it was given.
        kind: what it holds, for errors.

    Raises:
        InputError: there is no such file, it is no CSV, or a row has more cells than the header, as numbers with decimal
            commas and texts with commas make it, so that every cell behind them would be taken for another.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
        header = [cell.strip() for cell in next(reader, [])]
        rows = []
        for cells in reader:
            if len(cells) > len(header):
                raise InputError(
                    f"{given}: line {reader.line_num} has more cells than the header; quote texts that hold commas, and write "
                    "numbers with a point"
                )
            if cells:
                rows.append([*cells, *[""] * (len(header) - len(cells))])
    except FileNotFoundError:
        raise InputError(f"{given}: no such file of {kind}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{given}: not a CSV table: {error}") from None
    if not header:
        raise InputError(f"{given}: not a CSV table: it has no header")
    if twice := [name for name, count in Counter(header).items() if name and count > 1]:
        raise InputError(f"{given}: column {twice[0]} stands there twice")
    return pd.DataFrame(rows, columns=header, dtype=object)


def images(folder: Path) -> Path:
    """The folder that the crop_path and normal_path of a data version are relative to: a store's, or its own."""
    return Path(read_facts(folder).get("images", folder))


def fingerprint(folder: Path) -> str:
    """SHA-256 over all that a later step reads from the tables: splits, patients and paths as well as the digest's content.

    Kubeflow's cache looks at parameters and names alone: handed on as a parameter, this is what keeps it from taking the
    result of other data.
    """
    scans, regions, facts = read(folder)
    digest = hashlib.sha256(facts["digest"].encode())
    for table in (scans.drop(columns="local_path"), regions):
        digest.update(pd.util.hash_pandas_object(table, index=False).to_numpy().tobytes())
    return digest.hexdigest()


def check_fingerprint(folder: Path, expected: str) -> None:
    """Raises InputError if the data version is not the one that was announced."""
    if fingerprint(folder) != expected:
        raise InputError(f"{folder}: not the data version that the step before announced; run the pipeline anew")


def count_splits(scans: pd.DataFrame, classes: Sequence[str]) -> dict[str, dict[str, int]]:
    """Per split the images of each class and the number of patients, of scans in use."""
    result = {}
    for split in SPLITS:
        part = scans[scans["split"] == split]
        result[split] = {name: int((part["class"] == name).sum()) for name in classes}
        result[split]["patients"] = int(part["patient"].nunique())
    return result


def digest(scans: pd.DataFrame, regions: pd.DataFrame) -> str:
    """SHA-256 over the sorted (sha256, class, regions) of the scans in use: paths and order do not matter."""
    columns = (contents(scans, regions)[column].tolist() for column in ("sha256", "label", "boxes"))
    return hashlib.sha256("\n".join(sorted(map(json.dumps, zip(*columns, strict=True)))).encode()).hexdigest()


CONTENTS = ("sha256", "label", "split", "boxes")
PRINTS = ("phash", "patient")
"""What scans.csv of a registered version tells besides `CONTENTS`: perceptual hashes, and patients as `pseudonyms`."""


def contents(scans: pd.DataFrame, regions: pd.DataFrame) -> pd.DataFrame:
    """What a model is made of: sha256, label (the class), split, boxes (JSON text of the sorted regions) and phash of every scan in use.

    Sorted, with the index of `scans`.
    """
    boxes: dict[str, list[list[int]]] = {}
    sides = regions[["x", "y", "width", "height"]].astype(int).to_numpy().tolist()
    for path, box in zip(regions["path"].tolist(), sides, strict=True):
        boxes.setdefault(path, []).append(box)
    good = used(scans)
    mine = [json.dumps(sorted(boxes.get(path, []))) for path in good["path"].tolist()]
    return good.assign(boxes=mine, label=good["class"])[[*CONTENTS, "phash"]].sort_values(list(CONTENTS))


def write_quarantine(path: Path | io.StringIO, rows: pd.DataFrame) -> None:
    """Write quarantine.csv: file and reason, with an apostrophe before what a spreadsheet would take for a formula."""
    rows.map(lambda text: f"'{text}" if str(text).startswith(_FORMULA) else text).to_csv(path, index=False)


def examples(folder: Path, domain: str, split: str | None = None) -> pd.DataFrame:
    """The images of one domain (and split) of a cropped data version.

    Returns:
        One row an image, in a fixed order: file (full path), name (within `images`), sha256 of it, path of its scan,
        class, label (its side), patient, group, split.
    """
    if domain not in DOMAINS:
        raise InputError(f"domain {domain!r} is unknown; choose from {', '.join(DOMAINS)}")
    scans, regions, _ = read(folder)
    table = examples_of(scans, regions, domain)
    if split is not None:
        table = table[table["split"] == split]
    table = table.sort_values("name").reset_index(drop=True)
    root = images(folder)
    table["file"] = [str(root / name) for name in table["name"]]
    return table


def examples_of(scans: pd.DataFrame, regions: pd.DataFrame, domain: str) -> pd.DataFrame:
    good = used(scans)
    if domain == "normal":
        table = good[good["domain"] == "normal"].assign(name=good["normal_path"], sha256=good["normal_sha256"])
    else:
        table = regions.merge(good.drop(columns="sha256"), on="path")
        table = table.rename(columns={"crop_path": "name", "crop_sha256": "sha256"})
    return table[["name", "sha256", "path", "class", "label", "patient", "group", "split"]]
