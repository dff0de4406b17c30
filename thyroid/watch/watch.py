"""Watch a model since its release: what it decided, whether what arrives has changed, and what became of the patients.

python -m thyroid.watch --registry DIR --log DIR --output DIR
"""

import datetime
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from thyroid import RESEARCH_USE_ONLY, errors, locks, notify, storage
from thyroid.data import pseudonyms, tables
from thyroid.errors import InputError
from thyroid.evaluate.shadow.gate import ENOUGH
from thyroid.imaging import images
from thyroid.ingest.listing import NoScanError
from thyroid.model.artefact import CARD, Artefact, code_version, sha256
from thyroid.notify import words
from thyroid.records.watch import WatchedLog, WatchedModel, WatchEntry, WatchRecord
from thyroid.registry.beside import watches
from thyroid.registry.registry import Registry
from thyroid.validate.plots import Picture
from thyroid.watch import archive, drift, drift_plots, estimate, log, prometheus, report, scans, verdict
from thyroid.watch.options import WatchOptions
from thyroid.watch.outcomes import outcomes, plots
from thyroid.watch.outcomes.outcomes import SELECTION, Outcomes
from thyroid.watch.outcomes.table import REASONS
from thyroid.watch.scans import Judged
from thyroid.watch.shadow import compare, plot, settle
from thyroid.watch.shadow.compare import Compared

PLOTS = "plots"
SET_ASIDE = "set_aside.csv"
"""File with the new scans that were not judged, and why."""
RESULTS = ("report.html", "watch.json", prometheus.FILE, SET_ASIDE, compare.CHANGED)
"""Files that a watch writes beside the folder of plots."""

_SCANS = ".scans-"  # start of the name of the folder in which new scans are judged
_TOLD = 10  # numbers of rows that a message names


@dataclass(frozen=True, eq=False)
class Watched:
    """The output of a watch.

    Attributes:
        folder: Folder with report.html, watch.json, watch.prom and plots.
        record: Content of watch.json.
        told: What else was done, in words: what was archived, set aside and kept.
    """

    folder: Path
    record: WatchRecord
    told: list[str]


@dataclass
class _Run:
    """A run: its seconds by part, what it did, and what failed without ending it."""

    started: float = field(default_factory=time.monotonic)
    seconds: dict[str, float] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @contextmanager
    def part(self, name: str, place: object = "") -> Iterator[None]:
        """Time a part of the run. A failure that the user can mend is noted in words, and the run goes on.

        Args:
            name: Name of the part.
            place: Where it reads or writes, for a failure that names no file.
        """
        begun = time.monotonic()
        try:
            yield
        except InputError as error:
            self.failed.append(errors.one_line(error))
        except OSError as error:  # which need not name a file
            self.failed.append(errors.one_line(error) if error.filename else f"{place or name}: {error}")
        self.seconds[name] = round(time.monotonic() - begun, 1)

    def total(self) -> dict[str, float]:
        return self.seconds | {"total": round(time.monotonic() - self.started, 1)}


def watch(options: WatchOptions, output: Path) -> Watched:
    """Watch a registered model: read its log, compare, join the outcomes, write the report, and keep the verdict.

    A part that fails does not end the others: the report is written, and says what could not be done. Receivers of
    notifications are told if the verdict is another one than they were told last.

    Args:
        options: The model, what it decided, and what became known since.
        output: Folder to write to.

    Raises:
        InputError: Nothing to watch is given, there is no such model or no such log, the output is among what is read
            or another watch writes to it, or something that was asked for could not be done. In the last case the
            report is written nevertheless.
    """
    options.check_sources()
    _check_places(options, output)
    registry, run = Registry(options.registry), _Run()
    artefact = Artefact.read(registry.find(options.model or None, CARD))
    output.mkdir(parents=True, exist_ok=True)
    with _alone(output):
        found = _read(options, artefact, run)
        joined = _join(options, artefact, found.decisions, run)
        released = registry.champion() == artefact.publication.version
        scanned = _judge(options, registry, found.decisions, output, released=released, run=run)
        new = None if scanned is None else scanned.decisions
        every = found.decisions if new is None or new.empty else pd.concat([found.decisions, new], ignore_index=True)
        record = _record(options, artefact, run, released=released, found=found, every=every, joined=joined)
        behind = _shadow(options, registry, artefact, found.decisions, output, run=run)
        record = record.model_copy(update={"shadow": None if behind is None else behind.record})
        newest = True
        with run.part("registry", options.registry):
            newest = watches.record(registry, record.model.version, _entry(record))
            run.told.append(f"kept beside version {record.model.version} in {options.registry}")
        record = record.model_copy(update={"seconds": run.total()})
        pictures = _draw(record, artefact, every, joined, output / PLOTS)
        notes = [] if joined is None else [note for note in joined.notes if note != SELECTION]
        changes = [] if behind is None else behind.changes
        extra = report.Extra(run.failed, notes, None if scanned is None else scanned.unlike, changes)
        report.write(output, record, pictures, extra)
        prometheus.write(record, output)
        record.write(output / "watch.json")
    _tell(registry, record, len(run.failed), newest=newest)
    if run.failed:
        raise InputError("; ".join([*run.failed, *run.told, f"the report is written: {output / 'report.html'}"]))
    return Watched(output, record, run.told)


def _tell(registry: Registry, record: WatchRecord, failed: int, *, newest: bool) -> None:
    """Tell the receivers of notifications the verdict, unless that of a later night is known, and whether it failed."""
    version, link = record.model.version, registry.address(record.model.version)
    news = [words.watch_complete(version, record.model.sha256, failed, link)]
    if newest and (verdict := words.watched(record, link)) is not None:
        news.append(verdict)
    if record.shadow is not None:
        candidate = registry.address(record.shadow.candidate)
        if (settled := words.settled(record.shadow, candidate)) is not None:
            news.append(settled)
    for one in news:
        notify.tell(one, registry.root)


def _check_places(options: WatchOptions, output: Path) -> None:
    """Check that the results cannot be taken for something that is read."""
    for what in ("log", "archive", "scans", "registry"):
        place = getattr(options, what)
        if place and not storage.is_bucket(place) and output.resolve().is_relative_to(Path(place).resolve()):
            raise InputError(f"{output}: the output is in the folder of --{what}; name another folder with --output")


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Hold the output, and remove the results of an earlier watch, which could be mistaken for those of this one."""

    def busy() -> None:
        raise InputError(f"{output}: another watch writes here; wait for it, or name another folder with --output")

    with locks.held(output / ".lock", busy):
        for name in RESULTS:
            (output / name).unlink(missing_ok=True)
        for path in (output / PLOTS, *output.glob(f"{_SCANS}*")):  # a killed watch leaves scans
            shutil.rmtree(path, ignore_errors=True)
        for path in output.glob(f"{prometheus.FILE}.*"):
            path.unlink(missing_ok=True)
        yield


@dataclass(frozen=True, eq=False)
class _Found:
    """What was read of the log: the version's decisions up to the last night, and what else was there."""

    decisions: pd.DataFrame
    other_versions: int
    set_aside: dict[str, int]
    archived: int

    def record(self) -> WatchedLog:
        table = self.decisions
        undecided = table[table["decision"] == "abstain"]
        days = table["time"].dt.date
        return WatchedLog(
            decisions=len(table),
            patients=int(table["unit"].nunique()),
            first=days.min().isoformat() if len(table) else None,
            last=days.max().isoformat() if len(table) else None,
            other_versions=self.other_versions,
            set_aside=self.set_aside,
            sources=_counts(table["source"]),
            decided=_counts(table["decision"]),
            unlike=int((table["distance"] > 1).sum()),
            reasons=_counts(undecided["reasons"].explode().dropna()),
            archived=self.archived,
        )


def _counts(values: pd.Series) -> dict[str, int]:
    """Return how often each value is there, the most frequent one first."""
    return {str(name): int(number) for name, number in values.value_counts().items()}


def _read(options: WatchOptions, artefact: Artefact, run: _Run) -> _Found:
    """Read the log and its archive, after the archive got what it lacks."""
    published, end = artefact.publication, options.last_night + datetime.timedelta(days=1)
    wanted = (published.version, datetime.datetime.fromisoformat(published.created))
    found, added, begun = None, 0, time.monotonic()
    if options.log and options.archive:
        with run.part("archive", options.archive):  # if this fails, the log alone is read
            added = log.ship(options.log, options.archive)
            run.told.append(f"{report.count(added, 'decision')} added to the archive {options.archive}")
            found = log.read(options.log, options.archive, *wanted)
    if found is None:
        found = log.read(options.log, "" if options.log else options.archive, *wanted)
    decisions = found.decisions[found.decisions["time"] < pd.Timestamp(end, tz="UTC")].reset_index(drop=True)
    run.seconds["log"] = round(time.monotonic() - begun, 1)
    return _Found(decisions, found.other_versions, found.set_aside, added)


def _join(options: WatchOptions, artefact: Artefact, decisions: pd.DataFrame, run: _Run) -> Outcomes | None:
    """Join the outcomes to the decisions; None without outcomes, or if they cannot be used."""
    if not options.outcomes:
        return None
    with run.part("outcomes", options.outcomes):
        joined = outcomes.measure(options, decisions, artefact.record, pseudonyms.key(options.registry))
        for reason, numbers in joined.aside.items():
            if numbers:
                run.told.append(_told(options.outcomes, reason, numbers))
        return joined
    return None


def _told(place: storage.Location, reason: str, numbers: Sequence[int]) -> str:
    """Say which rows of outcomes.csv were set aside, by their numbers."""
    shown = ", ".join(map(str, numbers[:_TOLD])) + (", ..." if len(numbers) > _TOLD else "")
    return f"{place}: {report.count(len(numbers), 'row')} set aside ({REASONS[reason]}): {shown}"


def _judge(
    options: WatchOptions, registry: Registry, known: pd.DataFrame, output: Path, *, released: bool, run: _Run
) -> Judged | None:
    """Let the model judge the new scans, and archive its decisions; None without scans, or if they cannot be judged.

    The decisions are those on scans that are not in `known`, the log. An erasure of the log waits until they are
    archived, or a patient whose scans were removed before it would come back.
    """
    if not options.scans:
        return None
    erasure = log.lock(options.log) if options.log and options.archive else nullcontext()
    with run.part("scans", options.scans), erasure:
        artefact = Artefact.verify(registry.find(options.model or None))
        with tempfile.TemporaryDirectory(dir=output, prefix=_SCANS) as work:
            try:
                judged = scans.judge(options, artefact, released, pseudonyms.key(options.registry), Path(work))
            except NoScanError as error:  # no new scan that night
                run.told.append(errors.one_line(error))
                return None
        judged = replace(judged, decisions=_new(judged.decisions, known))
        if len(judged.set_aside):
            tables.write_quarantine(output / SET_ASIDE, judged.set_aside)
            run.told.append(f"{report.count(len(judged.set_aside), 'scan')} not judged: {output / SET_ASIDE}")
        if options.archive:
            with run.part("archive of the scans", options.archive):
                archive.ship(judged.decisions, options.archive)
        return judged
    return None


def _new(judged: pd.DataFrame, decisions: pd.DataFrame) -> pd.DataFrame:
    """Return the decisions on scans that the log does not have: those that nobody sent to the endpoint."""
    new = judged[~judged["image"].isin(decisions["image"])]
    return new.assign(time=new["time"].astype(decisions["time"].dtype))


def _shadow(
    options: WatchOptions, registry: Registry, artefact: Artefact, decisions: pd.DataFrame, output: Path, *, run: _Run
) -> Compared | None:
    """Compare the present candidate with this version, behind which it answered, and keep that beside the candidate.

    Returns:
        The comparison; None if there is no candidate, or it has not answered.
    """
    aliases, version = registry.read_aliases(), artefact.publication.version
    number = aliases.get("waiting", aliases.get("candidate"))
    if not options.log or number in (None, version) or not log.shadow_files(options.log):
        return None
    with run.part("shadow", options.log):
        candidate = Artefact.read(registry.find(str(number), CARD))
        found = compare.compare(options.log, decisions, version, candidate, night=options.last_night, seed=options.seed)
        if found is None:
            return None
        compare.write(found.changes, output)
        run.told.append(found.record.summary)
        settled = settle.settle(registry, candidate, found.record)
        if settled.decision is not None:
            run.told.append(f"the gate {settled.decision.decision} version {number}: {settled.decision.reasons[-1]}")
        elif aliases.get("waiting") == number and (terms := candidate.publication.gate.shadow) is not None:
            run.told.append(f"version {number} waits for {terms.pictures:,} live pictures of {ENOUGH} or more patients")
        return replace(found, record=settled)
    return None


def _record(
    options: WatchOptions,
    artefact: Artefact,
    run: _Run,
    *,
    released: bool,
    found: _Found,
    every: pd.DataFrame,
    joined: Outcomes | None,
) -> WatchRecord:
    """Compare and estimate, and say what it comes to."""
    version, published = artefact.record, artefact.publication
    with run.part("drift"):
        compared = drift.compare(every, version.usual_answers or {}, options.last_night)
    with run.part("estimate"):
        estimated = estimate.estimate(every, version, options.seed)
    known = None if joined is None else joined.record
    reached, summary = verdict.judge(compared, known)
    return WatchRecord(
        notice=RESEARCH_USE_ONLY,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        code_version=code_version(),
        model=WatchedModel(
            name=version.name,
            version=published.version,
            released=released,
            created=published.created,
            sha256=sha256(artefact.folder / "model.json"),
            backbone=version.backbone,
            novelty=version.novelty is not None,
        ),
        log=found.record(),
        scans=len(every) - len(found.decisions),
        drift=compared,
        estimated=estimated,
        outcomes=known,
        verdict=reached,
        summary=summary,
        seconds={},
    )


def _entry(record: WatchRecord) -> WatchEntry:
    """Return what the registry keeps. The outcomes' alarm began with its outcome, that of drift with its night."""
    since = record.drift.first_alarm
    if record.verdict == "worse" and record.outcomes is not None:
        since = min(test.alarm_at for test in record.outcomes.tests if test.alarm_at is not None)
    return WatchEntry(
        created=record.created,
        night=record.drift.night,
        model=record.model.sha256,
        verdict=record.verdict,
        summary=record.summary,
        since=since,
        code_version=record.code_version,
    )


def _draw(
    record: WatchRecord, artefact: Artefact, decisions: pd.DataFrame, joined: Outcomes | None, folder: Path
) -> dict[str, Picture]:
    """Draw every plot for which there is something to show: drift, the shadow, and those of `outcomes.plots`."""
    folder.mkdir()
    drawn = {} if joined is None else plots.draw(joined, folder)
    if record.drift.skipped is None:
        path = folder / "drift.png"
        alt = drift_plots.trends(decisions, artefact.record.usual_answers or {}, record.drift, path)
        drawn["drift"] = Picture(images.data_uri(path.read_bytes()), alt)
    if record.shadow is not None:
        path = folder / "shadow.png"
        alt = plot.draw(record.shadow, path)
        drawn["shadow"] = Picture(images.data_uri(path.read_bytes()), alt)
    return drawn
