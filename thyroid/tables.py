"""The two tables of a data version, `scans` and `regions`, and its digest.

A data version is a folder: `scans.parquet`, `regions.parquet`, `quarantine.csv` and `data.json`.

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

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from thyroid.errors import InputError

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
    """Write the tables and `facts` (data.json) of a data version; data.json comes last and marks it whole."""
    folder.mkdir(parents=True, exist_ok=True)
    scans.to_parquet(folder / "scans.parquet", index=False)
    regions.to_parquet(folder / "regions.parquet", index=False)
    write_json(folder / "data.json", facts)


def read(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Read scans, regions and facts of a data version.

    Raises:
        InputError: the folder is not a whole data version.
    """
    for name in ("data.json", "scans.parquet", "regions.parquet"):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: not a data version ({name} is missing); run `python -m thyroid.ingest` first")
    try:
        return (
            pd.read_parquet(folder / "scans.parquet"),
            pd.read_parquet(folder / "regions.parquet"),
            json.loads((folder / "data.json").read_text()),
        )
    except ValueError as error:  # also pyarrow's
        raise InputError(f"{folder}: damaged data version ({error}); remove it and ingest again") from None


def images(folder: Path) -> Path:
    """The folder that the crop_path and normal_path of a data version are relative to: a store's, or its own."""
    return Path(json.loads((folder / "data.json").read_text()).get("images", folder))


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


def contents(scans: pd.DataFrame, regions: pd.DataFrame) -> pd.DataFrame:
    """sha256, label (the class), split and boxes (JSON text of the sorted regions) of every scan in use, sorted: what a model is made of."""
    boxes: dict[str, list[list[int]]] = {}
    sides = regions[["x", "y", "width", "height"]].astype(int).to_numpy().tolist()
    for path, box in zip(regions["path"].tolist(), sides, strict=True):
        boxes.setdefault(path, []).append(box)
    good = used(scans)
    mine = [json.dumps(sorted(boxes.get(path, []))) for path in good["path"].tolist()]
    return good.assign(boxes=mine, label=good["class"])[list(CONTENTS)].sort_values(list(CONTENTS), ignore_index=True)


def write_quarantine(path: Path, rows: pd.DataFrame) -> None:
    """Write quarantine.csv: file and reason, with an apostrophe before what a spreadsheet would take for a formula."""
    rows.map(lambda text: f"'{text}" if str(text).startswith(_FORMULA) else text).to_csv(path, index=False)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON so that a reader never sees half a file."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
