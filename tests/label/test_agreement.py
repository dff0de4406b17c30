"""Agreement and pace: known answers give known figures, each with its interval."""

from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import cohen_kappa_score

from thyroid.data import classes
from thyroid.label.agreement import agreement, draw
from thyroid.label.consensus import Rules, State
from thyroid.label.frames import Catalogue, Frame, frame_id
from thyroid.label.journal import Journal
from thyroid.label.readings import Effort, MarkedRegion, Origin, Reading, Role, Verdict

FEATURES = {"composition": "solid", "echogenicity": "hypoechoic", "shape": "taller", "margin": "smooth", "foci": "none"}


def catalogue(patients: int, per_patient: int = 1) -> Catalogue:
    frames = []
    for patient in range(patients):
        for image in range(per_patient):
            path = f"B_{patient:03d}-{image:04d}-1.0.jpg"
            frames.append(Frame(path, frame_id(path), 100, 100, patient, "B", f"patient-{patient}"))
    return Catalogue("scans", tuple(frames))


def nodule(x: int = 10, side: str = "", origin: Origin = Origin.DRAWN, **features: str) -> Reading:
    region = MarkedRegion(x=x, y=10, width=40, height=40, origin=origin, features=features)
    return Reading(verdict=Verdict.NODULES, regions=(region,), side=side)


NONE = Reading(verdict=Verdict.NONE)


@dataclass
class Bench:
    catalogue: Catalogue
    journal: Journal

    def read(self, reader, readings, role=Role.READER, efforts=None):
        for number, (frame, reading) in enumerate(zip(self.catalogue.frames, readings, strict=False)):
            current = self.journal.current(frame.path, reader)
            self.journal.add(
                reader=reader,
                role=role,
                frame=frame.path,
                reading=reading,
                base=current.number if current else 0,
                effort=efforts[number] if efforts else None,
            )

    def measure(self, **options):
        return agreement(self.catalogue, self.journal, Rules(), **options)


@pytest.fixture
def bench(tmp_path):
    return lambda patients, per_patient=1: Bench(catalogue(patients, per_patient), Journal(tmp_path / "labelled"))


def test_kappa_is_that_of_scikit_learn(bench):
    rng, made = np.random.default_rng(0), bench(20, 2)
    sides = [[["B", "M"][rng.random() < chance] for chance in (0.2, 0.8) for _ in range(20)] for _ in range(2)]
    empty = rng.random((2, 40)) < 0.3
    for reader, own, none in zip(("al", "jo"), sides, empty, strict=True):
        made.read(reader, [NONE if gone else nodule(side=side) for side, gone in zip(own, none, strict=True)])
    (pair,) = made.measure().pairs
    assert pair.readers == ("al", "jo")
    assert pair.frames == pair.kappa["verdict"].count == 40
    assert pair.kappa["verdict"].value.value == pytest.approx(cohen_kappa_score(*empty))
    assert pair.kappa["verdict"].value.low < pair.kappa["verdict"].value.value < pair.kappa["verdict"].value.high
    both = ~empty.any(axis=0)
    assert pair.kappa["side"].count == both.sum()
    expected = cohen_kappa_score(*(np.array(own)[both] for own in sides))
    assert pair.kappa["side"].value.value == pytest.approx(expected)
    same = (empty[0] == empty[1]) & (~both | (np.array(sides[0]) == np.array(sides[1])))
    assert pair.agreed.value.value == pytest.approx(same.mean())
    assert pair.contradictions == 40 - same.sum()


def test_grades_have_quadratic_weights(bench):
    made, grades = bench(12), classes.parse("2<3|4a<4b<5")
    one = ["2", "3", "4a", "4b", "5", "2"] * 2
    other = ["3", "3", "4b", "4b", "5", "5"] * 2
    made.read("al", [nodule(side=side) for side in one])
    made.read("jo", [nodule(side=side) for side in other])
    (pair,) = made.measure(classes=grades).pairs
    assert pair.kappa["side"].value.value == pytest.approx(cohen_kappa_score(one, other, weights="quadratic"))


def test_perfect_agreement_has_an_interval(bench):
    made = bench(12)
    for reader in ("al", "jo"):
        made.read(reader, [nodule(side="BM"[number % 2], **FEATURES) for number in range(12)])
    (pair,) = made.measure().pairs
    for found in (pair.kappa["side"], pair.agreed, pair.matched):
        assert (found.value.value, found.value.high) == (1, 1)
        assert 0.3 < found.value.low < 0.9
    assert pair.iou.value.value == 1
    assert pair.contradictions == 0


def test_several_kinds_of_foci_are_an_answer_of_their_own(bench):
    one = ["none", "macro+punctate", "punctate", "macro+punctate"] * 3
    other = ["none", "macro+punctate", "macro+punctate", "punctate"] * 3
    made = bench(12)
    for reader, answers in (("al", one), ("jo", other)):
        made.read(reader, [nodule(foci=answer) for answer in answers])
    (pair,) = made.measure().pairs
    assert pair.kappa["foci"].count == 12
    assert pair.kappa["foci"].value.value == pytest.approx(cohen_kappa_score(one, other))


def test_one_answer_only_has_no_kappa(bench):
    made = bench(12)
    for reader in ("al", "jo"):
        made.read(reader, [nodule(**FEATURES)] * 12)
    (pair,) = made.measure().pairs
    for name in ("verdict", "composition", "level"):
        assert pair.kappa[name].value is None
        assert not pair.kappa[name].too_few
        assert pair.kappa[name].count == 12
    assert pair.kappa["side"].count == 0
    assert pair.kappa["side"].too_few


def test_one_patient_is_too_few(bench):
    made = bench(1, 6)
    for reader, x in (("al", 10), ("jo", 12)):
        made.read(reader, [nodule(x), NONE] * 3, efforts=[Effort(seconds=5)] * 6)
    measured = made.measure()
    (pair,) = measured.pairs
    figures = [pair.agreed, pair.matched, pair.iou, *pair.kappa.values()]
    figures += [measured.paces[0].per_hour, measured.paces[0].seconds]
    assert all(found.value is None and found.too_few for found in figures)
    assert pair.frames == 6


def test_few_patients_widen_the_interval(bench):
    """Of three patients who differ in nothing but one frame, a bootstrap alone would see next to nothing."""
    made = bench(3, 10)
    made.read("al", [nodule(side="BM"[number % 2]) for number in range(30)])
    made.read("jo", [nodule(side="BM"[number % 2 if number else 1]) for number in range(30)])
    (pair,) = made.measure().pairs
    assert pair.kappa["side"].value.low < 0.3
    assert pair.agreed.value.low < 0.3


def test_boxes_are_matched_one_to_one(bench):
    made = bench(12)
    two = Reading(
        verdict=Verdict.NODULES,
        regions=tuple(MarkedRegion(x=x, y=10, width=40, height=40, features={"shape": "taller"}) for x in (0, 50)),
    )
    made.read("al", [two] * 12)
    made.read("jo", [nodule(x=60 if number % 2 else 10, shape="wider") for number in range(12)])
    (pair,) = made.measure().pairs
    assert pair.matched.value.value == pytest.approx(2 / 3)
    assert pair.matched.count == 36
    assert pair.iou.value.value == pytest.approx(30 / 50)
    assert pair.iou.count == pair.kappa["shape"].count == 12
    assert pair.kappa["shape"].value.value == pytest.approx(0)
    assert pair.contradictions == 12


def test_only_blind_readings_are_compared(bench):
    made = bench(4)
    made.read("al", [nodule()] * 4)
    made.read("import", [nodule()] * 2, Role.IMPORT)
    made.read("chief", [NONE] * 4, Role.ADJUDICATOR)
    made.read("outside", [NONE], Role.OUTSIDE)
    measured = made.measure()
    assert [(pair.readers, pair.frames) for pair in measured.pairs] == [(("al", "import"), 1)]
    assert measured.states[State.FINAL] == 4


def test_what_was_undone_does_not_count(bench):
    made = bench(3)
    made.read("al", [nodule()] * 3)
    made.read("jo", [nodule()] * 3)
    made.journal.undo("jo")
    measured = made.measure()
    assert measured.pairs[0].frames == 2
    assert sum(measured.states.values()) == 3


def test_pace(bench):
    made = bench(12, 2)
    accepted = [Effort(seconds=10, pointer=0, keys=1)] * 12
    drawn = [Effort(seconds=30, pointer=2, keys=1)] * 12
    readings = [nodule(origin=Origin.ACCEPTED)] * 12 + [nodule(origin=Origin.DRAWN)] * 12
    made.read("al", readings, efforts=accepted + drawn)
    made.read("al", readings[:1], efforts=[Effort(seconds=240, pointer=0, keys=1)])
    made.read("jo", [NONE])  # not timed
    (pace,) = made.measure().paces
    assert (pace.reader, pace.frames) == ("al", 24)
    assert pace.per_hour.value.value == pytest.approx(24 / (480 + 240) * 3600)
    assert pace.per_hour.value.low < pace.per_hour.value.value < pace.per_hour.value.high
    assert pace.seconds.value.value == 30
    assert set(pace.work) == {Origin.ACCEPTED, Origin.DRAWN}
    assert pace.work[Origin.DRAWN].pointer.value.value == 2
    assert pace.work[Origin.ACCEPTED].keys.value.value == 1
    assert pace.work[Origin.ACCEPTED].boxes == 13


def test_nothing_read(bench, tmp_path):
    measured = bench(2).measure()
    assert (measured.pairs, measured.paces) == ((), ())
    assert measured.states[State.OPEN] == 2
    draw(measured, tmp_path / "agreement.png")
    assert (tmp_path / "agreement.png").exists()


@pytest.mark.usefixtures("drawn")
def test_the_plot(bench, tmp_path):
    made = bench(12)
    made.read("al", [nodule(side="BM"[number % 2], **FEATURES) for number in range(12)])
    made.read("jo", [nodule(side="BM"[number % 3 > 1]) for number in range(12)])
    made.read("kim", [nodule()])
    draw(made.measure(), tmp_path / "agreement.png")
    with Image.open(tmp_path / "agreement.png") as picture:
        assert picture.width > picture.height > 200
