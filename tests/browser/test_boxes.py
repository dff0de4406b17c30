"""Proposed boxes in a real browser, before a stand-in that is told what to answer, and before the endpoint itself."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from playwright.sync_api import Page, expect

from tests.browser.test_page import DESK, EN, KO, PHONE, accessible, box, drag, fits, read, shot, to_screen
from tests.support import pages
from tests.support import toy_locator as toy
from tests.support.locating import Locating
from tests.support.serving import Server
from thyroid.imaging import images, phantom

pytestmark = pytest.mark.browser


@dataclass
class Desk:
    """The page before an endpoint that proposes boxes.

    Attributes:
        page: The page's process.
        endpoint: The stand-in, or None before the real endpoint.
    """

    page: pages.Page
    endpoint: Locating | None


@pytest.fixture(scope="module", params=["stand-in", "endpoint"])
def desk(request, tmp_path_factory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("boxes")
    endpoint: Locating | Server
    if request.param == "stand-in":
        endpoint = Locating()
        address = endpoint.address
    else:
        artefact = toy.build(folder / "artefact", locator=toy.record())
        endpoint = Server(folder / "endpoint", "--model-dir", str(artefact)).wait()
        address = f"http://127.0.0.1:{endpoint.port}"
    page = pages.Page(folder / "page", address, "--proxies", "1").wait()
    yield Desk(page, endpoint if isinstance(endpoint, Locating) else None)
    page.stop()
    endpoint.stop()


@pytest.fixture
def visit(browser, desk, request):
    contexts, wrong = [], []

    def opened(language: str = "en", **options) -> Page:
        address = {"x-forwarded-for": f"10.{abs(hash(request.node.name)) % 250}.8.{len(contexts)}"}
        context = browser.new_context(**DESK | {"locale": language, "extra_http_headers": address} | options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(desk.page.address)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture
def stand_in(desk) -> Iterator[Locating]:
    """The stand-in of tests that need an endpoint to be of one mind."""
    if desk.endpoint is None:
        pytest.skip("needs the stand-in")
    yield desk.endpoint
    desk.endpoint.unsure = desk.endpoint.whole = False
    desk.endpoint.released, desk.endpoint.located = True, 200


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("scan") / "scan.jpg"
    file.write_bytes(images.encode(phantom.draw("M", patient=3, image=1).image))
    return str(file)


def proposed(page: Page) -> list[list[int]]:
    """Wait for the proposals and return their boxes, the best one first."""
    expect(page.locator("#stage .proposal.best")).to_be_visible(timeout=30_000)
    rects = page.locator("#stage .proposal").all()
    rects.sort(key=lambda rect: int(rect.get_attribute("data-proposal")))
    return [[int(rect.get_attribute(side)) for side in ("x", "y", "width", "height")] for rect in rects]


def answered(page: Page) -> list[int]:
    """Return the box that the result shows."""
    rect = page.locator(".answer .roi")
    expect(rect).to_have_count(1)
    return [int(rect.get_attribute(side)) for side in ("x", "y", "width", "height")]


@pytest.mark.parametrize("form", ["desk", "phone"])
@pytest.mark.parametrize("language", ["en", "ko"])
def test_proposals_are_drawn_at_once_and_look_well(visit, scan, language, form):
    say = {"en": EN, "ko": KO}[language]
    page = visit(language=language, **(PHONE if form == "phone" else {}))
    page.set_input_files("#files", scan)
    boxes = proposed(page)
    assert 1 <= len(boxes) <= 3
    expect(page.locator("#proposals button")).to_have_count(len(boxes))
    expect(page.locator("#proposal-text")).not_to_be_empty()
    expect(page.locator("#views .has")).to_have_text(say("box_proposed"))
    accessible(page)
    fits(page)
    shot(page, f"boxes-1-proposed-{language}-{form}")
    read(page)
    assert answered(page) == boxes[0]
    expect(page.locator(".answer .roi.auto")).to_have_count(1)
    expect(page.locator(".answered")).to_contain_text(say("answered_auto"))
    accessible(page)
    fits(page)
    shot(page, f"boxes-2-automatic-{language}-{form}")


def test_enter_accepts_the_best_and_escape_returns(visit, scan):
    page = visit()
    page.set_input_files("#files", scan)
    boxes = proposed(page)
    page.keyboard.press("Enter")
    expect(page.locator("#views .has")).to_have_text(EN("box_accepted"))
    assert box(page) == boxes[0]
    expect(page.locator("#stage .roi")).to_be_focused()
    expect(page.locator("#stage .proposal")).to_have_count(0)
    shot(page, "boxes-accepted")
    page.keyboard.press("Escape")
    assert proposed(page) == boxes
    page.keyboard.press("Enter")  # the focus is on the best one's button
    read(page)
    assert answered(page) == boxes[0]
    expect(page.locator(".answer .roi.auto")).to_have_count(0)
    expect(page.locator(".answered")).to_have_text(EN("answered_accepted"))
    shot(page, "boxes-accepted-answer")
    page.keyboard.press("Escape")  # the focus is on the result
    expect(page.get_by_text(EN("stale"))).to_have_count(0)


def test_a_drag_wins(visit, scan):
    page = visit()
    page.set_input_files("#files", scan)
    boxes = proposed(page)
    drag(page, (180, 140), (300, 260))
    own = box(page)
    assert own not in boxes
    for key in ("Enter", "1", "2"):
        page.keyboard.press(key)
    assert box(page) == own, "no key replaces it"
    expect(page.locator("#views .has")).to_have_text(EN("box_there"))
    read(page)
    assert answered(page) == own
    expect(page.locator(".answered")).to_have_text(EN("answered_own"))
    page.locator("#stage .roi").focus()
    page.keyboard.press("Escape")
    assert proposed(page) == boxes
    expect(page.get_by_text(EN("stale"))).to_be_visible()


def test_a_proposal_is_corrected_by_its_corner(visit, scan):
    page = visit()
    page.set_input_files("#files", scan)
    x, y, width, height = proposed(page)[0]
    drag(page, (x + width, y + height), (x + width + 30, y + height + 20))
    assert all(abs(one - meant) <= 3 for one, meant in zip(box(page), (x, y, width + 30, height + 20), strict=True))
    expect(page.locator("#views .has")).to_have_text(EN("box_there"))


def test_an_accepted_box_that_is_moved_is_the_users_own(visit, scan):
    page = visit()
    page.set_input_files("#files", scan)
    proposed(page)
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#views .has")).to_have_text(EN("box_there"))
    read(page)
    expect(page.locator(".answered")).to_have_text(EN("answered_own"))


def test_numbers_choose_and_a_click_accepts(visit, scan, stand_in):
    page = visit()
    page.set_input_files("#files", scan)
    boxes = proposed(page)
    assert len(boxes) == 3
    for number in (2, 3, 1):
        page.keyboard.press(str(number))
        assert box(page) == boxes[number - 1]
    page.keyboard.press("Escape")
    x, y, width, height = proposed(page)[1]
    page.locator("#stage").scroll_into_view_if_needed()
    page.mouse.click(*to_screen(page, x + width / 2, y + height / 2))
    assert box(page) == boxes[1]
    expect(page.locator("#views .has")).to_have_text(EN("box_accepted"))
    page.locator("#proposals button").click()
    page.locator("#proposals button").nth(2).click()
    assert box(page) == boxes[2]


def test_a_tap_accepts(visit, scan):
    page = visit(**PHONE)
    page.set_input_files("#files", scan)
    boxes = proposed(page)
    x, y, width, height = boxes[0]
    page.locator("#stage").scroll_into_view_if_needed()
    page.touchscreen.tap(*to_screen(page, x + width / 2, y + height / 2))
    expect(page.locator("#views .has")).to_have_text(EN("box_accepted"))
    assert box(page) in boxes


def test_a_box_that_is_drawn_before_the_proposals_arrive_stays(visit, scan):
    page = visit()
    held = []
    page.route("**/locate", lambda route: held.append(route))
    page.set_input_files("#files", scan)
    expect(page.locator("#proposal-text")).to_contain_text(EN("proposal_asked"))
    drag(page, (180, 140), (300, 260))
    own = box(page)
    held[0].continue_()
    expect(page.locator("#proposals button")).to_have_count(1)
    expect(page.locator("#proposal-text")).to_have_text(EN("proposal_own"))
    assert box(page) == own


def test_every_picture_has_its_own_proposals(visit, scan):
    page = visit()
    page.set_input_files("#files", [scan, scan])
    expect(page.locator("#views .has")).to_have_text([EN("box_proposed")] * 2, timeout=30_000)
    proposed(page)
    page.keyboard.press("Enter")
    page.locator("#views .thumb").nth(1).click()
    proposed(page)
    expect(page.locator("#views .has")).to_have_text([EN("box_accepted"), EN("box_proposed")])


def test_an_unsure_model_asks_for_the_box(visit, scan, stand_in):
    stand_in.unsure = True
    page = visit()
    page.set_input_files("#files", [scan, scan])
    proposed(page)
    expect(page.locator("#proposal-text")).to_have_text(EN("proposal_unsure"))
    accessible(page)
    shot(page, "boxes-unsure")
    drag(page, (180, 140), (300, 260))
    read(page)
    expect(page.get_by_text(EN("left_out_box_unsure", number=2))).to_be_visible()
    expect(page.locator(".answer").nth(1)).to_contain_text(EN("reason_box_unsure"))
    accessible(page)
    shot(page, "boxes-unsure-answer")


def test_a_picture_that_seems_to_be_a_crop_can_be_said_to_be_a_frame(visit, scan, stand_in):
    stand_in.whole = True
    page = visit()
    page.set_input_files("#files", scan)
    expect(page.locator("#proposal-text")).to_have_text(EN("proposal_crop"))
    accessible(page)
    shot(page, "boxes-crop")
    page.get_by_role("button", name=EN("proposal_frame")).click()
    boxes = proposed(page)
    read(page)
    assert answered(page) == boxes[0]


@pytest.mark.parametrize(("status", "text"), [(404, ""), (500, EN("proposal_none"))])
def test_the_page_works_without_proposals(visit, scan, stand_in, status, text):
    stand_in.located = status
    page = visit()
    with page.expect_response("**/locate"):
        page.set_input_files("#files", scan)
    expect(page.locator("#proposal-text")).to_have_text(text)
    expect(page.locator("#stage .proposal")).to_have_count(0)
    drag(page, (180, 140), (300, 260))
    expect(page.locator("#views .has")).to_have_text(EN("box_there"))
    expect(page.locator("#proposals")).to_be_hidden()
    read(page)


def test_a_busy_model_is_asked_again(visit, scan, stand_in):
    stand_in.located = 503
    page = visit()
    with page.expect_response("**/locate") as refused:
        page.set_input_files("#files", scan)
    assert refused.value.status == 503
    expect(page.locator("#proposal-text")).to_contain_text(EN("proposal_asked"))
    stand_in.located = 200
    proposed(page)


def test_proposals_are_spoken_once_and_reached_by_tab(visit, scan):
    page = visit()
    page.set_input_files("#files", scan)
    proposed(page)
    expect(page.locator("#proposal-text")).to_have_attribute("role", "status")
    expect(page.get_by_role("group", name=EN("proposals"))).to_be_visible()
    page.locator("#content").focus()
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('#proposals button')"):
            break
    page.keyboard.press("Space")
    expect(page.locator("#views .has")).to_have_text(EN("box_accepted"))
    expect(page.locator("#stage .roi")).to_be_focused()


def test_without_javascript_the_automatic_box_is_shown(visit, scan):
    page = visit(java_script_enabled=False)
    page.set_input_files("#files", scan)
    page.locator("noscript button").click()
    expect(page.locator(".reading")).to_be_visible(timeout=30_000)
    expect(page.locator(".answer .roi.auto")).to_be_visible()
    expect(page.locator(".answered")).to_contain_text(re.compile(re.escape(EN("answered_auto"))))
    shot(page, "boxes-without-script")
