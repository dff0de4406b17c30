"""Scans in, one data version out: names parsed, files checked, hashed and grouped, splits dealt, nothing lost.

python -m thyroid.ingest --scans DIR --rois rois.csv --output DIR
"""

import argparse
import hashlib
import math
import os
import stat
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from thyroid import duplicates, errors, images, names, phantom, plots, progress, splits, tables
from thyroid.errors import InputError

GIVEN_SPLITS = ("separate", "keep", "ignore")
ROI_COLUMNS = ("filename", "x", "y", "width", "height")
_GIVEN = {"train": "train", "test": "test", "validation": "validation", "val": "validation", "valid": "validation"}
_CHUNK = 64


@dataclass(frozen=True)
class Ingested:
    """Where the data version is and what it holds (the content of data.json)."""

    folder: Path
    facts: dict[str, Any]


def ingest(
    scans: Path,
    output: Path,
    rois: Path | None = None,
    crops: Path | None = None,
    given_splits: str = "separate",
    previous: Path | None = None,
    seed: int = 0,
) -> Ingested:
    """Check, hash, group and split every file under `scans`, and write a data version to `output`.

    Args:
        scans: folder of frames, searched recursively. Folders named train, validation and test are given splits.
        output: folder of the new data version.
        rois: CSV with filename, x, y, width, height (pixels of the frame); other columns are ignored.
        crops: folder of images that are already cropped; they make up the cropped domain.
        given_splits: what to do when given train and test folders share a patient or a near-duplicate: "separate"
            moves the whole group to the train side, "keep" leaves it (and the leak), "ignore" deals all splits anew.
        previous: the last data version; its groups keep their splits, and copies of its scans join them.
        seed: of the dealing of new groups.

    Raises:
        InputError: nothing usable, one class only, a rois.csv that cannot be read, or a split without a class.
    """
    started = time.monotonic()
    _check_folders(scans, crops)
    table = _examine(scans, "normal", exclude=(rois, crops, output))
    if crops is not None:
        table = pd.concat([table, _examine(crops, "cropped")], ignore_index=True)
    good = tables.used(table).copy()
    _require_both_classes(good, table, scans)

    hashes, patients = good["phash"].tolist(), good["patient"].tolist()
    pairs = duplicates.near_duplicates(hashes)
    good["group"] = duplicates.groups(patients, pairs)
    copies = duplicates.groups(range(len(good)), pairs)
    notes = _describe_groups(good, pairs)

    if given_splits == "ignore":
        good["split"] = None
        previous = None
    given = set(good["split"].dropna())
    notes += _settle_splits(good, given, given_splits, previous)
    good = _drop_same_bytes(good, table)
    # Given folders are complete as they are, but a given train folder holds the validation part, too.
    open_splits = {
        s: f for s, f in splits.FRACTIONS.items() if not given or (s not in given - {"train"} and s != "test")
    }
    fractions = {split: share / sum(open_splits.values()) for split, share in open_splits.items()}
    good["split"] = splits.deal(good, fractions, seed)
    splits.check(good)

    for column in ("group", "split"):
        table[column] = good[column].reindex(table.index).astype(tables.SCANS[column])
    regions, refused = _regions(table, scans.resolve(), rois)
    facts = {
        "source": str(scans.resolve()),
        "digest": tables.digest(table, regions),
        "scans": len(good),
        "quarantined": len(table) - len(good) + len(refused),
        "patients": int(good["patient"].nunique()),
        "duplicate_groups": int((pd.Series(copies).value_counts() > 1).sum()),
        "regions": len(regions),
        "synthetic": int(good["synthetic"].sum()),
        "splits": tables.count_splits(good),
        "notes": notes,
        "seconds": {"ingest": round(time.monotonic() - started, 1)},
    }
    output.mkdir(parents=True, exist_ok=True)
    _write_quarantine(output / "quarantine.csv", table, refused)
    plots.data_statistics(good, regions, output / "statistics.png")
    tables.write(output, table[list(tables.SCANS)], regions, facts)
    _report(facts, good, output)
    return Ingested(output, facts)


def _check_folders(scans: Path, crops: Path | None) -> None:
    for folder in (scans, crops):
        if folder is not None and not folder.is_dir():
            raise InputError(f"{folder}: no such folder of scans")
    if crops is not None and scans.resolve().is_relative_to(crops.resolve()):
        raise InputError(f"{crops}: the folder of crops holds the folder of scans {scans}; keep them apart")


def _examine(folder: Path, domain: str, exclude: Sequence[Path | None] = ()) -> pd.DataFrame:
    """One row a file under `folder` but for what is in `exclude`, quarantined or not."""
    root = folder.resolve()
    skip = [path.resolve() for path in exclude if path is not None]
    files = [path for path in _walk(root) if not any(path.is_relative_to(other) for other in skip)]
    if not files:
        raise InputError(f"{folder}: no scan found; expected files such as B_001-0002-1.0.jpg in it or in its folders")
    tasks = [(str(path), str(root), domain) for path in files]
    with ProcessPoolExecutor() as pool:
        results = pool.map(_examine_file, tasks, chunksize=_CHUNK)
        rows = list(progress.bar(results, len(tasks), f"ingest {domain}", "scan"))
    return tables.frame(rows, {**tables.SCANS, "synthetic": "boolean"})


def _walk(root: Path) -> Iterator[Path]:
    """Files, links to folders and unreadable folders under `root`, sorted; what is hidden (.name) is left alone."""
    unreadable: list[Path] = []
    for directory, folders, files in os.walk(root, onerror=lambda e: unreadable.append(Path(e.filename))):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links = [name for name in folders if Path(directory, name).is_symlink()]
        for name in sorted(files + links):
            if not name.startswith("."):
                yield Path(directory) / name
    yield from unreadable


def _examine_file(task: tuple[str, str, str]) -> dict[str, Any]:
    """The scans row of one file; whatever is wrong with it becomes its quarantine reason."""
    path, root, domain = Path(task[0]), Path(task[1]), task[2]
    # a name that is not UTF-8 cannot be stored in a table
    row: dict[str, Any] = {"path": os.fsencode(path).decode("utf-8", "backslashreplace"), "domain": domain}
    try:
        if row["path"] != str(path):
            raise ValueError("name is not UTF-8; rename the file or its folder")
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise ValueError("symbolic link leaves the folder of scans")
        if path.is_symlink() and path.is_dir():
            raise ValueError("symbolic link to a folder; name the folder itself")
        if path.is_dir():
            raise ValueError("folder cannot be read")
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("not a regular file")
        name = names.parse(path.name)
        data = images.read(path)
        image = images.decode(data)
    except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: a loop of symbolic links
        return row | {"quarantine_reason": errors.one_line(error)}
    given = {_GIVEN[p.lower()] for p in path.relative_to(root).parts[:-1] if p.lower() in _GIVEN}
    return row | {
        "label": name.label,
        "patient": name.patient,
        "image": name.image,
        "version": name.version,
        "height": image.shape[0],
        "width": image.shape[1],
        "synthetic": phantom.MARK in data[:1024],
        "sha256": hashlib.sha256(data).hexdigest(),
        "phash": duplicates.perceptual_hash(image),
        "split": given.pop() if len(given) == 1 else None,
    }


def _require_both_classes(good: pd.DataFrame, table: pd.DataFrame, scans: Path) -> None:
    if good.empty:
        row = table.iloc[0]
        raise InputError(
            f"{scans}: none of its {len(table)} files can be used; the first is {Path(row['path']).name}: "
            f"{row['quarantine_reason']}"
        )
    missing = set(names.CLASSES) - set(good["label"])
    if missing:
        raise InputError(
            f"{scans}: no usable scan of class {missing.pop()} among {len(good)}; both B (benign) and M (malignant) are "
            "needed, as the first letter of the file names"
        )


def _describe_groups(good: pd.DataFrame, pairs: list[tuple[int, int]]) -> list[str]:
    notes = []
    both = good.groupby("patient")["label"].nunique()
    both = both[both > 1]
    if len(both):
        listed = ", ".join(f"{patient:03d}" for patient in both.index[:20])
        notes.append(f"{len(both)} patients have scans of both classes (kept, one group each): {listed}")
    patients = good["patient"].tolist()
    across = sorted({tuple(sorted((patients[i], patients[j]))) for i, j in pairs if patients[i] != patients[j]})
    if across:
        listed = ", ".join(f"{a:03d} = {b:03d}" for a, b in across[:20])
        notes.append(f"{len(across)} pairs of patient numbers share near-duplicate scans (grouped together): {listed}")
    return notes


def _settle_splits(good: pd.DataFrame, given: set[str], given_splits: str, previous: Path | None) -> list[str]:
    """Fill `split` of groups whose split is decided already; returns what had to be moved, in words.

    A given folder wins over the last data version, which wins over dealing anew.
    """
    notes: list[str] = []
    persisted = _persisted(good, previous) if previous is not None else {}
    for group, members in good.groupby("group"):
        found = sorted(set(members["split"].dropna()))
        who = ", ".join(f"{patient:03d}" for patient in sorted(set(members["patient"]))[:10])
        if len(found) > 1 and given_splits == "keep":
            notes.append(f"LEAK kept: patient {who} is in the given {' and '.join(found)} folders")
            continue
        if len(found) > 1:
            files = ", ".join(Path(p).name for p in members["path"][:4])
            notes.append(
                f"patient {who} was in the given {' and '.join(found)} folders ({files}); moved to the training side"
            )
            found = ["train"]
        before = persisted.get(int(group))
        if not found:
            split = before if before != "test" or "test" not in given else "train"
        elif found == ["train"] and "validation" not in given:
            split = before if before != "test" else "train"  # None: dealt between train and validation
        else:
            split = found[0]
        good.loc[members.index, "split"] = split
    return notes


def _persisted(good: pd.DataFrame, previous: Path) -> dict[int, str]:
    """Group number to the split that the last data version gave it (test wins where it gave two)."""
    old = tables.used(tables.read(previous)[0])
    offset = len(old)
    pairs = duplicates.near_duplicates([*old["phash"], *good["phash"]])
    strongest = {"test": 0, "validation": 1, "train": 2}
    by_patient = old.groupby("patient")["split"].agg(lambda s: min(s, key=strongest.__getitem__)).to_dict()
    claims = [(g, by_patient[p]) for g, p in zip(good["group"], good["patient"], strict=True) if p in by_patient]
    groups = good["group"].tolist()
    claims += [(groups[j - offset], old["split"].iloc[i]) for i, j in pairs if i < offset <= j]
    decided: dict[int, str] = {}
    for group, split in claims:
        decided[group] = min(split, decided.get(group, split), key=strongest.__getitem__)
    return decided


def _drop_same_bytes(good: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Quarantine further copies of the same bytes; all of them where they disagree about the label."""
    for _, copies in good[good.duplicated(["domain", "sha256"], keep=False)].groupby(["domain", "sha256"]):
        first = Path(copies["path"].iloc[0]).name
        if copies["label"].nunique() > 1:
            others = ", ".join(Path(path).name for path in copies["path"])
            table.loc[copies.index, "quarantine_reason"] = f"same bytes under different labels: {others}"
        else:
            table.loc[copies.index[1:], "quarantine_reason"] = f"same bytes as {first}"
    return good[table.loc[good.index, "quarantine_reason"].isna()].copy()


def _regions(table: pd.DataFrame, root: Path, rois: Path | None) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    """The regions table and (file, reason) of rows that cannot be used."""
    rows: list[dict[str, Any]] = []
    refused: list[tuple[str, str]] = []
    good = tables.used(table)
    for scan in good[good["domain"] == "cropped"].itertuples():
        rows.append(
            {
                "path": scan.path,
                "index": 0,
                "x": 0,
                "y": 0,
                "width": scan.width,
                "height": scan.height,
                "source": "given",
            }
        )
    if rois is not None:
        normal = good[good["domain"] == "normal"]
        by_name: dict[str, list[Any]] = {}
        for scan in normal.itertuples():
            by_name.setdefault(Path(scan.path).name, []).append(scan)
        quarantined = {Path(path).name for path in table.loc[table["quarantine_reason"].notna(), "path"]}
        count: dict[str, int] = {}
        for line, row in enumerate(_read_rois(rois).itertuples(), start=2):
            name = str(row.filename)
            matches = [
                s for s in by_name.get(Path(name).name, []) if Path(s.path).as_posix().endswith("/" + name.lstrip("./"))
            ]
            matches = [scan for scan in matches if scan.path == str(root / name)] or matches
            try:
                if not matches:
                    raise ValueError("file is quarantined" if Path(name).name in quarantined else "no such scan")
                if len(matches) > 1:
                    raise ValueError("several scans have this name; give the path within the folder of scans")
                x, y, width, height = _box(row, matches[0])
            except ValueError as error:
                refused.append((name, f"region in line {line} of {rois.name}: {error}"))
                continue
            path = matches[0].path
            rows.append(
                {
                    "path": path,
                    "index": count.get(path, 0),
                    "x": x,
                    "y": y,
                    "width": width,
                    "height": height,
                    "source": "given",
                }
            )
            count[path] = count.get(path, 0) + 1
        if not count:
            why = f"; the first: {refused[0][0]}: {refused[0][1]}" if refused else " (it has no rows)"
            raise InputError(f"{rois}: none of its regions can be used{why}")
    return tables.frame(rows, tables.REGIONS), refused


def _read_rois(rois: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(
            rois, dtype={"filename": "string"}, skipinitialspace=True, index_col=False, encoding="utf-8-sig"
        )
    except FileNotFoundError:
        raise InputError(f"{rois}: no such file of regions") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{rois}: not a CSV table: {error}") from None
    missing = [column for column in ROI_COLUMNS if column not in table.columns]
    if missing:
        raise InputError(f"{rois}: column {', '.join(missing)} is missing; expected {', '.join(ROI_COLUMNS)}")
    return table


def _box(row: Any, scan: Any) -> tuple[int, int, int, int]:
    """Whole pixels of a region, checked against its scan."""
    try:
        x, y, width, height = (float(getattr(row, column)) for column in ROI_COLUMNS[1:])
    except (TypeError, ValueError):
        raise ValueError("x, y, width and height must be numbers") from None
    if not all(math.isfinite(v) for v in (x, y, width, height, x + width, y + height)):
        raise ValueError("x, y, width and height must be numbers")
    if width < 1 or height < 1:
        raise ValueError(f"region has no size (width {width:g}, height {height:g})")
    left, top, right, bottom = math.floor(x), math.floor(y), math.ceil(x + width), math.ceil(y + height)
    if left < 0 or top < 0 or right > scan.width or bottom > scan.height:
        raise ValueError(
            f"region x {x:g}..{x + width:g}, y {y:g}..{y + height:g} is outside the {scan.width}x{scan.height} image"
        )
    return left, top, right - left, bottom - top


def _write_quarantine(path: Path, table: pd.DataFrame, refused: list[tuple[str, str]]) -> None:
    bad = table[table["quarantine_reason"].notna()]
    rows = [*zip(bad["path"], bad["quarantine_reason"], strict=True), *refused]
    pd.DataFrame(rows, columns=["file", "reason"]).to_csv(path, index=False)


def _report(facts: dict[str, Any], good: pd.DataFrame, output: Path) -> None:
    for split, count in facts["splits"].items():
        total = sum(count[label] for label in names.CLASSES)
        by_class = ", ".join(f"{label} {count[label]}" for label in names.CLASSES)
        print(f"{split}: Found {total} images belonging to 2 classes. ({by_class}; {count['patients']} patients)")
    for note in facts["notes"]:
        print(f"note: {note}")
    if facts["quarantined"]:
        print(f"quarantined: {facts['quarantined']}, see {output / 'quarantine.csv'}")


@errors.command
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m thyroid.ingest", description=__doc__.split("\n")[0])
    parser.add_argument("--scans", type=Path, required=True, help="folder of frames, searched recursively")
    parser.add_argument("--output", type=Path, required=True, help="folder of the new data version")
    parser.add_argument("--rois", type=Path, help="CSV: filename, x, y, width, height in pixels of the frame")
    parser.add_argument("--crops", type=Path, help="folder of images that are already cropped")
    parser.add_argument(
        "--given-splits", choices=GIVEN_SPLITS, default="separate", help="train/test folders that share a patient"
    )
    parser.add_argument("--previous", type=Path, help="the last data version, whose splits are kept")
    parser.add_argument("--seed", type=int, default=0)
    ingest(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    raise SystemExit(main())
