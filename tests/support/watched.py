"""What a clinic sends to a released model, and complete contents of watch.json: all made up."""

import hashlib
import json
from collections.abc import Iterable
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from thyroid import RESEARCH_USE_ONLY
from thyroid.data import pseudonyms
from thyroid.records.watch import Decision, WatchRecord

THRESHOLD = 0.2
"""Probability from which `decisions` calls a nodule malignant."""
NIGHT = "2025-07-14"
VERDICTS = ("drift", "worse", "steady", "unknown")


def interval(value: float, half: float) -> dict[str, float]:
    """Return an interval of this half width within 0 and 1."""
    return {"value": value, "low": max(0.0, value - half), "high": min(1.0, value + half)}


def row(name: str, value: float, reference: float, difference: float = 0.08, **more: Any) -> dict[str, Any]:
    """A comparison, with an alarm if the difference is at least .2."""
    alarm = difference >= 0.2
    content = {
        "source": "auto",
        "property": name,
        "nights": 7,
        "n": 96,
        "reference_n": 240,
        "value": value,
        "reference": reference,
        "difference": difference,
        "p": 3e-9 if alarm else 0.31,
        "alarm": alarm,
    }
    return content | more


def drift(rows: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """What the comparison of the nights found."""
    alarm = any(one["alarm"] for one in rows)
    content = {
        "night": NIGHT,
        "nights": 74,
        "level": 2.3e-6,
        "yearly": 0.05,
        "smallest": 0.2,
        "rows": sorted(rows, key=lambda one: not one["alarm"]),
        "alarm": alarm,
        "first_alarm": "2025-07-03" if alarm else None,
        "alarms": [f"2025-07-{day:02d}" for day in range(3, 15)] if alarm else [],
        "skipped": None,
    }
    return content | more


def sequential(name: str, n: int, right: int, expected: float, **more: Any) -> dict[str, Any]:
    """A share of right decisions without an alarm."""
    content = {
        "name": name,
        "n": n,
        "right": right,
        "value": interval(right / n, 0.12) if n else interval(0.5, 0.5),
        "expected": expected,
        "fallen": expected - 0.1,
        "statistic": 0.6,
        "threshold": 4.2,
        "alarm": False,
        "alarm_at": None,
        "alarm_after": None,
    }
    return content | more


def outcomes(tests: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """What the outcomes say."""
    content = {
        "rows": 171,
        "set_aside": {"never seen": 3, "contradiction": 2},
        "patients": sum(one["n"] for one in tests) + 12,
        "malignant": tests[0]["n"] + 2,
        "abstained": {"benign": 10, "malignant": 2},
        "tests": tests,
        "auroc": interval(0.911, 0.05),
        "majority": 0.74,
        "accuracy": interval(0.82, 0.06),
        "observed_to_expected": interval(0.93, 0.07),
        "brier": interval(0.12, 0.03),
        "first": "2025-05-20",
        "last": NIGHT,
    }
    return content | more


def log(decisions: int = 1203, **more: Any) -> dict[str, Any]:
    """What was read of the log."""
    content = {
        "decisions": decisions,
        "patients": 812,
        "first": "2025-05-02",
        "last": NIGHT,
        "other_versions": 118,
        "set_aside": {"damaged": 1, "doubled": 0, "too_early": 0, "in_future": 0},
        "sources": {"auto": 1100, "given": 103},
        "decided": {"benign": 700, "malignant": 400, "abstain": 103},
        "unlike": 24,
        "reasons": {"unlike_training": 24, "box_unsure": 61, "abstention_band": 30},
        "archived": 40,
    }
    return content | more


EMPTY = log(
    0, patients=0, first=None, last=None, set_aside={}, sources={}, decided={}, unlike=0, reasons={}, archived=0
)
"""A log with no decision of the version."""
USUAL = [
    row("probability", 0.31, 0.29),
    row("distance", 0.55, 0.54),
    row("box_probability", 0.88, 0.9),
    row("width", 800, 800, 0.0),
    row("abstain", 0.09, 0.08),
    row("malignant", 0.34, 0.33),
]
"""Comparisons without an alarm."""
ELSEWHERE = [
    row("distance", 1.12, 0.54, 0.83),
    row("width", 1280, 800, 0.97),
    row("abstain", 0.61, 0.08, 0.53),
    row("probability", 0.29, 0.3, 0.31),
    row("box_probability", 0.86, 0.9),
    row("malignant", 0.3, 0.33),
]
"""Those after a new scanner arrived."""
HELD = [sequential("sensitivity", 41, 39, 0.95), sequential("specificity", 118, 92, 0.77)]
FELL = [
    sequential("sensitivity", 41, 31, 0.95, statistic=5.1, alarm=True, alarm_at="2025-07-09", alarm_after=34),
    sequential("specificity", 118, 92, 0.77),
]
ESTIMATED = [{"source": "auto", "patients": 780, "auroc": interval(0.902, 0.02), "internal": interval(0.915, 0.04)}]


def record(verdict: str = "steady", **changes: Any) -> WatchRecord:
    """A watch with this verdict.

    Args:
        verdict: One of `VERDICTS`.
        changes: Fields that are otherwise.
    """
    kinds: dict[str, dict[str, Any]] = {
        "steady": {"drift": drift(USUAL), "outcomes": outcomes(HELD)},
        "drift": {"drift": drift(ELSEWHERE), "outcomes": None},
        "worse": {"drift": drift(USUAL), "outcomes": outcomes(FELL)},
        "unknown": {
            "drift": drift([], nights=0, skipped="the log holds no decision of this version"),
            "outcomes": None,
            "log": EMPTY,
            "estimated": [],
        },
    }
    content = {
        "notice": RESEARCH_USE_ONLY,
        "created": f"{NIGHT}T23:30:00+00:00",
        "code_version": "0.1.0+abc",
        "model": {
            "name": "thyroid",
            "version": 3,
            "released": True,
            "created": "2025-05-01T09:00:00+00:00",
            "sha256": "3" * 64,
            "backbone": "VGG16",
            "novelty": True,
        },
        "log": log(),
        "scans": 0,
        "estimated": ESTIMATED,
        "verdict": verdict,
        "summary": "",
        "seconds": {"log": 0.4, "drift": 0.9, "total": 2.1},
    }
    return WatchRecord.parse(content | kinds[verdict] | changes, "watch.json")


def usual(patients: int = 200, seed: int = 0) -> dict[str, Any]:
    """The usual answers of a model to automatic boxes, as model.json has them."""
    answers = [_answers(np.random.default_rng([seed, number]), scanner=1) for number in range(patients)]
    values = {name: sorted(float(one[name]) for one in answers) for name in answers[0]}
    abstain = sum(one > 1 for one in values["distance"])
    malignant = sum(one["probability"] > THRESHOLD and one["distance"] <= 1 for one in answers)
    content = {
        "patients": patients,
        "images": patients,
        "values": values,
        "decisions": {"benign": patients - abstain - malignant, "malignant": malignant, "abstain": abstain},
        "shares": {"abstain": abstain / patients, "malignant": malignant / patients},
    }
    return {"auto": content}


def decisions(
    secret: bytes, day: date, patients: Iterable[int], *, scanner: int = 1, version: int = 1
) -> list[Decision]:
    """The decisions of a night on these patients, an image each.

    Args:
        secret: Key of the hashes.
        day: The night.
        patients: Numbers of the patients.
        scanner: 1 for the scanner of the training, 2 for another one.
        version: Version that decided.
    """
    found = []
    for number in patients:
        rng = np.random.default_rng([7, number])
        answers = _answers(rng, scanner)
        unlike = answers["distance"] > 1
        called = "malignant" if answers["probability"] > THRESHOLD else "benign"
        width, height = int(answers["width"]), int(answers["height"])
        side = int((answers["box_share"] * width * height) ** 0.5)
        moment = datetime.combine(day, time(8), UTC) + timedelta(minutes=int(rng.integers(600)))
        found.append(
            Decision(
                id=f"{version}-{day}-{number}",
                request=f"request-{day}-{number}",
                number=0,
                time=moment.isoformat(timespec="milliseconds"),
                image=pseudonyms.of_file(secret, hashlib.sha256(f"{day}/{number}".encode()).hexdigest()),
                patient=pseudonyms.of_text(secret, "", str(number)),
                version=version,
                form="openvino-f32",
                source="auto",
                probability=answers["probability"],
                decision="abstain" if unlike else called,  # type: ignore[arg-type]
                reasons=["unlike_training"] if unlike else [],
                novelty=min(100.0, 60 * answers["distance"]),
                distance=answers["distance"],
                box_probability=answers["box_probability"],
                width=width,
                height=height,
                box=[40, 40, side, side],
            )
        )
    return found


def write_log(folder: Path, made: Iterable[Decision]) -> Path:
    """Add decisions to a log, a file per day, as the endpoint writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    for one in made:
        with (folder / f"decisions-{one.time[:10]}-host-0.jsonl").open("a") as stream:
            stream.write(json.dumps(one.to_dict()) + "\n")
    return folder


def has_cancer(patient: int) -> bool:
    """Whether a patient has a malignant nodule: with the probability that the model gives, so that it is calibrated."""
    probability = _answers(np.random.default_rng([7, patient]), 1)["probability"]
    return bool(np.random.default_rng([8, patient]).random() < probability)


def _answers(rng: np.random.Generator, scanner: int) -> dict[str, float]:
    """What the model says of an image of this scanner."""
    size = {1: [(800, 600), (1024, 768)][int(rng.random() < 0.3)], 2: (1280, 960)}[scanner]
    return {
        "probability": float(rng.beta(0.35, 0.7)),
        "distance": float(rng.lognormal(-0.6 + 0.75 * (scanner - 1), 0.22)),
        "box_probability": float(rng.beta(9, 1.5)),
        "width": float(size[0]),
        "height": float(size[1]),
        "aspect": size[0] / size[1],
        "box_share": float(rng.uniform(0.03, 0.15)),
    }
