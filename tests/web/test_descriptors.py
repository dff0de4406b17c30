"""What the page shows of descriptors and TI-RADS: words, a heat map of each, contradictions, and what is withheld."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import toy_descriptors
from tests.support.locating import Locating, layer
from tests.web.test_web_boxes import NONE, Visitor, said
from thyroid import tirads
from thyroid.web import words
from thyroid.web.words import LANGUAGES, Words

EN = Words("en")
SHOWN = (
    ("margin", "smooth", 0.1, False, False),
    ("foci", "punctate", 0.9, True, False),
    ("shape", "taller", 0.6, True, True),
)


@pytest.fixture
def telling() -> Iterator[Locating]:
    """An endpoint whose model tells descriptors."""
    running = Locating()
    running.changes = {"descriptors": described(), "tirads": points()}
    running.patient = {"tirads": points()}
    yield running
    running.stop()


def described(**changes: Any) -> dict[str, Any]:
    findings = [
        {
            "descriptor": descriptor,
            "value": value,
            "probability": share,
            "threshold": 0.5,
            "present": present,
            "uncertain": uncertain,
            "heat_map": {"map": [[0.0]], "layer_png": layer(place / 3), "share_inside_roi": 0.1 * (place + 1)},
        }
        for place, (descriptor, value, share, present, uncertain) in enumerate(SHOWN)
    ]
    told = {"margin": ["ill_defined", "lobulated"], "foci": ["punctate"]}
    return {"findings": findings, "told": told, "assumed_absent": {"margin": ["extrathyroidal"]}} | changes


def points(low: Any = 5, high: Any = 9, agrees: Any = True) -> dict[str, Any]:
    return {"points": [low, high], "levels": ["TR4", "TR5"], "agrees": agrees}


def table(text: str) -> list[list[str]]:
    """Return the cells of the table of findings, row by row."""
    (found,) = re.findall(r'<fieldset class="findings">.*?</fieldset>', text, re.DOTALL)
    rows = re.findall(r'<tr class="\w+">(.*?)</tr>', found, re.DOTALL)
    return [[said(cell).strip() for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)] for row in rows]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_finding_has_its_words_and_its_share(telling, language):
    visitor = Visitor(telling.address)
    visitor.client.get(f"/?lang={language}")
    text, w = visitor.read(NONE).text, Words(language)
    assert table(text) == [
        [w("finding_foci_punctate"), "", words.share(0.9), w("state_yes")],
        [w("finding_shape_taller"), "", words.share(0.6), w("state_uncertain")],
        [w("finding_margin_smooth"), "", words.share(0.1), w("state_no")],
    ], "the deck's six first"
    assert w("gauge_finding", probability=words.share(0.9), threshold=words.share(0.5)) in text
    shown = " ".join(said(text).split())
    possible = f"{w('finding_margin_ill_defined')} / {w('finding_margin_lobulated')}"
    assert w("descriptors_told", names=possible) in shown
    assert w("descriptors_absent", names=w("finding_margin_extrathyroidal")) in shown
    assert w("tirads", levels="TR4–TR5", points="5–9") in shown
    assert w("tirads_hint") in shown


def test_kinds_of_foci_are_not_all_that_is_possible_but_none_is(telling):
    telling.changes |= {"descriptors": described(told={"foci": ["none"]})}
    text = " ".join(said(Visitor(telling.address).read(NONE).text).split())
    assert EN("descriptors_told", names=EN("finding_foci_none")) in text
    telling.changes |= {"descriptors": described(told={"foci": ["punctate", "rim"]})}
    text = " ".join(said(Visitor(telling.address).read(NONE).text).split())
    assert EN("descriptors_told", names="").rstrip(" .") not in text


def test_each_finding_has_a_heat_map_of_its_own_behind_a_choice(telling):
    text = Visitor(telling.address).read(NONE).text
    maps = dict(re.findall(r'<image class="heat" data-map="(\d)"[^>]* href="data:image/png;base64,([^"]+)"', text))
    findings = {one["value"]: one["heat_map"]["layer_png"]["b64"] for one in described()["findings"]}
    assert maps == {"0": layer()["b64"], "1": findings["punctate"], "2": findings["taller"], "3": findings["smooth"]}
    choices = re.findall(r'<input class="paper-not" type="radio" name="map-1" value="(\d)"( checked)?', text)
    assert choices == [("0", " checked"), ("1", ""), ("2", ""), ("3", "")]
    style = Visitor(telling.address).home
    assert '[data-map]:not([data-map="0"]) { display: none; }' in style, "also in a browser that does not know :has"
    for value in "123":
        assert f'.answer:has([value="{value}"]:checked) [data-map="{value}"]' in style
    inside = re.findall(r'<p class="soft" data-map="(\d)">(.*?)</p>', text)
    names = [EN(f"finding_{name}") for name in ("foci_punctate", "shape_taller", "margin_smooth")]
    assert inside[1:] == [
        (str(n), f"{EN('shown_finding', name=name)} {EN('inside_finding', share=words.share(share))}")
        for n, (name, share) in enumerate(zip(names, (0.2, 0.3, 0.1), strict=True), 1)
    ], "named, since a printed page has no choices"


def test_a_finding_without_evidence_says_so(telling):
    findings = described()["findings"]
    for one in findings:
        one["heat_map"]["share_inside_roi"] = None
    telling.changes |= {"descriptors": described(findings=findings)}
    text = said(Visitor(telling.address).read(NONE).text)
    assert text.count(EN("no_evidence_finding")) == len(findings)


def test_there_is_a_rule_of_style_for_as_many_findings_as_the_lexicon_has(telling):
    most = sum(1 if len(tirads.kinds(name)) == 2 else len(tirads.kinds(name)) for name in tirads.DESCRIPTORS)
    assert f'.answer:has([value="{most}"]:checked) [data-map="{most}"]' in Visitor(telling.address).home


def test_one_level_and_one_number_of_points_are_said_once(telling):
    telling.patient = {"tirads": {"points": [7, 7], "levels": ["TR5", "TR5"], "agrees": None}}
    assert EN("tirads", levels="TR5", points="7") in said(Visitor(telling.address).read(NONE).text)


def test_points_that_exclude_no_level_say_so(telling):
    telling.patient = {"tirads": {"points": [0, 14], "levels": ["TR1", "TR5"], "agrees": True}}
    shown = said(Visitor(telling.address).read(NONE).text)
    assert EN("tirads_open") in shown
    assert EN("tirads_hint") not in shown


@pytest.mark.parametrize(("agrees", "warned"), [(True, False), (None, False), (False, True)])
def test_a_contradiction_that_decides_nothing_is_said(telling, agrees, warned):
    telling.patient = {"tirads": points(agrees=agrees)}
    assert (EN("tirads_disagrees") in said(Visitor(telling.address).read(NONE).text)) is warned


def test_a_contradiction_that_decides_is_said_once_as_the_reason(telling):
    reason = {"decision": "abstain", "reasons": ["descriptors_disagree"], "reason": "descriptors_disagree"}
    telling.patient = reason | {"tirads": points(agrees=False)}
    shown = said(Visitor(telling.address).read(NONE).text)
    assert EN("reason_descriptors_disagree") in shown
    assert EN("tirads_disagrees") not in shown


def test_views_that_differ_are_named_for_the_patient(telling):
    telling.patient |= {"views_differ": ["composition", "margin"]}
    text = Visitor(telling.address).read(NONE, NONE).text
    names = f"{EN('descriptor_composition')}, {EN('descriptor_margin')}"
    assert EN("descriptors_differ", names=names) in said(text)
    assert text.count('name="map-2"') == 4
    assert said(text).count(EN("tirads", levels="TR4–TR5", points="5–9")) == 3, "of the patient and of each picture"


def test_an_answer_without_descriptors_shows_none():
    running = Locating()
    try:
        text = Visitor(running.address).read(NONE).text
    finally:
        running.stop()
    assert 'class="findings"' not in text
    assert "TI-RADS" not in text
    assert text.count('class="heat"') == 1


@pytest.mark.parametrize(
    ("changes", "patient"),
    [
        ({"descriptors": None}, {}),
        ({"descriptors": described(findings=[{"descriptor": "margin", "value": "round"}])}, {}),
        ({"descriptors": described(findings=[described()["findings"][0] | {"descriptor": "colour"}])}, {}),
        ({"descriptors": described(findings=[described()["findings"][0] | {"probability": 1.5}])}, {}),
        ({"descriptors": described(findings=[described()["findings"][0] | {"threshold": None}])}, {}),
        ({"descriptors": described(findings=[described()["findings"][0] | {"heat_map": {}}])}, {}),
        ({"descriptors": described(told={"margin": ["<b>"]})}, {}),
        ({"descriptors": described(told={"margin": "smooth"})}, {}),
        ({"descriptors": described(assumed_absent=["margin"])}, {}),
        ({}, {"tirads": points(low=9, high=5)}),
        ({}, {"tirads": points(high=99)}),
        ({}, {"tirads": points(low=True)}),
        ({}, {"tirads": points(agrees="no")}),
        ({}, {"tirads": {"points": [5, 9]}}),
        ({}, {"views_differ": ["<b>"]}),
        ({}, {"views_differ": 5}),
    ],
    ids=str,
)
def test_descriptors_of_another_form_are_not_shown(telling, changes, patient):
    telling.changes |= changes
    telling.patient |= patient
    answer = Visitor(telling.address).read(NONE)
    assert answer.status_code == 502
    assert EN("error_answer") in said(answer.text)


def facts(**changes: Any) -> dict[str, Any]:
    why = {"given": False, "why": "surroundings", "detail": "kept .8"}
    findings = [toy_descriptors.finding("margin", "smooth"), toy_descriptors.finding("foci", "rim", **why)]
    return toy_descriptors.record(8, findings, **changes).to_dict()


@pytest.mark.parametrize("doubts", [True, False])
def test_the_models_facts_say_what_it_tells_and_why_not_more(telling, doubts):
    telling.known = {"descriptors": facts(tirads=toy_descriptors.TIRADS | {"doubts": doubts})}
    home = said(Visitor(telling.address).home)
    assert EN("finding_margin_smooth") in home
    assert f"{EN('finding_foci_rim')}: {EN('withheld_surroundings')}" in home
    assert f"{EN('descriptor_composition')}: {EN('withheld_unlabelled')}" in home
    assert f"{EN('descriptor_margin')}:" not in home
    assert (EN("descriptors_doubts") in home) is doubts


def test_a_column_whose_labels_nobody_has_is_no_label(telling):
    telling.known = {"descriptors": facts(columns={name: name for name in tirads.DESCRIPTORS})}
    home = said(Visitor(telling.address).home)
    assert f"{EN('descriptor_composition')}: {EN('withheld_unlabelled')}" in home


def test_a_model_that_withholds_all_says_so(telling):
    finding = toy_descriptors.finding("margin", "smooth", given=False, why="too_few", detail="3 patients")
    telling.known = {"descriptors": toy_descriptors.record(8, [finding], tirads=None).to_dict()}
    home = said(Visitor(telling.address).home)
    assert EN("descriptors_none") in home
    assert f"{EN('finding_margin_smooth')}: {EN('withheld_too_few')}" in home


def test_facts_of_another_form_do_not_keep_the_page_from_opening(telling):
    for odd in ({}, 5, {"findings": [{}]}, facts() | {"seen": None}):
        telling.known = {"descriptors": odd}
        assert EN("model_away") in said(Visitor(telling.address).home)
