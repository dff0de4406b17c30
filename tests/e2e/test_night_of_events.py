"""A night with another hospital's scanner: events, drift, one training, a shadow, outcomes, and word of each step."""

import base64
import contextlib
import csv
import datetime
import html
import json
import random
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from pipelines import __main__ as pipelines
from pipelines import compile
from tests.support.clouds import GoogleCloud
from tests.support.kubeflow import Kubeflow
from tests.support.listening import Listener, eventually, written
from tests.support.receivers import Receiver, receiving
from tests.support.serving import PREDICT, Server, errors_in
from thyroid import RESEARCH_USE_ONLY, storage
from thyroid.imaging import images, phantom, phantom_nodule
from thyroid.model import engine
from thyroid.notify.receivers import PLAIN, SLACK
from thyroid.records.evaluation import SummaryRecord
from thyroid.records.watch import SHADOW_FOLDER, Decision, Shadowed, WatchRecord
from thyroid.registry.beside import shadows
from thyroid.registry.registry import Registry
from thyroid.watch import __main__ as watching

SEED = 3
PATIENT = 471_100_000
"""Number before the first patient's. So long a number is in no id and no time by chance."""
USUAL, OTHER = "linear", "convex"
FIRST = {"train": 28, "validation": 24, "test": 32}
"""Patients of the first scanner by split, with a picture each. The gate wants ten of each class."""
ARRIVED = {"train": 24, "validation": 10, "test": 20}
"""Patients of the other scanner that arrive by events."""
STEADY, LIVE = 30, 76
"""Patients of the first scanner who are only seen, and live pictures that decide on the candidate."""
BACKBONE = "VGG16"
TRAINING = {
    "domains": "cropped",
    "weights": "none",
    "image_size": "32",
    "recipe": "frozen",
    "epochs": "0",
    "minimum": "1000",
    "train_on": "drift",
    "shadow": str(LIVE),
}
"""So many scans never arrive at once: only the verdict of the watch starts the second training."""
QUIET = "10"
"""Minutes that the listener waits for further scans; it gets as many as it needs."""
EAGER = (
    "from thyroid.serve import state; state.WATCH_BUCKET_SECONDS = 0.3; "
    "from thyroid.serve.shadow import process; process.MODULE = 'tests.support.eager_shadow'"
)
"""An endpoint that looks at its registry often, and whose candidate is not kept waiting by other tests."""
ANSWERS = "the candidate answers behind the champion"
CERTAIN = {name: {"B": 0.0, "M": float(odds["M"] > 0.5)} for name, odds in phantom_nodule.SIGNS.items()}
"""Signs that every malignant nodule has and no benign one, so that a toy network tells them apart."""


class Scan(NamedTuple):
    """A picture of a patient with one nodule."""

    label: str
    patient: int
    data: bytes
    roi: tuple[int, int, int, int]

    @property
    def name(self) -> str:
        return f"{self.label}_{self.patient}-0001-1.0.jpg"


class Phantoms:
    """Draws patients with consecutive numbers, every other one of whom has a malignant nodule."""

    def __init__(self) -> None:
        self.drawn: list[Scan] = []

    def draw(self, count: int, scanner: phantom.Name, atypical: int = 0) -> list[Scan]:
        """Draw a picture each of so many patients; the nodules of the last `atypical` look like the other class."""
        for number in range(count):
            patient = PATIENT + len(self.drawn) + 1
            label, other = "BM"[patient % 2], "MB"[patient % 2]
            looks = label if number < count - atypical else other
            made = phantom.draw(looks, patient, 1, SEED, scanner=scanner)
            self.drawn.append(Scan(label, patient, images.encode(made.image, phantom.MARK), made.roi))
        return self.drawn[-count:]


class Night:
    """The places of a night, and what is done in it.

    Attributes:
        log: Folder of the decision log.
        told: Number of messages that `news` has returned.
    """

    def __init__(self, cloud: GoogleCloud, folder: Path, receivers: tuple[Receiver, Receiver]) -> None:
        self.cloud, self.folder, self.log = cloud, folder, folder / "decisions"
        self.plain, self.slack = receivers
        self.told = 0
        self.registry = Registry(cloud.address("registry"))
        self.closing = contextlib.ExitStack()
        self.places = {name: cloud.address(name) for name in ("scans", "registry", "store")}
        self.places["rois"] = cloud.address("rois.csv")
        self.rois: list[tuple[Any, ...]] = [("filename", "x", "y", "width", "height")]

    def put(self, scans: Sequence[Scan], splits: dict[str, int]) -> list[str]:
        """Write scans and their boxes to the bucket, and return the objects' names in this order: the table first."""
        given = [split for split, count in splits.items() for _ in range(count)]
        objects = {f"scans/{split}/{scan.name}": scan.data for split, scan in zip(given, scans, strict=True)}
        self.rois += [(scan.name, *scan.roi) for scan in scans]
        table = "\n".join(",".join(map(str, row)) for row in self.rois)
        self.cloud.put(objects | {"rois.csv": table.encode()})
        return ["rois.csv", *objects]

    def run(self, name: str, *arguments: str) -> SummaryRecord:
        """Carry a run out on this machine."""
        output = self.folder / name
        assert pipelines.main(["run", "--output", str(output), *arguments]) == 0
        return SummaryRecord.read(output / "summary.json")

    def watch(self, *arguments: str) -> WatchRecord:
        """Watch the champion, or what the arguments name."""
        output = self.folder / "watch"
        given = ["--registry", str(self.registry.root), "--log", str(self.log), "--output", str(output)]
        assert watching.main([*given, *arguments]) == 0
        return WatchRecord.read(output / "watch.json")

    def serve(self) -> Server:
        """Start the endpoint of the registry, with a decision log and a candidate behind the champion."""
        self.log.mkdir()
        given = ("--registry", str(self.registry.root), "--log", str(self.log), "--shadow", "--form", engine.F32)
        server = Server(self.folder / "serve.log", *given, before=EAGER)
        self.closing.callback(server.kill)
        return server.wait()

    def listen(self, host: Kubeflow) -> Listener:
        """Start a listener for the scans, which may not listen yet."""
        package = self.folder / "thyroid.yaml"
        compile.compile_training(compile.Placement(backbones=BACKBONE, claim=""), package)
        given = [part for name, value in (TRAINING | self.places).items() for part in ("--set", f"{name}={value}")]
        line = ["--claim", "", "--backbones", BACKBONE, "--host", host.url, *given, "--quiet", QUIET]
        line += ["--state", self.cloud.address("listen"), "--event-token-file", str(self.folder / "token")]
        listener = Listener(self.folder, package, *line, "--minimum", str(sum(ARRIVED.values())))
        self.closing.callback(listener.kill)
        return listener

    def send(self, server: Server, scans: Sequence[Scan]) -> list[Decision]:
        """Send scans with their boxes to the endpoint, and return what it logged of them."""
        before = len(self.decisions())
        for start in range(0, len(scans), 8):
            ask(server, scans[start : start + 8])
        eventually(lambda: len(self.decisions()) == before + len(scans))
        return self.decisions()[before:]

    def decisions(self) -> list[Decision]:
        """Every decision of the endpoint so far."""
        return [Decision.model_validate_json(line) for line in _lines(self.log)]

    def shadowed(self) -> list[Shadowed]:
        """Everything that a candidate said behind the champion so far."""
        return [Shadowed.model_validate_json(line) for line in _lines(self.log / SHADOW_FOLDER)]

    def news(self) -> list[str]:
        """What was told since this was asked last; both receivers were told the same."""
        new = self.plain.messages[self.told :]
        texts = [json.loads(body)["text"] for _, _, body in self.slack.got[self.told :]]
        assert len(texts) == len(new)
        for message, text in zip(new, texts, strict=True):
            assert message.sentence in html.unescape(text)
            assert message.notice == RESEARCH_USE_ONLY
            assert RESEARCH_USE_ONLY in text
        self.told += len(new)
        return [message.event for message in new]


def _lines(folder: Path) -> list[str]:
    """The whole lines of a log."""
    text = "".join(path.read_text() for path in sorted(folder.glob("*.jsonl")))
    return text[: text.rfind("\n") + 1].splitlines()


@pytest.fixture
def drawing(monkeypatch) -> Phantoms:
    monkeypatch.setattr(phantom_nodule, "SIGNS", CERTAIN)
    return Phantoms()


@pytest.fixture
def night(gcs, tmp_path, monkeypatch) -> Iterator[Night]:
    with receiving() as plain, receiving() as slack:
        monkeypatch.setenv(PLAIN, plain.url)
        monkeypatch.setenv(SLACK, slack.url)
        night = Night(gcs, tmp_path, (plain, slack))
        with night.closing:
            yield night


@pytest.fixture
def host() -> Iterator[Kubeflow]:
    running = Kubeflow()
    running.states = [{"state": "RUNNING"}]
    yield running
    running.shutdown()
    running.server_close()


@pytest.mark.slow
def test_another_scanner_arrives_and_every_step_follows_and_is_told_once(night, drawing, host):
    registry = night.registry

    # a first model
    # every model is wrong about two of the test patients: DeLong's test cannot compare two perfect ones
    night.put(drawing.draw(sum(FIRST.values()), USUAL, atypical=2), FIRST)
    given = [part for name, value in (TRAINING | night.places).items() for part in (option(name), value)]
    first = night.run("first", "--backbones", BACKBONE, *given)
    assert first.gate.decision == "promoted", first.gate.reasons
    assert registry.read_aliases() == {"candidate": 1, "champion": 1, "anchor": 1}
    assert night.news() == ["gate.released", "run.succeeded"]

    # its own scanner
    listener, server = night.listen(host), night.serve()
    usual = night.send(server, drawing.draw(STEADY, USUAL))
    assert night.watch().verdict == "steady"
    assert night.news() == []

    # the other one
    arrived = drawing.draw(sum(ARRIVED.values()), OTHER)
    unusual = night.send(server, arrived)
    assert novelty(unusual) > novelty(usual)
    drifted = night.watch()
    assert drifted.verdict == "drift", drifted.summary
    assert "distance" in {row.property for row in drifted.drift.rows if row.alarm}
    assert night.watch().verdict == "drift"
    assert night.news() == ["watch.drift"]
    events = arrivals(night, night.put(arrived, ARRIVED))
    listener.wait()
    for event in disordered(events):
        assert listener.post(event) == 204

    # one training
    eventually(lambda: min(len(night.plain.got), len(night.slack.got)) > night.told, 60)
    assert night.news() == ["run.started"]
    second = carried_out(night, host)
    assert second.gate.decision == "waiting", second.gate.reasons
    assert registry.read_aliases() == {"candidate": 2, "waiting": 2, "champion": 1, "anchor": 1}
    assert night.news() == ["gate.waiting", "run.succeeded"]
    host.states = [{"state": "SUCCEEDED"}]
    eventually(lambda: "a run has ended" in listener.log.read_text())
    for event in events:
        assert listener.post(event) == 204

    # the candidate behind the champion
    server.wait_for(ANSWERS, 120)
    for count in (LIVE // 2, LIVE):  # the queue of the candidate would not hold all of them
        night.send(server, drawing.draw(LIVE // 2, OTHER))
        eventually(lambda expected=count: len(night.shadowed()) == expected, 60)
    settled = night.watch()
    event = check_settled(night, settled)
    assert night.watch("--model", "1").verdict == "drift"
    assert night.news() == [event]

    # outcomes
    seen = drawing.drawn[sum(FIRST.values()) :]
    known = night.watch("--model", "1", "--outcomes", str(outcomes(night.folder / "outcomes.csv", seen)))
    check_closed(night, known, len(seen))
    assert night.news() == (["watch.worse"] if known.verdict == "worse" else [])

    # the end: whatever was decided is served, and everything was told once
    eventually(lambda: answering(server, arrived[0]) == registry.champion(), 60)
    assert len(host.runs) == 1
    waiting = json.loads(night.cloud.read("listen/listen.json"))
    assert (waiting["run"], waiting["sealed"], waiting["batch"]["last"]) == (None, None, 0), "nothing more is due"
    check_told(night, drawing.drawn, listener.stop() + server.kill())


def ask(server: Server, scans: Sequence[Scan]) -> list[dict[str, Any]]:
    """Send scans with their boxes in one request, and return the answers."""
    instances = [
        {"image": {"b64": base64.b64encode(scan.data).decode()}, "roi": list(scan.roi), "patient": str(scan.patient)}
        for scan in scans
    ]
    status, answer = server.ask(PREDICT, {"instances": instances})
    assert status == 200, answer
    return answer["predictions"]


def answering(server: Server, scan: Scan) -> int:
    """The version that answers now."""
    return ask(server, [scan])[0]["model_version"]


def option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def novelty(decisions: Sequence[Decision]) -> float:
    """The median of how unlike the training pictures these are."""
    return statistics.median(one.distance for one in decisions if one.distance is not None)


def arrivals(night: Night, names: Sequence[str]) -> list[tuple[dict[str, str], bytes]]:
    """The events of these objects as they are in the bucket."""
    entries = storage.bucket_at(night.cloud.address("").rstrip("/")).entries()
    generations = {entry.name: entry.generation for entry in entries}
    return [written(night.cloud.bucket, name, int(generations[name])) for name in names]


def disordered(events: Sequence[tuple[dict[str, str], bytes]]) -> list[tuple[dict[str, str], bytes]]:
    """All events in another order and every third one twice; the last scan completes the batch, so it stays last."""
    *early, last = events
    repeated = [*early, *early[::3]]
    random.Random(SEED).shuffle(repeated)
    return [*repeated, last]


def carried_out(night: Night, host: Kubeflow) -> SummaryRecord:
    """What Kubeflow would do: the one run that it was asked for."""
    (asked,) = host.runs
    values = asked["runtime_config"]["parameters"]
    content = yaml.safe_load(values["run"])
    assert {name: str(content[name]) for name in values if name != "run"} == {
        name: str(value) for name, value in values.items() if name != "run"
    }
    assert (values["train_on"], values["shadow"], values["scans"]) == ("drift", LIVE, night.places["scans"])
    (night.folder / "asked.yaml").write_text(values["run"])
    return night.run("second", "--config", str(night.folder / "asked.yaml"))


def check_settled(night: Night, record: WatchRecord) -> str:
    """Check that the gate decided as its criteria say and the registry has it; return the event of that."""
    found = record.shadow
    assert found is not None
    assert (found.champion, found.candidate, found.pictures, found.patients) == (1, 2, LIVE, LIVE)
    assert {one.version for one in night.shadowed()} == {2}
    decided = {one.id: one.decision for one in night.decisions()}
    changed = [one for one in night.shadowed() if one.decision != decided[one.id]]
    assert found.changed == len(changed)
    assert shadows.last(night.registry, 2) == found
    assert found.decision is not None
    accepted = all(one.passed for one in found.decision.criteria)
    assert found.decision.decision == ("accepted" if accepted else "refused")
    assert night.registry.champion() == (2 if accepted else 1)
    return "gate.released" if accepted else "gate.refused"


def outcomes(path: Path, scans: Sequence[Scan]) -> Path:
    """What pathology found in these patients today, and in one whom nobody has seen."""
    today = datetime.datetime.now(datetime.UTC).date()
    rows = [(scan.patient, "malignant" if scan.label == "M" else "benign", today) for scan in scans]
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([("patient", "pathology", "date"), *rows, (PATIENT, "benign", today)])
    return path


def check_closed(night: Night, record: WatchRecord, patients: int) -> None:
    """Check that the report has both the outcomes and what the candidate would have changed."""
    assert record.outcomes is not None
    assert record.outcomes.patients == patients
    assert record.outcomes.set_aside == {"never_seen": 1}
    assert record.shadow is not None
    report = html.unescape((night.folder / "watch" / "report.html").read_text())
    assert 'id="outcome-details"' in report
    assert record.shadow.summary in report
    assert 'id="shadow-decision"' in report
    assert RESEARCH_USE_ONLY in report


def check_told(night: Night, scans: Sequence[Scan], log: str) -> None:
    """Check that no message came twice, and that neither a message nor a log names a patient."""
    ids = [message.id for message in night.plain.messages]
    assert len(ids) == len(set(ids)) == night.told
    said = [body.decode() for receiver in (night.plain, night.slack) for _, _, body in receiver.got]
    for text in [*said, log]:
        assert ".jpg" not in text
        assert not [scan for scan in scans if str(scan.patient) in text]
    assert "Traceback" not in log
    assert not errors_in(log)
