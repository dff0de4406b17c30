import re
import shutil
import subprocess
import sys
from functools import cache
from html import unescape

import pandas as pd
import pytest

from tests.support import ROOT
from tests.support.validations import Validation, beside, validation
from thyroid import RESEARCH_USE_ONLY
from thyroid.interval import Interval
from thyroid.records.gate import GateRecord
from thyroid.records.validation import ValidationRecord
from thyroid.validate import report

VARIANTS = {
    "everything": {},
    "benign scans only": {"only": "B", "kinds": ("given",)},
    "malignant scans only": {"only": "M", "kinds": ("given",)},
    "twelve patients": {"patients": 12},
    "one patient": {"patients": 1, "kinds": ("given",)},
    "one patient with nodules of both classes": {"patients": 6, "joined": True, "kinds": ("given",)},
    "no regions": {"kinds": ("automatic",)},
    "no locator": {"kinds": ("given",)},
    "full frames": {"kinds": ("frame",)},
    "nothing that may be absent": {"sparse": True, "kinds": ("given",)},
    "grades": {"classes": "2<3|4a<4b", "kinds": ("given",)},
    "kinds without order": {"classes": "cyst,adenoma|papillary,follicular", "kinds": ("given",)},
}


@cache
def small() -> Validation:
    return validation(patients=30, kinds=("given",))


def compared(**pairs: tuple[Interval | None, Interval | None]) -> ValidationRecord:
    """A validation whose figures by patient are these: internal, external."""
    record = small().record
    form = record.forms["given"]
    given = form.beside | {f"patient_{name}": beside(*pair) for name, pair in pairs.items()}
    return record.model_copy(update={"forms": {"given": form.model_copy(update={"beside": given})}})


def about(value: float, half: float) -> Interval:
    return Interval(value, value - half, value + half)


HELD = {
    "auroc": (about(0.90, 0.02), about(0.90, 0.02)),
    "sensitivity": (about(0.93, 0.02), about(0.93, 0.02)),
    "specificity": (about(0.70, 0.03), about(0.70, 0.03)),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Write a variant of `VARIANTS`, once: the validation and its HTML."""
    known: dict[str, tuple[Validation, str]] = {}

    def write(name: str) -> tuple[Validation, str]:
        if name not in known:
            made = validation(**{"patients": 40} | VARIANTS[name])
            known[name] = made, made.write(tmp_path_factory.mktemp("report"))
        return known[name]

    return write


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_whole(written, name):
    made, html = written(name)
    text = unescape(re.sub(r'src="data:[^"]*"', "", html))
    assert not re.search(r"\bNone\b(?! of these scans)|\bnan\b|\binf\b|\{\{|\{%|Undefined", text)
    assert text.count(RESEARCH_USE_ONLY) >= 2
    assert made.record.site in text
    assert not re.search(r'(src|href)="(?!data:image/png;base64,|#)', html), "it must open without a network"
    for kind in made.record.forms:
        assert f'id="{kind}"' in text
    for sentence in report.headline(made.record):
        assert sentence in text


@pytest.mark.parametrize("name", VARIANTS)
def test_every_picture_says_what_it_shows(written, name):
    _, html = written(name)
    alts = [re.search(r'alt="([^"]*)"', tag) for tag in re.findall(r"<img [^>]*>", html)]
    assert len(alts) >= 3
    for alt in alts:
        assert alt
        assert len(alt[1]) > 20
        assert not re.search(r"\bNone\b|\bnan\b", alt[1])


def test_the_first_page_has_the_figures_by_patient_beside_the_internal_test(written):
    made, html = written("everything")
    pair = made.record.forms["given"].beside["patient_auroc"]
    first = unescape(html.partition("<nav")[0])
    for found in (pair.external, pair.internal):
        assert f"{found.value:.3f} [{found.low:.3f} to {found.high:.3f}]" in first
    assert f"{pair.difference.value:+.3f}".replace("-", "−") in first
    for title, _ in report.FIGURES.values():
        assert title in first
    assert made.record.recalibration.summary in first
    assert made.record.needed.summary in first
    for warning in made.record.warnings:
        assert warning in first


def test_a_fall_is_named_with_its_interval():
    lower = HELD | {"auroc": (about(0.90, 0.02), about(0.80, 0.05))}
    record = compared(**lower)
    outcome, verdict = report.judge(record)
    fall = record.forms["given"].beside["patient_auroc"].difference
    assert outcome == "worse"
    assert verdict.endswith("lower AUROC.")
    (sentence,) = [one for one in report.headline(record) if "pairs" in one]
    assert f"a fall of the AUROC of {-fall.value:.3f} [{-fall.high:.3f} to {-fall.low:.3f}]" in sentence


def test_a_model_whose_falls_are_excluded_holds():
    assert report.judge(compared(**HELD))[0] == "holds"
    assert "no difference is shown" in report.headline(compared(**HELD))[3]


@pytest.mark.parametrize("name", report.MARGINS)
def test_a_wide_interval_leaves_it_unknown_whether_the_model_holds(name):
    wide = HELD | {name: (HELD[name][0], about(HELD[name][1].value, 0.2))}
    outcome, verdict = report.judge(compared(**wide))
    assert outcome == "unknown"
    assert "cannot be excluded" in verdict
    assert name.replace("auroc", "AUROC") in verdict


def test_a_rise_is_not_praised():
    higher = HELD | {"auroc": (about(0.80, 0.02), about(0.95, 0.02))}
    assert report.judge(compared(**higher))[0] == "holds"
    assert "nobody should count on it" in " ".join(report.headline(compared(**higher)))


@pytest.mark.parametrize(
    ("value", "outcome", "words"),
    [(0.30, "worse", "worse than guessing"), (0.52, "unknown", "not shown to be better than guessing")],
)
def test_a_model_that_is_no_better_than_guessing_is_said_to_be_so(tmp_path, value, outcome, words):
    """Also where no fall from the internal test is shown, and where all falls are small."""
    alike = compared(**HELD | {"auroc": (about(value, 0.03), about(value, 0.03))})
    assert report.judge(alike) == (outcome, f"Here it is {words} at telling malignant from benign.")
    fallen = compared(**HELD | {"auroc": (about(0.9, 0.02), about(value, 0.03))})
    assert report.judge(fallen)[1].endswith(f"lower AUROC, and it is {words}.")
    made = small()
    report.write(tmp_path, alike, made.tables, taken_out=made.taken_out, quarantine=made.quarantine, cases=made.cases)
    first = (tmp_path / "report.html").read_text().partition("<nav")[0]
    assert report.judge(alike)[1] in first
    assert f"It cannot mend that this model is {words} here." in first


def test_an_audit_that_could_not_judge_says_so_in_words(tmp_path):
    made = small()
    jargon = "its reference (0.514 [0.304, 0.724]) is not above chance"
    audits = made.record.audits.model_copy(
        update={
            "shortcut": {"model": Interval(0.514, 0.304, 0.724), "model_on_blanked_nodule": about(0.5, 0.2)},
            "kept": {},
            "findings": {},
            "not_measured": {"model_on_blanked_nodule, judged": jargon, "box_size": "no region is known"},
        }
    )
    record = made.record.model_copy(update={"audits": audits, "not_audited": jargon})
    report.write(tmp_path, record, made.tables, taken_out=made.taken_out, quarantine=made.quarantine, cases={})
    part = unescape((tmp_path / "report.html").read_text()).partition('id="audit"')[2].partition("<h2")[0]
    assert "not shown to be better than guessing on these images (AUROC 0.514 [0.304 to 0.724])" in part
    assert "Width and height of the nodule's box alone: no region is known" in part
    for word in ("its reference", "judged:", "test images"):
        assert word not in part


def test_a_fall_next_to_zero_keeps_its_sign(tmp_path):
    made = small()
    form = made.record.forms["given"]
    pair = form.beside["patient_ppv_at_prevalence"].model_copy(update={"difference": Interval(-0.04, -0.2, -0.0003)})
    changed = form.model_copy(update={"beside": form.beside | {"patient_ppv_at_prevalence": pair}})
    record = made.record.model_copy(update={"forms": {"given": changed}})
    report.write(tmp_path, record, made.tables, taken_out=made.taken_out, quarantine=made.quarantine, cases={})
    assert "▼ −4.00 points [−20.00 to −0.03]" in (tmp_path / "report.html").read_text()


def test_without_an_internal_test_nothing_is_compared():
    alone = {name: (None, external) for name, (_, external) in HELD.items()}
    outcome, verdict = report.judge(compared(**alone))
    assert outcome == "unknown"
    assert "cannot be compared with an internal test" in verdict
    assert "fall" not in " ".join(report.headline(compared(**alone)))


def test_one_class_gives_what_it_can(written):
    made, html = written("benign scans only")
    told = " ".join(report.headline(made.record))
    assert "All of them have a benign nodule" in told
    assert "malignant nodule (internal" not in told
    assert [one for one in report.frequencies(made.record.forms["given"]) if "missed" in one] == []
    assert "not known" in html.partition("<nav")[0]
    assert "need benign and malignant scans" in html


def test_frequencies_are_the_rest_of_a_hundred():
    form = small().record.forms["given"]
    level = form.performance.patient_level
    missed, sent = report.frequencies(form)
    assert f"{100 - 100 * level.sensitivity.value:.0f} would be missed" in missed
    low, high = (100 - 100 * bound for bound in (level.specificity.high, level.specificity.low))
    assert f"(between {low:.0f} and {high:.0f})" in sent


def test_calibration_is_said_in_words():
    found = small().record.forms["given"].calibration
    high = found.model_copy(update={"observed_to_expected": about(0.6, 0.1), "slope": about(0.5, 0.2)})
    (told,) = report.describe_calibration(high)
    assert "probabilities are too high" in told
    assert "too extreme" in told
    low = found.model_copy(update={"observed_to_expected": about(1.6, 0.1), "slope": about(1.5, 0.2)})
    (told,) = report.describe_calibration(low)
    assert "probabilities are too low" in told
    assert "too timid" in told
    backwards = found.model_copy(update={"slope": about(-0.5, 0.2)})
    assert "run the wrong way" in report.describe_calibration(backwards)[0]
    unrelated = found.model_copy(update={"slope": about(0.1, 0.2)})
    assert "not shown that higher ones mean more malignant images" in report.describe_calibration(unrelated)[0]


def test_phantoms_are_said_to_be_phantoms():
    made = validation(patients=12, sparse=True, kinds=("given",))
    assert "say nothing about patients" in report.headline(made.record)[-1]


def test_what_others_wrote_is_escaped(tmp_path):
    sly = "<script>alert(1)</script>"
    made = validation(patients=12, kinds=("given",), site=sly, by=sly, warnings=[sly])
    listed = pd.DataFrame({"file": [sly], "reason": ["trained_file"]})
    report.write(
        tmp_path, made.record, made.tables, taken_out=listed, quarantine=listed.assign(reason=sly), cases=made.cases
    )
    html = (tmp_path / "report.html").read_text()
    assert sly not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 6
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_scans_that_are_not_used_are_named_up_to_a_limit(written, tmp_path):
    made, html = written("everything")
    for row in [*made.taken_out.to_dict("records"), *made.quarantine.to_dict("records")]:
        assert row["file"] in html
        assert row["reason"] in unescape(html)
    many = pd.DataFrame({"file": [f"file-{i}.jpg" for i in range(report.LISTED + 1)], "reason": "empty"})
    few = small()
    report.write(tmp_path, few.record, few.tables, taken_out=few.taken_out, quarantine=many, cases={})
    html = (tmp_path / "report.html").read_text()
    assert f"file-{report.LISTED - 1}.jpg" in html
    assert f"file-{report.LISTED}.jpg" not in html
    assert f"the first {report.LISTED} of {report.LISTED + 1}" in html


def test_a_registered_recalibration_and_a_finding_of_the_audit_are_told(tmp_path):
    made = small()
    gate = GateRecord(
        decision="refused",
        reasons=["a person promotes what is recalibrated for one site"],
        criteria=[],
        champion=3,
        comparison=None,
        anchor=None,
        anchor_comparison=None,
        ahead_of=None,
        waived=[],
        test_digest="0" * 64,
    )
    fitted = made.record.recalibration.model_copy(update={"version": 4, "gate": gate})
    audits = made.record.audits.model_copy(update={"findings": {"shortcut": "most of it is not in the nodule"}})
    record = made.record.model_copy(update={"recalibration": fitted, "audits": audits})
    report.write(tmp_path, record, made.tables, taken_out=made.taken_out, quarantine=made.quarantine, cases=made.cases)
    html = (tmp_path / "report.html").read_text()
    assert "registered as version 4 for this site" in html
    assert "A person promotes what is recalibrated for one site." in html
    assert '<div class="warn">Most of it is not in the nodule.</div>' in html


def test_the_report_needs_neither_tensorflow_nor_scikit_plots():
    code = (
        "import sys, thyroid.validate.report; print(*{'tensorflow', 'keras', 'scikitplot', 'kfp'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


A4_WIDTH, A4_HEIGHT = 703, 1024
"""CSS pixels inside the margins of a page."""


@pytest.mark.browser
def test_the_clinicians_part_fits_one_printed_page_and_a_phone(tmp_path):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium here; make test-browser installs it")
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    long = "A warning of about the length that the warnings of this report have, with a figure of 0.123 [0.100, 0.150]."
    pages = {
        "usual": validation(patients=40, warnings=[long] * report.CROWDED),
        "crowded": validation(patients=40, warnings=[long] * 16),
        "sparse": validation(patients=12, sparse=True, kinds=("frame",)),
    }
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for name, made in pages.items():
            made.write(tmp_path / name)
            page = browser.new_page(viewport={"width": 390, "height": 800})
            page.goto((tmp_path / name / "report.html").as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
            found = Axe().run(page)
            assert found.violations_count == 0, found.generate_report()
            page.emulate_media(media="print")
            page.set_viewport_size({"width": A4_WIDTH, "height": A4_HEIGHT})
            assert page.locator(".first").evaluate("part => part.getBoundingClientRect().height") <= A4_HEIGHT, name
        browser.close()
