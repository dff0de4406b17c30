"""Compare what a candidate made of the champion's pictures with what the champion decided.

Both judged the same picture, so the decisions are paired. A picture that was sent repeatedly counts once, or whoever
sends one picture often enough would decide alone. Intervals resample patients.
"""

import datetime
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from thyroid import RESEARCH_USE_ONLY, metrics
from thyroid.model.artefact import Artefact, code_version, sha256
from thyroid.records.gate import ShadowChange, ShadowGroup, ShadowRecord
from thyroid.records.watch import Shadowed
from thyroid.storage import Location
from thyroid.watch import log

MOST = 100_000
"""Largest number of lines of a candidate that are compared, which take about .2 GB: the newest."""
CHANGED = "shadow_changed.csv"
"""File with a row for every picture that the candidate decides on otherwise."""

_BOUNDS = (-1.0, 1.0)  # of a difference of two shares


@dataclass(frozen=True, eq=False)
class Compared:
    """What was compared.

    Attributes:
        record: The result.
        changes: The pictures on which the decisions differ, newest first.
    """

    record: ShadowRecord
    changes: list[ShadowChange]


def compare(
    folder: Location, decisions: pd.DataFrame, champion: int, candidate: Artefact, *, night: datetime.date, seed: int
) -> Compared | None:
    """Join the lines of a candidate with the champion's decisions, and count what would have changed.

    Args:
        folder: Folder of the decision log.
        decisions: Decisions of the champion up to `night`, as `thyroid.watch.log.read` returns them.
        champion: Version of the champion.
        candidate: The candidate's artefact, of a registry.
        night: The last night to look at.
        seed: Seed of the bootstrap.

    Returns:
        The comparison; None if the candidate has judged none of these pictures.

    Raises:
        InputError: There is no such folder, or it is in a bucket.
    """
    aside = Counter[str]()
    lines = _lines(folder, candidate.publication.version, aside)
    pairs = decisions.merge(lines, on="id", suffixes=("", "_candidate")).drop_duplicates("image", keep="last")
    if pairs.empty:
        return None
    pairs = pairs.assign(changed=pairs["decision"] != pairs["decision_candidate"])
    known = decisions["time"].between(pairs["time"].min(), pairs["time"].max())
    changed = pairs[pairs["changed"]]
    of_pair = Counter(changed["decision"] + " to " + changed["decision_candidate"])
    days = pairs["time"].dt.date
    record = ShadowRecord(
        notice=RESEARCH_USE_ONLY,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        code_version=code_version(),
        night=night.isoformat(),
        champion=champion,
        candidate=candidate.publication.version,
        model=sha256(candidate.folder / "model.json"),
        first=days.min().isoformat(),
        last=days.max().isoformat(),
        pictures=len(pairs),
        patients=int(pairs["unit"].nunique()),
        changed=len(changed),
        pairs=dict(of_pair.most_common()),
        groups=list(_groups(pairs, seed)),
        unanswered=int(decisions.loc[known, "image"].nunique()) - len(pairs),
        set_aside=aside["damaged"],
        summary=_summary(pairs, candidate.publication.version, champion),
    )
    return Compared(record, [_change(row) for _, row in changed[::-1].iterrows()])


def write(changes: list[ShadowChange], folder: Path) -> None:
    """Write the pictures that the candidate decides on otherwise as a table.

    Args:
        changes: As `Compared.changes`.
        folder: Folder of the file `CHANGED`.
    """
    table = pd.DataFrame([change.to_dict() for change in changes], columns=list(ShadowChange.model_fields))
    table.to_csv(folder / CHANGED, index=False)


def _lines(folder: Location, version: int, aside: Counter[str]) -> pd.DataFrame:
    """Return the newest lines of a version as a table: id, decision and probability."""

    def newest() -> Iterator[tuple[str, str, float]]:
        for path in reversed(log.shadow_files(folder)):
            for row in log.rows(path, aside, Shadowed):
                if row["version"] == version:
                    yield row["id"], row["decision"], row["probability"]

    rows = itertools.islice(newest(), MOST)
    return pd.DataFrame(rows, columns=["id", "decision", "probability"]).drop_duplicates("id")


def _groups(pairs: pd.DataFrame, seed: int) -> Iterator[ShadowGroup]:
    """Yield all pictures, and those of every subgroup that has one."""
    distance = pairs["distance"].to_numpy(float)
    unlike = pd.Series(np.where(distance > 1, "unlike", "like"), pairs.index).where(np.isfinite(distance))
    yield _group("all", "all", pairs, seed)
    for kind, values in (("source", pairs["source"]), ("novelty", unlike), ("decision", pairs["decision"])):
        for value, rows in pairs.groupby(values):
            yield _group(kind, str(value), rows, seed)


def _group(kind: str, value: str, rows: pd.DataFrame, seed: int) -> ShadowGroup:
    undecided, undecided_candidate = (rows[name] == "abstain" for name in ("decision", "decision_candidate"))
    rise = undecided_candidate.astype(float) - undecided.astype(float)
    one = rows.sort_values("image").drop_duplicates("unit")  # the smallest keyed hash is as good as a draw
    flipped = one["changed"] & (one["decision"] != "abstain") & (one["decision_candidate"] != "abstain")
    return ShadowGroup.parse(
        {
            "kind": kind,
            "value": value,
            "pictures": len(rows),
            "patients": len(one),
            "changed": int(rows["changed"].sum()),
            "share": metrics.patient_mean(rows["changed"], rows["unit"], seed=seed),
            "abstained": metrics.patient_mean(rise, rows["unit"], bounds=_BOUNDS, seed=seed),
            "flipped_patients": int(flipped.sum()),
        },
        "shadow",
    )


def _change(row: pd.Series) -> ShadowChange:
    return ShadowChange(
        id=row["id"],
        time=row["time"].isoformat(timespec="milliseconds"),
        source=row["source"],
        champion=row["decision"],
        candidate=row["decision_candidate"],
        champion_probability=row["probability"],
        candidate_probability=row["probability_candidate"],
    )


def _summary(pairs: pd.DataFrame, candidate: int, champion: int) -> str:
    patients, nameless = pairs["patient"].nunique(), pairs.loc[pairs["patient"].isna(), "request"].nunique()
    whose = [_many(patients, "patient")] if patients else []
    if nameless:
        whose.append(f"{_many(nameless, 'request')} that {'names' if nameless == 1 else 'name'} no patient")
    return (
        f"On {_many(len(pairs), 'live picture')} of {' and '.join(whose)} version {candidate} would have changed "
        f"{_many(int(pairs['changed'].sum()), 'decision')} of version {champion}."
    )


def _many(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
