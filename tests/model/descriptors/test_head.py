import shutil

import numpy as np
import pytest

from tests.support import toy_artefact, toy_descriptors
from thyroid.errors import InputError
from thyroid.model.artefact import Artefact
from thyroid.model.descriptors.head import FILE, Head
from thyroid.records.model import DescriptorsRecord
from thyroid.tirads import Points, kinds

SOLID, MIXED, CYSTIC = (("composition", value) for value in ("solid", "mixed", "cystic"))
TALLER = ("shape", "taller")
PUNCTATE, MACRO, RIM = (("foci", value) for value in ("punctate", "macro", "rim"))


def artefact(folder, head: Head | None) -> Artefact:
    """An artefact that holds a head."""
    folder.mkdir(exist_ok=True)
    if head is None:
        return Artefact.describe(folder, toy_artefact.description())
    head.write(folder)
    return Artefact.describe(folder, toy_artefact.description(descriptors=head.record.to_dict()))


def told(findings, probability, **changes):
    return toy_descriptors.head(4, findings, **changes).tell(np.array(probability))


def test_a_value_is_possible_until_it_is_excluded():
    """Limits of the toy findings: excluded below .3, present from .5, sure from .7."""
    found = told([SOLID, MIXED], [0.6, 0.2])
    assert found.possible["composition"] == ("cystic", "spongiform", "solid"), "values without a finding stay"
    assert found.present == (True, False)
    assert found.uncertain == (True, False)


def test_one_sure_value_rules_out_the_others_unless_another_is_likely():
    assert told([SOLID, MIXED], [0.7, 0.4]).possible["composition"] == ("solid",)
    assert told([SOLID, MIXED], [0.7, 0.5]).possible["composition"] == kinds("composition")
    assert told([SOLID, MIXED], [0.9, 0.8]).possible["composition"] == kinds("composition"), "both are sure"


def test_if_nothing_is_left_everything_is_possible():
    seen = {"composition": ["mixed", "solid"]}
    assert told([SOLID, MIXED], [0.1, 0.1], seen=seen).possible["composition"] == ("mixed", "solid")


@pytest.mark.parametrize(("p", "left"), [(0.1, ("wider",)), (0.5, ("wider", "taller")), (0.8, ("taller",))])
def test_one_finding_tells_both_values_of_a_descriptor(p, left):
    assert told([TALLER], [p]).possible["shape"] == left


def test_kinds_of_foci_are_told_one_by_one_and_may_all_be_excluded():
    found = told([PUNCTATE, MACRO, RIM], [0.8, 0.4, 0.1], seen={"foci": ["macro", "rim", "punctate"]})
    assert found.possible["foci"] == ("macro", "punctate")
    assert found.sure_foci == ("punctate",)
    assert told([PUNCTATE], [0.1], seen={"foci": ["punctate"]}).possible["foci"] == ()


def test_points_span_what_is_possible():
    seen = {"composition": ["mixed", "solid"], "foci": ["macro", "punctate"]}
    found = told([SOLID, PUNCTATE], [0.8, 0.8], seen=seen)
    # solid 2, punctate 3; echogenicity 0 to 3, shape 0 or 3, margin 0 to 3 and macro 1 are not known
    assert found.points == Points(5, 5 + 3 + 3 + 3 + 1)
    sure = told([SOLID, PUNCTATE], [0.1, 0.1], seen=seen | {"echogenicity": ["hypoechoic"]})
    assert sure.points == Points(1 + 2, 1 + 2 + 3 + 3 + 1)


def test_a_descriptor_that_is_labelled_but_not_told_keeps_its_labelled_values():
    found = told([SOLID], [0.8], seen={"composition": ["mixed", "solid"], "margin": ["smooth", "lobulated"]})
    assert found.possible == {"composition": ("solid",), "margin": ("smooth", "lobulated")}


def test_probabilities_are_those_of_the_regression_and_unknown_for_features_that_are_no_numbers():
    head = toy_descriptors.head(4, [SOLID, TALLER])
    features = np.random.default_rng(0).normal(0, 1, (3, 4)).astype(np.float32)
    found = head.probabilities(features)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-(features @ head.weight + head.bias))), atol=1e-6)
    features[1, 2] = np.inf
    broken = head.probabilities(features)
    assert np.isnan(broken[1]).all()
    np.testing.assert_array_equal(broken[[0, 2]], found[[0, 2]])
    unknown = head.tell(broken[1])
    assert unknown.possible["composition"] == kinds("composition")
    assert unknown.present == (False, False)
    assert unknown.uncertain == (True, True)


@pytest.mark.parametrize(
    ("decision", "low", "high", "contradicts"),
    [
        ("malignant", 0, 3, True),
        ("malignant", 0, 4, False),
        ("benign", 4, 9, True),
        ("benign", 3, 9, False),
        ("abstain", 0, 1, False),
    ],
)
def test_points_contradict_a_decision_only_wherever_they_lie(decision, low, high, contradicts):
    head = toy_descriptors.head(4, [SOLID])
    assert head.record.tirads.cut == 4
    assert head.disagrees(decision, Points(low, high)) is contradicts
    assert toy_descriptors.head(4, [SOLID], tirads=None).disagrees(decision, Points(low, high)) is False


def test_what_was_written_is_read(tmp_path):
    head = toy_descriptors.head(6, [SOLID, PUNCTATE])
    found = Head.read(artefact(tmp_path / "one", head))
    np.testing.assert_array_equal(found.weight, head.weight)
    np.testing.assert_array_equal(found.bias, head.bias)
    assert found.record == head.record
    artefact(tmp_path / "two", head)
    assert (tmp_path / "one" / FILE).read_bytes() == (tmp_path / "two" / FILE).read_bytes()


def test_only_findings_that_are_given_out_have_a_column(tmp_path):
    head = toy_descriptors.head(6, [SOLID, PUNCTATE])
    withheld = toy_descriptors.finding(*MIXED, given=False, why="auroc", detail="too low")
    record = DescriptorsRecord.parse(head.record.to_dict(), "x")
    record = record.model_copy(
        update={"findings": [record.findings[0], type(record.findings[0])(**withheld), record.findings[1]]}
    )
    found = Head.read(artefact(tmp_path, Head(record, head.weight, head.bias)))
    assert [one.value for one in found.given] == ["solid", "punctate"]


def test_artefacts_without_findings_have_no_head(tmp_path):
    assert Head.read(artefact(tmp_path / "older", None)) is None
    withheld = toy_descriptors.finding(*SOLID, given=False, why="auroc", detail="too low")
    record = toy_descriptors.record(6, [withheld])
    described = toy_artefact.description(descriptors=record.to_dict())
    (tmp_path / "none").mkdir()
    assert Head.read(Artefact.describe(tmp_path / "none", described)) is None


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda file: file.unlink(), "missing"),
        (lambda file: file.write_bytes(b""), "damaged"),
        (lambda file: file.write_bytes(file.read_bytes()[:-40]), "damaged"),
        (lambda file: np.savez(file, weight=np.zeros((6, 2))), "damaged"),
        (lambda file: np.savez(file, weight=np.array([{}]), bias=np.zeros(2)), "damaged"),
        (lambda file: np.savez(file, weight=np.zeros((6, 3)), bias=np.zeros(3)), "does not fit"),
        (lambda file: np.savez(file, weight=np.zeros((5, 2)), bias=np.zeros(2)), "does not fit"),
        (lambda file: np.savez(file, weight=np.full((6, 2), np.nan), bias=np.zeros(2)), "does not fit"),
        (lambda file: np.savez(file, weight=np.zeros((6, 2), int), bias=np.zeros(2)), "does not fit"),
    ],
)
def test_a_file_that_was_damaged_is_refused_in_words(tmp_path, damage, told):
    made = artefact(tmp_path, toy_descriptors.head(6, [SOLID, PUNCTATE]))
    damage(tmp_path / FILE)
    with pytest.raises(InputError, match=rf"{FILE}: {told}.*register the model again"):
        Head.read(made)


@pytest.mark.parametrize(
    "changes",
    [
        {"seen": {"composition": ["solid"]}},  # without the foci that a finding is of
        {"seen": {"composition": ["solid", "blurry"], "foci": ["punctate"]}},
        {"seen": {"composition": ["solid"], "foci": ["punctate"], "margin": []}},
        {"findings": [toy_descriptors.finding(*SOLID, sure=0.4), toy_descriptors.finding(*PUNCTATE)]},
        {"findings": [toy_descriptors.finding(*SOLID, exclude=None), toy_descriptors.finding(*PUNCTATE)]},
    ],
)
def test_a_record_that_cannot_be_told_is_refused(tmp_path, changes):
    head = toy_descriptors.head(6, [SOLID, PUNCTATE])
    broken = DescriptorsRecord.parse(head.record.to_dict() | changes, "x")
    with pytest.raises(InputError, match="does not fit"):
        Head.read(artefact(tmp_path, Head(broken, head.weight, head.bias)))


def test_unlabelled_values_are_named():
    record = toy_descriptors.record(
        4, [toy_descriptors.finding(*SOLID)], seen={"composition": ["mixed", "solid"], "foci": []}
    )
    assert record.assumed_absent == {"composition": ["cystic", "spongiform"], "foci": list(kinds("foci"))}


def test_a_copy_is_read_as_well(tmp_path):
    """As a store copies a published version to where it is served."""
    artefact(tmp_path / "one", toy_descriptors.head(6, [SOLID]))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert Head.read(Artefact.verify(tmp_path / "two")) is not None
