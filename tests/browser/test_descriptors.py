"""Descriptors in a real browser: each one's heat map takes the place of that of malignancy when it is chosen."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.test_page import DESK, PHONE, accessible, fits, read, shot
from tests.support import pages
from tests.support.locating import Locating
from tests.web.test_descriptors import described, points
from thyroid import tirads
from thyroid.imaging import images, phantom
from thyroid.web.words import LANGUAGES, Words

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    """The page before an endpoint that tells descriptors, which contradict the probability."""
    endpoint = Locating()
    endpoint.changes = {"descriptors": described(), "tirads": points(agrees=False)}
    endpoint.patient = {"tirads": points(agrees=False), "views_differ": ["margin"]}
    page = pages.Page(tmp_path_factory.mktemp("page") / "log", endpoint.address).wait()
    yield page.address
    page.stop()
    endpoint.stop()


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> str:
    file: Path = tmp_path_factory.mktemp("scan") / "scan.jpg"
    file.write_bytes(images.encode(phantom.draw("M", 1, 1).image))
    return str(file)


@pytest.fixture
def visit(browser, address, scan):
    contexts = []

    def opened(language: str, count: int = 1, **options) -> Page:
        contexts.append(browser.new_context(**DESK | {"locale": language} | options))
        page = contexts[-1].new_page()
        page.goto(address)
        page.set_input_files("#files", [scan] * count)
        expect(page.locator("#stage image")).to_be_visible()
        read(page)
        return page

    yield opened
    for context in contexts:
        context.close()


def shown(page: Page) -> list[str]:
    """Which of the heat maps and sentences of the first picture are on the screen."""
    code = "all => all.filter(one => getComputedStyle(one).display !== 'none').map(one => one.dataset.map)"
    return page.locator(".answer").first.locator("[data-map]").evaluate_all(code)


@pytest.mark.parametrize("form", ["desk", "phone"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_the_chosen_finding_is_shown_on_the_picture(visit, language, form):
    w = Words(language)
    page = visit(language, **(PHONE if form == "phone" else {}))
    assert shown(page) == ["0", "0"], "the heat map and what it says"
    page.get_by_label(w("finding_shape_taller")).check()
    assert shown(page) == ["2", "2"]
    page.locator(".slider input").fill("80")
    opacity = page.locator(".heat").evaluate_all("all => all.map(one => one.getAttribute('opacity'))")
    assert opacity == ["0.8"] * 4
    accessible(page)
    fits(page)
    shot(page, f"descriptors-{language}-{form}")
    page.get_by_label(w("descriptors_malignancy")).check()
    assert shown(page) == ["0", "0"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_word_of_the_lexicon_fits_a_phone(browser, scan, tmp_path, language):
    pairs = [(name, value) for name in tirads.DESCRIPTORS for value in tirads.kinds(name)]
    like, endpoint = described()["findings"][1], Locating()
    findings = [like | {"descriptor": name, "value": value, "probability": 0.9375} for name, value in pairs]
    endpoint.changes = {"descriptors": described(findings=findings)}
    page = pages.Page(tmp_path / "log", endpoint.address).wait()
    context = browser.new_context(**PHONE | {"locale": language})
    try:
        seen = context.new_page()
        seen.goto(page.address)
        seen.set_input_files("#files", [scan])
        expect(seen.locator("#stage image")).to_be_visible()
        read(seen)
        expect(seen.locator(".findings tr")).to_have_count(1 + len(pairs))
        fits(seen)
        wide = seen.locator(".findings").evaluate("one => one.scrollWidth - one.clientWidth")
        assert wide <= 0, "nor over the side of its card"
        shot(seen, f"descriptors-all-{language}")
    finally:
        context.close()
        page.stop()
        endpoint.stop()


def test_every_picture_has_a_choice_of_its_own(visit):
    page = visit("en", count=2)
    page.locator(".answer").nth(1).get_by_label(Words("en")("finding_foci_punctate")).check()
    assert shown(page) == ["0", "0"]
    accessible(page)
    fits(page)
    shot(page, "descriptors-several")


def test_a_printed_result_has_the_table_without_its_choices(visit):
    page = visit("en")
    page.emulate_media(media="print")
    assert page.locator(".findings td.share").first.is_visible()
    assert not page.locator(".findings input").first.is_visible()
