"""The output folder of a run on this machine: its lock, sample scans, and the results that people look for."""

import base64
import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from thyroid import locks
from thyroid.data import tables
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.imaging import phantom
from thyroid.storage import mirror

MARK = ".thyroid-output"
"""File that marks a folder as the output of a run, and that a run locks."""


@contextlib.contextmanager
def locked(output: Path) -> Iterator[None]:
    """Lock the output. The lock ends with the process, even if the process is killed.

    Raises:
        InputError: Another run holds the lock.
    """

    def refuse() -> None:
        raise InputError(
            f"{output}: another run is using this folder; wait until it has ended, or choose another folder with "
            "--output"
        )

    with locks.held(output / MARK, refuse):
        if not (output / MARK).stat().st_size:
            (output / MARK).write_text("made by `python -m pipelines run`; its contents are replaced by the next run\n")
        yield


def draw_sample(output: Path, seed: int) -> None:
    """Draw synthetic sample scans in the output."""
    print("No SCANS given: drawing synthetic sample scans")
    phantom.generate(output / "sample", seed=seed)


def collect(output: Path) -> None:
    """Copy the results that people look for from the run's own folder to the top of the output."""
    outputs = {
        name: next((output / "pipeline").glob(f"*/{step}/{name}"))
        for step, name in (
            ("crop", "images"),
            ("locate", "boxes"),
            ("evaluate", "report"),
            ("register", "summary"),
            ("deploy", "manifest"),
        )
    }
    _replace(output / "data", outputs["images"], *tables.DOMAINS)
    _replace(output / "locate", outputs["boxes"], "crops", "locator", ".work")
    shutil.copy(outputs["report"], output / "report.html")
    shutil.copy(outputs["summary"], output / "summary.json")
    shutil.copy(outputs["manifest"], output / "inferenceservice.yaml")
    (output / "request.json").write_text(json.dumps({"instances": [_example(output / "data")]}))


def _replace(folder: Path, source: Path, *left_out: str) -> None:
    """Replace a folder of the output by a copy of another folder, without the entries of these names."""
    incoming = folder.with_name(f".{folder.name}")
    shutil.rmtree(incoming, ignore_errors=True)
    shutil.copytree(source, incoming, ignore=shutil.ignore_patterns(*left_out))
    shutil.rmtree(folder, ignore_errors=True)
    incoming.replace(folder)


def _example(data: Path) -> dict[str, Any]:
    """Return a request instance with a test scan; a scan with a region is preferred."""
    version = DataVersion.read(data)
    tested, regions = version.test_scans.sort_values("path"), version.regions
    marked = tested[tested["path"].isin(regions["path"])]
    scan = (marked if len(marked) else tested).iloc[0]
    file = data / mirror.local(scan["local_path"])
    mirror.fetch([file])
    instance: dict[str, Any] = {"image": {"b64": base64.b64encode(file.read_bytes()).decode()}}
    box = regions[regions["path"] == scan["path"]]
    if len(box) and scan["domain"] == "normal":
        instance["roi"] = [int(box.iloc[0][column]) for column in ("x", "y", "width", "height")]
    return instance
