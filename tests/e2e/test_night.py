"""A whole night: new scans in the bucket, the scheduled run, and a new champion behind an endpoint that never fails."""

import csv
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.serving import free_port
from thyroid import storage
from thyroid.data import filenames
from thyroid.errors import one_line
from thyroid.imaging import phantom
from thyroid.registry.registry import Registry

COMMAND = next(
    block.strip()
    for block in re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    if block.startswith("make run SCANS=gs://")
)
PATIENTS, FIRST, SEED = 100, 60, 3


class Caller(threading.Thread):
    """A client that sends requests without a pause until it is stopped, and records every version and failure."""

    def __init__(self, port: int, body: bytes) -> None:
        super().__init__(daemon=True)
        self.address = f"http://127.0.0.1:{port}/v1/models/thyroid:predict"
        self.body = body
        self.versions: list[int] = []
        self.failures: list[str] = []
        self.over = threading.Event()

    def ask(self) -> int:
        request = urllib.request.Request(self.address, self.body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["predictions"][0]["model_version"]

    def run(self) -> None:
        while not self.over.wait(0.2):
            try:
                self.versions.append(self.ask())
            except OSError as error:
                self.failures.append(one_line(error))

    def wait_for(self, version: int, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.versions[-1:] != [version]:
            assert time.monotonic() < deadline, (version, self.versions[-5:], self.failures[-5:])
            time.sleep(0.2)


@pytest.mark.slow
def test_a_night(gcs, tmp_path):
    phantom.generate(tmp_path, patients=PATIENTS, images_per_patient=1, seed=SEED)
    scans = sorted((tmp_path / "scans").glob("*.jpg"))
    bucket, root = gcs.address("scans"), gcs.address("models")
    first = [path for path in scans if filenames.parse(path.name).patient <= FIRST]
    known = {path.name for path in first}
    with (tmp_path / "rois.csv").open() as file:
        header, *rows = csv.reader(file)

    def upload(paths, regions):
        for path in paths:
            storage.at(bucket).write(path.name, path.read_bytes())
        text = "\n".join(",".join(row) for row in [header, *regions])
        storage.at(gcs.address("")).write("rois.csv", text.encode())

    def night():
        """The scheduled entry point: the README's command, the same every night."""
        command = COMMAND.replace("gs://hospital", bucket.removesuffix("/scans"))
        command += f" OUTPUT={tmp_path / 'output'} BACKBONES=VGG16 SENSITIVITY=.8"
        environment = os.environ | {"MAKEFLAGS": f"VENV={Path(sys.executable).parents[1]}"}
        started = time.monotonic()
        done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout, time.monotonic() - started

    def crowned(version):
        """What the gate decided stands in the registry; what it refuses, which depends on the processor's rounding, is
        promoted by hand, so that the endpoint has something to swap."""
        aliases = Registry(root).read_aliases()
        assert aliases["candidate"] == version
        if json.loads((tmp_path / "output" / "summary.json").read_text())["gate"]["decision"] == "refused":
            assert aliases.get("champion") == (version - 1 or None)
            Registry(root).promote(str(version), "the night's test", "test")
        return {alias: number for alias, number in Registry(root).read_aliases().items() if alias != "anchor"}

    upload(first, [row for row in rows if row[0] in known])
    told, _ = night()
    assert crowned(1) == {"candidate": 1, "champion": 1}, told

    port = free_port()
    serving = subprocess.Popen(
        [sys.executable, "-m", "thyroid.serve", "--registry", root, "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    caller = Caller(port, (tmp_path / "output" / "request.json").read_bytes())
    try:
        for _ in range(300):
            try:
                caller.ask()
                break
            except OSError:
                time.sleep(0.2)
        caller.start()
        caller.wait_for(1, 30)

        before = len(gcs.proxy.requests)
        _, seconds = night()
        assert Registry(root).versions() == [1]
        assert seconds < 120, "nothing new costs no training"
        # the check before a run reads an object that does not exist, whose name has a dot in front
        fetched = [path for _, path in gcs.proxy.requests[before:] if re.search(r"scans%2F[^.].*alt=media", path)]
        assert not fetched, "an unchanged object was downloaded"

        new = [path for path in scans if path.name not in known]
        upload(new[:10], [row for row in rows if row[0] in known | {path.name for path in new[:10]}])
        told, _ = night()
        assert re.search(r"\b10 of 20\b.*\bversion 1\b", told)
        assert Registry(root).versions() == [1]

        upload(new[10:], rows)
        told, _ = night()
        assert re.search(rf"\b{len(new)} .*\b0 .*\b0 .*\b{len(first)} ", told), (
            "new, changed, removed and unchanged scans"
        )
        assert re.search(r"\bAUROC\b.*\bchampion 1\b", told), "the warm start compares with the champion"
        assert crowned(2) == {"candidate": 2, "champion": 2, "previous": 1}, told
        report = (tmp_path / "output" / "report.html").read_text()
        assert re.search(rf"\b{len(new)} scans are new\b", report)
        caller.wait_for(2, 60)

        night()
        assert Registry(root).versions() == [1, 2]
        assert caller.failures == []
        assert caller.versions == sorted(caller.versions), "an older model answered after a newer one"
    finally:
        caller.over.set()
        serving.terminate()
        serving.wait(60)
