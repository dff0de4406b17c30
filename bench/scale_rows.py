"""What `ingest` costs beside reading and decoding: its passes over the rows of many scans, without their files.

The listing names files that do not exist, and what is read of one of them is made up from its name: checksum and
perceptual hash at random, three scans a patient. Near-duplicates have a benchmark of their own, so none are looked for.
Everything else is the step itself: listing, known rows, tables, groups, splits, regions of a rois.csv with one row for
each scan, quarantine, statistics.png and the store, and what the pipeline's component does afterwards, fingerprint and
changes. Each run is a process of its own, whose peak of memory is its own.

    python bench/scale_rows.py 1000000
"""

import argparse
import functools
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

NEW = 10_000
"""New scans of a night."""
SCANS_A_PATIENT = 3


def rows(count: int) -> dict[str, Any]:
    """Measure the passes over scans: a first run over all but `NEW` of them, and a night in which these are new.

    Args:
        count: Number of scans; more than `NEW`.

    Returns:
        For "first" and "night": seconds, processor seconds and the peak of memory (MB) of `ingest`, the peak after
        fingerprint and changes, and the seconds of single passes.
    """
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "scans").mkdir()
        return {"first": _apart(home, count - NEW), "night": _apart(home, count)}


def _apart(home: Path, count: int) -> dict[str, Any]:
    """Return the result of a process of its own."""
    with (home / "rois.csv").open("w") as file:
        file.write("filename,x,y,width,height\n")
        for number, name in enumerate(_names(count)):
            file.write(f"{name.rsplit('/', 1)[-1]},20,30,{40 + number % 50},{50 + number % 30}\n")
    command = [sys.executable, __file__, str(count), "--home", str(home)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _names(count: int) -> Iterator[str]:
    for number in range(count):
        patient, image = divmod(number, SCANS_A_PATIENT)
        yield f"hospital/{patient % 997:03d}/{'BM'[patient % 10 < 4]}_{patient:06d}-{image + 1:04d}-1.0.jpg"


def _hex(text: str, digits: int) -> str:
    return hashlib.shake_256(text.encode()).hexdigest(digits // 2)


def _row(file: Any, copies: Path) -> dict[str, Any]:
    """Return what `examine` would say of a file."""
    name = file.name()
    row = {"path": file.path, "domain": file.domain, "generation": file.generation, "local_path": file.local}
    row |= {"label": name.label, "patient": name.patient, "image": name.image, "version": name.version}
    row |= {"height": 500, "width": 600, "sha256": _hex(file.relative, 64), "phash": _hex(f"x{file.relative}", 256)}
    return row | {"synthetic": False, "split": None}


def _peak() -> int:
    """Return the largest memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _timed(seconds: dict[str, float], owner: Any, name: str) -> None:
    """Replace a function by one that adds its seconds to `seconds`."""
    function: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(function)
    def timed(*args: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*args, **options)
        finally:
            seconds[name] = round(seconds.get(name, 0) + time.perf_counter() - started, 1)

    setattr(owner, name, timed)


def _measure(home: Path, count: int) -> dict[str, Any]:
    from thyroid.data import duplicates, plots, tables
    from thyroid.data.version import DataVersion
    from thyroid.ingest import examine, grouping, ingest, listing, regions
    from thyroid.ingest.options import IngestOptions

    passes: dict[str, float] = {}
    listing._walk = lambda root: (f"{root}/{name}" for name in _names(count))
    listing._generation = lambda path, now: f"{len(path)}00-17000000000000{_hex(path, 6)}-17000000000000{_hex(path, 4)}"
    examine._examine_file = _row
    duplicates.links = lambda *args, **options: []
    for owner, names in (
        (listing, ["list_scans"]),
        (examine, ["examine", "known"]),
        (grouping, ["find_links", "quarantine_shared_pictures", "group", "deal"]),
        (regions, ["find"]),
        (tables, ["digest", "write", "write_quarantine"]),
        (plots, ["data_statistics"]),
        (ingest, ["find_cohort", "_keep"]),
    ):
        for name in names:
            _timed(passes, owner, name)
    used, began = time.process_time(), time.perf_counter()
    done = ingest.ingest(IngestOptions(home / "scans", home / "rois.csv", store=home / "store"), home / "out")
    result: dict[str, Any] = {"scans": count, "seconds": round(time.perf_counter() - began, 1)}
    result |= {"processor_seconds": round(time.process_time() - used, 1), "memory_mb": _peak()}
    began = time.perf_counter()
    data = DataVersion.read(done.folder)
    result["fingerprint"] = data.fingerprint[:16]
    passes["fingerprint"] = round(time.perf_counter() - began, 1)
    began = time.perf_counter()
    result["changed"] = _changes(data, home)
    passes["changes"] = round(time.perf_counter() - began, 1)
    return result | {"memory_with_changes_mb": _peak(), "passes": passes}


def _changes(data: Any, home: Path) -> int:
    """Compare a data version with a registered one that lacks `NEW` of its scans, and return how many have changed."""
    from unittest import mock

    from thyroid.model.artefact import SCANS
    from thyroid.registry import changes

    known = data.contents.iloc[: -NEW or None].assign(patient="0123456789abcdef0123456789abcdef")
    known.to_csv(home / SCANS, index=False)
    registry = mock.Mock()
    registry.read_aliases.return_value = {"candidate": 1}
    registry.find.return_value = home
    with mock.patch.object(changes, "Registry", return_value=registry):
        return changes.since_last(data, home).count


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--home", type=Path)
    options = parser.parse_args()
    if options.home:
        print(json.dumps(_measure(options.home, options.count)))
    else:
        print(json.dumps(rows(options.count), indent=1))
