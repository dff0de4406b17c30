"""watch.prom: the watch's figures in Prometheus's text format, for node_exporter's textfile collector.

Labels never hold a patient, a file or a place.
"""

from datetime import UTC, date, datetime, time
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

from thyroid.records.watch import WatchRecord

FILE = "watch.prom"


def write(record: WatchRecord, folder: Path) -> None:
    """Write the figures that alarms and panels are made of. A figure that is not known is left out.

    Args:
        record: What was found.
        folder: Folder of the file.
    """
    registry, version = CollectorRegistry(), str(record.model.version)

    def gauge(name: str, text: str, value: float | None) -> None:
        if value is not None:
            Gauge(f"thyroid_watch_{name}", text, ["version"], registry=registry).labels(version).set(value)

    log, outcomes = record.log, record.outcomes
    night = datetime.combine(date.fromisoformat(record.drift.night), time.min, UTC)
    compared = record.drift.skipped is None
    gauge("drift", "1 if what arrives has changed", float(record.drift.alarm) if compared else None)
    gauge(
        "drift_alarms", "Comparisons with an alarm", sum(row.alarm for row in record.drift.rows) if compared else None
    )
    gauge("worse", "1 if the outcomes raised an alarm", float(record.verdict == "worse") if outcomes else None)
    gauge("unknown", "1 if nothing could be compared", float(record.verdict == "unknown"))
    gauge("night_timestamp", "Start of the last night that was looked at, in seconds since 1970", night.timestamp())
    gauge("decisions", "Decisions since the release", log.decisions)
    gauge("patients", "Patients of these decisions", log.patients)
    share = log.unlike / log.decisions if log.decisions and record.model.novelty else None
    gauge("unlike_share", "Share of decisions on images unlike the training images", share)
    undecided = log.decided.get("abstain", 0) / log.decisions if log.decisions else None
    gauge("abstain_share", "Share of decisions that are abstentions", undecided)
    if (shadow := record.shadow) is not None:
        gauge("shadow_pictures", "Pictures that the candidate behind this version judged, too", shadow.pictures)
        gauge("shadow_changed", "Decisions on them that the candidate would have changed", shadow.changed)
    for test in outcomes.tests if outcomes else []:
        known = test.n > 0
        gauge(test.name, f"Share of right decisions: {test.name}", test.value.value if known else None)
        gauge(f"{test.name}_low", f"Lower bound of the {test.name}", test.value.low if known else None)
        gauge(f"{test.name}_high", f"Upper bound of the {test.name}", test.value.high if known else None)
        gauge(f"{test.name}_outcomes", f"Outcomes that the {test.name} is of", test.n)
    write_to_textfile(str(folder / FILE), registry)
